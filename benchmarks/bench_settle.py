"""Settlements a second, ours beside the official facilitators: one machine, one chain, one run.

See README.md. `BENCH_QUICK=1` for a short run, `BENCH_ONLY=ours-32,ts` for some contestants.
"""

import gc
from dataclasses import dataclass
from typing import Final

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
    in_ms,
    judge,
    per,
    percentile,
    python_peer,
    running,
    strangers,
    ts_peer,
)

RATE_MAX: Final = 1200
"""More settlements a second than this are not prepared for; a load that runs out of payments ends early."""


@dataclass(frozen=True, slots=True)
class Case:
    """One point to measure, for each contestant."""

    rpc_ms: int
    n: int
    """Connections of a closed loop, or requests a second of an open one."""
    seconds: float
    load: str = "closed"
    only: tuple[str, ...] = ()
    rounds: int = 1


@dataclass(frozen=True, slots=True)
class Scene:
    """One chain and what happens on it."""

    block_time_s: float | None
    cases: tuple[Case, ...]


ALL: Final = (
    Scene(None, (Case(0, 1, 2), Case(0, 16, 2, rounds=2), Case(0, 64, 2), Case(20, 16, 2))),
    Scene(
        0.2,
        (
            Case(0, 1, 2),
            Case(0, 16, 3),
            Case(0, 64, 3, rounds=2),
            Case(0, 256, 3, rounds=2),
            Case(20, 64, 3),
            Case(0, 100, 4, load="open", only=("ours-1", "ours-32")),
            Case(0, 300, 4, load="open", only=("ours-1", "ours-32")),
            Case(0, 1000, 4, load="open", only=("ours-32",)),
        ),
    ),
    Scene(2.0, (Case(0, 16, 6), Case(0, 256, 6), Case(20, 64, 6))),
)
SOME: Final = (Scene(0.2, (Case(0, 64, 2), Case(0, 100, 2, load="open", only=("ours-32",)))),)
COLUMNS: Final = (
    ("who", "who"),
    ("blocks", "blocks"),
    ("rpc_ms", "RPC ms"),
    ("load", "load"),
    ("n", "n"),
    ("ok_s", "settled/s"),
    ("times_python", "x python"),
    ("times_ts", "x ts"),
    ("p50_ms", "p50 ms"),
    ("p99_ms", "p99 ms"),
    ("after_block_p50_ms", "after block p50"),
    ("failed", "failed"),
    ("unanswered", "no answer"),
    ("false", "false"),
    ("cpu_ms", "CPU ms"),
    ("cpu_python", "python CPU"),
    ("cpu_ts", "ts CPU"),
    ("postgres_cpu_ms", "PG ms"),
    ("anvil_cpu_ms", "anvil ms"),
    ("rpc_requests", "RPC req"),
    ("rpc_calls", "RPC calls"),
    ("db_statements", "SQL"),
    ("db_commits", "commits"),
    ("gas", "gas"),
    ("tx", "tx"),
    ("strangers", "strangers"),
)


