"""What sealing costs those who settle: two services of ours in turns, one that seals every second, ten times as often as the default.

`settled/s`, times and processor time for each payment, and their ratio. See README.md. `BENCH_QUICK=1` for a short run.
"""

from typing import Final

import uvloop
from bench_verify import figures
from harness import QUICK, Contestant, Meter, Ours, Point, Report, World, per, running, strangers

RELAYERS: Final = 4
CALLERS: Final = 64
SECONDS: Final = 5.0
ROUNDS: Final = 2 if QUICK else 5
COLUMNS: Final = (
    ("who", "who"),
    ("ok_s", "settled/s"),
    ("p50_ms", "p50 ms"),
    ("p99_ms", "p99 ms"),
    ("failed", "failed"),
    ("cpu_ms", "CPU ms"),
    ("postgres_cpu_ms", "PG ms"),
    ("strangers", "strangers"),
)


async def measure(world: World, one: Contestant) -> Point:
    """One round."""
    payments = world.prepare(int(600 * SECONDS))
    meter = Meter(one)
    await meter.start()
    run = await world.apply(one, "/settle", payments, SECONDS, connections=CALLERS, drain_s=10)
    spent = await meter.cpu_now()
    world.give_back(payments[run.used :])
    count = sum(answer.word == "success" for answer in run.answers)
    costs = {"cpu_ms": per(spent["cpu"] * 1000, count), "postgres_cpu_ms": per(spent["postgres_cpu"] * 1000, count)}
    return figures(run) | costs | {"strangers": strangers(spent)}


async def main() -> None:
    report = Report("sealing")
    async with World(0.2) as world:
        never = Ours(world, RELAYERS, {"finance": {"seal_s": 86_400.0}}, name="unsealed")
        often = Ours(world, RELAYERS, {"finance": {"seal_s": 1.0}}, name="sealed")
        async with running([never, often]) as contestants:
            for number in range(ROUNDS):
                for one in contestants if number % 2 else reversed(contestants):
                    report.add({"who": one.name, "callers": CALLERS}, await measure(world, one))
    report.close("ok_s", COLUMNS)


if __name__ == "__main__":
    uvloop.run(main())
