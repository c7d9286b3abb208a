"""What a transaction cost: the operator's fee by the public formulas, and shares that lose no wei."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facilitator.domain.fees import operator_fee, split_evenly
from facilitator.domain.postings import Cause, gas_entries
from facilitator.units import Address, Network

NETWORK = Network("eip155:8453")
RELAYER = Address("0x" + "44" * 20)
U32_MAX, U64_MAX = 2**32 - 1, 2**64 - 1


@pytest.mark.parametrize(
    ("gas", "scalar", "constant_wei", "isthmus_wei", "jovian_wei"),
    [
        (1_000, 1_000, 10, 11, 100_000_010),  # the vector of the OP Stack's EVM (test_operator_fee_charge_formulas)
        (50_000, 2_000, 5, 105, 10_000_000_005),  # and the parameters of its refund test
        (21_000, 0, 0, 0, 0),  # Base's parameters
        (999, 1_000, 0, 0, 99_900_000),  # Isthmus rounds down
        (0, U32_MAX, 7, 7, 7),
        (U64_MAX, U32_MAX, U64_MAX, 79246609239891303067154, 7922816249600206095627652694115),
    ],
)
def test_the_operator_fee_is_that_of_the_specifications(
    gas: int, scalar: int, constant_wei: int, isthmus_wei: int, jovian_wei: int
) -> None:
    assert operator_fee(gas, scalar, constant_wei, jovian=False) == isthmus_wei
    assert operator_fee(gas, scalar, constant_wei, jovian=True) == jovian_wei


@given(st.integers(0, 2**96), st.integers(1, 400))
def test_shares_add_up_to_the_cost_and_differ_by_a_wei_at_most(cost_wei: int, parts: int) -> None:
    shares = split_evenly(cost_wei, parts)
    assert sum(shares) == cost_wei
    assert len(shares) == parts
    assert max(shares) - min(shares) <= 1
    assert list(shares) == sorted(shares, reverse=True)


def test_what_nobody_shares_has_no_shares() -> None:
    assert split_evenly(5, 0) == ()


@given(st.dictionaries(st.sampled_from(Cause), st.integers(0, 2**96)))
def test_gas_is_booked_by_cause_from_the_relayers_account_and_only_what_cost_something(costs_wei: dict[Cause, int]) -> None:
    entries = gas_entries(NETWORK, RELAYER, costs_wei)
    assert sum(entry.amount_atomic for entry in entries) == sum(costs_wei.values())
    assert {entry.debit for entry in entries} == {f"gas_expense:{NETWORK}:{cause}" for cause, wei in costs_wei.items() if wei}
    assert {(entry.credit, entry.asset) for entry in entries} <= {(f"gas:{NETWORK}:{RELAYER}", f"{NETWORK}/native")}
    assert all(entry.amount_atomic > 0 for entry in entries)
