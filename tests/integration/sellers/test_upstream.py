"""Models of an OpenAI-compatible upstream: what is asked of it, what is sold of its answers, and that its faults cost nobody."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from facilitator.devstack.sellers.models.local import LOCAL
from facilitator.devstack.sellers.models.model import Models, Order
from facilitator.devstack.sellers.models.upstream import Upstream
from tests.integration.sellers.market import CHAT, GENERATE, IMAGE, ROUTER, Json, Stalls

KEY = "sk-secret-of-the-seller"
SEEN = {
    "altText": "A small drawing of some coloured shapes",
    "description": "It is a drawing. It has shapes.",
    "contentType": "illustration",
    "text": "local-renderer",
    "mainObjects": ["shape"],
    "dominantColors": ["#AABBCC"],
}


@pytest.fixture(scope="module")
def picture() -> bytes:
    return asyncio.run(LOCAL.draw(Order(model="m", prompt="p", width=64, height=64, seed=1))).pictures[0]


class Provider:
    """An upstream that remembers what it was asked and answers what the test says."""

    def __init__(self, picture: bytes) -> None:
        self.asked: list[tuple[str, Json]] = []
        one = {"b64_json": base64.b64encode(picture).decode()}
        self.pictures: Any = lambda asked: {"created": 1, "data": [one] * asked["n"]}
        self.content = "forty-two"
        self.raw: tuple[int, bytes] | None = None
        application = web.Application()
        application.router.add_post("/v1/{rest:.*}", self._answer)
        self.server = TestServer(application)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        assert request.headers["Authorization"] == f"Bearer {KEY}"
        asked = await request.json()
        self.asked.append((request.path, asked))
        if self.raw is not None:
            status, body = self.raw
            if status == 0:
                assert request.transport
                request.transport.abort()
            return web.Response(status=status or 500, body=body, headers={"Location": "/v1/elsewhere"})
        if request.path == "/v1/images/generations":
            return web.json_response(self.pictures(asked))
        choice = {"index": 0, "message": {"role": "assistant", "content": self.content}, "finish_reason": "length"}
        return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13}})


@pytest_asyncio.fixture
async def provider(picture: bytes) -> AsyncIterator[Provider]:
    provider = Provider(picture)
    await provider.server.start_server()
    yield provider
    await provider.server.close()


@pytest_asyncio.fixture
async def upstream(provider: Provider) -> AsyncIterator[Upstream]:
    upstream = Upstream(str(provider.server.make_url("/v1")), KEY, vision_model="eyes-1")
    yield upstream
    await upstream.close()


def sold_by(models: Models) -> dict[str, Callable[..., Awaitable[Any]]]:
    return {"draw": models.draw, "describe": models.describe, "chat": models.chat}


async def test_a_chat_is_passed_on_and_sold_as_its_own(tmp_path: Path, provider: Provider, upstream: Upstream) -> None:
    async with Stalls(tmp_path, **sold_by(upstream.models)) as stalls:
        body = (await stalls.buy("/api/ai/chat", CHAT | {"max_tokens": 2, "stop": "x", "temperature": 0.5})).body
    assert provider.asked == [
        (
            "/v1/chat/completions",
            {
                "model": "openai/gpt-5-mini",
                "messages": [{"role": "user", "content": "What is 6 * 7?"}],
                "max_tokens": 2,
                "temperature": 0.5,
                "top_p": 1.0,
                "stop": ["x"],
            },
        )
    ]
    assert body["choices"][0]["message"]["content"] == "forty-two"
    assert body["choices"][0]["finish_reason"] == "length"
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"], body["usage"]["total_tokens"]) == (11, 2, 13)
    assert body["servedBy"] == "openai/gpt-5-mini at 127.0.0.1"


async def test_pictures_are_passed_on_and_sold_as_their_own(tmp_path: Path, provider: Provider, upstream: Upstream, picture: bytes) -> None:
    async with Stalls(tmp_path, **sold_by(upstream.models)) as stalls:
        bought = await stalls.buy("/api/ai/image", IMAGE | {"n": 2})
        assert [base64.b64decode(each["b64_json"]) for each in bought.body["data"]] == [picture] * 2
        assert "127.0.0.1" in bought.body["servedBy"]
        assert (await stalls.buy("/api/generate/gpt-image-1/generate", GENERATE | {"quality": "high", "moderation": "low"})).status == 200
        router = await stalls.buy("/v1/images/generate", ROUTER | {"seed": 7, "negativePrompt": "fog"})
        assert (await stalls.get(router.body["images"][0]["url"]))[1] == picture
    (_, image), (_, studio), (_, routed) = provider.asked
    assert image == {"model": "openai/gpt-image-1", "prompt": "a lighthouse", "n": 2, "size": "128x128"}
    assert {name: studio[name] for name in ("model", "quality", "moderation", "size")} == {
        "model": "gpt-image-1",
        "quality": "high",
        "moderation": "low",
        "size": "1024x1024",
    }
    assert (routed["seed"], routed["negative_prompt"]) == (7, "fog")


@pytest.mark.parametrize("fence", ["", "```json\n"])
async def test_a_picture_is_shown_to_a_model_with_eyes(tmp_path: Path, provider: Provider, upstream: Upstream, fence: str) -> None:
    provider.content = fence + json.dumps(SEEN) + ("\n```" if fence else "")
    async with Stalls(tmp_path, **sold_by(upstream.models)) as stalls:
        body = (await stalls.buy("/api/ai/describe-image", stalls.describe | {"instruction": "count the shapes"})).body
    assert {name: body[name] for name in SEEN} == SEEN | {"dominantColors": ["#aabbcc"]}
    assert (body["servedBy"], body["notMeasured"]) == ("eyes-1 at 127.0.0.1", {})
    ((path, asked),) = provider.asked
    text, shown = asked["messages"][0]["content"]
    assert (path, asked["model"]) == ("/v1/chat/completions", "eyes-1")
    assert "count the shapes" in text["text"]
    assert shown["image_url"]["url"].startswith("data:image/png;base64,")


FAULTS: list[tuple[str, Any]] = [
    ("refuses", (401, b'{"error": {"message": "no such key"}}')),
    ("is ill", (503, b"")),
    ("leads elsewhere", (302, b"")),
    ("hangs up", (0, b"")),
    ("speaks no JSON", (200, b"<html>")),
    ("says nothing of it", (200, b"{}")),
    ("says null", (200, b'{"choices": [], "data": [], "usage": null}')),
    ("nests", (200, b"[" * 100_000)),
]


@pytest.mark.parametrize(("path", "order"), [("/api/ai/chat", CHAT), ("/api/ai/image", IMAGE), ("/api/ai/describe-image", None)])
async def test_an_upstream_that_fails_in_any_way_charges_nobody(
    tmp_path: Path, provider: Provider, upstream: Upstream, path: str, order: Json | None
) -> None:
    async with Stalls(tmp_path, **sold_by(upstream.models)) as stalls:
        for what, provider.raw in FAULTS:
            stalls.model.asked.clear()
            bought = await stalls.buy(path, order or stalls.describe)
            assert (bought.status, stalls.model.asked) == (502, ["verify"]), what
            assert KEY not in str(bought.body)


@pytest.mark.parametrize(
    "told",
    [
        lambda asked: {"data": [{"b64_json": "AAAA"}] * asked["n"]},
        lambda asked: {"data": [{"b64_json": "no base64"}] * asked["n"]},
        lambda asked: {"data": [{"url": "https://example.org/a.png"}] * asked["n"]},
        lambda _: {"data": []},
        lambda asked: {"data": [{"b64_json": "iVBORw0KGgo="}] * (asked["n"] + 1)},
    ],
    ids=["no picture", "no base64", "an address", "none", "too many"],
)
async def test_pictures_that_are_none_are_not_sold(tmp_path: Path, provider: Provider, upstream: Upstream, told: Any) -> None:
    provider.pictures = told
    async with Stalls(tmp_path, **sold_by(upstream.models)) as stalls:
        assert (await stalls.buy("/api/ai/image", IMAGE)).status == 502
        assert not stalls.model.recorded


@pytest.mark.parametrize("content", ["a nice picture", "{}", json.dumps(SEEN | {"contentType": "painting"})])
async def test_a_description_of_another_shape_is_not_sold(tmp_path: Path, provider: Provider, upstream: Upstream, content: str) -> None:
    provider.content = content
    async with Stalls(tmp_path, **sold_by(upstream.models)) as stalls:
        assert (await stalls.buy("/api/ai/describe-image", stalls.describe)).status == 502
        assert not stalls.model.recorded


async def test_an_upstream_that_is_not_there_charges_nobody(tmp_path: Path) -> None:
    away = Upstream(f"http://127.0.0.1:{unused_port()}/v1", KEY)
    async with Stalls(tmp_path, **sold_by(away.models)) as stalls:
        bought = await stalls.buy("/api/ai/chat", CHAT)
        assert (bought.status, stalls.model.recorded) == (502, False)
        assert "cannot be had" in bought.body["error"]["message"]
    await away.close()


@pytest.mark.parametrize("url", ["", "api.example/v1", "ftp://api.example", "https://"])
def test_an_address_that_is_none_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(ValueError, match="OpenAI-compatible"):
        Upstream(url, KEY)
