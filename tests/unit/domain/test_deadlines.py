"""How much life a payment needs follows what was observed, and is never below the floor."""

import pytest

from facilitator.domain.deadlines import LIFE_MIN_S, SAMPLES_MIN, life_min_s


@pytest.mark.parametrize("inclusions", [[], [300.0] * (SAMPLES_MIN - 1)])
def test_few_inclusions_say_nothing(inclusions: list[float]) -> None:
    assert life_min_s(inclusions) == LIFE_MIN_S == 6


def test_quick_inclusion_does_not_lower_the_floor() -> None:
    assert life_min_s([0.2] * 100) == LIFE_MIN_S


@pytest.mark.parametrize(
    ("inclusions", "life"),
    [
        ([1.0] * 9 + [100.0], 6),
        ([1.0] * 8 + [100.0] * 2, 101),
        ([20.0] * 10, 21),
        ([20.1] * 10, 22),
        ([float(second) for second in range(1, 101)], 91),
    ],
)
def test_nine_of_ten_must_have_been_quicker(inclusions: list[float], life: int) -> None:
    assert life_min_s(inclusions) == life
    assert life_min_s(inclusions[::-1]) == life, "in whatever order they came"
