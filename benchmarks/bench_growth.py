"""Processor time of a verification and of a settlement as ledger, relayers and tenants grow: turns in one run.

`ledger`: an empty one and one of BENCH_SETTLEMENTS (100,000). `relayers`: 1 and 64. `tenants`: one key, and 1,000 keys of as many tenants.
Only processor time for each payment is to be compared, of the service and of PostgreSQL. See README.md. `BENCH_QUICK=1` for a short run.
"""

import gc
import os
from typing import Final

import asyncpg
import uvloop
from harness import QUICK, Meter, Ours, Point, Report, World, in_ms, per, percentile, running, strangers

from facilitator.store.tenants import generate_key
from tests.fixtures.grown import grow

SETTLEMENTS: Final = int(os.environ.get("BENCH_SETTLEMENTS", "100000"))
TENANTS: Final = 1000
BLOCK_S: Final = 0.2
ROUNDS: Final = 2 if QUICK else 3
ROUND_S: Final = 2.0 if QUICK else 3.0
VERIFYING: Final = 64
SETTLING: Final = 256
COLUMNS: Final = (
    ("who", "who"),
    ("what", "route"),
    ("n", "callers"),
    ("ok_s", "served/s"),
    ("p50_ms", "p50 ms"),
    ("cpu_ms", "CPU ms"),
    ("postgres_cpu_ms", "PG ms"),
    ("failed", "failed"),
    ("strangers", "strangers"),
)


class Grown(Ours):
    """`facilitator serve` on a ledger of so many settlements, for callers of so many tenants."""

    def __init__(self, world: World, name: str, *, relayers: int = 32, settlements: int = 0, tenants: int = 1) -> None:
        super().__init__(world, relayers, name=name)
        self._settlements = settlements
        self._tenants = tenants
        self._keys: list[str] = []

    async def fill(self, database_url: str) -> None:
        if self._settlements:
            await grow(database_url, self._settlements)
        if self._tenants > 1:
            self._keys = await make_keys(database_url, self._tenants)

    @property
    def all_headers(self) -> list[dict[str, str]]:
        return [{"Authorization": f"Bearer {key}"} for key in self._keys] or [self.headers]


async def make_keys(database_url: str, tenants: int) -> list[str]:
    """A key for each of so many new tenants."""
    made = [generate_key() for _ in range(tenants)]
    connection = await asyncpg.connect(database_url)
    try:
        names = [f"bench-{number}" for number in range(tenants)]
        await connection.execute("insert into tenant (tenant_id) select unnest($1::text[])", names)
        sql = """
insert into api_key (key_id, tenant_id, secret_sha256, scopes)
select *, array['verify', 'settle'] from unnest($1::text[], $2::text[], $3::bytea[])"""
        await connection.execute(sql, [new.key_id for new in made], names, [new.sha256 for new in made])
    finally:
        await connection.close()
    return [new.text for new in made]


async def measure(world: World, one: Grown, route: str, callers: int) -> Point:
    settles = route == "/settle"
    payments = world.prepare(int(1500 * ROUND_S) + callers if settles else 2000)
    meter = Meter(one)
    gc.collect()
    await meter.start()
    run = await world.apply(one, route, payments, ROUND_S, connections=callers, again=not settles, headers=one.all_headers, drain_s=10)
    spent = await meter.cpu_now()
    world.give_back(payments[run.used :] if settles else payments)
    good = [answer.seconds for answer in run.answers if answer.word == "success"]
    return {
        "ok_s": round(len(good) / ROUND_S, 1),
        "p50_ms": in_ms(percentile(good, 0.5)),
        "cpu_ms": per(spent["cpu"] * 1000, len(good)),
        "postgres_cpu_ms": per(spent["postgres_cpu"] * 1000, len(good)),
        "sent": len(run.answers),
        "failed": len(run.answers) - len(good),
        "strangers": strangers(spent),
    }


async def play(report: Report, world: World, ones: list[Grown]) -> None:
    async with running(ones) as contestants:
        for number in range(ROUNDS + 1):
            for one in contestants:
                assert isinstance(one, Grown)
                for route, callers in (("/verify", VERIFYING), ("/settle", SETTLING)):
                    point = await measure(world, one, route, callers)
                    if number:  # the first one warms up
                        report.add({"who": one.name, "what": route, "n": callers}, point)


async def main() -> None:
    report = Report("growth")
    async with World(BLOCK_S) as world:
        await play(report, world, [Grown(world, "empty"), Grown(world, f"ledger-{SETTLEMENTS}", settlements=SETTLEMENTS)])
        await play(report, world, [Grown(world, "relayers-1", relayers=1), Grown(world, "relayers-64", relayers=64)])
        await play(report, world, [Grown(world, "tenants-1"), Grown(world, f"tenants-{TENANTS}", tenants=TENANTS)])
    report.close("cpu_ms", COLUMNS)


if __name__ == "__main__":
    uvloop.run(main())
