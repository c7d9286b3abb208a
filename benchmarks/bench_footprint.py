"""What the service takes when it does nothing and when it does all it can: memory, idle CPU, time to import, time to ready.

`import` and `ready` are wall time (and processor time beside it), `idle` is processor time over time, `load` the most resident memory
while 256 callers verify and 256 settle. See README.md. `BENCH_QUICK=1` for a short run.
"""

import asyncio
import subprocess
import sys
import time
from typing import Final

import psutil
import uvloop
from harness import QUICK, Ours, Point, Report, World, running

BLOCK_S: Final = 2.0
RELAYERS: Final = (4, 64)
TIMES: Final = 3 if QUICK else 5
IDLE_S: Final = 10.0 if QUICK else 20.0
LOAD_S: Final = 4.0 if QUICK else 6.0
CALLERS: Final = 256
_POLL_S: Final = 0.1
_IMPORT: Final = (
    "import time; began, ran = time.perf_counter(), time.process_time(); import facilitator.cli; "
    "print(time.perf_counter() - began, time.process_time() - ran)"
)
COLUMNS: Final = (
    ("who", "who"),
    ("what", "what"),
    ("figure", "figure"),
    ("unit", "unit"),
    ("most", "at most"),
    ("cpu_s", "CPU s"),
)


def imported() -> Point:
    """`import facilitator.cli` in a fresh interpreter."""
    told = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True).stdout.split()  # noqa: S603
    return {"figure": round(float(told[0]), 3), "unit": "s", "most": 0.4, "cpu_s": round(float(told[1]), 3)}


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


async def started(one: Ours) -> Point:
    """From nothing to ready, with the database up and migrated."""
    await one.stop()
    began = time.monotonic()
    await one.start()
    return {"figure": round(time.monotonic() - began, 2), "unit": "s", "most": 1.5, "cpu_s": round(_cpu_s(one.pid), 2)}


async def idle(one: Ours) -> Point:
    """Processor time of a service that nobody asks for anything, while blocks go on."""
    before, began = _cpu_s(one.pid), time.monotonic()
    await asyncio.sleep(IDLE_S)
    spent_s = _cpu_s(one.pid) - before
    return {"figure": round(100 * spent_s / (time.monotonic() - began), 2), "unit": "% of a CPU", "most": 1.0, "cpu_s": round(spent_s, 2)}


async def load(world: World, one: Ours) -> Point:
    """The most memory under all the load that it takes: verifications, then settlements."""
    most_mib = 0.0

    async def watch() -> None:
        nonlocal most_mib
        while True:
            most_mib = max(most_mib, psutil.Process(one.pid).memory_info().rss / 2**20)
            await asyncio.sleep(_POLL_S)

    watching = asyncio.create_task(watch())
    before = _cpu_s(one.pid)
    try:
        payments = world.prepare(CALLERS * 4)
        await world.apply(one, "/verify", payments, LOAD_S, connections=CALLERS, again=True)
        world.give_back(payments)
        payments = world.prepare(int(1200 * LOAD_S))
        run = await world.apply(one, "/settle", payments, LOAD_S, connections=CALLERS)
        world.give_back(payments[run.used :])
    finally:
        watching.cancel()
    return {"figure": round(most_mib, 1), "unit": "MiB", "most": 130, "cpu_s": round(_cpu_s(one.pid) - before, 2)}


async def main() -> None:
    report = Report("footprint")
    for _ in range(TIMES):
        report.add({"who": "ours", "what": "import"}, await asyncio.to_thread(imported))
    async with World(BLOCK_S) as world, running([Ours(world, relayers) for relayers in RELAYERS]) as contestants:
        for one in contestants:
            await one.stop()
        for one in contestants:
            assert isinstance(one, Ours)
            for _ in range(TIMES):
                report.add({"who": one.name, "what": "ready"}, await started(one))
            await asyncio.sleep(5.0)  # what a start leaves to do is done
            report.add({"who": one.name, "what": "idle"}, await idle(one))
            report.add({"who": one.name, "what": "load"}, await load(world, one))
            await one.stop()
    report.close("figure", COLUMNS)


if __name__ == "__main__":
    uvloop.run(main())
