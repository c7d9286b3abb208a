"""Asks a facilitator, on behalf of a seller: verify, settle, supported, lookup.

One client for a process: connections are kept alive. Every question has a deadline. A settlement whose outcome is unknown
is asked about again, with the same Idempotency-Key, which is random for each `settle` and never made from anything that a
buyer wrote: a key that a buyer can foresee would let him hear a success twice. It must never turn silence into a refusal.
"""

import asyncio
import inspect
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, Literal, Self, TypeVar

import aiohttp
import msgspec

from facilitator.clock import Clock, SystemClock
from facilitator.gateway.answers import (
    PENDING,
    BadAnswer,
    Denied,
    FacilitatorFault,
    Json,
    NoAnswer,
    Operation,
    Settled,
    Settlement,
    Supported,
    Unavailable,
    Unreachable,
    Verified,
    read_settled,
)

_T = TypeVar("_T")

AuthHeaders = Callable[[str, str], Mapping[str, str] | Awaitable[Mapping[str, str]]]
"""Makes the headers that open a route, for each request anew: given the HTTP method and the URL, as a signed token needs them."""

trace_headers: Final[ContextVar[Mapping[str, str]]] = ContextVar("trace_headers", default={})  # noqa: B039 (nobody writes to it)
"""`traceparent` and `tracestate` that go along with what is asked in this context: the facilitator's spans and settlement are
found by that trace. Whoever sells by `charge` passes on what the buyer's request had. (W3C Trace Context)"""
ANSWER_BYTES_MAX: Final = 1024 * 1024
"""Largest answer that is read."""
_PATHS: Final[Mapping[Operation, str]] = {
    "verify": "/verify",
    "settle": "/settle",
    "supported": "/supported",
    "lookup": "/settlements/lookup",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Bounds of a client."""

    connections_max: int = 100
    connect_timeout_s: float = 5.0
    verify_timeout_s: float = 15.0
    """For a verify, a lookup or a supported, repeats included."""
    settle_attempt_s: float = 30.0
    """For one settle question; longer than the facilitator's own deadline, or its `settlement_pending` is never heard."""
    settle_timeout_s: float = 75.0
    """For a settlement with all its repeats."""
    verify_attempts_max: int = 2
    """Questions for one answer while the facilitator cannot be heard: a buyer waits, and nothing is at stake yet."""
    settle_attempts_max: int = 6
    """The same for a settlement, whose end somebody must know: enough for a facilitator to restart."""
    retry_first_s: float = 0.25
    """Wait before the first repeat; doubled for each further one."""
    retry_max_s: float = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One question and its answer, for whoever watches."""

    operation: Operation
    question: Json
    status: int
    """0 when no answer came."""
    answer: Json
    """Empty when none came, or none that is an object."""
    took_s: float

    @property
    def route(self) -> str:
        """The path that was asked."""
        return _PATHS[self.operation]


class FacilitatorClient:
    """`async with FacilitatorClient(url, api_key=…)`, or `close` it in the end. It connects when it is first asked."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        auth: AuthHeaders | None = None,
        settings: Settings | None = None,
        clock: Clock | None = None,
        observe: Callable[[Exchange], None] | None = None,
    ) -> None:
        """Give `api_key`, or `auth` that makes the headers of each request, or neither. `observe` is told every exchange."""
        if not url.startswith(("http://", "https://")):
            raise ValueError("expected the facilitator's URL: http://… or https://…")
        if api_key is not None and auth is not None:
            raise ValueError("expected api_key or auth, got both")
        self._url: Final = url.rstrip("/")
        self._api_key = api_key
        self._auth = auth
        self._settings: Final = settings or Settings()
        self._clock: Final = clock or SystemClock()
        self._observe = observe
        self._session: aiohttp.ClientSession | None = None

    # ---- questions

    async def verify(self, payment: Json, requirements: Json) -> Verified:
        """Ask whether this payment would settle now. Changes nothing. Raises FacilitatorFault, which never means a payment."""
        deadline = self._clock.monotonic() + self._settings.verify_timeout_s
        return await self._insist("verify", deadline, _body(payment, requirements), {}, lambda raw: msgspec.convert(raw, Verified))

    async def settle(self, payment: Json, requirements: Json, *, idempotency_key: str | None = None) -> Settled:
        """Have this payment made, once, and hear how it ended.

        A `settlement_pending` is asked about once more, as is an answer that got lost. `idempotency_key` is for a caller
        that repeats by itself what it has not heard the end of: the same key gets the same answer, so it must be a secret
        of the seller's. Raises FacilitatorFault; its `payment_may_happen` tells whether the buyer may be charged all the same.
        """
        deadline = self._clock.monotonic() + self._settings.settle_timeout_s
        headers = {"Idempotency-Key": idempotency_key or secrets.token_urlsafe(24)}
        body = _body(payment, requirements)
        settled = await self._insist("settle", deadline, body, headers, read_settled)
        if settled.pending and self._clock.monotonic() < deadline:
            try:
                settled = await self._insist("settle", deadline, body, headers, read_settled)
            except FacilitatorFault:
                return settled  # what we know for sure: it was sent, under this hash
        return settled

    async def supported(self) -> Supported:
        """Ask what is served. Raises FacilitatorFault."""
        deadline = self._clock.monotonic() + self._settings.verify_timeout_s
        return await self._insist("supported", deadline, {}, {}, lambda raw: msgspec.convert(raw, Supported))

    async def lookup(self, *, network: str, asset: str, payer: str, auth_nonce: str) -> Settlement | None:
        """Ask how the settlement of an authorization ended; None when the facilitator has none of ours. Raises FacilitatorFault."""
        deadline = self._clock.monotonic() + self._settings.verify_timeout_s
        query: Json = {"network": network, "asset": asset, "payer": payer, "nonce": auth_nonce}
        try:
            return await self._insist("lookup", deadline, query, {}, lambda raw: msgspec.convert(raw, Settlement))
        except Denied as denied:
            if denied.status == 404:
                return None
            raise

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    # ---- how

    async def _insist(
        self, operation: Operation, deadline: float, question: Json, headers: Mapping[str, str], read: Callable[[Json], _T]
    ) -> _T:
        """Ask until there is an answer, within the deadline. What one attempt may have set going, the last fault still tells."""
        may_happen = False
        attempts_max = self._settings.settle_attempts_max if operation == "settle" else self._settings.verify_attempts_max
        for attempt in range(attempts_max):
            try:
                return await self._ask(operation, deadline, question, headers, read)
            except FacilitatorFault as fault:
                may_happen = fault.payment_may_happen = fault.payment_may_happen or may_happen
                pause_s = min(self._settings.retry_first_s * 2**attempt, self._settings.retry_max_s)
                pause_s = max(pause_s, min(fault.retry_after_s or 0.0, self._settings.retry_max_s))
                last = attempt + 1 == attempts_max
                if last or not fault.retryable or self._clock.monotonic() + pause_s >= deadline:
                    raise
            await self._clock.sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")

    async def _ask(
        self, operation: Operation, deadline: float, question: Json, headers: Mapping[str, str], read: Callable[[Json], _T]
    ) -> _T:
        started = self._clock.monotonic()
        heard = Exchange(operation=operation, question=question, status=0, answer={}, took_s=0.0)
        try:
            status, retry_after, body = await self._send(operation, deadline - started, question, headers)
            heard = replace(heard, status=status, answer=_object(body) or {})
            if not 200 <= status < 300 and not _is_refusal(status, heard.answer):
                raise _problem(operation, status, retry_after, heard.answer)
            try:
                return read(heard.answer)
            except msgspec.ValidationError as error:
                message = f"the facilitator's answer to {operation} is none: {error}"
                raise BadAnswer("bad_answer", message, payment_may_happen=operation == "settle", status=status) from None
        finally:
            if self._observe is not None:
                self._observe(replace(heard, took_s=self._clock.monotonic() - started))

    async def _send(self, operation: Operation, left_s: float, question: Json, headers: Mapping[str, str]) -> tuple[int, str | None, bytes]:
        """One HTTP exchange. A request that was not sent is `Unreachable`, one without an answer `NoAnswer`."""
        method: Literal["GET", "POST"] = "POST" if operation in {"verify", "settle"} else "GET"
        url = self._url + _PATHS[operation]
        body = msgspec.json.encode(question) if method == "POST" else None
        timeout_s = min(left_s, self._settings.settle_attempt_s) if operation == "settle" else left_s
        sent = {"Content-Type": "application/json", **trace_headers.get(), **headers, **await self._auth_headers(method, url)}
        try:
            async with (
                asyncio.timeout(max(timeout_s, 0.001)),
                self._connected().request(
                    method,
                    url,
                    data=body,
                    params={key: str(value) for key, value in question.items()} if operation == "lookup" else None,
                    headers=sent,
                    allow_redirects=False,  # a POST that is redirected may become a GET
                ) as response,
            ):
                return response.status, response.headers.get("Retry-After"), await _read(response)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            message = f"the facilitator cannot be reached: {type(error).__name__}"
            raise Unreachable("unreachable", message, payment_may_happen=False) from error
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            message = f"the facilitator did not answer {operation}: {type(error).__name__}"
            raise NoAnswer("no_answer", message, payment_may_happen=operation == "settle") from error

    async def _auth_headers(self, method: str, url: str) -> Mapping[str, str]:
        if self._api_key is not None:
            return {"Authorization": f"Bearer {self._api_key}"}
        if self._auth is None:
            return {}
        try:
            async with asyncio.timeout(self._settings.verify_timeout_s):
                made = self._auth(method, url)
                return await made if inspect.isawaitable(made) else made
        except Exception as error:  # the seller's own code may raise anything, and nothing was sent yet
            message = f"the headers that open the facilitator could not be made: {type(error).__name__}"
            raise Denied("auth_failed", message, payment_may_happen=False, retryable=False) from error

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._settings.connections_max, keepalive_timeout=30.0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._settings.connect_timeout_s),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


