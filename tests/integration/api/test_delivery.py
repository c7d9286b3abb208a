"""Real sockets: an answer counts as delivered when the caller's TCP acknowledged it, on asyncio's loop and on uvloop's."""

import asyncio
import ctypes
import os
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop
from aiohttp import web

from facilitator.api.delivery import Deliveries
from facilitator.clock import SystemClock
from tests.fixtures.waiting import PATIENCE_S

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own counters are read on Linux only")

NEVER_S = 3600.0
"""No answer is given up for the time alone."""
SOON_S = 0.5
"""Long enough to find out that nobody acknowledges."""
REQUEST = b"POST /settle HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
TCP_REPAIR = 19
SO_ATTACH_FILTER = 26


class Answers:
    """A server whose every answer's delivery is watched."""

    def __init__(self, body_bytes: int, timeout_s: float) -> None:
        self.deliveries = Deliveries(SystemClock(), timeout_s)
        self.body = b"x" * body_bytes
        self.lost: list[int] = []
        self.arrived: list[int] = []
        self.sizes: list[int] = []
        self.seen: Callable[[asyncio.Transport], None] = lambda _: None
        self.before_body: Callable[[], None] = lambda: None
        self.asked = self.answered = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.port = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        await self.gate.wait()
        self.answered += 1
        assert request.transport is not None
        self.seen(request.transport)
        number = self.answered
        response = web.Response(body=self.body)

        async def write() -> int:
            await response.prepare(request)
            self.before_body()
            await response.write_eof()
            self.sizes.append(request.writer.output_size)
            return request.writer.output_size

        async def arrived() -> None:
            self.arrived.append(number)

        async def lost() -> None:
            self.lost.append(number)

        await self.deliveries.send(request.transport, write, arrived, lost)
        return response

    async def wait_asked(self, count: int) -> None:
        while self.asked < count:
            await asyncio.sleep(0.005)

    async def wait_answered(self, count: int) -> None:
        while self.answered < count:
            await asyncio.sleep(0.005)


@asynccontextmanager
async def answering(body_bytes: int = 300, timeout_s: float = NEVER_S) -> AsyncIterator[Answers]:
    answers = Answers(body_bytes, timeout_s)
    app = web.Application()
    app.router.add_post("/settle", answers.handle)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    answers.port = runner.addresses[0][1]
    try:
        yield answers
    finally:
        await runner.cleanup()
        await answers.deliveries.finish()
        told = answers.arrived + answers.lost
        assert sorted(told) == list(range(1, answers.answered + 1)), "each answer is told of once"


def connect(port: int, receive_bytes: int | None = None) -> socket.socket:
    caller = socket.socket()
    if receive_bytes is not None:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    caller.connect(("127.0.0.1", port))
    caller.setblocking(False)
    return caller


async def read_answer(caller: socket.socket, body_bytes: int = 300) -> bytes:
    got = b""
    while b"\r\n\r\n" not in got or len(got) - got.index(b"\r\n\r\n") - 4 < body_bytes:
        chunk = await asyncio.get_running_loop().sock_recv(caller, 65536)
        assert chunk, "the connection ended before the answer was complete"
        got += chunk
    return got


async def read_until_reset(caller: socket.socket) -> bytes:
    got = b""
    try:
        while chunk := await asyncio.get_running_loop().sock_recv(caller, 65536):
            got += chunk
    except ConnectionError:
        pass
    return got


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[None]]], None]:
    """Run one coroutine function on a loop of this kind."""

    def runner(main: Callable[[], Awaitable[None]]) -> None:
        factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as loop_runner:

            async def bounded() -> None:
                async with asyncio.timeout(PATIENCE_S):
                    await main()

            loop_runner.run(bounded())

    return runner


Run = Callable[[Callable[[], Awaitable[None]]], None]


def test_an_answer_that_is_read_is_delivered_and_the_connection_serves_the_next_request(run: Run) -> None:
    async def main() -> None:
        async with answering() as answers:
            with connect(answers.port) as caller:
                for _ in range(5):
                    await asyncio.get_running_loop().sock_sendall(caller, REQUEST)
                    got = await read_answer(caller)
                    assert answers.sizes[-1] == len(got), "the size that is waited for is that of head and body"
            await answers.deliveries.finish()
            assert (answers.arrived, answers.lost) == ([1, 2, 3, 4, 5], [])

    run(main)


def test_an_answer_to_a_caller_that_wants_the_connection_closed_is_delivered(run: Run) -> None:
    async def main() -> None:
        async with answering(body_bytes=100_000) as answers:
            with connect(answers.port) as caller:
                await asyncio.get_running_loop().sock_sendall(caller, REQUEST[:-2] + b"Connection: close\r\n\r\n")
                got = await read_until_reset(caller)  # the close does not wait for the time to be up
            await answers.deliveries.finish()
            assert got.endswith(b"x" * 100_000)
            assert answers.lost == []

    run(main)


