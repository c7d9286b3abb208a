import msgspec
import pytest

from facilitator.protocol import v2
from facilitator.units import Network
from tests.fixtures.vectors import v2_request


def test_a_network_is_spelled_as_caip_2() -> None:
    assert v2.parse_network("eip155:84532") == v2.render_network(Network("eip155:84532")) == "eip155:84532"


@pytest.mark.parametrize(
    "text", ["", "base-sepolia", "eip155:", "eip155:0", "eip155:01", "eip155:*", "EIP155:1", "eip155:1 ", "eip155:٣", "solana:x"]
)
def test_other_text_names_no_network_in_v2(text: str) -> None:
    assert v2.parse_network(text) is None


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({}, ()),
        ({"amount": "9999"}, ("amount",)),
        ({"asset": "0x" + "33" * 20, "payTo": "0x" + "44" * 20}, ("asset", "payTo")),
        ({"amount": None, "asset": None, "payTo": None}, ("amount", "asset", "payTo")),
        ({"asset": "0x036CBD53842C5426634E7929541EC2318F3DCF7E"}, ()),
        ({"maxTimeoutSeconds": 1, "extra": None}, ()),
    ],
)
def test_terms_that_differ_from_what_the_buyer_saw_are_named(changes: dict[str, object], differs: tuple[str, ...]) -> None:
    tree = v2_request()
    tree["paymentPayload"]["accepted"] |= changes
    assert msgspec.convert(tree, v2.Request).accepted_differs == differs
