"""The image's content serving payments as it would in a pod, and the dashboards over a minute of load.

The prefix is what the Dockerfile's build stage makes; it serves with a read-only root, a tmpfs at /tmp, as uid 10001 without
capabilities (see `tests/ops/image.py`). Database and chain run outside.
"""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.fixtures.house import House, client_session, words
from tests.fixtures.service import ServeProcess
from tests.ops.boards import unanswered
from tests.ops.image import build, confined, stages
from tests.ops.watched import watched

SECONDS = 60
PAYMENTS = 40


def last_stage_environment() -> dict[str, str]:
    """What the image sets, less the PATH that leads into it."""
    (text,) = [arguments for instruction, arguments in stages()[-1] if instruction == "ENV"]
    return {name: value for name, _, value in (pair.partition("=") for pair in text.split()) if name != "PATH"}


@asynccontextmanager
async def reachable(database_url: str) -> AsyncIterator[str]:
    """The database on a port of the loopback: its socket is for its own user only, and the service is somebody else."""
    parts = urlsplit(database_url)
    (directory,) = parse_qs(parts.query)["host"]
    (socket,) = Path(directory).glob(".s.PGSQL.*[0-9]")

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_unix_connection(str(socket))
        await asyncio.gather(pass_on(reader, upstream_writer), pass_on(upstream_reader, writer), return_exceptions=True)

    async with await asyncio.start_server(relay, "127.0.0.1", 0) as server:
        yield f"postgresql://postgres@127.0.0.1:{server.sockets[0].getsockname()[1]}{parts.path}"


class Confined(ServeProcess):
    """`facilitator serve` out of the image's prefix, confined."""

    def __init__(self, *arguments: Any, prefix: Path, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._prefix = prefix

    def spawn(self) -> None:
        command = [self._prefix / "bin" / "facilitator", "serve", "--config", self.config_path]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                confined(command, kept=[self._prefix, self._directory]),
                env=self._environment | last_stage_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a read-only root, which takes root")
async def test_the_image_settles_payments_as_10001_under_a_read_only_root(
    tmp_path_factory: pytest.TempPathFactory, database_url: str
) -> None:
    prefix = await asyncio.to_thread(build, tmp_path_factory.mktemp("image"))
    directory = tmp_path_factory.mktemp("house")
    async with House.open(directory, database_url) as house, client_session() as session, reachable(database_url) as address:
        service = Confined(
            directory / "config",
            database_url=address,
            rpc_url=house.rpc_url,
            relayer_keys=["0x" + bytes(house.relayer.key).hex()],
            prefix=prefix,
        )
        house.services.append(service)
        await house.key("test")
        await service.astart()
        try:
            status = Path(f"/proc/{service.pid}/status").read_text("ascii")
            assert "Uid:\t10001\t10001\t10001\t10001" in status
            assert "CapEff:\t0000000000000000" in status
            payments = [house.payment(version=1 if number % 2 else 2) for number in range(PAYMENTS)]
            answers = await asyncio.gather(*(house.settle(session, payment) for payment in payments))
            assert words(answers) == {"success": PAYMENTS}
            assert words([await house.settle(session, payment) for payment in payments[:5]]) == {"duplicate_settlement": 5}
        finally:
            assert await service.aterminate() == 0, service.logs[-4000:]
        await house.assert_ledger_is_chain(settled=PAYMENTS)


async def test_every_dashboard_shows_a_minute_of_load(tmp_path: Path, database_url: str) -> None:
    async with watched(tmp_path, database_url, SECONDS) as load:
        assert await unanswered(load) == {}
        rates = await load.query('sum(rate(facilitator_settle_answers_total{outcome="success"}[30s]))')
        assert rates
        slow = await load.query("max(histogram_quantile(0.99, sum by (le) (rate(facilitator_settle_duration_seconds_bucket[1m]))))")
        assert 0 < float(slow[0]["value"][1]) < 60
        assert await load.query('ALERTS{alertstate="firing"}') == []
