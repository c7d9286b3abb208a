"""A queue refuses what it would not serve in time, says when to come again, and lets nobody starve."""

import heapq
import random
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facilitator.domain.pressure import DrainRate, Pressure, due_s, retry_after_s

WAIT_S = 5.0


def pressure(ahead: int = 0, oldest_s: float = 0.0, per_s: float | None = None) -> Pressure:
    return Pressure(ahead=ahead, oldest_s=oldest_s, per_s=per_s)


@pytest.mark.parametrize(
    ("stands", "time_left_s", "told_s"),
    [
        (pressure(), 20, None),
        (pressure(ahead=1999), 20, None),  # a burst on an idle service: nobody knows yet
        (pressure(ahead=499, per_s=100), 20, None),
        (pressure(ahead=501, per_s=100), 20, 3),  # 5.01 s of work; in 3 s it is below half of what is allowed
        (pressure(ahead=300, per_s=100), 2, 2),  # its own time is shorter
        (pressure(ahead=1, oldest_s=5.1), 20, 3),  # nothing leaves: the oldest proves it
        (pressure(ahead=5, oldest_s=5.1, per_s=100), 20, 1),
        (pressure(ahead=1, oldest_s=1, per_s=0), 20, None),
        (pressure(ahead=10**6, per_s=1), 20, 30),
        (pressure(ahead=0, per_s=1), -1, None),  # nobody is before it; the deadline itself is somebody else's to keep
        (pressure(ahead=1, per_s=1), -1, 1),
    ],
)
def test_what_is_refused_and_when_to_come_again(stands: Pressure, time_left_s: float, told_s: int | None) -> None:
    assert retry_after_s(stands, WAIT_S, time_left_s) == told_s


@given(st.integers(0, 10**6), st.floats(0, 100), st.none() | st.floats(0, 10**4), st.floats(-10, 100))
def test_whoever_is_refused_is_told_a_time_within_bounds(ahead: int, oldest_s: float, per_s: float | None, left_s: float) -> None:
    told_s = retry_after_s(pressure(ahead, oldest_s, per_s), WAIT_S, left_s)
    assert told_s is None or 1 <= told_s <= 30
    if oldest_s > WAIT_S:
        assert told_s is not None


@given(st.integers(1, 5000), st.floats(1, 5000), st.floats(0, 20))
def test_the_longer_the_queue_the_later_one_comes_again(ahead: int, per_s: float, left_s: float) -> None:
    def told(count: int) -> int:
        return retry_after_s(pressure(count, per_s=per_s), WAIT_S, left_s) or 0

    assert told(ahead) <= told(ahead * 2)


def test_the_rate_is_what_left_over_the_last_seconds_of_a_busy_time() -> None:
    rate = DrainRate(window_s=10, least_s=1)
    assert rate.per_s(0.0) is None
    rate.waits(0.0)
    for tick in range(200):  # twenty in every 0.2 s block
        rate.left(20, tick * 0.2)
    assert rate.per_s(40.0) == pytest.approx(100, rel=0.05)
    for tick in range(50):  # then half as many
        rate.left(10, 40.0 + tick * 0.2)
    assert rate.per_s(50.0) == pytest.approx(50, rel=0.05)
    assert rate.per_s(61.0) == 0.0, "nothing left for as long as the window"


def test_a_queue_that_was_empty_says_nothing_about_what_could_leave_it() -> None:
    rate = DrainRate(window_s=10, least_s=1)
    rate.waits(0.0)
    rate.left(1, 0.5)
    rate.empty()
    rate.waits(100.0)
    assert rate.per_s(100.5) is None
    rate.left(50, 100.9)
    assert rate.per_s(101.0) == pytest.approx(50)


def test_what_is_remembered_is_bounded() -> None:
    rate = DrainRate(window_s=10, least_s=1)
    rate.waits(0.0)
    for step in range(100_000):
        rate.left(1, step * 0.001)
        rate.per_s(step * 0.001)
    assert len(rate._left) <= 102
    assert rate.per_s(100.0) == pytest.approx(1000, rel=0.05)


def test_arrival_rules_but_whoever_would_expire_first_goes_first() -> None:
    assert due_s(10.0, 3600, WAIT_S) == 15.0
    assert due_s(12.0, 8, WAIT_S) == 14.0, "it must be sent within two seconds"
    assert due_s(12.0, 6, WAIT_S) == 12.0


@given(st.integers(0, 2**32 - 1))
def test_nobody_starves_among_payments_that_are_always_more_urgent(seed: int) -> None:
    """Short-lived payments come faster than they can be sent; the patient one is sent when its patience is over."""
    dice = random.Random(seed)  # noqa: S311
    numbers = count()
    patient = next(numbers)
    queue = [(due_s(0.0, 10**6, WAIT_S), patient)]
    now = 0.0
    while True:
        for _ in range(3):
            heapq.heappush(queue, (due_s(now, dice.uniform(6, 8), WAIT_S), next(numbers)))
        if heapq.heappop(queue)[1] == patient:
            return
        now += 0.1
        assert now < 3 * WAIT_S + 3, "starved"
