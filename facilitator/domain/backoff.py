"""How long to leave alone what has just failed: each time longer, up to a bound, and never in step with others."""

import random
from collections.abc import Callable


class Backoff:
    """Pauses that double from `first_s` to `max_s`; each is drawn from the upper half of its range."""

    def __init__(self, first_s: float, max_s: float, draw: Callable[[], float] = random.random) -> None:
        """`draw` gives numbers from 0 to 1."""
        self._first_s = first_s
        self._max_s = max_s
        self._draw = draw
        self._failures = 0

    def next_s(self) -> float:
        """It failed once more: the pause before it is tried again."""
        longest_s = min(self._max_s, self._first_s * 2.0 ** min(self._failures, 30))
        self._failures += 1
        return longest_s * (0.5 + self._draw() / 2)

    def reset(self) -> None:
        """It worked: the next failure begins anew."""
        self._failures = 0
