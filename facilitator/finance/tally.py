"""Counts whole days of settlements, so that the sums of a filter over millions need not look at each of them.

A UTC day is counted once, when all of its settlements are settled for good; until then, and wherever a filter cuts a day, the
settlements themselves are read. The sums are those of the settlements at any time. The last day is counted by five minutes too,
for the share of it that was matched to the chain.
"""

from typing import Final

from facilitator.clock import Clock
from facilitator.store import discrepancies, views
from facilitator.store.db import Db

COUNT_S: Final = 600.0
"""How often it is looked for something to count."""


class Tally:
    """Counts again and again; any number of replicas may."""

    def __init__(self, db: Db, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    async def run(self) -> None:
        """Every `COUNT_S`, until cancelled."""
        while True:
            await self.count_slices()
            await self.count()
            await self._clock.sleep(COUNT_S)

    async def count(self) -> int:
        """Count every day that may be; how many."""
        days = await views.uncounted_days(self._db)
        for found in days:
            async with self._db.transaction(long=True) as session:
                await views.count_day(session, found.day)
        return len(days)

    async def count_slices(self) -> None:
        """Count every five minutes of the last day that may be."""
        for found in await discrepancies.uncounted_slices(self._db):
            async with self._db.transaction(long=True) as session:
                await discrepancies.count_slice(session, found.starts_at)
