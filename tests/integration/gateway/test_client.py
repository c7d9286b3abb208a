"""FacilitatorClient before every kind of answer and silence: what is a refusal, what a fault, and whether money may move."""

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from facilitator.gateway.answers import BadAnswer, Denied, FacilitatorFault, NoAnswer, Unavailable, Unreachable
from facilitator.gateway.client import Exchange, FacilitatorClient, Settings
from tests.integration.gateway.model import TX_HASH

PAYMENT = {"x402Version": 2, "payload": {}}
TERMS = {"scheme": "exact"}
ONCE = Settings(settle_attempts_max=1, verify_attempts_max=1, retry_first_s=0.001, retry_max_s=0.01)
SUCCESS = {"success": True, "transaction": TX_HASH, "network": "base", "extra": {"logIndex": 3, "settlementId": "s"}}
PENDING = {"success": False, "errorReason": "settlement_pending", "transaction": TX_HASH, "network": "base"}


class Desk:
    """Answers what it is told to; the last answer is repeated. Status 0 cuts the connection."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any]] = [(200, {})]
        self.headers: dict[str, str] = {}
        self.seen: list[web.Request] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        self.seen.append(request)
        status, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if status == 0:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if isinstance(body, bytes):
            return web.Response(status=status, body=body, headers=self.headers)
        return web.json_response(body, status=status, headers=self.headers)


@pytest_asyncio.fixture
async def desk() -> AsyncIterator[Desk]:
    desk = Desk()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", desk.answer)
    async with TestServer(application) as server:
        desk.url = str(server.make_url(""))
        yield desk


NewClient = Callable[..., FacilitatorClient]


@pytest_asyncio.fixture
async def new_client(desk: Desk) -> AsyncIterator[NewClient]:
    made: list[FacilitatorClient] = []

    def make(url: str | None = None, **options: Any) -> FacilitatorClient:
        made.append(FacilitatorClient(url or desk.url, **({"settings": ONCE} | options)))
        return made[-1]

    yield make
    for client in made:
        await client.close()


FAULTS: list[tuple[tuple[int, Any], type[FacilitatorFault], bool, bool]] = [
    # answer, fault, may a settle have happened, retryable
    ((0, None), NoAnswer, True, True),
    ((200, b"<html>"), BadAnswer, True, True),
    ((200, b"[]"), BadAnswer, True, True),
    ((200, {"isValid": "yes", "success": "yes"}), BadAnswer, True, True),
    ((200, b"{" * 100_000), BadAnswer, True, True),
    ((302, {}), BadAnswer, True, False),
    ((400, {"error": "invalid_request"}), Denied, False, False),
    ((401, {"error": "unauthorized"}), Denied, False, False),
    ((403, {"error": "forbidden"}), Denied, False, False),
    ((404, b"not here"), Denied, False, False),
    ((408, {"error": "request_timeout"}), Denied, False, True),
    ((409, {"error": "idempotency_conflict"}), Denied, False, False),
    ((429, {"error": "too_many_requests"}), Unavailable, False, True),
    ((500, {"error": "internal_error"}), Unavailable, True, True),
    ((503, {"error": "queue_full"}), Unavailable, True, True),
]


@pytest.mark.parametrize(("answer", "kind", "may_happen", "retryable"), FAULTS, ids=str)
async def test_what_is_no_answer_is_a_fault_that_says_whether_the_payment_may_happen(
    desk: Desk, new_client: NewClient, answer: tuple[int, Any], kind: type[FacilitatorFault], *, may_happen: bool, retryable: bool
) -> None:
    client = new_client()
    desk.answers = [answer]
    with pytest.raises(kind) as verifying:
        await client.verify(PAYMENT, TERMS)
    assert verifying.value.payment_may_happen is False
    with pytest.raises(kind) as settling:
        await client.settle(PAYMENT, TERMS)
    assert (settling.value.payment_may_happen, settling.value.retryable) == (may_happen, retryable)
    assert settling.value.status == answer[0]


async def test_a_request_that_never_left_moves_no_money(new_client: NewClient) -> None:
    with pytest.raises(Unreachable) as fault:
        await new_client(f"http://127.0.0.1:{unused_port()}").settle(PAYMENT, TERMS)
    assert fault.value.payment_may_happen is False


async def test_what_an_earlier_attempt_may_have_done_is_not_forgotten(desk: Desk, new_client: NewClient) -> None:
    desk.answers = [(0, None), (401, {"error": "unauthorized"})]
    with pytest.raises(Denied) as fault:
        await new_client(settings=Settings(retry_first_s=0.001)).settle(PAYMENT, TERMS)
    assert fault.value.payment_may_happen is True


async def test_a_deadline_is_kept(desk: Desk, new_client: NewClient) -> None:
    desk.answers = [(503, {})]
    desk.headers = {"Retry-After": "3600"}
    with pytest.raises(Unavailable) as fault:
        await new_client(settings=Settings(settle_timeout_s=30.0, retry_max_s=60.0)).settle(PAYMENT, TERMS)
    assert fault.value.retry_after_s == 3600
    assert len(desk.seen) == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((400, {"error": "x", "isValid": False, "invalidReason": "invalid_payload"}), "invalid_payload"),
        ((200, {"isValid": False}), None),
    ],
)
async def test_a_refusal_is_a_value_whatever_its_status(
    desk: Desk, new_client: NewClient, answer: tuple[int, Any], reason: str | None
) -> None:
    desk.answers = [answer]
    verified = await new_client().verify(PAYMENT, TERMS)
    assert (verified.is_valid, verified.invalid_reason) == (False, reason)


async def test_a_success_has_its_proof_and_goes_on_as_it_came(desk: Desk, new_client: NewClient) -> None:
    desk.answers = [(200, SUCCESS)]
    settled = await new_client().settle(PAYMENT, TERMS)
    assert (settled.success, settled.pending, settled.transaction, settled.reason) == (True, False, TX_HASH, None)
    assert (settled.proof.log_index, settled.proof.settlement_id) == (3, "s")
    assert settled.raw == SUCCESS


async def test_another_facilitators_extra_data_does_no_harm(desk: Desk, new_client: NewClient) -> None:
    desk.answers = [(200, SUCCESS | {"extra": {"logIndex": "none"}, "more": 1})]
    assert (await new_client().settle(PAYMENT, TERMS)).success


@pytest.mark.parametrize("status", [200, 500])
async def test_a_pending_settlement_is_asked_about_once_more_with_the_same_key(desk: Desk, new_client: NewClient, status: int) -> None:
    desk.answers = [(status, PENDING), (200, SUCCESS)]
    assert (await new_client().settle(PAYMENT, TERMS)).success
    first, second = (request.headers["Idempotency-Key"] for request in desk.seen)
    assert first == second


async def test_what_stays_pending_is_a_value_with_its_hash(desk: Desk, new_client: NewClient) -> None:
    desk.answers = [(200, PENDING), (500, {})]
    settled = await new_client().settle(PAYMENT, TERMS)
    assert (settled.pending, settled.transaction, len(desk.seen)) == (True, TX_HASH, 2)


async def test_a_key_given_by_the_caller_is_used_and_others_are_random(desk: Desk, new_client: NewClient) -> None:
    desk.answers = [(200, SUCCESS)]
    client = new_client()
    await client.settle(PAYMENT, TERMS, idempotency_key="order-17")
    await client.settle(PAYMENT, TERMS)
    await client.settle(PAYMENT, TERMS)
    given, *made = (request.headers["Idempotency-Key"] for request in desk.seen)
    assert given == "order-17"
    assert len(set(made)) == 2


async def test_connections_are_kept_alive(desk: Desk, new_client: NewClient) -> None:
    desk.answers = [(200, {"isValid": True})]
    client = new_client()
    for _ in range(5):
        await client.verify(PAYMENT, TERMS)
    assert len({id(request.protocol) for request in desk.seen}) == 1


async def test_keys_and_headers_open_the_facilitator(desk: Desk, new_client: NewClient) -> None:
    desk.answers = [(200, {"isValid": True})]
    asked: list[tuple[str, str]] = []

    async def sign(method: str, url: str) -> Mapping[str, str]:
        asked.append((method, url.removeprefix(desk.url)))
        return {"Authorization": f"Bearer token-{len(asked)}"}

    await new_client(api_key="k").verify(PAYMENT, TERMS)
    client = new_client(auth=sign)
    await client.verify(PAYMENT, TERMS)
    await client.verify(PAYMENT, TERMS)
    assert [request.headers["Authorization"] for request in desk.seen] == ["Bearer k", "Bearer token-1", "Bearer token-2"]
    assert asked in ([("POST", "verify"), ("POST", "verify")], [("POST", "/verify"), ("POST", "/verify")])


@pytest.mark.parametrize("error", [ValueError("no key"), OSError("no disk")], ids=str)
async def test_headers_that_cannot_be_made_move_no_money(desk: Desk, new_client: NewClient, error: Exception) -> None:
    def broken(_method: str, _url: str) -> Mapping[str, str]:
        raise error

    with pytest.raises(Denied) as fault:
        await new_client(auth=broken).settle(PAYMENT, TERMS)
    assert (fault.value.kind, fault.value.payment_may_happen, desk.seen) == ("auth_failed", False, [])


async def test_supported_and_lookup_are_read(desk: Desk, new_client: NewClient) -> None:
    kind = {"x402Version": 2, "scheme": "exact", "network": "eip155:84532"}
    desk.answers = [(200, {"kinds": [kind]}), (404, {"error": "not_found"}), (200, _settlement("finalized"))]
    client = new_client()
    supported = await client.supported()
    assert [(each.x402_version, each.network) for each in supported.kinds] == [(2, "eip155:84532")]
    identity = {"network": "eip155:84532", "asset": "0xa", "payer": "0xb", "auth_nonce": "0xc"}
    assert await client.lookup(**identity) is None
    found = await client.lookup(**identity)
    assert found is not None
    assert (found.state, found.transaction) == ("finalized", TX_HASH)
    assert desk.seen[-1].query_string == "network=eip155:84532&asset=0xa&payer=0xb&nonce=0xc"


def _settlement(state: str) -> dict[str, Any]:
    return {
        "id": "s", "state": state, "network": "eip155:84532", "asset": "0xa", "payer": "0xb", "payTo": "0xd", "amount": "5",
        "transaction": TX_HASH, "logIndex": 0, "answered": True, "history": [],
    }  # fmt: skip


async def test_every_exchange_is_told(desk: Desk, new_client: NewClient) -> None:
    told: list[Exchange] = []
    desk.answers = [(0, None), (200, SUCCESS)]
    await new_client(settings=Settings(retry_first_s=0.001), observe=told.append).settle(PAYMENT, TERMS)
    assert [(each.route, each.status, each.answer) for each in told] == [("/settle", 0, {}), ("/settle", 200, SUCCESS)]
    assert told[0].question == {"x402Version": 2, "paymentPayload": PAYMENT, "paymentRequirements": TERMS}


def test_a_client_needs_an_address_and_one_way_in() -> None:
    with pytest.raises(ValueError, match="URL"):
        FacilitatorClient("facilitator.example")
    with pytest.raises(ValueError, match="got both"):
        FacilitatorClient("http://127.0.0.1", api_key="k", auth=lambda _method, _url: {})
