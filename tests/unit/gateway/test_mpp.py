import base64
import hashlib
import hmac
import json
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from eth_utils.crypto import keccak
from multidict import CIMultiDict, CIMultiDictProxy

from facilitator.devstack.buyer import Buyer
from facilitator.errors import ConfigFault
from facilitator.gateway.client import FacilitatorClient
from facilitator.gateway.middleware import charge
from facilitator.gateway.mpp import Asked, Problem, Scope, challenge, problem_of, read_credential, render_receipt
from facilitator.gateway.payments import Payment, read_payment
from facilitator.gateway.prices import Resource, Terms, find_token, parse_payee
from facilitator.gateway.seller import Priced
from facilitator.protocol.reasons import Reason
from facilitator.units import Atomic, UnixSeconds
from tests.fixtures.mpp import MALFORMED, answered, as_x402, changed, decoded, encoded, parameters

BUYER = Buyer.numbered(7)
NOW = UnixSeconds(1_790_000_000)
SCOPE = Scope(realm="studio.example", secret=b"s" * 32)
ASKED = Asked(method="POST", target="/generate?fast=1", body=b'{"prompt": "a lighthouse"}')
RESOURCE = Resource(url="https://studio.example/generate", description='Bilder, "groß" – 🗼', mime_type="application/json")
PAYEE = parse_payee("0x2222222222222222222222222222222222222222")
TERMS = [
    Terms(token=find_token(network), pay_to=PAYEE, amount_atomic=Atomic(9_000), max_timeout_s=300) for network in ("base", "base-sepolia")
]


def issued(asked: Asked = ASKED, terms: Terms = TERMS[1], scope: Scope = SCOPE) -> str:
    return challenge(scope, asked, terms, RESOURCE, NOW)


def read(sent: str | dict[str, Any], *, asked: Asked = ASKED, terms: list[Terms] = TERMS, now: int = NOW) -> Payment | Problem | None:
    value = sent if isinstance(sent, str) else "Payment " + encoded(sent)
    return read_credential(SCOPE, asked, [value], terms, RESOURCE, UnixSeconds(now))


def kind(found: object) -> str:
    assert isinstance(found, Problem), found
    return found.kind


