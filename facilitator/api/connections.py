"""The open connections of one port: how many there are, from whom, and how long each may take to ask and to read.

aiohttp bounds none of that. When there is no room for one more, the connection that has waited longest for a request makes
room: one that never sent any before one that is idle between two. So callers that say nothing keep nobody out, and a
connection whose request is being answered is never closed for another.
"""

import asyncio
import contextlib
import ipaddress
import math
import socket
import sys
from collections import Counter
from typing import Final, cast

from aiohttp import StreamReader, web

from facilitator.api.overload import Caller, Gate, Place
from facilitator.api.settings import Settings
from facilitator.metrics import CONNECTIONS, CONNECTIONS_CLOSED, CONNECTIONS_MAX, CONNECTIONS_REFUSED

LINGER_S: Final = 2.0
"""How long the rest of a refused body is read and thrown away, so that the answer is not lost to a reset."""
_SWEEP_S: Final = 0.5
"""How often callers that are late are looked for, and so how late they are found at most."""
_SWEEP_MAX: Final = 32
"""Most that are cut at once: each costs some 50 µs, and who asks meanwhile waits."""
_NEXT_S: Final = 0.01
"""How soon the others follow."""


class Connections:
    """Those of one server. `open` is the protocol factory of its listener."""

    def __init__(self, settings: Settings, server: web.Server, gate: Gate) -> None:
        self._settings = settings
        self._gate = gate
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._open: set[Connection] = set()
        self._silent: dict[Connection, None] = {}
        """Those that sent no whole request yet, the oldest first."""
        self._idle: dict[Connection, None] = {}
        """Those between two requests, the longest idle first."""
        self._by_address: Counter[str] = Counter()
        self._counting = False
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)
        CONNECTIONS_MAX.set(settings.connections_max)

    def open(self) -> "Connection":
        """What stands for one more connection."""
        return Connection(self, self._gate, self._settings, self._server, self._loop)

    def close(self) -> None:
        """Look for callers that are late no more."""
        self._sweeper.cancel()

    def admit(self, connection: "Connection") -> bool:
        """Whether there is room for it; then it is one of ours."""
        per_address_max = self._settings.connections_per_address_max
        if per_address_max is not None and self._by_address[connection.peer] >= per_address_max:
            CONNECTIONS_REFUSED.inc()
            return False
        if len(self._open) >= self._settings.connections_max and not self._make_room():
            CONNECTIONS_REFUSED.inc()
            return False
        self._open.add(connection)
        self._silent[connection] = None
        self._by_address[connection.peer] += 1
        CONNECTIONS.inc()
        return True

    def asked(self, connection: "Connection") -> None:
        """A whole head came: it is our turn."""
        connection.due = math.inf
        self._silent.pop(connection, None)
        self._idle.pop(connection, None)

    def answered(self, connection: "Connection") -> None:
        """The answer is with the caller, or with the kernel: another request may come."""
        if connection in self._open:
            connection.due = math.inf
            self._idle[connection] = None

    def awaits_head(self, connection: "Connection") -> bool:
        """Whether the next byte belongs to the head of a request."""
        return connection in self._silent or connection in self._idle

    def refused(self) -> None:
        """One was refused unparsed. All of a turn of the loop are counted at once: a series has a lock."""
        if not self._counting:
            self._counting = True
            self._loop.call_soon(self._count)

    def _count(self) -> None:
        self._counting = False
        self._gate.count()

    def forget(self, connection: "Connection") -> None:
        """It is closed, or as good as closed. May be called twice."""
        if connection not in self._open:
            return
        self._open.remove(connection)
        self.asked(connection)
        self._by_address[connection.peer] -= 1
        if not self._by_address[connection.peer]:
            del self._by_address[connection.peer]
        CONNECTIONS.dec()

    def _make_room(self) -> bool:
        oldest = next(iter(self._silent or self._idle), None)
        if oldest is None:
            return False
        CONNECTIONS_CLOSED.labels("crowded").inc()
        self.forget(oldest)
        oldest.force_close()  # what was written for it still goes out
        return True

    def _sweep(self) -> None:
        now = self._loop.time()
        late = [connection for connection in self._open if connection.due < now]
        for connection in late[:_SWEEP_MAX]:
            CONNECTIONS_CLOSED.labels("late" if self.awaits_head(connection) else "unread").inc()
            self.forget(connection)
            if connection.transport is not None:
                connection.transport.abort()
        self._sweeper = self._loop.call_later(_SWEEP_S if len(late) <= _SWEEP_MAX else _NEXT_S, self._sweep)


