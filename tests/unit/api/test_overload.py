"""Places in judgement, and the answer that is given before a request is parsed."""

import asyncio
import http.client
import io
import json
from typing import Any, Final
from unittest.mock import Mock

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser
from hypothesis import given
from hypothesis import strategies as st

from facilitator.api.overload import _HEAD_BYTES_MAX, Caller, Gate, Place
from facilitator.errors import OverloadFault
from facilitator.metrics import JUDGING, REQUESTS, REQUESTS_SHED
from facilitator.units import AuthNonce, Network
from tests.fixtures.vectors import v1_request, v2_request

KEY: Final = b"0123456789abcdef"
BASE: Final = Network("eip155:8453")
SEPOLIA: Final = Network("eip155:84532")
ALICE: Final = Caller("a", KEY)


class Queues:
    """What the queues say, and what they were asked."""

    def __init__(self, full: OverloadFault | None, *begun: str) -> None:
        self.told = full
        self.begun = begun
        self.asked: list[tuple[str, int]] = []

    def full(self, network: Network, coming: int) -> OverloadFault | None:
        self.asked.append((network, coming))
        return self.told

    def began(self, auth_nonce: AuthNonce) -> bool:
        return auth_nonce in self.begun


def refusal(data: bytes, credential: bytes = KEY, retry_after_s: int = 2) -> bytes | None:
    """What a caller beyond its bound is answered unparsed."""
    gate = Gate(1, retry_after_s)
    gate.enter("a")
    met = gate.meet(data, Caller("a", credential))
    assert not isinstance(met, Place)
    return met


def fill(gate: Gate, tenant_id: str) -> list[Place]:
    """As many places as this tenant gets."""
    places = []
    while not gate.beyond(tenant_id):
        places.append(gate.enter(tenant_id))
    return places


@given(st.integers(2, 3000), st.integers(1, 8))
def test_who_asks_without_end_leaves_room_for_everybody_else(judged_max: int, tenants: int) -> None:
    gate = Gate(judged_max, 2)
    places: dict[int, list[Place]] = {tenant: [] for tenant in range(tenants)}
    while any(not gate.beyond(str(tenant)) for tenant in places):  # in turns, as equals do
        for tenant, of in places.items():
            if not gate.beyond(str(tenant)):
                of.append(gate.enter(str(tenant)))
    counts = [len(of) for of in places.values()]
    share = 2 * judged_max / (2 * tenants + 1)
    assert max(counts) - min(counts) <= 1
    assert all(share - 1 <= count <= share + 1 for count in counts)
    if share >= tenants + 1:  # each may have rounded up by one
        gate.enter("a quiet one").leave()


@pytest.mark.parametrize(("judged_max", "alone"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 4), (6, 4), (7, 5), (512, 342)])
def test_one_alone_gets_two_thirds_rounded_up(judged_max: int, alone: int) -> None:
    gate = Gate(judged_max, 2)
    places = fill(gate, "a")
    assert len(places) == alone
    assert gate.beyond("a quiet one") == (judged_max < 3)
    for place in places:
        place.leave()
    assert len(fill(gate, "another")) == alone


def test_a_place_is_free_again_when_it_is_left_and_only_once() -> None:
    gate = Gate(8, 2)
    places = fill(gate, "a")
    assert len(places) == 6
    with pytest.raises(OverloadFault) as refused:
        gate.enter("a")
    assert (refused.value.kind, refused.value.retryable) == ("overloaded", True)
    places[0].leave()
    places[0].leave()
    assert len(fill(gate, "a")) == 1


@given(st.data(), st.integers(2, 40))
def test_whatever_is_entered_met_and_left_the_count_is_of_those_within_and_no_tenant_has_more_than_was_left_free(
    data: st.DataObject, judged_max: int
) -> None:
    gate = Gate(judged_max, 2)
    gate.watch(Queues(None), [SEPOLIA])
    within: list[Place] = []
    for _ in range(data.draw(st.integers(0, 80))):
        tenant = data.draw(st.sampled_from("abc"))
        room = 2 * (judged_max - len(within)) - sum(place.tenant_id == tenant for place in within)
        assert gate.beyond(tenant) == (room <= 0)
        match data.draw(st.sampled_from(["enter", "meet", "leave"])):
            case "enter" if room > 0:
                within.append(gate.enter(tenant))
            case "meet":
                met = gate.meet(data.draw(st.sampled_from([payment(), payment(path="/verify")])), Caller(tenant, KEY))
                assert isinstance(met, Place) == (room > 0)
                within += [met] if isinstance(met, Place) else []
            case "leave" if within:
                place = within.pop(data.draw(st.integers(0, len(within) - 1)))
                place.leave()
                place.leave()
        assert gauge() == len(within)
    for place in within:
        place.leave()
    assert gauge() == 0
    assert not +gate._coming


