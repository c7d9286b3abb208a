"""What happens around every route, over a real port: statuses, ids, limits, metrics; the engine is a stand-in."""

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, cast

import aiohttp
import pytest
import pytest_asyncio

from facilitator.api.access import Access
from facilitator.api.connections import _peer
from facilitator.api.delivery import Deliveries
from facilitator.api.desk import Desk
from facilitator.api.server import METRICS_ROUTE, ROUTES, Server, beat, routes_for
from facilitator.api.settings import AccessSettings, Settings
from facilitator.clock import SystemClock
from facilitator.errors import ChainFault, ConfigFault, OverloadFault, StoreFault
from facilitator.metrics import CONNECTIONS_CLOSED, CONNECTIONS_REFUSED, REQUESTS, REQUESTS_SHED
from facilitator.protocol.messages import SettleResult, Supported, SupportedKind, VerifyResult
from facilitator.settlement.admission import SettleAnswer, Ticket
from facilitator.settlement.engine import Engine
from facilitator.units import Address, Listen, Network, TxHash
from tests.fixtures.house import eventually
from tests.fixtures.vectors import v2_request
from tests.fixtures.waiting import PATIENCE_S

TX_HASH = TxHash("0x" + "ab" * 32)
PAYER = Address("0x" + "11" * 20)
SETTINGS = Settings(
    listen=Listen("127.0.0.1", 0),
    body_timeout_s=PATIENCE_S,
    header_timeout_s=PATIENCE_S,
    connections_max=20,
    request_timeout_s=PATIENCE_S,
)


class StandIn:
    """An engine that does what the test says."""

    def __init__(self) -> None:
        self.raises: BaseException | None = None
        self.delay_s = 0.0
        self.gate: asyncio.Event | None = None
        self._entered = asyncio.Semaphore(0)
        self.delivered_tickets: list[Ticket] = []
        self.undelivered_tickets: list[Ticket] = []
        self.cancelled = 0
        self.ticket: Ticket | None = None

    async def entered(self, times: int) -> None:
        """Wait until it was asked that often."""
        for _ in range(times):
            await self._entered.acquire()

    async def _act(self) -> None:
        self._entered.release()
        try:
            await asyncio.sleep(self.delay_s)
            if self.gate is not None:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.raises is not None:
            raise self.raises

    async def verify(self, *_: object) -> VerifyResult:
        await self._act()
        return VerifyResult(payer=PAYER)

    async def settle(self, *_: object) -> SettleAnswer:
        await self._act()
        return SettleAnswer(result=SettleResult(payer=PAYER, tx_hash=TX_HASH, log_index=1), ticket=self.ticket)

    async def delivered(self, ticket: Ticket) -> None:
        self.delivered_tickets.append(ticket)

    async def undelivered(self, ticket: Ticket) -> None:
        self.undelivered_tickets.append(ticket)


class Stage:
    """A server on a free port and what it stands on."""

    def __init__(self, settings: Settings) -> None:
        clock = SystemClock()
        self.engine = StandIn()
        self.gates = {"schema_known": True, "not_draining": True}
        self.desk = Desk(
            settings=settings,
            clock=clock,
            deliveries=Deliveries(clock, 1.0),
            supported=lambda: Supported(kinds=(SupportedKind(scheme="exact", network=Network("eip155:84532")),), extensions=(), signers={}),
            gates=lambda: self.gates,
            engine=cast("Engine", self.engine),
        )
        self.server = Server(self.desk, Access(AccessSettings(mode="open"), clock), settings.listen, routes_for(settings.listen))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=PATIENCE_S)


@pytest_asyncio.fixture
async def start() -> AsyncIterator[Callable[..., Any]]:
    stages: list[Stage] = []

    async def begin(**changes: Any) -> Stage:
        stage = Stage(replace(SETTINGS, **changes))
        await stage.server.start()
        stages.append(stage)
        return stage

    yield begin
    for stage in stages:
        await stage.server.stop()
        await stage.desk.deliveries.finish()


