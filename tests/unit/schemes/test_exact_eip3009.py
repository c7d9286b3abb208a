"""Every rule of scheme exact over EIP-3009, each alone wrong, in the order in which a payment is judged."""

import json
from typing import Any

import pytest
from eth_abi.abi import decode

from facilitator.domain import abi
from facilitator.domain.facts import Call, CodeOf, Now, Reply
from facilitator.domain.wallets import Rules
from facilitator.protocol.codec import decode_request
from facilitator.protocol.messages import Authorization, Payment
from facilitator.protocol.reasons import Reason, Refusal
from facilitator.schemes.exact_eip3009 import REVERT_REASONS, SIGNATURE_BYTES_MAX, ExactEip3009
from facilitator.units import ZERO_ADDRESS, Address, Atomic, AuthNonce, Network, UnixSeconds
from tests.fixtures.payments import (
    NOW,
    RELAYER,
    SCHEME,
    TOKEN,
    USDC,
    authorization,
    error,
    facts,
    payload,
    payment,
    requirements,
    sign,
    word,
)
from tests.fixtures.vectors import AUTH_NONCE, PAY_TO, PAYER, SIGNATURE, SIGNATURE_HIGH_S, v1_request, v2_request

OTHER_KEY = bytes([0x77]) * 32
OTHER = Address("0x" + "44" * 20)
REVERTED = Reply(ok=False, data=b"")
EMPTY = Reply(ok=True, data=b"")
YES = Reply(ok=True, data=word(1))


def refusal(found: object) -> Refusal:
    """The refusal that must have been found; every one says field, expected and got, and shows no signature."""
    assert isinstance(found, Refusal)
    assert SIGNATURE[2:40] not in found.message.lower()
    assert ": expected " in found.message
    assert ", got " in found.message
    return found


def read(found: object) -> Authorization:
    assert isinstance(found, Authorization), found
    return found


def judged_before_the_chain(asked: Payment) -> Refusal | None:
    """All that is judged without asking the chain."""
    terms = SCHEME.read(asked)
    if isinstance(terms, Refusal):
        return terms
    return (
        SCHEME.check_terms(terms, asked.requirements) or SCHEME.check_signature(terms) or SCHEME.check_time(terms, Now(head=NOW, wall=NOW))
    )


# ---- reading


def test_the_example_is_read_and_passes_every_check() -> None:
    assert SCHEME.read(payment()) == authorization()
    assert judged_before_the_chain(payment()) is None
    assert SCHEME.judge(authorization(), facts()) is None


def test_both_versions_read_to_the_same_authorization() -> None:
    first, second = (decode_request(json.dumps(request()).encode()) for request in (v1_request, v2_request))
    assert isinstance(first, Payment)
    assert isinstance(second, Payment)
    assert SCHEME.read(first) == SCHEME.read(second) == authorization()
    assert judged_before_the_chain(first) is judged_before_the_chain(second) is None


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (payment(scheme="upto"), Reason.SCHEME_MISMATCH),
        (payment(requirements=requirements(scheme="upto")), Reason.SCHEME_MISMATCH),
        (payment(scheme="upto", requirements=requirements(scheme="upto")), Reason.UNSUPPORTED_SCHEME),
        (payment(network=Network("eip155:8453")), Reason.NETWORK_MISMATCH),
        (payment(requirements=requirements(network=Network("eip155:8453"))), Reason.NETWORK_MISMATCH),
        (
            payment(network=Network("eip155:8453"), requirements=requirements(network=Network("eip155:8453"))),
            Reason.UNSUPPORTED_NETWORK,
        ),
        (payment({"permit2Authorization": {}} | payload()), Reason.UNSUPPORTED_PAYLOAD_TYPE),
        (payment({"delegationManager": "0x", "permissionContext": "0x"}), Reason.UNSUPPORTED_PAYLOAD_TYPE),
        (payment(requirements=requirements(extra={"assetTransferMethod": "permit2"})), Reason.UNSUPPORTED_PAYLOAD_TYPE),
        (payment(requirements=requirements(extra={"assetTransferMethod": 3})), Reason.UNSUPPORTED_PAYLOAD_TYPE),
        (payment(payload(signature=...)), Reason.MISSING_SIGNATURE),
        (payment(payload(signature=None)), Reason.MISSING_SIGNATURE),
        (payment(payload(signature="")), Reason.MISSING_SIGNATURE),
        (payment(payload(signature="0x")), Reason.MISSING_SIGNATURE),
        (payment({}), Reason.INVALID_EXACT_PAYLOAD),
        (payment({"signature": SIGNATURE, "authorization": None}), Reason.INVALID_EXACT_PAYLOAD),
        (payment({"signature": SIGNATURE, "authorization": [1]}), Reason.INVALID_EXACT_PAYLOAD),
    ],
)
def test_what_is_routed_or_shaped_wrongly_is_refused(asked: Payment, reason: Reason) -> None:
    assert refusal(SCHEME.read(asked)).reason is reason


