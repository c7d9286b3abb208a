"""The sample gateway: sells to buyers of both versions, hands nothing over that is not paid, and charges nobody twice.

First with the real service on a real chain, then with a facilitator of the test's own that fails in every way.
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from eth_account.signers.local import LocalAccount

from facilitator.devstack.buyer import Buyer
from facilitator.devstack.ensemble import SELLER
from facilitator.devstack.gateway import ROUTES, Priced, SampleGateway
from facilitator.devstack.pay import buy, decoded, demanded, hand_over, new_session
from facilitator.devstack.stack import Anvil
from facilitator.devstack.token import BASE_SEPOLIA_USDC, Token
from facilitator.gateway.client import Exchange, Settings
from facilitator.protocol.messages import Version
from tests.fixtures.oracle import assert_ledger_is_chain
from tests.fixtures.service import ServeProcess
from tests.fixtures.waiting import PATIENCE_S

NewBuyer = Callable[..., Awaitable[Buyer]]
TX_HASH = "0x" + "ab" * 32
VERSIONS: list[Version] = [1, 2]
HASTY = Settings(settle_attempts_max=2, retry_first_s=0.01)
NO_FUNDS = {1: "insufficient_funds", 2: "invalid_exact_evm_insufficient_balance"}


@pytest_asyncio.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with new_session() as session:
        yield session


# ---- with the real service


class Shop:
    """A gateway before a running service, and what they said to each other."""

    def __init__(self, service: ServeProcess) -> None:
        self.exchanges: list[Exchange] = []
        self.gateway = SampleGateway(service.base_url, service.api_key, SELLER, observe=self.exchanges.append)

    @property
    def quote(self) -> str:
        return f"{self.gateway.base_url}/quote"

    @property
    def routes_asked(self) -> list[str]:
        return [exchange.route for exchange in self.exchanges]


@pytest_asyncio.fixture
async def shop(tmp_path: Path, database_url: str, chain: Anvil, new_relayer: Callable[..., Awaitable[LocalAccount]]) -> AsyncIterator[Shop]:
    keys = [bytes((await new_relayer()).key).hex()]
    async with ServeProcess(tmp_path, database_url=database_url, rpc_url=chain.rpc_url, relayer_keys=keys) as service:
        shop = Shop(service)
        await shop.gateway.start()
        yield shop
        await shop.gateway.stop()


async def test_who_pays_nothing_is_told_the_terms_of_both_versions(shop: Shop, session: aiohttp.ClientSession) -> None:
    async with session.get(shop.quote) as response:
        assert response.status == 402
        assert response.headers["Cache-Control"] == "no-store"
        v1, v2 = await response.json(), decoded(response.headers["PAYMENT-REQUIRED"])
    assert (v1["x402Version"], v2["x402Version"]) == (1, 2)
    assert v2["resource"]["url"] == v1["accepts"][0]["resource"] == shop.quote
    (old,), (new,) = v1["accepts"], v2["accepts"]
    assert (old["network"], old["maxAmountRequired"]) == ("base-sepolia", "1000")
    assert (new["network"], new["amount"]) == ("eip155:84532", "1000")
    for terms in (old, new):
        assert (terms["scheme"], terms["payTo"], terms["asset"]) == ("exact", SELLER, BASE_SEPOLIA_USDC)
        assert terms["extra"] == {"name": "USDC", "version": "2"}
    assert shop.exchanges == []


async def test_buyers_of_both_versions_get_what_they_pay_for(
    shop: Shop, session: aiohttp.ClientSession, new_buyer: NewBuyer, database_url: str, chain: Anvil
) -> None:
    buyer = await new_buyer()
    seen = set()
    for version in VERSIONS:
        for priced in ROUTES:
            bought = await buy(session, buyer, shop.gateway.base_url + priced.path, version)
            assert bought.status == 200
            assert set(bought.body) & {"quote", "report"}
            assert bought.receipt is not None
            assert bought.receipt["success"] is True
            assert bought.receipt["network"] == ("base-sepolia" if version == 1 else "eip155:84532")
            seen.add(bought.tx_hash)
    assert len(seen) == 4
    assert shop.routes_asked == ["/verify", "/settle"] * 4
    report = await assert_ledger_is_chain(database_url, chain.rpc_url, settled=4)
    assert sum(report.amounts_atomic.values()) == 2 * 11_000


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_payment_buys_once(
    shop: Shop, session: aiohttp.ClientSession, new_buyer: NewBuyer, database_url: str, chain: Anvil, version: Version
) -> None:
    bought = await buy(session, await new_buyer(), shop.quote, version)
    again = await hand_over(session, shop.quote, bought.payment)
    assert (again.status, again.body["error"]) == (402, "duplicate_settlement")
    assert "quote" not in again.body
    await assert_ledger_is_chain(database_url, chain.rpc_url, settled=1)


async def test_a_payment_that_is_handed_over_many_times_at_once_buys_once(
    shop: Shop, session: aiohttp.ClientSession, new_buyer: NewBuyer, database_url: str, chain: Anvil
) -> None:
    payment = (await new_buyer()).pay(2, await demanded(session, shop.quote, 2))
    answers = await asyncio.gather(*(hand_over(session, shop.quote, payment) for _ in range(20)))
    assert sorted(answer.status for answer in answers) == [200] + [402] * 19
    assert {answer.body.get("error") for answer in answers} == {None, "duplicate_settlement"}
    await assert_ledger_is_chain(database_url, chain.rpc_url, settled=1)


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_empty_wallet_buys_nothing(shop: Shop, session: aiohttp.ClientSession, new_buyer: NewBuyer, version: Version) -> None:
    refused = await buy(session, await new_buyer(amount_atomic=0), shop.quote, version)
    assert (refused.status, refused.body["error"]) == (402, NO_FUNDS[version])
    assert "balance of at least 1000" in refused.body["message"]
    assert shop.routes_asked == ["/verify"]


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_cheap_payment_buys_no_dear_thing(
    shop: Shop, session: aiohttp.ClientSession, new_buyer: NewBuyer, token: Token, version: Version
) -> None:
    buyer = await new_buyer()
    payment = buyer.pay(version, await demanded(session, shop.quote, version))
    refused = await hand_over(session, f"{shop.gateway.base_url}/report", payment)
    assert refused.status == 402
    assert "report" not in refused.body
    assert await token.balance_of(buyer.address) == 10_000_000


async def test_on_a_slow_chain_the_gateway_asks_again_and_delivers_once(
    tmp_path: Path,
    database_url: str,
    session: aiohttp.ClientSession,
    start_chain: Callable[..., Awaitable[Anvil]],
    new_relayer: Callable[..., Awaitable[LocalAccount]],
    new_buyer: NewBuyer,
) -> None:
    slow = await start_chain(automine=False)
    token = Token.at(slow.rpc_url)
    keys = [bytes((await new_relayer(token=token)).key).hex()]
    deadline = {"settlement": {"deadline_s": 3.0, "verify_deadline_s": 3.0}}
    async with ServeProcess(tmp_path, database_url=database_url, rpc_url=slow.rpc_url, relayer_keys=keys, settings=deadline) as service:
        shop = Shop(service)
        await shop.gateway.start()
        buying = asyncio.create_task(buy(session, await new_buyer(token=token), shop.quote, 2))
        async with asyncio.timeout(PATIENCE_S):
            while shop.routes_asked != ["/verify", "/settle"]:
                await asyncio.sleep(0.01)
            await slow.node.call("evm_mine")
            bought = await buying
        await shop.gateway.stop()
        assert bought.status == 200
        first, second = shop.exchanges[1:]
        assert first.answer["errorReason"] == "settlement_pending"
        assert (second.answer["success"], second.answer["transaction"]) == (True, first.answer["transaction"])
        await assert_ledger_is_chain(database_url, slow.rpc_url, settled=1)


# ---- with a facilitator that fails


class Stub:
    """A facilitator that answers what the test says; the last answer is repeated."""

    def __init__(self) -> None:
        self.answers: dict[str, list[tuple[int, Any]]] = {
            "/verify": [(200, {"isValid": True, "payer": ""})],
            "/settle": [(200, {"success": True, "transaction": TX_HASH, "network": "eip155:84532", "payer": ""})],
        }
        self.asked: list[tuple[str, dict[str, Any], str | None]] = []
        self.worked = 0
        self.work_status = 200
        application = web.Application()
        for route in self.answers:
            application.router.add_post(route, self._answer)
        self.server = TestServer(application)
        self.gateway = SampleGateway("http://127.0.0.1:9", "key", SELLER)

    async def start(self) -> None:
        await self.server.start_server()
        routes = [Priced(path="/work", price_atomic=5, description="work", handler=self._work)]
        self.gateway = SampleGateway(str(self.server.make_url("")), "key", SELLER, routes=routes, client_settings=HASTY)
        await self.gateway.start()

    @property
    def url(self) -> str:
        return f"{self.gateway.base_url}/work"

    def routes_asked(self) -> list[str]:
        return [route for route, _, _ in self.asked]

    async def _answer(self, request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer key"
        self.asked.append((request.path, await request.json(), request.headers.get("Idempotency-Key")))
        left = self.answers[request.path]
        status, body = left.pop(0) if len(left) > 1 else left[0]
        if status == 0:
            assert request.transport
            request.transport.close()
        return web.Response(status=status or 500, body=body) if isinstance(body, bytes) else web.json_response(body, status=status or 500)

    async def _work(self, _: web.Request) -> web.Response:
        self.worked += 1
        return web.json_response({"work": "done"}, status=self.work_status)


@pytest_asyncio.fixture
async def stub() -> AsyncIterator[Stub]:
    stub = Stub()
    await stub.start()
    yield stub
    await stub.gateway.stop()
    await stub.server.close()


PENDING = {"success": False, "errorReason": "settlement_pending", "transaction": TX_HASH, "network": "eip155:84532", "payer": ""}
BUYER = Buyer.numbered(1)


async def test_what_it_sends_is_the_payment_and_its_own_terms(stub: Stub, session: aiohttp.ClientSession) -> None:
    bought = await buy(session, BUYER, stub.url, 2)
    assert (bought.status, bought.body, bought.tx_hash) == (200, {"work": "done"}, TX_HASH)
    assert stub.routes_asked() == ["/verify", "/settle"]
    for _, question, _ in stub.asked:
        assert question["x402Version"] == 2
        assert question["paymentPayload"] == bought.payment
        assert (question["paymentRequirements"]["payTo"], question["paymentRequirements"]["amount"]) == (SELLER, "5")


async def test_each_purchase_has_an_idempotency_key_of_its_own_that_only_its_repeat_shares(
    stub: Stub, session: aiohttp.ClientSession
) -> None:
    stub.answers["/settle"].insert(0, (200, PENDING))
    assert (await buy(session, BUYER, stub.url, 2)).status == 200
    assert (await buy(session, BUYER, stub.url, 1)).status == 200
    first, repeat, other = (key for route, _, key in stub.asked if route == "/settle")
    assert first == repeat
    assert first != other
    assert first
    assert other
    assert [key for route, _, key in stub.asked if route == "/verify"] == [None, None]


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_stays_pending_is_withheld_with_its_hash(stub: Stub, session: aiohttp.ClientSession, version: Version) -> None:
    stub.answers["/settle"] = [(200, PENDING)]
    refused = await buy(session, BUYER, stub.url, version)
    assert (refused.status, refused.body["error"], refused.tx_hash) == (402, "settlement_pending", TX_HASH)
    assert "work" not in refused.body
    assert stub.routes_asked() == ["/verify", "/settle", "/settle"]


async def test_a_failed_settlement_withholds_the_work_and_is_not_repeated(stub: Stub, session: aiohttp.ClientSession) -> None:
    failed = {"success": False, "errorReason": "invalid_exact_evm_nonce_already_used", "transaction": "", "network": "eip155:84532"}
    stub.answers["/settle"] = [(200, failed)]
    refused = await buy(session, BUYER, stub.url, 2)
    assert (refused.status, refused.receipt) == (402, failed)
    assert "work" not in refused.body
    assert stub.routes_asked() == ["/verify", "/settle"]


@pytest.mark.parametrize("silence", [(503, {"error": "x"}), (0, {}), (200, b"<html>"), (200, []), (200, {"isValid": "yes"})], ids=str)
async def test_without_a_verdict_nothing_is_worked_for(stub: Stub, session: aiohttp.ClientSession, silence: tuple[int, Any]) -> None:
    stub.answers["/verify"] = [silence]
    refused = await buy(session, BUYER, stub.url, 2)
    assert refused.status in {402, 502}
    assert stub.worked == 0
    assert set(stub.routes_asked()) == {"/verify"}


@pytest.mark.parametrize("silence", [(503, {"error": "x"}), (0, {}), (200, b"<html>"), (200, [])], ids=str)
async def test_without_news_of_the_settlement_nothing_is_handed_over(
    stub: Stub, session: aiohttp.ClientSession, silence: tuple[int, Any]
) -> None:
    stub.answers["/settle"] = [silence]
    refused = await buy(session, BUYER, stub.url, 2)
    assert (refused.status, refused.body["error"], refused.body["payment"]) == (502, "settlement_unknown", "open")
    assert "work" not in refused.body
    assert len({key for route, _, key in stub.asked if route == "/settle"}) == 1


async def test_a_lost_answer_is_asked_for_again(stub: Stub, session: aiohttp.ClientSession) -> None:
    stub.answers["/settle"].insert(0, (0, {}))
    bought = await buy(session, BUYER, stub.url, 2)
    assert (bought.status, bought.tx_hash) == (200, TX_HASH)


async def test_work_that_fails_is_not_charged(stub: Stub, session: aiohttp.ClientSession) -> None:
    stub.work_status = 500
    assert (await buy(session, BUYER, stub.url, 2)).status == 500
    assert stub.routes_asked() == ["/verify"]


@pytest.mark.parametrize("name", ["X-PAYMENT", "PAYMENT-SIGNATURE"])
@pytest.mark.parametrize(
    "header",
    ["", "no base64 at all", "////", base64.b64encode(b"[]").decode(), base64.b64encode(b"{}").decode(), "QUJD" * 5_000, "e30K_-"],
    ids=["empty", "words", "bytes", "list", "object", "long", "url-safe"],
)
async def test_a_header_that_is_no_payment_is_a_demand_and_no_question(
    stub: Stub, session: aiohttp.ClientSession, name: str, header: str
) -> None:
    async with session.get(stub.url, headers={name: header}) as response:
        assert response.status == 402
        assert (await response.json())["error"] == "invalid_payload"
    assert stub.asked == []


async def test_a_payment_in_the_header_of_the_other_version_is_no_payment(stub: Stub, session: aiohttp.ClientSession) -> None:
    payment = BUYER.pay(2, await demanded(session, stub.url, 2))
    header = base64.b64encode(json.dumps(payment).encode()).decode()
    async with session.get(stub.url, headers={"X-PAYMENT": header}) as response:
        assert (response.status, (await response.json())["error"]) == (402, "invalid_payload")


@pytest.mark.parametrize("change", [{"amount": "4"}, {"payTo": BASE_SEPOLIA_USDC}, {"network": "eip155:8453"}, {"scheme": "upto"}], ids=str)
async def test_terms_that_the_buyer_made_up_are_not_asked_about(stub: Stub, session: aiohttp.ClientSession, change: dict[str, str]) -> None:
    payment = BUYER.pay(2, await demanded(session, stub.url, 2))
    payment["accepted"] |= change
    refused = await hand_over(session, stub.url, payment)
    assert (refused.status, refused.body["error"]) == (402, "invalid_payment_requirements")
    assert stub.asked == []
