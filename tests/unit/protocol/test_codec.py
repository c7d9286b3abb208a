"""Requests and answers on the wire of both versions, against the examples of docs/protocol.md"""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from facilitator.protocol import codec
from facilitator.protocol.codec import (
    Malformed,
    Refused,
    check_content_type,
    decode_header,
    decode_request,
    encode_settle,
    encode_supported,
    encode_verify,
)
from facilitator.protocol.messages import Payment, Requirements, SettleResult, Supported, SupportedKind, VerifyResult, Version
from facilitator.protocol.reasons import Reason, Refusal
from facilitator.units import Address, Atomic, Network, TxHash
from tests.fixtures.vectors import PAY_TO, PAYER, PAYLOAD, USDC_BASE_SEPOLIA, v1_request, v2_request

Tree = dict[str, Any]
BASE_SEPOLIA = Network("eip155:84532")
PAYER_ADDRESS = Address(PAYER.lower())
TX_HASH = TxHash("0x" + "cd" * 32)
REQUESTS = pytest.mark.parametrize("request_of", [v1_request, v2_request])
VERSIONS = pytest.mark.parametrize("version", [1, 2])


def decode(tree: object) -> Payment | Refused | Malformed:
    return decode_request(json.dumps(tree).encode())


def decode_payment(tree: object) -> Payment:
    payment = decode(tree)
    assert isinstance(payment, Payment), payment
    return payment


def decode_refused(tree: object) -> Refused:
    refused = decode(tree)
    assert isinstance(refused, Refused), refused
    return refused


def decode_malformed(tree: object) -> Malformed:
    malformed = decode(tree)
    assert isinstance(malformed, Malformed), malformed
    return malformed


def buyer_of(tree: Tree) -> Tree:
    """Where the buyer's scheme and network stand."""
    payload: Tree = tree["paymentPayload"]
    buyer: Tree = payload.get("accepted", payload)
    return buyer


def expected(version: Version, wire_network: str) -> Payment:
    return Payment(
        version=version,
        wire_network=wire_network,
        scheme="exact",
        network=BASE_SEPOLIA,
        payload=PAYLOAD,
        requirements=Requirements(
            scheme="exact",
            network=BASE_SEPOLIA,
            asset=Address(USDC_BASE_SEPOLIA.lower()),
            pay_to=Address(PAY_TO),
            amount_atomic=Atomic(10_000),
            max_timeout_s=300,
            extra={"name": "USDC", "version": "2"},
        ),
        resource="https://shop.example/report",
    )


# ---- requests that are right


def test_the_v1_example_is_read() -> None:
    assert decode(v1_request()) == expected(1, "base-sepolia")


def test_the_v2_example_is_read() -> None:
    assert decode(v2_request()) == expected(2, "eip155:84532")


@REQUESTS
def test_unknown_keys_are_tolerated_at_every_level(request_of: Callable[[], Tree]) -> None:
    def with_unknown_keys(tree: object) -> object:
        if not isinstance(tree, dict):
            return tree
        return {key: with_unknown_keys(value) for key, value in tree.items()} | {"unknown": {"é": [None, 1.5, {}]}, "": False}

    payment, plain = decode_payment(with_unknown_keys(request_of())), decode_payment(request_of())
    assert payment.requirements.amount_atomic == plain.requirements.amount_atomic
    assert payment.payload.keys() == plain.payload.keys() | {"unknown", ""}


@REQUESTS
def test_null_stands_for_an_absent_optional(request_of: Callable[[], Tree]) -> None:
    tree = request_of()
    tree["x402Version"] = None
    tree["paymentPayload"] |= {"resource": None, "extensions": None}
    tree["paymentRequirements"] |= {"extra": None, "description": None, "mimeType": None, "resource": None, "outputSchema": None}
    payment = decode_payment(tree)
    assert payment.requirements.extra == {}
    assert payment.resource is None


@REQUESTS
def test_optionals_may_be_absent(request_of: Callable[[], Tree]) -> None:
    tree = request_of()
    del tree["x402Version"], tree["paymentRequirements"]["extra"]
    tree["paymentPayload"].pop("resource", None)
    assert decode_payment(tree).requirements.extra == {}