class Connection(web.RequestHandler):
    """One caller's connection."""

    __slots__ = (
        "_at_end",
        "_connections",
        "_gate",
        "_header_timeout_s",
        "_place",
        "_unanswered",
        "_unread_timeout_s",
        "caller",
        "due",
        "peer",
    )

    def __init__(
        self, connections: Connections, gate: Gate, settings: Settings, server: web.Server, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type] # as aiohttp's own runner passes it
            auto_decompress=False,
            keepalive_timeout=settings.idle_timeout_s,
            lingering_time=LINGER_S,
        )
        self._connections = connections
        self._gate = gate
        self._at_end = False
        """Whether the parser was last given just one whole request, and so has no byte of another."""
        self._unanswered = 0
        """Requests that the parser read and that have no whole answer yet. The library's own task learns of an answer a turn later only."""
        self._place: Place | None = None
        """Taken when the bytes of a request came, until its handler asks for it."""
        self._header_timeout_s = settings.header_timeout_s
        self._unread_timeout_s = settings.unread_timeout_s
        self.caller: Caller | None = None
        """Whose the last request was that was admitted here."""
        self.peer = ""
        """Where it comes from: an IPv4 address, or the /64 that one IPv6 caller has to itself."""
        self.due = loop.time() + settings.header_timeout_s
        """Time of the loop by which the caller must have sent a head that it began, or read the answer; infinite when it is our turn."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take it, or close it before a byte is read."""
        self.peer = _peer(transport.get_extra_info("peername"))
        if not self._connections.admit(self):
            cast("asyncio.Transport", transport).abort()
            return
        _bound_unread(transport.get_extra_info("socket"), self._unread_timeout_s)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """The first byte after an answer begins the next head, unless the request is refused as it stands."""
        met = None
        if self.caller is not None and self._at_end and not self._unanswered and not self._paused:
            met = self._gate.meet(data, self.caller)
            if isinstance(met, bytes):
                assert self.transport is not None
                self.transport.write(met)
                self._connections.refused()
                return
            self._place = met
        if self._connections.awaits_head(self):
            self.due = min(self.due, self._loop.time() + self._header_timeout_s)
        queued = len(self._messages)
        super().data_received(data)
        read = len(self._messages) - queued
        self._unanswered += read
        if data:  # the library passes none when it goes on with what it has
            self._at_end = read == 1 and _is_one_request(data, self._messages[-1][1])
        if met is not None and not self._messages:
            self._give_back()  # it is no whole head: nobody will ask for the place

    def admitted(self, tenant_id: str, credential: bytes) -> None:
        """The request in hand is this tenant's, with this key id, empty in mode `open`."""
        if self.caller is None or (self.caller.tenant_id, self.caller.credential) != (tenant_id, credential):
            self.caller = Caller(tenant_id, credential)

    def enter(self, tenant_id: str) -> Place:
        """A place in judgement for the request in hand; whoever takes it leaves it. Raises OverloadFault."""
        place, self._place = self._place, None
        if place is not None:
            if place.tenant_id == tenant_id:
                return place
            place.leave()
        return self._gate.enter(tenant_id)

    def _give_back(self) -> None:
        if self._place is not None:
            self._place.leave()
            self._place = None

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Write what is not yet written. It is the caller's turn to read."""
        self._give_back()
        self.due = self._loop.time() + self._unread_timeout_s
        done = await super().finish_response(request, resp, start_time)
        self._unanswered -= 1
        if not resp.keep_alive:
            self._at_end = False  # nothing is answered behind the last answer
        self._connections.answered(self)
        return done

    def connection_lost(self, exc: BaseException | None) -> None:
        """It is no more."""
        self._give_back()
        self._connections.forget(self)
        super().connection_lost(exc)


def _is_one_request(data: bytes, body: StreamReader) -> bool:
    """Whether bytes in which one head ends are that request alone, with all of its body.

    They begin with a letter, so that the first empty line is the end of that head and not the rest of it.
    """
    return body.is_eof() and data[:1].isalpha() and data.find(b"\r\n\r\n") + 4 + body.total_bytes == len(data)


def _peer(address: object) -> str:
    match address:
        case (str(host), *_):
            found = ipaddress.ip_address(host.partition("%")[0])
            if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is None:
                return str(ipaddress.IPv6Network((found, 64), strict=False))
            return str(getattr(found, "ipv4_mapped", None) or found)
        case _:
            return ""


def _bound_unread(taken: socket.socket | None, timeout_s: float) -> None:
    """Let the kernel cut a connection whose caller stopped reading. (RFC 5482; Linux' tcp(7), TCP_USER_TIMEOUT)"""
    if taken is not None and sys.platform == "linux" and taken.family in {socket.AF_INET, socket.AF_INET6}:
        with contextlib.suppress(OSError):
            taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(timeout_s * 1000))
