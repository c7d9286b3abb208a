"""Integers become decimal text digit by digit."""

import pytest

from facilitator.domain.money import decimal_text


@pytest.mark.parametrize(
    ("atomic", "decimals", "text"),
    [
        (0, 6, "0.000000"),
        (1, 6, "0.000001"),
        (-1, 6, "-0.000001"),
        (1_234_500, 6, "1.234500"),
        (999_999_999_999_999, 6, "999999999.999999"),
        (7, 0, "7"),
        (-7, 0, "-7"),
        (10**18, 18, "1.000000000000000000"),
        (2**256 - 1, 6, "115792089237316195423570985008687907853269984665640564039457584007913129.639935"),
    ],
)
def test_every_digit_is_kept(atomic: int, decimals: int, text: str) -> None:
    assert decimal_text(atomic, decimals) == text
