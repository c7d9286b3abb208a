"""What is refused when more is asked than can be judged: soon, cheaply, and of whoever asks most first.

By Little's law callers wait for as long as those ahead of them take, so the number of requests in judgement is bounded, and with it
the wait of everything that is served. The bound moves: a tenant may have twice as many in judgement as there are places left
(dynamic thresholds, Choudhury and Hahne 1998). One alone gets two thirds of all, rounded up, n that ask without end get 2/(2n+1) each,
and a quiet one finds room while there are more than a few places for each. A settlement leaves judgement when it waits for its turn, its
block or another caller: such waits cost no processor time and have bounds of their own.

What is beyond the bound is refused before its body is read; on a connection whose last caller is known, before the request is parsed,
and so is a settlement whose network's queue takes no more. It must never refuse a request of which anything was done.
"""

import re
import secrets
from collections import Counter
from collections.abc import Iterable
from itertools import count
from typing import Final, Protocol

from facilitator.errors import OverloadFault
from facilitator.metrics import JUDGED_MAX, JUDGING, REQUESTS, REQUESTS_SHED, series
from facilitator.protocol import v1
from facilitator.units import AuthNonce, Network

_SHARE: Final = 2
"""A tenant may have so many in judgement for each place that is left. More leaves less for others, less refuses the bursts of one alone."""
_SETTLE: Final = b"POST /settle HTTP/1.1\r\n"
_VERIFY: Final = b"POST /verify HTTP/1.1\r\n"
_VERIFY_SHED: Final = ("/verify", "connection")
_SETTLE_SHED: Final = ("/settle", "connection")
_QUEUE_SHED: Final = ("/settle", "queue")
_LENGTH: Final = re.compile(rb"\r\ncontent-length([^\r\n]*)")
_DIGITS: Final = re.compile(rb":[ \t]*([0-9]{1,9})[ \t]*")
_ID: Final = re.compile(rb"\r\nx-request-id:[ \t]*([A-Za-z0-9._:-]{1,64})[ \t]*(?:\r|\Z)", re.IGNORECASE)
_SPECIAL: Final = re.compile(
    rb"\r\n(?:(?:proxy-)?connection:(?![ \t]*keep-alive[ \t]*(?:\r|\Z))|transfer-encoding:|expect:|upgrade:|(?![a-z0-9_-]++:))"
)
"""Heads with these, or with a line without a plain name and a colon, are left to the parser: another hop may read them otherwise."""
_TEXT: Final = bytes(byte for byte in range(256) if byte == 0x09 or (byte >= 0x20 and byte != 0x7F))
"""What a line of a head may hold."""
_HEAD_BYTES_MAX: Final = 4096
"""A longer head is left to the parser."""
_AUTH_NONCE: Final = re.compile(rb'"nonce"[ \t\r\n]*:[ \t\r\n]*"(0x[0-9a-fA-F]{64})"')
_MESSAGE: Final = "more is asked than can be judged; nothing was done for this request: send the same payment again later"
_ANSWER_BEGIN: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json; charset=utf-8\r\nRetry-After: %d\r\nX-Request-Id: "
)
_ANSWER_MIDDLE: Final = (
    b"\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nServer: facilitator\r\nContent-Length: %d\r\n\r\n%b"
)
_BODY_BEGIN: Final = b'{"error":"%b","message":"%b","requestId":"'
_BODY_END: Final = b'"}'
_ID_BEGIN: Final = secrets.token_hex(8).encode()
_ID_END: Final = count(secrets.randbits(48))


class Queues(Protocol):
    """What is asked before a settlement is let in (`settlement.engine.Engine`)."""

    def full(self, network: Network, coming: int) -> OverloadFault | None:
        """Why no more is begun on this network when `coming` more are on their way; None: one more may come."""

    def began(self, auth_nonce: AuthNonce) -> bool:
        """Whether a payment with it was begun here: its record answers, however full the queue."""


class Place:
    """A request in judgement. `leave` may be called twice."""

    __slots__ = ("_gate", "network", "tenant_id")

    def __init__(self, gate: "Gate", tenant_id: str, network: Network | None = None) -> None:
        self._gate: Gate | None = gate
        self.tenant_id = tenant_id
        self.network = network
        """Where it settles, as far as that was known before it was parsed."""

    def leave(self) -> None:
        """It is judged, or waits for something else than us."""
        if self._gate is not None:
            self._gate.left(self)
            self._gate = None


class Caller:
    """Who spoke last on a connection, and the head with which it was refused: a client's next head is often the same."""

    __slots__ = ("credential", "plain_head", "request_bytes", "tenant_id")

    def __init__(self, tenant_id: str, credential: bytes) -> None:
        self.tenant_id: Final = tenant_id
        self.credential: Final = credential
        """The id of its key, empty in mode `open`."""
        self.plain_head = b""
        """The last plain one that was this caller's and carried no id, with the empty line behind it."""
        self.request_bytes = -1
        """How long a request with that head is, its body among it."""

    def look(self, data: bytes) -> tuple[bool, bytes | None]:
        """Whether these bytes are just one whole plain request of this caller's, and the request id that it offers."""
        if len(data) == self.request_bytes and data.startswith(self.plain_head):
            return True, None
        head, ended, body = data.partition(b"\r\n\r\n")
        if not ended or len(head) > _HEAD_BYTES_MAX or self.credential not in head:
            return False, None
        body_bytes, request_id = _said(head)
        if request_id is None and body_bytes >= 0:
            self.plain_head, self.request_bytes = head + ended, len(head) + len(ended) + body_bytes
        return body_bytes == len(body), request_id


