"""`Timeouts` ends blocks as `asyncio.timeout` does."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from facilitator.clock import Timeouts

Block = Callable[[float], AbstractAsyncContextManager[object]]


@pytest.fixture(params=["ours", "library"])
def block(request: pytest.FixtureRequest) -> Block:
    """Ours in the library's shape, or the library's."""
    timeouts = Timeouts()

    @asynccontextmanager
    async def ours(timeout_s: float) -> AsyncIterator[None]:
        with timeouts.after(timeout_s):
            yield

    return ours if request.param == "ours" else asyncio.timeout


async def test_what_takes_too_long_is_ended_by_a_timeout_error(block: Block) -> None:
    never = asyncio.get_running_loop().create_future()
    with pytest.raises(TimeoutError):
        async with block(0.01):
            await never
    assert never.cancelled()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0, "the task may be cancelled afresh"


async def test_a_cancellation_from_outside_stays_one(block: Block) -> None:
    entered = asyncio.Event()

    async def work() -> None:
        async with block(60):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_beside_the_timeout_is_not_swallowed(block: Block) -> None:
    async def work() -> None:
        async with block(0.0):
            try:
                await asyncio.Event().wait()
            finally:
                task.cancel()

    task = asyncio.create_task(work())
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_another_exception_goes_through(block: Block) -> None:
    with pytest.raises(KeyError):
        async with block(60):
            raise KeyError
    with pytest.raises(KeyError):
        async with block(0.0):
            await its_own_way()


async def its_own_way() -> None:
    """Answers a cancellation with an error of its own."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise KeyError from None


async def test_the_inner_of_two_blocks_ends_alone(block: Block) -> None:
    async with block(60):
        with pytest.raises(TimeoutError):
            async with block(0.01):
                await asyncio.Event().wait()
        await asyncio.sleep(0)


async def test_a_block_that_was_lifted_is_never_ended() -> None:
    timeouts = Timeouts()
    with timeouts.after(0.0) as lifted:
        lifted.lift()
        with pytest.raises(TimeoutError), timeouts.after(0.0):
            await asyncio.Event().wait()


async def test_no_timer_runs_when_nothing_is_open() -> None:
    timeouts = Timeouts()
    with pytest.raises(TimeoutError), timeouts.after(0.0):
        await asyncio.Event().wait()
    assert timeouts._timer is None
    with timeouts.after(60):
        assert timeouts._timer is not None
