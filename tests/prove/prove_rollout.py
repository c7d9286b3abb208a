"""A deploy under load: two replicas replaced one by one, killed one by one, and the database restarted, at a steady rate.

`FACILITATOR_RATE` sets the payments a second, 100 by default. Latency is from a caller's first request to its final answer: at the
99th percentile at most twice what it was in peace, in the same run. The replicas have the leases of their defaults.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from facilitator.devstack.children import StateDirectory
from facilitator.devstack.stack import Postgres
from facilitator.store.migrate import migrate
from tests.fixtures.balancer import Balancer
from tests.fixtures.house import House
from tests.fixtures.rollout import Load, assert_each_paid_once, next_release, pay_steadily, replace, roll
from tests.prove.conftest import Tell

RATE_PER_S: Final = float(os.environ.get("FACILITATOR_RATE") or 100)
PEACE_S: Final = 15.0
"""How long the latency in peace is measured."""
DRAIN_S: Final = 3.0
"""`server.drain_delay_s` of replicas behind the balancer: thirty of its looks."""
APART_S: Final = 5.0
"""Between two faults."""


TIMES: Final = 2.0
"""What p99 may come to beside what it is in peace."""


class Scene:
    """A house of two replicas behind a balancer, on a database that may be stopped."""

    def __init__(self, house: House, balancer: Balancer, database: Postgres) -> None:
        self.house = house
        self.balancer = balancer
        self.database = database

    async def judge(self, what: str, strike: Callable[[], Awaitable[object]], tell: Tell) -> Load:
        """Pay in peace, pay while it strikes, and hold the ledger against the chain."""
        await self.house.mine_every_second()
        peace = await pay_steadily(self.house, self.balancer, RATE_PER_S, asyncio.sleep(PEACE_S))
        lost_before = self.balancer.lost

        async def struck() -> None:
            await strike()
            await asyncio.sleep(APART_S)

        load = await pay_steadily(self.house, self.balancer, RATE_PER_S, struck())
        await self.house.mine_at_once()
        await assert_each_paid_once(self.house, peace, load)
        words = {word: load.last.count(word) for word in sorted(set(load.last))}
        tell(
            f"{what}: {RATE_PER_S:g}/s, {len(load.payments)} payments, each made once; {load.repeated} callers asked again,"
            f" {self.balancer.lost - lost_before} answers lost with their replica; last words {words};"
            f" p99 {load.p99_s():.2f} s, in peace {peace.p99_s():.2f} s ({load.p99_s() / peace.p99_s():.1f} times)"
        )
        assert set(load.last) <= {"success", "duplicate_settlement"}
        assert set(peace.first) == {"success"}
        assert load.p99_s() <= TIMES * peace.p99_s()
        return load


@asynccontextmanager
async def scene(directory: Path) -> AsyncIterator[Scene]:
    state = StateDirectory.open(directory / "postgres")
    database = Postgres(state)
    await database.start()
    try:
        database_url = await database.create_database("rollout")
        await migrate(database_url)
        server = {"drain_delay_s": DRAIN_S}
        async with (
            House.open(directory / "house", database_url, settlement={}, server=server, relayers=2) as house,
            Balancer.open() as balancer,
        ):
            for service in (await house.serve(), await house.serve()):
                balancer.add(service.port)
                await balancer.takes(service.port)
            yield Scene(house, balancer, database)
    finally:
        await database.stop()
        state.close()


async def test_replicas_replaced_one_by_one_with_a_migration_in_between(tmp_path: Path, tell: Tell) -> None:
    tree = next_release(tmp_path / "next")
    async with scene(tmp_path) as stage:
        load = await stage.judge("rollout", lambda: roll(stage.house, stage.balancer, tree, lambda: asyncio.sleep(APART_S), replace), tell)
        assert set(load.first) == {"success"}, "a rollout is noticed by nobody"
        assert stage.balancer.lost == 0


async def test_replicas_killed_one_by_one(tmp_path: Path, tell: Tell) -> None:
    async with scene(tmp_path) as stage:

        async def strike() -> None:
            for service in stage.house.services:
                await service.akill()
                await service.astart()
                await stage.balancer.takes(service.port)
                await asyncio.sleep(APART_S)

        await stage.judge("kill -9", strike, tell)


async def test_the_database_restarted(tmp_path: Path, tell: Tell) -> None:
    async with scene(tmp_path) as stage:

        async def strike() -> None:
            await stage.database.stop()
            await stage.database.start()

        load = await stage.judge("PostgreSQL restarted", strike, tell)
        assert stage.balancer.lost == 0
        assert set(load.last) == {"success"}
