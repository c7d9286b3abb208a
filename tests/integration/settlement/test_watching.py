"""How what happened on chain is found: logs of each block first, receipts around them, polling where no log can tell."""

import asyncio
from operator import length_hint
from typing import Any

import pytest

from facilitator.devstack.accounts import dev_account
from facilitator.devstack.buyer import Buyer, requirements
from facilitator.devstack.token import BASE_SEPOLIA_USDC, calldata, transact
from facilitator.protocol.reasons import Reason
from facilitator.settlement.lookout import _AT_ONCE_MAX
from facilitator.settlement.watcher import _FIRST_LOOKS_S, Watcher
from tests.fault.conftest import StartScene, scene, seed, start_scene
from tests.fixtures.base_sim import HttpError, NodeSays
from tests.fixtures.scene import AMOUNT, PAY_TO, Scene, reason
from tests.integration.settlement.conftest import Rig, decoded

__all__ = ["scene", "seed", "start_scene"]  # fixtures

CALM = {"resend_s": 60.0, "finality_poll_s": 60.0, "balance_poll_s": 60.0, "bump_blocks": 1000}
"""Nothing is asked because of time alone."""
LOGS, RECEIPT, COUNT = "eth_getLogs", "eth_getTransactionReceipt", "eth_getTransactionCount"
MANY = _AT_ONCE_MAX + 10


async def crowd(scene: Scene, rig: Rig, buyers: list[Buyer] | None = None) -> list[asyncio.Task[Any]]:
    """More payments in the pool than receipts are asked for at once, each in a transaction of its own."""
    payers = buyers or [scene.buyer] * MANY
    tasks = [scene.settle(rig, scene.payment(payer)) for payer in payers]
    await scene.until(lambda: len(scene.sim.pool.pending()) == len(payers), "all of them in the pool")
    return tasks


def calls(scene: Scene) -> tuple[int, int]:
    return scene.sim.calls[LOGS], scene.sim.calls[RECEIPT]


async def test_a_block_costs_one_question_for_logs_and_each_transaction_one_receipt(scene: Scene) -> None:
    rig = await scene.engine(relayers=scene.relayers, **CALM)
    tasks = await crowd(scene, rig)
    logs, receipts = calls(scene)
    blocks = await scene.block()

    answers = await scene.answers(tasks)

    assert {reason(answer) for answer in answers} == {None}
    mined_in = await scene.block() - blocks
    assert scene.sim.calls[LOGS] - logs <= mined_in
    assert scene.sim.calls[RECEIPT] - receipts == MANY
    await scene.finish(settled=MANY)


