"""Would one more payment be sent in time? Who is next? Load beyond what drains is refused at the door, before any work.

A queue that only has a length refuses too late: a thousand payments are a second of work on one day, and minutes when
the chain is slow. So the wait is predicted from what has drained lately, and the oldest payment is the proof.
"""

from collections import deque
from dataclasses import dataclass
from math import ceil
from typing import Final

_SLICE_S: Final = 0.1
"""What left within such a time is remembered as one."""
_MARGIN_S: Final = 6.0
"""A payment should be sent that long before its validBefore, or it may revert in a late block."""
_RETRY_MAX_S: Final = 30


class DrainRate:
    """Payments a second that left the queue while some waited, over the last `window_s`.

    What leaves a queue that is mostly empty says nothing about what could leave it: None until it has been `least_s` without
    a pause.
    """

    def __init__(self, window_s: float = 10.0, least_s: float = 1.0) -> None:
        self._window_s = window_s
        self._least_s = least_s
        self._left: deque[tuple[float, int]] = deque()
        self._sum = 0
        self._busy_since: float | None = None

    def waits(self, now_s: float) -> None:
        """Somebody waits from now on, at the latest."""
        if self._busy_since is None:
            self._busy_since = now_s

    def empty(self) -> None:
        """Nobody waits."""
        self._busy_since, self._sum = None, 0
        self._left.clear()

    def left(self, count: int, now_s: float) -> None:
        """So many were sent, or handed to somebody who will."""
        if self._left and now_s - self._left[-1][0] < _SLICE_S:
            count += self._left[-1][1]
            now_s = self._left[-1][0]
            self._sum -= self._left.pop()[1]
        self._left.append((now_s, count))
        self._sum += count

    def per_s(self, now_s: float) -> float | None:
        """The rate; None while it cannot be told."""
        if self._busy_since is None or now_s - self._busy_since < self._least_s:
            return None
        began = max(self._busy_since, now_s - self._window_s)
        while self._left and self._left[0][0] < began:
            self._sum -= self._left.popleft()[1]
        return self._sum / (now_s - began)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pressure:
    """How a queue stands."""

    ahead: int
    """Payments that came before."""
    oldest_s: float
    """How long the oldest of them has waited."""
    per_s: float | None
    """How many leave a second; None: not known."""


def retry_after_s(pressure: Pressure, wait_max_s: float, time_left_s: float) -> int | None:
    """None: take one more payment. Otherwise how many seconds later its caller should ask again.

    It is refused when the oldest has waited for longer than `wait_max_s`, or when by the present rate this one would
    wait for longer than that, or than the `time_left_s` that its caller or its validBefore leaves.
    """
    allowed_s = min(wait_max_s, max(0.0, time_left_s))
    wait_s = pressure.ahead / pressure.per_s if pressure.per_s else None
    if pressure.oldest_s <= wait_max_s and (wait_s is None or wait_s <= allowed_s):
        return None
    drained_s = wait_s if wait_s is not None else pressure.oldest_s
    return max(1, ceil(min(_RETRY_MAX_S, drained_s - allowed_s / 2)))


def due_s(entered_s: float, life_s: float, patience_s: float) -> float:
    """By when a payment should be sent; the earliest is next.

    In the order of arrival, but for those that would expire before their turn. Whoever has waited for `patience_s` is
    due whatever comes after, so nobody starves.
    """
    return entered_s + min(patience_s, life_s - _MARGIN_S)
