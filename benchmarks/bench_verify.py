"""Verifications a second, ours beside the official facilitators: one machine, one chain, one run, each on one CPU.

Also: how long a verification takes while settlements wait for their block. See README.md. `BENCH_QUICK=1` for a short run.
"""

import asyncio
from dataclasses import dataclass
from typing import Final

import psutil
import uvloop
from harness import (
    QUICK,
    Contestant,
    LoadRun,
    Meter,
    Ours,
    Point,
    Report,
    World,
    bare_python_peer,
    in_ms,
    per,
    percentile,
    python_peer,
    running,
    strangers,
    ts_peer,
)

PAYMENTS: Final = 400
"""Different payments; verifying changes nothing, so they are sent again and again."""
WAITING: Final = 48
"""Settlements in flight in the mixed case."""
RELAYERS: Final = 4


@dataclass(frozen=True, slots=True)
class Case:
    """One point to measure, for each contestant."""

    rpc_ms: int
    n: int
    seconds: float = 1.2
    rounds: int = 2


ALL: Final = (Case(0, 1), Case(0, 16), Case(0, 64, 2.0, 5), Case(0, 256), Case(20, 1), Case(20, 64), Case(20, 256))
SOME: Final = (Case(0, 1, 1, 1), Case(0, 64, 1, 1))
BARE: Final = (0, 64)
"""The one point at which the Python SDK is also measured as it comes, half as fast."""
COLUMNS: Final = (
    ("who", "who"),
    ("what", "what"),
    ("rpc_ms", "RPC ms"),
    ("n", "n"),
    ("ok_s", "verified/s"),
    ("times_python", "x python"),
    ("times_python_bare", "x python-bare"),
    ("times_ts", "x ts"),
    ("p50_ms", "p50 ms"),
    ("p99_ms", "p99 ms"),
    ("failed", "failed"),
    ("unanswered", "no answer"),
    ("cpu_ms", "CPU ms"),
    ("cpu_python", "python CPU"),
    ("cpu_ts", "ts CPU"),
    ("postgres_cpu_ms", "PG ms"),
    ("anvil_cpu_ms", "anvil ms"),
    ("rpc_requests", "RPC req"),
    ("rpc_calls", "RPC calls"),
    ("db_statements", "SQL"),
    ("rss_mib", "MiB"),
    ("strangers", "strangers"),
)


async def measure(world: World, one: Contestant, case: Case) -> Point:
    """One round of one case: every payment is good, so every answer must be valid."""
    payments = world.prepare(PAYMENTS)
    one.proxy.delay_s = case.rpc_ms / 1000
    meter = Meter(one)
    await meter.start()
    run = await world.apply(one, "/verify", payments, case.seconds, connections=case.n, again=True, drain_s=10)
    spent = await meter.cpu_now()
    one.proxy.delay_s = 0.0
    statements = await meter.database_now()
    world.give_back(payments)
    return figures(run) | costs(run, spent, statements) | {"rss_mib": round(psutil.Process(one.pid).memory_info().rss / 2**20)}


def figures(run: LoadRun) -> Point:
    """What the callers saw."""
    good = [answer for answer in run.answers if answer.word == "success"]
    unanswered = sum(answer.word == "unanswered" for answer in run.answers)
    took = max((answer.at for answer in good), default=run.ended) - run.began
    words: dict[str, int] = {}
    for answer in run.answers:
        words[answer.word] = words.get(answer.word, 0) + 1
    return {
        "ok_s": round(len(good) / took, 1),
        "p50_ms": in_ms(percentile([answer.seconds for answer in good], 0.5)),
        "p99_ms": in_ms(percentile([answer.seconds for answer in good], 0.99)),
        "sent": len(run.answers),
        "failed": len(run.answers) - len(good) - unanswered,
        "unanswered": unanswered,
        "words": words,
    }


def costs(run: LoadRun, spent: dict[str, float], statements: dict[str, float]) -> Point:
    """What one good answer cost."""
    count = sum(answer.word == "success" for answer in run.answers)
    asked = sum(value for key, value in statements.items() if key not in {"db_commits", "db_wal_fsyncs"})
    return {
        "cpu_ms": per(spent["cpu"] * 1000, count),
        "postgres_cpu_ms": per(spent["postgres_cpu"] * 1000, count) if statements else None,
        "anvil_cpu_ms": per(spent["anvil_cpu"] * 1000, count),
        "rpc_requests": per(spent["rpc_requests"], count, 2),
        "rpc_calls": per(spent["rpc_calls"], count, 2),
        "db_statements": per(asked, count, 2) if statements else None,
        "strangers": strangers(spent),
    }


async def measure_beside_settlements(world: World, other: World, one: Contestant, seconds: float) -> Point:
    """Four callers verify while `WAITING` settlements are always in flight; the second world only lends its load process."""
    settling = world.prepare(int(WAITING * (seconds / 2 + 3)))
    load = asyncio.create_task(world.apply(one, "/settle", settling, seconds + 1.0, connections=WAITING, drain_s=12))
    await asyncio.sleep(1.0)
    payments = other.prepare(PAYMENTS)
    run = await other.apply(one, "/verify", payments, seconds, connections=4, again=True, drain_s=15)
    other.give_back(payments)
    settled = await load
    world.give_back(settling[settled.used :])
    good = sum(answer.word == "success" for answer in settled.answers)
    return figures(run) | {"settled": good, "settle_trouble": len(settled.answers) - good}


async def verify(report: Report) -> None:
    """One after another, nothing else going on."""
    async with World(None) as world, running([*contestants_of(world), bare_python_peer(world)], apart="contestants") as contestants:
        for one in contestants:
            payments = world.prepare(PAYMENTS)
            await world.apply(one, "/verify", payments, 1.0, connections=16, again=True, drain_s=5)
            world.give_back(payments)
        for case in SOME if QUICK else ALL:
            for _ in range(case.rounds):
                for one in contestants:
                    if one.name == "python-bare" and (case.rpc_ms, case.n) != BARE:
                        continue
                    what = {"who": one.name, "what": "verify", "rpc_ms": case.rpc_ms, "n": case.n}
                    report.add(what, await measure(world, one, case))


async def verify_beside_settlements(report: Report) -> None:
    """The second world only lends its load process and payers."""
    async with World(2.0) as world, World(2.0) as other, running(contestants_of(world), apart="contestants") as contestants:
        for one in contestants:
            what = {"who": one.name, "what": f"beside {WAITING} settlements", "rpc_ms": 0, "n": 4}
            report.add(what, await measure_beside_settlements(world, other, one, 2.0 if QUICK else 6.0))


def contestants_of(world: World) -> list[Contestant]:
    return [Ours(world, RELAYERS), python_peer(world), ts_peer(world)]


async def main() -> None:
    report = Report("verify")
    await verify(report)
    await verify_beside_settlements(report)
    report.close("ok_s", COLUMNS)


if __name__ == "__main__":
    uvloop.run(main())