async def test_a_lone_transaction_is_looked_for_soon_a_few_times_and_one_beside_others_is_not(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    new_block = Watcher._new_block

    async def counted(watcher: Watcher) -> bool:
        nonlocal looks
        looks += 1
        return await new_block(watcher)

    monkeypatch.setattr(Watcher, "_new_block", counted)
    rig = await scene.engine(poll_s=3600.0, **CALM)  # nobody looks because of time alone
    watcher = rig.engine._watchers[scene.network]
    tasks = [scene.settle(rig, scene.payment())]
    await scene.until(lambda: looks > len(_FIRST_LOOKS_S), "the first looks")
    await scene.until(lambda: length_hint(watcher._first_looks) == 0, "the last of them")
    before = looks

    tasks.append(scene.settle(rig, scene.payment()))
    await scene.until(lambda: looks > before and len(scene.sim.pool.pending()) == 2, "both in the pool")
    assert length_hint(watcher._first_looks) == 0

    await scene.sim.mine()
    watcher.look_soon()
    await scene.until(lambda: all(task.done() for task in tasks), "answers")
    assert {reason(task.result()) for task in tasks} == {None}
    assert length_hint(watcher._first_looks) == 0


async def test_what_waits_costs_no_receipts_beyond_a_few_a_block(scene: Scene) -> None:
    rig = await scene.engine(relayers=scene.relayers, **CALM)
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    tasks = await crowd(scene, rig)
    _, receipts = calls(scene)
    for _ in range(5):
        looked = scene.sim.calls[LOGS]
        await scene.sim.mine()
        await scene.until(lambda looked=looked: scene.sim.calls[LOGS] > looked, "a look")
    assert scene.sim.calls[RECEIPT] - receipts <= 6 * _AT_ONCE_MAX

    scene.sim.pool.hold = None
    assert {reason(answer) for answer in await scene.answers(tasks)} == {None}
    await scene.finish(settled=MANY)


async def test_transactions_that_leave_no_log_are_found_in_their_block_by_the_relayers_count(scene: Scene) -> None:
    rig = await scene.engine(relayers=scene.relayers, **CALM)
    poor = [Buyer.numbered(810_000 + number) for number in range(MANY)]
    await scene.token.fund([buyer.address for buyer in poor], amount_atomic=AMOUNT)
    tasks = await crowd(scene, rig, poor)
    for buyer in poor:
        await scene.node.call("anvil_setCode", buyer.address, "0xef0100" + "11" * 20)  # EIP-7702: its own signature counts no more
    before = await scene.block()

    await scene.sim.mine()
    await scene.until(lambda: all(task.done() for task in tasks), "failures in the block itself")

    assert await scene.block() == before + 1
    assert {reason(task.result()) for task in tasks} == {Reason.SIGNATURE}
    await scene.finish(settled=0)


async def test_without_logs_receipts_are_polled(scene: Scene) -> None:
    rig = await scene.engine(relayers=scene.relayers, **CALM)
    tasks = await crowd(scene, rig)
    refused = scene.sim.fail(LOGS, with_=NodeSays(-32000, "logs are not available"), times=None)

    await scene.sim.mine()
    await scene.until(lambda: all(task.done() for task in tasks), "answers")

    assert refused.struck > 0
    assert {reason(task.result()) for task in tasks} == {None}
    await scene.finish(settled=MANY)


async def test_blocks_that_nobody_saw_come_are_searched_together(scene: Scene) -> None:
    rig = await scene.engine(relayers=scene.relayers, **CALM)
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    tasks = await crowd(scene, rig)
    await scene.sim.mine()
    lookout = rig.engine._watchers[scene.network]._lookout
    await scene.until(lambda: lookout._searched is not None, "a first look")
    scene.sim.pool.hold = None
    blind = scene.sim.fail("eth_getBlockByNumber", with_=HttpError(503), times=None)
    await scene.sim.mine(3)
    logs = scene.sim.calls[LOGS]
    assert not any(task.done() for task in tasks)
    scene.sim.uproot(blind)

    await scene.until(lambda: all(task.done() for task in tasks), "answers")

    assert {reason(task.result()) for task in tasks} == {None}
    assert scene.sim.calls[LOGS] - logs == 1
    await scene.finish(settled=MANY)


async def used_by_a_stranger(scene: Scene, payload: dict[str, Any]) -> None:
    """Somebody else executes the authorization in the next block; ours stays in the pool."""
    stranger = dev_account("stranger").address
    await scene.token.set_gas_money(stranger, 10**19)
    auth, signature = payload["payload"]["authorization"], payload["payload"]["signature"]
    data = calldata(
        "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)",
        auth["from"],
        auth["to"],
        int(auth["value"]),
        int(auth["validAfter"]),
        int(auth["validBefore"]),
        bytes.fromhex(auth["nonce"][2:]),
        bytes.fromhex(signature[2:]),
    )
    await transact(scene.node, stranger, BASE_SEPOLIA_USDC, data)


@pytest.mark.parametrize("in_the_way", [True, False])
async def test_a_foreign_execution_is_seen_in_its_block(start_scene: StartScene, *, in_the_way: bool) -> None:
    scene = await start_scene()
    rig = await scene.engine(**CALM | {"bump_blocks": 1, "resend_s": 0.2})
    scene.sim.pool.hold = lambda transaction: transaction.data != b""  # only no-ops get through
    asked = requirements(2, pay_to=PAY_TO, amount_atomic=AMOUNT)
    wire = scene.buyer.pay(2, asked)
    task = await scene.settle_pooled(rig, decoded(wire, asked))
    [slot] = rig.engine._watchers[scene.network]._open.values()
    behind = [await scene.settle_pooled(rig)] if in_the_way else []

    await used_by_a_stranger(scene, wire)
    await scene.sim.mine()

    await scene.until(lambda: slot.used_elsewhere == {slot.items[0].settlement_id}, "the foreign log")
    assert not task.done(), "a slot that may still be mined keeps its settlement open"
    if in_the_way:

        async def noop() -> bool:
            return "noop" in [attempt["purpose"] for attempt in await scene.attempts()]

        await scene.until(noop, "a no-op in its place", mine=True)
    scene.sim.pool.hold = None
    assert reason(await scene.answer(task)) is Reason.SETTLEMENT_EXTERNAL
    assert {reason(answer) for answer in await scene.answers(behind)} <= {None}
    scene.told = [each for each in scene.told if reason(each[1]) is None]
    await scene.until(scene._nothing_open, "everything to end", mine=True)
    assert sorted(await scene.states()) == sorted(["external", *["included"] * len(behind)])
