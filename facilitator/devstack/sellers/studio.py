"""A seller in the style of StableStudio: a paid order makes a job, and the paying wallet signs in to fetch the picture.

Sells `POST /api/generate/gpt-image-1/generate` and its alias `gpt-image-1.5` by x402 and MPP; `GET /api/jobs/{jobId}` wants SIGN-IN-WITH-X.
The picture is made before the payment is settled, so that a model that fails costs nobody anything; until the payment is
settled the job is pending, and stays so for ever if it is not.
"""

import asyncio
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from aiohttp import hdrs, web
from msgspec import Meta

from facilitator.devstack.sellers.models.model import Background, Format, Models, Order
from facilitator.devstack.sellers.openapi import document
from facilitator.devstack.sellers.pictures import Pictures
from facilitator.devstack.sellers.sign_in import SignIn
from facilitator.devstack.sellers.wire import Refused, open_shop, read
from facilitator.gateway.client import FacilitatorClient
from facilitator.gateway.middleware import charge
from facilitator.gateway.prices import find_token
from facilitator.gateway.replies import json_response
from facilitator.gateway.seller import PURCHASE, Priced
from facilitator.protocol.address import checksum_address

MODELS: Final = ("gpt-image-1", "gpt-image-1.5")

_Quality = Literal["low", "medium", "high", "auto"]
_Size = Literal["1024x1024", "1536x1024", "1024x1536", "auto"]

PRICES_ATOMIC: Final[Mapping[tuple[str, bool], int]] = {
    ("low", True): 9_000,
    ("low", False): 13_000,
    ("medium", True): 34_000,
    ("medium", False): 50_000,
    ("high", True): 133_000,
    ("high", False): 200_000,
}
"""By quality, and whether the picture is square."""
_DETAILS: Final = {"low": 12, "medium": 32, "high": 96}
_JOB_HEADER: Final = "X-Job-Id"


class GenerateRequest(msgspec.Struct):
    """Body of `POST /api/generate/…/generate`; auto stands for medium, 1024x1024, opaque."""

    prompt: Annotated[str, Meta(min_length=1, max_length=32_000)]
    quality: _Quality = "auto"
    size: _Size = "auto"
    background: Literal["transparent", "opaque", "auto"] = "auto"
    output_format: Format = "png"
    moderation: Literal["low", "auto"] = "auto"


class _Job(msgspec.Struct, kw_only=True):
    """What is on disk of a job."""

    payer: str
    """In lower case."""
    file: str
    model: str
    served_by: str
    paid: bool = False


_WANTED: Final = web.RequestKey("wanted", GenerateRequest)


def refuse(status: int, message: str, field: str | None = None) -> Refused:
    """An error as this API words it."""
    return Refused(status, {"success": False, "error": message} | ({"field": field} if field else {}))


