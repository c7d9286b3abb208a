"""The transport against endpoints that misbehave: a small server that does what the test says, over real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from facilitator.chain.evm import EvmClient
from facilitator.chain.rpc import NodeError, RpcCall, RpcClient, RpcError, Settings
from facilitator.clock import SystemClock
from facilitator.errors import ChainFault
from facilitator.units import Network, TxHash
from tests.fixtures.waiting import PATIENCE_S

Behaviour = Callable[[web.Request, Any], Awaitable[web.StreamResponse]]
SECRET = "s3cret"
NETWORK = Network("eip155:84532")
FAST = Settings(request_timeout_s=PATIENCE_S, response_bytes_max=10_000, failures_max=2, rest_s=10.0)


class Clock(SystemClock):
    """Real time, and as much more as the test adds to the monotonic clock."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_s


class Endpoint:
    """A node that answers every call with its method's name, until told otherwise."""

    def __init__(self) -> None:
        self.behaviour: Behaviour = well
        self.requests: list[Any] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://user:{SECRET}@127.0.0.1:{self.port}/v2/{SECRET}?key={SECRET}"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        self.requests.append(body)
        return await self.behaviour(request, body)


def reply(call: Any, **changes: Any) -> Any:
    return {"jsonrpc": "2.0", "id": call["id"], "result": call["method"]} | changes


async def well(_request: web.Request, body: Any) -> web.StreamResponse:
    return web.json_response([reply(call) for call in body] if isinstance(body, list) else reply(body))


async def backwards(_request: web.Request, body: Any) -> web.StreamResponse:
    return web.json_response([reply(call) for call in reversed(body)])


async def hang(_request: web.Request, _body: Any) -> web.StreamResponse:
    await asyncio.get_running_loop().create_future()
    return web.Response()


async def disconnect(request: web.Request, _body: Any) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def truncate(request: web.Request, _body: Any) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"jsonrpc":"2.0","id":0,"res')
    assert request.transport is not None
    request.transport.close()
    return response


async def endless(request: web.Request, _body: Any) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(100):
        await response.write(b" " * 1000)
    return response


def text(body: str, status: int = 200) -> Behaviour:
    async def behave(_request: web.Request, _body: Any) -> web.StreamResponse:
        return web.Response(text=body, status=status, headers={"Location": "http://127.0.0.1:1/"} if status == 307 else {})

    return behave


def error(code: int, message: str, status: int = 200, **more: Any) -> Behaviour:
    """Every call answered with this error."""

    async def behave(_request: web.Request, body: Any) -> web.StreamResponse:
        wrong = {"code": code, "message": message} | more
        calls = body if isinstance(body, list) else [body]
        replies = [{"jsonrpc": "2.0", "id": call["id"], "error": wrong} for call in calls]
        return web.json_response(replies if isinstance(body, list) else replies[0], status=status)

    return behave


def changed(**changes: Any) -> Behaviour:
    """Every reply with members changed, or left out by `...`."""

    async def behave(_request: web.Request, body: Any) -> web.StreamResponse:
        replies = [{key: value for key, value in reply(call, **changes).items() if value is not ...} for call in body]
        return web.json_response(replies)

    return behave


BROKEN: list[tuple[Behaviour, str]] = [
    (hang, "timeout"),
    (disconnect, "disconnected"),
    (truncate, "unreachable"),
    (endless, "too_large"),
    (text("<html>busy</html>"), "bad_answer"),
    (text(""), "bad_answer"),
    (text("null"), "bad_answer"),
    (text("[]"), "bad_answer"),
    (text("{}"), "bad_answer"),
    (text("[1,2]"), "bad_answer"),
    (text('[{"jsonrpc":"2.0","id":0,"result":"0x"}'), "bad_answer"),
    (text("no", 500), "http_status"),
    (text("no", 502), "http_status"),
    (text("no", 307), "http_status"),
    (text("no", 401), "http_status"),
    (text("no", 429), "rate_limited"),
    (text('{"jsonrpc":"2.0","id":null,"error":{"code":-32005,"message":"limit exceeded"}}'), "rate_limited"),
    (text('{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"batch too large"}}', 400), "batch_too_large"),
    (changed(id=7), "bad_answer"),
    (changed(id=None), "bad_answer"),
    (changed(id=0), "bad_answer"),
    (changed(result=...), "bad_answer"),
    (changed(error="no"), "bad_answer"),
]
CALLS = (RpcCall("one"), RpcCall("two"))


