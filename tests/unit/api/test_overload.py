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

from facilitator.api.overload import Gate, Place
from facilitator.errors import OverloadFault

KEY: Final = b"0123456789abcdef"


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
    share = judged_max / (tenants + 1)
    assert max(counts) - min(counts) <= 1
    assert all(share - 1 <= count <= share + 1 for count in counts)
    if share >= tenants + 1:  # each may have rounded up by one
        gate.enter("a quiet one").leave()


def test_a_place_is_free_again_when_it_is_left_and_only_once() -> None:
    gate = Gate(8, 2)
    places = fill(gate, "a")
    assert len(places) == 4
    with pytest.raises(OverloadFault) as refused:
        gate.enter("a")
    assert (refused.value.kind, refused.value.retryable) == ("overloaded", True)
    places[0].leave()
    places[0].leave()
    assert len(fill(gate, "a")) == 1


def request(path: str = "/verify", body: bytes = b'{"a":1}', *more: str, length: str | None = None, line: str = "POST") -> bytes:
    lines = [f"{line} {path} HTTP/1.1", "Host: x", f"Authorization: Bearer fk_{KEY.decode()}_x", *more]
    lines += [f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.mark.parametrize("path", ["/verify", "/settle"])
def test_the_answer_is_one_that_a_library_reads(path: str) -> None:
    answer = Gate(8, 7).refusal(request(path, b"{}", "x-request-id: mine-1"), KEY)
    assert answer is not None
    read = http.client.HTTPResponse(Mock(makefile=lambda _mode: io.BytesIO(answer + b"the next answer")))
    read.begin()
    told = json.loads(read.read())
    assert (read.status, read.headers["Retry-After"], read.headers["X-Request-Id"]) == (503, "7", "mine-1")
    assert (told["error"], told["requestId"]) == ("overloaded", "mine-1")
    assert not read.will_close


def test_an_id_is_made_where_none_was_offered_or_it_is_none() -> None:
    for more in ((), ("X-Request-Id: a b",), ("X-Request-Id: " + "a" * 65,)):
        answer = Gate(8, 7).refusal(request("/verify", b"{}", *more), KEY)
        assert answer is not None
        told = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert len(told["requestId"]) == 32


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
        request() + request(),
        request()[:-1],
        request()[:40],
        request().replace(KEY, b"another"),
        b"\r\n" + request(),
    ],
)
def test_whatever_is_not_one_whole_plain_request_of_that_caller_is_left_to_the_parser(data: bytes) -> None:
    assert Gate(8, 2).refusal(data, KEY) is None


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
    ]
)


@given(
    st.sampled_from(
        ["POST /verify HTTP/1.1", "POST /settle HTTP/1.1", "POST /verify HTTP/1.0", "POST  /verify HTTP/1.1", "post /verify HTTP/1.1"]
    ),
    st.lists(HEADERS, max_size=5),
    st.sampled_from([b'{"a":1}', b'{"a":1}' + request(), b"", b"\r\n\r\n", b"1234567\r\n\r\n"]),
)
def test_what_is_refused_unparsed_is_to_the_library_one_whole_request_or_none_at_all(line: str, headers: list[str], body: bytes) -> None:
    data = "\r\n".join((line, *headers)).encode() + b"\r\n\r\n" + body
    if Gate(8, 2).refusal(data, b"") is None:
        return
    messages = parsed(data)
    if messages is not None:
        ((message, payload),) = messages
        assert message.path in {"/verify", "/settle"}
        assert payload.is_eof()
