"""The random walk, farther: 25 seeds of a thousand steps and more, side by side when pytest runs in several processes.

`FACILITATOR_SEED` is the first seed, `FACILITATOR_SEEDS` how many, `FACILITATOR_STEPS` how many steps each takes at least.
"""

import os

import pytest

from tests.fault.test_model import Ground, ground
from tests.prove.conftest import Tell

__all__ = ["ground"]  # fixture

RUNS, STEPS = 12, 60
FIRST = int(os.environ["FACILITATOR_SEED"])
SEEDS = int(os.environ.get("FACILITATOR_SEEDS") or 25)
STEPS_MIN = int(os.environ.get("FACILITATOR_STEPS") or 1_000)
AGAIN = "FACILITATOR_SEED={seed} FACILITATOR_SEEDS=1 FACILITATOR_STEPS=1 make prove PROOFS=tests/prove/prove_model.py"
_APART = 2**31
"""Between the seeds of one test's walks."""


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_what_must_hold_holds_whatever_befalls_the_engines(ground: Ground, seed: int, tell: Tell) -> None:
    ground.again = AGAIN
    walked = 0
    while ground.steps.total() < STEPS_MIN:
        ground.walk(seed + walked * _APART, RUNS, STEPS)
        walked += 1
    tell(f"seed {seed}: {ground.walks} walks, {ground.steps.total()} steps")