@pytest.mark.parametrize("key", ["from", "to", "value", "validAfter", "validBefore", "nonce"])
@pytest.mark.parametrize("value", [..., None, True, 7, 1.5, 10**79, [], {}, "", "x" * 500, " 1", "١"])
def test_a_member_of_the_authorization_that_is_not_its_type_is_refused_by_name(key: str, value: object) -> None:
    found = refusal(SCHEME.read(payment(payload(**{key: value}))))
    assert found.reason is Reason.INVALID_EXACT_PAYLOAD
    assert found.message.startswith(f"payload.authorization.{key}: expected ")
    assert len(found.message) < 300
    assert found.message.isascii() or "…" in found.message


@pytest.mark.parametrize("key", ["value", "validAfter", "validBefore"])
@pytest.mark.parametrize("value", ["-1", "+1", "01", "1_0", "1e3", "0x10", "1.0", "1 ", str(2**256), "9" * 79])
def test_numbers_are_canonical_decimal_strings_below_uint256(key: str, value: str) -> None:
    assert refusal(SCHEME.read(payment(payload(**{key: value})))).reason is Reason.INVALID_EXACT_PAYLOAD


def test_a_json_number_is_refused_and_the_message_says_so() -> None:
    found = refusal(SCHEME.read(payment(payload(value=10_000))))
    assert found.message == "payload.authorization.value: expected a decimal string, got the JSON number 10000"


@pytest.mark.parametrize("value", [PAYER[2:], PAYER[:-1], PAYER + "0", "0X" + PAYER[2:], PAYER[:-1] + "g", "0x" + "١" * 40])
def test_addresses_are_strict(value: str) -> None:
    assert refusal(SCHEME.read(payment(payload(**{"from": value})))).reason is Reason.INVALID_EXACT_PAYLOAD


@pytest.mark.parametrize("nonce", [AUTH_NONCE[2:], AUTH_NONCE[:-1], AUTH_NONCE + "ab", "0X" + AUTH_NONCE[2:], "0x" + "zz" * 32])
def test_auth_nonces_are_strict(nonce: str) -> None:
    assert refusal(SCHEME.read(payment(payload(nonce=nonce)))).reason is Reason.INVALID_EXACT_PAYLOAD


@pytest.mark.parametrize("signature", [SIGNATURE[2:], SIGNATURE[:-1], SIGNATURE + "0", "0X" + SIGNATURE[2:], "0xzz", "0x 11", 7, []])
def test_signature_hex_is_strict(signature: object) -> None:
    assert refusal(SCHEME.read(payment(payload(signature=signature)))).reason is Reason.INVALID_EXACT_PAYLOAD


def test_a_signature_may_be_long_but_not_endless() -> None:
    assert len(read(SCHEME.read(payment(payload(signature="0x" + "ab" * SIGNATURE_BYTES_MAX)))).signature) == SIGNATURE_BYTES_MAX
    assert refusal(SCHEME.read(payment(payload(signature="0x" + "ab" * (SIGNATURE_BYTES_MAX + 1))))).reason is Reason.INVALID_EXACT_PAYLOAD


def test_hex_may_be_spelled_in_any_case() -> None:
    shouted = payload(
        signature="0x" + SIGNATURE[2:].upper(), nonce="0x" + AUTH_NONCE[2:].upper(), **{"from": "0x" + PAYER[2:].upper(), "to": PAY_TO}
    )
    assert SCHEME.read(payment(shouted)) == authorization()


def test_unknown_members_are_tolerated() -> None:
    assert SCHEME.read(payment(payload(memo="x") | {"memo": {"y": 1}})) == authorization()


def test_no_payment_is_drawn_on_a_relayer_of_ours() -> None:
    found = refusal(SCHEME.read(payment(payload(**{"from": RELAYER}))))
    assert found.reason is Reason.INVALID_EXACT_PAYLOAD
    assert "relayer" in found.message


