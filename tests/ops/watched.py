"""A service under a short load, and a real Prometheus that watches it: what alerts and dashboards are judged on.

Payments of both versions, refusals of several kinds, verifications, look-ups and strangers: enough that every series moves.
"""

import asyncio
import json
import secrets
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from facilitator.devstack.accounts import dev_account
from facilitator.devstack.children import launched
from tests.fixtures import prometheus
from tests.fixtures.house import House, client_session, eventually
from tests.fixtures.service import free_port

SCRAPE_S: Final = 1
PAYMENTS_PER_S: Final = 8
LISTED: Final = dev_account("listed").address
RULES: Final = Path(__file__).parents[2] / "helm" / "facilitator" / "files" / "rules.yaml"


@dataclass(frozen=True, slots=True)
class Watched:
    """What is left to look at once the load is over; service and Prometheus still run."""

    house: House
    session: aiohttp.ClientSession
    prometheus_url: str

    async def scrape(self) -> str:
        """The service's figures, as it says them."""
        async with self.session.get(f"{self.house.services[0].base_url}/metrics") as response:
            assert response.status == 200
            return await response.text()

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """An instant query; AssertionError with Prometheus' words when it objects."""
        async with self.session.post(f"{self.prometheus_url}/api/v1/query", data={"query": expression}) as response:
            answer = await response.json()
            assert answer["status"] == "success", f"{expression}: {answer}"
            found: list[dict[str, Any]] = answer["data"]["result"]
            return found


@asynccontextmanager
async def watched(directory: Path, database_url: str, seconds: int) -> AsyncIterator[Watched]:
    """Start everything, load it for that long, and hand it over."""
    settlement = {"survey_s": 0.5, "finality_poll_s": 1.0, "balance_poll_s": 1.0, "canary_verify_s": 1.0}
    async with House.open(directory, database_url, settlement=settlement) as house, client_session() as session:
        listed = directory / "listed.txt"
        listed.write_text(f"{LISTED}\n")
        service = await house.serve(settings={"screening": {"known_listed": LISTED, "list_file": str(listed)}})
        port = free_port()
        with running(directory / "prometheus", port, [service.port]) as url:
            load = Watched(house, session, url)
            await eventually(lambda: is_ready(session, url), "Prometheus to be ready", poll_s=0.1)
            async with asyncio.TaskGroup() as group:
                for _ in range(seconds * PAYMENTS_PER_S):
                    group.create_task(visit(load))
                    await asyncio.sleep(1 / PAYMENTS_PER_S)  # the load's own rhythm
            await house.call("anvil_mine", "0x60")  # so that what was paid becomes final
            await eventually(lambda: _has(load, 'facilitator_settle_duration_seconds_count{stage="finality"} > 0'), "finality")
            await eventually(lambda: _has(load, "facilitator_open_settlements"), "the survey")
            yield load


async def visit(load: Watched) -> None:
    """One buyer's visit: a verification, a settlement, a repeat that is refused, a payment that cannot be, a stranger."""
    house, session = load.house, load.session
    headers = {"Authorization": f"Bearer {await house.key('test')}", "Content-Type": "application/json"}
    base_url = house.services[0].base_url
    payment = house.payment(version=1 if secrets.randbelow(2) else 2)
    async with session.post(f"{base_url}/verify", data=payment.body, headers=headers) as response:
        assert (await response.json())["isValid"] is True
    answer = await house.settle(session, payment)
    assert answer.word == "success", answer
    assert (await house.settle(session, payment)).word == "duplicate_settlement"
    await house.look_up(session, payment)
    broken = json.loads(payment.body)
    broken["paymentPayload"]["payload"]["signature"] = "0x" + secrets.token_hex(65)
    async with session.post(f"{base_url}/verify", json=broken, headers=headers) as response:
        assert (await response.json())["isValid"] is False
    async with session.get(f"{base_url}/{secrets.token_hex(8)}") as response:
        assert response.status == 404


async def _has(load: Watched, expression: str) -> bool:
    return bool(await load.query(expression))


async def is_ready(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/-/ready") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


@contextmanager
def running(directory: Path, port: int, targets: Sequence[int], rules: Path = RULES) -> Iterator[str]:
    """A Prometheus with our rules that scrapes ports of the loopback; yields its URL."""
    directory.mkdir(parents=True)
    config = {
        "global": {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [{"job_name": "facilitator", "static_configs": [{"targets": [f"127.0.0.1:{target}" for target in targets]}]}],
    }
    (directory / "prometheus.yml").write_text(json.dumps(config))
    command: list[str | Path] = [
        prometheus.program("prometheus"),
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            launched(command, stop_signal=signal.SIGTERM, account=None), stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)
