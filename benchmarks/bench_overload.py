"""More load than can be served: how much is served all the same, how long that takes, and how soon the rest is refused.

The peak is what a closed loop gets done; then requests come at once, twice and three times that rate, whatever comes back. They take
turns, because the pace of a machine moves within minutes: each load is held against the mean of the peaks just before and after it.
Three limits: `slots` (4 relayers, one payment a transaction: the chain is the limit), `cpu` (32 relayers that
share transactions: the processor is) and `verify` (the same, for /verify). The load has a CPU for itself, where there are two: what
it takes, the service, its node and its database do not lack. It never sleeps, at the peak neither: to wake a sleeper, and its CPU, takes
whoever writes to its socket more than the write, which no caller on another machine costs a service. See README.md.
`BENCH_QUICK=1` for a short run, less than two minutes.
"""

import gc
from collections import Counter
from dataclasses import dataclass
from typing import Final

import uvloop
from harness import (
    CPUS,
    QUICK,
    Answer,
    LoadRun,
    Meter,
    Ours,
    Point,
    Report,
    World,
    in_ms,
    judge,
    percentile,
    running,
    strangers,
)

BLOCK_S: Final = 0.2
CONNECTIONS: Final = 8000
"""Enough for all that wait: `queue_wait_max_s` times the peak, and `judged_max`. Where they do not suffice, requests are `unsent`."""
RATE_MAX: Final = 4000
"""More a second than this is not prepared for in a closed loop of settlements."""
TIMES: Final = (3,) if QUICK else (1, 2, 3)
PEAK_S: Final = 4.0
LOAD_S: Final = 10.0
WARM_S: Final = 4.0
"""The queue takes `settlement.queue_wait_max_s` to fill; figures are of the time after that."""
WAIT_MAX_S: Final = 2


@dataclass(frozen=True, slots=True)
class Limit:
    """What bounds the throughput."""

    what: str
    route: str
    closed: int
    """Connections of the closed loop that finds the peak: more than are under way then, fewer than one tenant may have in judgement."""
    relayers: int
    rounds: int
    """More where the figure moves more with the pace of the machine."""
    settlement: dict[str, str | int]


LIMITS: Final = (
    Limit("slots", "/settle", 128, 4, 1, {"batching": "off", "slots_soft": 4, "slots_max": 4}),
    Limit("cpu", "/settle", 320, 32, 2, {}),
    Limit("verify", "/verify", 256, 32, 6, {}),
)
COLUMNS: Final = (
    ("who", "who"),
    ("what", "limit"),
    ("load", "load"),
    ("offered_s", "offered/s"),
    ("ok_s", "served/s"),
    ("of_peak", "of peak"),
    ("p50_ms", "p50 ms"),
    ("p99_ms", "p99 ms"),
    ("refused_s", "refused/s"),
    ("refused_p50_ms", "refused p50"),
    ("refused_p99_ms", "refused p99"),
    ("pending", "pending"),
    ("unanswered", "no answer"),
    ("unsent", "unsent"),
    ("false", "false"),
    ("cpu", "CPUs"),
    ("strangers", "strangers"),
)


def told(answers: list[Answer], began: float, ended: float) -> Point:
    """Rates and times of what was answered within a time."""
    answers = [answer for answer in answers if began <= answer.at < ended]
    good = [answer.seconds for answer in answers if answer.word == "success"]
    refused = [answer.seconds for answer in answers if answer.status == 503]
    return {
        "ok_s": round(len(good) / (ended - began), 1),
        "p50_ms": in_ms(percentile(good, 0.5)),
        "p99_ms": in_ms(percentile(good, 0.99)),
        "refused_s": round(len(refused) / (ended - began), 1),
        "refused_p50_ms": in_ms(percentile(refused, 0.5)),
        "refused_p99_ms": in_ms(percentile(refused, 0.99)),
    }


async def load(world: World, one: Ours, limit: Limit, seconds: float, warm_s: float, rate: int | None) -> Point:
    """One load; settlements are held against the chain. `rate` None: as fast as answers come."""
    settles = limit.route == "/settle"
    payments = world.prepare(int((rate or RATE_MAX) * seconds) + limit.closed if settles else limit.closed * 4)
    since = int(await world.rpc("eth_blockNumber"), 16) + 1
    gc.collect()
    meter = Meter(one)
    await meter.start()
    run: LoadRun = await world.apply(
        one,
        limit.route,
        payments,
        seconds,
        connections=limit.closed if rate is None else CONNECTIONS,
        rate=rate,
        again=not settles,
        drain_s=10,
        awake=len(CPUS) > 1,
    )
    spent = await meter.cpu_now()
    world.give_back(payments[run.used :] if settles else payments)
    words = Counter(answer.word for answer in run.answers)
    point = told(run.answers, run.began + warm_s, run.began + seconds) | {
        "sent": len(run.answers),
        "pending": words["settlement_pending"],
        "unanswered": words["unanswered"],
        "unsent": words["unsent"],
        "cpu": round(spent["cpu"] / spent["clock"], 2),
        "strangers": strangers(spent),
        "words": dict(words),
    }
    if settles:
        verdict = await judge(world, one, payments[: run.used], run.answers, since)
        point |= {"paid": verdict.paid, "false": verdict.false_answers}
    return point


async def peak(world: World, one: Ours, limit: Limit) -> Point:
    """What a closed loop gets done."""
    return await load(world, one, limit, PEAK_S, 1.0, None)


async def sweep(world: World, one: Ours, limit: Limit, report: Report) -> None:
    """Peaks and loads in turns."""
    await load(world, one, limit, 2.0, 0.0, None)  # connections, caches and code paths
    what = {"who": one.name, "what": limit.what}
    before = await peak(world, one, limit)
    for times in TIMES:
        offered = max(1, int(before["ok_s"] * times))
        point = await load(world, one, limit, LOAD_S, WARM_S, offered)
        after = await peak(world, one, limit)
        mean = (before["ok_s"] + after["ok_s"]) / 2
        report.add(what | {"load": "closed", "n": limit.closed}, after)
        report.add(
            what | {"load": f"{times} x peak", "n": times}, point | {"offered_s": offered, "of_peak": round(point["ok_s"] / mean, 2)}
        )
        before = after


async def main() -> None:
    report = Report("overload")
    for limit in [each for each in LIMITS for _ in range(1 if QUICK else each.rounds)]:
        async with World(BLOCK_S) as world:  # a new one each time: this node grows dearer with every payment it has seen
            settings: dict[str, dict[str, str | int]] = {
                "settlement": {**limit.settlement, "queue_wait_max_s": WAIT_MAX_S},
                "server": {"connections_max": CONNECTIONS, "header_timeout_s": 60},  # or those opened in advance are cut in between
            }
            ours = Ours(world, limit.relayers, settings)
            async with running([ours], apart="load") as contestants:
                if contestants:
                    await sweep(world, ours, limit, report)
    report.close("ok_s", COLUMNS)


if __name__ == "__main__":
    uvloop.run(main())
