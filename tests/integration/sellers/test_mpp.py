"""The StableStudio-style seller by the "Payment" authentication scheme: what is asked, taken, refused and told, and what is charged."""

from pathlib import Path
from typing import Any

import pytest

from facilitator.devstack.buyer import payment_header
from facilitator.devstack.pay import decoded as decoded_x402
from facilitator.devstack.pay import sign_in
from tests.fixtures.mpp import MALFORMED, answered, as_x402, changed, decoded, header, parameters
from tests.integration.gateway.model import BUYER, TX_HASH
from tests.integration.sellers.market import GENERATE, Stalls

PATH = "/api/generate/gpt-image-1/generate"
Json = dict[str, Any]


async def challenged(stalls: Stalls, path: str = PATH, order: Json = GENERATE) -> str:
    """The challenge of an unpaid request."""
    status, _, headers = await stalls.ask(path, order)
    assert status == 402
    return headers["WWW-Authenticate"]


async def test_both_protocols_are_offered_at_the_same_price(tmp_path: Path) -> None:
    async with Stalls(tmp_path) as stalls:
        status, body, headers = await stalls.ask(PATH, GENERATE | {"quality": "high", "size": "1024x1536"})
        assert (status, headers["Cache-Control"]) == (402, "no-store")
        (terms,) = decoded_x402(headers["PAYMENT-REQUIRED"])["accepts"]
        told = parameters(headers["WWW-Authenticate"])
        assert told["realm"] == stalls.market.urls["studio"].removeprefix("http://")
        request = decoded(told["request"])
        assert (request["amount"], request["recipient"], request["currency"]) == (terms["amount"], terms["payTo"], terms["asset"])
        assert (terms["amount"], request["description"]) == ("200000", "gpt-image-1 - generate")
        assert body["accepts"][0]["maxAmountRequired"] == "200000"  # version 1 goes on reading the body
        assert {"WWW-Authenticate", "Payment-Receipt"} <= set(headers["Access-Control-Expose-Headers"].split(", "))
        for path in ("/api/ai/chat", "/v1/images/generate"):
            _, _, others = await stalls.ask(path, {})
            assert "WWW-Authenticate" not in others
        assert stalls.model.asked == []


async def test_a_credential_buys_a_job_with_a_receipt_and_the_payer_signs_in_for_it(tmp_path: Path) -> None:
    async with Stalls(tmp_path) as stalls:
        credential = answered(BUYER, await challenged(stalls))
        status, body, headers = await stalls.ask(PATH, GENERATE, headers=header(credential))
        assert (status, body["status"]) == (200, "pending")
        receipt = decoded(headers["Payment-Receipt"])
        assert receipt.pop("timestamp").endswith("Z")
        assert receipt == {
            "method": "evm",
            "challengeId": credential["challenge"]["id"],
            "reference": TX_HASH,
            "status": "success",
            "chainId": 84532,
        }
        assert headers["Cache-Control"] in {"private", "no-store"}
        assert not {"WWW-Authenticate", "PAYMENT-RESPONSE", "X-PAYMENT-RESPONSE"} & set(headers)
        job = await sign_in(stalls.session, BUYER, stalls.url(f"/api/jobs/{body['jobId']}"))
        assert job["status"] == "complete"
        assert stalls.model.asked == ["verify", "settle"]


@pytest.mark.parametrize("first", ["mpp", "x402"])
async def test_one_authorization_sent_both_ways_unlocks_one_response(tmp_path: Path, first: str) -> None:
    async with Stalls(tmp_path) as stalls:
        status, _, headers = await stalls.ask(PATH, GENERATE)
        credential = answered(BUYER, headers["WWW-Authenticate"])
        name, value = payment_header(as_x402(credential, decoded_x402(headers["PAYMENT-REQUIRED"])["accepts"][0]))
        ways = [header(credential), {name: value}]
        for number, way in enumerate(ways if first == "mpp" else reversed(ways)):
            for path in (PATH, "/api/generate/gpt-image-1.5/generate"):
                status, told, headers = await stalls.ask(path, GENERATE, headers=way)
                assert status == (200 if number == 0 and path == PATH else 402), (way, told)
                assert ("Payment-Receipt" in headers) == (status == 200 and first == "mpp")
        assert stalls.model.asked.count("settle") == 1
        assert len(list((tmp_path / "market" / "jobs").iterdir())) == 1


async def test_a_challenge_that_was_paid_is_used_up_and_a_fresh_one_is_offered(tmp_path: Path) -> None:
    async with Stalls(tmp_path) as stalls:
        sent = header(answered(BUYER, await challenged(stalls)))
        assert (await stalls.ask(PATH, GENERATE, headers=sent))[0] == 200
        status, told, headers = await stalls.ask(PATH, GENERATE, headers=sent)
        assert (status, headers["Content-Type"]) == (402, "application/problem+json")
        assert told["type"] == "https://paymentauth.org/problems/invalid-challenge"
        assert told["reason"] == "duplicate_settlement"
        fresh = answered(BUYER, headers["WWW-Authenticate"])
        stalls.model.told_with_key, stalls.model.recorded = None, False  # another payment
        assert (await stalls.ask(PATH, GENERATE, headers=header(fresh)))[0] == 200


