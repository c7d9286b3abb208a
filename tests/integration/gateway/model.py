"""A facilitator in miniature that keeps our answer-slot rules and fails by script, and a shop before it.

The script says what becomes of each question in turn; when it is used up everything goes well. What the model holds on
record is what a buyer is charged for, whatever anybody was told.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from facilitator.devstack.accounts import dev_account
from facilitator.devstack.buyer import Buyer, payment_header, requirements
from facilitator.devstack.sellers import twos
from facilitator.devstack.sellers.models.local import LOCAL
from facilitator.devstack.sellers.models.model import Conversation, ModelFault, Reply
from facilitator.gateway.client import FacilitatorClient, Settings
from facilitator.gateway.middleware import charge
from facilitator.gateway.seller import Priced
from tests.fixtures.mpp import answered, as_x402, header

TX_HASH = "0x" + "ab" * 32
HASTY = Settings(settle_attempts_max=3, verify_attempts_max=1, retry_first_s=0.001, retry_max_s=0.002)
SELLER = str(dev_account("seller").address)
BUYER = Buyer.numbered(7)

Verifying = Literal["valid", "refuse", "503", "lost", "<html>"]
Settling = Literal["success", "pending", "refuse", "503", "recorded 503", "lost", "recorded lost", "recorded <html>", "401", "409"]
Working = Literal["works", "404", "raises", "raises 404", "redirects"]
Stage = Literal["stays", "leaves at verify", "leaves at work", "leaves at settle"]


@dataclass
class Model:
    """The facilitator's record of one payment, and the script of what it does."""

    verifying: list[Verifying] = field(default_factory=list)
    settling: list[Settling] = field(default_factory=list)
    recorded: bool = False
    told_with_key: str | None = None
    """The Idempotency-Key of the caller who heard the success."""
    keys: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    at: Callable[[str], Awaitable[None]] | None = None
    """Told of each stage before it begins."""

    def application(self) -> web.Application:
        application = web.Application()
        application.router.add_post("/verify", self._verify)
        application.router.add_post("/settle", self._settle)
        return application

    async def _verify(self, request: web.Request) -> web.StreamResponse:
        await self._reach("verify", request)
        step: Verifying = self.verifying.pop(0) if self.verifying else "valid"
        if step == "503":
            return web.json_response({"error": "starting"}, status=503, headers={"Retry-After": "1"})
        if step == "lost":
            return _cut(request)
        if step == "<html>":
            return web.Response(text="<html>", content_type="text/html")
        if self.told_with_key is not None:
            return web.json_response({"isValid": False, "invalidReason": "duplicate_settlement", "payer": ""})
        if step == "refuse" and not self.recorded:
            return web.json_response({"isValid": False, "invalidReason": "insufficient_funds", "invalidMessage": "poor", "payer": ""})
        return web.json_response({"isValid": True, "payer": BUYER.address})

    async def _settle(self, request: web.Request) -> web.StreamResponse:
        await self._reach("settle", request)
        key = request.headers["Idempotency-Key"]
        self.keys.append(key)
        step: Settling = self.settling.pop(0) if self.settling else "success"
        if step in {"401", "409"}:
            return web.json_response({"error": "unauthorized"}, status=int(step))
        if step == "503":
            return web.json_response({"error": "busy"}, status=503)
        if step == "lost":
            return _cut(request)
        if step == "refuse" and not self.recorded:
            return self._answer("insufficient_funds", "")
        if self.told_with_key not in {None, key}:
            return self._answer("duplicate_settlement", TX_HASH)
        self.recorded = True
        if step == "recorded 503":
            return web.json_response({"error": "store_unavailable"}, status=503)
        if step == "recorded lost":
            return _cut(request)
        if step == "recorded <html>":
            return web.Response(text="<html>", content_type="text/html")
        if step == "pending":
            return self._answer("settlement_pending", TX_HASH)
        self.told_with_key = key
        return self._answer(None, TX_HASH)

    def _answer(self, reason: str | None, transaction: str) -> web.Response:
        told: dict[str, object] = {"success": reason is None, "transaction": transaction, "network": "eip155:84532", "payer": ""}
        return web.json_response(told if reason is None else told | {"errorReason": reason})

    async def _reach(self, stage: str, request: web.Request) -> None:
        await request.read()
        self.asked.append(stage)
        if self.at is not None:
            await self.at(stage)


