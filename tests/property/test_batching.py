"""Plans of batches: nothing twice, nothing above a limit, as few transactions as possible."""

from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from facilitator.domain.batching import TRANSACTION_GAS_MAX, BurnGuard, Candidate, GasTable, Limits, plan
from facilitator.domain.fees import Fees
from facilitator.domain.resubmission import outbid
from facilitator.units import Address, Wei

PAYER = Address("0x" + "11" * 20)


def candidates(flags: list[tuple[bool, int]]) -> list[Candidate[int]]:
    return [Candidate(id=index, payer=PAYER, alone=alone, life_s=life_s) for index, (alone, life_s) in enumerate(flags)]


factors = st.sampled_from([1, 2, 4])
limits = st.builds(
    Limits,
    batch_min=st.integers(1, 10),
    batch_max=st.integers(1, 400),
    calldata_bytes_max=st.integers(1, 200_000),
    gas=st.builds(GasTable, single_factor=factors, batch_factor=factors),
)
flags = st.lists(st.tuples(st.booleans(), st.integers(0, 60)), max_size=300)


@given(flags, st.integers(0, 40), limits)
def test_a_plan_carries_each_payment_once_within_every_limit(given_flags: list[tuple[bool, int]], room: int, bounds: Limits) -> None:
    offered = candidates(given_flags)
    batches = plan(offered, room, bounds)
    ids = [identity for batch in batches for identity in batch.ids]
    assert len(batches) <= room
    assert len(ids) == len(set(ids))
    for batch in batches:
        assert 1 <= len(batch.ids) <= bounds.items_max
        assert bounds.gas.limit(len(batch.ids)) <= TRANSACTION_GAS_MAX
        assert len(batch.ids) * 512 <= max(512, bounds.calldata_bytes_max)
        if len(batch.ids) > 1:
            assert not any(offered[i].alone or offered[i].life_s < bounds.life_min_s for i in batch.ids)
    if room and offered:
        assert batches


@given(st.integers(1, 500), st.integers(1, 64), limits)
def test_a_load_is_never_spread_over_idle_relayers(count: int, room: int, bounds: Limits) -> None:
    batches = plan(candidates([(False, 60)] * count), room, bounds)
    if count <= min(bounds.batch_min, room):
        assert all(batch.kind == "single" for batch in batches)
        assert len(batches) == count
    else:
        assert len(batches) == min(room, ceil(count / bounds.items_max))
        sizes = [len(batch.ids) for batch in batches]
        assert max(sizes) - min(sizes) <= 1


@given(st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 10**10)), min_size=1, max_size=6))
def test_every_bid_beats_the_pools_ten_percent_on_both_fields(bids: list[tuple[int, int]]) -> None:
    attempts = [Fees(Wei(max(max_fee, tip)), Wei(tip)) for max_fee, tip in bids]
    bid = outbid(attempts, Fees(Wei(0), Wei(0)))
    for fees in attempts:
        assert bid.max_fee_wei * 100 >= fees.max_fee_wei * 110
        assert bid.max_priority_fee_wei * 100 >= fees.max_priority_fee_wei * 110
        assert bid.max_fee_wei > fees.max_fee_wei
    assert bid.max_priority_fee_wei <= bid.max_fee_wei


def test_a_second_burned_batch_within_the_window_halves_and_calm_restores() -> None:
    guard = BurnGuard(50)
    guard.burned(0.0)
    assert guard.limit(1.0) == 50
    guard.burned(100.0)
    assert guard.limit(101.0) == 25
    guard.burned(200.0)
    assert guard.limit(201.0) == 12
    assert guard.limit(900.0) == 50