@pytest_asyncio.fixture
async def endpoints() -> AsyncIterator[tuple[Endpoint, Endpoint]]:
    started = (Endpoint(), Endpoint())
    runners = []
    for endpoint in started:
        app = web.Application()
        app.router.add_post("/{tail:.*}", endpoint.handle)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        endpoint.port = runner.addresses[0][1]
        runners.append(runner)
    yield started
    for runner in runners:
        await runner.cleanup()


@pytest_asyncio.fixture
async def clock() -> Clock:
    return Clock()


@pytest_asyncio.fixture
async def one(endpoints: tuple[Endpoint, Endpoint], clock: Clock) -> AsyncIterator[RpcClient]:
    async with RpcClient([endpoints[0].url], clock, FAST) as client:
        yield client


@pytest_asyncio.fixture
async def both(endpoints: tuple[Endpoint, Endpoint], clock: Clock) -> AsyncIterator[RpcClient]:
    async with RpcClient([endpoint.url for endpoint in endpoints], clock, FAST) as client:
        yield client


def give_up_after(client: RpcClient, request_timeout_s: float) -> None:
    """For an endpoint that hangs; the next one has as long to answer."""
    client.settings = replace(client.settings, request_timeout_s=request_timeout_s)


def results(replies: list[Any]) -> list[Any]:
    return [answer if isinstance(answer, RpcError) else json.loads(bytes(answer)) for answer in replies]


async def test_a_batch_is_one_http_request(one: RpcClient, endpoints: tuple[Endpoint, Endpoint]) -> None:
    assert results(await one.batch(CALLS, one.deadline_in(PATIENCE_S))) == ["one", "two"]
    assert one.requests_sent == len(endpoints[0].requests) == 1
    assert endpoints[0].requests[0] == [
        {"jsonrpc": "2.0", "id": 0, "method": "one", "params": []},
        {"jsonrpc": "2.0", "id": 1, "method": "two", "params": []},
    ]


async def test_a_batch_may_be_answered_in_any_order(one: RpcClient, endpoints: tuple[Endpoint, Endpoint]) -> None:
    endpoints[0].behaviour = backwards
    assert results(await one.batch(CALLS, one.deadline_in(PATIENCE_S))) == ["one", "two"]


async def test_null_is_a_result_and_no_absence_of_one(one: RpcClient, endpoints: tuple[Endpoint, Endpoint]) -> None:
    endpoints[0].behaviour = changed(result=None)
    assert results(await one.batch(CALLS, one.deadline_in(PATIENCE_S))) == [None, None]


@pytest.mark.parametrize(("behaviour", "kind"), BROKEN)
async def test_what_is_no_answer_is_a_fault_that_shows_no_url(
    one: RpcClient, endpoints: tuple[Endpoint, Endpoint], behaviour: Behaviour, kind: str
) -> None:
    endpoints[0].behaviour = behaviour
    if behaviour is hang:
        give_up_after(one, 0.1)
    with pytest.raises(ChainFault) as caught:
        await one.batch(CALLS, one.deadline_in(PATIENCE_S))
    fault = caught.value
    assert fault.kind == kind
    assert fault.retryable
    assert fault.__cause__ is None
    assert SECRET not in str(fault) + repr(fault) + repr(fault.evidence)


@pytest.mark.parametrize(("behaviour", "kind"), BROKEN)
async def test_a_read_goes_to_the_next_endpoint_when_one_does_not_answer(
    both: RpcClient, endpoints: tuple[Endpoint, Endpoint], behaviour: Behaviour, kind: str
) -> None:
    endpoints[0].behaviour = behaviour
    if behaviour is hang:
        give_up_after(both, 2.0)
    assert results(await both.batch(CALLS, both.deadline_in(PATIENCE_S))) == ["one", "two"], kind
    assert [len(endpoint.requests) for endpoint in endpoints] == [1, 1]


async def test_an_endpoint_that_nobody_listens_on_is_passed_over(endpoints: tuple[Endpoint, Endpoint], clock: Clock) -> None:
    async with RpcClient(["http://127.0.0.1:1", endpoints[0].url], clock, FAST) as client:
        assert results(await client.batch(CALLS, client.deadline_in(PATIENCE_S))) == ["one", "two"]
    async with RpcClient(["http://127.0.0.1:1"], clock, FAST) as client:
        with pytest.raises(ChainFault, match="cannot be reached") as caught:
            await client.batch(CALLS, client.deadline_in(PATIENCE_S))
        assert caught.value.kind == "unreachable"


