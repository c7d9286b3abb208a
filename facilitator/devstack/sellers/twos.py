"""A seller in the style of 2s.io: chat, pictures and descriptions by the call, x402 and no accounts.

Sells `POST /api/ai/chat` (price by model and max_tokens), `POST /api/ai/image` (by model and number) and
`POST /api/ai/describe-image`; `GET /api/ai/models` is free. Errors have the shape of OpenAI's.
"""

import base64
import math
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
from aiohttp import web
from msgspec import Meta

from facilitator.devstack.sellers.fetching import URL_LENGTH_MAX, NotFetched, Resolve, check_url, fetch, resolve
from facilitator.devstack.sellers.models.model import Conversation, Models, Order, Said
from facilitator.devstack.sellers.wire import Refused, open_shop, read
from facilitator.gateway.client import FacilitatorClient
from facilitator.gateway.middleware import charge
from facilitator.gateway.replies import json_response
from facilitator.gateway.seller import Priced

DESCRIBE_ATOMIC: Final = 18_000
CHAT_ATOMIC_MIN: Final = 1_000

_CHAT_ATOMIC: Final[Mapping[str, int]] = {"openai/gpt-5-mini": 2_000, "openai/gpt-5": 12_000, "anthropic/claude-opus-4.8": 30_000}
"""Atomic units for 1000 tokens of max_tokens."""
_CHAT_ATOMIC_OTHERS: Final = 30_000
_IMAGE_ATOMIC: Final[Mapping[str, int]] = {"black-forest-labs/flux-1.1-pro": 30_000, "openai/gpt-image-1": 60_000}
"""For one picture."""
_IMAGE_ATOMIC_OTHERS: Final = 60_000
_SIZE: Final = re.compile(r"([0-9]{1,5})x([0-9]{1,5})", re.ASCII)
_SIDE_MIN: Final = 64
_SIDE_MAX: Final = 2048

_ModelName = Annotated[str, Meta(min_length=1, max_length=80)]


class _Part(msgspec.Struct):
    type: Literal["text"]
    text: str


class _Message(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]


