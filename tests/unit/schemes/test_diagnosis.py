"""A signature over the usual wrong domain is told for what it is."""

import pytest

from facilitator.protocol.reasons import Reason
from facilitator.schemes.diagnosis import signed_for
from facilitator.schemes.usdc import USDC as CIRCLES
from facilitator.units import Address, Network
from tests.fixtures.payments import SCHEME, TOKEN, authorization, sign

BASE = next(token for token in CIRCLES if token.network == "eip155:8453")


@pytest.mark.parametrize(
    ("name", "version", "words"),
    [("USD Coin", "2", "name = 'USD Coin'"), ("USDC", "1", "version = '1'"), ("USD Coin", "1", "name = 'USD Coin', version = '1'")],
)
def test_a_signature_over_another_name_or_version_is_recognised(name: str, version: str, words: str) -> None:
    terms = authorization(signature=sign(authorization(), name=name, version=version))
    assert signed_for(terms, terms.signature, TOKEN) == words
    refusal = SCHEME.check_signature(terms)
    assert refusal is not None
    assert refusal.reason is Reason.SIGNATURE
    assert f"would be valid with {words}; here it is name = 'USDC', version = '2', chainId = 84532" in refusal.message


def test_a_signature_for_another_networks_token_is_recognised() -> None:
    on_base = sign(authorization(network=BASE.network, asset=BASE.address), name=BASE.name, version=BASE.version)
    assert signed_for(authorization(), on_base, TOKEN) == "chainId = 8453, verifyingContract = the token of eip155:8453"


def test_a_signature_for_another_chain_id_alone_is_recognised() -> None:
    elsewhere = sign(authorization(network=Network("eip155:1")))
    assert signed_for(authorization(), elsewhere, TOKEN) == "chainId = 1"


@pytest.mark.parametrize(
    "signed",
    [
        authorization(pay_to=Address("0x" + "44" * 20)),
        authorization(network=Network("eip155:31337")),
        authorization(asset=Address("0x" + "55" * 20)),
    ],
)
def test_other_terms_are_not_guessed(signed: object) -> None:
    terms = authorization(signature=sign(signed))  # type: ignore[arg-type]
    assert signed_for(terms, terms.signature, TOKEN) is None
    refusal = SCHEME.check_signature(terms)
    assert refusal is not None
    assert "(or over other terms)" in refusal.message