class Gate:
    """The requests in judgement in this process."""

    def __init__(self, judged_max: int, retry_after_s: int) -> None:
        self._judged_max = judged_max
        self._retry_after_s = retry_after_s
        self._overloaded = _around_id(b"overloaded", _MESSAGE.encode(), retry_after_s, len(_new_id()))
        self._all = 0
        self._of: Counter[str] = Counter()
        self._coming: Counter[Network] = Counter()
        self._queues: Queues | None = None
        self._names: tuple[tuple[bytes, Network], ...] = ()
        self._shed: list[tuple[str, str]] = []
        """Route and place of each that was refused unparsed and not counted yet."""
        JUDGED_MAX.set(judged_max)
        JUDGING.set_function(lambda: self._all)

    def watch(self, queues: Queues, networks: Iterable[Network]) -> None:
        """From now on ask the queues of these networks before a settlement is let in."""
        self._queues = queues
        self._names = tuple(
            (f'"{name}"'.encode(), network) for network in networks for name in (network, v1.render_network(network)) if name is not None
        )

    def beyond(self, tenant_id: str) -> bool:
        """Whether this tenant has its share in judgement."""
        return self._of[tenant_id] >= _SHARE * (self._judged_max - self._all)

    def enter(self, tenant_id: str) -> Place:
        """A place; whoever takes it leaves it. Raises OverloadFault."""
        if self.beyond(tenant_id):
            REQUESTS_SHED.labels("admitted").inc()
            raise OverloadFault("overloaded", _MESSAGE)
        return self._take(tenant_id, None)

    def meet(self, data: bytes, caller: Caller) -> Place | bytes | None:
        """What becomes of the next bytes on a connection whose last caller is known, before they are parsed.

        A place, if they begin a request for judgement: taken now, because the handlers of all that the loop reads in one turn run later. Or
        the whole answer, if they are just one whole request, plain in form and with the caller's key, that is beyond the bound or whose
        queue is full. None: the parser sees to it.
        """
        settles = data.startswith(_SETTLE)
        if not settles and not data.startswith(_VERIFY):
            return None
        if self.beyond(caller.tenant_id):
            return self._refusal(data, caller, _SETTLE_SHED if settles else _VERIFY_SHED, None)
        network = self._network(data) if settles else None
        if network is not None and self._queues is not None:
            full = self._queues.full(network, self._coming[network])
            if full is not None and (auth_nonce := _auth_nonce(data)) is not None and not self._queues.began(auth_nonce):
                refusal = self._refusal(data, caller, _QUEUE_SHED, full)
                if refusal is not None:
                    return refusal
        return self._take(caller.tenant_id, network)

    def count(self) -> None:
        """Count what was refused unparsed since the last time."""
        for (route, at), refused in Counter(self._shed).items():
            series(REQUESTS, route, "503").inc(refused)
            series(REQUESTS_SHED, at).inc(refused)
        self._shed.clear()

    def left(self, place: Place) -> None:
        """One place is free."""
        self._all -= 1
        self._of[place.tenant_id] -= 1
        if not self._of[place.tenant_id]:
            del self._of[place.tenant_id]
        if place.network is not None:
            self._coming[place.network] -= 1

    def _take(self, tenant_id: str, network: Network | None) -> Place:
        self._all += 1
        self._of[tenant_id] += 1
        if network is not None:
            self._coming[network] += 1
        return Place(self, tenant_id, network)

    def _network(self, data: bytes) -> Network | None:
        """The only network of ours that these bytes name."""
        networks = {network for name, network in self._names if name in data}
        return networks.pop() if len(networks) == 1 else None

    def _refusal(self, data: bytes, caller: Caller, shed: tuple[str, str], fault: OverloadFault | None) -> bytes | None:
        """The whole answer. Some 0.6 µs, five times that when the head is another; the ordinary way to a 503 costs fifty."""
        plain, offered = caller.look(data)
        if not plain:
            return None
        self._shed.append(shed)
        request_id = offered or _new_id()
        if fault is None and offered is None:
            return request_id.join(self._overloaded)
        error, message = ("overloaded", _MESSAGE) if fault is None else (fault.kind, str(fault))
        retry_after_s = (fault and fault.retry_after_s) or self._retry_after_s
        return request_id.join(_around_id(error.encode(), message.encode(), retry_after_s, len(request_id)))


def _new_id() -> bytes:
    return b"%b%016x" % (_ID_BEGIN, next(_ID_END))


def _around_id(error: bytes, message: bytes, retry_after_s: int, id_bytes: int) -> tuple[bytes, bytes, bytes]:
    """The whole answer but for the request id, which stands in its head and in its body: what is before, between and behind."""
    body = _BODY_BEGIN % (error, message)
    return _ANSWER_BEGIN % retry_after_s, _ANSWER_MIDDLE % (len(body) + id_bytes + len(_BODY_END), body), _BODY_END


def _auth_nonce(data: bytes) -> AuthNonce | None:
    """The only nonce that these bytes name."""
    auth_nonces = _AUTH_NONCE.findall(data)
    return AuthNonce(auth_nonces[0].decode().lower()) if len(auth_nonces) == 1 else None


def _said(head: bytes) -> tuple[int, bytes | None]:
    """The bytes of the body that a plain head announces, else -1, and the request id that it offers."""
    lowered = head.lower()
    lengths = _LENGTH.findall(lowered)
    length = _DIGITS.fullmatch(lengths[0]) if len(lengths) == 1 else None
    if length is None or _SPECIAL.search(lowered) or head.translate(None, _TEXT).replace(b"\r\n", b""):
        return -1, None
    offered = _ID.search(head)
    return int(length[1]), offered[1] if offered else None
