"""How much life a payment must have left to be taken (docs/architecture.md decision 8)."""

from collections.abc import Sequence
from math import ceil
from typing import Final

LIFE_MIN_S: Final = 6
"""Three blocks of Base: less is never enough."""
SAMPLES_MIN: Final = 10
"""Fewer inclusions say nothing about the next one."""


def life_min_s(inclusions_s: Sequence[float]) -> int:
    """Seconds that must be left until validBefore, given how long payments took lately from the record to their block.

    Nine of ten were included in that time; the block's timestamp must stand below validBefore, so one second more.
    """
    if len(inclusions_s) < SAMPLES_MIN:
        return LIFE_MIN_S
    p90_s = sorted(inclusions_s)[ceil(0.9 * len(inclusions_s)) - 1]
    return max(LIFE_MIN_S, ceil(p90_s) + 1)