class ChatRequest(msgspec.Struct):
    """Body of `POST /api/ai/chat`."""

    model: _ModelName
    messages: Annotated[list[_Message], Meta(min_length=1, max_length=256)]
    max_tokens: Annotated[int, Meta(ge=1, le=8192)] = 1024
    temperature: Annotated[float, Meta(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Meta(ge=0, le=1)] = 1.0
    stop: (
        Annotated[str, Meta(min_length=1, max_length=256)]
        | Annotated[list[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(max_length=4)]
        | None
    ) = None
    stream: bool = False


class ImageRequest(msgspec.Struct):
    """Body of `POST /api/ai/image`."""

    model: _ModelName
    prompt: Annotated[str, Meta(min_length=1, max_length=4000)]
    n: Annotated[int, Meta(ge=1, le=4)] = 1
    size: Annotated[str, Meta(max_length=16)] = "1024x1024"


class DescribeRequest(msgspec.Struct, rename="camel"):
    """Body of `POST /api/ai/describe-image`."""

    image_url: Annotated[str, Meta(min_length=1, max_length=URL_LENGTH_MAX)]
    instruction: Annotated[str, Meta(max_length=1000)] | None = None


_CHAT: Final = web.RequestKey("chat", ChatRequest)
_IMAGE: Final = web.RequestKey("image", ImageRequest)
_DESCRIBE: Final = web.RequestKey("describe", DescribeRequest)


def refuse(status: int, message: str, field: str | None = None) -> Refused:
    """An error as OpenAI's clients read it."""
    kind = "invalid_request_error" if status < 500 else "api_error"
    return Refused(status, {"error": {"message": message, "type": kind, "param": field, "code": None}})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seller:
    models: Models
    allowed_origin: str | None
    names: Resolve

    # ---- prices: what is wrong is said here, before anything is asked for

    async def chat_price(self, request: web.Request) -> int:
        wanted = request[_CHAT] = await read(request, ChatRequest, refuse)
        if wanted.stream:
            raise refuse(400, "a paid answer is handed over whole: stream is not offered", "stream")
        return max(CHAT_ATOMIC_MIN, math.ceil(_CHAT_ATOMIC.get(wanted.model, _CHAT_ATOMIC_OTHERS) * wanted.max_tokens / 1000))

    async def image_price(self, request: web.Request) -> int:
        wanted = request[_IMAGE] = await read(request, ImageRequest, refuse)
        _sides(wanted.size)
        return _IMAGE_ATOMIC.get(wanted.model, _IMAGE_ATOMIC_OTHERS) * wanted.n

    async def describe_price(self, request: web.Request) -> int:
        wanted = request[_DESCRIBE] = await read(request, DescribeRequest, refuse)
        try:
            check_url(wanted.image_url, self.allowed_origin)
        except ValueError as error:
            raise refuse(400, f"imageUrl: {error}", "imageUrl") from None
        return DESCRIBE_ATOMIC

    # ---- handlers

    async def chat(self, request: web.Request) -> web.StreamResponse:
        wanted = request[_CHAT]
        messages = [Said(role=each.role, content=_text(each.content)) for each in wanted.messages]
        stop = (wanted.stop,) if isinstance(wanted.stop, str) else tuple(wanted.stop or ())
        conversation = Conversation(
            model=wanted.model,
            messages=messages,
            max_tokens=wanted.max_tokens,
            stop=stop,
            temperature=wanted.temperature,
            top_p=wanted.top_p,
        )
        reply = await self.models.chat(conversation)
        usage = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
        usage["total_tokens"] = reply.prompt_tokens + reply.completion_tokens
        return _json(
            {
                "id": f"chatcmpl-{secrets.token_hex(12)}",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": wanted.model,
                "choices": [
                    {"index": 0, "message": {"role": "assistant", "content": reply.content}, "finish_reason": reply.finish_reason},
                ],
                "usage": usage | {"tokenizer": reply.tokenizer},
                "servedBy": reply.served_by,
            }
        )

    async def image(self, request: web.Request) -> web.StreamResponse:
        wanted = request[_IMAGE]
        width, height = _sides(wanted.size)
        drawn = await self.models.draw(Order(model=wanted.model, prompt=wanted.prompt, width=width, height=height, count=wanted.n))
        data = [{"b64_json": base64.b64encode(picture).decode("ascii")} for picture in drawn.pictures]
        return _json({"created": int(time.time()), "data": data, "servedBy": drawn.served_by})

    async def describe(self, request: web.Request) -> web.StreamResponse:
        wanted = request[_DESCRIBE]
        try:
            picture = await fetch(check_url(wanted.image_url, self.allowed_origin), allowed_origin=self.allowed_origin, names=self.names)
        except NotFetched as why:
            raise refuse(422, f"the picture was not fetched, and this request charged nothing: {why}", "imageUrl") from None
        found = await self.models.describe(picture.content, wanted.instruction)
        return _json(
            {
                "imageUrl": wanted.image_url,
                "altText": found.alt_text,
                "description": found.description,
                "contentType": found.kind,
                "text": found.text,
                "mainObjects": list(found.main_objects),
                "dominantColors": list(found.dominant_colors),
                "servedBy": found.served_by,
                "notMeasured": dict(found.not_measured),
            }
        )

    async def list_models(self, _: web.Request) -> web.StreamResponse:
        by = self.models.served_by
        chat = [_listed(name, "chat", by["chat"], usdPer1000MaxTokens=_usd(price)) for name, price in _CHAT_ATOMIC.items()]
        image = [_listed(name, "image", by["draw"], usdPerImage=_usd(price)) for name, price in _IMAGE_ATOMIC.items()]
        others = {"usdPer1000MaxTokens": _usd(_CHAT_ATOMIC_OTHERS), "usdPerImage": _usd(_IMAGE_ATOMIC_OTHERS)}
        return _json({"object": "list", "data": chat + image, "anyOtherModel": others})


def application(
    facilitator: FacilitatorClient,
    models: Models,
    *,
    pay_to: str,
    network: str,
    base_url: str,
    allowed_origin: str | None = None,
    names: Resolve = resolve,
) -> web.Application:
    """The seller. `allowed_origin` is the one origin from which pictures are fetched though it is private."""
    seller = _Seller(models=models, allowed_origin=allowed_origin, names=names)
    shop = open_shop(refuse, fault_status=502)
    shop.router.add_get("/api/ai/models", seller.list_models)
    shop.router.add_post("/api/ai/chat", seller.chat)
    shop.router.add_post("/api/ai/image", seller.image)
    shop.router.add_post("/api/ai/describe-image", seller.describe)
    prices = {
        "POST /api/ai/chat": Priced(price=seller.chat_price, description="a chat completion"),
        "POST /api/ai/image": Priced(price=seller.image_price, description="pictures from a prompt"),
        "POST /api/ai/describe-image": Priced(price=seller.describe_price, description="a description of a picture"),
    }
    charge(shop, facilitator, pay_to=pay_to, network=network, routes=prices, public_url=base_url)
    return shop


def _sides(size: str) -> tuple[int, int]:
    found = _SIZE.fullmatch(size)
    sides = (int(found[1]), int(found[2])) if found else (0, 0)
    if not all(_SIDE_MIN <= side <= _SIDE_MAX for side in sides):
        raise refuse(400, f'size: expected "WxH" with sides from {_SIDE_MIN} to {_SIDE_MAX}, got {size!r}', "size")
    return sides


def _text(content: str | list[_Part]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _listed(name: str, kind: str, served_by: str, **pricing: str) -> dict[str, object]:
    return {"id": name, "object": "model", "type": kind, "pricing": pricing, "servedBy": served_by}


def _usd(atomic: int) -> str:
    return f"{atomic / 1_000_000:.4f}"


def _json(told: Mapping[str, object]) -> web.Response:
    return json_response(200, told, {})
