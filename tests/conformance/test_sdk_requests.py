"""The bytes that official SDKs really send are read whole, and their terms and signatures are found good."""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from facilitator.protocol.codec import check_content_type, decode_request
from facilitator.protocol.messages import Authorization, Payment
from facilitator.schemes.exact_eip3009 import ExactEip3009
from facilitator.schemes.usdc import USDC

RECORDED: Final = Path(__file__).with_name("golden") / "sdk_requests.jsonl"
LINES: Final[list[dict[str, str]]] = [json.loads(line) for line in RECORDED.read_text("utf-8").splitlines()]
SCHEME: Final = ExactEip3009(USDC)

every_request = pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line['server']}-paid-by-{line['client']}")


@every_request
def test_a_recorded_request_is_read_whole_and_found_good(line: dict[str, str]) -> None:
    tree: dict[str, Any] = json.loads(line["body"])
    version = tree["x402Version"]
    signed = tree["paymentPayload"]["payload"]["authorization"]

    payment = decode_request(line["body"].encode())

    assert isinstance(payment, Payment), payment
    assert (payment.version, payment.wire_network, payment.network) == (version, tree["paymentRequirements"]["network"], "eip155:84532")
    assert (payment.requirements.amount_atomic, payment.requirements.extra) == (10_000, {"name": "USDC", "version": "2"})
    assert payment.accepted_differs == ()
    assert payment.resource is not None
    assert payment.resource.endswith("/report")
    authorization = SCHEME.read(payment)
    assert isinstance(authorization, Authorization), authorization
    assert authorization.payer == signed["from"].lower()
    assert (authorization.valid_after, authorization.valid_before) == (int(signed["validAfter"]), int(signed["validBefore"]))
    assert authorization.auth_nonce == signed["nonce"]
    assert SCHEME.check_terms(authorization, payment.requirements) is None
    assert SCHEME.check_signature(authorization) is None


@every_request
def test_a_recorded_request_with_one_more_atomic_unit_is_not_what_was_signed(line: dict[str, str]) -> None:
    changed = line["body"].replace('"value":"10000"', '"value":"10001"')
    assert changed != line["body"]
    payment = decode_request(changed.encode())
    assert isinstance(payment, Payment)
    authorization = SCHEME.read(payment)
    assert isinstance(authorization, Authorization)
    assert SCHEME.check_terms(authorization, payment.requirements) is not None
    assert SCHEME.check_signature(authorization) is not None


def test_recorded_are_both_versions_of_every_official_client() -> None:
    versions = {(line["client"], json.loads(line["body"])["x402Version"]) for line in LINES}
    both = {(client, version) for client in ("httpx", "requests", "fetch", "axios") for version in (1, 2)}
    assert versions == both | {("x402-fetch", 1)}


@pytest.mark.parametrize("value", ["application/json", "application/json; charset=utf-8"])
def test_their_content_types_are_taken(value: str) -> None:
    assert check_content_type(value) is None
