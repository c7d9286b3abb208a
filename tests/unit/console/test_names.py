"""What things are called on a page."""

import pytest

from facilitator.console import names
from facilitator.console.names import Assets
from facilitator.domain.states import State
from facilitator.schemes.scheme import Token
from facilitator.schemes.usdc import USDC
from facilitator.units import Address, Network

EURC = Token(network=Network("eip155:8453"), address=Address("0x" + "e5" * 20), name="EURC", version="2", decimals=4)


@pytest.mark.parametrize(
    ("asset", "unit", "decimals"),
    [
        ("eip155:8453/0x833589fcd6edb6e08f4c7c32d4f71b54bda02913", "USDC", 6),
        (f"eip155:8453/{EURC.address}", "EURC", 4),
        ("eip155:8453/native", "ETH", 18),
        ("eip155:137/native", "POL", 18),
        ("USD", "USD", 6),
        ("eip155:8453/0x" + "11" * 20, "0x" + "11" * 20, None),
        (None, "", None),
    ],
)
def test_what_the_books_hold_has_a_unit_and_decimals(asset: str | None, unit: str, decimals: int | None) -> None:
    assets = Assets([*USDC, EURC])
    assert (assets.unit(asset), assets.decimals(asset)) == (unit, decimals)


@pytest.mark.parametrize(
    ("network", "name"), [("eip155:8453", "Base"), ("eip155:84532", "Base Sepolia"), ("eip155:424242", "eip155:424242")]
)
def test_networks_have_names_where_the_protocol_has_one(network: str, name: str) -> None:
    assert names.network(network) == name


def test_every_state_is_explained() -> None:
    assert set(names.STATES) == set(State)


@pytest.mark.parametrize(("name", "told"), [("AUTHORIZATION_CANCELED", "authorization canceled"), ("REORGANISED", "reorganised")])
def test_a_reason_is_the_wire_word_in_plain(name: str, told: str) -> None:
    assert names.reason(name) == told
