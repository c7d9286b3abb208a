"""What the sample sellers hand over: shapes, headers, free routes, and openly who made it."""

import base64
import hashlib
import io
from pathlib import Path

import pytest
from PIL import Image

from facilitator.devstack.buyer import payment_header
from facilitator.devstack.pay import decoded, demanded, sign_in
from facilitator.devstack.sellers.models.local import LOCAL
from facilitator.devstack.sellers.models.model import Conversation, Description, Drawn, ModelFault, Order, Reply
from facilitator.devstack.token import BASE_SEPOLIA_USDC
from tests.integration.gateway.model import BUYER, TX_HASH
from tests.integration.sellers.market import CHAT, GENERATE, IMAGE, ROUTER, Json, Stalls

PAID = {
    "/api/ai/chat": CHAT,
    "/api/ai/image": IMAGE,
    "/api/ai/describe-image": None,
    "/api/generate/gpt-image-1/generate": GENERATE,
    "/api/generate/gpt-image-1.5/generate": GENERATE,
    "/v1/images/generate": ROUTER,
}


def opened(picture: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(picture))
    image.load()
    return image


# ---- 2s.io style


async def test_a_chat_is_a_chat_completion_with_true_counts(tmp_path: Path) -> None:
    async with Stalls(tmp_path) as stalls:
        bought = await stalls.buy("/api/ai/chat", CHAT)
    body = bought.body
    assert (bought.status, body["object"], body["model"]) == (200, "chat.completion", "openai/gpt-5-mini")
    (choice,) = body["choices"]
    assert choice == {"index": 0, "message": {"role": "assistant", "content": "6 * 7 = 42"}, "finish_reason": "stop"}
    assert body["usage"] == {"prompt_tokens": 8, "completion_tokens": 7, "total_tokens": 15, "tokenizer": "cl100k_base"}
    assert body["servedBy"].startswith("local-rules")


@pytest.mark.parametrize(
    ("model", "max_tokens", "atomic"),
    [
        ("openai/gpt-5-mini", 1, 1_000),
        ("openai/gpt-5-mini", None, 2_048),
        ("openai/gpt-5", 1024, 12_288),
        ("openai/gpt-5", 8192, 98_304),
        ("who/knows", 1000, 30_000),
    ],
)
async def test_the_price_of_a_chat_is_by_model_and_max_tokens(tmp_path: Path, model: str, max_tokens: int | None, atomic: int) -> None:
    async with Stalls(tmp_path) as stalls:
        order = CHAT | {"model": model} | ({} if max_tokens is None else {"max_tokens": max_tokens})
        assert (await stalls.payment("/api/ai/chat", order))["accepted"]["amount"] == str(atomic)


async def test_a_cheap_chat_pays_for_no_long_one(tmp_path: Path) -> None:
    async with Stalls(tmp_path) as stalls:
        cheap = await stalls.payment("/api/ai/chat", CHAT | {"max_tokens": 1})
        status, body, _ = await stalls.ask("/api/ai/chat", CHAT | {"max_tokens": 8192}, paid=cheap)
        assert (status, body["error"]) == (402, "invalid_payment_requirements")
        assert stalls.model.asked == []


async def test_pictures_come_as_base64_as_many_and_as_large_as_ordered(tmp_path: Path) -> None:
    async with Stalls(tmp_path) as stalls:
        for change, atomic in (({"n": 3}, 180_000), ({"model": "black-forest-labs/flux-1.1-pro", "size": "64x96"}, 30_000)):
            order = IMAGE | change
            bought = await stalls.buy("/api/ai/image", order)
            assert (bought.status, set(bought.body)) == (200, {"created", "data", "servedBy"})
            pictures = [opened(base64.b64decode(each["b64_json"])) for each in bought.body["data"]]
            assert [f"{each.width}x{each.height}" for each in pictures] == [order["size"]] * order.get("n", 1)
            assert bought.payment["accepted"]["amount"] == str(atomic)
            assert bought.body["servedBy"].startswith("local-renderer")
    assert len({each["b64_json"] for each in bought.body["data"]}) == len(pictures)


