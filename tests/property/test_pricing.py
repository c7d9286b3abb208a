"""What is learned from mined transactions: the tip from their delays, gas limits from those that ran out."""

from collections import deque
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from facilitator.domain.batching import BATCH_BASE_GAS, BATCH_ITEM_GAS, SINGLE_GAS, TRANSACTION_GAS_MAX, GasTable, ran_out
from facilitator.domain.fees import WINDOW, TipPolicy, next_tip
from facilitator.units import Wei

POLICY = TipPolicy(min_wei=Wei(100_000), max_wei=Wei(10_000_000))
LATE = 3


def tip_after(delays: list[int], policy: TipPolicy = POLICY, tip_wei: Wei = POLICY.min_wei) -> Wei:
    """What a loop makes of them: each change, and each whole window, begins afresh."""
    seen: deque[int] = deque(maxlen=WINDOW)
    for delay in delays:
        seen.append(delay)
        following = next_tip(tip_wei, seen, policy)
        if following != tip_wei or len(seen) == WINDOW:
            seen.clear()
        tip_wei = following
    return tip_wei


@given(st.lists(st.integers(0, 30), max_size=300), st.integers(0, 10**7), st.integers(0, 10**8))
def test_a_tip_stays_within_its_bounds(delays: list[int], low: int, span: int) -> None:
    policy = TipPolicy(min_wei=Wei(low), max_wei=Wei(low + span))
    assert low <= tip_after(delays, policy, policy.min_wei) <= low + span


@given(st.lists(st.integers(0, 30), min_size=1, max_size=WINDOW))
def test_longer_delays_never_make_a_lower_tip(delays: list[int]) -> None:
    longer = [delay + 1 for delay in delays]
    assert next_tip(Wei(200_000), longer, POLICY) >= next_tip(Wei(200_000), delays, POLICY)


def test_two_blocks_are_well_and_more_raise_it_a_step_at_a_time_up_to_the_cap() -> None:
    assert tip_after([2] * 500) == 100_000
    assert tip_after([LATE] * 9) == 100_000
    assert tip_after([LATE] * 10) == 200_000
    assert tip_after([LATE] * 20) == 400_000
    assert tip_after([LATE] * 500) == 10_000_000


def test_one_straggler_in_ten_is_borne_and_two_are_not() -> None:
    assert next_tip(Wei(100_000), [1] * 9 + [LATE], POLICY) == 100_000
    assert next_tip(Wei(100_000), [1] * 8 + [LATE] * 2, POLICY) == 200_000
    assert next_tip(Wei(100_000), [1] * 45 + [LATE] * 5, POLICY) == 100_000
    assert next_tip(Wei(100_000), [1] * 44 + [LATE] * 6, POLICY) == 200_000


def test_it_decays_by_an_eighth_a_window_down_to_the_least() -> None:
    assert tip_after([1] * (WINDOW - 1), tip_wei=Wei(800_000)) == 800_000
    assert tip_after([1] * WINDOW, tip_wei=Wei(800_000)) == 700_000
    assert tip_after([1] * WINDOW * 40, tip_wei=Wei(800_000)) == 100_000


def test_a_tip_of_nothing_rises_too() -> None:
    policy = TipPolicy(min_wei=Wei(0), max_wei=Wei(100_000))
    assert tip_after([LATE] * 10, policy, Wei(0)) == 10_000


def test_a_few_stragglers_in_a_long_calm_do_not_ratchet_it_up() -> None:
    random = Random(7)  # noqa: S311 - reproducible on purpose
    delays = [LATE if random.random() < 0.03 else 1 for _ in range(20_000)]
    assert tip_after(delays) <= 400_000


factors = st.sampled_from([1, 2, 4])
tables = st.builds(GasTable, single_factor=factors, batch_factor=factors)


@given(tables, st.integers(1, 400))
def test_no_limit_is_above_a_transactions_and_none_below_the_constant(table: GasTable, items: int) -> None:
    constant = min(TRANSACTION_GAS_MAX, SINGLE_GAS if items == 1 else BATCH_BASE_GAS + BATCH_ITEM_GAS * items)
    assert constant <= table.limit(items) <= table.most(items) <= TRANSACTION_GAS_MAX


@given(tables)
def test_the_most_payments_of_a_batch_fit_and_one_more_would_not(table: GasTable) -> None:
    per_item, base = BATCH_ITEM_GAS * table.batch_factor, BATCH_BASE_GAS * table.batch_factor
    assert base + per_item * table.items_max <= TRANSACTION_GAS_MAX < base + per_item * (table.items_max + 1)


@given(tables, st.integers(1, 60))
def test_running_out_doubles_the_limit_of_its_kind_only_up_to_four_times(table: GasTable, items: int) -> None:
    raised = table.raised(items, table.limit(items))
    assert raised.limit(items) == min(2 * table.limit(items), table.most(items))
    other = 2 if items == 1 else 1
    assert raised.limit(other) == table.limit(other)
    assert raised.raised(items, table.limit(items)) in {raised, table}, "what was signed under the old limit raises nothing again"


def test_transactions_in_flight_under_the_old_limit_raise_it_once() -> None:
    table = GasTable()
    for _ in range(16):
        table = table.raised(1, SINGLE_GAS)
    assert table.limit(1) == 2 * SINGLE_GAS


def test_a_limit_goes_back_only_when_half_of_it_was_enough_long_enough() -> None:
    table = GasTable().raised(1, SINGLE_GAS)
    for _ in range(199):
        table = table.used(1, 104_000)  # a first-time recipient, and 15 %
    assert table.limit(1) == 2 * SINGLE_GAS
    assert table.used(1, 110_000).used(1, 104_000).limit(1) == 2 * SINGLE_GAS
    assert table.used(1, 104_000).limit(1) == SINGLE_GAS
    assert GasTable().used(1, 1) == GasTable()


def test_a_transaction_ran_out_although_the_frames_above_kept_a_little() -> None:
    assert ran_out(120_000, 120_000)
    assert ran_out(118_600, 120_000)
    assert not ran_out(103_900, 120_000)
