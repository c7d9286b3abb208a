"""Counted five minutes change no share: what was matched is what reading every settlement of the day would say, at any time."""

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg
import pytest

from facilitator.clock import SystemClock
from facilitator.finance.tally import Tally
from facilitator.store import discrepancies
from facilitator.store.db import Db
from facilitator.store.discrepancies import Matched
from tests.fixtures.books import NETWORK, plant

COUNT: Final = 900
STEP: Final = timedelta(minutes=2)
OTHER: Final = "eip155:8453"
FULL: Final = """
select s.asset, sum(s.amount_atomic)::text, coalesce(sum(s.amount_atomic) filter (where exists (
           select from (select r.from_block, r.ran_at from reconciliation_run r
                         where r.network = s.network and r.background and r.to_block >= s.block_number order by r.to_block limit 1) held
            where held.from_block <= s.block_number and held.ran_at <= s.resolved_at + interval '1 hour')
         and not exists (select from discrepancy d where d.settlement_id = s.settlement_id and d.resolved_at is null and d.gone_at is null)
       ), 0)::text
  from settlement s
 where s.network = $1 and s.state in ('included', 'safe', 'finalized')
   and s.resolved_at > now() - interval '25 hours' and s.resolved_at <= now() - interval '1 hour'
 group by s.asset order by s.asset
"""
"""Every settlement of the day is looked at."""
_MIXED: Final = """
update settlement
   set network = case when log_index = 1 and block_number % 7 = 0 then $1 else network end,
       asset = case when amount_atomic % 3 = 0 then '0x' || repeat('a', 40) else asset end,
       closed = state <> 'finalized' and amount_atomic % 4 = 0,
       resolved_at = case when amount_atomic % 10 = 0 then date_bin('5 minutes', resolved_at, 'epoch') else resolved_at end
"""
_RUNS: Final = """
insert into reconciliation_run (network, from_block, to_block, to_hash, found, background, ran_at)
select n, 1000 + b, 1000 + b + 29, '0x', 0, b % 120 <> 90, $1::timestamptz + (b + 30) * $2::interval + (b % 7) * interval '15 minutes'
  from generate_series(0, $3::integer, 30) b, unnest($4::text[]) n
"""
_ON_THE_BORDERS: Final = """
with two as (
    select settlement_id, row_number() over (order by settlement_id) as n from settlement
     where state = 'finalized' and resolved_at > now() - interval '50 minutes' limit 2
)
update settlement s set resolved_at = now() - case when n = 1 then interval '25 hours' else interval '1 hour' end
  from two where two.settlement_id = s.settlement_id
"""
_OLDER: Final = (
    "update settlement set resolved_at = resolved_at - $1::interval",
    "update reconciliation_run set ran_at = ran_at - $1::interval",
    "update settled_slice set starts_at = starts_at - $1::interval",
    "update settled_sum set starts_at = starts_at - $1::interval",
)
_EVENTS: Final = (
    "update settlement set state = 'finalized' where state in ('included', 'safe') and random() < 0.5",
    # late: it keeps when it ended
    """update settlement set state = 'included', log_index = 1, block_number = 1000 + amount_atomic::bigint % 900, block_hash = tx_hash
        where state = 'failed' and not closed and random() < 0.1""",
    "update settlement set state = 'submitted', resolved_at = null where state = 'included' and random() < 0.2",  # reorganised away
    """update settlement set state = 'included', resolved_at = now(), log_index = 1, block_number = 1900, block_hash = tx_hash
        where state = 'submitted' and random() < 0.7""",
    "update settlement set closed = true where state = 'failed' and random() < 0.1",
    """insert into discrepancy (network, class, subject, settlement_id, expected, got)
       select network, 'R' || (1 + floor(random() * 3))::integer, settlement_id, settlement_id, '', '' from settlement where random() < 0.01
           on conflict (network, class, subject) do update set gone_at = null""",
    "update discrepancy set gone_at = now() where random() < 0.3",
    "update discrepancy set resolved_at = now(), resolved_by = 'ada', note = 'staged' where random() < 0.1",
    # somebody counts later: some are missing in between
    """with missing as (delete from settled_slice where random() < 0.05 returning starts_at)
       delete from settled_sum where starts_at in (select starts_at from missing)""",
)
"""What may happen to settlements, discrepancies and counts, of whatever age."""


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[Any]:
    """Thirty hours of settlements of two networks and two assets, some on the border of five minutes; some runs were late."""
    connection = await asyncpg.connect(database_url)
    start = datetime.now(UTC) - COUNT * STEP
    await connection.execute("set session_replication_role = replica")
    await plant(connection, COUNT, start=start, step=STEP)
    await connection.execute(_MIXED, OTHER)
    await connection.execute(_RUNS, start, STEP, COUNT, [NETWORK, OTHER])
    yield connection
    await connection.close()


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Db]:
    db = await Db.connect(database_url, connections_max=4)
    yield db
    await db.close()


