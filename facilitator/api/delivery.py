"""Did an answer reach the caller's machine? Its TCP acknowledges every byte, or the answer counts as undelivered.

One payment has one delivered success (docs/architecture.md decision 5), so the slot of an answer that nobody received is given to
the next caller. Linux tells how many bytes of a connection were acknowledged (`TCP_INFO`); that covers a closed
connection, a caller that stopped reading and one that vanished without a FIN. Elsewhere only the transport's state is
looked at: a connection that was lost with bytes unsent. It must never hold back the answer or the next request.
"""

import asyncio
import fcntl
import os
import socket
import struct
import sys
import termios
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Self

from facilitator.clock import Clock
from facilitator.telemetry import get_logger

_log = get_logger()

_TCP_INFO_BYTES: Final = 256
_BYTES_ACKED: Final = struct.Struct("=120xQ")
"""`tcpi_bytes_acked` of Linux' `struct tcp_info` (include/uapi/linux/tcp.h): a u64 at offset 120, since Linux 4.1."""
_TCP_CLOSE: Final = 7
_FIRST_LOOK_S: Final = 0.0005
_LOOK_MAX_S: Final = 0.05
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)

Told = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Sent:
    """How far a connection has come."""

    acked: int
    """Bytes that the peer's TCP has acknowledged since the connection began."""
    queued: int
    """Bytes that the kernel still holds for it, sent or not."""
    closed: bool
    """The connection was reset or has ended: nothing more will be acknowledged."""


class Wire:
    """The kernel's view of one connection, on a descriptor of our own that outlives the transport's."""

    def __init__(self, transport: asyncio.Transport, duplicate: socket.socket) -> None:
        self._transport = transport
        self._socket = duplicate
        sent = self._look()
        self._before = sent.acked + sent.queued + transport.get_write_buffer_size()
        self._target = self._before

    @classmethod
    def open(cls, transport: asyncio.Transport) -> Self | None:
        """Look at the connection from here on; None where the kernel does not tell."""
        original = transport.get_extra_info("socket")
        if sys.platform != "linux" or original is None or original.fileno() < 0:
            return None
        if original.family not in {socket.AF_INET, socket.AF_INET6}:
            return None
        try:
            duplicate = socket.socket(fileno=os.dup(original.fileno()))
        except OSError:  # no descriptor is free: better a weaker watch than no answer
            return None
        if len(duplicate.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)) < _BYTES_ACKED.size:
            duplicate.close()
            return None
        return cls(transport, duplicate)

    def expect(self, size: int) -> None:
        """So many bytes were written since `open`: all of them must be acknowledged."""
        self._target = self._before + size

    def verdict(self) -> bool | None:
        """True: all acknowledged. False: it never will be. None: not yet."""
        sent = self._look()
        if sent.acked >= self._target:
            return True
        unsent = self._transport.get_write_buffer_size() if not self._transport.is_closing() else 0
        if sent.closed or (self._transport.is_closing() and sent.acked + sent.queued + unsent < self._target):
            return False
        return None

    def reset(self) -> None:
        """End the connection so that nothing of it arrives any more: what the kernel still holds is thrown away."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._transport.abort()

    def close(self) -> None:
        """Let the descriptor go; only then may the connection end."""
        self._socket.close()

    def _look(self) -> _Sent:
        """Read both counters at one moment: an acknowledgement between the two reads would be counted twice or not at all."""
        acked, closed = self._info()
        while True:
            queued = int.from_bytes(fcntl.ioctl(self._socket, termios.TIOCOUTQ, b"\0" * 4), sys.byteorder)
            again, closed = self._info()
            if again == acked:
                return _Sent(acked, queued, closed)
            acked = again

    def _info(self) -> tuple[int, bool]:
        info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        return int(_BYTES_ACKED.unpack_from(info)[0]), info[0] == _TCP_CLOSE


class Deliveries:
    """Watches answers on their way. One watch ends within `timeout_s`; there is one for each answer that holds a slot."""

    def __init__(self, clock: Clock, timeout_s: float) -> None:
        self._clock = clock
        self._timeout_s = timeout_s
        self._watches: set[asyncio.Task[None]] = set()

    @property
    def under_way(self) -> int:
        """Answers whose delivery is not decided yet."""
        return len(self._watches)

    async def send(self, transport: asyncio.Transport | None, write: Callable[[], Awaitable[int]], arrived: Told, lost: Told) -> None:
        """Write an answer and see to its delivery; return once it is written. `write` returns the bytes it wrote, head included.

        Exactly one of the two is awaited: `arrived` once the caller's machine has the answer, `lost` when it never will.
        That happens in the background, `lost` after the connection was reset; when writing fails or takes too long, at once,
        and this raises. Writing and acknowledgement share one deadline.
        """
        wire = None
        deadline = self._clock.monotonic() + self._timeout_s
        try:
            if transport is None:
                raise ConnectionResetError("the caller is gone")  # noqa: TRY301
            wire = Wire.open(transport)
            size = await self._write(write)
            if wire is not None:
                wire.expect(size)
        except BaseException:
            if wire is not None:
                wire.reset()
                wire.close()
            await asyncio.shield(self._start(self._lost(lost)))
            raise
        if wire is None:
            self._start(self._watch_transport(transport, deadline, arrived, lost))
        elif wire.verdict():
            wire.close()
            await asyncio.shield(self._start(arrived()))
        else:
            self._start(self._watch(wire, deadline, arrived, lost))

    async def _write(self, write: Callable[[], Awaitable[int]]) -> int:
        """Bound it: a caller that reads nothing holds a write back for as long as it likes."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await write()
        except TimeoutError:
            raise ConnectionResetError("the caller stopped reading") from None

    async def finish(self) -> None:
        """Wait until every watch has ended: `timeout_s` at most, plus what the callbacks take."""
        while self._watches:
            await asyncio.wait(tuple(self._watches))

    def _start(self, watch: "asyncio.Future[None] | Awaitable[None]") -> asyncio.Task[None]:
        task = asyncio.ensure_future(_run(watch))
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)
        return task

    async def _watch(self, wire: Wire, deadline: float, arrived: Told, lost: Told) -> None:
        """Look more and more rarely until the verdict falls or the time is up."""
        pause_s = _FIRST_LOOK_S
        try:
            while (verdict := wire.verdict()) is None and self._clock.monotonic() < deadline:
                await self._clock.sleep(pause_s)
                pause_s = min(pause_s * 2, _LOOK_MAX_S)
            if not verdict:
                wire.reset()
        finally:
            wire.close()
        await (arrived() if verdict else self._lost(lost))

    async def _watch_transport(self, transport: asyncio.Transport, deadline: float, arrived: Told, lost: Told) -> None:
        """Without the kernel's word: the answer is out when the transport has handed it over."""
        while transport.get_write_buffer_size() and not transport.is_closing() and self._clock.monotonic() < deadline:
            await self._clock.sleep(_LOOK_MAX_S)
        if transport.get_write_buffer_size():
            transport.abort()
            await self._lost(lost)
        else:
            await arrived()

    async def _lost(self, lost: Told) -> None:
        await asyncio.sleep(0)  # the transport closes its descriptor in the next round of the loop
        _log.warning("answer.undelivered")
        await lost()


async def _run(watch: Awaitable[None]) -> None:
    try:
        await watch
    except Exception:  # noqa: BLE001 (a task's top)
        _log.exception("delivery.crashed")
