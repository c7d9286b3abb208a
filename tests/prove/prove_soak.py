"""A steady load for `SOAK_S` seconds (20 minutes): memory, file descriptors, tasks and connections stay flat, the books right.

Flat means: the line through the samples of the last two thirds rises by no more than the bound below from its one end to its
other; of tasks, the least of the last third is held against the least of the third before. In the end `facilitator reconcile` finds
nothing. `FACILITATOR_SEED` repeats the mix; `SOAK_RATE` is requests per second.
"""

import asyncio
import json
import os
import random
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import aiohttp
import asyncpg
from prometheus_client.parser import text_string_to_metric_families

from tests.fault.conftest import seed
from tests.fixtures.house import House, Paid, client_session
from tests.fixtures.service import BASE_SEPOLIA
from tests.prove.conftest import Tell

__all__ = ["seed"]  # fixture

SOAK_S: Final = float(os.environ.get("SOAK_S") or 1200)
RATE: Final = float(os.environ.get("SOAK_RATE") or 20)
SAMPLES: Final = 300
RISE_MAX: Final = {"rss_mib": 8.0, "fds": 3.0, "tasks": 5.0, "connections": 2.0}
"""File descriptors and tasks besides those of HTTP connections, which are the callers' business."""
MIX: Final = {"settle": 50, "again": 8, "verify": 15, "look_up": 12, "forged": 5, "late": 4, "malformed": 3, "strange_key": 3}
"""In a hundred."""
_SERIES: Final = {
    "process_resident_memory_bytes": "rss_mib",
    "process_open_fds": "fds",
    "facilitator_event_loop_tasks": "tasks",
    "facilitator_http_connections": "callers",
}


class Soak:
    """One service under load."""

    def __init__(self, house: House, session: aiohttp.ClientSession, seed: int) -> None:
        self.house = house
        self.session = session
        self.dice = random.Random(seed)  # noqa: S311
        self.settled: list[Paid] = []
        self.words: Counter[str] = Counter()
        self.took_s: list[float] = []

    async def ask(self, kind: str) -> None:
        """One request of the mix, and whether its answer is right."""
        house = self.house
        started = time.monotonic()
        if kind == "settle":
            payment = house.payment(version=self.dice.choice([1, 2]))
            key = payment.auth_nonce if self.dice.random() < 0.3 else None
            while (
                answer := await house.settle(self.session, payment, idempotency_key=key)
            ).status == 503 or answer.word == "settlement_pending":
                self.words[f"settle {answer.word}"] += 1  # too much for this machine just then: the same again
                await asyncio.sleep(1)
            self.took_s.append(time.monotonic() - started)
            self.settled.append(payment)
            expected = {"success"}
        elif kind == "again" and self.settled:
            answer, expected = await house.settle(self.session, self.dice.choice(self.settled)), {"duplicate_settlement", "success"}
        elif kind == "look_up" and self.settled:
            answer, expected = await house.look_up(self.session, self.dice.choice(self.settled)), {"None"}
        elif kind == "forged":
            payment = house.payment()
            forged = payment.with_signature("0x" + "11" * 65)
            answer, expected = await house.settle(self.session, forged), {"invalid_exact_evm_signature"}
        elif kind == "late":
            answer, expected = await house.settle(self.session, house.payment(valid_before=int(time.time()) - 60)), {""}
        else:
            body = b'{"x402Version": 2, "paymentPayload": ' if kind == "malformed" else house.payment().body
            key = "nobody" if kind == "strange_key" else await house.key("test")
            headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
            async with self.session.post(f"{house.services[0].base_url}/verify", data=body, headers=headers) as response:
                answered = await response.json()
                wanted = {"malformed": 400, "strange_key": 401}.get(kind, 200)
                assert response.status in {wanted, 503}, (kind, response.status, answered)
            self.words[f"{kind} {response.status}"] += 1
            return
        if answer.status == 503:
            self.words[f"{kind} 503"] += 1
            return
        assert answer.status == 200, (kind, answer)
        assert "" in expected or answer.word in expected, (kind, answer)
        self.words[f"{kind} {answer.word}"] += 1

    async def load(self) -> None:
        """RATE requests a second, whatever they take."""
        begun, number = time.monotonic(), 0
        async with asyncio.TaskGroup() as group:
            while (now := time.monotonic()) < begun + SOAK_S:
                while begun + number / RATE <= now:
                    number += 1
                    group.create_task(self.ask(self.dice.choices(list(MIX), list(MIX.values()))[0]))
                await asyncio.sleep(begun + number / RATE - now)

    async def sample(self, connection: Any) -> dict[str, float]:
        """What the service uses now."""
        async with self.session.get(f"{self.house.services[0].base_url}/metrics") as response:
            text = await response.text()
        found = {_SERIES[family.name]: family.samples[0].value for family in text_string_to_metric_families(text) if family.name in _SERIES}
        found["rss_mib"] /= 2**20
        callers = found.pop("callers")
        found["fds"] -= callers
        found["tasks"] -= callers  # aiohttp gives each connection that is kept alive a task
        sql = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        found["connections"] = await connection.fetchval(sql)
        return found


def rise(points: list[tuple[float, float]]) -> float:
    """How much the line of least squares rises over the last two thirds of the points."""
    late = points[len(points) // 3 :]
    slope = statistics.linear_regression(*zip(*late, strict=True)).slope
    return slope * (late[-1][0] - late[0][0])


async def test_a_steady_load_leaves_nothing_behind(tmp_path: Path, database_url: str, seed: int, tell: Tell) -> None:
    async with House.open(tmp_path, database_url, relayers=4, block_time_s=0.2) as house, client_session() as session:
        service = await house.serve()
        soak = Soak(house, session, seed)
        connection = await asyncpg.connect(database_url)
        samples: list[tuple[float, dict[str, float]]] = []
        try:
            load = asyncio.create_task(soak.load())
            while not load.done():
                samples.append((time.monotonic(), await soak.sample(connection)))
                await asyncio.wait([load], timeout=SOAK_S / SAMPLES)
            await load
        finally:
            await connection.close()
        rises = {name: rise([(at, found[name]) for at, found in samples]) for name in RISE_MAX}
        third = len(samples) // 3  # each request has tasks of its own: what stays is seen when few are under way
        rises["tasks"] = min(found["tasks"] for _, found in samples[-third:]) - min(found["tasks"] for _, found in samples[third:-third])
        first, last = samples[len(samples) // 3][1], samples[-1][1]
        took_ms = [1_000 * each for each in statistics.quantiles(soak.took_s, n=100)]
        rose = {name: round(value, 2) for name, value in rises.items()}
        tell(f"{SOAK_S:.0f} s, {soak.words.total()} requests: {dict(soak.words)}")
        tell(f"settle p50 {took_ms[49]:.0f} ms, p99 {took_ms[98]:.0f} ms; from {first} after a third to {last}; rise {rose}")
        await house.call("evm_setIntervalMining", 0)
        report = json.loads(await asyncio.to_thread(service.command, "reconcile", "--network", BASE_SEPOLIA, "--json"))
        assert report["balanced"]
        assert report["payments"] == report["transfers"] == len(soak.settled)
        await house.assert_ledger_is_chain(len(soak.settled))
        assert not [event for event in service.log_events if event.get("level") == "error"]
        assert {name: value for name, value in rises.items() if value > RISE_MAX[name]} == {}
