"""Seals in Postgres: what is not sealed yet, what is, and the events that are sealed with the journal. One function per query."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Final
from uuid import UUID

from facilitator.domain.seals import EntryRecord, EventRecord
from facilitator.store.db import Db, Session, load_queries

QUERIES: Final = load_queries("seals")


@dataclass(frozen=True, slots=True)
class Seal:
    """One seal."""

    seal_no: int
    leaves: int
    root: bytes
    head: bytes
    journal_through: int
    audit_through: int
    sealed_at: datetime


@dataclass(frozen=True, slots=True)
class Leaf:
    """What a seal holds of one row."""

    source: str
    row_id: int
    book_day: date | None
    leaf: bytes


@dataclass(frozen=True, slots=True)
class SealedRow:
    """A sealed place, and the row that stands there now; None throughout when it is gone."""

    seal_no: int
    position: int
    source: str
    row_id: int
    book_day: date | None
    leaf: bytes
    entry_id: int | None
    book: str | None
    phase: str | None
    debit: str | None
    credit: str | None
    asset: str | None
    amount_atomic: int | None
    settlement_id: UUID | None
    admission: int | None
    tx_hash: str | None
    resolves: int | None
    reference: str | None
    happened_at: datetime | None
    booked_at: datetime | None
    event_id: int | None
    kind: str | None
    actor: str | None
    detail: str | None
    event_at: datetime | None


@dataclass(frozen=True, slots=True)
class Overdue:
    """A row that no seal holds though it should."""

    source: str
    row_id: int
    at: datetime


@dataclass(frozen=True, slots=True)
class FirstDay:
    """The first book day that has an entry."""

    day: date | None


@dataclass(frozen=True, slots=True)
class LastClosed:
    """The last closed book day."""

    day: date | None


@dataclass(frozen=True, slots=True)
class LowWater:
    """Where sealing stood."""

    entry_id: int


@dataclass(frozen=True, slots=True)
class Mine:
    """Was the lock to be had?"""

    mine: bool


async def lock(session: Session) -> None:
    """Nobody else seals or closes until the transaction ends."""
    await session.execute(QUERIES["lock_seals"])


async def try_lock(session: Session) -> bool:
    """`lock`, unless somebody has it."""
    return (await session.one(Mine, QUERIES["try_lock_seals"])).mine


async def last(session: Session) -> Seal | None:
    """The newest seal."""
    return await session.optional(Seal, QUERIES["last_seal"])


async def unsealed_entries(session: Session, limit: int) -> list[EntryRecord]:
    """Entries that may be sealed now, by id."""
    return await session.many(EntryRecord, QUERIES["unsealed_entries"], limit)


async def unsealed_events(session: Session, limit: int) -> list[EventRecord]:
    """Audit events that may be sealed now, by id."""
    return await session.many(EventRecord, QUERIES["unsealed_events"], limit)


async def store(session: Session, seal: Seal, leaves: Sequence[Leaf]) -> None:
    """Keep a seal and its leaves, in their order."""
    await session.execute(
        QUERIES["store_seal"],
        seal.seal_no,
        seal.leaves,
        seal.root,
        seal.head,
        seal.journal_through,
        seal.audit_through,
        [leaf.source for leaf in leaves],
        [leaf.row_id for leaf in leaves],
        [leaf.book_day for leaf in leaves],
        [leaf.leaf for leaf in leaves],
    )


def seals(session: Session) -> AsyncIterator[Seal]:
    """Every seal in order."""
    return session.stream(Seal, QUERIES["seals"])


def sealed_rows(session: Session) -> AsyncIterator[SealedRow]:
    """Every sealed place in order."""
    return session.stream(SealedRow, QUERIES["sealed_rows"])


def overdue(session: Session, leaves_max: int) -> AsyncIterator[Overdue]:
    """Rows that should have been sealed long before the last seal that was not full."""
    return session.stream(Overdue, QUERIES["overdue"], leaves_max)


async def first_day(session: Session) -> date | None:
    """The first book day that has an entry."""
    return (await session.one(FirstDay, QUERIES["first_day"])).day


async def last_closed(session: Session) -> date | None:
    """The last closed book day."""
    return (await session.one(LastClosed, QUERIES["last_closed"])).day


async def low_water(session: Session) -> int:
    """Entries up to this one were sealed a quarter of an hour ago, save what is overdue."""
    return (await session.one(LowWater, QUERIES["low_water"])).entry_id


async def record_event(db: Db | Session, kind: str, actor: str, detail: str) -> None:
    """Add to the audit trail."""
    await db.execute(QUERIES["record_event"], kind, actor, detail)