async def test_a_closed_connection_is_tried_once_more_when_there_is_no_other_endpoint(
    one: RpcClient, endpoints: tuple[Endpoint, Endpoint]
) -> None:
    async def once(request: web.Request, body: Any) -> web.StreamResponse:
        endpoints[0].behaviour = well
        return await disconnect(request, body)

    endpoints[0].behaviour = once
    assert results(await one.batch(CALLS, one.deadline_in(PATIENCE_S))) == ["one", "two"]
    assert one.requests_sent == 2


async def test_the_deadline_is_kept_whatever_the_endpoints_do(both: RpcClient, endpoints: tuple[Endpoint, Endpoint]) -> None:
    endpoints[0].behaviour = endpoints[1].behaviour = hang
    with pytest.raises(ChainFault) as caught:
        await both.batch(CALLS, both.deadline_in(0.15))
    assert caught.value.kind == "timeout"
    assert both.requests_sent == 1


async def test_no_request_is_sent_after_the_deadline(one: RpcClient) -> None:
    with pytest.raises(ChainFault) as caught:
        await one.batch(CALLS, one.deadline_in(-1))
    assert caught.value.kind == "timeout"
    assert one.requests_sent == 0


async def test_an_endpoint_that_keeps_failing_rests_is_tried_once_and_comes_back(
    both: RpcClient, endpoints: tuple[Endpoint, Endpoint], clock: Clock
) -> None:
    first, second = endpoints
    first.behaviour = text("no", 503)

    async def ask() -> tuple[int, int]:
        before = len(first.requests), len(second.requests)
        await both.batch(CALLS, both.deadline_in(PATIENCE_S))
        return len(first.requests) - before[0], len(second.requests) - before[1]

    assert [await ask() for _ in range(4)] == [(1, 1), (1, 1), (0, 1), (0, 1)]
    clock.ahead_s += 11
    assert await ask() == (1, 1)
    assert await ask() == (0, 1)
    clock.ahead_s += 11
    assert await ask() == (0, 1), "the second rest is twice as long"
    clock.ahead_s += 10
    first.behaviour = well
    assert await ask() == (1, 0)
    assert await ask() == (1, 0)


async def test_a_rate_limit_sends_an_endpoint_to_rest_at_once(both: RpcClient, endpoints: tuple[Endpoint, Endpoint]) -> None:
    first, second = endpoints
    for limited in (text("slow down", 429), error(-32005, "limit exceeded")):
        first.requests.clear()
        first.behaviour = limited
        await both.batch(CALLS, both.deadline_in(PATIENCE_S))
        await both.batch(CALLS, both.deadline_in(PATIENCE_S))
        assert len(first.requests) <= 1
    assert len(second.requests) == 4


async def test_resting_endpoints_are_asked_when_there_is_no_other(one: RpcClient, endpoints: tuple[Endpoint, Endpoint]) -> None:
    endpoints[0].behaviour = text("no", 503)
    for _ in range(4):
        with pytest.raises(ChainFault):
            await one.batch(CALLS, one.deadline_in(PATIENCE_S))
    endpoints[0].behaviour = well
    assert results(await one.batch(CALLS, one.deadline_in(PATIENCE_S))) == ["one", "two"]


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        (error(-32000, "header not found"), NodeError.STATE_UNAVAILABLE),
        (error(-32603, "Internal error"), NodeError.INTERNAL),
        (error(-32005, "limit exceeded"), NodeError.RATE_LIMITED),
    ],
)
async def test_an_error_that_is_the_endpoints_own_is_asked_elsewhere_and_told_when_all_have_it(
    both: RpcClient, endpoints: tuple[Endpoint, Endpoint], behaviour: Behaviour, kind: NodeError
) -> None:
    endpoints[0].behaviour = behaviour
    assert results(await both.batch(CALLS, both.deadline_in(PATIENCE_S))) == ["one", "two"]
    endpoints[1].behaviour = behaviour
    told = await both.batch(CALLS, both.deadline_in(PATIENCE_S))
    assert all(isinstance(answer, RpcError) and answer.kind is kind for answer in told)