class _Seller:
    def __init__(self, models: Models, pictures: Pictures, jobs: Path, sign_in: SignIn, described: Mapping[str, object]) -> None:
        self._models = models
        self._pictures = pictures
        self._jobs = jobs
        self._sign_in = sign_in
        self._described = described
        jobs.mkdir(parents=True, exist_ok=True)

    async def price(self, request: web.Request) -> int:
        wanted = request[_WANTED] = await read(request, GenerateRequest, refuse)
        if wanted.background == "transparent" and wanted.output_format == "jpeg":
            raise refuse(400, "background: a jpeg cannot be transparent", "background")
        return PRICES_ATOMIC[_quality(wanted), _size(wanted) == (1024, 1024)]

    async def generate(self, request: web.Request) -> web.StreamResponse:
        wanted, model = request[_WANTED], request.path.split("/")[3]
        width, height = _size(wanted)
        background: Background = "transparent" if wanted.background == "transparent" else "opaque"
        order = Order(
            model=model,
            prompt=wanted.prompt,
            width=width,
            height=height,
            background=background,
            format=wanted.output_format,
            details=_DETAILS[_quality(wanted)],
            wishes={name: getattr(wanted, name) for name in ("quality", "background", "output_format", "moderation")},
        )
        drawn = await self._models.draw(order)
        file, _ = await self._pictures.keep(drawn.pictures[0], wanted.output_format)
        job = _Job(
            payer=(request[PURCHASE].payer or "").lower(), file=f"{file}.{wanted.output_format}", model=model, served_by=drawn.served_by
        )
        name = str(uuid.uuid4())
        await asyncio.to_thread(self._write, name, job)
        told = {"type": f"{model}-generate", "jobId": name, "status": "pending", "success": True, "servedBy": drawn.served_by}
        return json_response(200, told, {_JOB_HEADER: name})

    async def mark_paid(self, _: web.Request, response: web.StreamResponse) -> None:
        """A response with a job leaves only when it is paid."""
        name = response.headers.get(_JOB_HEADER)
        job = self._read(name) if name else None
        if name and job is not None and not job.paid:
            job.paid = True
            self._write(name, job)

    async def job(self, request: web.Request) -> web.StreamResponse:
        who = self._sign_in.who(request)
        if isinstance(who, web.Response):
            return who
        name = request.match_info["jobId"]
        job = self._read(name)
        if job is None:
            raise refuse(404, "there is no such job", "jobId")
        if job.payer != who:
            raise refuse(403, "another wallet paid for this job")
        told = {"jobId": name, "type": f"{job.model}-generate", "status": "pending", "success": True, "servedBy": job.served_by}
        if job.paid:
            told |= {"status": "complete", "result": {"imageUrl": self._pictures.url_of(job.file)}}
        return json_response(200, told, {})

    async def openapi(self, _: web.Request) -> web.StreamResponse:
        return json_response(200, self._described, {hdrs.CACHE_CONTROL: "public, max-age=300"})

    def _write(self, name: str, job: _Job) -> None:
        unfinished = self._jobs / f"{name}.part"
        unfinished.write_bytes(msgspec.json.encode(job))
        unfinished.replace(self._jobs / f"{name}.json")

    def _read(self, name: str) -> _Job | None:
        try:
            return msgspec.json.decode((self._jobs / f"{uuid.UUID(name)}.json").read_bytes(), type=_Job)
        except (ValueError, OSError):
            return None


def application(
    facilitator: FacilitatorClient,
    models: Models,
    *,
    pay_to: str,
    network: str,
    base_url: str,
    mpp_secret: str,
    pictures: Pictures,
    jobs: Path,
) -> web.Application:
    """The seller. `jobs` is a directory of its own; `mpp_secret` binds its challenges."""
    paths = {model: f"/api/generate/{model}/generate" for model in MODELS}
    token = find_token(network)
    costs = (min(PRICES_ATOMIC.values()), max(PRICES_ATOMIC.values()))
    described = document(paths, GenerateRequest, dollars=costs, currency=checksum_address(token.address), base_url=base_url)
    seller = _Seller(models, pictures, jobs, SignIn(base_url, token.network), described)
    shop = open_shop(refuse, fault_status=502)
    for path in paths.values():
        shop.router.add_post(path, seller.generate)
    shop.router.add_get("/api/jobs/{jobId}", seller.job)
    shop.router.add_get("/openapi.json", seller.openapi)
    pictures.add_route(shop)
    prices = {
        f"POST {path}": Priced(price=seller.price, description=f"{model} - generate", mpp_secret=mpp_secret)
        for model, path in paths.items()
    }
    charge(shop, facilitator, pay_to=pay_to, network=network, routes=prices, public_url=base_url)
    shop.on_response_prepare.append(seller.mark_paid)
    return shop


def _quality(wanted: GenerateRequest) -> str:
    return "medium" if wanted.quality == "auto" else wanted.quality


def _size(wanted: GenerateRequest) -> tuple[int, int]:
    width, _, height = ("1024x1024" if wanted.size == "auto" else wanted.size).partition("x")
    return int(width), int(height)
