"""Sends that wait at the node for their block (EIP-7966): a hint that costs nothing when it does not come."""

from dataclasses import dataclass
from typing import Literal

import pytest

from tests.fault.conftest import StartScene, seed, start_scene
from tests.fixtures.base_sim import Call, Fault, HttpError, Rules
from tests.fixtures.base_sim.faults import Proceed, Stage
from tests.fixtures.base_sim.view import ZERO_HASH
from tests.fixtures.base_sim.wire import Reply
from tests.fixtures.scene import Scene, reason

__all__ = ["seed", "start_scene"]  # fixtures

PLAIN, SYNC = "eth_sendRawTransaction", "eth_sendRawTransactionSync"
STILL = {"resend_s": 60.0, "send_sync_ms": 400}
Manner = Literal["base", "eip7966", "unsupported"]


@dataclass(frozen=True)
class Invented(Fault):
    """The node takes the transaction and says that it is in that block."""

    block_hash: str

    async def strike(self, call: Call, proceed: Proceed, stage: Stage) -> Reply:
        del stage
        await proceed(call)
        return Reply({"transactionHash": "0x" + "cd" * 32, "status": "0x1", "blockHash": self.block_hash})


async def start(start_scene: StartScene, manner: Manner) -> Scene:
    return await start_scene(rules=Rules(send_sync=manner))


@pytest.mark.parametrize("manner", ["base", "eip7966"])
async def test_a_send_that_waits_for_its_block_keeps_the_next_tx_nonce_from_nothing(start_scene: StartScene, manner: Manner) -> None:
    scene = await start(start_scene, manner)
    rig = await scene.engine(**STILL)

    tasks = [await scene.settle_pooled(rig) for _ in range(3)]  # each in the pool while the ones before still wait

    assert {reason(answer) for answer in await scene.answers(tasks)} == {None}
    assert scene.sim.calls[SYNC] == 3
    assert [sent.tx_nonce for sent in scene.sent()] == [0, 1, 2]
    await scene.finish(settled=3)


async def test_a_wait_that_ends_without_a_block_is_no_failure(start_scene: StartScene) -> None:
    scene = await start(start_scene, "eip7966")
    rig = await scene.engine(**STILL | {"send_sync_ms": 50})
    watcher = rig.engine._watchers[scene.network]
    task = await scene.settle_pooled(rig)
    await scene.until(lambda: watcher._kept == 0, "the node's patience to end")

    [slot] = watcher._open.values()
    assert slot.refused is None
    assert scene.sim.calls[PLAIN] == 0
    assert reason(await scene.answer(task)) is None
    await scene.finish(settled=1)


async def test_a_node_without_the_method_is_asked_for_it_once(start_scene: StartScene) -> None:
    scene = await start(start_scene, "unsupported")
    rig = await scene.engine(**STILL)

    tasks = [await scene.settle_pooled(rig) for _ in range(3)]

    assert (scene.sim.calls[SYNC], scene.sim.calls[PLAIN]) == (1, 3)
    assert {reason(answer) for answer in await scene.answers(tasks)} == {None}
    await scene.finish(settled=3)


async def test_a_gap_and_a_lost_answer_send_the_bytes_the_usual_way(start_scene: StartScene) -> None:
    scene = await start(start_scene, "eip7966")
    rig = await scene.engine(**STILL)
    lost = scene.sim.fail(SYNC, with_=HttpError(503), times=1)
    scene.sim.fail(PLAIN, with_=HttpError(503), times=1)

    first = scene.settle(rig)
    await scene.until(lambda: lost.struck and scene.sim.calls[PLAIN] >= 1, "the first to be lost")
    second = scene.settle(rig)  # the node does not have the first: this one leaves a gap (code 6)
    await scene.until(lambda: len(scene.sim.pool.pending()) == 1, "the second in the pool")

    for slot in rig.engine._watchers[scene.network]._open.values():
        await rig.engine._watchers[scene.network].send(slot)
    assert {reason(answer) for answer in await scene.answers([first, second])} == {None}
    await scene.finish(settled=2)


@pytest.mark.parametrize("sealed", [True, False])
async def test_an_invented_receipt_is_a_hint_and_no_proof(start_scene: StartScene, *, sealed: bool) -> None:
    scene = await start(start_scene, "base")
    rig = await scene.engine(**STILL)
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005

    lying = scene.sim.plant(Invented("0x" + "ab" * 32 if sealed else ZERO_HASH, method=SYNC))
    task = scene.settle(rig)
    await scene.until(lambda: lying.struck and rig.engine._watchers[scene.network]._kept == 0, "the lie")
    await scene.sim.mine(2)
    assert await scene.states() == ["submitted"]

    scene.sim.pool.hold = None
    assert reason(await scene.answer(task)) is None
    await scene.finish(settled=1)