async def measure(world: World, one: Contestant, case: Case) -> Point:
    """One round of one case."""
    payments = world.prepare(int(min(RATE_MAX, case.n * 12) * case.seconds) + case.n)
    since = int(await world.rpc("eth_blockNumber"), 16) + 1
    one.proxy.delay_s = case.rpc_ms / 1000
    meter = Meter(one)
    await meter.start()
    gc.collect()
    is_open = case.load == "open"
    run = await world.apply(
        one,
        "/settle",
        payments,
        case.seconds,
        connections=1000 if is_open else case.n,
        rate=case.n if is_open else None,
        drain_s=6 + 3 * (world.block_time_s or 0.5),
    )
    spent = await meter.cpu_now()
    one.proxy.delay_s = 0.0
    spent |= await meter.database_now()
    world.give_back(payments[run.used :])
    verdict = await judge(world, one, payments[: run.used], run.answers, since)
    good = [answer for answer in run.answers if answer.word == "success"]
    unanswered = sum(answer.word == "unanswered" for answer in run.answers)
    words: dict[str, int] = {}
    for answer in run.answers:
        words[answer.word] = words.get(answer.word, 0) + 1
    after = await after_block(world, run, since)
    took = (max((answer.at for answer in good), default=run.ended)) - run.began
    count = len(good)
    statements = [value for key, value in spent.items() if key.startswith("db_") and key not in {"db_commits", "db_wal_fsyncs"}]
    if unanswered:
        await one.restart()  # a wedged contestant must not spoil its next point
    return {
        "ok_s": round(count / max(took, case.seconds if is_open else 0.0), 1),
        "p50_ms": in_ms(percentile([answer.seconds for answer in good], 0.5)),
        "p99_ms": in_ms(percentile([answer.seconds for answer in good], 0.99)),
        "after_block_p50_ms": in_ms(percentile(after, 0.5)),
        "after_block_p99_ms": in_ms(percentile(after, 0.99)),
        "sent": len(run.answers),
        "paid": verdict.paid,
        "failed": len(run.answers) - count - unanswered,
        "unanswered": unanswered,
        "false": verdict.false_answers,
        "told_failed_and_is_paid": verdict.told_failed_and_is_paid,
        "told_paid_and_is_not": verdict.told_paid_and_is_not,
        "paid_twice": verdict.paid_twice,
        "cpu_ms": per(spent["cpu"] * 1000, count),
        "postgres_cpu_ms": per(spent["postgres_cpu"] * 1000, count) if statements else None,
        "anvil_cpu_ms": per(spent["anvil_cpu"] * 1000, count),
        "rpc_requests": per(spent["rpc_requests"], count, 2),
        "rpc_calls": per(spent["rpc_calls"], count, 2),
        "db_statements": per(sum(statements), count, 2) if statements else None,
        "db_commits": per(spent["db_commits"], count, 2) if statements else None,
        "db_wal_fsyncs": per(spent["db_wal_fsyncs"], count, 2) if statements else None,
        "gas": per(verdict.gas, verdict.paid, 0),
        "tx": per(verdict.transactions, verdict.paid),
        "strangers": strangers(spent),
        "words": words,
    }


async def after_block(world: World, run: LoadRun, since: int) -> list[float]:
    """How long after its block was announced each success was answered; on a chain that mines at once that says nothing."""
    if world.block_time_s is None:
        return []
    head = int(await world.rpc("eth_blockNumber"), 16)
    block_of: dict[str, int] = {}
    for number, block in zip(
        range(since, head + 1), await world.batch([("eth_getBlockByNumber", [hex(n), False]) for n in range(since, head + 1)]), strict=True
    ):
        block_of.update(dict.fromkeys(block["transactions"], number))
    waits = []
    for answer in run.answers:
        seen = world.block_seen.get(block_of.get(str(answer.json.get("transaction")), -1))
        if answer.word == "success" and seen is not None:
            waits.append(answer.at - seen)
    return waits


async def warm_up(world: World, one: Contestant) -> None:
    """Connections, caches and code paths."""
    payments = world.prepare(200)
    run = await world.apply(one, "/settle", payments, 0.5, connections=4, drain_s=10)
    world.give_back(payments[run.used :])


async def play(scene: Scene, report: Report) -> None:
    async with World(scene.block_time_s) as world, running(contestants_of(world)) as contestants:
        for one in contestants:
            await warm_up(world, one)
        for case in scene.cases:
            for _ in range(case.rounds):
                for one in contestants:
                    if not case.only or one.name in case.only:
                        what = {"who": one.name, "blocks": world.blocks, "rpc_ms": case.rpc_ms, "load": case.load, "n": case.n}
                        report.add(what, await measure(world, one, case))


def contestants_of(world: World) -> list[Contestant]:
    """The peers have the one wallet that they ship with."""
    return [Ours(world, 1), Ours(world, 32), python_peer(world), ts_peer(world)]


async def main() -> None:
    report = Report("settle")
    for scene in SOME if QUICK else ALL:
        await play(scene, report)
    report.close("ok_s", COLUMNS)


if __name__ == "__main__":
    uvloop.run(main())