async def test_a_description_says_what_was_measured_and_names_what_was_not(tmp_path: Path) -> None:
    async with Stalls(tmp_path) as stalls:
        bought = await stalls.buy("/api/ai/describe-image", stalls.describe | {"instruction": "how many boats?"})
        assert bought.payment["accepted"]["amount"] == "18000"
    body = bought.body
    told = {"imageUrl", "altText", "description", "contentType", "text", "mainObjects", "dominantColors", "servedBy", "notMeasured"}
    assert (bought.status, set(body)) == (200, told)
    assert 5 <= len(body["altText"].split()) <= 15
    assert "512 by 384" in body["altText"]
    assert body["description"].count(". ") + 1 in {2, 3}
    assert body["contentType"] == "illustration"
    assert body["mainObjects"] == []
    assert {"mainObjects", "instruction"} <= set(body["notMeasured"])
    assert all(len(colour) == 7 and colour.startswith("#") for colour in body["dominantColors"])


async def test_the_models_are_listed_free_with_prices_and_who_serves(tmp_path: Path) -> None:
    async with Stalls(tmp_path) as stalls:
        async with stalls.session.get(stalls.url("/api/ai/models")) as response:
            told = await response.json()
        assert response.status == 200
        assert {each["type"] for each in told["data"]} == {"chat", "image"}
        assert all(each["servedBy"].startswith("local-") for each in told["data"])
        assert min(float(each["pricing"]["usdPerImage"]) for each in told["data"] if each["type"] == "image") == 0.03


# ---- x-router style


async def test_the_same_seed_is_the_same_picture_at_urls_that_stay(tmp_path: Path) -> None:
    order = ROUTER | {"seed": 7, "numberResults": 2}
    async with Stalls(tmp_path) as stalls:
        bodies = [(await stalls.buy("/v1/images/generate", order, version)).body for version in (1, 2)]
        other = (await stalls.buy("/v1/images/generate", order | {"seed": 8})).body
        free = [(await stalls.buy("/v1/images/generate", ROUTER)).body["images"][0]["url"] for _ in range(2)]
        urls = [image["url"] for body in (*bodies, other) for image in body["images"]]
        got = [await stalls.get(url) for url in [*urls, *free]]
        again = [hashlib.sha256(content).digest() for _, content, _ in got]
    assert all(
        status == 200 and headers["Content-Type"] == "image/png" and "immutable" in headers["Cache-Control"] for status, _, headers in got
    )
    first, second = again[0:2]
    assert first != second
    assert again[2:4] == [first, second]
    assert not {first, second} & set(again[4:6])
    assert again[6] != again[7]
    assert bodies[0]["model"] == "flux-schnell"
    assert bodies[0]["servedBy"].startswith("local-renderer")
    assert all(image["uuid"] in image["url"] for image in bodies[0]["images"])
    async with Stalls(tmp_path) as restarted:  # on the same ports, as nobody has taken them
        assert [await restarted.get(url) for url in urls[:2]] == [
            (200, got[index][1], {**got[index][2], "Date": (await restarted.get(urls[index]))[2]["Date"]}) for index in range(2)
        ]


@pytest.mark.parametrize("version", [1, 2])
async def test_the_receipt_names_the_transaction_twice_and_scripts_may_read_it(tmp_path: Path, version: int) -> None:
    async with Stalls(tmp_path) as stalls:
        url = stalls.url("/v1/images/generate")

        payment = BUYER.pay(version, await demanded(stalls.session, url, version, ROUTER))  # type: ignore[arg-type]
        name, value = payment_header(payment)
        async with stalls.session.post(url, json=ROUTER, headers={name: value, "Origin": "https://app.example"}) as response:
            receipt = decoded(response.headers["X-Payment-Response"])
            assert response.status == 200
            assert {"success", "transaction", "transactionHash", "network", "payer"} <= set(receipt)
            assert (receipt["success"], receipt["transaction"], receipt["transactionHash"]) == (True, TX_HASH, TX_HASH)
            assert "X-PAYMENT-RESPONSE" in response.headers["Access-Control-Expose-Headers"]
            assert response.headers["Access-Control-Allow-Origin"] == "*"
            assert ("PAYMENT-RESPONSE" in response.headers) == (version == 2)


async def test_an_unpaid_order_is_told_payment_required_in_both_versions(tmp_path: Path) -> None:
    async with Stalls(tmp_path) as stalls:
        status, body, headers = await stalls.ask("/v1/images/generate", ROUTER)
        assert (status, body["error"], body["x402Version"]) == (402, "PAYMENT_REQUIRED", 1)
        assert decoded(headers["PAYMENT-REQUIRED"])["error"] == "PAYMENT_REQUIRED"