def _body(payment: Json, requirements: Json) -> Json:
    return {"x402Version": payment.get("x402Version"), "paymentPayload": payment, "paymentRequirements": requirements}


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body, cut where no answer is as long."""
    body = bytearray()
    async for chunk in response.content.iter_chunked(65_536):
        body += chunk
        if len(body) > ANSWER_BYTES_MAX:
            break
    return bytes(body)


def _object(body: bytes) -> Json | None:
    """The JSON object in a body, None when there is none."""
    try:
        found: object = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _is_refusal(status: int, answer: Json) -> bool:
    """A refusal with an error status, as some facilitators send it: a 4xx with its reason, a pending settlement with its hash."""
    if status < 500:
        return (answer.get("isValid") is False and bool(answer.get("invalidReason"))) or (
            answer.get("success") is False and bool(answer.get("errorReason"))
        )
    return answer.get("success") is False and answer.get("errorReason") == PENDING and bool(answer.get("transaction"))


def _problem(operation: Operation, status: int, retry_after: str | None, answer: Json) -> FacilitatorFault:
    """What a status other than 2xx means. After 5xx a settlement may be on record all the same; a 4xx was not taken up."""
    word = answer.get("error") or answer.get("invalidReason") or answer.get("errorReason") or "unknown"
    said = f"the facilitator answered {operation} with {status} {str(word)[:64]!r}"
    settling = operation == "settle"
    if status == 429 or status >= 500:
        wait_s = float(retry_after) if retry_after is not None and retry_after.isascii() and retry_after.isdigit() else None
        return Unavailable("unavailable", said, payment_may_happen=settling and status != 429, retry_after_s=wait_s, status=status)
    if status >= 400:
        return Denied("denied", said, payment_may_happen=False, retryable=status == 408, status=status)
    return BadAnswer("bad_answer", said, payment_may_happen=settling, retryable=False, status=status)
