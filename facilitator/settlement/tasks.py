"""Background tasks that somebody owns: none is lost, none fails unseen, all end when the engine does."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Final

import structlog

from facilitator.clock import Clock
from facilitator.domain.backoff import Backoff
from facilitator.errors import Fault
from facilitator.metrics import LOOP_HEARTBEAT, LOOP_RESTARTS

_RESTART_FIRST_S: Final = 0.05
"""Pause of a loop after its first fault: one request that failed stalls nothing for long."""
_RESTART_MAX_S: Final = 2.0
"""Longest pause of a loop that fails again and again."""
log = structlog.get_logger(__name__)


class Background:
    """Short tasks beside the loops, such as a send or the freeing of an answer slot."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, name: str, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run `work` to its end. A Fault in it is the world's, and logged; any other exception is a bug that is counted too."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, Fault):
            log.warning("task.faulted", task=task.get_name(), kind=error.kind, fault=str(error))
        else:
            LOOP_RESTARTS.labels(task.get_name()).inc()
            log.error("task.failed", task=task.get_name(), exc_info=error)

    async def drain(self, timeout_s: float) -> None:
        """Wait for what is running, then cancel the rest."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=timeout_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)


async def keep_running(name: str, loop: Callable[[], Awaitable[None]], clock: Clock) -> None:
    """Run a loop for ever. A Fault is the world's: logged, tried again. Anything else is a bug: logged, counted, restarted.

    It pauses in between, longer each time that it fails sooner than it paused, and out of step with other loops and replicas.
    """
    backoff, paused_s = Backoff(_RESTART_FIRST_S, _RESTART_MAX_S), 0.0
    while True:
        began = clock.monotonic()
        try:
            await loop()
        except Fault as fault:
            log.warning("loop.faulted", loop=name, kind=fault.kind, fault=str(fault))
        except Exception:
            LOOP_RESTARTS.labels(name).inc()
            log.exception("loop.failed", loop=name)
        if clock.monotonic() - began > paused_s:
            backoff.reset()
        paused_s = backoff.next_s()
        await clock.sleep(paused_s)


async def set_within(event: asyncio.Event, timeout_s: float) -> None:
    """Wait for the event, that long at most, and clear it."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass
    event.clear()


def beat(loop: str, network: str = "") -> None:
    """Say that a loop begins a round: one that says so no more is stalled (docs/operations.md, LoopStalled)."""
    LOOP_HEARTBEAT.labels(loop, network).set_to_current_time()
