"""The image's content passing the e2e suite as it would run in a pod, and the dashboards over a minute of load.

The prefix is what the Dockerfile's build stage makes; it serves with a read-only root, a tmpfs at /tmp, as uid 10001 without
capabilities (see `tests/ops/image.py`). Database, chain and callers run outside.
"""

import asyncio
import os
import subprocess
import sys
from functools import partialmethod
from pathlib import Path
from typing import Final

import pytest

from tests.fixtures.house import House
from tests.fixtures.service import ServeProcess
from tests.ops import in_image
from tests.ops.boards import unanswered
from tests.ops.image import ROOT, build
from tests.ops.watched import watched

SECONDS = 60
E2E: Final = (
    "tests/e2e",
    "--ignore=tests/e2e/test_pooler.py",  # brings a database address of its own
    "--deselect=tests/e2e/test_operate.py::test_a_running_service_seals_what_it_books_and_its_heads_leave_the_database",
    "--deselect=tests/e2e/test_relayers.py::test_keys_are_added_drained_and_removed_under_load",
)
"""All but what wants the service to read or write files that a pod would have to mount."""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a read-only root, which takes root")
async def test_the_image_passes_the_e2e_suite_as_10001_under_a_read_only_root(
    tmp_path_factory: pytest.TempPathFactory, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = await asyncio.to_thread(build, tmp_path_factory.mktemp("image"))
    monkeypatch.setattr(ServeProcess, "spawn", partialmethod(in_image.spawn, prefix))
    async with House.open(tmp_path_factory.mktemp("house"), database_url) as house:
        service = await house.serve()
        status = Path(f"/proc/{service.pid}/status").read_text("ascii")
        assert "Uid:\t10001\t10001\t10001\t10001" in status
        assert "CapEff:\t0000000000000000" in status
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.ops.in_image", "-n", str(os.cpu_count() or 1), *E2E]
    ended = await asyncio.to_thread(
        subprocess.run, command, cwd=ROOT, env=os.environ | {"IMAGE_PREFIX": str(prefix)}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout[-20_000:]


async def test_every_dashboard_shows_a_minute_of_load(tmp_path: Path, database_url: str) -> None:
    async with watched(tmp_path, database_url, SECONDS) as load:
        assert await unanswered(load) == {}
        rates = await load.query('sum(rate(facilitator_settle_answers_total{outcome="success"}[30s]))')
        assert rates
        slow = await load.query("max(histogram_quantile(0.99, sum by (le) (rate(facilitator_settle_duration_seconds_bucket[1m]))))")
        assert 0 < float(slow[0]["value"][1]) < 60
        assert await load.query('ALERTS{alertstate="firing"}') == []
