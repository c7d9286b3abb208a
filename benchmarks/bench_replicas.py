"""What a replica more costs: processor time, statements and notifications for each settlement, and what all of them ask while nobody pays.

One, two and three replicas on one database take turns under the same load. On two cores no rate can be had: processor times count.
See README.md. `BENCH_QUICK=1` for a short run.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Final

import aiohttp
import asyncpg
import uvloop
from harness import ETHER, QUICK, Point, Prepared, Report, World, cpu_s, per, statements

from facilitator.devstack.accounts import dev_account
from facilitator.store.migrate import migrate
from facilitator.store.notifications import CHANNELS
from tests.fixtures.service import ServeProcess as Replica

CASES: Final = ((1, 1), (2, 2), (3, 3), (2, 1), (3, 1))
"""Replicas, and how many of them have relayer keys; the others queue what they admit."""
RELAYERS: Final = 6
ROUNDS: Final = 1 if QUICK else 3
RATE: Final = 100
"""Settlements a second, by the clock, shared evenly."""
SECONDS: Final = 5 if QUICK else 15
IDLE_S: Final = 5 if QUICK else 15
COLUMNS: Final = (
    ("who", "replicas"),
    ("signing", "with keys"),
    ("ok", "settled"),
    ("failed", "failed"),
    ("cpu_ms", "CPU ms"),
    ("postgres_cpu_ms", "PG ms"),
    ("db_statements", "SQL"),
    ("db_commits", "commits"),
    ("notified", "notifications"),
    ("idle_cpu_ms_s", "idle CPU ms/s"),
    ("idle_postgres_cpu_ms_s", "idle PG ms/s"),
    ("idle_statements_s", "idle SQL/s"),
    ("idle_commits_s", "idle commits/s"),
    ("idle_notified_s", "idle notifications/s"),
    ("connections", "PG connections"),
)


class Group:
    """Some replicas on a database of their own, and everything that they ask of it."""

    def __init__(self, world: World, replicas: Sequence[Replica], database: "asyncpg.Connection[asyncpg.Record]") -> None:
        self.world = world
        self.replicas = replicas
        self.database = database
        self.heard: Counter[str] = Counter()

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, world: World, number: int, signing: int, turn: int) -> AsyncIterator["Group"]:
        name = f"replicas-{turn}-{number}-{signing}"
        relayers = [dev_account(name, index) for index in range(RELAYERS)]
        for account in relayers:
            await world.token.set_gas_money(account.address, 10**6 * ETHER)
        database_url = await world.postgres.create_database(name.replace("-", "_"))
        await migrate(database_url)
        replicas = [
            Replica(
                world.directory / f"{name}-{index}",
                database_url=database_url,
                rpc_url=world.anvil.rpc_url,
                relayer_keys=["0x" + bytes(account.key).hex() for account in relayers] if index < signing else [],
            )
            for index in range(number)
        ]
        database = await asyncpg.connect(database_url)
        group = cls(world, replicas, database)
        for channel in CHANNELS:
            await database.add_listener(channel, lambda _connection, _pid, name, _payload: group.heard.update([name]))
        try:
            for replica in replicas:
                replica.spawn()
            await asyncio.gather(*(asyncio.to_thread(replica.wait_ready) for replica in replicas))
            yield group
        finally:
            await asyncio.gather(*(replica.aterminate() for replica in replicas))
            await database.close()

    async def spent(self) -> dict[str, float]:
        """All counters, as they stand."""
        found: dict[str, float] = {
            "cpu": sum(cpu_s(replica.pid) for replica in self.replicas),
            "postgres_cpu": cpu_s(self.world.postgres.pid),
            "notified": self.heard.total(),
            "statements": 0,
        }
        async with aiohttp.ClientSession() as session:
            for replica in self.replicas:
                found["statements"] += sum((await statements(session, replica.port)).values())
        await asyncio.sleep(1.1)  # Postgres tells its own counters up to a second late
        found["commits"] = await self.database.fetchval("select xact_commit from pg_stat_database where datname = current_database()")
        return found

    async def connections(self) -> int:
        count: int = await self.database.fetchval(
            "select count(*) from pg_stat_activity where datname = current_database() and application_name like 'facilitator%'"
        )
        return count

    async def pay(self, payments: Sequence[Prepared]) -> Counter[str]:
        """By the clock, each to the next replica; words of the answers."""
        words: Counter[str] = Counter()
        headers = {**self.replicas[0].headers, "Content-Type": "application/json"}

        async def settle(session: aiohttp.ClientSession, payment: Prepared, replica: Replica) -> None:
            async with session.post(f"{replica.base_url}/settle", data=payment.body, headers=headers) as response:
                words["ok" if (await response.json()).get("success") else "failed"] += 1

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session, asyncio.TaskGroup() as tasks:
            for number, payment in enumerate(payments):
                tasks.create_task(settle(session, payment, self.replicas[number % len(self.replicas)]))
                await asyncio.sleep(1 / RATE)
        return words


def since(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What was spent in between."""
    return {name: after[name] - count for name, count in before.items()}


async def measure(world: World, number: int, signing: int, turn: int) -> Point:
    """One round of so many replicas, of which so many sign."""
    async with Group.running(world, number, signing, turn) as group:
        await group.pay(world.prepare(RATE))  # fills caches, takes up relayers
        before = await group.spent()
        await asyncio.sleep(IDLE_S)
        idle = since(before, await group.spent())
        payments = world.prepare(RATE * SECONDS)
        before = await group.spent()
        words = await group.pay(payments)
        spent = since(before, await group.spent())
        count, idle_s = words["ok"], IDLE_S + 1.1
        return {
            "ok": count,
            "failed": words["failed"],
            "cpu_ms": per(spent["cpu"] * 1000, count),
            "postgres_cpu_ms": per(spent["postgres_cpu"] * 1000, count),
            "db_statements": per(spent["statements"], count),
            "db_commits": per(spent["commits"], count),
            "notified": per(spent["notified"], count),
            "idle_cpu_ms_s": round(idle["cpu"] * 1000 / idle_s, 1),
            "idle_postgres_cpu_ms_s": round(idle["postgres_cpu"] * 1000 / idle_s, 1),
            "idle_statements_s": round(idle["statements"] / idle_s, 1),
            "idle_commits_s": round(idle["commits"] / idle_s, 1),
            "idle_notified_s": round(idle["notified"] / idle_s, 2),
            "connections": await group.connections(),
        }


async def main() -> None:
    report = Report("replicas")
    async with World(1.0) as world:
        for turn in range(ROUNDS):
            for number, signing in CASES:
                report.add({"who": str(number), "signing": signing}, await measure(world, number, signing, turn))
    report.close("ok", COLUMNS)


if __name__ == "__main__":
    uvloop.run(main())