def test_a_challenge_says_what_the_drafts_have_it_say() -> None:
    told = parameters(issued())
    assert list(told) == ["id", "realm", "method", "intent", "request", "expires", "digest", "opaque"]
    assert (told["realm"], told["method"], told["intent"]) == ("studio.example", "evm", "charge")
    assert told["expires"] == "2026-09-21T14:18:20Z"  # NOW and 300 s
    assert told["digest"] == "sha-256=:" + base64.b64encode(hashlib.sha256(ASKED.body).digest()).decode() + ":"
    request = {
        "amount": "9000",
        "currency": "0x036CbD53842c5426634e7929541eC2318f3dCF7e",
        "description": 'Bilder, "groß" – 🗼',
        "methodDetails": {"chainId": 84532, "credentialTypes": ["authorization"], "decimals": 6},
        "recipient": PAYEE,
    }
    canonical = json.dumps(request, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()  # RFC 8785, for these members
    assert told["request"] == base64.urlsafe_b64encode(canonical).rstrip(b"=").decode()
    assert all(isinstance(value, str) for value in decoded(told["opaque"]).values())
    slots = [told[name] for name in ("realm", "method", "intent", "request", "expires", "digest", "opaque")]
    bound = hmac.new(b"s" * 32, "|".join(slots).encode(), hashlib.sha256).digest()
    assert told["id"] == base64.urlsafe_b64encode(bound).rstrip(b"=").decode()


def test_a_request_without_a_body_has_no_digest_and_every_challenge_is_one_of_its_own() -> None:
    bare = Asked(method="GET", target="/", body=b"")
    told = [parameters(issued(bare)) for _ in range(50)]
    assert "digest" not in told[0]
    assert len({each["id"] for each in told}) == 50
    payment = read(answered(BUYER, issued(bare)), asked=bare)
    assert isinstance(payment, Payment)


def test_a_credential_is_the_x402_payment_of_the_same_authorization() -> None:
    credential = answered(BUYER, issued())
    payment = read(credential)
    assert isinstance(payment, Payment)
    assert (payment.version, payment.terms, payment.challenge_id) == (2, TERMS[1], credential["challenge"]["id"])
    assert payment.requirements == TERMS[1].render(2, RESOURCE)
    same = as_x402(credential, dict(payment.requirements))
    assert payment.payload == same
    headers = CIMultiDict({"PAYMENT-SIGNATURE": base64.b64encode(json.dumps(same).encode()).decode()})
    x402 = read_payment(CIMultiDictProxy(headers), TERMS, RESOURCE)
    assert isinstance(x402, Payment)
    assert x402.identity == payment.identity
    assert x402.digest != payment.digest
    assert x402.challenge_id is None


@pytest.mark.parametrize("value", ["", "Bearer abc", "Basic cGF5OnBheQ==", "Paymentx abc", "Digest Payment"])
def test_other_schemes_are_none_of_its_business(value: str) -> None:
    assert read(value) is None
    assert read_credential(SCOPE, ASKED, [], TERMS, RESOURCE, NOW) is None


@pytest.mark.parametrize("scheme", ["Payment", "payment", "PAYMENT"])
def test_the_scheme_is_written_in_any_case_and_unknown_members_are_ignored(scheme: str) -> None:
    good = answered(BUYER, issued())
    for credential in (good | {"extra": 1}, changed(good, "challenge", description="cheap", more="x"), changed(good, "payload", memo="m")):
        assert isinstance(read(f"{scheme}  {encoded(credential)}"), Payment)
    del good["source"]
    assert isinstance(read(f"{scheme} {encoded(good)}"), Payment)


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_credential_is_malformed(name: str) -> None:
    assert kind(read(MALFORMED[name](answered(BUYER, issued())))) == "malformed-credential"


def test_two_fields_with_a_credential_are_malformed() -> None:
    value = "Payment " + encoded(answered(BUYER, issued()))
    assert kind(read_credential(SCOPE, ASKED, [value, "Bearer abc"], TERMS, RESOURCE, NOW)) == "malformed-credential"


def test_a_challenge_that_was_changed_or_is_anothers_is_invalid() -> None:
    good = answered(BUYER, issued())
    cheaper = encoded(decoded(good["challenge"]["request"]) | {"amount": "1"})
    changes: list[dict[str, Any]] = [
        {"id": "x" * 43},
        {"id": "é"},
        {"realm": "other.example"},
        {"method": "tempo"},
        {"intent": "session"},
        {"request": cheaper},
        {"expires": "2099-01-01T00:00:00Z"},
        {"expires": ...},
        {"digest": ...},
        {"digest": "sha-256=:AAAA:"},
        {"opaque": ...},
        {"opaque": encoded({})},
        {"header": "Payment-Authorization"},
    ]
    for change in changes:
        assert kind(read(changed(good, "challenge", **change))) == "invalid-challenge", change
    for scope in (replace(SCOPE, secret=b"t" * 32), replace(SCOPE, realm="other.example")):
        assert kind(read(answered(BUYER, issued(scope=scope)))) == "invalid-challenge"


def test_a_challenge_is_good_for_its_request_and_its_price_alone() -> None:
    good = answered(BUYER, issued())
    for other in (
        {"method": "PUT"},
        {"target": "/generate"},
        {"target": "/other?fast=1"},
        {"body": b'{"prompt": "a tower"}'},
        {"body": b""},
    ):
        assert kind(read(good, asked=replace(ASKED, **other))) == "invalid-challenge", other
    dearer = [replace(each, amount_atomic=Atomic(9_001)) for each in TERMS]
    elsewhere = [replace(each, pay_to=parse_payee("0x" + "33" * 20)) for each in TERMS]
    for terms in (dearer, elsewhere, TERMS[:1]):
        assert kind(read(good, terms=terms)) == "invalid-challenge"


def test_an_authorization_that_is_not_what_the_challenge_asks_fails_verification() -> None:
    asked = issued()
    for how in ({"to": "0x" + "44" * 20}, {"value": "8999"}, {"value": "9001"}, {"auth_nonce": "0x" + "12" * 32}):
        assert kind(read(answered(BUYER, asked, **how))) == "verification-failed", how
    other = answered(BUYER, asked) | {"source": f"did:pkh:eip155:84532:{Buyer.numbered(8).address}"}
    assert kind(read(other)) == "verification-failed"
    nonce = "0x" + keccak(text=parameters(issued())["id"] + "studio.example").hex()  # of another challenge
    assert kind(read(answered(BUYER, asked, auth_nonce=nonce))) == "verification-failed"


def test_an_expired_challenge_is_refused_unless_its_authorization_ended_with_it() -> None:
    asked = issued()
    longer = answered(BUYER, asked, valid_before=NOW + 301)
    assert isinstance(read(longer, now=NOW + 299), Payment)
    assert kind(read(longer, now=NOW + 300)) == "payment-expired"
    # the facilitator's to refuse, which first looks whether it was made
    assert isinstance(read(answered(BUYER, asked), now=NOW + 300), Payment)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (Reason.DUPLICATE_SETTLEMENT, "invalid-challenge"),
        (Reason.NONCE_USED, "invalid-challenge"),
        (Reason.SETTLEMENT_EXTERNAL, "invalid-challenge"),
        (Reason.EXPIRED, "payment-expired"),
        (Reason.SIGNATURE, "verification-failed"),
        (Reason.INSUFFICIENT_BALANCE, "verification-failed"),
    ],
)
def test_a_refusal_of_the_facilitator_is_a_problem_of_the_scheme(reason: Reason, expected: str) -> None:
    told = problem_of(reason.v2, None).render()
    assert told["type"] == f"https://paymentauth.org/problems/{expected}"
    assert (told["status"], told["reason"]) == (402, reason.v2)
    assert told["title"]
    assert problem_of(reason.v2, "poor").render()["detail"] == "poor"


def test_a_receipt_names_challenge_transaction_and_chain() -> None:
    payment = read(answered(BUYER, issued()))
    assert isinstance(payment, Payment)
    assert decoded(render_receipt(payment, "0x" + "ab" * 32, NOW)) == {
        "method": "evm",
        "challengeId": payment.challenge_id,
        "reference": "0x" + "ab" * 32,
        "status": "success",
        "timestamp": "2026-09-21T14:13:20Z",
        "chainId": 84532,
    }


@pytest.mark.parametrize(
    ("public_url", "secret", "field"),
    [
        (None, "s" * 32, "public_url"),
        ("http://studio.example", "s" * 32, "public_url"),
        ("https://studio.example", "s" * 31, "mpp_secret"),
        ("https://studio.example", "s" * 32, None),
        ("http://127.0.0.1:8000", "s" * 32, None),
    ],
)
def test_a_route_is_sold_by_mpp_over_tls_and_with_a_secret_only(public_url: str | None, secret: str, field: str | None) -> None:
    def sell() -> None:
        priced = Priced(price="$0.01", mpp_secret=secret)
        assert secret not in repr(priced)
        client = FacilitatorClient("http://facilitator")
        charge(web.Application(), client, pay_to=PAYEE, network="base", routes={"GET /": priced}, public_url=public_url)

    if field is None:
        sell()
        return
    with pytest.raises(ConfigFault, match=field):
        sell()
