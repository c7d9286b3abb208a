"""The scene of each fault, and the seed that repeats it."""

import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio

from tests.fixtures.base_sim.fixtures import StartSim, start_sim
from tests.fixtures.scene import Scene

__all__ = ["start_sim"]

StartScene = Callable[..., Awaitable[Scene]]


@pytest.fixture(scope="module")
def seed() -> int:
    """Of everything random; printed when a test fails, and on demand with -s. `FACILITATOR_SEED` sets it."""
    seed = int(os.environ.get("FACILITATOR_SEED") or secrets.randbelow(2**32))
    print(f"FACILITATOR_SEED={seed}")  # noqa: T201
    return seed


@pytest_asyncio.fixture
async def start_scene(start_sim: StartSim, database_url: str, seed: int) -> AsyncIterator[StartScene]:
    """Set a scene with other rules or another chain than usual: `await start_scene(rules=…, chain={…})`."""
    async with AsyncExitStack() as stack:

        async def start(**options: Any) -> Scene:
            scene = Scene(await start_sim(**{"seed": seed, **options}), database_url, stack)
            await scene.prepare()
            return scene

        yield start


@pytest_asyncio.fixture
async def scene(start_scene: StartScene) -> Scene:
    """Base's manners, no faults, blocks on command."""
    return await start_scene()
