"""What facts look like on a page: exact, aligned, escaped."""

from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from facilitator.console import show
from facilitator.domain.money import decimal_text
from facilitator.domain.states import State
from facilitator.units import Zone

BERLIN = Zone("Europe/Berlin")


def bare(markup: Markup) -> str:
    return markup.striptags()


@given(st.integers(-(2**256), 2**256), st.integers(0, 30))
def test_an_amount_shows_every_digit(atomic: int, decimals: int) -> None:
    shown = bare(show.amount(atomic, decimals))
    assert shown.replace(",", "").replace("−", "-") == decimal_text(atomic, decimals)
    assert f'value="{decimal_text(atomic, decimals)}"' in show.amount(atomic, decimals)


@pytest.mark.parametrize(
    ("atomic", "decimals", "shown"),
    [
        (1_234_567_890_123, 6, "1,234,567.890123"),
        (1, 6, "0.000001"),
        (-1_500_000, 6, "−1.500000"),
        (12_345, 0, "12,345"),
        (12_345, None, "12,345"),
        (0, 6, "0.000000"),
    ],
)
def test_amounts_are_grouped_by_thousands(atomic: int, decimals: int | None, shown: str) -> None:
    assert bare(show.amount(atomic, decimals)) == shown


def test_digits_beyond_cents_are_paler_and_those_of_coins_beyond_the_sixth() -> None:
    assert '1.23<span class="fine">4567</span>' in show.amount(1_234_567, 6)
    assert '0.000000<span class="fine">862293188435</span>' in show.coin(862_293_188_435)


@pytest.mark.parametrize("shown", [show.amount(None, 6), show.usd(None), show.coin(None), show.count(None), show.short(None)])
def test_what_is_not_known_is_never_nought(shown: Markup) -> None:
    assert bare(shown) == "–not known"


def test_a_time_is_on_the_clock_of_the_zone_and_in_utc_for_machines() -> None:
    shown = show.moment(datetime(2026, 11, 21, 23, 30, 5, 123_000, tzinfo=UTC), BERLIN)
    assert bare(shown) == "2026-11-22 00:30:05"
    assert 'datetime="2026-11-21T23:30:05.123Z"' in shown
    assert "CET" in shown


def test_a_day_is_written_out() -> None:
    assert bare(show.day(date(2026, 11, 1))) == "Sun 1 Nov 2026"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3_599, "59 min"), (7_260, "2 h 1 min"), (90_000, "1 d 1 h")]
)
def test_an_age_has_its_two_largest_units(seconds: int, shown: str) -> None:
    assert show.span(seconds) == shown


def test_a_shortened_hash_is_whole_for_the_clipboard() -> None:
    text = "0x" + "ab" * 32
    assert bare(show.short(text)) == text
    assert bare(show.address("0x833589fcd6edb6e08f4c7c32d4f71b54bda02913")) == "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"


@pytest.mark.parametrize("shown", [show.short("<b>&"), show.whole("<b>&"), show.moment(datetime(2026, 1, 1, tzinfo=UTC), BERLIN)])
def test_nothing_of_a_fact_is_markup(shown: Markup) -> None:
    assert "<b>" not in shown


@pytest.mark.parametrize(("part", "of", "shown"), [(1, 1, "100.0 %"), (9_999, 10_000, "99.9 %"), (0, 5, "0.0 %"), (2, 3, "66.6 %")])
def test_a_share_is_cut_so_that_a_hundred_per_cent_means_all(part: int, of: int, shown: str) -> None:
    assert show.permille(part, of) == shown


@pytest.mark.parametrize(("text", "shown"), [("0.000010", "0.00001"), ("400.000000", "400"), ("0.000000", "0"), ("100", "100")])
def test_an_axis_has_no_noughts_at_the_end(text: str, shown: str) -> None:
    assert show.trimmed(text) == shown


def test_every_state_is_of_a_kind() -> None:
    kinds = {state: show.kind_of(state) for state in State}
    assert {state for state, kind in kinds.items() if kind == "good"} == {State.FINALIZED}
    assert {state for state, kind in kinds.items() if kind == "warn"} == {State.EXTERNAL}
    assert {state for state, kind in kinds.items() if kind == "bad"} == {
        State.WITHDRAWN, State.FAILED, State.EXPIRED, State.CANCELLED, State.CONFLICT,
    }  # fmt: skip
