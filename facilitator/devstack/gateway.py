"""The sample gateway: a small paid API that asks a facilitator, in v1 and v2 of x402 at once.

For the demo, for `facilitator dev` and for tests. It shows the order that keeps seller and buyer honest: verify, do the work,
settle, and only then hand it over. A response whose settlement is not known to have succeeded is withheld. Prices and terms
are its own: of what a buyer sends it believes only that it is the buyer's.
"""

import asyncio
import base64
import binascii
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from time import monotonic
from typing import Any, Final, Literal

import aiohttp
from aiohttp import web

from facilitator.devstack.buyer import Json, requirements

Version = Literal[1, 2]
PAYMENT_HEADERS: Final[Mapping[str, Version]] = {"PAYMENT-SIGNATURE": 2, "X-PAYMENT": 1}
_RESPONSE_HEADERS: Final[Mapping[Version, str]] = {1: "X-PAYMENT-RESPONSE", 2: "PAYMENT-RESPONSE"}
_IDENTITY: Final[Mapping[Version, Sequence[str]]] = {1: ("scheme", "network"), 2: ("scheme", "network", "amount", "asset", "payTo")}
"""What a payment of that version says about the terms it was made for."""
_HEADER_BYTES_MAX: Final = 16_384
_SETTLE_ATTEMPTS: Final = 2
_RETRY_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """One route that costs something."""

    path: str
    price_atomic: int
    description: str
    handler: Callable[[web.Request], Awaitable[web.Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One question that the gateway asked the facilitator, and its answer."""

    route: Literal["/verify", "/settle"]
    question: Json
    status: int
    """0 when no answer came."""
    answer: Json
    took_s: float


async def _quote(_: web.Request) -> web.Response:
    return web.json_response({"quote": "Measure twice, pay once.", "at": datetime.now(UTC).isoformat(timespec="seconds")})


async def _report(_: web.Request) -> web.Response:
    return web.json_response({"report": "All quiet.", "rows": [{"day": day, "visitors": 40 + 2 * day} for day in range(1, 8)]})


ROUTES: Final = (
    Priced(path="/quote", price_atomic=1_000, description="a quote", handler=_quote),
    Priced(path="/report", price_atomic=10_000, description="a report", handler=_report),
)


class SampleGateway:
    """A paid API on the loopback. `start` once, `stop` once."""

    def __init__(
        self,
        facilitator_url: str,
        api_key: str,
        pay_to: str,
        *,
        routes: Sequence[Priced] = ROUTES,
        port: int = 0,
        observe: Callable[[Exchange], None] | None = None,
    ) -> None:
        """`port` 0 takes a free one. `observe` is told every exchange with the facilitator."""
        self._facilitator_url = facilitator_url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"}
        self._pay_to = pay_to
        self._routes = routes
        self._port = port
        self._observe = observe
        self._session: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None

    @property
    def base_url(self) -> str:
        """Where it listens, without a trailing slash."""
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Listen. Raises OSError when the port is taken."""
        application = web.Application()
        for priced in self._routes:
            application.router.add_get(priced.path, partial(self._sell, priced))
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=aiohttp.ClientTimeout(total=30))
        self._runner = web.AppRunner(
            application, access_log=None, max_line_size=2 * _HEADER_BYTES_MAX, max_field_size=2 * _HEADER_BYTES_MAX, shutdown_timeout=5.0
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening; whoever is being served is served."""
        if self._runner is not None:
            await self._runner.cleanup()
        if self._session is not None:
            await self._session.close()

    async def _sell(self, priced: Priced, request: web.Request) -> web.Response:
        """402 → payment → verify → work → settle → response."""
        sent = [(version, request.headers[name]) for name, version in PAYMENT_HEADERS.items() if name in request.headers]
        if not sent:
            return self._demand(request, priced, 2, "Payment required: send PAYMENT-SIGNATURE (v2) or X-PAYMENT (v1)")
        version, header = sent[0]
        terms = self._terms(request, priced, version)
        payment = _decoded(header)
        if payment is None or payment.get("x402Version") != version:
            return self._demand(request, priced, version, "invalid_payload")
        chosen = payment.get("accepted") if version == 2 else payment
        if not isinstance(chosen, dict) or any(chosen.get(name) != terms[name] for name in _IDENTITY[version]):
            return self._demand(request, priced, version, "invalid_payment_requirements")
        question = {"x402Version": version, "paymentPayload": payment, "paymentRequirements": terms}

        verified = await self._ask("/verify", question)
        if "isValid" not in verified.answer:
            return _unavailable()
        if verified.answer["isValid"] is not True:
            return self._demand(request, priced, version, str(verified.answer.get("invalidReason")), verified.answer.get("invalidMessage"))

        response = await priced.handler(request)
        if response.status >= 400:
            return response

        settled = await self._settle(question)
        if "success" not in settled.answer:
            return _unavailable()
        receipt = {_RESPONSE_HEADERS[version]: _encoded(settled.answer)}
        if settled.answer["success"] is not True:
            refused = self._demand(request, priced, version, str(settled.answer.get("errorReason")), settled.answer.get("errorMessage"))
            refused.headers.update(receipt)
            return refused
        response.headers.update(receipt | {"Cache-Control": "private"})
        return response

    async def _settle(self, question: Json) -> Exchange:
        """Settle, and ask once more when the outcome is not known. The key is this request's own, and of nobody else."""
        key = secrets.token_urlsafe(24)
        for attempt in range(1, _SETTLE_ATTEMPTS + 1):
            settled = await self._ask("/settle", question, {"Idempotency-Key": key})
            known = "success" in settled.answer and settled.answer.get("errorReason") != "settlement_pending"
            if known or attempt == _SETTLE_ATTEMPTS:
                return settled
            if settled.status != 200:
                await asyncio.sleep(_RETRY_S)
        raise AssertionError("the last attempt returns")

    async def _ask(self, route: Literal["/verify", "/settle"], question: Json, headers: Mapping[str, str] | None = None) -> Exchange:
        """Ask the facilitator. An answer that did not come, or is none, is an empty one."""
        assert self._session is not None, "start first"
        started = monotonic()
        status, answer = 0, {}
        try:
            async with self._session.post(self._facilitator_url + route, json=question, headers=headers) as response:
                status = response.status
                found = await response.json()
                answer = found if isinstance(found, dict) and status in {200, 400} else {}  # 400: the buyer's payment is no payment
        except (aiohttp.ClientError, TimeoutError, ValueError):
            pass
        exchange = Exchange(route=route, question=question, status=status, answer=answer, took_s=monotonic() - started)
        if self._observe is not None:
            self._observe(exchange)
        return exchange

    def _terms(self, request: web.Request, priced: Priced, version: Version) -> Json:
        """What this route costs, as the wire has it in that version."""
        terms = requirements(version, pay_to=self._pay_to, amount_atomic=priced.price_atomic)
        if version == 1:
            terms |= {"resource": _resource(request), "description": priced.description}
        return terms

    def _demand(self, request: web.Request, priced: Priced, version: Version, error: str, message: object = None) -> web.Response:
        """402 for clients of both versions: v2 reads the header, v1 the body; the payer's own version is told why it failed."""
        offer: dict[Version, Json] = {
            1: {"x402Version": 1, "error": error, "accepts": [self._terms(request, priced, 1)]},
            2: {
                "x402Version": 2,
                "error": error,
                "resource": {"url": _resource(request), "description": priced.description, "mimeType": "application/json"},
                "accepts": [self._terms(request, priced, 2)],
            },
        }
        if message:
            offer[version]["message"] = message
            offer[1]["message"] = message
        headers = {"PAYMENT-REQUIRED": _encoded(offer[2]), "Cache-Control": "no-store"}
        return web.json_response(offer[1], status=402, headers=headers)


def _unavailable() -> web.Response:
    """Nobody can say now whether the payment is good, or was made: nothing is handed over."""
    return web.json_response({"error": "facilitator_unavailable"}, status=502, headers={"Cache-Control": "no-store"})


def _resource(request: web.Request) -> str:
    return str(request.url.with_query(None))


def _encoded(message: Json) -> str:
    return base64.b64encode(json.dumps(message, separators=(",", ":")).encode()).decode("ascii")


def _decoded(header: str) -> dict[str, Any] | None:
    """The JSON object in a payment header, None when there is none."""
    if len(header) > _HEADER_BYTES_MAX:
        return None
    try:
        found = json.loads(base64.b64decode(header, validate=True))
    except (binascii.Error, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
