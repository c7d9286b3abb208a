"""What is wrong with a request is said in the seller's own words, before a payment is asked for and whatever was paid with it."""

from pathlib import Path
from typing import Any

import pytest

from tests.integration.sellers.market import CHAT, GENERATE, IMAGE, ROUTER, Json, Stalls

MESSAGE = CHAT["messages"][0]
LEFT_OUT = object()

CHAT_WRONG: list[tuple[Json, str]] = [
    ({"model": LEFT_OUT}, "model"),
    ({"model": ""}, "model"),
    ({"model": "m" * 81}, "model"),
    ({"model": 5}, "model"),
    ({"messages": LEFT_OUT}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [MESSAGE] * 257}, "messages"),
    ({"messages": [{"role": "user"}]}, "content"),
    ({"messages": [MESSAGE | {"role": "emperor"}]}, "messages"),
    ({"messages": [MESSAGE | {"content": [{"type": "image_url", "text": ""}]}]}, "messages"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 8193}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": "64"}, "max_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"stop": 5}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stream": True}, "stream"),
]
CHAT_RIGHT: list[Json] = [
    {"model": "m" * 80},
    {"model": "\N{GRINNING FACE}" * 80},
    {"max_tokens": 1},
    {"max_tokens": 8192},
    {"temperature": 0},
    {"temperature": 2},
    {"top_p": 0},
    {"top_p": 1},
    {"stop": "x"},
    {"stop": ["a", "b", "c", "d"]},
    {"stop": None},
    {"stream": False},
    {"messages": [{"role": "system", "content": [{"type": "text", "text": "be brief"}]}, MESSAGE]},
]
IMAGE_WRONG: list[tuple[Json, str]] = [
    ({"model": LEFT_OUT}, "model"),
    ({"model": ""}, "model"),
    ({"model": "m" * 81}, "model"),
    ({"prompt": LEFT_OUT}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": "p" * 4001}, "prompt"),
    ({"n": 0}, "n"),
    ({"n": 5}, "n"),
    ({"n": "2"}, "n"),
    ({"size": "1024x1024" + " " * 8}, "size"),
    ({"size": "1024"}, "size"),
    ({"size": "1024X1024"}, "size"),
    ({"size": "63x64"}, "size"),
    ({"size": "2049x64"}, "size"),
    ({"size": "99999x99999"}, "size"),
    ({"size": "-64x64"}, "size"),
    ({"size": "٦٤x64"}, "size"),
]
IMAGE_RIGHT: list[Json] = [{"model": "m" * 80}, {"prompt": "p" * 4000}, {"n": 1}, {"n": 4}, {"size": "64x2048"}]
DESCRIBE_WRONG: list[tuple[Json, str]] = [
    ({"imageUrl": LEFT_OUT}, "imageUrl"),
    ({"imageUrl": ""}, "imageUrl"),
    ({"imageUrl": "https://example.org/" + "a" * 2029}, "imageUrl"),
    ({"imageUrl": "http://example.org/a.png"}, "imageUrl"),
    ({"imageUrl": "http://127.0.0.1:1/a.png"}, "imageUrl"),
    ({"imageUrl": "ftp://example.org/a.png"}, "imageUrl"),
    ({"imageUrl": "file:///etc/passwd"}, "imageUrl"),
    ({"imageUrl": "data:image/png;base64,AAAA"}, "imageUrl"),
    ({"imageUrl": "https://user:secret@example.org/a.png"}, "imageUrl"),
    ({"imageUrl": "https:///a.png"}, "imageUrl"),
    ({"imageUrl": "//example.org/a.png"}, "imageUrl"),
    ({"imageUrl": "https://[::1/a.png"}, "imageUrl"),
    ({"imageUrl": "https://example.org:99999/a.png"}, "imageUrl"),
    ({"instruction": "i" * 1001}, "instruction"),
    ({"instruction": 5}, "instruction"),
]
DESCRIBE_RIGHT: list[Json] = [
    {"imageUrl": "https://example.org/" + "a" * 2028},
    {"instruction": "i" * 1000},
    {"instruction": None},
]
GENERATE_WRONG: list[tuple[Json, str]] = [
    ({"prompt": LEFT_OUT}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": "p" * 32_001}, "prompt"),
    ({"quality": "best"}, "quality"),
    ({"size": "512x512"}, "size"),
    ({"size": 1024}, "size"),
    ({"background": "blue"}, "background"),
    ({"background": "transparent", "output_format": "jpeg"}, "background"),
    ({"output_format": "gif"}, "output_format"),
    ({"moderation": "none"}, "moderation"),
]
GENERATE_RIGHT: list[Json] = [
    {"prompt": "p" * 32_000},
    *({"quality": quality} for quality in ("low", "medium", "high", "auto")),
    *({"size": size} for size in ("1024x1024", "1536x1024", "1024x1536", "auto")),
    *({"background": background} for background in ("transparent", "opaque", "auto")),
    *({"output_format": form} for form in ("png", "jpeg", "webp")),
    *({"moderation": moderation} for moderation in ("low", "auto")),
]
ROUTER_WRONG: list[tuple[Json, str]] = [
    ({"prompt": LEFT_OUT}, "INVALID_PARAMETER"),
    ({"prompt": "p"}, "INVALID_PARAMETER"),
    ({"prompt": "p" * 3001}, "INVALID_PARAMETER"),
    ({"prompt": 5}, "INVALID_PARAMETER"),
    ({"model": "dall-e-2"}, "INVALID_MODEL"),
    ({"model": 5}, "INVALID_MODEL"),
    ({"width": 64}, "INVALID_DIMENSIONS"),
    ({"width": 2112}, "INVALID_DIMENSIONS"),
    ({"width": 1000}, "INVALID_DIMENSIONS"),
    ({"width": "1024"}, "INVALID_DIMENSIONS"),
    ({"height": 64}, "INVALID_DIMENSIONS"),
    ({"height": 2112}, "INVALID_DIMENSIONS"),
    ({"height": 129}, "INVALID_DIMENSIONS"),
    ({"numberResults": 0}, "INVALID_PARAMETER"),
    ({"numberResults": 5}, "INVALID_PARAMETER"),
    ({"negativePrompt": "n" * 3001}, "INVALID_PARAMETER"),
    ({"model": "flux-dev", "steps": 0}, "INVALID_PARAMETER"),
    ({"model": "flux-dev", "steps": 51}, "INVALID_PARAMETER"),
    ({"steps": 4}, "INVALID_PARAMETER"),
    ({"guidance": 0.5}, "INVALID_PARAMETER"),
    ({"guidance": 30.5}, "INVALID_PARAMETER"),
    ({"seed": -1}, "INVALID_PARAMETER"),
    ({"seed": 2**63}, "INVALID_PARAMETER"),
    ({"seed": "7"}, "INVALID_PARAMETER"),
]
ROUTER_RIGHT: list[Json] = [
    {"prompt": "pp"},
    {"prompt": "p" * 3000},
    *({"model": model} for model in ("flux-schnell", "flux-dev", "sdxl")),
    {"width": 128, "height": 2048},
    {"numberResults": 4},
    {"negativePrompt": "n" * 3000},
    {"model": "flux-dev", "steps": 1},
    {"model": "sdxl", "steps": 50},
    {"guidance": 1},
    {"guidance": 30},
    {"seed": 0},
    {"seed": 2**63 - 1},
]
ROUTES: dict[str, tuple[Json, list[tuple[Json, str]], list[Json]]] = {
    "/api/ai/chat": (CHAT, CHAT_WRONG, CHAT_RIGHT),
    "/api/ai/image": (IMAGE, IMAGE_WRONG, IMAGE_RIGHT),
    "/api/ai/describe-image": ({}, DESCRIBE_WRONG, DESCRIBE_RIGHT),
    "/api/generate/gpt-image-1/generate": (GENERATE, GENERATE_WRONG, GENERATE_RIGHT),
    "/api/generate/gpt-image-1.5/generate": (GENERATE, GENERATE_WRONG, GENERATE_RIGHT),
    "/v1/images/generate": (ROUTER, ROUTER_WRONG, ROUTER_RIGHT),
}


def order_of(stalls: Stalls, path: str, change: Json) -> Json:
    base = stalls.describe if path.endswith("describe-image") else ROUTES[path][0]
    return {name: value for name, value in (base | change).items() if value is not LEFT_OUT}


def blamed(path: str, body: Json) -> Any:
    """The member, or the code, that an error names."""
    if path.startswith("/api/ai"):
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert body["error"]["type"] == "invalid_request_error"
        return body["error"]["param"]
    if path.startswith("/v1"):
        assert set(body) == {"error", "message"}
        return body["error"]
    assert body["success"] is False
    return body["field"]


@pytest.mark.parametrize("path", ROUTES)
async def test_each_wrong_order_gets_its_error_before_any_demand_and_before_any_charge(tmp_path: Path, path: str) -> None:
    async with Stalls(tmp_path) as stalls:
        payment = await stalls.payment(path, order_of(stalls, path, {}))
        for change, field in ROUTES[path][1]:
            order = order_of(stalls, path, change)
            for paid in (None, payment):
                status, body, _ = await stalls.ask(path, order, paid=paid)
                assert (status, blamed(path, body)) == (400, field), (change, body)
        assert stalls.model.asked == []


@pytest.mark.parametrize("path", ROUTES)
async def test_each_order_at_the_limit_is_quoted(tmp_path: Path, path: str) -> None:
    async with Stalls(tmp_path) as stalls:
        for change in [{}, *ROUTES[path][2]]:
            status, body, headers = await stalls.ask(path, order_of(stalls, path, change))
            assert status == 402, (change, body)
            assert "PAYMENT-REQUIRED" in headers
        assert stalls.model.asked == []


@pytest.mark.parametrize("path", [*ROUTES, "/v1/images/estimate"])
async def test_a_body_that_is_no_order_gets_its_error(tmp_path: Path, path: str) -> None:
    async with Stalls(tmp_path) as stalls:
        for body in (b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"[" * 60_000, b'{"prompt": NaN}'):
            status, told, _ = await stalls.ask(path, body)
            assert status == 400, (body[:10], told)
            assert told["error"]
        status, told, _ = await stalls.ask(path, b'{"prompt": "' + b"p" * 300_000 + b'"}')
        assert status == 413
        assert "262,144" in str(told)
        assert stalls.model.asked == []


async def test_the_estimate_judges_as_the_sale_does_and_names_its_price(tmp_path: Path) -> None:
    async with Stalls(tmp_path) as stalls:
        for change, code in ROUTER_WRONG:
            status, body, _ = await stalls.ask("/v1/images/estimate", order_of(stalls, "/v1/images/generate", change))
            assert (status, body["error"]) == (400, code), change
        for change in [{}, *ROUTER_RIGHT]:
            order = order_of(stalls, "/v1/images/generate", change)
            status, body, _ = await stalls.ask("/v1/images/estimate", order)
            assert status == 200, body
            payment = await stalls.payment("/v1/images/generate", order)
            assert round(float(body["estimatedCost"]["usd"]) * 1_000_000) == int(payment["accepted"]["amount"]), change