def test_the_buyers_copy_of_the_requirements_needs_only_scheme_and_network() -> None:
    tree = v2_request()
    tree["paymentPayload"]["accepted"] = {"scheme": "exact", "network": "eip155:84532"}
    assert decode_payment(tree).accepted_differs == ("amount", "asset", "payTo")


def test_v1_extra_may_be_json_in_a_string() -> None:
    tree = v1_request()
    tree["paymentRequirements"]["extra"] = '{"name":"USDC","version":"2"}'
    assert decode(tree) == expected(1, "base-sepolia")
    tree["paymentRequirements"]["extra"] = "null"
    assert decode_payment(tree).requirements.extra == {}


@REQUESTS
@pytest.mark.parametrize("spelling", [str.lower, str.upper])
def test_addresses_are_read_in_any_case(request_of: Callable[[], Tree], spelling: Callable[[str], str]) -> None:
    tree = request_of()
    for field in ("asset", "payTo"):
        tree["paymentRequirements"][field] = "0x" + spelling(tree["paymentRequirements"][field][2:])
    assert decode_payment(tree).requirements == decode_payment(request_of()).requirements


@REQUESTS
@pytest.mark.parametrize(("number", "timeout_s"), [(1, 1), (300.0, 300), (2**31 - 1, 2**31 - 1)])
def test_max_timeout_is_an_integral_number(request_of: Callable[[], Tree], number: float, timeout_s: int) -> None:
    tree = request_of()
    tree["paymentRequirements"]["maxTimeoutSeconds"] = number
    timeout = decode_payment(tree).requirements.max_timeout_s
    assert timeout == timeout_s
    assert isinstance(timeout, int)


@pytest.mark.parametrize("amount", [0, 1, 2**256 - 1])
def test_amounts_are_read_up_to_the_largest_uint256(amount: int) -> None:
    tree = v2_request()
    tree["paymentRequirements"]["amount"] = str(amount)
    assert decode_payment(tree).requirements.amount_atomic == amount


def test_the_payload_is_passed_on_unread() -> None:
    tree = v2_request()
    tree["paymentPayload"]["payload"] = {"signature": 7, "authorization": ["from"], "value": 1.5}
    assert decode_payment(tree).payload == {"signature": 7, "authorization": ["from"], "value": 1.5}


@REQUESTS
def test_a_scheme_we_may_not_serve_is_left_to_the_registry(request_of: Callable[[], Tree]) -> None:
    tree = request_of()
    buyer_of(tree)["scheme"] = "upto"
    payment = decode_payment(tree)
    assert (payment.scheme, payment.requirements.scheme) == ("upto", "exact")


@REQUESTS
def test_two_known_networks_that_differ_are_left_to_the_scheme(request_of: Callable[[], Tree]) -> None:
    tree = request_of()
    buyer_of(tree)["network"] = "base" if request_of is v1_request else "eip155:8453"
    payment = decode_payment(tree)
    assert (payment.network, payment.requirements.network) == ("eip155:8453", "eip155:84532")


@pytest.mark.parametrize(
    ("extension", "identifier"),
    [
        ({"info": {"required": False, "id": "pay_0123456789abcdef"}}, "pay_0123456789abcdef"),
        ({"info": {"id": "A-Z_a-z_0-9_" + "x" * 116}}, "A-Z_a-z_0-9_" + "x" * 116),
        ({"info": {"required": False}}, None),
        ({"info": {"required": "true", "id": None}}, None),
        ({"info": []}, None),
        ("0123456789abcdef", None),
        (None, None),
    ],
)
def test_the_payment_identifier_is_found_when_it_is_one(extension: object, identifier: str | None) -> None:
    tree = v2_request()
    tree["paymentPayload"]["extensions"] = {"bazaar": {"info": {}}, "payment-identifier": extension}
    assert decode_payment(tree).payment_identifier == identifier


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({"required": True}, "requires"),
        ({"id": "tooshort"}, "16 to 128"),
        ({"id": "a" * 15}, "16 to 128"),
        ({"id": "a" * 129}, "16 to 128"),
        ({"id": "0123456789 abcdef"}, "16 to 128"),
        ({"id": "0123456789abcdef\n"}, "16 to 128"),
        ({"id": "0123456789abcdeé"}, "16 to 128"),
        ({"id": 7}, "16 to 128"),
        ({"id": {}}, "16 to 128"),
    ],
)
def test_a_payment_identifier_that_is_none_is_refused_by_its_path_and_never_quoted(info: Tree, expected: str) -> None:
    tree = v2_request()
    tree["paymentPayload"]["extensions"] = {"payment-identifier": {"info": info}}
    malformed = decode(tree)
    assert isinstance(malformed, Malformed)
    assert malformed.path == "$.paymentPayload.extensions.payment-identifier.info.id"
    assert expected in malformed.message
    assert "abcde" not in malformed.message


