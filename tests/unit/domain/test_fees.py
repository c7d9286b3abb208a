"""Base fees as chains have computed them, and the bounds of an offer."""

import pytest

from facilitator.domain.fees import ETHEREUM, GWEI, FeeMarket, FeePolicy, Fees, fee_market, max_fee, next_base_fee
from facilitator.units import Wei
from tests.fixtures.payments import head

HOLOCENE = b"\x00" + (250).to_bytes(4, "big") + (6).to_bytes(4, "big")
JOVIAN = b"\x01" + (100).to_bytes(4, "big") + (5).to_bytes(4, "big") + (5_000_000).to_bytes(8, "big")


@pytest.mark.parametrize(
    ("extra_data", "market"),
    [
        (b"", ETHEREUM),
        (b"geth", ETHEREUM),
        (HOLOCENE, FeeMarket(250, 6, Wei(0))),
        (JOVIAN, FeeMarket(100, 5, Wei(5_000_000))),
        (b"\x01" + HOLOCENE[1:], ETHEREUM),
        (b"\x00" + JOVIAN[1:], ETHEREUM),
        (b"\x02" + JOVIAN[1:], ETHEREUM),
        (bytes(9), ETHEREUM),
    ],
)
def test_the_header_carries_the_parameters_of_its_fee_market(extra_data: bytes, market: FeeMarket) -> None:
    assert fee_market(head(extra_data=extra_data)) == market


@pytest.mark.parametrize(
    ("parent", "used", "expected"),
    [
        # the test cases of EIP-1559's reference implementation: 20M limit, 10M target
        (10**9, 10_000_000, 10**9),
        (10**9, 9_000_000, 987_500_000),
        (10**9, 11_000_000, 1_012_500_000),
        (10**9, 20_000_000, 1_125_000_000),
        (10**9, 0, 875_000_000),
        (1, 20_000_000, 2),
        (0, 0, 0),
    ],
)
def test_without_parameters_the_step_is_that_of_eip_1559(parent: int, used: int, expected: int) -> None:
    assert next_base_fee(head(base_fee_wei=Wei(parent), gas_used=used, gas_limit=20_000_000)) == expected


def test_a_full_block_on_base_raises_the_fee_by_four_percent() -> None:
    full = head(extra_data=JOVIAN, base_fee_wei=Wei(100_000_000), gas_used=400_000_000, gas_limit=400_000_000)
    assert next_base_fee(full) == 104_000_000


def test_an_empty_block_on_base_lowers_the_fee_to_the_floor_of_the_header() -> None:
    assert next_base_fee(head(extra_data=JOVIAN, base_fee_wei=Wei(100_000_000), gas_used=0)) == 99_000_000
    assert next_base_fee(head(extra_data=JOVIAN, base_fee_wei=Wei(5_000_000), gas_used=0)) == 5_000_000


def test_data_counts_where_it_weighs_more_than_gas() -> None:
    heavy = head(extra_data=JOVIAN, base_fee_wei=Wei(100_000_000), gas_used=0, da_footprint_gas=400_000_000)
    assert next_base_fee(heavy) == 104_000_000


def test_the_offer_is_headroom_and_tip_within_its_bounds() -> None:
    policy = FeePolicy(headroom=8, max_fee_min_wei=Wei(GWEI // 20), max_fee_max_wei=Wei(GWEI))
    assert max_fee(Wei(10_000_000), Wei(1_000), policy) == Fees(Wei(80_001_000), Wei(1_000))
    assert max_fee(Wei(5_000_000), Wei(1_000), policy) == Fees(Wei(50_000_000), Wei(1_000))
    assert max_fee(Wei(10 * GWEI), Wei(1_000), policy) == Fees(Wei(GWEI), Wei(1_000))


def test_the_tip_is_never_above_the_offer() -> None:
    policy = FeePolicy(max_fee_min_wei=Wei(0), max_fee_max_wei=Wei(100))
    assert max_fee(Wei(7), Wei(500), policy) == Fees(Wei(100), Wei(100))