async def test_an_error_that_is_an_answer_is_not_asked_elsewhere(both: RpcClient, endpoints: tuple[Endpoint, Endpoint]) -> None:
    endpoints[0].behaviour = error(3, "execution reverted", data="0x08c379a0")
    told = await both.batch(CALLS, both.deadline_in(PATIENCE_S))
    assert told[0] == RpcError(kind=NodeError.REVERTED, code=3, message="execution reverted", data=bytes.fromhex("08c379a0"))
    assert endpoints[1].requests == []
    with pytest.raises(ChainFault) as caught:
        await both.call("eth_call", (), both.deadline_in(PATIENCE_S))
    assert caught.value.kind == "reverted"


@pytest.mark.parametrize("data", ["0xzz", 7, None, {"reason": "no"}])
async def test_revert_data_that_is_no_hex_is_none(one: RpcClient, endpoints: tuple[Endpoint, Endpoint], data: Any) -> None:
    endpoints[0].behaviour = error(3, "execution reverted", data=data)
    (told,) = await one.batch(CALLS[:1], one.deadline_in(PATIENCE_S))
    assert isinstance(told, RpcError)
    assert told.data is None


async def test_every_request_is_observed_with_its_outcome(endpoints: tuple[Endpoint, Endpoint], clock: Clock) -> None:
    seen: list[tuple[str, str, str, float]] = []
    async with RpcClient([endpoints[0].url], clock, FAST, lambda *observed: seen.append(observed)) as client:
        await client.call("eth_chainId", (), client.deadline_in(PATIENCE_S))
        await client.batch(CALLS, client.deadline_in(PATIENCE_S))
        endpoints[0].behaviour = text("no", 503)
        with pytest.raises(ChainFault):
            await client.batch(CALLS, client.deadline_in(PATIENCE_S))
        endpoints[0].behaviour = error(-32000, "nonce too low")
        await client.batch(CALLS[:1], client.deadline_in(PATIENCE_S))
    assert [(method, outcome) for _, method, outcome, _ in seen] == [
        ("eth_chainId", "ok"),
        ("batch", "ok"),
        ("batch", "http_status"),
        ("one", "nonce_too_low"),
    ]
    assert all(0 <= seconds < PATIENCE_S for *_, seconds in seen)
    assert {endpoint for endpoint, *_ in seen} == set(client.endpoints)


# ---- sends


@pytest_asyncio.fixture
async def evm(both: RpcClient) -> EvmClient:
    return EvmClient(NETWORK, both)


async def test_a_send_goes_to_every_endpoint_and_returns_with_the_first_that_has_it(
    evm: EvmClient, endpoints: tuple[Endpoint, Endpoint]
) -> None:
    arrived = asyncio.Event()

    async def late(request: web.Request, body: Any) -> web.StreamResponse:
        arrived.set()
        return await hang(request, body)

    endpoints[0].behaviour = late
    outcome = await evm.send_raw(b"\x02", evm.deadline_in(PATIENCE_S))
    assert outcome.in_pool
    assert outcome.error is None
    await arrived.wait()
    await evm.close()


@pytest.mark.parametrize("other", [hang, text("no", 429), text("garbage"), disconnect, error(-32000, "nonce too low"), well])
async def test_one_endpoint_that_knows_the_transaction_is_enough(
    evm: EvmClient, endpoints: tuple[Endpoint, Endpoint], other: Behaviour
) -> None:
    endpoints[0].behaviour, endpoints[1].behaviour = other, error(-32000, "already known")
    assert (await evm.send_raw(b"\x02", evm.deadline_in(PATIENCE_S))).in_pool


@pytest.mark.parametrize(
    "other", [hang, disconnect, truncate, text("no", 502), text("no", 429), error(-32603, "Internal error"), error(-32000, "who knows")]
)
async def test_a_refusal_by_one_endpoint_is_doubt_while_another_may_hold_the_transaction(
    evm: EvmClient, endpoints: tuple[Endpoint, Endpoint], other: Behaviour
) -> None:
    endpoints[0].behaviour, endpoints[1].behaviour = error(-32000, "nonce too low"), other
    if other is hang:
        give_up_after(evm.rpc, 0.2)
    with pytest.raises(ChainFault):
        await evm.send_raw(b"\x02", evm.deadline_in(PATIENCE_S))


