"""Fuzzing for as long as one likes: `FUZZ_RUNS` and `FUZZ_EXAMPLES`, other inputs each time (`FACILITATOR_SEED` repeats them)."""

import os

os.environ.setdefault("FUZZ_RUNS", "3000000")
os.environ.setdefault("FUZZ_EXAMPLES", "200")
os.environ.setdefault("FUZZ_SEED", os.environ["FACILITATOR_SEED"])

from tests.e2e.test_fuzz_api import house, test_everything_is_answered_as_described
from tests.property.test_fuzzing import test_no_input_crashes_slows_or_divides_the_readers

__all__ = ["house", "test_everything_is_answered_as_described", "test_no_input_crashes_slows_or_divides_the_readers"]
