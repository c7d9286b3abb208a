"""Sells one request: price, demand or payment, verify, work, settle, and only then the answer.

A response whose settlement is not known to have succeeded is withheld, and a buyer is told the truth about his payment:
made, not made, or open, in which case the same payment may be sent again. A paid response that did not go out whole is kept
for him. It must never hand anything over before the facilitator's success, let a handler send by itself, or settle for a
buyer who has gone. Who may hear a success is the facilitator's to say; nothing here replaces that.
"""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, assert_never

from aiohttp import hdrs, web
from aiohttp.http import StreamWriter

from facilitator.clock import Clock
from facilitator.gateway import replies
from facilitator.gateway.answers import FacilitatorFault, Settled
from facilitator.gateway.client import FacilitatorClient, trace_headers
from facilitator.gateway.cors import expose, preflight
from facilitator.gateway.mpp import Asked, Problem, Scope, challenge, problem_of, read_credential
from facilitator.gateway.payments import RESPONSE_HEADERS, NotPayment, Payment, read_payment
from facilitator.gateway.paywall import Paywall, Unpaid
from facilitator.gateway.prices import Price, Resource, Terms, Token, parse_price
from facilitator.gateway.purchases import Kept, Purchases, Whole
from facilitator.protocol.messages import Version
from facilitator.tracing import trace_id_of
from facilitator.units import Address

