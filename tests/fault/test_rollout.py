"""A deploy that loses nothing: replicas are replaced under load, a migration runs meanwhile, and no caller notices."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest_asyncio

from facilitator.store.migrate import load_migrations
from tests.fixtures.balancer import Balancer
from tests.fixtures.house import BRIEF_LEASES, House
from tests.fixtures.rollout import assert_each_paid_once, next_release, pay_steadily, replace_step_by_step, roll

RATE_PER_S = 10
DRAIN_S = 1.0


@pytest_asyncio.fixture
async def house(tmp_path: Path, database_url: str) -> AsyncIterator[House]:
    async with House.open(tmp_path, database_url, settlement=BRIEF_LEASES, server={"drain_delay_s": DRAIN_S}, relayers=2) as house:
        await asyncio.gather(house.serve(), house.serve())
        yield house


async def test_a_rollout_with_a_migration_fails_and_doubles_no_payment(house: House, tmp_path: Path) -> None:
    tree = next_release(tmp_path / "next")
    await house.mine_every_second()
    async with Balancer.open() as balancer:
        for service in house.services:
            balancer.add(service.port)
            await balancer.takes(service.port)

        async def between() -> None:
            """The release before is killed and started again on the schema of the next one."""
            old = house.services[1]
            await old.akill()
            await old.astart()
            ahead = [event for event in old.log_events if event.get("event") == "schema.ahead"]
            assert [event["ahead"] for event in ahead] == [[f"{last + 1:04}_pre_note", f"{last + 2:04}_pre_note_index"]]

        last = load_migrations()[-1].version
        load = await pay_steadily(house, balancer, RATE_PER_S, roll(house, balancer, tree, between, replace_step_by_step))
    await house.mine_at_once()
    assert not [event for service in house.services[2:] for event in service.log_events if event.get("event") == "schema.ahead"]
    assert set(load.last) <= {"success", "duplicate_settlement"}
    assert load.repeated <= balancer.lost  # only callers of the replica that was killed had to ask again
    await assert_each_paid_once(house, load)
    connection = await asyncpg.connect(house.database_url)
    try:
        assert await connection.fetchval("select indisvalid from pg_index where indexrelid = 'settlement_note'::regclass")
    finally:
        await connection.close()
