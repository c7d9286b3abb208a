"""The load generator, a process of its own: sends prepared bodies to one route and writes down what came back, and when.

Closed loop: so many connections, each sends its next request when the last one was answered. Open loop: so many requests a
second whatever comes back; a request's time runs from when it was due, so that a stall of the service is not hidden. It speaks
HTTP/1.1 over bare asyncio protocols, because a client library would cost more CPU than the service it measures.

Reads one JSON order a line on stdin, answers one JSON line on stdout; the answers themselves go to the order's `out` file.
"""

import asyncio
import contextlib
import json
import re
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

import uvloop

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_LATE_S: Final = 1e-4
_DIALLED: Final = 200
"""Connections that are opened at the same time."""
_BREATH: Final = 50
"""Requests that are sent without a look at the answers, when the generator is behind its time."""

Answer = tuple[int, float, float, int, str]
"""Index of the body, when it was due and when it was answered (monotonic), status (0: none), answer."""


class Connection(asyncio.Protocol):
    """One kept-alive connection with at most one request on it."""

    def __init__(self, answered: "Callable[[Connection, int, bytes], None] | None" = None) -> None:
        self._answered = answered
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but its class

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        length = _LENGTH.search(self._buffer, 0, head + 2)
        end = head + 4 + (int(length[1]) if length else 0)
        if len(self._buffer) >= end:
            status, body = int(self._buffer[9:12]), self._buffer[head + 4 : end]
            self._buffer = self._buffer[end:]
            if self._answered is not None:
                self._answered(self, status, body)
            elif self._answer is not None and not self._answer.done():
                self._answer.set_result((status, body))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._answered is not None:
            self._answered(self, 0, b"")
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("closed"))

    @property
    def alive(self) -> bool:
        return self._transport is not None

    def send(self, request: bytes) -> None:
        """The answer goes to `answered`; status 0 when the connection is lost first."""
        if self._transport is not None:
            self._transport.write(request)

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        if self._transport is None:
            raise ConnectionResetError("closed")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._answer
        except asyncio.CancelledError:
            self.close()
            raise

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class OpenLoop:
    """Requests that wait for nobody. No task for each: several times what the service can answer must be offered from one CPU."""

    def __init__(self, host: str, port: int, connections: int) -> None:
        self._host, self._port, self._connections = host, port, connections
        self._free: deque[Connection] = deque()
        self._under_way: dict[Connection, tuple[int, float]] = {}
        self._dialling: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()
        self.answers: list[Answer] = []

    async def open(self, count: int) -> None:
        """So many connections in advance, as a balancer keeps them; dialled all at once they would overflow what waits to be accepted."""
        loop = asyncio.get_running_loop()
        for start in range(0, count, _DIALLED):
            dialled = (
                loop.create_connection(lambda: Connection(self._answered), self._host, self._port)
                for _ in range(min(_DIALLED, count - start))
            )
            self._free += [connection for _, connection in await asyncio.gather(*dialled)]

    def send(self, index: int, due: float, request: bytes) -> bool:
        """On a free connection, or a new one. False when there are too many."""
        while self._free:
            if (connection := self._free.pop()).alive:
                self._under_way[connection] = index, due
                connection.send(request)
                return True
        if len(self._under_way) + len(self._dialling) >= self._connections:
            return False
        task = asyncio.get_running_loop().create_task(self._dial(index, due, request))
        self._dialling.add(task)
        task.add_done_callback(self._dialling.discard)
        return True

    async def _dial(self, index: int, due: float, request: bytes) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(lambda: Connection(self._answered), self._host, self._port)
        except OSError:
            self.answers.append((index, due, time.monotonic(), 0, "no connection"))
            return
        self._under_way[connection] = index, due
        connection.send(request)

    def _answered(self, connection: Connection, status: int, body: bytes) -> None:
        if (asked := self._under_way.pop(connection, None)) is not None:
            self.answers.append((*asked, time.monotonic(), status, body.decode("utf-8", "replace")))
        if connection.alive:
            self._free.append(connection)
        if not self._under_way:
            self._ended.set()

    async def end(self, patience_s: float) -> None:
        """What is not answered in time is unanswered."""
        self._ended.clear()
        if self._under_way:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), patience_s)
        for task in self._dialling:
            task.cancel()
        late, self._under_way = self._under_way, {}
        for connection, (index, due) in late.items():
            self.answers.append((index, due, time.monotonic(), 0, ""))
            connection.close()
        for connection in self._free:
            connection.close()


