"""Fee schedules against a second implementation in fractions; sums of lines are sums of months, to the micro-dollar."""

from datetime import date, timedelta
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facilitator.domain.schedules import GasTerms, Schedule, Terms, Tier, at_par, charge, decode_terms, encode_terms, in_force

tiers = st.lists(st.tuples(st.integers(1, 200), st.integers(0, 10**7), st.integers(0, 10_000)), min_size=1, max_size=5).map(
    lambda steps: tuple(
        Tier(above=0 if index == 0 else sum(step[0] for step in steps[:index]), flat_micros=flat, basis_points=points)
        for index, (_, flat, points) in enumerate(steps)
    )
)
terms = st.builds(
    Terms,
    tiers=tiers,
    free_settlements=st.integers(0, 100),
    gas=st.none() | st.builds(GasTerms, margin_basis_points=st.integers(0, 5_000)),
)
amounts = st.integers(0, 10**13)


def rounded(value: Fraction) -> int:
    return int((Decimal(value.numerator) / Decimal(value.denominator)).quantize(Decimal(1), ROUND_HALF_UP))


def slow_charge(terms: Terms, number: int, amount: int, gas: int) -> tuple[int, int]:
    """The same in fractions, settlement by settlement, as the contract reads."""
    passed = 0 if terms.gas is None else gas + rounded(Fraction(gas * terms.gas.margin_basis_points, 10_000))
    if number <= terms.free_settlements:
        return 0, passed
    price = [tier for tier in terms.tiers if number > tier.above][-1]
    return price.flat_micros + rounded(Fraction(amount * price.basis_points, 10_000)), passed


@given(terms, st.lists(st.tuples(amounts, st.integers(0, 10**8)), max_size=300))
def test_every_charge_is_what_the_terms_say(terms: Terms, settlements: list[tuple[int, int]]) -> None:
    schedule = Schedule(version=3, effective_from=date(2026, 1, 1), terms=terms)
    for number, (amount, gas) in enumerate(settlements, start=1):
        found = charge(schedule, number, amount, gas)
        assert (found.fee_micros, found.gas_micros) == slow_charge(terms, number, amount, gas)
        assert (found.tier is None) == (number <= terms.free_settlements)
        assert found.version == 3


@given(terms)
def test_terms_survive_their_json(terms: Terms) -> None:
    assert decode_terms(encode_terms(terms)) == terms


def test_gas_without_a_rate_is_unknown_and_never_free() -> None:
    passing = Schedule(version=1, effective_from=date(2026, 1, 1), terms=Terms(gas=GasTerms(margin_basis_points=100)))
    assert charge(passing, 1, 10**6, None).gas_micros is None
    keeping = Schedule(version=1, effective_from=date(2026, 1, 1), terms=Terms())
    assert charge(keeping, 1, 10**6, None).gas_micros == 0


def test_a_version_holds_from_its_day_until_the_next() -> None:
    first = date(2026, 1, 1)
    schedules = [Schedule(version=n, effective_from=first + timedelta(days=30 * n), terms=Terms()) for n in range(3)]
    assert in_force(schedules, first - timedelta(days=1)) is None
    assert [in_force(schedules, first + timedelta(days=days)) for days in (0, 29, 30, 59, 60, 999)] == [
        schedules[n] for n in (0, 0, 1, 1, 2, 2)
    ]


@pytest.mark.parametrize(
    ("atomic", "decimals", "micros"), [(1_000_000, 6, 1_000_000), (5, 0, 5_000_000), (10**18, 18, 10**6), (5 * 10**11, 18, 1), (4, 7, 0)]
)
def test_a_dollar_coin_counts_at_par(atomic: int, decimals: int, micros: int) -> None:
    assert at_par(atomic, decimals) == micros


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "truncated"),
        ('{"tiers": []}', "begins above 0"),
        ('{"tiers": [{"above": 1}]}', "begins above 0"),
        ('{"tiers": [{}, {"above": 5}, {"above": 5}]}', "must rise"),
        ('{"tiers": [{"flat_micros": -1}]}', "between 0"),
        ('{"tiers": [{"flat_micros": 1.5}]}', "int"),
        ('{"tiers": [{"basis_points": 10001}]}', "between 0"),
        ('{"free": 1}', "unknown field"),
    ],
)
def test_terms_that_make_no_sense_are_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        decode_terms(text)


def test_what_is_not_written_has_its_default() -> None:
    assert msgspec.json.decode(encode_terms(decode_terms("{}"))) == {
        "free_settlements": 0,
        "gas": None,
        "tiers": [{"above": 0, "basis_points": 0, "flat_micros": 0}],
    }