async def test_the_price_is_by_model_size_number_and_steps(tmp_path: Path) -> None:
    async with Stalls(tmp_path) as stalls:
        for change, atomic in (
            ({"width": 1024, "height": 1024}, 5_694),
            ({"width": 1024, "height": 1024, "numberResults": 4}, 22_776),
            ({"width": 1024, "height": 2048}, 11_388),
            ({"width": 1024, "height": 1024, "model": "flux-dev", "steps": 14}, 5_694),
        ):
            assert (await stalls.payment("/v1/images/generate", ROUTER | change))["accepted"]["amount"] == str(atomic), change


async def test_the_models_say_whether_they_take_steps(tmp_path: Path) -> None:
    async with Stalls(tmp_path) as stalls, stalls.session.get(stalls.url("/v1/images/models")) as response:
        listed = {each["id"]: each["supportsSteps"] for each in (await response.json())["models"]}
    assert listed == {"flux-schnell": False, "flux-dev": True, "sdxl": True}


# ---- StableStudio style


@pytest.mark.parametrize(
    ("order", "atomic", "mode", "size"),
    [
        ({"quality": "low"}, 9_000, "RGB", (1024, 1024)),
        ({"quality": "high", "size": "1536x1024", "output_format": "jpeg"}, 200_000, "RGB", (1536, 1024)),
        ({"quality": "auto", "size": "1024x1536", "background": "transparent", "output_format": "webp"}, 50_000, "RGBA", (1024, 1536)),
    ],
)
async def test_a_paid_order_makes_a_job_whose_picture_is_as_ordered(
    tmp_path: Path, order: Json, atomic: int, mode: str, size: tuple[int, int]
) -> None:

    async with Stalls(tmp_path) as stalls:
        bought = await stalls.buy("/api/generate/gpt-image-1/generate", GENERATE | order)
        body = bought.body
        assert bought.payment["accepted"]["amount"] == str(atomic)
        assert body == {
            "type": "gpt-image-1-generate",
            "jobId": body["jobId"],
            "status": "pending",
            "success": True,
            "servedBy": body["servedBy"],
        }
        job = await sign_in(stalls.session, BUYER, stalls.url(f"/api/jobs/{body['jobId']}"))
        assert (job["status"], job["jobId"], job["servedBy"]) == ("complete", body["jobId"], body["servedBy"])
        status, content, headers = await stalls.get(job["result"]["imageUrl"])
    picture = opened(content)
    form = order.get("output_format", "png")
    assert (status, headers["Content-Type"], picture.format) == (200, f"image/{form}", form.upper())
    assert (picture.mode, picture.size) == (mode, size)
    if order.get("background") == "transparent":
        assert picture.getchannel("A").getextrema()[0] == 0


async def test_the_alias_names_itself(tmp_path: Path) -> None:
    async with Stalls(tmp_path) as stalls:
        assert (await stalls.buy("/api/generate/gpt-image-1.5/generate", GENERATE)).body["type"] == "gpt-image-1.5-generate"


async def test_a_job_that_was_never_paid_stays_pending(tmp_path: Path) -> None:

    async with Stalls(tmp_path) as stalls:
        stalls.model.settling = ["refuse"]
        refused = await stalls.buy("/api/generate/gpt-image-1/generate", GENERATE)
        assert (refused.status, refused.body["error"]) == (402, "insufficient_funds")
        assert "jobId" not in str(refused.body)
        (job,) = (tmp_path / "market" / "jobs").iterdir()
        told = await sign_in(stalls.session, BUYER, stalls.url(f"/api/jobs/{job.stem}"))
        assert (told["status"], "result" in told) == ("pending", False)


