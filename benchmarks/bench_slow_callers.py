"""How long a verification takes while 500 connections dribble the head of a request, over how long it takes without them.

Each slow caller that is hung up on comes again at once. Rounds with and without them take turns in one run. See README.md.
`BENCH_QUICK=1` for a short run.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

import uvloop
from harness import QUICK, Ours, Point, Report, World, in_ms, percentile, running

SLOW: Final = 500
RATE: Final = 100.0
"""Verifications a second, whatever comes back."""
ROUNDS: Final = 2 if QUICK else 3
ROUND_S: Final = 4.0 if QUICK else 8.0
HEADER_S: Final = 2.0
COLUMNS: Final = (
    ("who", "who"),
    ("what", "what"),
    ("n", "slow callers"),
    ("hung_up", "hung up"),
    ("ok_s", "verified/s"),
    ("p50_ms", "p50 ms"),
    ("p95_ms", "p95 ms"),
    ("p99_ms", "p99 ms"),
    ("failed", "failed"),
    ("p50_times", "x p50"),
    ("p95_times", "x p95"),
)


class Slow:
    """Callers that never end a head."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.opened = asyncio.Semaphore(0)
        self.hung_up = 0

    async def call(self) -> None:
        """Come again and again."""
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                self.opened.release()
                try:
                    writer.write(b"POST /verify HTTP/1.1\r\nHost: x\r\n")
                    ended = asyncio.create_task(reader.read())
                    while not ended.done():
                        writer.write(b"x")
                        await asyncio.wait([ended], timeout=0.5)
                    self.hung_up += 1
                finally:
                    writer.transport.abort()


@contextlib.asynccontextmanager
async def slow_callers(port: int, count: int) -> AsyncIterator[Slow]:
    """So many at work, from the first moment to the last."""
    slow = Slow(port)
    async with asyncio.TaskGroup() as group:
        callers = [group.create_task(slow.call()) for _ in range(count)]
        for _ in callers:
            await slow.opened.acquire()
        yield slow
        for caller in callers:
            caller.cancel()


async def measure(world: World, one: Ours, count: int) -> Point:
    """One round."""
    payments = world.prepare(400)
    async with slow_callers(one.port, count) as slow:
        run = await world.apply(one, "/verify", payments, ROUND_S, connections=16, rate=RATE, again=True, drain_s=10)
    world.give_back(payments)
    good = [answer.seconds for answer in run.answers if answer.word == "success"]
    return {
        "ok_s": round(len(good) / ROUND_S, 1),
        "p50_ms": in_ms(percentile(good, 0.5)),
        "p95_ms": in_ms(percentile(good, 0.95)),
        "p99_ms": in_ms(percentile(good, 0.99)),
        "sent": len(run.answers),
        "failed": len(run.answers) - len(good),
        "hung_up": slow.hung_up,
    }


async def main() -> None:
    report = Report("slow_callers")
    async with World(None) as world:
        ours = Ours(world, 1, {"server": {"header_timeout_s": HEADER_S}})
        async with running([ours], apart="contestants"):
            await measure(world, ours, 0)  # fills caches
            for _ in range(ROUNDS):
                calm = await measure(world, ours, 0)
                report.add({"who": ours.name, "what": "verify", "n": 0}, calm)
                crowded = await measure(world, ours, SLOW)
                times = {f"{share}_times": round(crowded[f"{share}_ms"] / calm[f"{share}_ms"], 2) for share in ("p50", "p95")}
                report.add({"who": ours.name, "what": "verify", "n": SLOW}, crowded | times)
    report.close("ok_s", COLUMNS)


if __name__ == "__main__":
    uvloop.run(main())
