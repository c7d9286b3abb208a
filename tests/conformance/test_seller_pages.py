"""Every program in the pages for sellers runs as it stands there, and is paid through a running `facilitator serve`.

Only the port is changed. A wrong order gets its error before any demand, a right one what the page says.
"""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest_asyncio
from eth_account.signers.local import LocalAccount

from facilitator.devstack.accounts import dev_account
from facilitator.devstack.buyer import Buyer
from facilitator.devstack.install import node_program
from facilitator.devstack.pay import buy, new_session
from facilitator.devstack.stack import Anvil
from facilitator.devstack.token import Token
from facilitator.protocol.messages import Version
from tests.fixtures.mpp import answered, decoded, header
from tests.fixtures.oracle import assert_ledger_is_chain
from tests.fixtures.service import ServeProcess, free_port, http_status
from tests.fixtures.waiting import PATIENCE_S

Json = dict[str, Any]
DOCS: Final = Path(__file__).parents[2] / "docs"
MODULES: Final = Path(__file__).parent / "npm" / "node_modules"
PAYEE: Final = dev_account("pages-payee").address
FENCE: Final = re.compile(r"^## (aiohttp|FastAPI|Express)$.*?^```(?:python|js)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Page:
    """What a page sells, and to whom."""

    file: str
    path: str
    order: Json | None
    price_atomic: int
    body: Json
    """Members of the paid answer; `...` for any value."""
    versions: dict[str, tuple[Version, ...]]
    wrong: str | None = None
    """A request that is refused before any demand."""
    free: tuple[str, Json | None] | None = None


PROMPT: Final[Json] = {"prompt": "a lighthouse"}
BOTH: Final[dict[str, tuple[Version, ...]]] = {"aiohttp": (1, 2), "FastAPI": (2,), "Express": (2,)}
PAGES: Final = [
    Page("sellers.md", "/report", None, 10_000, {"report": "sunny"}, BOTH),
    Page(
        "sellers/per-call.md", "/chat?max_tokens=100", PROMPT, 2_000, {"said": "You asked: a lighthouse"}, BOTH, wrong="/chat?max_tokens=0"
    ),
    Page("sellers/jobs.md", "/generate", PROMPT, 9_000, {"jobId": ..., "status": "pending", "success": True}, BOTH),
    Page(
        "sellers/both-versions.md",
        "/generate",
        PROMPT,
        5_700,
        {"images": ["a picture of a lighthouse"]},
        BOTH | {"Express": (1,)},
        free=("/estimate", {"estimatedCost": {"usd": "0.0057"}}),
    ),
]


def programs(page: Page) -> dict[str, str]:
    """The page's programs by the server that they are for."""
    found = dict(FENCE.findall((DOCS / page.file).read_text("utf-8")))
    assert set(found) == {"aiohttp", "FastAPI", "Express"}, page.file
    return found


@pytest_asyncio.fixture
async def service(
    tmp_path: Path, database_url: str, chain: Anvil, new_relayer: Callable[..., Awaitable[LocalAccount]]
) -> AsyncIterator[ServeProcess]:
    keys = [bytes((await new_relayer()).key).hex()]
    async with ServeProcess(tmp_path / "service", database_url=database_url, rpc_url=chain.rpc_url, relayer_keys=keys) as service:
        yield service


def start(directory: Path, kind: str, program: str, port: int, service: ServeProcess, **more: str) -> subprocess.Popen[bytes]:
    """Write a program down, with another port, and start it as its page says."""
    directory.mkdir(parents=True)
    (directory / "node_modules").symlink_to(MODULES, target_is_directory=True)
    assert program.count("8000") == (kind != "FastAPI"), "the port stands where uvicorn is started"
    file = directory / ("shop.mjs" if kind == "Express" else "shop.py")
    file.write_text(program.replace("8000", str(port)), encoding="utf-8")
    command: dict[str, list[Any]] = {
        "aiohttp": [sys.executable, file],
        "FastAPI": [sys.executable, "-m", "uvicorn", "shop:app", "--port", str(port), "--log-level", "warning"],
        "Express": [node_program(), file],
    }
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    own = {"FACILITATOR_URL": service.base_url, "FACILITATOR_KEY": service.api_key, "PAY_TO": PAYEE}
    with (directory / "log").open("wb") as log:
        return subprocess.Popen(command[kind], cwd=directory, env=kept | own | more, stdout=log, stderr=subprocess.STDOUT)


async def listens(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while await asyncio.to_thread(http_status, f"{url}/none") is None:
            assert process.poll() is None, log.read_text("utf-8")
            await asyncio.sleep(0.05)


async def test_every_program_of_every_page_is_paid(
    service: ServeProcess,
    new_buyer: Callable[..., Awaitable[Buyer]],
    token: Token,
    tmp_path: Path,
    database_url: str,
    chain: Anvil,
) -> None:
    async with new_session() as session:
        for page in PAGES:
            with ExitStack() as stack:
                shops = []
                for kind, program in programs(page).items():  # all three start together
                    directory, port = tmp_path / page.file / kind, free_port()
                    process = start(directory, kind, program, port, service)
                    stack.callback(process.wait)
                    stack.callback(process.kill)
                    shops.append((kind, f"http://127.0.0.1:{port}", process, directory / "log"))
                for kind, url, process, log in shops:
                    await listens(url, process, log)
                    for version in page.versions[kind]:
                        buyer = await new_buyer(amount_atomic=page.price_atomic)
                        await assert_sells(session, page, url, version, buyer)
                        assert await token.balance_of(buyer.address) == 0, (page.file, kind)
    settled = sum(len(versions) for page in PAGES for versions in page.versions.values())
    await assert_ledger_is_chain(database_url, chain.rpc_url, settled=settled)


async def test_the_lines_for_mpp_sell_the_same_job_by_both_protocols(
    service: ServeProcess, new_buyer: Callable[..., Awaitable[Buyer]], token: Token, tmp_path: Path
) -> None:
    page = next(page for page in PAGES if page.file == "sellers/jobs.md")
    program, lines = (
        programs(page)["aiohttp"],
        re.findall(r"^```python\n(.*?)^```$", (DOCS / page.file).read_text("utf-8"), re.DOTALL | re.MULTILINE)[1],
    )
    port = free_port()
    lines = lines.replace("8000", str(port))
    sold = "".join(lines if line.startswith("charge(") else line for line in program.splitlines(keepends=True))
    process = start(tmp_path / "mpp", "aiohttp", sold, port, service, MPP_SECRET="s" * 32)
    url = f"http://127.0.0.1:{port}/generate"
    try:
        await listens(f"http://127.0.0.1:{port}", process, tmp_path / "mpp" / "log")
        async with new_session() as session:
            buyer = await new_buyer(amount_atomic=2 * page.price_atomic)
            async with session.post(url, json=PROMPT) as unpaid:
                credential = answered(buyer, unpaid.headers["WWW-Authenticate"])
            async with session.post(url, json=PROMPT, headers=header(credential)) as paid:
                assert (paid.status, (await paid.json())["success"]) == (200, True)
                assert decoded(paid.headers["Payment-Receipt"])["challengeId"] == credential["challenge"]["id"]
            assert (await buy(session, buyer, url, 2, PROMPT)).status == 200
            assert await token.balance_of(buyer.address) == 0
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)


async def assert_sells(session: aiohttp.ClientSession, page: Page, url: str, version: Version, buyer: Buyer) -> None:
    """The shop refuses what is wrong before any demand, gives free what is free, and sells what its page says."""
    if page.wrong is not None:
        async with session.post(url + page.wrong, json=page.order) as response:
            assert response.status == 400, url
            assert "1 to 8192" in await response.text()
    if page.free is not None:
        async with session.post(url + page.free[0], json={}) as response:
            assert (response.status, await response.json()) == (200, page.free[1]), url
    bought = await buy(session, buyer, url + page.path, version, page.order)
    assert bought.status == 200, (page.file, url, version, bought)
    assert bought.body == {name: bought.body[name] if wanted is ... else wanted for name, wanted in page.body.items()}
    if "jobId" in bought.body:
        async with session.get(f"{url}/jobs/{bought.body['jobId']}") as response:
            assert (await response.json())["result"] == "a picture of a lighthouse"
        async with session.get(f"{url}/jobs/none") as response:
            assert response.status == 404