_journal = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
PriceOf = Callable[[web.Request], Price | Awaitable[Price | None] | None]
"""Computes the price of a request; None: this one is free. It may raise web.HTTPBadRequest and the like for a wrong request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """A route that costs something."""

    price: Price | PriceOf
    description: str = ""
    mime_type: str = "application/json"
    demand: str = "Payment required: send PAYMENT-SIGNATURE (v2) or X-PAYMENT (v1)"
    """`error` of the 402 for who has not paid yet."""
    mpp_secret: str | None = field(default=None, repr=False)
    """Sells it by MPP too, and binds its challenges: the same in every process. The body is then read before the handler has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shop:
    """What is sold, for what, and to whose account."""

    pay_to: Address
    tokens: tuple[Token, ...]
    routes: Mapping[tuple[str, str], Priced]
    """By method and canonical path."""
    allow_origins: frozenset[str]
    paywall: Paywall | None
    public_url: str | None
    realm: str
    """Host and port of `public_url`, where MPP challenges hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Bounds of the middleware."""

    max_timeout_s: int = 300
    """How long a buyer's authorization is to be good for: longer than handler and settlement together."""
    turn_timeout_s: float = 30.0
    """How long a request waits for another one with the same payment."""
    keep_s: float = 900.0
    """How long a paid response that did not go out is kept for its buyer."""
    kept_bytes_max: int = 64 * 1024 * 1024
    """Bytes of such responses; the oldest go first."""
    retry_after_s: int = 2
    """What `Retry-After` says when the same payment should be sent again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """What a handler may know of the payment that it works for. Verified, not yet settled."""

    payer: str | None
    version: Version
    terms: Terms


PURCHASE: Final = web.RequestKey("purchase", Purchase)
"""`request[PURCHASE]` inside a handler; absent when the request is free."""
_TRACE_CHARS_MAX: Final = 512
"""Longest header of a trace that is passed on, as W3C Trace Context §3.3.1.5 asks of `tracestate`."""
_WITHHELD: Final = web.RequestKey("withheld", bool)

_Outcome = Kept | Settled | FacilitatorFault


class Seller:
    """Serves the requests of one application. `serve` is its middleware, `withhold` its signal; `finish` once in the end."""

    def __init__(self, facilitator: FacilitatorClient, shop: Shop, settings: Settings, clock: Clock) -> None:
        self._facilitator = facilitator
        self._shop = shop
        self._settings = settings
        self._clock = clock
        self._purchases = Purchases(clock, bytes_max=settings.kept_bytes_max, keep_s=settings.keep_s)
        self._settling: dict[tuple[str, ...], asyncio.Task[_Outcome]] = {}

    def terms_at(self, price: Price) -> tuple[Terms, ...]:
        """What a price is in each of the coins. Raises ConfigFault."""
        pay_to, timeout_s = self._shop.pay_to, self._settings.max_timeout_s
        return tuple(
            Terms(token=token, pay_to=pay_to, amount_atomic=parse_price(price, token), max_timeout_s=timeout_s)
            for token in self._shop.tokens
        )

    async def finish(self) -> None:
        """Wait until every settlement under way has its end; each has a deadline."""
        while self._settling:
            await asyncio.wait(self._settling.values())

    async def withhold(self, request: web.Request, _: web.StreamResponse) -> None:
        """Before any response goes out: while a handler works for a payment, none does."""
        if request.get(_WITHHELD):
            if isinstance(request.writer, StreamWriter):  # the error answer must not inherit what the stream had set
                request.writer.chunked, request.writer.length = False, None
            raise RuntimeError("a paid handler must return its response, not send it: it is not paid yet")

    @web.middleware
    async def serve(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Serve one request, free or priced."""
        if request.method == hdrs.METH_OPTIONS:
            return await self._preflight(request) or await handler(request)
        priced = self._priced(request.method, request.match_info)
        if priced is None:
            return await handler(request)
        token = trace_headers.set(_traced(request))
        try:
            response = await self._sell(request, handler, priced)
        except web.HTTPException as raised:
            self._expose(request, raised)
            raise
        finally:
            trace_headers.reset(token)
        if not response.prepared:
            self._expose(request, response)
        return response

    # ---- the way down

    async def _sell(self, request: web.Request, handler: Handler, priced: Priced) -> web.StreamResponse:
        price = await _price_of(priced, request)
        if price is None:
            return await handler(request)
        url = f"{self._shop.public_url}{request.path}" if self._shop.public_url else str(request.url.with_query(None))
        resource = Resource(url=url, description=priced.description, mime_type=priced.mime_type)
        unpaid = Unpaid(terms=self.terms_at(price), resource=resource, error=priced.demand)
        payment: Payment | NotPayment | Problem | None = None
        if priced.mpp_secret is not None:
            scope = Scope(realm=self._shop.realm, secret=priced.mpp_secret.encode())
            asked = Asked(method=_method(request.method), target=request.raw_path, body=await request.read())
            now = self._clock.now()
            unpaid = replace(unpaid, challenges=tuple(challenge(scope, asked, each, resource, now) for each in unpaid.terms))
            payment = read_credential(scope, asked, request.headers.getall(hdrs.AUTHORIZATION, []), unpaid.terms, resource, now)
        if payment is None:
            payment = read_payment(request.headers, unpaid.terms, resource)
        if payment is None or request.method == hdrs.METH_HEAD:
            return replies.demand(request, unpaid, 2, None, self._shop.paywall)
        if isinstance(payment, Problem):
            return replies.problem(payment, unpaid)
        if isinstance(payment, NotPayment):
            word = payment.reason.v1 if payment.version == 1 else payment.reason.v2
            return replies.demand(request, replace(unpaid, error=word), payment.version, payment.message, None)
        async with self._purchases.turn(payment.identity, self._settings.turn_timeout_s) as mine:
            if not mine:
                return replies.busy(self._settings.retry_after_s)
            return await self._serve_payment(request, handler, payment, unpaid)

    async def _serve_payment(self, request: web.Request, handler: Handler, payment: Payment, unpaid: Unpaid) -> web.StreamResponse:
        """With the turn for this payment: nobody else in this process is served for it."""
        if (earlier := self._settling.get(payment.identity)) is not None:  # its request was cancelled
            await asyncio.wait([earlier])
        if (kept := self._purchases.find(payment.identity, payment.digest, request)) is not None:
            return await self._deliver(request, payment, kept)
        try:
            verified = await self._facilitator.verify(payment.payload, payment.requirements)
        except FacilitatorFault as fault:
            _journal.warning("not sold, as the facilitator cannot be asked: %s", fault)
            return replies.unavailable(fault, settling=False, retry_after_s=self._settings.retry_after_s)
        if not verified.is_valid:
            return self._refuse(request, unpaid, payment, verified.invalid_reason or "invalid_payment", verified.invalid_message)

        request[PURCHASE] = Purchase(payer=verified.payer, version=payment.version, terms=payment.terms)
        response = await self._work(request, handler)
        if response.status >= 400:
            return response
        whole = await Whole.of(response)
        if _gone(request):
            return replies.buyer_gone()
        task = asyncio.create_task(self._settle(request, payment, whole))
        self._settling[payment.identity] = task
        task.add_done_callback(lambda _: self._settling.pop(payment.identity, None))
        outcome = await asyncio.shield(task)  # a request that is cancelled leaves a settlement that is not
        return await self._conclude(request, payment, unpaid, outcome)

    async def _conclude(self, request: web.Request, payment: Payment, unpaid: Unpaid, outcome: _Outcome) -> web.StreamResponse:
        """After the settlement: the goods, or the truth."""
        match outcome:
            case Kept():
                return await self._deliver(request, payment, outcome)
            case FacilitatorFault():
                return replies.unavailable(outcome, settling=True, retry_after_s=self._settings.retry_after_s)
            case Settled(pending=True):
                return replies.pending(payment, outcome, self._settings.retry_after_s)
            case Settled():
                answer = self._refuse(request, unpaid, payment, outcome.reason or "unexpected_settle_error", outcome.message)
                if payment.challenge_id is None:
                    answer.headers[RESPONSE_HEADERS[payment.version]] = replies.encode(outcome.raw)
                return answer
            case _:
                assert_never(outcome)

    async def _work(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Have the handler make its response, which stays here."""
        request[_WITHHELD] = True
        try:
            response = await handler(request)
        except web.HTTPException as raised:
            if raised.status >= 400:
                raise
            response = raised
        finally:
            request[_WITHHELD] = False
        if response.status >= 400:
            response.headers.setdefault(hdrs.CACHE_CONTROL, "no-store")
        return response

    async def _settle(self, request: web.Request, payment: Payment, whole: Whole) -> _Outcome:
        """Have the payment made; a paid response is kept from the moment on at which it is paid."""
        try:
            settled = await self._facilitator.settle(payment.payload, payment.requirements)
        except FacilitatorFault as fault:
            _journal.warning(
                "withheld, as the end of a settlement is not known (may have been made: %s): %s", fault.payment_may_happen, fault
            )
            return fault
        if not settled.success:
            return settled
        replies.paid(whole, payment, settled, self._clock.now())
        self._expose(request, whole)
        return self._purchases.keep(payment.identity, payment.digest, request, whole)

    async def _deliver(self, request: web.Request, payment: Payment, kept: Kept) -> web.StreamResponse:
        """Send a paid response; it is kept until it has left this process whole."""
        response = kept.whole.response()
        if _gone(request):
            return response
        try:
            await response.prepare(request)
            await response.write_eof()
            transport = request.transport
            if transport is not None:
                transport.set_write_buffer_limits(high=0)  # a drain now ends when the last byte is with the kernel
                await request.writer.drain()
                transport.set_write_buffer_limits()
        except ConnectionError:
            return response
        if not _gone(request):
            self._purchases.drop(payment.identity)
        return response

    # ---- around it

    def _refuse(self, request: web.Request, unpaid: Unpaid, payment: Payment, reason: str, message: str | None) -> web.Response:
        """402 with what is wrong with the payment, and the offer again; a program reads it, whatever it calls itself."""
        if payment.challenge_id is not None:
            return replies.problem(problem_of(reason, message), unpaid)
        return replies.demand(request, replace(unpaid, error=reason), payment.version, message, None)

    def _priced(self, method: str, match: web.UrlMappingMatchInfo) -> Priced | None:
        resource = match.route.resource
        if resource is None:
            return None
        return self._shop.routes.get((_method(method), resource.canonical))

    async def _preflight(self, request: web.Request) -> web.Response | None:
        """The answer to a browser that asks whether a script may pay here; None when it does not ask, or others answer."""
        method = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_METHOD)
        if not method or not self._shop.allow_origins:
            return None
        asked = await request.app.router.resolve(request.clone(method=method))
        return preflight(request, self._shop.allow_origins) if self._priced(method, asked) is not None else None

    def _expose(self, request: web.Request, answer: web.StreamResponse | Whole) -> None:
        expose(answer.headers, request.headers.get(hdrs.ORIGIN), self._shop.allow_origins)


async def _price_of(priced: Priced, request: web.Request) -> Price | None:
    """The price of this request; None when it is free."""
    if isinstance(priced.price, str | int):
        return priced.price
    computed = priced.price(request)
    return await computed if inspect.isawaitable(computed) else computed


def _traced(request: web.Request) -> Mapping[str, str]:
    """The headers of the trace that the buyer's request stands in, if it does."""
    if trace_id_of(request.headers.get("traceparent")) is None:
        return {}
    found = {name: request.headers[name] for name in ("traceparent", "tracestate") if name in request.headers}
    return {name: value for name, value in found.items() if len(value) <= _TRACE_CHARS_MAX}


def _method(method: str) -> str:
    """HEAD asks for what GET sells."""
    return hdrs.METH_GET if method == hdrs.METH_HEAD else method


def _gone(request: web.Request) -> bool:
    """Has the buyer's connection ended?"""
    return request.transport is None or request.transport.is_closing()
