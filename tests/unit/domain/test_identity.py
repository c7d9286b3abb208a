"""Which payment is this: the identity survives every spelling, the fingerprint changes with every term."""

import hashlib
from typing import Any, Literal

import msgspec
import pytest
from msgspec.structs import replace

from facilitator.devstack.buyer import Buyer, facilitator_request, requirements
from facilitator.devstack.token import BASE_SEPOLIA_USDC
from facilitator.domain.identity import AuthKey, fingerprint, key_of
from facilitator.protocol.codec import decode_request
from facilitator.protocol.messages import Authorization, Payment
from facilitator.schemes.exact_eip3009 import ExactEip3009
from facilitator.schemes.scheme import Token
from facilitator.units import Address, Atomic, AuthNonce, Network, UnixSeconds

USDC = Address(BASE_SEPOLIA_USDC.lower())
PAYER, PAY_TO = Address("0x" + "aa" * 20), Address("0x" + "bb" * 20)
AUTH_NONCE = AuthNonce("0x" + "cc" * 32)
AUTHORIZATION = Authorization(
    scheme="exact",
    network=Network("eip155:84532"),
    asset=USDC,
    payer=PAYER,
    pay_to=PAY_TO,
    amount_atomic=Atomic(10_000),
    valid_after=UnixSeconds(0),
    valid_before=UnixSeconds(2_000_000_000),
    auth_nonce=AUTH_NONCE,
    signature=b"\x01" * 65,
)
OTHER: dict[str, Any] = {
    "scheme": "upto",
    "network": Network("eip155:8453"),
    "asset": Address("0x" + "11" * 20),
    "payer": Address("0x" + "22" * 20),
    "pay_to": Address("0x" + "33" * 20),
    "amount_atomic": Atomic(10_001),
    "valid_after": UnixSeconds(1),
    "valid_before": UnixSeconds(2_000_000_001),
    "auth_nonce": AuthNonce("0x" + "44" * 32),
    "signature": b"\x02" * 65,
}
IDENTITY = {"network", "asset", "payer", "auth_nonce"}


def read(version: Literal[1, 2], auth_nonce: str, **changes: Any) -> Authorization:
    """What the service makes of a real request."""
    terms = requirements(version, pay_to="0x" + "bb" * 20, amount_atomic=10_000, **changes)
    payment = Buyer.numbered(1).pay(version, terms, valid_before=2_000_000_000, auth_nonce=auth_nonce)
    decoded = decode_request(msgspec.json.encode(facilitator_request(payment, terms)))
    assert isinstance(decoded, Payment)
    scheme = ExactEip3009([Token(network=Network("eip155:84532"), address=USDC, name="USDC", version="2", decimals=6)])
    authorization = scheme.read(decoded)
    assert isinstance(authorization, Authorization)
    return authorization


def test_the_identity_is_network_asset_payer_and_auth_nonce() -> None:
    assert key_of(AUTHORIZATION) == AuthKey(Network("eip155:84532"), USDC, PAYER, AUTH_NONCE)


@pytest.mark.parametrize("term", OTHER)
def test_the_identity_changes_with_its_four_parts_and_with_nothing_else(term: str) -> None:
    changed = key_of(replace(AUTHORIZATION, **{term: OTHER[term]}))
    assert (changed != key_of(AUTHORIZATION)) == (term in IDENTITY)


@pytest.mark.parametrize("term", OTHER)
def test_the_fingerprint_changes_with_every_term_but_the_signature(term: str) -> None:
    changed = fingerprint(replace(AUTHORIZATION, **{term: OTHER[term]}))
    assert (changed != fingerprint(AUTHORIZATION)) == (term != "signature")


def test_the_fingerprint_is_the_documented_hash() -> None:
    lines = ["exact", "eip155:84532", USDC, "10000", PAY_TO, PAYER, AUTH_NONCE, "0", "2000000000"]
    assert fingerprint(AUTHORIZATION) == hashlib.sha256("\n".join(lines).encode()).digest()


def test_swapping_two_terms_of_the_same_kind_is_another_fingerprint() -> None:
    swapped = replace(AUTHORIZATION, payer=PAY_TO, pay_to=PAYER)
    assert fingerprint(swapped) != fingerprint(AUTHORIZATION)


def test_both_protocol_versions_name_the_same_payment() -> None:
    first, second = read(1, AUTH_NONCE), read(2, AUTH_NONCE)
    assert key_of(first) == key_of(second)
    assert fingerprint(first) == fingerprint(second)


def test_spelling_resource_and_extra_do_not_make_another_payment() -> None:
    plain = read(2, AUTH_NONCE)
    spelled = read(2, "0x" + "CC" * 32, maxTimeoutSeconds=299, extra={"name": "USDC", "version": "2", "note": "again"})
    assert key_of(spelled) == key_of(plain)
    assert fingerprint(spelled) == fingerprint(plain)


def test_an_authorization_shows_all_but_its_signature() -> None:
    assert AUTHORIZATION.signature.hex() not in repr(AUTHORIZATION)
    assert repr(AUTHORIZATION.signature)[2:-1] not in repr(AUTHORIZATION)
    assert f"auth_nonce={AUTHORIZATION.auth_nonce!r}" in repr(AUTHORIZATION)
