"""`facilitator demo` and `facilitator dev` as a newcomer has them: from the command line, nothing prepared, nothing left."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from facilitator.devstack.buyer import Buyer
from facilitator.devstack.pay import buy, new_session
from tests.fixtures.oracle import assert_ledger_is_chain
from tests.fixtures.service import free_port, http_status
from tests.fixtures.waiting import PATIENCE_S

FACILITATOR = [sys.executable, "-m", "facilitator"]
HASH = re.compile(r"0x[0-9a-f]{64}")
READY = "/settlements"
"""How the last line of dev's invitation ends."""


class Command:
    """One `facilitator` command, and every process that it ever had."""

    def __init__(self, *arguments: str, temporary: Path, environment: dict[str, str] | None = None) -> None:
        own = {name: value for name, value in os.environ.items() if not name.startswith("FACILITATOR")}
        self.process = subprocess.Popen(
            [*FACILITATOR, *arguments],
            env=own | {"TMPDIR": str(temporary)} | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.seen: set[psutil.Process] = set()
        self.lines: list[str] = []

    def look(self) -> set[psutil.Process]:
        """Its children now."""
        try:
            found = set(psutil.Process(self.process.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            found = set()
        self.seen |= found
        return found

    def read_until(self, holds: Callable[[str], bool]) -> str:
        """Read standard output up to the line that `holds`."""
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if holds(self.lines[-1]):
                self.look()
                return self.lines[-1]
        raise AssertionError(f"ended with {self.process.wait()}: {self.lines} {self.process.stderr and self.process.stderr.read()}")

    def finish(self) -> tuple[int, str]:
        """Exit status and standard error; all of standard output is in `lines`."""
        out, error = self.process.communicate(timeout=PATIENCE_S)
        self.lines += out.splitlines()
        return self.process.returncode, error

    def assert_gone(self) -> None:
        """None of its processes lives."""
        assert self.seen
        _, alive = psutil.wait_procs(list(self.seen), timeout=PATIENCE_S)
        assert not alive, alive


class Dev(Command):
    """`facilitator dev`, running."""

    def __init__(self, *arguments: str, temporary: Path) -> None:
        super().__init__("dev", *arguments, temporary=temporary)
        self.read_until(lambda line: line.endswith(READY))

    def said(self, label: str) -> str:
        """What stands behind a label of the invitation."""
        (line,) = (line for line in self.lines if line.startswith(f"  {label} "))
        return line.removeprefix(f"  {label}").split()[0].rstrip(",")

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.said('API key')}"}

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A TMPDIR with a short name, so that what is left in it is seen."""
    path = Path(tempfile.mkdtemp(prefix="f-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def start_dev(temporary: Path) -> Iterator[Callable[..., Dev]]:
    started: list[Dev] = []

    def start(*arguments: str) -> Dev:
        started.append(Dev(*arguments, temporary=temporary))
        return started[-1]

    yield start
    for dev in started:
        dev.process.kill()
        dev.process.communicate()


def test_the_demo_pays_every_seller_and_ends_with_ledger_is_chain(temporary: Path) -> None:
    demo = Command("demo", temporary=temporary)
    demo.read_until(lambda line: "8 answered" in line)
    status, error = demo.finish()

    assert (status, error) == (0, "")
    assert demo.lines[-1] == "ledger = chain: 10 payments, 10 transfers, 0.082848 USDC"
    for step in ("1 demanded", "2 signed", "3 verified", "4 recorded", "5 sent", "6 mined", "7 ledger", "8 answered"):
        assert sum(line.startswith(f"  {step} ") for line in demo.lines) == 10, step
    for label in ("2 signed", "5 sent"):
        assert len({match[0] for line in demo.lines if label in line and (match := HASH.search(line))}) == 10, label
    titles = [line for line in demo.lines if line.startswith("payment")]
    assert ["v1" if "x402 v1" in line else "v2" for line in titles] == ["v2", "v1"] * 2 + ["v2"] * 5 + ["v1"]
    for seller, number in (("sample API", 4), ("2s.io style", 3), ("StableStudio style", 1), ("x-router style", 2)):
        assert sum(f": {seller}, " in line for line in titles) == number, seller
    (job,) = (line for line in demo.lines if line.startswith("  signed in "))
    assert "complete: http://127.0.0.1:" in job
    assert "  seller says   402 duplicate_settlement" in demo.lines
    assert "  seller says   402 insufficient_funds" in demo.lines
    assert "  seller says   402 invalid_exact_evm_insufficient_balance" in demo.lines
    assert max(map(len, demo.lines)) <= 100
    assert "\x1b" not in "".join(demo.lines)
    demo.assert_gone()
    assert list(temporary.iterdir()) == []


def test_the_demo_speaks_json_lines_and_nothing_else_when_asked(temporary: Path) -> None:
    demo = Command("demo", "--json", "--payments", "3", temporary=temporary)
    status, error = demo.finish()

    assert (status, error) == (0, "")
    facts: list[dict[str, Any]] = [json.loads(line) for line in demo.lines]
    assert [fact["event"] for fact in facts] == ["started", *["payment"] * 3, *["refusal"] * 3, "reconciled"]
    payments = facts[1:4]
    assert [payment["x402Version"] for payment in payments] == [2, 1, 2]
    for payment in payments:
        assert payment["madeOnce"] is True
        assert HASH.fullmatch(payment["sent"]["transaction"])
        assert payment["answered"]["receipt"]["transaction"] == payment["sent"]["transaction"]
        assert payment["recorded"]["nonce"] == payment["signed"]["nonce"]
        assert payment["sent"]["recordedAt"] >= payment["recorded"]["time"]
        assert payment["mined"]["usesNonce"] is True
        assert payment["ledger"]["state"] in {"included", "safe", "finalized"}
    assert len({payment["sent"]["transaction"] for payment in payments}) == 3
    replay, *empty = facts[4:7]
    assert replay["settle"] == {"success": False, "reason": "duplicate_settlement", "transaction": payments[-1]["sent"]["transaction"]}
    assert [fact["recorded"] for fact in empty] == [False, False]
    assert all(fact["asExpected"] for fact in facts[4:7])
    assert facts[-1]["differences"] == 0
    assert facts[-1]["verdict"] == "ledger = chain: 3 payments, 3 transfers, 0.012 USDC"


def test_the_demo_is_not_disturbed_by_settings_in_the_environment(temporary: Path) -> None:
    strange = {"FACILITATOR__SERVER__LISTEN": "256.0.0.1:1", "FACILITATOR__NO__SUCH": "1", "FACILITATOR_CONFIG": "/nowhere"}
    demo = Command("demo", "--payments", "1", temporary=temporary, environment=strange)
    assert demo.finish() == (0, "")
    assert demo.lines[-1].startswith("ledger = chain: 1 payments")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_demo_leaves_nothing(temporary: Path, number: signal.Signals, status: int) -> None:
    demo = Command("demo", "--payments", "100000", temporary=temporary)
    demo.read_until(lambda line: "8 answered" in line)
    demo.process.send_signal(number)
    demo.process.send_signal(number)  # the impatient change nothing
    assert demo.finish()[0] == status
    demo.assert_gone()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [("demo", "--payments", "0"), ("dev", "--port", "70000"), ("dev", "--block-time", "0"), ("dev", "--upstream", "nowhere")],
    ids=" ".join,
)
def test_wrong_usage_is_told_in_one_line(temporary: Path, arguments: tuple[str, ...]) -> None:
    status, error = Command(*arguments, temporary=temporary).finish()
    assert status == 2
    assert error.startswith(f"facilitator: {arguments[1]}")
    assert ": expected " in error
    assert error.count("\n") == 1


async def test_dev_serves_on_the_wanted_port_and_ctrl_c_cleans_up(start_dev: Callable[..., Dev], temporary: Path) -> None:
    port = free_port()
    dev = start_dev("--port", str(port))
    assert dev.said("facilitator") == f"http://127.0.0.1:{port}"
    (quote,) = (line.split()[-1] for line in dev.lines if line.endswith("/quote") and "devstack.pay" in line)

    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/supported") as response:
            assert {kind["network"] for kind in (await response.json())["kinds"]} == {"eip155:84532", "base-sepolia"}
        async with session.get(f"http://127.0.0.1:{port}/settlements", headers=dev.headers) as response:
            assert (await response.json())["settlements"] == []
        link = dev.said("console")
        async with session.get(link) as response:
            assert "Sign in" in await response.text()
        site, _, token = link.partition("/sign-in?token=")
        signed_in = session.post(f"{site}/sign-in", data={"token": token}, headers={"Origin": site}, allow_redirects=False)
        async with signed_in as response:
            assert response.status == 303
    for version in ("1", "2"):
        paid = subprocess.run(
            [sys.executable, "-m", "facilitator.devstack.pay", quote, "--version", version, "--buyer", "1"],
            capture_output=True,
            check=False,
        )
        assert paid.returncode == 0, paid
        assert json.loads(paid.stdout)["receipt"]["success"] is True
    (describe,) = (shlex.split(line) for line in dev.lines if "--order" in line)
    paid = subprocess.run(describe, capture_output=True, check=False)
    assert paid.returncode == 0, paid
    assert json.loads(paid.stdout)["body"]["contentType"] == "illustration"
    key = next(line.split()[0] for previous, line in zip(dev.lines, dev.lines[1:], strict=False) if previous.startswith("  buyer 1"))
    assert key == "0x" + bytes(Buyer.numbered(1).account.key).hex()
    await assert_ledger_is_chain(dev.said("database"), dev.said("RPC"), settled=3)

    dev.interrupt()
    assert dev.finish() == (0, "")
    assert dev.lines[-1] == "stopped"
    dev.assert_gone()
    assert http_status(f"http://127.0.0.1:{port}/healthz") is None
    assert list(temporary.iterdir()) == []


async def test_dev_keeps_its_state_over_a_stop(start_dev: Callable[..., Dev], tmp_path: Path) -> None:
    first = start_dev("--port", "0", "--state", str(tmp_path))
    async with new_session() as session:
        assert (await buy(session, Buyer.numbered(0), first.said("paid API"), 2)).status == 200
        generate = first.said("x-router").replace("/models", "/generate")
        order = {"prompt": "a lighthouse", "width": 128, "height": 128}
        (picture,) = (await buy(session, Buyer.numbered(0), generate, 1, order)).body["images"]
    first.interrupt()
    assert first.finish() == (0, "")
    assert first.lines[-1] == f"stopped; its state is kept in {tmp_path}"

    second = start_dev("--port", "0", "--state", str(tmp_path))
    assert second.headers == first.headers
    await assert_ledger_is_chain(second.said("database"), second.said("RPC"), settled=2, balances=False)  # anvil forgets old balances
    async with new_session() as session, session.get(picture["url"]) as response:
        assert (response.status, response.content_type) == (200, "image/png")


async def test_dev_recovers_after_kill_9_with_ledger_and_chain_in_step(start_dev: Callable[..., Dev], tmp_path: Path) -> None:
    first = start_dev("--port", "0", "--state", str(tmp_path))
    async with new_session() as session:
        bought = [await buy(session, Buyer.numbered(0), first.said("paid API"), version) for version in (1, 2, 1)]
        assert [one.status for one in bought] == [200] * 3
    first.process.kill()

    second = start_dev("--port", "0", "--state", str(tmp_path))
    first.assert_gone()
    assert second.headers == first.headers
    async with new_session() as session:
        assert (await buy(session, Buyer.numbered(0), second.said("paid API"), 2)).status == 200
        async with session.get(f"{second.said('facilitator')}/settlements", headers=second.headers) as response:
            kept = {row["transaction"]: row["state"] for row in (await response.json())["settlements"]}
    assert len(kept) == 4
    assert {one.tx_hash for one in bought} < set(kept)
    await assert_ledger_is_chain(second.said("database"), second.said("RPC"), settled=4, balances=False)  # anvil forgets old balances


def test_a_temporary_dev_that_was_killed_is_swept_by_the_next(start_dev: Callable[..., Dev], temporary: Path) -> None:
    first = start_dev("--port", "0")
    left = Path(first.said("state"))
    first.process.kill()
    first.process.wait()
    assert left.exists()
    second = start_dev("--port", "0")
    assert not left.exists()
    first.assert_gone()
    second.interrupt()
    assert second.finish() == (0, "")
    assert list(temporary.iterdir()) == []


def test_dev_on_a_port_that_is_taken_says_so_and_leaves_nothing(start_dev: Callable[..., Dev], temporary: Path) -> None:
    first = start_dev("--port", "0")
    taken = first.said("facilitator").rpartition(":")[2]
    second = Command("dev", "--port", taken, temporary=temporary)
    status, error = second.finish()
    assert status == 3
    assert "in use" in error
    assert taken in error
    assert error.count("\n") == 1


def test_dev_ends_when_its_service_does(start_dev: Callable[..., Dev], temporary: Path) -> None:
    dev = start_dev("--port", "0")
    (service,) = (child for child in dev.look() if "serve" in child.cmdline())
    service.kill()
    status, error = dev.finish()
    assert status == 1
    assert "facilitator serve ended with status -9" in error
    dev.assert_gone()
    assert list(temporary.iterdir()) == []


async def test_dev_mines_by_the_clock_and_sells_an_upstreams_models_when_asked(start_dev: Callable[..., Dev]) -> None:
    dev = start_dev("--port", "0", "--block-time", "1", "--upstream", "http://127.0.0.1:9/v1", "--upstream-key", "env:PATH")
    async with new_session() as session:
        async with session.get(dev.said("2s.io style")) as response:
            assert {each["servedBy"] for each in (await response.json())["data"]} == {"127.0.0.1 (OpenAI-compatible upstream)"}
        bought = await buy(session, Buyer.numbered(2), dev.said("paid API"), 2)
    assert bought.status == 200
    await assert_ledger_is_chain(dev.said("database"), dev.said("RPC"), settled=1)
