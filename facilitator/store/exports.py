"""Files that are made in the background, in Postgres: the jobs, and their bytes. One function per query."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from facilitator.domain.periods import Period
from facilitator.store.db import Db, Session, load_queries

QUERIES: Final = load_queries("exports")


@dataclass(frozen=True, slots=True)
class ExportId:
    """A job that was asked for."""

    export_id: UUID


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job that this process makes now."""

    export_id: UUID
    kind: str
    format: str
    asked: str
    """JSON: period, zone, tenant."""
    person: str


@dataclass(frozen=True, slots=True)
class Export:
    """A job as people see it."""

    export_id: UUID
    kind: str
    format: str
    asked: str
    person: str
    state: str
    rows_expected: int | None
    rows_done: int
    problem: str | None
    manifest: str | None
    bytes: int | None
    asked_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    expires_at: datetime | None
    expired: bool
    """Whether its file is gone."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a file."""

    content: bytes


@dataclass(frozen=True, slots=True)
class Rows:
    """How many."""

    rows: int


async def ask(session: Session, kind: str, form: str, asked: str, person: str, waiting_max: int) -> UUID | None:
    """Put a job at the end of the queue; None when too many wait."""
    found = await session.optional(ExportId, QUERIES["ask_export"], kind, form, asked, person, waiting_max)
    return None if found is None else found.export_id


async def claim(db: Db, places: int) -> Claimed | None:
    """Take the next job, if there is one and a place for it. Raises ConstraintViolated when another process took the place."""
    return await db.optional(Claimed, QUERIES["claim_export"], places)


async def touch(db: Db, export_id: UUID) -> bool:
    """Its process lives; False when it runs no more."""
    return await db.execute(QUERIES["touch_export"], export_id) == 1


async def expect(db: Db, export_id: UUID, rows: int) -> bool:
    """How many rows it will have; False when it runs no more."""
    return await db.execute(QUERIES["expect_rows"], export_id, rows) == 1


async def count(db: Db, export_id: UUID, rows: int) -> bool:
    """How many rows it has; False when it runs no more."""
    return await db.execute(QUERIES["count_rows"], export_id, rows) == 1


async def add_chunk(db: Db, export_id: UUID, chunk_no: int, content: bytes) -> bool:
    """Keep a part of its file; False when it runs no more."""
    return await db.execute(QUERIES["add_chunk"], export_id, chunk_no, content) == 1


async def finish(session: Session, export_id: UUID, rows: int, manifest: str, size: int, kept_s: float) -> bool:
    """Its file is whole; False when it runs no more."""
    return await session.execute(QUERIES["finish_export"], export_id, rows, manifest, size, kept_s) == 1


async def fail(db: Db, export_id: UUID, problem: str) -> bool:
    """It came to nothing; False when it runs no more."""
    return await db.execute(QUERIES["fail_export"], export_id, problem) == 1


async def cancel(session: Session, export_id: UUID) -> bool:
    """Nobody wants it any more; False when it had ended."""
    return await session.execute(QUERIES["cancel_export"], export_id) == 1


async def fail_silent(db: Db, silent_s: float, problem: str) -> int:
    """End jobs whose process was not heard of for so long."""
    return await db.execute(QUERIES["fail_silent_exports"], silent_s, problem)


async def drop_chunks(db: Db, limit: int) -> int:
    """Delete some of the files whose time is over, and of what failed jobs left; how many parts."""
    return await db.execute(QUERIES["drop_chunks"], limit)


async def get(db: Db, export_id: UUID) -> Export | None:
    """One job."""
    return await db.optional(Export, QUERIES["get_export"], export_id)


async def newest(db: Db, limit: int) -> list[Export]:
    """Jobs, newest first."""
    return await db.many(Export, QUERIES["list_exports"], limit)


async def read_chunk(db: Db, export_id: UUID, chunk_no: int) -> bytes | None:
    """A part of a file; None after the last, and when the file is gone."""
    found = await db.optional(Chunk, QUERIES["read_chunk"], export_id, chunk_no)
    return None if found is None else found.content


async def expected_settlements(session: Session, period: Period, tenant_id: str | None) -> int:
    """Rows of a settlement detail report."""
    return (await session.one(Rows, QUERIES["expected_settlements"], period.start, period.end, tenant_id)).rows


async def expected_gas(session: Session, period: Period) -> int:
    """Rows of a gas report."""
    return (await session.one(Rows, QUERIES["expected_gas"], period.start, period.end)).rows


async def expected_journal(session: Session, period: Period) -> int:
    """Entries of a period."""
    return (await session.one(Rows, QUERIES["expected_journal"], period.start, period.end)).rows


async def expected_sealed(session: Session) -> int:
    """Records of an audit bundle."""
    return (await session.one(Rows, QUERIES["expected_sealed"])).rows
