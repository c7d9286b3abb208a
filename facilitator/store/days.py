"""Book days in Postgres: what keeps one open, what it came to, what was done to it. One function per query."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Final

from facilitator.store.db import Session, load_queries
from facilitator.units import Zone

QUERIES: Final = load_queries("days")


@dataclass(frozen=True, slots=True)
class Count:
    """How many."""

    entries: int


@dataclass(frozen=True, slots=True)
class First:
    """The first entry that something is asked of."""

    entry_id: int


@dataclass(frozen=True, slots=True)
class Total:
    """What a book day came to between two kinds of accounts."""

    book: str
    phase: str
    debit: str
    credit: str
    asset: str
    entries: int
    amount_atomic: int
    first_entry: int
    last_entry: int


@dataclass(frozen=True, slots=True)
class Adjusted:
    """An earlier day, and how many of its entries came too late for it."""

    day: date
    entries: int


@dataclass(frozen=True, slots=True)
class DayEvent:
    """A close or a reopening."""

    event_id: int
    day: date
    kind: str
    actor: str
    second: str | None
    document: str
    head: bytes
    at: datetime


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asked for a reopening, and why."""

    event_id: int
    actor: str
    detail: str


async def resolved_before(session: Session) -> int:
    """The entry before which all were resolved, by the days that are closed."""
    return (await session.one(First, QUERIES["resolved_before"])).entry_id


async def pending_before(session: Session, end: datetime, from_entry: int) -> int:
    """Entries from that one on, and from before that moment, which nothing has resolved."""
    return (await session.one(Count, QUERIES["pending_before"], end, from_entry)).entries


async def unreconciled_before(session: Session, end: datetime) -> int:
    """Final settlements of the two days before that moment whose block nobody held against the ledger."""
    return (await session.one(Count, QUERIES["unreconciled_before"], end)).entries


async def unsealed_before(session: Session, end: datetime, after_entry: int) -> int:
    """Entries above `after_entry` from before that moment which no seal holds."""
    return (await session.one(Count, QUERIES["unsealed_before"], end, after_entry)).entries


async def totals(session: Session, day: date) -> Sequence[Total]:
    """What a book day came to."""
    return await session.many(Total, QUERIES["day_totals"], day)


async def adjusts(session: Session, day: date, zone: Zone) -> Sequence[Adjusted]:
    """Earlier days whose late entries this one took over."""
    return await session.many(Adjusted, QUERIES["day_adjusts"], day, zone)


async def events(session: Session) -> Sequence[DayEvent]:
    """Everything that was done to book days, in order."""
    return await session.many(DayEvent, QUERIES["day_events"])


async def last_event(session: Session) -> DayEvent | None:
    """The newest of them."""
    return await session.optional(DayEvent, QUERIES["last_day_event"])


async def store_event(session: Session, day: date, kind: str, actor: str, second: str | None, document: str, head: bytes) -> None:
    """Add one."""
    await session.execute(QUERIES["store_day_event"], day, kind, actor, second, document, head)


async def reopen_asked(session: Session, day: date) -> Sequence[Asked]:
    """Who asked within a day that this one be reopened."""
    return await session.many(Asked, QUERIES["reopen_asked"], day.isoformat(), day)
