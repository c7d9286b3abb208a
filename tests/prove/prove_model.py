"""The random walk, farther: 25 seeds of a thousand steps; `FACILITATOR_SEED` is the first, `FACILITATOR_SEEDS` how many."""

import os
import secrets

import pytest

from tests.fault.test_model import Ground, ground

__all__ = ["ground"]  # fixture

RUNS, STEPS = 18, 60
FIRST = int(os.environ.get("FACILITATOR_SEED") or secrets.randbelow(2**31))
SEEDS = int(os.environ.get("FACILITATOR_SEEDS") or 25)


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_what_must_hold_holds_whatever_befalls_the_engines(ground: Ground, seed: int) -> None:
    while ground.steps.total() < 1_000:
        ground.walk(seed + ground.walks * 2**31, RUNS, STEPS)