# ---- well-formed, and not served


@REQUESTS
@pytest.mark.parametrize("version", [0, 3, -1, 10**77])
def test_another_version_is_refused_in_our_newest(request_of: Callable[[], Tree], version: int) -> None:
    tree = request_of()
    tree["paymentPayload"]["x402Version"] = version
    refused = decode_refused(tree)
    assert refused.refusal.reason is Reason.INVALID_VERSION
    assert (refused.version, refused.wire_network) == (2, tree["paymentRequirements"]["network"])
    assert refused.payer == PAYER_ADDRESS


def test_another_version_may_spell_everything_otherwise() -> None:
    refused = decode_refused({"paymentPayload": {"x402Version": 3}, "paymentRequirements": ["whatever"]})
    assert (refused.version, refused.wire_network, refused.payer) == (2, "", None)


@REQUESTS
def test_two_versions_in_one_request_are_refused_in_the_payloads(request_of: Callable[[], Tree]) -> None:
    tree = request_of()
    version = tree["x402Version"]
    tree["x402Version"] = 3 - version
    refused = decode_refused(tree)
    assert refused.refusal.reason is Reason.INVALID_VERSION
    assert (refused.version, refused.wire_network) == (version, tree["paymentRequirements"]["network"])


@REQUESTS
@pytest.mark.parametrize("network", ["", "solana", "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp", "eip155:084532", "base-goerli", "é"])
def test_a_network_we_cannot_name_is_refused_with_its_echo(request_of: Callable[[], Tree], network: str) -> None:
    tree = request_of()
    buyer_of(tree)["network"] = tree["paymentRequirements"]["network"] = network
    tree["paymentRequirements"] |= {"asset": "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v", "payTo": "other networks, other addresses"}
    refused = decode_refused(tree)
    assert refused.refusal.reason is Reason.UNSUPPORTED_NETWORK
    assert (refused.version, refused.wire_network, refused.payer) == (tree["x402Version"], network, PAYER_ADDRESS)


def test_each_version_knows_its_own_spelling_of_networks_only() -> None:
    for tree, other in ((v1_request(), "eip155:84532"), (v2_request(), "base-sepolia")):
        buyer_of(tree)["network"] = tree["paymentRequirements"]["network"] = other
        assert decode_refused(tree).refusal.reason is Reason.UNSUPPORTED_NETWORK


@REQUESTS
def test_an_unknown_network_on_one_side_is_a_mismatch(request_of: Callable[[], Tree]) -> None:
    tree = request_of()
    tree["paymentRequirements"]["network"] = "elsewhere"
    refused = decode_refused(tree)
    assert refused.refusal.reason is Reason.NETWORK_MISMATCH
    assert refused.wire_network == buyer_of(tree)["network"]


@REQUESTS
def test_of_two_things_wrong_the_scheme_is_told_before_the_network(request_of: Callable[[], Tree]) -> None:
    tree = request_of()
    tree["paymentRequirements"] |= {"network": "elsewhere", "scheme": "upto"}
    assert decode_refused(tree).refusal.reason is Reason.SCHEME_MISMATCH


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"authorization": []},
        {"authorization": {"from": 7}},
        {"authorization": {"from": "x"}},
        {"permit2Authorization": {"from": PAYER}},
    ],
)
def test_the_payer_of_a_refused_request_is_told_if_it_can_be_found(payload: Tree) -> None:
    tree = v2_request()
    tree["paymentPayload"]["payload"] = payload
    tree["x402Version"] = 1
    assert decode_refused(tree).payer == (PAYER_ADDRESS if "permit2Authorization" in payload else None)


# ---- malformed (the corpus is in test_hostile.py)


