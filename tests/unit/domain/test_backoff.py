"""Pauses grow, stay within their bound, and differ between those who failed at the same time."""

from hypothesis import given
from hypothesis import strategies as st

from facilitator.domain.backoff import Backoff


def test_pauses_double_up_to_the_bound_and_begin_anew_after_a_success() -> None:
    backoff = Backoff(0.5, 3.0, draw=lambda: 1.0)
    assert [backoff.next_s() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    backoff.reset()
    assert backoff.next_s() == 0.5


@given(st.integers(1, 2000), st.floats(0, 1, exclude_max=True))
def test_a_pause_is_between_half_and_all_of_its_range(failures: int, drawn: float) -> None:
    backoff = Backoff(0.1, 5.0, draw=lambda: drawn)
    last = [backoff.next_s() for _ in range(failures)][-1]
    longest = min(5.0, 0.1 * 2.0 ** min(failures - 1, 30))
    assert longest / 2 <= last <= longest


def test_two_that_failed_together_do_not_come_back_together() -> None:
    one, other = Backoff(1.0, 8.0), Backoff(1.0, 8.0)
    assert [one.next_s() for _ in range(4)] != [other.next_s() for _ in range(4)]