# ---- static terms


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"pay_to": ZERO_ADDRESS}, Reason.INVALID_REQUIREMENTS),
        ({"pay_to": USDC}, Reason.INVALID_REQUIREMENTS),
        ({"asset": OTHER}, Reason.INVALID_ASSET),
        ({"extra": {}}, Reason.MISSING_EIP712_DOMAIN),
        ({"extra": {"name": "USDC"}}, Reason.MISSING_EIP712_DOMAIN),
        ({"extra": {"version": "2"}}, Reason.MISSING_EIP712_DOMAIN),
        ({"extra": {"name": "", "version": "2"}}, Reason.MISSING_EIP712_DOMAIN),
        ({"extra": {"name": "USDC", "version": None}}, Reason.MISSING_EIP712_DOMAIN),
        ({"extra": {"name": "USDC", "version": 2}}, Reason.MISSING_EIP712_DOMAIN),
        ({"extra": {"name": "USD Coin", "version": "2"}}, Reason.TOKEN_NAME_MISMATCH),
        ({"extra": {"name": "USDC", "version": "1"}}, Reason.TOKEN_VERSION_MISMATCH),
        ({"pay_to": OTHER}, Reason.RECIPIENT_MISMATCH),
        ({"amount_atomic": Atomic(10_001)}, Reason.AMOUNT_MISMATCH),
        ({"amount_atomic": Atomic(9_999)}, Reason.AMOUNT_MISMATCH),
        ({"amount_atomic": Atomic(0)}, Reason.AMOUNT_MISMATCH),
    ],
)
def test_terms_that_do_not_fit_are_refused(asked: dict[str, Any], reason: Reason) -> None:
    assert refusal(SCHEME.check_terms(authorization(), requirements(**asked))).reason is reason


def test_a_zero_pay_to_is_the_sellers_mistake_even_when_the_buyer_signed_for_it() -> None:
    found = refusal(SCHEME.check_terms(authorization(pay_to=ZERO_ADDRESS), requirements(pay_to=ZERO_ADDRESS)))
    assert found.reason is Reason.INVALID_REQUIREMENTS


def test_a_token_is_served_on_its_own_network_only() -> None:
    found = refusal(SCHEME.check_terms(authorization(), requirements(network=Network("eip155:8453"))))
    assert found.reason is Reason.INVALID_ASSET


def test_zero_for_zero_and_a_payment_to_oneself_are_within_the_rules() -> None:
    nothing = authorization(amount_atomic=Atomic(0))
    assert SCHEME.check_terms(nothing, requirements(amount_atomic=Atomic(0))) is None
    own = authorization(pay_to=Address(PAYER.lower()))
    assert SCHEME.check_terms(own, requirements(pay_to=Address(PAYER.lower()))) is None


def test_mismatches_say_what_was_expected_and_what_came() -> None:
    found = refusal(SCHEME.check_terms(authorization(), requirements(extra={"name": "USD Coin", "version": "2"})))
    assert found.message == "paymentRequirements.extra.name: expected 'USDC', got 'USD Coin'"
    assert found.evidence == {"field": "paymentRequirements.extra.name", "expected": "'USDC'", "got": "'USD Coin'"}
    found = refusal(SCHEME.check_terms(authorization(), requirements(amount_atomic=Atomic(9_999))))
    assert found.message == "payload.authorization.value: expected exactly 9999 (0.009999 USDC), got 10000 (0.01 USDC)"


# ---- signature


@pytest.mark.parametrize("v", ["00", "01", "1b", "1c"])
def test_each_spelling_of_v_is_read_and_only_the_right_one_recovers_the_payer(v: str) -> None:
    terms = read(SCHEME.read(payment(payload(signature=SIGNATURE[:-2] + v))))
    found = SCHEME.check_signature(terms)
    if v in {"00", "1b"}:  # the example's v is 27
        assert found is None
        assert SCHEME.call(terms) == SCHEME.call(authorization())
    else:
        assert refusal(found).reason is Reason.SIGNATURE


def test_the_compact_form_is_accepted_and_the_token_is_sent_the_long_one() -> None:
    terms = read(SCHEME.read(payment(payload(signature=SIGNATURE[:-2]))))  # v 27: the top bit of s is clear
    assert SCHEME.check_signature(terms) is None
    assert SCHEME.call(terms) == SCHEME.call(authorization())