class Load:
    """One order: where to, what, how much, for how long."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._order = order
        self._host, self._port = "127.0.0.1", int(order["port"])
        lines = Path(order["bodies"]).read_bytes().splitlines()
        start = f"POST {order['route']} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nContent-Type: application/json\r\n"
        heads = [(start + "".join(f"{name}: {value}\r\n" for name, value in each.items())).encode() for each in order["headers"]]
        self._requests = [
            heads[number % len(heads)] + b"Content-Length: %d\r\n\r\n" % len(line) + line for number, line in enumerate(lines)
        ]
        self._again = bool(order["again"])
        self._next = 0
        self.answers: list[Answer] = []

    def _take(self) -> int | None:
        """The next body; from the first again when they may be repeated, else None when all are used."""
        if self._next >= len(self._requests) and not self._again:
            return None
        self._next += 1
        return (self._next - 1) % len(self._requests)

    async def _connect(self) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(Connection, self._host, self._port)
        return connection

    async def _ask(self, connection: Connection, index: int, due: float) -> None:
        status, body = 0, b""
        try:
            status, body = await connection.ask(self._requests[index])
        except asyncio.CancelledError:
            pass  # its time is up: unanswered
        except OSError:
            pass
        self.answers.append((index, due, time.monotonic(), status, body.decode("utf-8", "replace")))

    async def _closed(self, until: float) -> None:
        async def caller() -> None:
            connection = await self._connect()
            while time.monotonic() < until and (index := self._take()) is not None:
                if not connection.alive:
                    connection = await self._connect()
                await self._ask(connection, index, time.monotonic())
            connection.close()

        await self._bounded([asyncio.create_task(caller()) for _ in range(int(self._order["connections"]))])

    async def _open(self) -> None:
        loop = OpenLoop(self._host, self._port, int(self._order["connections"]))
        await loop.open(int(self._order["connections"]) // 2)
        self._began = began = time.monotonic()
        until, gap, sent = began + self._order["seconds"], 1.0 / float(self._order["rate"]), 0
        while (due := began + sent * gap) < until and (index := self._take()) is not None:
            if (wait := due - time.monotonic()) > _LATE_S:
                await asyncio.sleep(wait)
            if not loop.send(index, due, self._requests[index]):
                loop.answers.append((-1, due, due, 0, "unsent"))
            sent += 1
            if not sent % _BREATH:
                await asyncio.sleep(0)  # behind its time: answers are read all the same
        await loop.end(self._left_s)
        self.answers += loop.answers

    async def _bounded(self, tasks: list["asyncio.Task[None]"]) -> None:
        """Let what is under way be answered, `drain_s` at most."""
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self._left_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def _left_s(self) -> float:
        return max(0.1, float(self._order["seconds"] + self._order["drain_s"] - (time.monotonic() - self._began)))

    async def run(self) -> dict[str, Any]:
        self._began = time.monotonic()
        await (self._open() if self._order.get("rate") else self._closed(self._began + self._order["seconds"]))
        ended = time.monotonic()
        return {"began": self._began, "ended": ended, "used": self._next}


async def main() -> None:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        load = Load(order)
        told = await load.run()
        await loop.run_in_executor(None, Path(order["out"]).write_text, json.dumps(load.answers))
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
