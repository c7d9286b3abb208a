"""What a connection sends arrives whole and in order, however full the socket is and whatever else is written to its transport."""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop
from aiohttp import web

from facilitator.api.connections import Connection, Connections
from facilitator.api.overload import Gate
from facilitator.api.settings import Settings
from tests.fixtures.waiting import PATIENCE_S

LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
NewLoop = Callable[[], asyncio.AbstractEventLoop]


async def nobody(_: web.BaseRequest) -> web.StreamResponse:
    raise AssertionError("nothing is asked")


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Connection, asyncio.StreamReader, asyncio.StreamWriter]]:
    """Our side and the caller's side of one connection."""
    house, loop = Settings(), asyncio.get_running_loop()
    connections = Connections(house, web.Server(nobody), Gate(house.judged_max, house.retry_after_s))
    opened: asyncio.Queue[Connection] = asyncio.Queue()

    def opens() -> Connection:
        opened.put_nowait(connection := connections.open())
        return connection

    server = await loop.create_server(opens, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
    try:
        connection = await asyncio.wait_for(opened.get(), PATIENCE_S)
        yield connection, reader, writer
    finally:
        connections.close()
        writer.transport.abort()
        server.close()
        await server.wait_closed()


@LOOPS
@pytest.mark.parametrize("seed", range(4))
def test_all_of_it_arrives_in_the_order_in_which_it_was_sent(new_loop: NewLoop, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - to repeat, not to keep a secret

    async def scene() -> None:
        async with connected() as (connection, reader, _):
            sent = b""
            for _ in range(200):
                data = chance.randbytes(chance.choice([1, 300, 5_000, 200_000]))
                sent += data
                assert connection.transport is not None
                (connection.transport.write if chance.random() < 0.2 else connection.send)(data)
                if chance.random() < 0.1:
                    await asyncio.sleep(0)
            assert connection.transport is not None
            assert connection.transport.get_write_buffer_size() > 0, "it was more than the socket holds"
            assert await asyncio.wait_for(reader.readexactly(len(sent)), PATIENCE_S) == sent

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(scene())


@LOOPS
def test_a_lone_answer_is_with_the_kernel_before_the_loop_turns(new_loop: NewLoop) -> None:
    async def scene() -> None:
        async with connected() as (connection, reader, writer):
            connection.send(b"answer")
            assert os.read(writer.get_extra_info("socket").fileno(), 100) == b"answer", "nobody's turn came since"
            connection.send(b"next")
            assert await asyncio.wait_for(reader.readexactly(4), PATIENCE_S) == b"next"

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(scene())


@LOOPS
def test_nothing_is_written_to_a_descriptor_that_may_be_another_connections(new_loop: NewLoop) -> None:
    async def scene() -> None:
        async with connected() as (connection, _, _writer):
            assert connection.transport is not None
            connection.transport.abort()
            with pytest.raises(ConnectionResetError):
                connection.send(b"answer")
            await asyncio.sleep(0)
            with pytest.raises(ConnectionResetError):
                connection.send(b"answer")

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(scene())
