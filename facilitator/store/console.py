"""Sessions of the finance console and one-time links, in Postgres. One function per query; a secret comes here as its hash only."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from facilitator.store.db import Db, Session, load_queries

QUERIES: Final = load_queries("console")


@dataclass(frozen=True, slots=True)
class Invited:
    """Whom a link signs in, and as what."""

    person: str
    role: str


@dataclass(frozen=True, slots=True)
class ConsoleSession:
    """A person who is signed in."""

    person: str
    role: str
    method: str
    """`link` or `oidc`."""
    started_at: datetime
    idle_s: float
    """Since it was last seen, as far as that was written down."""


async def make_link(db: Db | Session, secret_sha256: bytes, person: str, role: str, made_by: str, life_s: float) -> None:
    """Put a link on record."""
    await db.execute(QUERIES["make_link"], secret_sha256, person, role, made_by, life_s)


async def use_link(session: Session, secret_sha256: bytes) -> Invited | None:
    """Use a link up; None when there is none, or it is used or too old."""
    return await session.optional(Invited, QUERIES["use_link"], secret_sha256)


async def start_session(session: Session, secret_sha256: bytes, person: str, role: str, method: str, life_s: float) -> None:
    """Somebody is signed in."""
    await session.execute(QUERIES["start_session"], secret_sha256, person, role, method, life_s)


async def find_session(db: Db, secret_sha256: bytes, idle_max_s: float) -> ConsoleSession | None:
    """The open session of this secret."""
    return await db.optional(ConsoleSession, QUERIES["find_session"], secret_sha256, idle_max_s)


async def touch_session(db: Db, secret_sha256: bytes) -> None:
    """It was seen now."""
    await db.execute(QUERIES["touch_session"], secret_sha256)


async def end_session(session: Session, secret_sha256: bytes) -> bool:
    """Sign out here; False when it had ended."""
    return await session.execute(QUERIES["end_session"], secret_sha256) == 1


async def end_sessions_of(session: Session, person: str) -> int:
    """Sign a person out everywhere; how many sessions that ended."""
    return await session.execute(QUERIES["end_sessions_of"], person)
