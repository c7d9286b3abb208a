"""Counted days change no sum: whatever the filter, what the tally says is what the settlements themselves come to."""

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from facilitator.clock import SystemClock
from facilitator.finance import views
from facilitator.finance.tally import Tally
from facilitator.store.db import Db
from facilitator.store.views import QUERIES, Filter, SettlementRow, StateTotal
from facilitator.units import UTC_ZONE
from tests.fixtures.books import NETWORK, USDC, plant

START = datetime(2025, 11, 1, 6, tzinfo=UTC)
COUNT = 600
STEP = timedelta(minutes=20)
"""Eight days and eight hours."""


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(database_url)
    await plant(connection, COUNT, start=START, step=STEP)
    await connection.execute("update settlement set closed = state <> 'finalized'")
    yield connection
    await connection.close()


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Db]:
    db = await Db.connect(database_url, connections_max=4)
    yield db
    await db.close()


async def counted(connection: Any) -> list[str]:
    return [row["day"].isoformat() for row in await connection.fetch("select day from settlement_day order by day")]


def some_filter(dice: random.Random) -> dict[str, str]:
    """Each filter is used in about a third of them."""
    hours = sorted(dice.sample(range(-10, 220), 2))
    wanted = {
        "from": (START + timedelta(hours=hours[0])).isoformat(),
        "to": (START + timedelta(hours=hours[1])).isoformat(),
        "state": dice.choice(["finalized", "failed", "external", "queued"]),
        "tenant": f"tenant-{dice.randrange(3)}",
        "network": NETWORK,
        "asset": USDC,
        "pay_to": "0x" + str(dice.randrange(3)).rjust(40, "b"),
        "amount_min": str(dice.randrange(1000, 1600)),
        "amount_max": str(dice.randrange(1000, 1600)),
    }
    return {name: value for name, value in wanted.items() if dice.random() < 0.35}


async def plain(db: Db, chosen: Filter) -> list[StateTotal]:
    """The sums, each settlement being looked at."""
    return await db.many(StateTotal, QUERIES["view_few_totals"], *chosen.arguments)


async def test_no_filter_tells_counted_days_from_others(connection: Any, db: Db) -> None:
    """Some days cannot be counted: a gap between counted ones, and both ends that filters cut."""
    await connection.execute("update settlement set closed = false where state = 'failed' and queued_at::date = '2025-11-04'")
    assert await Tally(db, SystemClock()).count() > 8, "days without any are counted too"
    assert (await counted(connection))[:8] == [f"2025-11-0{day}" for day in (1, 2, 3, 5, 6, 7, 8, 9)]
    assert await connection.fetchval("select count(*) from settlement_tally") > 0
    dice = random.Random(20251121)  # noqa: S311
    found = 0
    for _ in range(300):
        query = some_filter(dice)
        chosen = views.parse_filter(query, UTC_ZONE)
        told = await views.totals(db, chosen)
        assert told == await plain(db, chosen), query
        found += sum(total.settlements for total in told)
    assert found > 10_000


async def test_the_tally_is_what_is_read(connection: Any, db: Db) -> None:
    """A tally that was made wrong shows: so the test above compares two things."""
    await Tally(db, SystemClock()).count()
    await connection.execute("update settlement_tally set settlements = settlements + 1 where each_atomic is null and day = '2025-11-03'")
    assert await views.totals(db, Filter()) != await plain(db, Filter())


async def test_a_page_is_the_same_however_it_is_found(connection: Any, db: Db) -> None:
    """Settled and moving settlements, mixed: in one order, none twice, none left out."""
    await connection.execute("update settlement set closed = false where state = 'failed' and log_index is null and amount_atomic % 3 = 0")
    dice = random.Random(7)  # noqa: S311
    for _ in range(100):
        chosen = views.parse_filter(some_filter(dice), UTC_ZONE)
        whole = await db.many(SettlementRow, QUERIES["stream_settlements"], *chosen.arguments)
        first = await views.settlements(db, chosen, None, 20)
        assert list(first.rows) == whole[:20]
        if first.next_cursor is not None:
            second = await views.settlements(db, chosen, first.next_cursor, 20)
            assert list(second.rows) == whole[20:40]


async def test_a_day_is_counted_when_it_has_ended_and_nothing_of_it_moves_and_once(connection: Any, db: Db) -> None:
    now = datetime.now(UTC)
    await connection.execute("update settlement set queued_at = $1 where amount_atomic = 1000", now - timedelta(hours=24, minutes=30))
    await connection.execute("update settlement set queued_at = $1 where amount_atomic = 1001", now)
    tally = Tally(db, SystemClock())
    assert sum(await asyncio.gather(tally.count(), tally.count())) >= 9
    days = await counted(connection)
    assert days[-1] <= (now - timedelta(hours=25)).date().isoformat()
    assert now.date().isoformat() not in days
    assert len(days) == len(set(days))
    assert await tally.count() == 0
    assert await views.totals(db, Filter()) == await plain(db, Filter())
    assert sum(total.settlements for total in await views.totals(db, Filter())) == COUNT


async def test_an_empty_ledger_has_no_day_to_count(database_url: str) -> None:
    db = await Db.connect(database_url, connections_max=2)
    try:
        assert await Tally(db, SystemClock()).count() == 0
        assert await views.totals(db, Filter()) == []
    finally:
        await db.close()
