"""Failure modes that take their time; `FACILITATOR_SEED` repeats a run, `FACILITATOR_ROUNDS` makes it longer or shorter."""

import asyncio
import os
import random
import signal

import pytest

from facilitator.errors import Fault
from facilitator.protocol.reasons import Reason
from tests.fault.conftest import StartScene, scene, seed, start_scene, start_sim
from tests.fault.test_kill import assert_settled_once, assert_told_once, house, pay_through
from tests.fault.test_modes_rpc import settle_through_noise
from tests.fixtures.house import House
from tests.fixtures.scene import Scene, reason

__all__ = ["house", "scene", "seed", "start_scene", "start_sim"]  # fixtures

ROUNDS = int(os.environ.get("FACILITATOR_ROUNDS") or 20)
HALT_S = 30.0


async def test_mode_44_a_node_that_is_silent_for_thirty_seconds_loses_and_repeats_nothing(house: House, seed: int) -> None:
    async def strike() -> None:
        os.kill(house.anvil.pid, signal.SIGSTOP)
        await asyncio.sleep(HALT_S)  # that long is the fault
        os.kill(house.anvil.pid, signal.SIGCONT)

    await house.mine_every_second()
    outcome = await pay_through(house, random.Random(seed), strike)  # noqa: S311
    await house.mine_at_once()
    await assert_settled_once(house, outcome, settled=20)
    assert_told_once(outcome)


async def test_mode_44_a_chain_that_makes_no_block_for_thirty_seconds_refuses_work_and_goes_on(scene: Scene) -> None:
    rig = await scene.engine(deadline_s=HALT_S + 20, bump_blocks=2)
    await scene.sim.mine()
    task = await scene.settle_pooled(rig)
    await scene.until(rig.engine._watchers[scene.network].halted, "the halt to be noticed", within_s=HALT_S)
    refused = 0
    async with asyncio.timeout(HALT_S):
        while refused < int(HALT_S - 12):
            with pytest.raises(Fault) as raised:
                await scene.settle(rig)
            assert raised.value.kind == "chain_halted"
            refused += 1
            await asyncio.sleep(1)  # that long is the fault
    assert [attempt["purpose"] for attempt in await scene.attempts()] == ["payment"]

    assert reason(await scene.answer(task)) is None
    assert reason(await scene.answer(scene.settle(rig))) is None
    await scene.finish(settled=2)


@pytest.mark.parametrize("number", range(ROUNDS))
async def test_mode_9_noise_of_every_kind(start_scene: StartScene, seed: int, number: int) -> None:
    played = await start_scene(seed=seed + number)
    await settle_through_noise(played, random.Random(seed + number), payments=12, chance=0.015)  # noqa: S311
    assert {reason(answer) for _, answer in played.told} <= {None, Reason.SETTLEMENT_PENDING, Reason.DUPLICATE_SETTLEMENT}
