"""What book days came to in gas and fees, in Postgres. One function per query."""

from dataclasses import dataclass
from datetime import date, datetime
from typing import Final

from facilitator.domain.periods import Period
from facilitator.store.db import Db, Session, load_queries
from facilitator.store.seals import Mine
from facilitator.store.views import Day, GasSpent
from facilitator.units import Zone

QUERIES: Final = load_queries("earnings")


@dataclass(frozen=True, slots=True)
class Earned:
    """What a book day came to, in micro-dollars."""

    day: date
    fees_micros: int | None
    """Gas that is passed through among them; None when the charge of some payment is not known."""
    unpriced: int
    """Such payments."""
    gas_micros: int | None
    """None when some transaction had no fresh rate."""
    unrated: int
    """Such transactions."""

    @property
    def margin_micros(self) -> int | None:
        """Fees less gas."""
        return None if self.fees_micros is None or self.gas_micros is None else self.fees_micros - self.gas_micros


@dataclass(frozen=True, slots=True)
class Known:
    """What a day's fees are counted by."""

    terms: int
    """Versions that had begun by then."""
    read_at: datetime


async def days_to_count(db: Db, zone: Zone, first: date, last: date) -> list[Day]:
    """Days that are not counted, or no longer right; all of them are complete."""
    return await db.many(Day, QUERIES["days_to_count"], zone, first, last)


async def first_day(db: Db, zone: Zone) -> date | None:
    """The first day of which there is something to count."""
    found = await db.optional(Day, QUERIES["first_ended_day"], zone)
    return None if found is None else found.day


async def try_lock(session: Session) -> bool:
    """Count alone until the transaction ends, unless somebody else does."""
    return (await session.one(Mine, QUERIES["try_lock_earnings"])).mine


async def known(session: Session, day: date) -> Known:
    """What a snapshot goes by: terms and rates that come while it is read count the day anew."""
    return await session.one(Known, QUERIES["known"], day)


async def store_day(session: Session, zone: Zone, day: date, fees_micros: int | None, unpriced: int, known: Known) -> None:
    """Keep what a day earned, by what was known when that was read."""
    await session.execute(QUERIES["store_day"], zone, day, fees_micros, unpriced, known.terms, known.read_at)


async def store_gas(session: Session, zone: Zone, day: date, period: Period, rate_stale_s: float) -> None:
    """Count a day's gas."""
    await session.execute(QUERIES["store_gas"], zone, day, period.start, period.end, rate_stale_s)


async def earned(db: Db, zone: Zone, first: date, last: date) -> list[Earned]:
    """What is counted of these days."""
    return await db.many(Earned, QUERIES["earnings"], zone, first, last)


async def counted_gas(db: Db, zone: Zone, first: date, last: date) -> list[GasSpent]:
    """Gas of the counted ones among these days."""
    return await db.many(GasSpent, QUERIES["counted_gas"], zone, first, last)


async def counted_days(db: Db, zone: Zone, first: date, last: date) -> list[Day]:
    """The counted ones among these days."""
    return await db.many(Day, QUERIES["counted_days"], zone, first, last)
