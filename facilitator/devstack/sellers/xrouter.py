"""A seller in the style of x-router: pictures from a prompt in x402 v1 and v2, with URLs that stay.

Sells `POST /v1/images/generate`; `POST /v1/images/estimate` and `GET /v1/images/models` are free. Errors are
`{"error": CODE, "message": …}`. The receipt stands in `X-Payment-Response` for buyers of both versions.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from aiohttp import web
from msgspec import Meta

from facilitator.devstack.sellers.models.model import Models, Order
from facilitator.devstack.sellers.pictures import Pictures
from facilitator.devstack.sellers.wire import Refused, open_shop, read
from facilitator.gateway.client import FacilitatorClient
from facilitator.gateway.middleware import charge
from facilitator.gateway.payments import RESPONSE_HEADERS
from facilitator.gateway.replies import encode, json_response
from facilitator.gateway.seller import Priced
from facilitator.protocol.codec import Malformed, decode_header

_MEGAPIXEL: Final = 1024 * 1024
_SEED_MAX: Final = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    name: str
    atomic: int
    """For a megapixel, at its default steps."""
    steps: int
    supports_steps: bool


MODELS: Final[Mapping[str, _Model]] = {
    "flux-schnell": _Model(name="FLUX.1 schnell", atomic=5_694, steps=4, supports_steps=False),
    "flux-dev": _Model(name="FLUX.1 dev", atomic=11_388, steps=28, supports_steps=True),
    "sdxl": _Model(name="Stable Diffusion XL", atomic=7_592, steps=20, supports_steps=True),
}

_Side = Annotated[int, Meta(ge=128, le=2048, multiple_of=64)]


class ImageRequest(msgspec.Struct, rename="camel"):
    """Body of `POST /v1/images/generate` and of `POST /v1/images/estimate`."""

    prompt: Annotated[str, Meta(min_length=2, max_length=3000)]
    model: str = "flux-schnell"
    width: _Side = 1024
    height: _Side = 1024
    number_results: Annotated[int, Meta(ge=1, le=4)] = 1
    negative_prompt: Annotated[str, Meta(max_length=3000)] | None = None
    steps: Annotated[int, Meta(ge=1, le=50)] | None = None
    guidance: Annotated[float, Meta(ge=1, le=30)] | None = None
    seed: Annotated[int, Meta(ge=0, le=_SEED_MAX)] | None = None


_WANTED: Final = web.RequestKey("wanted", ImageRequest)
_CODES: Final = {"width": "INVALID_DIMENSIONS", "height": "INVALID_DIMENSIONS", "model": "INVALID_MODEL"}
_PAYMENT_REQUIRED: Final = "PAYMENT_REQUIRED"


def refuse(status: int, message: str, field: str | None = None) -> Refused:
    """An error by its code."""
    if status >= 500:
        code = "INTERNAL_ERROR"
    else:
        code = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}.get(status) or _CODES.get(field or "", "INVALID_PARAMETER")
    return Refused(status, {"error": code, "message": message})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seller:
    models: Models
    pictures: Pictures

    async def price(self, request: web.Request) -> int:
        wanted = request[_WANTED] = await _wanted(request)
        return _cost(wanted)

    async def generate(self, request: web.Request) -> web.StreamResponse:
        wanted = request[_WANTED]
        named = {"negative_prompt": wanted.negative_prompt, "steps": wanted.steps, "guidance": wanted.guidance}
        order = Order(
            model=wanted.model,
            prompt=wanted.prompt,
            width=wanted.width,
            height=wanted.height,
            count=wanted.number_results,
            seed=wanted.seed,
            details=wanted.steps or MODELS[wanted.model].steps,
            wishes={name: wish for name, wish in named.items() if wish is not None},
        )
        drawn = await self.models.draw(order)
        kept = [await self.pictures.keep(picture, "png") for picture in drawn.pictures]
        images = [{"url": url, "uuid": name} for name, url in kept]
        return json_response(200, {"images": images, "model": wanted.model, "servedBy": drawn.served_by}, {})

    async def estimate(self, request: web.Request) -> web.StreamResponse:
        wanted = await _wanted(request)
        told = {
            "model": wanted.model,
            "width": wanted.width,
            "height": wanted.height,
            "numberResults": wanted.number_results,
            "estimatedCost": {"usd": f"{_cost(wanted) / 1_000_000:.6f}", "note": "This is what the 402 will ask."},
            "servedBy": self.models.served_by["draw"],
        }
        return json_response(200, told, {})

    async def list_models(self, _: web.Request) -> web.StreamResponse:
        listed = [
            {
                "id": key,
                "name": each.name,
                "supportsSteps": each.supports_steps,
                "defaultSteps": each.steps,
                "usdPerMegapixel": f"{each.atomic / 1_000_000:.6f}",
                "servedBy": self.models.served_by["draw"],
            }
            for key, each in MODELS.items()
        ]
        return json_response(200, {"models": listed}, {})


def application(
    facilitator: FacilitatorClient, models: Models, *, pay_to: str, network: str, base_url: str, pictures: Pictures
) -> web.Application:
    """The seller."""
    seller = _Seller(models=models, pictures=pictures)
    shop = open_shop(refuse, fault_status=500)
    shop.router.add_post("/v1/images/generate", seller.generate)
    shop.router.add_post("/v1/images/estimate", seller.estimate)
    shop.router.add_get("/v1/images/models", seller.list_models)
    pictures.add_route(shop)
    prices = {"POST /v1/images/generate": Priced(price=seller.price, description="pictures from a prompt", demand=_PAYMENT_REQUIRED)}
    charge(shop, facilitator, pay_to=pay_to, network=network, routes=prices, public_url=base_url)
    shop.on_response_prepare.append(_name_transaction)
    return shop


async def _wanted(request: web.Request) -> ImageRequest:
    """The order. Raises Refused."""
    wanted = await read(request, ImageRequest, refuse)
    model = MODELS.get(wanted.model)
    if model is None:
        raise refuse(400, f"model: expected one of {', '.join(MODELS)}, got {wanted.model[:80]!r}", "model")
    if wanted.steps is not None and not model.supports_steps:
        raise refuse(400, f"steps: {wanted.model} does not take any", "steps")
    return wanted


def _cost(wanted: ImageRequest) -> int:
    model = MODELS[wanted.model]
    share = (wanted.steps or model.steps) / model.steps
    return max(1, math.ceil(model.atomic * wanted.width * wanted.height / _MEGAPIXEL * share)) * wanted.number_results


async def _name_transaction(_: web.Request, response: web.StreamResponse) -> None:
    """Give every receipt as `X-Payment-Response`, with the transaction under both of the names that clients look for."""
    for name in RESPONSE_HEADERS.values():
        content = decode_header(response.headers.get(name, ""))
        if isinstance(content, Malformed) or not content:
            continue
        receipt = msgspec.json.decode(content, type=dict[str, object])
        response.headers[RESPONSE_HEADERS[1]] = encode(receipt | {"transactionHash": receipt.get("transaction", "")})
        return
