"""The gateway kit before a running `facilitator serve`: official clients pay, and nobody pays for nothing.

The service is killed in the middle of a settlement; the chain is slower than everybody's patience; one payment is handed
over twenty times. What was charged is read from the chain and the ledger.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final, Self

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from eth_account.signers.local import LocalAccount

from facilitator.devstack.buyer import Buyer
from facilitator.devstack.ensemble import SELLER
from facilitator.devstack.gateway import Priced, SampleGateway
from facilitator.devstack.install import node_program
from facilitator.devstack.pay import Bought, demanded, hand_over, new_session
from facilitator.devstack.stack import Anvil
from facilitator.devstack.token import Token
from facilitator.gateway.client import FacilitatorClient, Settings
from facilitator.protocol.messages import Version
from tests.fixtures.house import BRIEF_LEASES, FAST
from tests.fixtures.oracle import assert_ledger_is_chain
from tests.fixtures.service import ServeProcess
from tests.fixtures.waiting import PATIENCE_S

NewBuyer = Callable[..., Awaitable[Buyer]]
NewRelayer = Callable[..., Awaitable[LocalAccount]]
CONFORMANCE: Final = Path(__file__).parents[1] / "conformance"
CLIENTS: Final[dict[str, tuple[Version, str]]] = {
    "httpx": (2, "httpx_client.py"),
    "@x402/fetch": (2, "fetch.mjs"),
    "x402-fetch": (1, "legacy_fetch.mjs"),
}
PRICE_ATOMIC: Final = 1_000


class Till:
    """A shop that sells `/one` and `/other` for the same price, and counts how often it worked."""

    def __init__(self, service: ServeProcess, settings: Settings | None = None) -> None:
        self.worked = 0
        self.asked: list[str] = []
        routes = [Priced(path=path, price_atomic=PRICE_ATOMIC, description="work", handler=self._work) for path in ("/one", "/other")]
        self.gateway = SampleGateway(
            service.base_url,
            service.api_key,
            SELLER,
            routes=routes,
            observe=lambda exchange: self.asked.append(f"{exchange.route} {exchange.status}"),
            client_settings=settings,
        )

    async def __aenter__(self) -> Self:
        await self.gateway.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.gateway.stop()

    def url(self, path: str = "/one") -> str:
        return self.gateway.base_url + path

    async def _work(self, _: web.Request) -> web.StreamResponse:
        self.worked += 1
        return web.json_response({"work": "done"})


@pytest_asyncio.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with new_session() as session:
        yield session


@pytest_asyncio.fixture
async def service(tmp_path: Path, database_url: str, chain: Anvil, new_relayer: NewRelayer) -> AsyncIterator[ServeProcess]:
    keys = [bytes((await new_relayer()).key).hex()]
    async with ServeProcess(tmp_path / "service", database_url=database_url, rpc_url=chain.rpc_url, relayer_keys=keys) as service:
        yield service


def run_client(directory: Path, name: str, buyer: Buyer, url: str) -> dict[str, Any]:
    """Run an official client's program once."""
    return run_program(directory, CONFORMANCE / "clients" / CLIENTS[name][1], buyer, url)