@pytest.mark.parametrize(
    "signature",
    [SIGNATURE_HIGH_S, SIGNATURE + "00", SIGNATURE[:-2] + "1d", SIGNATURE[:-4], "0x" + "00" * 65, "0x" + "ff" * 64 + "1b", "0x01"],
)
def test_no_other_bytes_pass_for_a_keys_signature(signature: str) -> None:
    terms = read(SCHEME.read(payment(payload(signature=signature))))
    assert refusal(SCHEME.check_signature(terms)).reason is Reason.SIGNATURE


@pytest.mark.parametrize(
    "signed",
    [
        authorization(amount_atomic=Atomic(10_001)),
        authorization(pay_to=OTHER),
        authorization(auth_nonce=AuthNonce("0x" + "cc" * 32)),
        authorization(valid_after=UnixSeconds(1)),
        authorization(valid_before=UnixSeconds(4_102_444_801)),
        authorization(network=Network("eip155:8453")),
        authorization(asset=OTHER),
    ],
)
def test_a_signature_over_other_terms_is_refused(signed: Authorization) -> None:
    found = refusal(SCHEME.check_signature(authorization(signature=sign(signed))))
    assert found.reason is Reason.SIGNATURE
    assert PAYER in found.message


def test_a_signature_of_another_key_or_for_another_domain_is_refused() -> None:
    assert SCHEME.check_signature(authorization(signature=sign(authorization()))) is None
    for forged in (
        sign(authorization(), key=OTHER_KEY),
        sign(authorization(), name="USD Coin"),
        sign(authorization(), version="1"),
    ):
        assert refusal(SCHEME.check_signature(authorization(signature=forged))).reason is Reason.SIGNATURE


# ---- time


@pytest.mark.parametrize(("margin", "reason"), [(-1, Reason.EXPIRED), (0, Reason.EXPIRED), (5, Reason.EXPIRED), (6, None), (7, None)])
@pytest.mark.parametrize(
    "now",
    [
        Now(head=NOW, wall=NOW),
        Now(head=NOW, wall=UnixSeconds(NOW - 20)),
        Now(head=UnixSeconds(NOW - 20), wall=NOW),
        Now(head=NOW, wall=None),
    ],
)
def test_valid_before_must_lie_six_seconds_behind_the_latest_time(margin: int, reason: Reason | None, now: Now) -> None:
    found = SCHEME.check_time(authorization(valid_before=UnixSeconds(NOW + margin)), now)
    assert (found.reason if found else None) is reason


@pytest.mark.parametrize(("ahead", "reason"), [(-600, None), (-1, None), (0, Reason.NOT_YET_VALID), (5, Reason.NOT_YET_VALID)])
@pytest.mark.parametrize("now", [Now(head=NOW, wall=NOW), Now(head=UnixSeconds(NOW - 2), wall=NOW), Now(head=NOW, wall=None)])
def test_valid_after_must_lie_before_the_latest_time(ahead: int, reason: Reason | None, now: Now) -> None:
    found = SCHEME.check_time(authorization(valid_after=UnixSeconds(NOW + ahead)), now)
    assert (found.reason if found else None) is reason


def test_times_may_be_any_uint256() -> None:
    terms = authorization(valid_before=UnixSeconds(2**256 - 1))
    assert SCHEME.check_time(terms, Now(head=NOW, wall=NOW)) is None


# ---- the chain's answers


def test_what_is_asked_is_the_payment_and_everything_that_could_stop_it() -> None:
    terms = authorization()
    code, *calls, simulation = SCHEME.ask(terms)
    assert code == CodeOf(address=terms.payer)
    assert simulation == SCHEME.call(terms) == Call(to=USDC, data=abi.transfer_with_authorization(terms, terms.signature))
    assert [call.data[:4] for call in calls if isinstance(call, Call)] == [
        abi.AUTHORIZATION_STATE,
        abi.BALANCE_OF,
        abi.IS_BLACKLISTED,
        abi.IS_BLACKLISTED,
        abi.PAUSED,
    ]