async def test_the_document_is_true_to_the_routes(tmp_path: Path) -> None:
    async with Stalls(tmp_path) as stalls:
        async with stalls.session.get(stalls.url("/openapi.json")) as response:
            document = await response.json()
        assert document["openapi"] == "3.1.0"
        assert "SIGN-IN-WITH-X" in document["info"]["x-guidance"]
        paid = {path: item["post"] for path, item in document["paths"].items() if "post" in item}
        assert set(paid) == {path for path in PAID if path.startswith("/api/generate")}
        for path, operation in paid.items():
            assert operation["x-payment-info"]["price"] == {"mode": "dynamic", "currency": "USD", "min": "0.009", "max": "0.200"}
            charge = {"intent": "charge", "method": "evm", "currency": BASE_SEPOLIA_USDC}
            assert operation["x-payment-info"]["protocols"] == [{"x402": {}}, {"mpp": charge}]
            assert operation["x-payment-info"]["offers"] == [charge | {"amount": None, "description": "by quality and size"}]
            assert {"200", "400", "402"} <= set(operation["responses"])
            asked = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            schema = document["components"]["schemas"][asked]
            assert set(schema["properties"]) == {"prompt", "quality", "size", "background", "output_format", "moderation"}
            assert schema["required"] == ["prompt"]
            amounts = []
            for quality in schema["properties"]["quality"]["enum"]:
                for size in schema["properties"]["size"]["enum"]:
                    payment = await stalls.payment(path, GENERATE | {"quality": quality, "size": size})
                    amounts.append(int(payment["accepted"]["amount"]))
            assert (min(amounts), max(amounts)) == (9_000, 200_000)
        job = document["paths"]["/api/jobs/{jobId}"]["get"]
        assert job["security"] == [{"siwx": []}]
        assert "x-payment-info" not in job
        assert document["components"]["securitySchemes"]["siwx"]["name"] == "SIGN-IN-WITH-X"


# ---- all of them


@pytest.mark.parametrize("path", PAID)
async def test_a_paid_route_takes_post_alone(tmp_path: Path, path: str) -> None:
    async with Stalls(tmp_path) as stalls:
        for method in ("GET", "HEAD", "PUT", "DELETE"):
            async with stalls.session.request(method, stalls.url(path)) as response:
                assert (response.status, response.headers["Allow"]) == (405, "POST")
                if method != "HEAD":
                    assert (await response.json())["error"]


@pytest.mark.parametrize("path", [*PAID, "/v1/images/estimate"])
async def test_browsers_may_ask_pay_and_read(tmp_path: Path, path: str) -> None:
    async with Stalls(tmp_path) as stalls:
        asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
        asked["Access-Control-Request-Headers"] = "content-type, payment-signature"
        async with stalls.session.options(stalls.url(path), headers=asked) as response:
            assert response.status == 204
            assert response.headers["Access-Control-Allow-Origin"] == "*"
            allowed = response.headers["Access-Control-Allow-Headers"]
            assert {"PAYMENT-SIGNATURE", "X-PAYMENT", "SIGN-IN-WITH-X", "Content-Type"} <= set(allowed.split(", "))
        order = PAID.get(path) or (ROUTER if path.startswith("/v1") else stalls.describe)
        for body in (order, {}):  # a demand or an answer, and an error
            _, _, headers = await stalls.ask(path, body, headers={"Origin": "https://app.example"})
            assert headers["Access-Control-Allow-Origin"] == "*"
            assert {"PAYMENT-REQUIRED", "PAYMENT-RESPONSE"} <= set(headers["Access-Control-Expose-Headers"].split(", "))


@pytest.mark.parametrize("path", ["/api/ai/none", "/v1/none", "/none"])
async def test_an_unknown_route_is_an_error_in_json(tmp_path: Path, path: str) -> None:
    async with Stalls(tmp_path) as stalls:
        status, body, _ = await stalls.ask(path, {})
        assert status == 404
        assert body["error"]


@pytest.mark.parametrize("path", PAID)
@pytest.mark.parametrize("broken", [ModelFault("the model is ill"), RuntimeError("a bug")], ids=["fault", "bug"])
async def test_a_model_that_fails_charges_nobody_and_the_payment_stays_good(tmp_path: Path, path: str, broken: Exception) -> None:
    ill = True

    async def draw(order: Order) -> Drawn:
        if ill:
            raise broken
        return await LOCAL.draw(order)

    async def describe(picture: bytes, instruction: str | None) -> Description:
        if ill:
            raise broken
        return await LOCAL.describe(picture, instruction)

    async def chat(conversation: Conversation) -> Reply:
        if ill:
            raise broken
        return await LOCAL.chat(conversation)

    async with Stalls(tmp_path, draw=draw, describe=describe, chat=chat) as stalls:
        order = PAID[path] or stalls.describe
        payment = await stalls.payment(path, order)
        status, body, _ = await stalls.ask(path, order, paid=payment)
        assert status == (500 if path.startswith("/v1") or isinstance(broken, RuntimeError) else 502)
        assert "charged" in str(body)
        assert "a bug" not in str(body)
        if path.startswith("/v1"):
            assert body["error"] == "INTERNAL_ERROR"
        assert (stalls.model.asked, stalls.model.recorded) == (["verify"], False)
        ill = False
        assert (await stalls.ask(path, order, paid=payment))[0] == 200
        assert stalls.model.recorded