@pytest_asyncio.fixture
async def stage(start: Callable[..., Any]) -> Stage:
    made: Stage = await start()
    return made


@pytest_asyncio.fixture
async def client(stage: Stage) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(stage.url) as session:
        yield session


async def problem(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    body: dict[str, Any] = await answer.json()
    assert {"error", "message", "requestId"} <= body.keys()
    assert body["requestId"] == answer.headers["X-Request-Id"]
    return body


async def test_probes(stage: Stage, client: aiohttp.ClientSession) -> None:
    async with client.get("/healthz") as answer:
        assert answer.status == 503, "no heartbeat yet"
    heart = asyncio.create_task(beat(stage.desk))
    await asyncio.sleep(0)
    async with client.get("/healthz") as answer:
        told = await answer.json()
        assert (answer.status, told["status"], told["lagSeconds"] >= 0) == (200, "ok", True)
    heart.cancel()
    async with client.get("/readyz") as answer:
        assert (answer.status, await answer.json()) == (200, {"ready": True, "gates": stage.gates})
    stage.gates["not_draining"] = False
    async with client.get("/readyz") as answer:
        assert (answer.status, (await answer.json())["gates"]["not_draining"]) == (503, False)


async def test_a_payment_is_answered_in_the_protocols_own_form(client: aiohttp.ClientSession) -> None:
    async with client.post("/verify", json=v2_request()) as answer:
        assert (answer.status, (await answer.json())["isValid"]) == (200, True)
    async with client.post("/settle", json=v2_request(), headers={"Content-Type": "application/json; charset=UTF-8"}) as answer:
        settled = await answer.json()
        assert (answer.status, settled["success"], settled["transaction"], settled["network"]) == (200, True, TX_HASH, "eip155:84532")
        assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("more", [b"", b"Connection: close\r\n", b"Expect: 100-continue\r\n"])
@pytest.mark.parametrize("target", [b"/verify", b"/verify?x=1", b"http://x/verify", b"/%76erify"])
async def test_the_short_way_to_a_route_and_the_librarys_lead_to_the_same_answer(stage: Stage, target: bytes, more: bytes) -> None:
    body = json.dumps(v2_request()).encode()
    head = b"HTTP/1.1\r\nHost: x\r\nX-Request-Id: r1\r\nContent-Type: application/json\r\n"

    def ask() -> bytes:
        with stage.connect() as caller:
            caller.sendall(b"POST " + target + b" " + head + more + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            answer = b""
            while not answer.endswith(b"}"):
                answer += caller.recv(65536)
            return answer

    counted = REQUESTS.labels("/verify", "200")._value.get()
    answer = (await asyncio.to_thread(ask)).removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    lines = answer.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    told = [line for line in lines if not line.startswith(("Date: ", "Content-Length: ", "Connection: "))]
    assert sorted(told) == [
        "Cache-Control: no-store",
        "Content-Type: application/json",
        "HTTP/1.1 200 OK",
        "Server: facilitator",
        "X-Content-Type-Options: nosniff",
        "X-Request-Id: r1",
    ]
    assert ("Connection: close" in lines) == (b"close" in more)
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["isValid"] is True
    assert REQUESTS.labels("/verify", "200")._value.get() == counted + 1


async def test_a_body_without_a_content_type_is_taken_for_json(client: aiohttp.ClientSession) -> None:
    body = json.dumps(v2_request()).encode()
    async with client.post("/verify", data=body, skip_auto_headers=["Content-Type"]) as answer:
        assert answer.status == 200


async def test_supported_takes_a_content_type_and_no_body(client: aiohttp.ClientSession) -> None:
    async with client.get("/supported", headers={"Content-Type": "application/json"}) as answer:
        assert answer.status == 200
        assert [kind["network"] for kind in (await answer.json())["kinds"]] == ["eip155:84532", "base-sepolia"]


async def test_the_request_id_is_taken_when_it_is_one_and_made_when_it_is_not(client: aiohttp.ClientSession) -> None:
    async with client.get("/supported", headers={"X-Request-Id": "order-17.a:b_c"}) as answer:
        assert answer.headers["X-Request-Id"] == "order-17.a:b_c"
    for offered in ("", "a b", "x" * 65, '"><script>'):
        async with client.get("/supported", headers={"X-Request-Id": offered}) as answer:
            assert answer.headers["X-Request-Id"] != offered
            assert len(answer.headers["X-Request-Id"]) == 32


async def test_unknown_routes_and_wrong_methods(client: aiohttp.ClientSession) -> None:
    async with client.get("/nope") as answer:
        assert (answer.status, (await problem(answer))["error"]) == (404, "not_found")
    async with client.get("/verify") as answer:
        assert (answer.status, (await problem(answer))["error"], answer.headers["Allow"]) == (405, "method_not_allowed", "POST")
    async with client.post("/settle/", json={}) as answer:
        assert answer.status == 404, "no redirect, which would turn POST into GET"


async def test_malformed_bodies_carry_what_old_clients_look_for(client: aiohttp.ClientSession) -> None:
    async with client.post("/verify", json={}) as answer:
        told = await problem(answer)
        assert (answer.status, told["isValid"], told["invalidReason"]) == (400, False, "invalid_payload")
        assert told["message"] == "Missing paymentPayload or paymentRequirements"
    async with client.post("/settle", data=b"{", headers={"Content-Type": "application/json"}) as answer:
        told = await problem(answer)
        assert (answer.status, told["success"], told["errorReason"], told["transaction"], told["network"]) == (
            400,
            False,
            "invalid_payload",
            "",
            "",
        )


async def test_other_content_types_and_encodings_are_415(client: aiohttp.ClientSession) -> None:
    body = json.dumps(v2_request()).encode()
    for headers in (
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Encoding": "gzip", "Content-Type": "application/json"},
    ):
        async with client.post("/verify", data=body, headers=headers, skip_auto_headers=["Content-Encoding"]) as answer:
            assert (answer.status, (await problem(answer))["error"]) == (415, "unsupported_media_type"), headers


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_beyond_the_limit_is_413_and_is_not_kept(stage: Stage, *, announced: bool) -> None:
    def send() -> bytes:
        with stage.connect() as caller:
            length = b"Content-Length: 10485760" if announced else b"Transfer-Encoding: chunked"
            caller.sendall(b"POST /verify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + length + b"\r\n\r\n")
            try:
                for _ in range(160):
                    caller.sendall(b" " * 65536 if announced else b"10000\r\n" + b" " * 65536 + b"\r\n")
            except ConnectionError:
                pass
            return caller.recv(65536)

    answer = await asyncio.to_thread(send)
    assert answer.startswith(b"HTTP/1.1 413"), answer[:80]


async def test_a_body_that_does_not_come_is_408(start: Callable[..., Any]) -> None:
    stage: Stage = await start(body_timeout_s=0.4)

    def send() -> bytes:
        with stage.connect() as caller:
            caller.sendall(b"POST /verify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
            return caller.recv(65536)

    assert (await asyncio.to_thread(send)).startswith(b"HTTP/1.1 408")


HEAD_BEGUN = b"GET /supported HTTP/1.1\r\nHost: x\r\n"


def ends(caller: socket.socket) -> bool:
    """Wait until the service closes the connection; whether it did so without a word."""
    with contextlib.suppress(ConnectionResetError):
        return caller.recv(1) == b""
    return True


async def is_served(caller: socket.socket) -> bool:
    """Whether the service answers on this connection."""

    def ask() -> bool:
        with contextlib.suppress(ConnectionError):
            caller.sendall(HEAD_BEGUN + b"\r\n")
            return caller.recv(65536).startswith(b"HTTP/1.1 200")
        return False

    return await asyncio.to_thread(ask)


def closed(why: str) -> float:
    return CONNECTIONS_CLOSED.labels(why)._value.get()


@pytest.mark.parametrize("begun", [b"", HEAD_BEGUN])
async def test_a_connection_that_sends_no_head_is_closed(start: Callable[..., Any], begun: bytes) -> None:
    stage: Stage = await start(header_timeout_s=0.4)
    late = closed("late")
    with stage.connect() as caller:
        caller.sendall(begun)
        assert await asyncio.to_thread(ends, caller)
    assert closed("late") == late + 1


async def test_a_head_that_comes_byte_by_byte_wins_no_time(start: Callable[..., Any]) -> None:
    stage: Stage = await start(header_timeout_s=0.4)

    def drip() -> None:
        with stage.connect() as caller, contextlib.suppress(ConnectionError):
            caller.settimeout(0.05)
            caller.sendall(HEAD_BEGUN)
            while True:
                caller.sendall(b"x")
                with contextlib.suppress(TimeoutError):
                    assert caller.recv(1) == b""
                    return

    late = closed("late")
    await asyncio.to_thread(drip)
    assert closed("late") == late + 1


async def test_a_later_head_has_its_time_from_its_first_byte_and_an_idle_connection_has_more(start: Callable[..., Any]) -> None:
    stage: Stage = await start(header_timeout_s=2.0)
    late = closed("late")
    with stage.connect() as idle, stage.connect() as caller:
        assert await is_served(idle)
        assert await is_served(caller)
        caller.sendall(HEAD_BEGUN)
        assert await asyncio.to_thread(ends, caller)
        assert await is_served(idle)
    assert closed("late") == late + 1


async def test_who_says_nothing_makes_room_for_who_does(start: Callable[..., Any]) -> None:
    stage: Stage = await start()
    crowded = closed("crowded")
    async with aiohttp.ClientSession(stage.url) as session:
        async with session.get("/supported") as answer:
            await answer.read()
        others = [stage.connect() for _ in range(SETTINGS.connections_max + 5)]
        assert all(await asyncio.gather(*(asyncio.to_thread(ends, other) for other in others[:6]))), "the oldest go first"
        async with session.get("/supported") as answer:
            assert answer.status == 200, "who had asked before keeps its connection"
        async with aiohttp.ClientSession(stage.url) as newcomer, newcomer.get("/supported") as answer:
            assert answer.status == 200, "and a newcomer finds room"
        for other in others:
            other.close()
    assert closed("crowded") == crowded + 7


async def test_an_idle_connection_makes_room_when_none_is_silent(start: Callable[..., Any]) -> None:
    stage: Stage = await start(connections_max=1)
    with stage.connect() as idle:
        assert await is_served(idle)
        async with aiohttp.ClientSession(stage.url) as session, session.get("/supported") as answer:
            assert answer.status == 200
        assert await asyncio.to_thread(ends, idle)


async def test_a_connection_at_work_is_never_closed_for_another(start: Callable[..., Any]) -> None:
    stage: Stage = await start(connections_max=2)
    stage.engine.gate = asyncio.Event()
    async with aiohttp.ClientSession(stage.url) as session:
        working = [asyncio.create_task(session.post("/settle", json=v2_request())) for _ in range(2)]
        await stage.engine.entered(2)
        with stage.connect() as third:
            assert await asyncio.to_thread(ends, third)
        stage.engine.gate.set()
        for answer in await asyncio.gather(*working):
            assert answer.status == 200
            answer.release()


async def test_one_address_gets_no_more_than_its_share(start: Callable[..., Any]) -> None:
    stage: Stage = await start(connections_per_address_max=2)
    refused = CONNECTIONS_REFUSED._value.get()
    with stage.connect() as first, stage.connect() as second:
        assert await is_served(first)
        assert await is_served(second)
        with stage.connect() as third:
            assert await asyncio.to_thread(ends, third)
        with socket.create_connection(("127.0.0.1", stage.server.port), timeout=PATIENCE_S, source_address=("127.0.0.2", 0)) as neighbour:
            assert await is_served(neighbour)
        assert CONNECTIONS_REFUSED._value.get() == refused + 1
        first.close()

    async def is_there_room() -> bool:
        with stage.connect() as again:
            return await is_served(again)

    await eventually(is_there_room, "a place that was given back")


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        (("192.0.2.7", 5), "192.0.2.7"),
        (("::ffff:192.0.2.7", 5, 0, 0), "192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 5, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 5, 0, 2), "fe80::/64"),
        ("", ""),
        (None, ""),
    ],
)
def test_a_peer_is_an_ipv4_address_or_an_ipv6_network(address: object, peer: str) -> None:
    assert _peer(address) == peer


async def test_a_caller_that_reads_too_slowly_is_cut_off(start: Callable[..., Any]) -> None:
    """It reads now and then, so that the kernel alone would let it go on for ever."""
    stage: Stage = await start(unread_timeout_s=1.0)
    unread = closed("unread")

    def dawdle() -> None:
        with socket.socket() as caller, contextlib.suppress(ConnectionError):
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            caller.connect(("127.0.0.1", stage.server.port))
            caller.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
            while not cut.is_set() and caller.recv(8192):
                cut.wait(0.05)

    cut = threading.Event()
    reading = asyncio.create_task(asyncio.to_thread(dawdle))
    assert stage.server._connections is not None
    held = stage.server._connections._open

    async def is_cut() -> bool:
        return closed("unread") == unread + 1 and not held

    try:
        await eventually(is_cut, "the connection to be cut")
    finally:
        cut.set()
        await reading


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (StoreFault("store_unavailable", "secret host db.internal"), 503, "store_unavailable"),
        (ChainFault("timeout", "secret host rpc.internal"), 503, "timeout"),
        (OverloadFault("queue_full", "secret"), 503, "queue_full"),
        (ConfigFault("wrong_chain", "secret"), 500, "wrong_chain"),
        (KeyError("secret"), 500, "internal_error"),
    ],
)
async def test_faults_are_503_and_bugs_500_and_neither_tells_of_our_insides(
    stage: Stage, client: aiohttp.ClientSession, raised: Exception, status: int, code: str
) -> None:
    stage.engine.raises = raised
    for path in ("/verify", "/settle"):
        async with client.post(path, json=v2_request()) as answer:
            told = await problem(answer)
            assert (answer.status, told["error"]) == (status, code)
            assert ("Retry-After" in answer.headers) == (status == 503)
            assert "secret" not in await answer.text()
            assert "Traceback" not in await answer.text()


async def test_until_the_engine_runs_supported_is_answered_and_payments_are_503(stage: Stage, client: aiohttp.ClientSession) -> None:
    stage.desk.engine = None
    async with client.get("/supported") as answer:
        assert answer.status == 200
    async with client.post("/verify", json=v2_request()) as answer:
        assert (answer.status, (await problem(answer))["error"]) == (503, "starting")
    async with client.get("/settlements") as answer:
        assert answer.status == 503


async def test_a_slow_verification_is_503_but_a_slow_settlement_is_the_engines_to_end(start: Callable[..., Any]) -> None:
    stage: Stage = await start(request_timeout_s=1.0)
    stage.engine.delay_s = 1.3
    async with aiohttp.ClientSession(stage.url) as client:
        async with client.post("/verify", json=v2_request()) as answer:
            assert (answer.status, (await problem(answer))["error"]) == (503, "deadline")
        async with client.post("/settle", json=v2_request()) as answer:
            assert answer.status == 200


async def test_a_caller_that_hangs_up_cancels_its_handler(stage: Stage) -> None:
    stage.engine.delay_s = 10 * PATIENCE_S
    body = json.dumps(v2_request()).encode()
    caller = stage.connect()
    caller.sendall(b"POST /settle HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await stage.engine.entered(1)
    caller.close()

    async def cancelled() -> bool:
        return stage.engine.cancelled == 1

    await eventually(cancelled, "the handler to be cancelled")


async def test_an_answer_that_holds_the_slot_is_followed_to_its_delivery(stage: Stage, client: aiohttp.ClientSession) -> None:
    from uuid import uuid4  # noqa: PLC0415

    stage.engine.ticket = ticket = Ticket(settlement_id=uuid4(), epoch=1)
    for _ in range(3):
        async with client.post("/settle", json=v2_request()) as answer:
            assert (await answer.json())["success"]
            assert answer.headers["X-Request-Id"]
    await stage.desk.deliveries.finish()
    assert (stage.engine.delivered_tickets, stage.engine.undelivered_tickets) == ([ticket] * 3, [])


async def test_requests_are_counted_by_route_and_status(client: aiohttp.ClientSession) -> None:
    async with client.get("/settlements/not-an-id") as answer:
        assert answer.status == 404
    async with client.get("/metrics") as answer:
        text = await answer.text()
    assert 'facilitator_http_requests_total{route="/settlements/{id}",status="404"}' in text
    assert "not-an-id" not in text


async def test_metrics_are_on_the_main_port_only_while_that_is_loopback() -> None:
    assert METRICS_ROUTE in routes_for(Listen("127.0.0.1", 1))
    assert routes_for(Listen("0.0.0.0", 1)) == ROUTES  # noqa: S104


async def test_wrong_query_parameters_are_400_and_named(client: aiohttp.ClientSession) -> None:
    for query, name in (
        ("stat=queued", "stat"),
        ("state=nope", "state"),
        ("payer=0x12", "payer"),
        ("tx=0x12", "tx"),
        ("network=nowhere", "network"),
        ("from=2026-01-01", "from"),
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("cursor=1", "cursor"),
        ("payer=0x12&payer=0x13", "payer"),
    ):
        async with client.get(f"/settlements?{query}") as answer:
            assert (answer.status, name in (await problem(answer))["message"]) == (400, True), query
    async with client.get("/settlements/lookup?network=eip155:1") as answer:
        assert (await problem(answer))["message"] == "missing query parameters: asset, payer, nonce"


async def test_bytes_that_are_no_http_get_a_plain_400(stage: Stage) -> None:
    def send(data: bytes) -> bytes:
        with stage.connect() as caller:
            caller.sendall(data)
            return caller.recv(65536)

    for data in (
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"POST /verify HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    ):
        answer = await asyncio.to_thread(send, data)
        assert answer.startswith(b"HTTP/1."), data[:20]
        assert b" 400 " in answer.splitlines()[0], answer[:80]
        assert b"Traceback" not in answer


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, body: bytes, request_id: str
) -> tuple[int, dict[str, Any]]:
    """One request on an open connection, and its answer."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nX-Request-Id: {request_id}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    answer = await reader.readuntil(b"\r\n\r\n")
    assert f"X-Request-Id: {request_id}\r\n".encode() in answer
    length = int(answer.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    return int(answer.split()[1]), json.loads(await reader.readexactly(length))


@pytest.mark.parametrize("path", ["/verify", "/settle"])
async def test_beyond_what_can_be_judged_callers_hear_503_and_nothing_is_done_for_them(start: Callable[..., Any], path: str) -> None:
    stage: Stage = await start(judged_max=1)
    body = json.dumps(v2_request()).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", stage.server.port)
    try:
        assert (await exchange(reader, writer, path, body, "first"))[0] == 200
        stage.engine.gate = asyncio.Event()
        async with aiohttp.ClientSession(stage.url) as session:
            held = asyncio.create_task(session.post(path, data=body, headers={"Content-Type": "application/json"}))
            await stage.engine.entered(2)  # the first, and the one that is being judged
            async with session.post(path, data=body, headers={"Content-Type": "application/json"}) as other:  # a connection of its own
                assert (other.status, other.headers["Retry-After"]) == (503, str(SETTINGS.retry_after_s))
                assert (await problem(other))["error"] == "overloaded"
            shed = REQUESTS_SHED.labels("connection")._value.get()
            status, told = await exchange(reader, writer, path, body, "second")  # a known caller: refused before parsing
            assert (status, told["error"], told["requestId"]) == (503, "overloaded", "second")
            assert REQUESTS_SHED.labels("connection")._value.get() == shed + 1
            stage.engine.gate.set()
            async with await held as answer:
                assert answer.status == 200
        assert (await exchange(reader, writer, path, body, "third"))[0] == 200, "the same connection goes on"
    finally:
        writer.close()
