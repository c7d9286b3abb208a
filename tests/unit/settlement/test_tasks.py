"""A loop that fails goes on: soon after one fault, more and more rarely while it fails at once."""

import asyncio
import itertools

import pytest
import structlog

from facilitator.clock import SystemClock
from facilitator.errors import Fault
from facilitator.settlement.tasks import Background, keep_running, set_within
from tests.fixtures.waiting import PATIENCE_S


class ManualClock(SystemClock):
    """Sleeping is what moves it; it takes down for how long."""

    def __init__(self) -> None:
        self.time_s = 0.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.time_s

    async def sleep(self, delay_s: float) -> None:
        self.slept.append(delay_s)
        self.time_s += delay_s
        await asyncio.sleep(0)


async def pauses(clock: ManualClock, runs_s: list[float]) -> list[float]:
    """Pauses of a loop that fails after each of these times."""
    left = iter(runs_s)

    async def loop() -> None:
        run_s = next(left, None)
        if run_s is None:
            raise asyncio.CancelledError
        clock.time_s += run_s
        raise Fault("away", "the world failed")

    with pytest.raises(asyncio.CancelledError):
        await keep_running("test", loop, clock)
    return clock.slept


async def test_a_loop_that_fails_at_once_pauses_longer_each_time_up_to_a_bound() -> None:
    slept = await pauses(ManualClock(), [0.0] * 12)
    assert 0.025 <= slept[0] <= 0.05
    assert all(0.5 <= after / before <= 4 for before, after in itertools.pairwise(slept))
    assert all(1.0 <= pause <= 2.0 for pause in slept[6:])


async def test_a_loop_that_worked_between_two_faults_hardly_pauses() -> None:
    slept = await pauses(ManualClock(), [0.0] * 8 + [3.0] * 5)
    assert max(slept[8:]) <= 0.05


async def test_an_event_ends_the_wait_and_is_cleared() -> None:
    event = asyncio.Event()
    event.set()
    async with asyncio.timeout(PATIENCE_S):
        await set_within(event, 60 * PATIENCE_S)
    assert not event.is_set()
    await set_within(event, 0.01)


@pytest.mark.parametrize(("error", "event"), [(Fault("away", "the world failed"), "task.faulted"), (ValueError("a bug"), "task.failed")])
async def test_work_beside_a_payment_that_fails_is_told_for_what_it_is(error: Exception, event: str) -> None:
    async def work() -> None:
        raise error

    background = Background()
    with structlog.testing.capture_logs() as lines:
        background.start("hint", work())
        await background.drain(1.0)
        await asyncio.sleep(0)
    assert [line["event"] for line in lines] == [event]