async def test_a_refusal_by_every_endpoint_is_an_outcome(evm: EvmClient, endpoints: tuple[Endpoint, Endpoint]) -> None:
    endpoints[0].behaviour = endpoints[1].behaviour = error(-32000, "replacement transaction underpriced")
    outcome = await evm.send_raw(b"\x02", evm.deadline_in(PATIENCE_S))
    assert outcome.error is NodeError.REPLACEMENT_UNDERPRICED
    assert not outcome.in_pool
    assert outcome.message == "replacement transaction underpriced"


# ---- answers of the wrong shape


@pytest.mark.parametrize("result", [None, 7, "0x", "12", [], {}, {"number": "0x1"}, "0xzz"])
async def test_a_result_of_another_shape_is_a_fault(evm: EvmClient, endpoints: tuple[Endpoint, Endpoint], result: Any) -> None:
    async def behave(_request: web.Request, body: Any) -> web.StreamResponse:
        calls = body if isinstance(body, list) else [body]
        replies = [reply(call, result=result) for call in calls]
        return web.json_response(replies if isinstance(body, list) else replies[0])

    endpoints[0].behaviour = endpoints[1].behaviour = behave
    reads = [
        evm.head(evm.deadline_in(PATIENCE_S)),
        evm.connect(evm.deadline_in(PATIENCE_S)),
        evm.answer((), evm.deadline_in(PATIENCE_S)),
        evm.chain_id(evm.deadline_in(PATIENCE_S)),
    ]
    for read in reads:
        with pytest.raises(ChainFault):
            await read


async def test_a_receipt_that_cannot_be_read_is_a_fault_and_no_absence(evm: EvmClient, endpoints: tuple[Endpoint, Endpoint]) -> None:
    endpoints[0].behaviour = endpoints[1].behaviour = error(-32603, "Internal error")
    with pytest.raises(ChainFault):
        await evm.receipts([TxHash("0x" + "12" * 32)], evm.deadline_in(PATIENCE_S))


async def test_an_endpoint_far_behind_is_asked_after_the_others_and_is_no_witness(
    both: RpcClient, endpoints: tuple[Endpoint, Endpoint]
) -> None:
    first, second = endpoints

    async def ask() -> tuple[int, int]:
        first.requests.clear()
        second.requests.clear()
        await both.batch(CALLS, both.deadline_in(PATIENCE_S))
        return len(first.requests), len(second.requests)

    both.note_heights([100, 103])
    assert await ask() == (1, 0), "a few blocks are no lag"
    assert [view.endpoints for view in both.witnesses()] == [both.endpoints[:1], both.endpoints[1:]]
    both.note_heights([100, 104])
    assert await ask() == (0, 1)
    assert [view.endpoints for view in both.witnesses()] == [both.endpoints[1:]]
    second.behaviour = text("no", 503)
    assert await ask() == (1, 1), "better behind than not at all"
    both.note_heights([None, 200])
    assert both.witnesses()[0].endpoints == both.endpoints[1:], "an endpoint that does not say keeps its standing"
    second.behaviour = well
    both.note_heights([200, 200])
    assert await ask() == (1, 0)


async def test_an_endpoint_that_rests_is_no_witness_unless_all_do(both: RpcClient, endpoints: tuple[Endpoint, Endpoint]) -> None:
    endpoints[0].behaviour = text("no", 503)
    for _ in range(FAST.failures_max):
        await both.batch(CALLS, both.deadline_in(PATIENCE_S))
    assert [view.endpoints for view in both.witnesses()] == [both.endpoints[1:]]
    endpoints[1].behaviour = text("no", 503)
    for _ in range(FAST.failures_max):
        with pytest.raises(ChainFault):
            await both.batch(CALLS, both.deadline_in(PATIENCE_S))
    assert len(both.witnesses()) == 2


async def test_a_client_of_one_endpoint_shares_health_connections_and_counts(both: RpcClient, endpoints: tuple[Endpoint, Endpoint]) -> None:
    _, second = both.alone()
    endpoints[1].behaviour = text("no", 503)
    for _ in range(FAST.failures_max):
        with pytest.raises(ChainFault):
            await second.batch(CALLS, second.deadline_in(PATIENCE_S))
    assert endpoints[0].requests == []
    assert both.requests_sent == second.requests_sent == FAST.failures_max
    assert [view.endpoints for view in both.witnesses()] == [both.endpoints[:1]]