@pytest.mark.parametrize(
    ("change", "path", "message"),
    [
        ({"paymentPayload": None}, "$", "Missing paymentPayload or paymentRequirements"),
        ({"paymentPayload": []}, "$.paymentPayload", "expected an object, got an array"),
        ({"paymentRequirements": "x"}, "$.paymentRequirements", "expected `object`, got `str`"),
        ({"x402Version": "2"}, "$.x402Version", "expected `int | null`, got `str`"),
    ],
)
def test_a_malformed_request_is_told_where_and_what_was_expected(change: Tree, path: str, message: str) -> None:
    malformed = decode_malformed(v2_request() | change)
    assert (malformed.path, malformed.message) == (path, message)


def test_a_malformed_value_is_quoted_with_its_path() -> None:
    tree = v1_request()
    tree["paymentRequirements"]["maxAmountRequired"] = "1e3"
    malformed = decode_malformed(tree)
    assert malformed.path == "$.paymentRequirements.maxAmountRequired"
    assert malformed.message == "expected a decimal integer without sign or leading zero, got '1e3'"


def test_the_words_for_old_clients_tell_payload_from_requirements() -> None:
    tree = v2_request()
    tree["paymentRequirements"]["payTo"] = "0x"
    assert decode_malformed(tree).reason is Reason.INVALID_REQUIREMENTS
    del tree["paymentPayload"]["payload"]
    assert decode_malformed(tree).reason is Reason.INVALID_PAYLOAD
    assert decode_malformed([]).reason is Reason.INVALID_PAYLOAD


def test_a_body_of_just_the_largest_size_is_read() -> None:
    body = json.dumps(v2_request()).encode().ljust(codec.BODY_BYTES_MAX)
    assert isinstance(decode_request(body), Payment)
    assert decode_request(body + b" ") == Malformed(message="expected at most 65536 bytes, got 65537", fault="too_large")


# ---- headers


def test_a_payment_header_is_standard_base64() -> None:
    body = json.dumps(v2_request()["paymentPayload"]).encode()
    assert decode_header(base64.b64encode(body).decode()) == body
    assert decode_header(" " + base64.b64encode(body).decode() + "\t") == body


@pytest.mark.parametrize("value", ["e30", "e30=\n", "e3 0=", "e30==", "=", "_-8=", "é30=", "\ud800", "%7B%7D"])
def test_a_header_that_is_not_base64_is_malformed(value: str) -> None:
    assert isinstance(decode_header(value), Malformed)


def test_a_header_is_bounded() -> None:
    largest = base64.b64encode(b"x" * codec.BODY_BYTES_MAX).decode()
    assert decode_header(largest) == b"x" * codec.BODY_BYTES_MAX
    malformed = decode_header(largest + "AAAA")
    assert isinstance(malformed, Malformed)
    assert malformed.fault == "too_large"


@pytest.mark.parametrize(
    "value", [None, "application/json", "Application/JSON", "application/json; charset=utf-8", 'application/json;charset="UTF-8"']
)
def test_json_in_utf_8_is_the_content_type_we_read(value: str | None) -> None:
    assert check_content_type(value) is None


# ---- answers


def answer(encoded: bytes) -> Tree:
    tree: Tree = json.loads(encoded)
    return tree


@VERSIONS
def test_a_valid_payment_is_answered_with_its_payer(version: Version) -> None:
    assert encode_verify(VerifyResult(payer=PAYER_ADDRESS), version) == b'{"isValid":true,"payer":"%s"}' % PAYER.encode()


@pytest.mark.parametrize("reason", list(Reason))
@VERSIONS
def test_every_reason_is_told_in_the_words_of_the_callers_version(reason: Reason, version: Version) -> None:
    refusal = Refusal(reason=reason, message="expected one thing, got another")
    word = reason.v1 if version == 1 else reason.v2
    verified = answer(encode_verify(VerifyResult(payer=PAYER_ADDRESS, refusal=refusal), version))
    assert verified == {"isValid": False, "payer": PAYER, "invalidReason": word, "invalidMessage": refusal.message}
    settled = answer(encode_settle(SettleResult(payer=PAYER_ADDRESS, refusal=refusal, tx_hash=TX_HASH), version, "base"))
    assert settled == {
        "success": False,
        "transaction": TX_HASH,
        "network": "base",
        "payer": PAYER,
        "errorReason": word,
        "errorMessage": refusal.message,
    }


