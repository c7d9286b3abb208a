from typing import Any

import pytest

from facilitator.errors import ConfigFault
from facilitator.gateway.prices import USDC, Price, Resource, Terms, Token, dollars, find_token, offer, parse_payee, parse_price
from facilitator.units import Atomic, Network, parse_address

SEPOLIA = Network("eip155:84532")
PAYEE = "0x2222222222222222222222222222222222222222"
RESOURCE = Resource(url="http://shop/report", description="report", mime_type="application/json")


@pytest.mark.parametrize(
    ("price", "atomic"),
    [("$0.01", 10_000), ("0.01", 10_000), ("$1", 1_000_000), ("$1.50", 1_500_000), ("$0.000001", 1), ("$0.0000010", 1), (7, 7)],
)
def test_a_price_is_exact(price: Price, atomic: int) -> None:
    assert parse_price(price, USDC[SEPOLIA]) == atomic


@pytest.mark.parametrize("price", ["", "$", "-1", "$0", "0.0000001", "1,5", "1e2", "٣", "$1.", " $ 1", 0, -1, True], ids=str)
def test_what_is_no_price_is_refused(price: Any) -> None:
    with pytest.raises(ConfigFault):
        parse_price(price, USDC[SEPOLIA])


def test_networks_have_two_names_and_tokens_of_ones_own_are_taken() -> None:
    own = Token(network=SEPOLIA, address=parse_address(PAYEE), name="EUR Coin", version="1", decimals=2)
    assert find_token("base-sepolia") == find_token("eip155:84532") == USDC[SEPOLIA]
    assert find_token(own) is own
    assert parse_price("1.5", own) == 150
    for nonsense in ("bitcoin", "eip155:x", "eip155:999"):
        with pytest.raises(ConfigFault):
            find_token(nonsense)
    for nobody in ("", "0x00", "0x" + "00" * 20):
        with pytest.raises(ConfigFault):
            parse_payee(nobody)


def test_terms_are_said_in_both_versions_and_not_where_a_version_has_no_word() -> None:
    terms = Terms(token=USDC[SEPOLIA], pay_to=parse_payee(PAYEE), amount_atomic=Atomic(10_000), max_timeout_s=300)
    same = {
        "scheme": "exact",
        "payTo": PAYEE,
        "asset": "0x036CbD53842c5426634e7929541eC2318f3dCF7e",
        "maxTimeoutSeconds": 300,
        "extra": {"name": "USDC", "version": "2"},
    }
    assert terms.render(2, RESOURCE) == same | {"network": "eip155:84532", "amount": "10000"}
    described = {"resource": "http://shop/report", "description": "report", "mimeType": "application/json"}
    assert terms.render(1, RESOURCE) == same | described | {"network": "base-sepolia", "maxAmountRequired": "10000"}
    arbitrum = Terms(token=find_token("eip155:42161"), pay_to=terms.pay_to, amount_atomic=Atomic(1), max_timeout_s=300)
    assert offer([arbitrum], RESOURCE, 1, "pay") is None
    assert len((offer([arbitrum, terms], RESOURCE, 2, "pay") or {})["accepts"]) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize(("atomic", "text"), [(1, "0.000001"), (10_000, "0.01"), (1_000_000, "1"), (12_500_000, "12.5")])
def test_a_price_is_shown_as_people_write_it(atomic: int, text: str) -> None:
    assert dollars([Terms(token=USDC[SEPOLIA], pay_to=parse_payee(PAYEE), amount_atomic=Atomic(atomic), max_timeout_s=1)]) == text
