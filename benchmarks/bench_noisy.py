"""How long a quiet tenant's verification takes beside a noisy one at twenty times its limit, over how long it takes without it.

Rounds with and without the noise take turns in one run. See README.md. `BENCH_QUICK=1` for a short run.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import Final

import aiohttp
import uvloop
from harness import QUICK, Ours, Point, Prepared, Report, World, in_ms, percentile, running

LIMIT: Final = 5
"""Verifications a second that the noisy tenant may send."""
TIMES: Final = 20
RATE: Final = 50.0
"""The quiet one's."""
ROUNDS: Final = 2 if QUICK else 3
ROUND_S: Final = 4.0 if QUICK else 10.0
COLUMNS: Final = (
    ("who", "who"),
    ("what", "what"),
    ("n", "x limit"),
    ("noise_200", "noisy 200"),
    ("noise_429", "noisy 429"),
    ("ok_s", "verified/s"),
    ("p50_ms", "p50 ms"),
    ("p95_ms", "p95 ms"),
    ("failed", "failed"),
    ("p50_times", "x p50"),
    ("p95_times", "x p95"),
)


@contextlib.asynccontextmanager
async def noise(port: int, key: str, payment: Prepared, times: int) -> AsyncIterator[Counter[int]]:
    """So many times the limit, by the clock, whatever comes back. Counts statuses."""
    told: Counter[int] = Counter()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    async def ask(session: aiohttp.ClientSession) -> None:
        async with session.post(f"http://127.0.0.1:{port}/verify", data=payment.body, headers=headers) as answer:
            told[answer.status] += 1

    async def send(session: aiohttp.ClientSession) -> None:
        async with asyncio.TaskGroup() as group:
            while times:
                group.create_task(ask(session))
                await asyncio.sleep(1 / (LIMIT * times))
            await asyncio.Event().wait()

    async with aiohttp.ClientSession() as session:
        sender = asyncio.create_task(send(session))
        yield told
        sender.cancel()
        await asyncio.wait([sender])


async def measure(world: World, one: Ours, key: str, times: int) -> Point:
    """One round."""
    payments = world.prepare(201)
    async with noise(one.port, key, payments[-1], times) as told:
        run = await world.apply(one, "/verify", payments[:-1], ROUND_S, connections=16, rate=RATE, again=True, drain_s=10)
    world.give_back(payments)
    good = [answer.seconds for answer in run.answers if answer.word == "success"]
    return {
        "ok_s": round(len(good) / ROUND_S, 1),
        "p50_ms": in_ms(percentile(good, 0.5)),
        "p95_ms": in_ms(percentile(good, 0.95)),
        "failed": len(run.answers) - len(good),
        "noise_200": told[200],
        "noise_429": told[429],
    }


async def main() -> None:
    report = Report("noisy")
    async with World(None) as world:
        ours = Ours(world, 1)
        async with running([ours], apart="contestants"):
            key = await ours.limited_tenant("noisy", "--rate", f"/verify={LIMIT}:{LIMIT}")
            await measure(world, ours, key, 0)  # fills caches
            for _ in range(ROUNDS):
                calm = await measure(world, ours, key, 0)
                report.add({"who": ours.name, "what": "verify", "n": 0}, calm)
                loud = await measure(world, ours, key, TIMES)
                times = {f"{share}_times": round(loud[f"{share}_ms"] / calm[f"{share}_ms"], 2) for share in ("p50", "p95")}
                report.add({"who": ours.name, "what": "verify", "n": TIMES}, loud | times)
    report.close("ok_s", COLUMNS)


if __name__ == "__main__":
    uvloop.run(main())
