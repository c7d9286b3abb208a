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
from abc import ABC, abstractmethod
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

Answer = tuple[int, float, float, int, bytes]
"""Index of the body, when it was due and when it was answered (monotonic), status (0: none), answer."""


class Connection(asyncio.Protocol):
    """One kept-alive connection with at most one request on it."""

    def __init__(self, answered: "Callable[[Connection, int, bytes], None]") -> None:
        self._answered = answered
        self._transport: asyncio.Transport | None = None
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but its class

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        head = data.find(b"\r\n\r\n")
        length = _LENGTH.search(data, 0, head + 2) if head >= 0 else None
        end = head + 4 + (int(length[1]) if length else 0)
        if head < 0 or len(data) < end:
            self._buffer = data
            return
        self._buffer = data[end:]
        self._answered(self, int(data[9:12]), data[head + 4 : end])

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        self._answered(self, 0, b"")

    @property
    def alive(self) -> bool:
        return self._transport is not None

    def send(self, request: bytes) -> None:
        """The answer goes to `answered`; status 0 when the connection is lost first."""
        if self._transport is not None:
            self._transport.write(request)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Callers(ABC):
    """Connections and what is under way on them. No task for each request: the service is to be measured, not this process."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._under_way: dict[Connection, tuple[int, float]] = {}
        self._dialling: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self.answers: list[Answer] = []

    @abstractmethod
    def free(self, connection: Connection) -> None:
        """Nothing is under way on this connection; it may be closed."""

    def send(self, connection: Connection, index: int, due: float, request: bytes) -> None:
        self._under_way[connection] = index, due
        connection.send(request)

    def dial(self, connected: "Callable[[Connection], None]", failed: "Callable[[], None]") -> None:
        task = asyncio.get_running_loop().create_task(self._dial(connected, failed))
        self._dialling.add(task)
        task.add_done_callback(self._dialling.discard)

    async def _dial(self, connected: "Callable[[Connection], None]", failed: "Callable[[], None]") -> None:
        try:
            connection = await self.connect()
        except OSError:
            failed()
        else:
            connected(connection)

    async def connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(lambda: Connection(self._answered), self._host, self._port))[1]

    def _answered(self, connection: Connection, status: int, body: bytes) -> None:
        if (asked := self._under_way.pop(connection, None)) is not None:
            self.answers.append((*asked, time.monotonic(), status, body))
            self.free(connection)
        if not self._under_way:
            self._idle.set()

    async def end(self, patience_s: float) -> None:
        """What is not answered in time is unanswered."""
        self._idle.clear()
        if self._under_way:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), patience_s)
        for task in self._dialling:
            task.cancel()
        late, self._under_way = self._under_way, {}
        for connection, (index, due) in late.items():
            self.answers.append((index, due, time.monotonic(), 0, b""))
            connection.close()


class ClosedLoop(Callers):
    """Each sends its next request when the last one was answered, until there is no next one."""

    def __init__(self, host: str, port: int, take: "Callable[[], tuple[int, bytes] | None]") -> None:
        super().__init__(host, port)
        self._take = take
        self._ended = asyncio.Event()
        self._callers = 0

    async def run(self, count: int, seconds: float) -> None:
        """So many callers at once. Returns when the last one has nothing more to send, or `seconds` after."""
        self._callers = count
        for _ in range(count):
            self.dial(self.free, self._leave)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), seconds)

    def free(self, connection: Connection) -> None:
        if (taken := self._take()) is None:
            connection.close()
            self._leave()
        elif connection.alive:
            self.send(connection, taken[0], time.monotonic(), taken[1])
        else:
            self.dial(lambda dialled: self.send(dialled, taken[0], time.monotonic(), taken[1]), self._leave)

    def _leave(self) -> None:
        self._callers -= 1
        if not self._callers:
            self._ended.set()


class OpenLoop(Callers):
    """Requests that wait for nobody: several times what the service can answer must be offered from one CPU."""

    def __init__(self, host: str, port: int, connections: int) -> None:
        super().__init__(host, port)
        self._connections = connections
        self._free: list[Connection] = []

    async def open(self, count: int) -> None:
        """So many connections in advance, as a balancer keeps them; dialled all at once they would overflow what waits to be accepted."""
        for start in range(0, count, _DIALLED):
            self._free += await asyncio.gather(*(self.connect() for _ in range(min(_DIALLED, count - start))))

    def offer(self, index: int, due: float, request: bytes) -> bool:
        """On a free connection, or a new one. False when there are too many."""
        while self._free:
            if (connection := self._free.pop()).alive:
                self.send(connection, index, due, request)
                return True
        if len(self._under_way) + len(self._dialling) >= self._connections:
            return False
        self.dial(
            lambda dialled: self.send(dialled, index, due, request),
            lambda: self.answers.append((index, due, time.monotonic(), 0, b"no connection")),
        )
        return True

    def free(self, connection: Connection) -> None:
        if connection.alive:
            self._free.append(connection)

    async def end(self, patience_s: float) -> None:
        await super().end(patience_s)
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

    def _take(self) -> tuple[int, bytes] | None:
        """The next body's index and request; from the first again when they may be repeated, else None when all are used."""
        if self._next >= len(self._requests) and not self._again:
            return None
        index = self._next % len(self._requests)
        self._next += 1
        return index, self._requests[index]

    async def _closed(self, until: float) -> None:
        loop = ClosedLoop(self._host, self._port, lambda: self._take() if time.monotonic() < until else None)
        await loop.run(int(self._order["connections"]), self._left_s)
        await loop.end(0.0)
        self.answers += loop.answers

    async def _open(self) -> None:
        loop = OpenLoop(self._host, self._port, int(self._order["connections"]))
        await loop.open(int(self._order["connections"]) // 2)
        self._began = began = time.monotonic()
        until, gap, sent = began + self._order["seconds"], 1.0 / float(self._order["rate"]), 0
        while (due := began + sent * gap) < until and (taken := self._take()) is not None:
            if (wait := due - time.monotonic()) > _LATE_S:
                await asyncio.sleep(wait)
            if not loop.offer(taken[0], due, taken[1]):
                loop.answers.append((-1, due, due, 0, b"unsent"))
            sent += 1
            if not sent % _BREATH:
                await asyncio.sleep(0)  # behind its time: answers are read all the same
        await loop.end(self._left_s)
        self.answers += loop.answers

    @property
    def _left_s(self) -> float:
        return max(0.1, float(self._order["seconds"] + self._order["drain_s"] - (time.monotonic() - self._began)))

    async def run(self) -> dict[str, Any]:
        awake = _Awake() if self._order["awake"] else None
        self._began = time.monotonic()
        await (self._open() if self._order.get("rate") else self._closed(self._began + self._order["seconds"]))
        ended = time.monotonic()
        if awake is not None:
            awake.end()
        return {"began": self._began, "ended": ended, "used": self._next}


class _Awake:
    """Looks at the sockets all the time: whoever writes to one that somebody sleeps on has to wake the sleeper, and its CPU."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_soon(self._again)

    def _again(self) -> None:
        self._handle = self._loop.call_soon(self._again)

    def end(self) -> None:
        self._handle.cancel()


async def main() -> None:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        load = Load(order)
        told = await load.run()
        answers = [(*answer, body.decode("utf-8", "replace")) for *answer, body in load.answers]
        await loop.run_in_executor(None, Path(order["out"]).write_text, json.dumps(answers))
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    uvloop.run(main())