def test_a_signature_that_is_no_keys_goes_to_the_overload_that_takes_any() -> None:
    data = SCHEME.call(authorization(signature=b"\x01" * 99)).data
    assert data[:4] == abi.TRANSFER_WITH_AUTHORIZATION_BYTES
    assert decode(["address", "address", "uint256", "uint256", "uint256", "bytes32", "bytes"], data[4:])[6] == b"\x01" * 99


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"state": REVERTED}, Reason.EIP3009_NOT_SUPPORTED),
        ({"state": EMPTY}, Reason.EIP3009_NOT_SUPPORTED),
        ({"state": Reply(ok=True, data=word(2))}, Reason.EIP3009_NOT_SUPPORTED),
        ({"state": EMPTY, "balance": EMPTY, "paused": EMPTY, "simulation": EMPTY}, Reason.ASSET_NOT_DEPLOYED),
        ({"state": YES}, Reason.NONCE_USED),
        ({"paused": YES}, Reason.TOKEN_PAUSED),
        ({"payer_frozen": YES}, Reason.ACCOUNT_BLACKLISTED),
        ({"pay_to_frozen": YES}, Reason.ACCOUNT_BLACKLISTED),
        ({"balance": Reply(ok=True, data=word(9_999))}, Reason.INSUFFICIENT_BALANCE),
        ({"balance": Reply(ok=True, data=word(0))}, Reason.INSUFFICIENT_BALANCE),
        ({"simulation": REVERTED}, Reason.SIMULATION_FAILED),
        ({"simulation": Reply(ok=False, data=error("something else"))}, Reason.SIMULATION_FAILED),
        ({"balance": Reply(ok=True, data=word(10_001))}, None),
        ({"paused": REVERTED, "payer_frozen": REVERTED, "pay_to_frozen": REVERTED}, None),
        ({"balance": REVERTED}, None),
    ],
)
def test_each_answer_of_the_chain_alone_wrong_has_its_reason(answers: dict[str, Any], reason: Reason | None) -> None:
    found = SCHEME.judge(authorization(), facts(**answers))
    assert (refusal(found).reason if found else None) is reason


def test_answers_are_judged_in_the_order_of_precedence() -> None:
    scheme = ExactEip3009((TOKEN,), wallets=Rules(mode="off"))
    wrong: dict[str, Any] = {
        "code": b"\x60",
        "state": YES,
        "paused": YES,
        "payer_frozen": YES,
        "balance": Reply(ok=True, data=word(0)),
        "simulation": REVERTED,
    }
    order = []
    while wrong:
        order.append(refusal(scheme.judge(authorization(), facts(**wrong))).reason)
        wrong.pop(next(iter(wrong)))
    assert order == [
        Reason.SMART_WALLET_UNSUPPORTED,
        Reason.NONCE_USED,
        Reason.TOKEN_PAUSED,
        Reason.ACCOUNT_BLACKLISTED,
        Reason.INSUFFICIENT_BALANCE,
        Reason.SIMULATION_FAILED,
    ]


def test_who_is_blacklisted_is_said() -> None:
    assert PAYER in refusal(SCHEME.judge(authorization(), facts(payer_frozen=YES))).message
    assert "paymentRequirements.payTo" in refusal(SCHEME.judge(authorization(), facts(pay_to_frozen=YES))).message


@pytest.mark.parametrize(("text", "reason"), REVERT_REASONS.items())
def test_each_known_revert_of_the_simulation_has_its_reason(text: str, reason: Reason) -> None:
    selectors = {name: selector for selector, name in abi._CUSTOM_ERRORS.items()}
    data = selectors.get(text) or error(text, padding=b"\xff")
    found = refusal(SCHEME.judge(authorization(), facts(simulation=Reply(ok=False, data=data))))
    assert found.reason is reason
    assert text in found.message


@pytest.mark.parametrize("text", ["not FiatTokenV2: authorization is expired", "invalid signature", "authorization is used"])
def test_a_revert_is_never_guessed_from_a_part_of_its_text(text: str) -> None:
    assert refusal(SCHEME.judge(authorization(), facts(simulation=Reply(ok=False, data=error(text))))).reason is Reason.SIMULATION_FAILED


def test_a_payment_valid_by_the_wall_clock_is_not_refused_because_the_newest_block_is_older() -> None:
    early = Reply(ok=False, data=error("FiatTokenV2: authorization is not yet valid"))
    at_head = authorization(valid_after=NOW)
    assert SCHEME.check_time(at_head, Now(head=NOW, wall=UnixSeconds(NOW + 1))) is None
    assert SCHEME.judge(at_head, facts(simulation=early)) is None
    before_head = authorization(valid_after=UnixSeconds(NOW - 1))
    assert refusal(SCHEME.judge(before_head, facts(simulation=early))).reason is Reason.NOT_YET_VALID