def test_an_answer_in_the_callers_receive_buffer_is_delivered_though_nobody_reads_it(run: Run) -> None:
    async def main() -> None:
        async with answering() as answers:
            with connect(answers.port) as caller:
                await asyncio.get_running_loop().sock_sendall(caller, REQUEST)
                await answers.wait_answered(1)
                await answers.deliveries.finish()
            assert answers.lost == []

    run(main)


def test_an_answer_to_a_connection_that_the_caller_reset_is_undelivered(run: Run) -> None:
    async def main() -> None:
        async with answering() as answers:
            caller = connect(answers.port)
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await asyncio.get_running_loop().sock_sendall(caller, REQUEST)
            await answers.wait_answered(1)
            await answers.deliveries.finish()
            answers.gate.clear()
            await asyncio.get_running_loop().sock_sendall(caller, REQUEST)
            await answers.wait_asked(2)
            answers.gate.set()
            caller.close()  # the reset and the answer cross on the way
            await answers.wait_answered(2)
            await answers.deliveries.finish()
            assert answers.lost in ([2], [])  # acknowledged before the reset, or not at all
            assert 1 not in answers.lost

    run(main)


def test_an_answer_written_to_a_connection_that_was_reset_unnoticed_is_undelivered(run: Run) -> None:
    async def main() -> None:
        async with answering() as answers:
            caller = connect(answers.port)
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            answers.before_body = caller.close  # the loop cannot have seen it when the body is written
            await asyncio.get_running_loop().sock_sendall(caller, REQUEST)
            await answers.wait_answered(1)
            await answers.deliveries.finish()
            assert (answers.arrived, answers.lost) == ([], [1])

    run(main)


def test_a_caller_that_stopped_reading_does_not_get_the_answer_even_if_it_reads_on_later(run: Run) -> None:
    async def main() -> None:
        async with answering(body_bytes=1500, timeout_s=SOON_S) as answers:
            with connect(answers.port, receive_bytes=4096) as caller:
                for _ in range(200):  # pipelined: more than all buffers between us hold
                    await asyncio.get_running_loop().sock_sendall(caller, REQUEST)
                while not answers.lost:
                    await asyncio.sleep(0.01)
                await answers.deliveries.finish()
                got = await read_until_reset(caller)
                whole = got.count(b"HTTP/1.1 200")
                complete = whole if got.endswith(b"x" * 1500) else whole - 1
                assert complete >= 1
                assert complete <= min(answers.lost) - 1, "an answer that we called undelivered arrived whole"

    run(main)


def test_an_answer_that_cannot_even_be_written_is_undelivered_once_its_time_is_up(run: Run) -> None:
    """Most of an unwatched answer is in the transport's buffer, so that the next write would wait for the caller."""

    async def main() -> None:
        async with answering(timeout_s=SOON_S) as answers:
            with connect(answers.port, receive_bytes=4096) as caller:
                transports: list[asyncio.Transport] = []
                answers.seen = transports.append
                await asyncio.get_running_loop().sock_sendall(caller, REQUEST)
                await read_answer(caller)
                transports[0].write(b"y" * 8_000_000)
                await asyncio.get_running_loop().sock_sendall(caller, REQUEST)
                await answers.wait_answered(2)
                while not answers.lost:
                    await asyncio.sleep(0.01)
                assert answers.lost == [2]

    run(main)


def test_a_caller_that_vanished_without_a_fin_does_not_get_the_answer(run: Run) -> None:
    async def main() -> None:
        async with answering(timeout_s=SOON_S) as answers:
            answers.gate.clear()
            with connect(answers.port) as caller:
                await asyncio.get_running_loop().sock_sendall(caller, REQUEST)
                await answers.wait_asked(1)
                drop_everything(caller)
                answers.gate.set()
                await answers.wait_answered(1)
                await answers.deliveries.finish()
                assert answers.lost == [1]

    run(main)


@pytest.mark.skipif(os.geteuid() != 0, reason="TCP_REPAIR needs CAP_NET_ADMIN")
def test_a_caller_whose_machine_forgot_the_connection_does_not_get_the_answer(run: Run) -> None:
    async def main() -> None:
        async with answering(timeout_s=SOON_S) as answers:
            answers.gate.clear()
            caller = connect(answers.port)
            await asyncio.get_running_loop().sock_sendall(caller, REQUEST)
            await answers.wait_asked(1)
            caller.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
            caller.close()  # in repair mode: no FIN, no reset
            answers.gate.set()
            await answers.wait_answered(1)
            await answers.deliveries.finish()
            assert answers.lost == [1]

    run(main)


def drop_everything(caller: socket.socket) -> None:
    """From here on the caller's kernel drops each segment that arrives, before TCP sees it: a cut cable."""
    program = struct.pack("HBBI", 0x06, 0, 0, 0)  # BPF_RET | BPF_K, 0: keep no byte
    memory = ctypes.create_string_buffer(program)
    caller.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(memory)))