async def both(connection: Any, network: str) -> list[list[Matched]]:
    """What is said, and what every settlement of the day says, at one moment; one was settled as the day began, one as it ended."""
    transaction = connection.transaction(isolation="repeatable_read")
    await transaction.start()
    await connection.execute(_ON_THE_BORDERS)
    found = [await connection.fetch(query, network) for query in (discrepancies.QUERIES["matched"].sql, FULL)]
    await transaction.rollback()
    return [[Matched(row[0], int(row[1]), int(row[2])) for row in rows] for rows in found]


async def test_the_share_is_that_of_the_settlements_whatever_was_counted_and_happened_since(connection: Any, db: Db) -> None:
    dice = random.Random(20261121)  # noqa: S311
    await connection.execute("select setseed(0.5)")
    tally = Tally(db, SystemClock())
    counted = shares = 0
    for _ in range(24):
        if dice.random() < 0.6:
            await tally.count_slices()
        for event in dice.sample(_EVENTS, 3):
            await connection.execute(event)
        passed = timedelta(minutes=5 * dice.randrange(8))
        for older in _OLDER:
            for part in (timedelta(days=60), passed - timedelta(days=60)):  # first past all others of a key
                await connection.execute(older, part)
        for network in (NETWORK, OTHER):
            said, read = await both(connection, network)
            assert said == read
            shares += sum(0 < row.matched_atomic < row.settled_atomic for row in said)
        counted = max(counted, await connection.fetchval("select count(*) from settled_slice"))
    assert counted > 250
    assert shares > 60


async def test_five_minutes_are_counted_once_and_when_all_but_a_few_are_decided(connection: Any, db: Db) -> None:
    starts_at = await connection.fetchval("select date_bin('5 minutes', now() - interval '4 hours', 'epoch')")
    await connection.execute("update settlement set closed = false, resolved_at = resolved_at - interval '3 days'")
    await connection.execute(
        "with each as (select settlement_id, row_number() over (partition by state) as n from settlement"
        " where state in ('failed', 'external')) update settlement s set resolved_at = $1::timestamptz + n * interval '1 s' from each"
        " where each.settlement_id = s.settlement_id and n <= 60",
        starts_at,
    )
    tally = Tally(db, SystemClock())
    await asyncio.gather(tally.count_slices(), tally.count_slices())
    undecided = "select undecided from settled_slice where starts_at = $1"
    assert await connection.fetchval(undecided, starts_at) is None, "more than a hundred may end otherwise"
    await connection.execute("update settlement set closed = true where state = 'external'")
    await asyncio.gather(tally.count_slices(), tally.count_slices())
    assert len(await connection.fetchval(undecided, starts_at)) == 60
    first, last = await connection.fetchrow("select now() - min(starts_at), now() - max(starts_at) from settled_slice")
    assert timedelta(hours=24, minutes=50) < first <= timedelta(hours=25)
    assert timedelta(minutes=75) <= last < timedelta(minutes=85)
