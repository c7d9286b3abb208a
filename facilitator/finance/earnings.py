"""Counts what book days came to: gas in dollars, and the fees that the day's payments earned, so that nobody prices a month to look at it.

A day is counted once nothing of it can be booked any more, and anew when terms or rates came that reach back to it. Payments are
priced as invoices price them, gas as the gas report does; what has no fresh rate has no dollar figure, and is told.
"""

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Final

from facilitator.clock import Clock
from facilitator.domain.periods import Period, day_of, day_start, local_date
from facilitator.finance.export import complete_through
from facilitator.finance.pricing import Pricer
from facilitator.finance.settings import Settings
from facilitator.store import billing, books, earnings, views
from facilitator.store.db import Db, Session
from facilitator.store.views import GasSpent
from facilitator.units import Address, Network, Zone

COUNT_S: Final = 300.0
"""How often it is looked for days to count."""
KEPT_DAYS: Final = 62
"""Days before today that are counted: older ones are exported, not looked at."""
_DAY: Final = timedelta(days=1)
_BREATH_ROWS: Final = 100
"""Rows that are priced before others have their turn."""


class Earnings:
    """Counts again and again; of several replicas, one at a time."""

    def __init__(self, db: Db, clock: Clock, settings: Settings, decimals: Mapping[tuple[Network, Address], int]) -> None:
        self._db = db
        self._clock = clock
        self._settings = settings
        self._decimals = decimals

    async def run(self) -> None:
        """Every `COUNT_S`, until cancelled."""
        while True:
            await self.count()
            await self._clock.sleep(COUNT_S)

    async def count(self) -> int:
        """Count every day that may be; how many."""
        zone = self._settings.booking_zone
        async with self._db.session() as session:
            complete = complete_through(await books.completeness(session))
        begun = await earnings.first_day(self._db, zone)
        if complete is None or begun is None:
            return 0
        first = max(begun, local_date(datetime.now(UTC), zone) - KEPT_DAYS * _DAY)
        days = await earnings.days_to_count(self._db, zone, first, local_date(complete, zone) - _DAY)
        for found in days:
            await self._count(found.day)
        return len(days)

    async def _count(self, day: date) -> None:
        zone = self._settings.booking_zone
        period = day_of(day, zone)
        async with self._db.snapshot() as session:
            known = await earnings.known(session, day)
            fees_micros, unpriced = await self._fees(session, period)
        async with self._db.transaction(long=True) as session:
            if await earnings.try_lock(session):
                await earnings.store_day(session, zone, day, None if unpriced else fees_micros, unpriced, known)
                await earnings.store_gas(session, zone, day, period, self._settings.rate_stale_s)

    async def _fees(self, session: Session, period: Period) -> tuple[int, int]:
        """Micro-dollars that were earned, and how many payments could not be priced."""
        if not await billing.list_schedules(session, None):
            return 0, 0
        fees_micros = unpriced = rows = 0
        pricer = await Pricer.open(session, period, None, self._settings.booking_zone, self._decimals)
        async for line in books.settlement_lines(session, period, None, self._settings.rate_stale_s):
            charge = pricer.price(line)
            if charge is not None and charge.gas_micros is None:
                unpriced += 1
            elif charge is not None and charge.gas_micros is not None:
                fees_micros += charge.fee_micros + charge.gas_micros
            rows += 1
            if rows % _BREATH_ROWS == 0:
                await self._clock.sleep(0)
        return fees_micros, unpriced


async def gas_by_day(db: Db, zone: Zone, first: date, last: date) -> list[GasSpent]:
    """What gas cost on each of these days of the booking zone: counted days as they were counted, the others by the journal."""
    counted = {each.day for each in await earnings.counted_days(db, zone, first, last)}
    found = await earnings.counted_gas(db, zone, first, last)
    open_days = [day for day in (first + number * _DAY for number in range((last - first).days + 1)) if day not in counted]
    if open_days:
        read = await views.gas(db, Period(day_start(open_days[0], zone), day_start(open_days[-1] + _DAY, zone)), zone)
        found += [each for each in read if each.day not in counted]
    return sorted(found, key=lambda each: each.day)
