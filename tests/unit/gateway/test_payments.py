import base64
import json
from typing import Any

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from facilitator.gateway.payments import NotPayment, Payment, read_payment
from facilitator.gateway.prices import Resource, Terms, find_token, parse_payee
from facilitator.protocol.reasons import Reason
from facilitator.units import Atomic

RESOURCE = Resource(url="http://shop/report", description="report", mime_type="application/json")
PAYEE = parse_payee("0x2222222222222222222222222222222222222222")
TERMS = [
    Terms(token=find_token(network), pay_to=PAYEE, amount_atomic=Atomic(10_000), max_timeout_s=300) for network in ("base", "base-sepolia")
]
AUTHORIZATION = {"from": "0x" + "Ab" * 20, "to": PAYEE, "value": "10000", "validAfter": "0", "validBefore": "9", "nonce": "0x" + "Cd" * 32}


def paid(version: int = 2, **changes: Any) -> dict[str, Any]:
    payload = {"signature": "0x00", "authorization": AUTHORIZATION}
    if version == 1:
        return {"x402Version": 1, "scheme": "exact", "network": "base-sepolia", "payload": payload} | changes
    return {"x402Version": 2, "accepted": TERMS[1].render(2, RESOURCE), "payload": payload} | changes


NO_TERMS = [paid(2, payload="x"), paid(2, accepted=None), paid(1)]
OTHERS: list[dict[str, Any]] = [{"scheme": "upto"}, {"extra": {"name": "USD Coin", "version": "2"}}, {"extra": None}]


def read(*sent: tuple[str, Any]) -> Payment | NotPayment | None:
    headers = CIMultiDict[str]()
    for name, content in sent:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        headers.add(name, base64.b64encode(raw).decode())
    return read_payment(CIMultiDictProxy(headers), TERMS, RESOURCE)


@pytest.mark.parametrize(("name", "version"), [("PAYMENT-SIGNATURE", 2), ("X-PAYMENT", 1)])
def test_a_payment_is_read_with_the_terms_that_it_was_made_for(name: str, version: int) -> None:
    payment = read((name, paid(version)))
    assert isinstance(payment, Payment)
    assert (payment.version, payment.terms, payment.payload) == (version, TERMS[1], paid(version))
    assert payment.identity == ("eip155:84532", TERMS[1].token.address, "0x" + "ab" * 20, "0x" + "cd" * 32)


def test_the_identity_of_a_payment_is_the_same_in_both_versions_and_spellings() -> None:
    lower = {"signature": "0x01", "authorization": AUTHORIZATION | {"from": "0x" + "ab" * 20}}
    first, second = read(("PAYMENT-SIGNATURE", paid(2, payload=lower))), read(("X-PAYMENT", paid(1)))
    assert isinstance(first, Payment)
    assert isinstance(second, Payment)
    assert first.identity == second.identity
    assert first.digest != second.digest


def test_a_payload_of_another_kind_has_an_identity_of_its_own_content() -> None:
    ones = [read(("X-PAYMENT", paid(1, payload={"signature": text}))) for text in ("a", "a", "b")]
    identities = [one.identity for one in ones if isinstance(one, Payment)]
    assert identities[0] == identities[1] != identities[2]


def test_version_2_goes_first_and_no_header_is_no_payment() -> None:
    both = read(("X-PAYMENT", paid(1)), ("PAYMENT-SIGNATURE", paid(2)))
    assert isinstance(both, Payment)
    assert both.version == 2
    assert read() is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"x402Version":2,"x402Version":2}',
        paid(2, x402Version=True),
        paid(2, x402Version=1),
        paid(2, payload="x"),
        paid(2, accepted=None),
        paid(1),
    ],
    ids=str,
)
def test_what_is_no_payment_of_version_2_is_not_asked_about(content: Any) -> None:
    found = read(("PAYMENT-SIGNATURE", content))
    assert isinstance(found, NotPayment)
    assert found.reason is Reason.INVALID_PAYLOAD


def test_two_payments_in_one_request_are_none() -> None:
    found = read(("PAYMENT-SIGNATURE", paid(2)), ("PAYMENT-SIGNATURE", paid(2)))
    assert isinstance(found, NotPayment)
    assert "expected one, got 2" in found.message


@pytest.mark.parametrize(
    "change",
    [
        {"amount": "9999"},
        {"amount": 10000},
        {"payTo": "0x" + "11" * 20},
        {"asset": "0x" + "11" * 20},
        {"network": "base-sepolia"},
        {"scheme": "upto"},
        {"extra": {"name": "USD Coin", "version": "2"}},
        {"extra": None},
    ],
    ids=str,
)
def test_terms_that_are_not_ours_are_refused(change: dict[str, Any]) -> None:
    accepted = (TERMS[1].render(2, RESOURCE) or {}) | change
    found = read(("PAYMENT-SIGNATURE", paid(2, accepted=accepted)))
    assert isinstance(found, NotPayment)
    assert found.reason is Reason.INVALID_REQUIREMENTS


def test_addresses_may_be_spelled_in_any_case_and_extra_may_hold_more() -> None:
    accepted = TERMS[1].render(2, RESOURCE) or {}
    accepted |= {"asset": str(accepted["asset"]).lower(), "extra": {"name": "USDC", "version": "2", "more": 1}}
    assert isinstance(read(("PAYMENT-SIGNATURE", paid(2, accepted=accepted))), Payment)