def request(path: str = "/verify", body: bytes = b'{"a":1}', *more: str, length: str | None = None, line: str = "POST") -> bytes:
    lines = [f"{line} {path} HTTP/1.1", "Host: x", f"Authorization: Bearer fk_{KEY.decode()}_x", *more]
    lines += [f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def gauge() -> float:
    """The places taken, as they are told."""
    [metric] = JUDGING.collect()
    return float(metric.samples[0].value)


def payment(*, path: str = "/settle", version: int = 2, **changed: str) -> bytes:
    """A whole request with a payment."""
    text = json.dumps(v1_request() if version == 1 else v2_request())
    for old, new in changed.items():
        text = text.replace(old, new)
    return request(path, text.encode())


def nonce_of(data: bytes) -> str:
    return str(json.loads(data.partition(b"\r\n\r\n")[2])["paymentPayload"]["payload"]["authorization"]["nonce"])


SLOW: Final = OverloadFault("queue_slow", "payments wait for too long", retry_after_s=9)


@pytest.mark.parametrize("version", [1, 2])
def test_a_settlement_for_a_full_queue_is_refused_unparsed_in_the_queue_s_own_words(version: int) -> None:
    gate, queues = Gate(8, 2), Queues(SLOW)
    gate.watch(queues, [BASE, SEPOLIA])
    data = payment(version=version)
    answer = gate.meet(data, ALICE)
    assert isinstance(answer, bytes)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nRetry-After: 9\r\n" in head
    assert {**json.loads(body), "requestId": ""} == {"error": "queue_slow", "message": "payments wait for too long", "requestId": ""}
    assert queues.asked == [(SEPOLIA, 0)]
    assert gauge() == 0


def test_a_settlement_that_was_begun_here_is_let_in_however_full_its_queue() -> None:
    data = payment()
    gate = Gate(8, 2)
    gate.watch(Queues(SLOW, nonce_of(data).lower()), [SEPOLIA])
    assert isinstance(gate.meet(data, ALICE), Place)
    shouted = data.replace(nonce_of(data).encode(), b"0x" + nonce_of(data)[2:].upper().encode())
    assert shouted != data
    assert isinstance(gate.meet(shouted, ALICE), Place)
    assert isinstance(gate.meet(data.replace(nonce_of(data).encode(), b"0x" + b"77" * 32), ALICE), bytes)


def test_while_there_is_room_places_are_taken_and_the_queue_hears_how_many_are_on_their_way() -> None:
    gate, queues = Gate(64, 2), Queues(None)
    gate.watch(queues, [BASE, SEPOLIA])
    met = [gate.meet(payment(), ALICE) for _ in range(3)]
    places = [place for place in met if isinstance(place, Place)]
    gate.enter("a")  # of one that was parsed first nobody knows yet where it goes
    places[0].leave()
    gate.meet(payment(), Caller("b", KEY))
    assert [coming for _, coming in queues.asked] == [0, 1, 2, 2]
    assert gauge() == 4


@pytest.mark.parametrize(
    "data",
    [
        payment(path="/verify"),
        payment(eip155="eip156"),
        payment(USDC='x", "y": "eip155:8453'),
        payment(nonce="knonce"),
        payment(USDC='x", "nonce": "0x' + "11" * 32),
    ],
    ids=["a verification", "another network", "two networks", "no nonce", "two nonces"],
)
def test_what_does_not_say_plainly_where_it_settles_is_let_in_and_hears_of_the_queue_later(data: bytes) -> None:
    gate = Gate(8, 2)
    gate.watch(Queues(SLOW), [BASE, SEPOLIA])
    assert isinstance(gate.meet(data, ALICE), Place)


def test_a_settlement_for_a_full_queue_that_is_not_one_plain_request_is_let_in() -> None:
    gate = Gate(8, 2)
    gate.watch(Queues(SLOW), [SEPOLIA])
    assert isinstance(gate.meet(payment()[:-1], ALICE), Place)
    assert isinstance(gate.meet(payment(), Caller("a", b"another")), Place)


@pytest.mark.parametrize("path", ["/verify", "/settle"])
def test_the_answer_is_one_that_a_library_reads(path: str) -> None:
    answer = refusal(request(path, b"{}", "x-request-id: mine-1"), retry_after_s=7)
    assert answer is not None
    read = http.client.HTTPResponse(Mock(makefile=lambda _mode: io.BytesIO(answer + b"the next answer")))
    read.begin()
    told = json.loads(read.read())
    assert (read.status, read.headers["Retry-After"], read.headers["X-Request-Id"]) == (503, "7", "mine-1")
    assert (told["error"], told["requestId"]) == ("overloaded", "mine-1")
    assert not read.will_close


def test_an_id_is_made_where_none_was_offered_or_it_is_none() -> None:
    made = set()
    for more in ((), ("X-Request-Id: a b",), ("X-Request-Id: " + "a" * 65,)):
        answer = refusal(request("/verify", b"{}", *more))
        assert answer is not None
        told = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert len(told["requestId"]) == 32
        made.add(told["requestId"])
    assert len(made) == 3


@pytest.mark.parametrize(
    "data",
    [
        request(line="GET"),
        request("/supported"),
        request("/verify?a=1"),
        request(length="6"),
        request(length="8"),
        request(length="+7"),
        request(length="7, 7"),
        request("/verify", b'{"a":1}', "Content-Length: 7"),
        request("/verify", b'{"a":1}', "content-length : 7"),
        request("/verify", b'{"a":1}', "Transfer-Encoding: chunked"),
        request("/verify", b'{"a":1}', "Expect: 100-continue"),
        request("/verify", b'{"a":1}', "Connection: close"),
        request("/verify", b'{"a":1}', "A: b\nTransfer-Encoding: chunked"),
        request("/verify", b'{"a":1}', "A: b\rTransfer-Encoding: chunked"),
        request("/verify", b'{"a":1}', "Transfer-Encoding : chunked"),
        request("/verify", b'{"a":1}', "Transfer-Encoding\t: chunked"),
        request("/verify", b'{"a":1}', " Transfer-Encoding: chunked"),
        request("/verify", b'{"a":1}', "\x0bTransfer-Encoding: chunked"),
        request("/verify", b'{"a":1}', "Transfer-Encoding"),
        request("/verify", b'{"a":1}', "A: b\r\n c"),
        request("/verify", b'{"a":1}', "A: \0b"),
        request("/verify", b'{"a":1}', "A: \x7fb"),
        request("/verify", b'{"a":1}', "A\0: b"),
        request("/verify", b'{"a":1}', ": b"),
        request("/verify", b'{"a":1}', "connection: keep-alive, close"),
        request("/verify", b'{"a":1}', "Connection: keep-alive, Upgrade", "Upgrade: h2c"),
        request("/verify", b'{"a":1}', "Connection: keep-alive", "Connection: close"),
        request("/verify", b'{"a":1}', "Proxy-Connection: close"),
        request("/verify", b'{"a":1}', "Upgrade: h2c"),
        request() + request(),
        request()[:-1],
        request()[:40],
        request().replace(KEY, b"another"),
        b"\r\n" + request(),
    ],
)
def test_whatever_is_not_one_whole_plain_request_of_that_caller_is_left_to_the_parser(data: bytes) -> None:
    assert refusal(data) is None


@pytest.mark.parametrize(
    "line", ["Connection: keep-alive", "connection:Keep-Alive \t", "Keep-Alive: 5", "X-Connection: close", "A: \tb\xe9"]
)
def test_what_clients_say_of_a_connection_that_stays_open_is_plain(line: str) -> None:
    data = request("/verify", b'{"a":1}', line)
    assert refusal(data) is not None
    last = data.replace(line.encode() + b"\r\n", b"").replace(b"\r\n\r\n", b"\r\n" + line.encode() + b"\r\n\r\n")
    assert refusal(last) is not None, "as the last line too"


def beyond_its_bound() -> Gate:
    """One where tenant a is refused."""
    gate = Gate(1, 2)
    gate.enter("a")
    return gate


def test_a_head_that_is_known_already_is_held_against_each_body() -> None:
    gate, caller, data = beyond_its_bound(), Caller("a", KEY), request()
    head = data.partition(b"\r\n\r\n")[0]
    ids = set()
    for _ in range(3):
        answer = gate.meet(data, caller)
        assert isinstance(answer, bytes)
        ids.add(json.loads(answer.partition(b"\r\n\r\n")[2])["requestId"])
        assert caller.plain_head == head + b"\r\n\r\n"
        for other in (data[:-1], data[:-4], data + b" ", data + data, head, head + b"\r\n"):
            assert gate.meet(other, caller) is None
        assert gate.meet(data.replace(KEY, KEY[::-1]), caller) is None, "as long, and another's"
        assert gate.meet(data.replace(b"Content-Length", b"Content_Length"), caller) is None, "as long, and not plain"
        assert isinstance(gate.meet(request("/settle", b"{}"), caller), bytes), "another head is read for itself"
    assert len(ids) == 3


def test_a_head_that_has_not_ended_is_no_request_though_it_announces_nothing() -> None:
    assert refusal(b"POST /verify HTTP/1.1\r\nContent-Length: 0", b"") is None
    assert refusal(b"POST /verify HTTP/1.1\r\nContent-Length: 0\r\n\r\n", b"") is not None


def test_no_head_is_remembered_that_is_long_not_plain_another_s_or_carries_an_id() -> None:
    gate, caller = beyond_its_bound(), Caller("a", KEY)
    for number in range(2):
        answer = gate.meet(request("/verify", b"{}", f"X-Request-Id: mine-{number}"), caller)
        assert isinstance(answer, bytes)
        assert f"\r\nX-Request-Id: mine-{number}\r\n".encode() in answer
    assert gate.meet(request("/verify", b"{}", "Expect: 100-continue"), caller) is None
    assert gate.meet(request("/verify", b"{}", f"A: {'a' * _HEAD_BYTES_MAX}"), caller) is None
    assert gate.meet(request("/verify", b"{}").replace(KEY, b"another"), caller) is None
    assert caller.plain_head == b""


def test_an_id_is_taken_from_the_last_line_of_a_head_too() -> None:
    answer = refusal(b"POST /verify HTTP/1.1\r\nContent-Length: 0\r\nX-Request-Id: mine\r\n\r\n", b"")
    assert answer is not None
    assert b"\r\nX-Request-Id: mine\r\n" in answer


def test_what_is_refused_unparsed_is_counted_once_by_route_and_place() -> None:
    gate, refused, shed = beyond_its_bound(), REQUESTS.labels("/settle", "503"), REQUESTS_SHED.labels("connection")
    before = refused._value.get(), shed._value.get()
    for path in ("/settle", "/verify", "/settle"):
        gate.meet(request(path), ALICE)
    gate.count()
    gate.count()
    assert (refused._value.get(), shed._value.get()) == (before[0] + 2, before[1] + 3)


def parsed(data: bytes) -> list[Any] | None:
    """What aiohttp makes of it: (message, payload) of each request; None: refused."""
    loop = asyncio.new_event_loop()
    try:
        parser = HttpRequestParser(BaseProtocol(loop), loop, 2**16)
        messages, _upgraded, tail = parser.feed_data(data)
    except HttpProcessingError:
        return None
    finally:
        loop.close()
    assert not tail
    return list(messages)


HEADERS: Final = st.sampled_from(
    [
        "Content-Length: 7",
        "content-length:7",
        "Content-Length: 07",
        "Content-Length: 0x7",
        "Transfer-Encoding: chunked",
        "X: Content-Length: 7",
        "X-Content-Length: 7",
        "A: b\n c",
        "A: b\r\n Content-Length: 7",
        "Expect: 100-continue",
        "Upgrade: websocket",
        "B:",
        "Connection: keep-alive",
        "Connection: close",
        "Transfer-Encoding : chunked",
        " Transfer-Encoding: chunked",
        "A: b\rContent-Length: 9",
        "A: b\x0b",
        "A: b\x80",
        "A b: c",
        "A",
    ]
)


KNOWN: Final = beyond_its_bound()
ANYBODY: Final = Caller("a", b"")
"""Whose last head is that of an earlier example."""


@given(
    st.sampled_from(
        ["POST /verify HTTP/1.1", "POST /settle HTTP/1.1", "POST /verify HTTP/1.0", "POST  /verify HTTP/1.1", "post /verify HTTP/1.1"]
    ),
    st.lists(HEADERS, max_size=5),
    st.sampled_from([b'{"a":1}', b'{"a":1}' + request(), b"", b"\r\n\r\n", b"1234567\r\n\r\n"]),
)
def test_what_is_refused_unparsed_is_to_the_library_one_whole_request(line: str, headers: list[str], body: bytes) -> None:
    data = "\r\n".join((line, "Host: x", *headers)).encode() + b"\r\n\r\n" + body
    refused = refusal(data, b"")
    assert (KNOWN.meet(data, ANYBODY) is None) == (refused is None)
    if refused is None:
        return
    messages = parsed(data)
    assert messages is not None
    ((message, payload),) = messages
    assert message.path in {"/verify", "/settle"}
    assert payload.is_eof()
    assert not message.should_close
