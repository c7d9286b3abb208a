"""An answer that goes out in one write is the answer that aiohttp would have written."""

import asyncio
from email.parser import BytesParser

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from facilitator.api.answers import REQUEST_ID, Answer
from facilitator.api.server import _add_headers

TEXTS = st.text(max_size=50).map(str.encode)
IDS = st.from_regex(r"[A-Za-z0-9._:-]{1,64}", fullmatch=True)
HEADERS = st.dictionaries(st.sampled_from(["Retry-After", "Allow", "Cache-Control"]), st.sampled_from(["1", "GET, POST", "no-cache"]))
HEADS = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    ]
)


class Wire(asyncio.Transport):
    """Keeps what is written, write by write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close


async def answered(head: bytes, request_id: str, response: web.Response) -> Wire:
    """What goes out for it, by the library's own protocol."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        request[REQUEST_ID] = request_id
        done.set()
        return response

    done = asyncio.Event()
    app = web.Application()
    app.router.add_route("*", "/", handle)
    app.on_response_prepare.append(_add_headers)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    assert runner.server is not None
    protocol, wire = runner.server(), Wire()
    protocol.connection_made(wire)
    protocol.data_received(head)
    await done.wait()
    for _ in range(10):  # turns of the loop; nothing else is waited for
        await asyncio.sleep(0)
    protocol.connection_lost(None)
    await asyncio.sleep(0)
    return wire


def parsed(wire: Wire) -> tuple[bytes, dict[str, str], bytes]:
    """Status line, headers without the moment, body."""
    head, _, body = b"".join(wire.writes).partition(b"\r\n\r\n")
    status, _, lines = head.partition(b"\r\n")
    headers = dict(BytesParser().parsebytes(lines, headersonly=True).items())
    assert len(headers) == lines.count(b"\r\n") + 1, "none of them twice"
    del headers["Date"]
    return status, headers, body


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(head=HEADS, request_id=IDS, body=TEXTS, status=st.sampled_from([200, 400, 404, 413, 429, 500, 503]), more=HEADERS)
def test_it_is_the_librarys_answer(head: bytes, request_id: str, body: bytes, status: int, more: dict[str, str]) -> None:
    async def both() -> tuple[Wire, Wire]:
        usual = web.Response(body=body, status=status, headers=more, content_type="application/json")
        return await answered(head, request_id, Answer(body, status, more)), await answered(head, request_id, usual)

    ours, librarys = asyncio.run(both())
    assert parsed(ours) == parsed(librarys)
    assert ours.closed == librarys.closed


async def test_a_plain_answer_is_one_write_also_where_a_handler_writes_it_itself() -> None:
    answer = Answer(b"{}")
    wires: list[Wire] = []

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        request[REQUEST_ID] = "r1"
        await answer.prepare(request)
        assert not wires[0].writes
        await answer.write_eof()
        assert request.writer.output_size == len(b"".join(wires[0].writes)) > 0
        done.set()
        return answer

    done = asyncio.Event()
    server = web.Server(handle, handler_cancellation=True, access_log=None)
    protocol = server()
    wires.append(Wire())
    protocol.connection_made(wires[0])
    protocol.data_received(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await done.wait()
    await asyncio.sleep(0)
    protocol.connection_lost(None)
    await asyncio.sleep(0)
    assert len(wires[0].writes) == 1


async def test_a_caller_that_is_gone_is_a_connection_error() -> None:
    answer = Answer(b"{}")
    raised: list[BaseException] = []

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        request[REQUEST_ID] = "r1"
        await answer.prepare(request)
        wire.close()
        with pytest.raises(ConnectionError) as caught:
            await answer.write_eof()
        raised.append(caught.value)
        done.set()
        return answer

    done, wire = asyncio.Event(), Wire()
    server = web.Server(handle, handler_cancellation=True, access_log=None)
    protocol = server()
    protocol.connection_made(wire)
    protocol.data_received(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await done.wait()
    protocol.connection_lost(None)
    await asyncio.sleep(0)
    assert raised
    assert not wire.writes
