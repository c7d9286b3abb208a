"""A commit whose answer is lost: it was done, and this process believes that it was not. Nothing may stay open for ever."""

from typing import Any

import pytest
import pytest_asyncio

from facilitator.store import relayers
from tests.fault.conftest import StartScene
from tests.fault.test_levels import history, mine_until, preconfirmed
from tests.fixtures.scene import Scene, reason
from tests.integration.settlement.test_review import Doubt

CAP = 10**12


@pytest_asyncio.fixture
async def scene(start_scene: StartScene) -> Scene:
    """`safe` is two blocks behind the head, `finalized` four."""
    scene = await start_scene(chain={"automine": False, "slots_in_an_epoch": 2})
    await scene.sim.mine(6)
    return scene


async def test_a_preconfirmation_in_doubt_does_not_stay_preconfirmed_for_ever(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = await scene.engine()
    await scene.sim.flashblocks()
    doubt = Doubt(monkeypatch, "preconfirm", done=True)
    await preconfirmed(scene, rig)
    assert doubt.times >= 1
    await scene.sim.seal()
    await scene.sim.no_flashblocks()

    await mine_until(scene, "finalized")
    assert (await history(scene))[:3] == ["submitted", "preconfirmed", "included"]
    await scene.finish(settled=1)


@pytest.mark.parametrize("done", [True, False])
async def test_a_bid_whose_record_is_in_doubt_is_sent_or_made_again(scene: Scene, monkeypatch: pytest.MonkeyPatch, *, done: bool) -> None:
    rig = await scene.engine(bump_blocks=2, max_fee_cap_wei=CAP)
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    task = await scene.settle_pooled(rig)
    doubt = Doubt(monkeypatch, "record_attempt", done=done, module=relayers)
    await scene.until(lambda: doubt.times >= 1, "a bid in doubt", mine=True)

    async def three() -> list[Any]:
        return [attempt for attempt in await scene.attempts() if attempt["attempt"] == 3]

    await scene.until(three, "three more bids", mine=True)
    scene.sim.pool.hold = None
    assert reason(await scene.answer(task)) is None
    await scene.finish(settled=1)
