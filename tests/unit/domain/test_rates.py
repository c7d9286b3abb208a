"""What a feed says, read strictly; and gas money in dollars, to the micro-dollar."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facilitator.domain.rates import Rate, read_round, usd_micros
from facilitator.units import Wei


def words(round_id: int = 7, answer: int = 312_055_000_000, updated_at: int = 1_795_219_200) -> bytes:
    return b"".join(number.to_bytes(32, "big") for number in (round_id, answer % 2**256, 0, updated_at, round_id))


def test_a_round_is_read_with_its_number_and_time() -> None:
    assert read_round("chainlink:0xfeed", words(), 8) == Rate(
        source="chainlink:0xfeed", round="7", quoted_at=datetime.fromtimestamp(1_795_219_200, UTC), usd_e8=312_055_000_000
    )
    assert read_round("x", words(answer=31205), 1).usd_e8 == 312_050_000_000
    assert read_round("x", words(answer=3120 * 10**18 + 1), 18).usd_e8 == 312_000_000_000


@pytest.mark.parametrize(
    ("said", "what"),
    [
        (words()[:-1], "159 bytes"),
        (b"", "0 bytes"),
        (words(answer=0), "worth nothing"),
        (words(answer=-1), "worth nothing"),
        (words(updated_at=0), "no complete round"),
        (words(updated_at=2**200), "no complete round"),
    ],
)
def test_what_is_no_round_is_refused(said: bytes, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        read_round("x", said, 8)


@pytest.mark.parametrize(
    ("wei", "usd_e8", "micros"),
    [
        (10**18, 312_055_000_000, 3_120_550_000),
        (0, 312_055_000_000, 0),
        (10**12, 10**8, 1),
        (5 * 10**11, 10**8, 1),
        (5 * 10**11 - 1, 10**8, 0),
        (86_000 * 1_000_000, 312_055_000_000, 268),
    ],
)
def test_gas_money_is_rounded_half_up(wei: int, usd_e8: int, micros: int) -> None:
    assert usd_micros(Wei(wei), usd_e8) == micros


@given(st.integers(0, 10**24), st.integers(1, 10**14))
def test_rounding_is_never_off_by_more_than_half_a_micro_dollar(wei: int, usd_e8: int) -> None:
    assert abs(usd_micros(Wei(wei), usd_e8) * 2 * 10**20 - 2 * wei * usd_e8) <= 10**20
