"""What is refused when more is asked than can be judged: soon, cheaply, and of whoever asks most first.

By Little's law callers wait for as long as those ahead of them take, so the number of requests in judgement is bounded, and with it
the wait of everything that is served. The bound moves: a tenant may have as many in judgement as there are places left
(dynamic thresholds, Choudhury and Hahne 1998). One alone gets half of all, n that ask without end get 1/(n+1) each, and a quiet one always
finds room. A settlement leaves judgement when it waits for its turn, its block or another caller: such waits cost no processor
time and have bounds of their own.

What is beyond the bound is refused before its body is read; on a connection whose last caller is still beyond it, before
the request is parsed. It must never refuse a request of which anything was done.
"""

import re
import secrets
from collections import Counter
from typing import Final

from facilitator.errors import OverloadFault
from facilitator.metrics import JUDGED_MAX, JUDGING, REQUESTS_SHED

_LINE: Final = re.compile(rb"POST (/verify|/settle) HTTP/1\.1\r\n")
_LENGTH: Final = re.compile(rb"\r\ncontent-length([^\r\n]*)", re.IGNORECASE)
_DIGITS: Final = re.compile(rb":[ \t]*([0-9]{1,9})[ \t]*")
_ID: Final = re.compile(rb"\r\nx-request-id:[ \t]*([A-Za-z0-9._:-]{1,64})[ \t]*(?=\r\n)", re.IGNORECASE)
_SPECIAL: Final = re.compile(rb"\r\n(?:transfer-encoding|connection|expect|upgrade):", re.IGNORECASE)
"""Heads with these are left to the parser."""
_MESSAGE: Final = "more is asked than can be judged; nothing was done for this request: send the same payment again later"
_HEAD: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json; charset=utf-8\r\nRetry-After: %d\r\nX-Request-Id: %b\r\n"
    b"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nServer: facilitator\r\nContent-Length: %d\r\n\r\n%b"
)
_BODY: Final = b'{"error":"overloaded","message":"' + _MESSAGE.encode() + b'","requestId":"%b"}'


class Place:
    """A request in judgement. `leave` may be called twice."""

    __slots__ = ("_gate", "_tenant_id")

    def __init__(self, gate: "Gate", tenant_id: str) -> None:
        self._gate: Gate | None = gate
        self._tenant_id = tenant_id

    def leave(self) -> None:
        """It is judged, or waits for something else than us."""
        if self._gate is not None:
            self._gate.left(self._tenant_id)
            self._gate = None


class Gate:
    """The requests in judgement in this process."""

    def __init__(self, judged_max: int, retry_after_s: int) -> None:
        self._judged_max = judged_max
        self._retry_after_s = retry_after_s
        self._all = 0
        self._of: Counter[str] = Counter()
        JUDGED_MAX.set(judged_max)

    def beyond(self, tenant_id: str) -> bool:
        """Whether this tenant has as many in judgement as there are places left."""
        return self._of[tenant_id] >= self._judged_max - self._all

    def enter(self, tenant_id: str) -> Place:
        """A place; whoever takes it leaves it. Raises OverloadFault."""
        if self.beyond(tenant_id):
            REQUESTS_SHED.labels("admitted").inc()
            raise OverloadFault("overloaded", _MESSAGE)
        self._all += 1
        self._of[tenant_id] += 1
        JUDGING.inc()
        return Place(self, tenant_id)

    def left(self, tenant_id: str) -> None:
        """One place is free."""
        self._all -= 1
        self._of[tenant_id] -= 1
        if not self._of[tenant_id]:
            del self._of[tenant_id]
        JUDGING.dec()

    def refusal(self, data: bytes, credential: bytes) -> bytes | None:
        """The whole answer to `data`, if that is just one whole request for judgement, plain in form and with this credential.

        For a connection whose caller is `beyond`. About 5 µs, a tenth of what the ordinary way to a 503 costs.
        """
        line = _LINE.match(data)
        end = data.find(b"\r\n\r\n")
        if line is None or end < 0:
            return None
        head = data[: end + 2]
        lengths = _LENGTH.findall(head)
        length = _DIGITS.fullmatch(lengths[0]) if len(lengths) == 1 else None
        if length is None or len(data) - end - 4 != int(length[1]) or credential not in head:
            return None
        if _SPECIAL.search(head) or head.count(b"\n") != head.count(b"\r\n"):
            return None
        REQUESTS_SHED.labels("connection").inc()
        offered = _ID.search(head)
        request_id = offered[1] if offered else secrets.token_hex(16).encode()
        body = _BODY % request_id
        return _HEAD % (self._retry_after_s, request_id, len(body), body)