@pytest.mark.parametrize("name", sorted(MALFORMED))
async def test_what_is_no_credential_is_refused_before_anybody_is_asked(tmp_path: Path, name: str) -> None:
    async with Stalls(tmp_path) as stalls:
        value = MALFORMED[name](answered(BUYER, await challenged(stalls)))
        status, told, headers = await stalls.ask(PATH, GENERATE, headers={"Authorization": value})
        assert (status, headers["Content-Type"], headers["Cache-Control"]) == (402, "application/problem+json", "no-store")
        assert (told["type"], told["status"]) == ("https://paymentauth.org/problems/malformed-credential", 402)
        assert parameters(headers["WWW-Authenticate"])["method"] == "evm"
        assert "Payment-Receipt" not in headers
        assert stalls.model.asked == []


async def test_a_credential_for_anything_else_than_this_request_is_refused_before_anybody_is_asked(tmp_path: Path) -> None:
    async with Stalls(tmp_path) as stalls:
        good = answered(BUYER, await challenged(stalls))
        alias = "/api/generate/gpt-image-1.5/generate"
        other = GENERATE | {"prompt": "a tower"}
        cheap = decoded(good["challenge"]["request"]) | {"amount": "1"}
        refused = [
            (alias, GENERATE, good, "invalid-challenge"),
            (f"{PATH}?again=1", GENERATE, good, "invalid-challenge"),
            (PATH, other, good, "invalid-challenge"),
            (PATH, GENERATE | {"quality": "high"}, good, "invalid-challenge"),  # a dearer order
            (PATH, GENERATE, changed(good, "challenge", request=cheap), "malformed-credential"),
            (PATH, GENERATE, changed(good, "challenge", expires="2099-01-01T00:00:00Z"), "invalid-challenge"),
            (PATH, GENERATE, answered(BUYER, await challenged(stalls), value="1"), "verification-failed"),
            (PATH, GENERATE, answered(BUYER, await challenged(stalls), auth_nonce="0x" + "11" * 32), "verification-failed"),
        ]
        for path, order, credential, kind in refused:
            status, told, headers = await stalls.ask(path, order, headers=header(credential))
            assert (status, told["type"].rpartition("/")[2]) == (402, kind), (path, order, told)
            assert "WWW-Authenticate" in headers
        assert stalls.model.asked == []
        status, told, headers = await stalls.ask(PATH, {"prompt": ""}, headers=header(good))
        assert (status, told["field"]) == (400, "prompt")  # a wrong order is wrong first
        assert "WWW-Authenticate" not in headers
        assert (await stalls.ask(PATH, GENERATE, headers=header(good)))[0] == 200  # and the challenge is still good


async def test_a_refusal_is_verification_failed_and_has_no_receipt(tmp_path: Path) -> None:
    async with Stalls(tmp_path) as stalls:
        stalls.model.verifying, stalls.model.settling = ["refuse", "valid"], ["refuse"]
        for asked in (["verify"], ["verify", "settle"]):
            stalls.model.asked.clear()
            sent = header(answered(BUYER, await challenged(stalls)))
            status, told, headers = await stalls.ask(PATH, GENERATE, headers=sent)
            assert (status, told["type"].rpartition("/")[2], told["reason"]) == (402, "verification-failed", "insufficient_funds")
            assert "WWW-Authenticate" in headers
            assert not {"Payment-Receipt", "PAYMENT-RESPONSE"} & set(headers)
            assert stalls.model.asked == asked


async def test_a_payment_in_doubt_offers_nothing_and_the_same_credential_gets_the_job(tmp_path: Path) -> None:
    async with Stalls(tmp_path) as stalls:
        sent = header(answered(BUYER, await challenged(stalls)))
        stalls.model.settling = ["pending", "pending"]
        status, told, headers = await stalls.ask(PATH, GENERATE, headers=sent)
        assert (status, told["payment"], told["transaction"]) == (503, "open", TX_HASH)
        assert headers["Retry-After"]
        assert not {"WWW-Authenticate", "PAYMENT-REQUIRED", "Payment-Receipt", "PAYMENT-RESPONSE"} & set(headers)
        stalls.model.settling = ["recorded lost"] * 3
        status, told, headers = await stalls.ask(PATH, GENERATE, headers=sent)
        assert (status, told["error"], told["payment"]) == (502, "settlement_unknown", "open")
        assert "WWW-Authenticate" not in headers
        status, told, headers = await stalls.ask(PATH, GENERATE, headers=sent)
        assert (status, told["status"]) == (200, "pending")
        assert decoded(headers["Payment-Receipt"])["reference"] == TX_HASH


async def test_a_model_that_fails_charges_nobody(tmp_path: Path) -> None:
    async def broken(_: object) -> Any:
        raise ValueError("the model is broken")

    async with Stalls(tmp_path, draw=broken) as stalls:
        sent = header(answered(BUYER, await challenged(stalls)))
        status, _, headers = await stalls.ask(PATH, GENERATE, headers=sent)
        assert status == 500
        assert "Payment-Receipt" not in headers
        assert stalls.model.asked == ["verify"]


async def test_authorizations_of_other_schemes_are_left_alone(tmp_path: Path) -> None:
    async with Stalls(tmp_path) as stalls:
        status, told, _ = await stalls.ask(PATH, GENERATE, headers={"Authorization": "Bearer abc"})
        assert (status, told["x402Version"]) == (402, 1)
        name, value = payment_header(await stalls.payment(PATH, GENERATE))
        status, _, headers = await stalls.ask(PATH, GENERATE, headers={"Authorization": "Bearer abc", name: value})
        assert status == 200
        assert decoded_x402(headers["PAYMENT-RESPONSE"])["success"] is True
        assert "Payment-Receipt" not in headers