def run_program(directory: Path, source: Path, buyer: Buyer, url: str) -> dict[str, Any]:
    """Run a program that buys, beside the installed packages."""
    program = directory / source.name
    for path in (source, *source.parent.glob("signers.*")):
        (directory / path.name).write_bytes(path.read_bytes())
    if not (directory / "node_modules").exists():
        (directory / "node_modules").symlink_to(CONFORMANCE / "npm" / "node_modules", target_is_directory=True)
    own = {"RESOURCE_URL": url, "EVM_PRIVATE_KEY": "0x" + bytes(buyer.account.key).hex()}
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    command = [node_program() if program.suffix == ".mjs" else sys.executable, program]
    done = subprocess.run(command, env=kept | own, cwd=directory, capture_output=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr.decode()
    told: dict[str, Any] = json.loads(done.stdout)
    return told


async def test_official_clients_of_both_versions_pay_an_aiohttp_server(
    service: ServeProcess, new_buyer: NewBuyer, tmp_path: Path, database_url: str, chain: Anvil
) -> None:
    async with Till(service) as till:
        for name, (version, _) in CLIENTS.items():
            buyer = await new_buyer(amount_atomic=PRICE_ATOMIC)
            told = await asyncio.to_thread(run_client, tmp_path, name, buyer, till.url())
            assert (told["status"], told["body"], told["error"]) == (200, {"work": "done"}, None), name
            assert told["payment_response"]["success"] is True
            assert told["payment_response"]["network"] == ("base-sepolia" if version == 1 else "eip155:84532")
            poor = await asyncio.to_thread(run_client, tmp_path, name, buyer, till.url())
            assert poor["status"] == 402
            assert poor["error"] in {"insufficient_funds", "invalid_exact_evm_insufficient_balance"}, name
    await assert_ledger_is_chain(database_url, chain.rpc_url, settled=len(CLIENTS))


async def test_the_page_for_browsers_pays_with_the_browsers_wallet(
    service: ServeProcess, new_buyer: NewBuyer, tmp_path: Path, database_url: str, chain: Anvil
) -> None:
    async with Till(service) as till:
        buyer = await new_buyer(amount_atomic=PRICE_ATOMIC)
        program = Path(__file__).with_name("paywall_browser.mjs")
        told = await asyncio.to_thread(run_program, tmp_path, program, buyer, till.url())
        wallet = ["eth_requestAccounts", "eth_chainId", "wallet_switchEthereumChain", "eth_signTypedData_v4"]
        assert told == {"offered": True, "asked": wallet, "status": "Paid.", "result": '{"work": "done"}', "button": None}
        poor = await asyncio.to_thread(run_program, tmp_path, program, buyer, till.url())
        assert poor["result"] is None
        assert "expected a balance of at least 1000" in poor["status"]
        assert poor["button"] == "Try again"
    await assert_ledger_is_chain(database_url, chain.rpc_url, settled=1)


async def test_one_header_twenty_times_at_once_at_two_routes_and_two_replicas_of_the_shop_is_one_paid_response(
    service: ServeProcess, session: aiohttp.ClientSession, new_buyer: NewBuyer, database_url: str, chain: Anvil
) -> None:
    async with Till(service) as till, Till(service) as replica:
        payment = (await new_buyer()).pay(2, await demanded(session, till.url(), 2))
        urls = [shop.url(path) for shop in (till, replica) for path in ("/one", "/other")]
        answers = await asyncio.gather(*(hand_over(session, urls[number % 4], payment) for number in range(20)))
    assert sorted(answer.status for answer in answers) == [200] + [402] * 19
    assert {answer.body.get("error") for answer in answers} == {None, "duplicate_settlement"}
    assert till.worked + replica.worked <= 2
    await assert_ledger_is_chain(database_url, chain.rpc_url, settled=1)


async def test_the_lookup_finds_what_a_buyer_paid(service: ServeProcess, session: aiohttp.ClientSession, new_buyer: NewBuyer) -> None:
    async with Till(service) as till, FacilitatorClient(service.base_url, api_key=service.api_key) as client:
        supported = await client.supported()
        assert {(kind.x402_version, kind.network) for kind in supported.kinds} == {(2, "eip155:84532"), (1, "base-sepolia")}
        buyer = await new_buyer()
        terms = await demanded(session, till.url(), 2)
        bought = await hand_over(session, till.url(), buyer.pay(2, terms))
        asked = {"network": "eip155:84532", "asset": terms["asset"], "payer": buyer.address}
        found = await client.lookup(**asked, auth_nonce=bought.auth_nonce)
        assert found is not None
        assert (found.transaction, found.amount, found.answered) == (bought.tx_hash, str(PRICE_ATOMIC), True)
        assert await client.lookup(**asked, auth_nonce="0x" + "00" * 32) is None


@pytest_asyncio.fixture(params=[BRIEF_LEASES], ids=["patient"])
async def slow(
    tmp_path: Path, database_url: str, start_chain: Any, new_relayer: NewRelayer, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[ServeProcess, Anvil]]:
    """A chain that mines on command, and a service with those settings."""
    chain: Anvil = await start_chain(automine=False)
    keys = [bytes((await new_relayer(token=Token.at(chain.rpc_url))).key).hex()]
    settings = {"settlement": {**FAST, **request.param}}
    async with ServeProcess(
        tmp_path / "service", database_url=database_url, rpc_url=chain.rpc_url, relayer_keys=keys, settings=settings
    ) as service:
        yield service, chain


async def sent(chain: Anvil) -> None:
    """Return when a transaction waits in the pool."""
    async with asyncio.timeout(PATIENCE_S):
        while int((await chain.node.call("txpool_status"))["pending"], 16) < 1:
            await asyncio.sleep(0.01)


async def test_a_facilitator_that_is_killed_in_the_middle_of_a_settlement_is_asked_again_and_the_buyer_served(
    slow: tuple[ServeProcess, Anvil], session: aiohttp.ClientSession, new_buyer: NewBuyer, database_url: str
) -> None:
    service, chain = slow
    buyer = await new_buyer(token=Token.at(chain.rpc_url))
    async with Till(service, Settings(settle_attempts_max=120, retry_max_s=1.0)) as till:
        payment = buyer.pay(2, await demanded(session, till.url(), 2))
        buying = asyncio.create_task(hand_over(session, till.url(), payment))
        await sent(chain)
        await service.akill()
        await chain.node.call("evm_mine")
        await service.astart()
        bought = await buying
        assert (bought.status, bought.body, till.worked) == (200, {"work": "done"}, 1), till.asked
        assert "/settle 0" in till.asked
        again = await hand_over(session, till.url(), payment)
        assert (again.status, again.body["error"]) == (402, "duplicate_settlement")
    await assert_ledger_is_chain(database_url, chain.rpc_url, settled=1)


async def test_a_facilitator_that_stays_away_leaves_the_buyer_with_the_truth_and_his_payment_good_for_later(
    slow: tuple[ServeProcess, Anvil], session: aiohttp.ClientSession, new_buyer: NewBuyer, database_url: str
) -> None:
    service, chain = slow
    buyer = await new_buyer(token=Token.at(chain.rpc_url))
    async with Till(service, Settings(settle_attempts_max=3, retry_first_s=0.05)) as till:
        payment = buyer.pay(2, await demanded(session, till.url(), 2))
        buying = asyncio.create_task(hand_over(session, till.url(), payment))
        await sent(chain)
        await service.akill()
        withheld = await buying
        assert (withheld.status, withheld.body["error"], withheld.body["payment"]) == (502, "settlement_unknown", "open")
        away = await hand_over(session, till.url(), payment)
        assert (away.status, away.body["error"]) == (502, "facilitator_unavailable")
        await chain.node.call("evm_mine")
        await service.astart()
        bought = await until_told(session, till.url(), payment)
        assert (bought.status, bought.body) == (200, {"work": "done"})
    await assert_ledger_is_chain(database_url, chain.rpc_url, settled=1)


@pytest.mark.parametrize("slow", [{"deadline_s": 3.0, "verify_deadline_s": 3.0}], indirect=True, ids=["hasty"])
async def test_a_settlement_that_outlasts_the_gateways_patience_is_told_as_open_and_the_same_payment_gets_its_goods(
    slow: tuple[ServeProcess, Anvil], session: aiohttp.ClientSession, new_buyer: NewBuyer, database_url: str
) -> None:
    service, chain = slow
    buyer = await new_buyer(token=Token.at(chain.rpc_url))
    async with Till(service, Settings(settle_attempts_max=1)) as till:
        payment = buyer.pay(2, await demanded(session, till.url(), 2))
        withheld = await hand_over(session, till.url(), payment)
        assert (withheld.status, withheld.body["error"], withheld.body["accepts"]) == (402, "settlement_pending", [])
        assert withheld.tx_hash == withheld.body["transaction"]
        await chain.node.call("evm_mine")
        bought = await until_told(session, till.url(), payment)
        assert (bought.status, bought.tx_hash) == (200, withheld.tx_hash)
    await assert_ledger_is_chain(database_url, chain.rpc_url, settled=1)


async def until_told(session: aiohttp.ClientSession, url: str, payment: dict[str, Any]) -> Bought:
    """Send the same payment until it is no longer open, as the answers ask for."""
    async with asyncio.timeout(PATIENCE_S):
        while (bought := await hand_over(session, url, payment)).status in {502, 503} or bought.body.get("payment") == "open":
            await asyncio.sleep(0.1)
    return bought
