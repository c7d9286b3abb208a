"""More load than can be served: how much is served all the same, how long that takes, and how soon the rest is refused.

The peak is what a closed loop settles; then requests come at once, twice and three times that rate, whatever comes back. Two
limits: `slots` (4 relayers, one payment a transaction: the chain is the limit) and `cpu` (32 relayers that share
transactions: this machine is). See README.md. `BENCH_QUICK=1` for a short run.
"""

import gc
from dataclasses import dataclass
from typing import Final

import uvloop
from harness import QUICK, Answer, LoadRun, Ours, Point, Report, World, in_ms, judge, percentile, running

BLOCK_S: Final = 0.2
CLOSED: Final = 256
"""Connections of the closed loop that finds the peak."""
CONNECTIONS: Final = 2000
TIMES: Final = (3,) if QUICK else (1, 2, 3)
PEAK_S: Final = 3.0 if QUICK else 6.0
LOAD_S: Final = 10.0 if QUICK else 16.0
WARM_S: Final = 6.0
"""The queue takes `settlement.queue_wait_max_s` to fill; figures are of the time after that."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What bounds the throughput."""

    what: str
    relayers: int
    settlement: dict[str, str | int]


LIMITS: Final = (
    Limit("slots", 4, {"batching": "off", "slots_soft": 4, "slots_max": 4}),
    Limit("cpu", 32, {}),
)
COLUMNS: Final = (
    ("who", "who"),
    ("what", "limit"),
    ("load", "load"),
    ("n", "offered/s"),
    ("ok_s", "settled/s"),
    ("of_peak", "of peak"),
    ("p50_ms", "p50 ms"),
    ("p99_ms", "p99 ms"),
    ("refused_s", "refused/s"),
    ("refused_p50_ms", "refused p50"),
    ("refused_p99_ms", "refused p99"),
    ("pending", "pending"),
    ("unanswered", "no answer"),
    ("false", "false"),
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


async def load(world: World, one: Ours, seconds: float, warm_s: float, rate: int | None) -> Point:
    """One load, held against the chain. `rate` None: as fast as answers come."""
    payments = world.prepare(int((rate or 1200) * seconds) + CLOSED)
    since = int(await world.rpc("eth_blockNumber"), 16) + 1
    gc.collect()
    run: LoadRun = await world.apply(
        one, "/settle", payments, seconds, connections=CLOSED if rate is None else CONNECTIONS, rate=rate, drain_s=30
    )
    world.give_back(payments[run.used :])
    verdict = await judge(world, one, payments[: run.used], run.answers, since)
    words: dict[str, int] = {}
    for answer in run.answers:
        words[answer.word] = words.get(answer.word, 0) + 1
    return told(run.answers, run.began + warm_s, run.began + seconds) | {
        "sent": len(run.answers),
        "paid": verdict.paid,
        "pending": words.get("settlement_pending", 0),
        "unanswered": words.get("unanswered", 0),
        "false": verdict.false_answers,
        "words": words,
    }


async def main() -> None:
    report = Report("overload")
    for limit in LIMITS:
        async with World(BLOCK_S) as world:
            contestant = Ours(world, limit.relayers, {"settlement": limit.settlement})
            async with running([contestant]) as contestants:
                for one in contestants:
                    await load(world, contestant, 2.0, 0.0, None)  # connections, caches and code paths
                    what = {"who": one.name, "what": limit.what}
                    peak = await load(world, contestant, PEAK_S, 1.0, None)
                    report.add(what | {"load": "closed", "n": CLOSED}, peak)
                    for times in TIMES:
                        offered = max(1, int(peak["ok_s"] * times))
                        point = await load(world, contestant, LOAD_S, WARM_S, offered)
                        point["of_peak"] = round(point["ok_s"] / max(peak["ok_s"], 0.1), 2)
                        report.add(what | {"load": f"{times} x peak", "n": offered}, point)
    report.close("ok_s", COLUMNS)


if __name__ == "__main__":
    uvloop.run(main())