@VERSIONS
def test_an_unknown_payer_is_empty_text_and_never_absent(version: Version) -> None:
    refusal = Refusal(reason=Reason.INVALID_EXACT_PAYLOAD, message="no")
    assert answer(encode_verify(VerifyResult(payer=None, refusal=refusal), version))["payer"] == ""
    assert answer(encode_settle(SettleResult(payer=None, refusal=refusal), version, ""))["payer"] == ""


@VERSIONS
def test_a_settled_payment_is_answered_with_its_proof_and_no_error(version: Version) -> None:
    result = SettleResult(payer=PAYER_ADDRESS, tx_hash=TX_HASH, log_index=0, settlement_id="s1")
    assert answer(encode_settle(result, version, "base-sepolia")) == {
        "success": True,
        "transaction": TX_HASH,
        "network": "base-sepolia",
        "payer": PAYER,
        "extra": {"logIndex": 0, "settlementId": "s1"},
    }


@VERSIONS
def test_a_failure_before_any_transaction_has_empty_text_for_it(version: Version) -> None:
    result = SettleResult(payer=PAYER_ADDRESS, refusal=Refusal(reason=Reason.NONCE_USED, message="no"))
    settled = answer(encode_settle(result, version, "eip155:84532"))
    assert settled["transaction"] == ""
    assert "extra" not in settled


def test_nothing_is_called_settled_or_pending_without_a_hash() -> None:
    with pytest.raises(AssertionError):
        encode_settle(SettleResult(payer=PAYER_ADDRESS), 2, "eip155:84532")
    pending = Refusal(reason=Reason.SETTLEMENT_PENDING, message="wait")
    with pytest.raises(AssertionError):
        encode_settle(SettleResult(payer=PAYER_ADDRESS, refusal=pending), 2, "eip155:84532")


def test_a_long_message_is_cut() -> None:
    refusal = Refusal(reason=Reason.SIMULATION_FAILED, message="x" * 10_000)
    assert len(answer(encode_verify(VerifyResult(payer=None, refusal=refusal), 2))["invalidMessage"]) == codec.MESSAGE_CHARS_MAX


def test_supported_lists_each_kind_for_v2_and_then_for_v1_where_v1_has_a_name() -> None:
    supported = Supported(
        kinds=(
            SupportedKind(scheme="exact", network=BASE_SEPOLIA),
            SupportedKind(scheme="exact", network=Network("eip155:50")),
            SupportedKind(scheme="upto", network=Network("eip155:8453"), extra={"facilitatorAddress": PAYER}),
        ),
        extensions=("payment-identifier",),
        signers={"eip155:*": (PAYER_ADDRESS,)},
    )
    assert answer(encode_supported(supported)) == {
        "kinds": [
            {"x402Version": 2, "scheme": "exact", "network": "eip155:84532"},
            {"x402Version": 2, "scheme": "exact", "network": "eip155:50"},
            {"x402Version": 2, "scheme": "upto", "network": "eip155:8453", "extra": {"facilitatorAddress": PAYER}},
            {"x402Version": 1, "scheme": "exact", "network": "base-sepolia"},
            {"x402Version": 1, "scheme": "upto", "network": "base", "extra": {"facilitatorAddress": PAYER}},
        ],
        "extensions": ["payment-identifier"],
        "signers": {"eip155:*": [PAYER]},
    }


def test_supported_always_has_its_three_keys() -> None:
    assert encode_supported(Supported(kinds=(), extensions=(), signers={})) == b'{"kinds":[],"extensions":[],"signers":{}}'


def test_answers_are_the_same_bytes_whatever_the_order_of_a_mapping() -> None:
    def encoded(extra: dict[str, object], signers: dict[str, tuple[Address, ...]]) -> bytes:
        kinds = (SupportedKind(scheme="exact", network=BASE_SEPOLIA, extra=extra),)
        return encode_supported(Supported(kinds=kinds, extensions=(), signers=signers))

    assert encoded({"a": 1, "b": 2}, {"c:*": (), "d:*": ()}) == encoded({"b": 2, "a": 1}, {"d:*": (), "c:*": ()})
