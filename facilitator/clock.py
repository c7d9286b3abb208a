"""Time, injected. Wall time for humans and validity windows, monotonic time for durations and deadlines."""

import asyncio
import time
from typing import Protocol

from facilitator.units import UnixSeconds


class Clock(Protocol):
    """What loops ask for the time. Tests put a clock of their own here; nothing else in the code reads one."""

    def now(self) -> UnixSeconds:
        """Wall time in whole unix seconds."""
        ...

    def now_ms(self) -> int:
        """Wall time in whole milliseconds, for ids that sort by time."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back, for deadlines and durations."""
        ...

    async def sleep(self, delay_s: float) -> None:
        """Wait `delay_s` seconds."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> UnixSeconds:
        """Wall time in whole unix seconds."""
        return UnixSeconds(int(time.time()))

    def now_ms(self) -> int:
        """Wall time in whole milliseconds."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """The event loop's own monotonic clock, so that deadlines compare with its timers."""
        return time.monotonic()

    async def sleep(self, delay_s: float) -> None:
        """Wait `delay_s` seconds."""
        await asyncio.sleep(delay_s)
