"""Where the books stand: how far they reach, which book days are closed, and what is sealed of a day. Reads only."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime

from facilitator.finance.export import complete_through
from facilitator.store import books, seals
from facilitator.store import days as book_days
from facilitator.store.books import Completeness
from facilitator.store.days import Total
from facilitator.store.db import Db


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How far the books reach."""

    through: datetime | None
    """Before it nothing can be booked any more, save corrections; None while no network was ever served."""
    networks: Sequence[Completeness]


async def read(db: Db) -> Standing:
    """How far the books reach at this moment."""
    async with db.session() as session:
        found = await books.completeness(session)
    return Standing(through=complete_through(found), networks=found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """Where the close of book days stands."""

    last_closed: date | None
    first_day: date | None
    """The first book day of a sealed entry; None while nothing is sealed."""


async def closing(db: Db) -> Closing:
    """Where the close of book days stands."""
    async with db.session() as session:
        return Closing(last_closed=await seals.last_closed(session), first_day=await seals.first_day(session))


async def day_totals(db: Db, day: date) -> Sequence[Total]:
    """What is sealed of a book day, between kinds of accounts."""
    async with db.snapshot() as session:
        return await book_days.totals(session, day)
