"""What a process of the seller remembers about payments: who is being served now, and what was paid and not handed over.

Requests with the same payment are served one after another, so that a handler does not work twenty times for one payment.
A response that was paid stays here until it went out whole, so that a buyer whose connection broke gets it with the same
payment. It must never be the reason why somebody is served: that is the facilitator's answer alone. A restart forgets all
of it, and then the facilitator's record tells what became of a payment.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http.cookies import SimpleCookie
from typing import Final

from aiohttp import web
from aiohttp.payload import Payload
from multidict import CIMultiDict

from facilitator.clock import Clock

Identity = tuple[str, ...]

_FRAMING: Final = ("Content-Length", "Transfer-Encoding")


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """A handler's response in full, that may be sent more than once."""

    status: int
    reason: str
    headers: CIMultiDict[str]
    cookies: SimpleCookie
    body: bytes
    compressed: bool

    @classmethod
    async def of(cls, response: web.StreamResponse) -> "Whole":
        """Read it all. Raises TypeError for one that cannot be withheld: a stream, a file, a web socket."""
        if not isinstance(response, web.Response) or response.prepared:
            raise TypeError(f"a paid handler returns a web.Response, unsent and whole, not {type(response).__name__}")
        headers = CIMultiDict(response.headers)
        for name in _FRAMING:
            headers.popall(name, None)
        body = await response.body.as_bytes() if isinstance(response.body, Payload) else bytes(response.body or b"")
        return cls(
            status=response.status,
            reason=response.reason or "",
            headers=headers,
            cookies=SimpleCookie(response.cookies),
            body=body,
            compressed=response.compression,
        )

    def response(self) -> web.Response:
        """The response, to be sent once."""
        made = web.Response(status=self.status, reason=self.reason, headers=self.headers, body=self.body)
        made.cookies.update(self.cookies)
        if self.compressed:
            made.enable_compression()
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A paid response on its way."""

    whole: Whole
    digest: bytes
    """Of the payment header that paid it."""
    request: tuple[str, str]
    """Method and target of the request that it answers."""
    until: float
    """Monotonic."""


class Purchases:
    """See the module. For one event loop."""

    def __init__(self, clock: Clock, *, bytes_max: int, keep_s: float) -> None:
        self._clock = clock
        self._bytes_max = bytes_max
        self._keep_s = keep_s
        self._bytes = 0
        self._kept: OrderedDict[Identity, Kept] = OrderedDict()
        self._turns: dict[Identity, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def turn(self, identity: Identity, timeout_s: float) -> AsyncIterator[bool]:
        """Wait until nobody else in this process is served for this payment; False when that took too long."""
        lock, number = self._turns.get(identity, (asyncio.Lock(), 0))
        self._turns[identity] = (lock, number + 1)
        mine = False
        try:
            try:
                async with asyncio.timeout(timeout_s):
                    mine = await lock.acquire()
            except TimeoutError:
                pass
            yield mine
        finally:
            if mine:
                lock.release()
            _, number = self._turns[identity]
            if number == 1:
                del self._turns[identity]
            else:
                self._turns[identity] = (lock, number - 1)

    def keep(self, identity: Identity, digest: bytes, request: web.Request, whole: Whole) -> Kept:
        """Hold on to a paid response. The oldest go when there are too many bytes of them."""
        kept = Kept(whole=whole, digest=digest, request=_target(request), until=self._clock.monotonic() + self._keep_s)
        self.drop(identity)
        self._kept[identity] = kept
        self._bytes += len(whole.body)
        while self._kept and (self._bytes > self._bytes_max or next(iter(self._kept.values())).until < self._clock.monotonic()):
            self.drop(next(iter(self._kept)))
        return kept

    def find(self, identity: Identity, digest: bytes, request: web.Request) -> Kept | None:
        """The response that this very payment has paid for this very request, if it is still undelivered."""
        kept = self._kept.get(identity)
        if kept is None or kept.digest != digest or kept.request != _target(request) or kept.until < self._clock.monotonic():
            return None
        return kept

    def drop(self, identity: Identity) -> None:
        """It went out, or is kept no longer."""
        kept = self._kept.pop(identity, None)
        if kept is not None:
            self._bytes -= len(kept.whole.body)


def _target(request: web.Request) -> tuple[str, str]:
    return request.method, request.raw_path