def _cut(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


@dataclass(frozen=True)
class Answer:
    """What a buyer received."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


@dataclass(frozen=True)
class Route:
    """What a buyer asks for, what it costs, and how its answer is known."""

    request: str
    order: bytes
    price_atomic: int
    goods: bytes


WORK = Route("GET /work", b"", 5, b'{"work": "done"}')
CHAT = Route(
    "POST /api/ai/chat",
    b'{"model": "openai/gpt-5-mini", "max_tokens": 64, "messages": [{"role": "user", "content": "hi"}]}',
    1_000,
    b'"done"',
)
"""Of the sample seller in the style of 2s.io."""


class Scene:
    """A model, a shop, and buyers on bare sockets. `async with Scene(model) as scene`.

    The shop sells `/work` and `/other`, by MPP too, or, when `route` is CHAT, it is the sample seller with a chat that fails by script.
    """

    def __init__(self, model: Model, *, route: Route = WORK, handler_cancellation: bool = False, **options: Any) -> None:
        self.route = route
        self._server_options = {"handler_cancellation": handler_cancellation}
        self.model = model
        self.working: list[Working] = []
        self.worked = 0
        self._stack = AsyncExitStack()
        self._options = options
        model.at = self._at
        self._leaves: Stage = "stays"
        self._leaving: asyncio.StreamWriter | None = None
        self._noticed = asyncio.Event()
        self._serving: list[web.Request] = []

    async def __aenter__(self) -> Self:
        facilitator = TestServer(self.model.application())
        await self._stack.enter_async_context(facilitator)
        client = FacilitatorClient(str(facilitator.make_url("")), settings=HASTY)
        self.port = unused_port()
        application = self._sample(client) if self.route is CHAT else self._shop(client)
        application.middlewares.insert(0, self._note)
        self.runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0, **self._server_options)
        self._stack.push_async_callback(self.runner.cleanup)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", self.port).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def _shop(self, client: FacilitatorClient) -> web.Application:
        application = web.Application()
        for path in ("/work", "/other"):
            application.router.add_get(path, self._work)
        prices = {f"GET {path}": Priced(price=5, mpp_secret="s" * 32) for path in ("/work", "/other")}
        seen = {"public_url": f"http://127.0.0.1:{self.port}"} | self._options
        charge(application, client, pay_to=SELLER, network="base-sepolia", routes=prices, **seen)
        return application

    def _sample(self, client: FacilitatorClient) -> web.Application:
        models = replace(LOCAL, chat=self._chat)
        return twos.application(client, models, pay_to=SELLER, network="base-sepolia", base_url="http://shop")

    def payment(self) -> str:
        """A header field with a payment for what the route costs."""
        return ": ".join(payment_header(BUYER.pay(2, self._terms())))

    async def payment_both_ways(self) -> list[str]:
        """One authorization in two header fields: as x402, and as the answer to a challenge of the route."""
        unpaid = await self.buy("Accept: */*")
        assert unpaid is not None
        credential = answered(BUYER, unpaid.headers["Www-Authenticate"])
        return [": ".join(payment_header(as_x402(credential, self._terms()))), f"Authorization: {header(credential)['Authorization']}"]

    def _terms(self) -> dict[str, Any]:
        return requirements(2, pay_to=SELLER, amount_atomic=self.route.price_atomic)

    async def buy(self, payment: str, *, stage: Stage = "stays", path: str | None = None) -> Answer | None:
        """Send a header field with a payment; None when the buyer left before an answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        if stage != "stays":
            self._leaves, self._leaving = stage, writer
            self._noticed.clear()
        asked = f"GET {path}" if path else self.route.request
        head = f"{asked} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\nContent-Length: {len(self.route.order)}"
        writer.write(f"{head}\r\n{payment}\r\n\r\n".encode() + self.route.order)
        raw = await reader.read()
        writer.close()
        left = stage != "stays" and self._leaving is None
        if left:
            await self._noticed.wait()
        self._leaves, self._leaving = "stays", None
        return None if left or not raw else _parse(raw)

    async def _work(self, _: web.Request) -> web.StreamResponse:
        self.worked += 1
        await self._at("work")
        step: Working = self.working.pop(0) if self.working else "works"
        match step:
            case "404":
                return web.json_response({"error": "none"}, status=404)
            case "raises 404":
                raise web.HTTPNotFound
            case "raises":
                raise ValueError("the handler is broken")
            case "redirects":
                raise web.HTTPSeeOther("/elsewhere")
            case "works":
                return web.json_response({"work": "done"}, headers={"Cache-Control": "public, max-age=60"})

    async def _chat(self, _: Conversation) -> Reply:
        self.worked += 1
        await self._at("work")
        step: Working = self.working.pop(0) if self.working else "works"
        if step == "raises":
            raise ValueError("the model is broken")
        if step != "works":
            raise ModelFault("the model is ill")
        return Reply(content="done", finish_reason="stop", prompt_tokens=1, completion_tokens=1, tokenizer="none", served_by="a script")

    @web.middleware
    async def _note(self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        self._serving.append(request)
        return await handler(request)

    async def _at(self, stage: str) -> None:
        if self._leaves != f"leaves at {stage}" or self._leaving is None:
            return
        self._leaving.transport.abort()
        self._leaving = None
        while (transport := self._serving[-1].transport) is not None and not transport.is_closing():  # until the shop knows
            await asyncio.sleep(0)
        self._noticed.set()


def _parse(raw: bytes) -> Answer:
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.title(): value for name, _, value in (line.partition(": ") for line in lines)}
    return Answer(int(first.split()[1]), headers, body)
