"""The buyer's payments: known signatures, both versions' shapes, and money that moves."""

import base64
import json
from collections.abc import Awaitable, Callable

import pytest
from eth_account import Account

from facilitator.devstack.accounts import dev_account
from facilitator.devstack.buyer import Buyer, facilitator_request, payment_header, requirements
from facilitator.devstack.token import Token

PAY_TO = "0x" + "22" * 20
SIGNATURE = (
    "0x5bd5558d7ac91515584e6a6afadc38bff086c5d5d3a4795c0e1c3b252b30a9ac37ecba449cfcfe9d243f515ba78a01a1d81bbd31095eb27fb79bbe75bfc95d031b"
)


@pytest.mark.parametrize("version", [1, 2])
def test_a_buyer_signs_the_reference_vector(version: int) -> None:
    buyer = Buyer(Account.from_key("0x" + "11" * 32))
    terms = requirements(version, pay_to=PAY_TO, amount_atomic=10_000)
    payload = buyer.authorize(terms, valid_before=4102444800, auth_nonce="0x" + "ab" * 32)
    assert payload["signature"] == SIGNATURE


def test_v1_payments_name_scheme_and_nickname_at_the_top() -> None:
    terms = requirements(1, pay_to=PAY_TO, amount_atomic=10_000)
    payment = Buyer.numbered(0).pay(1, terms)
    assert {name: payment[name] for name in ("x402Version", "scheme", "network")} == {
        "x402Version": 1,
        "scheme": "exact",
        "network": "base-sepolia",
    }
    assert payment["payload"]["authorization"]["value"] == terms["maxAmountRequired"] == "10000"


def test_v2_payments_repeat_the_terms_that_were_accepted() -> None:
    terms = requirements(2, pay_to=PAY_TO, amount_atomic=10_000)
    payment = Buyer.numbered(0).pay(2, terms)
    assert payment["x402Version"] == 2
    assert payment["accepted"] == terms
    assert payment["accepted"]["network"] == "eip155:84532"


@pytest.mark.parametrize(("version", "name"), [(1, "X-PAYMENT"), (2, "PAYMENT-SIGNATURE")])
def test_the_header_is_the_payment_in_base64(version: int, name: str) -> None:
    payment = Buyer.numbered(0).pay(version, requirements(version, pay_to=PAY_TO, amount_atomic=1))
    header, value = payment_header(payment)
    assert header == name
    assert json.loads(base64.b64decode(value)) == payment


def test_a_request_holds_payment_and_terms() -> None:
    terms = requirements(2, pay_to=PAY_TO, amount_atomic=1)
    payment = Buyer.numbered(0).pay(2, terms)
    assert facilitator_request(payment, terms) == {"x402Version": 2, "paymentPayload": payment, "paymentRequirements": terms}


def test_each_authorization_has_a_nonce_of_its_own() -> None:
    terms = requirements(2, pay_to=PAY_TO, amount_atomic=1)
    seen = {Buyer.numbered(0).authorize(terms)["authorization"]["nonce"] for _ in range(100)}
    assert len(seen) == 100


def test_dev_accounts_are_the_same_everywhere_and_differ_from_each_other() -> None:
    assert dev_account("buyer", 0).address == "0x73c960d97422897acCBaa785e711b42976d8b58C"
    assert len({dev_account(role, index).address for role in ("buyer", "relayer") for index in range(50)}) == 100


@pytest.mark.parametrize("version", [1, 2])
async def test_a_signed_authorization_moves_money(
    version: int, token: Token, new_buyer: Callable[..., Awaitable[Buyer]], new_relayer: Callable[..., Awaitable[object]]
) -> None:
    buyer = await new_buyer(amount_atomic=50_000)
    relayer = await new_relayer()
    pay_to = dev_account(f"seller of v{version}").address
    payload = buyer.authorize(requirements(version, pay_to=pay_to, amount_atomic=20_000))
    signed = payload["authorization"]
    await token.transact(
        relayer.address,
        "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)",
        signed["from"],
        signed["to"],
        int(signed["value"]),
        int(signed["validAfter"]),
        int(signed["validBefore"]),
        bytes.fromhex(signed["nonce"][2:]),
        bytes.fromhex(payload["signature"][2:]),
    )
    assert await token.balance_of(buyer.address) == 30_000
    assert await token.balance_of(pay_to) == 20_000
    assert await token.authorization_used(buyer.address, signed["nonce"])
