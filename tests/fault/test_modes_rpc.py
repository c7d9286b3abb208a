"""Failure modes of what lies between us and the chain: lost answers, errors, lies, lagging nodes. Numbers as in docs/faults.md."""

import asyncio
import random
from dataclasses import replace

import pytest

from facilitator.errors import Fault
from facilitator.protocol.messages import Payment
from facilitator.protocol.reasons import Reason
from tests.fault.conftest import StartScene
from tests.fault.test_modes_chain import buyers, drain
from tests.fixtures.base_sim import (
    Absent,
    Call,
    Duplicate,
    Flipped,
    ForwardThenDrop,
    ForwardThenHang,
    Garbage,
    HttpError,
    NodeSays,
    NoLogs,
    Stale,
    Truncated,
    rate_limited,
)
from tests.fixtures.base_sim import Fault as Planned
from tests.fixtures.scene import Scene, reason

SEND = "eth_sendRawTransaction"
RECEIPT = "eth_getTransactionReceipt"


async def test_mode_5_an_answer_lost_after_the_node_took_the_transaction(scene: Scene) -> None:
    rig = await scene.engine()
    lost = scene.sim.fail(SEND, with_=ForwardThenDrop(), times=2)

    answer = await scene.answer(await scene.settle_pooled(rig))

    assert lost.struck >= 1
    assert reason(answer) is None
    assert len(scene.sent()) == 1
    await scene.finish(settled=1)


async def test_mode_5_a_crash_before_the_answer_of_the_send_was_read(scene: Scene) -> None:
    rig = await scene.engine()
    scene.sim.fail(SEND, with_=ForwardThenHang(), times=1)
    payment = scene.payment()
    await scene.settle_pooled(rig, payment)
    await scene.crash(rig)
    scene.sim.release()

    heir = await scene.engine()

    assert reason(await scene.answer(scene.settle(heir, payment))) is None
    assert len(scene.sent()) == 1
    await scene.finish(settled=1)


async def test_mode_8_the_transaction_arrives_and_every_send_runs_into_its_timeout(scene: Scene) -> None:
    rig = await scene.engine()
    scene.sim.fail(SEND, with_=ForwardThenHang(), times=None)

    answers = await scene.answers([await scene.settle_pooled(rig) for _ in range(2)])

    assert [reason(answer) for answer in answers] == [None, None]
    assert {sent.tx_nonce for sent in scene.sent()} == {0, 1}
    assert len(scene.sent()) == 2
    scene.sim.release()
    await scene.finish(settled=2)


async def settle_through_noise(scene: Scene, dice: random.Random, *, payments: int, chance: float) -> None:
    """So many clients pay at once, each asking until it is told, while each kind of noise befalls that part of all calls."""
    rig = await scene.engine()

    async def insist(payment: Payment) -> None:
        """Ask until told something, as the official SDKs do."""
        while True:
            try:
                if reason(await scene.settle(rig, payment)) is not Reason.SETTLEMENT_PENDING:
                    return
            except Fault:
                await asyncio.sleep(0.05)

    faults: list[Planned] = [
        rate_limited(chance=chance),
        HttpError(503, forward=True, chance=chance),
        HttpError(500, chance=chance),
        Garbage(chance=chance),
        Truncated(chance=chance),
        NodeSays(-32603, "internal error", forward=True, chance=chance),
    ]
    dice.shuffle(faults)
    sure = [replace(fault, chance=1.0, times=1, skip=dice.randrange(5)) for fault in faults]
    async with scene.sim.faults(*sure, *faults) as planted:
        insisting = asyncio.gather(*(insist(scene.payment()) for _ in range(payments)))
        await scene.until(insisting.done, "everybody to be told", mine=True)
        await insisting
        assert all(each.struck for each in planted[: len(sure)])
    assert [reason(answer) for _, answer in scene.told].count(None) == payments
    await scene.finish(settled=payments)


async def test_mode_9_rate_limits_server_errors_garbage_and_cut_bodies(scene: Scene, seed: int) -> None:
    await settle_through_noise(scene, random.Random(seed), payments=5, chance=0.03)  # noqa: S311 - repeatable on purpose


async def test_mode_10_already_known_is_as_good_as_accepted(scene: Scene) -> None:
    rig = await scene.engine(resend_s=60.0)
    scene.sim.fail(SEND, with_=Duplicate(answer="last"))

    task = await scene.settle_pooled(rig)
    [slot] = rig.engine._watchers[scene.network]._open.values()
    await scene.until(lambda: all(each.get_name() != "send" for each in asyncio.all_tasks()), "the second answer, before any block comes")

    assert reason(await scene.answer(task)) is None
    assert slot.refused is None
    assert len(scene.sim.sent) == 1
    await scene.finish(settled=1)


async def test_mode_36_a_node_that_lags_lowers_no_tx_nonce_and_hides_no_payment(scene: Scene) -> None:
    rig = await scene.engine()
    for _ in range(3):
        assert reason(await scene.answer(scene.settle(rig))) is None
    await scene.crash(rig)

    async with scene.sim.faults(Stale(4)):
        heir = await scene.engine()
        [account] = heir.engine._dispatchers[scene.network].pool.accounts
        assert account.next_tx_nonce == 3
        task = await scene.settle_pooled(heir)
        assert reason(await scene.answer(task)) is None

    assert [sent.tx_nonce for sent in scene.sent()] == [0, 1, 2, 3]
    await scene.finish(settled=4)


@pytest.mark.parametrize("lie", [Flipped(), NoLogs(), Absent(method=RECEIPT)], ids=["status", "logs", "absence"])
async def test_mode_37_lying_receipts_fail_no_payment_and_cost_no_relayer(scene: Scene, lie: Planned) -> None:
    rig = await scene.engine()
    task = await scene.settle_pooled(rig)
    lying = scene.sim.plant(lie)
    believed = isinstance(lie, Flipped)  # logs prove a payment, a status proves nothing

    def lied() -> bool:
        return task.done() if believed else scene.sim.calls["eth_getLogs"] >= 3

    await scene.until(lied, "lies to be told", mine=True)
    assert lying.struck > 0
    assert task.done() is believed
    assert await scene.states() == ["included" if believed else "submitted"]
    scene.sim.uproot(lying)

    assert reason(await scene.answer(task)) is None
    assert [row["status"] for row in await scene.rows("select status from relayer")] == ["active"]
    assert len(scene.sent()) == 1
    await scene.finish(settled=1)


async def test_mode_38_receipts_that_cannot_be_had_are_not_receipts_that_are_not_there(scene: Scene) -> None:
    rig = await scene.engine()
    payment = scene.payment()
    task = await scene.settle_pooled(rig, payment)
    refused = scene.sim.fail(RECEIPT, with_=NodeSays(-32603, "internal error"), times=None)
    await scene.until(lambda: refused.struck >= 3, "looks at the receipt", mine=True)

    await rig.time_is_up(task)
    answer = task.result()

    assert (reason(answer), answer.result.tx_hash) == (Reason.SETTLEMENT_PENDING, scene.sent()[0].tx_hash)
    assert await scene.states() == ["submitted"]
    scene.sim.uproot(refused)
    assert reason(await scene.answer(scene.settle(rig, payment))) is None
    assert len(scene.sent()) == 1
    await scene.finish(settled=1)


async def test_mode_38_a_receipt_that_cannot_be_had_keeps_no_other_payment_waiting(scene: Scene) -> None:
    rig = await scene.engine()
    tasks = [await scene.settle_pooled(rig) for _ in range(3)]
    poisoned = scene.sent()[1].tx_hash
    fault = scene.sim.plant(NodeSays(-32603, "internal error", method=RECEIPT, where=lambda call: call.params[0] == poisoned))

    await scene.until(lambda: tasks[0].done() and tasks[2].done() and fault.struck >= 5, "the others", mine=True)
    assert not tasks[1].done()
    scene.sim.uproot(fault)

    assert {reason(answer) for answer in await scene.answers(tasks)} == {None}
    assert [row["status"] for row in await scene.rows("select status from relayer")] == ["active"]
    await scene.finish(settled=3)


@pytest.mark.parametrize("behind", [1, 3])
async def test_mode_37_a_log_index_behind_the_chain_decides_nothing(scene: Scene, behind: int) -> None:
    rig = await scene.engine()
    task = await scene.settle_pooled(rig)

    def emptied(call: Call) -> bool:
        return call.method == RECEIPT

    async with scene.sim.faults(NoLogs(where=emptied), Stale(behind, method="eth_getLogs")) as (empty, _):
        await scene.until(lambda: empty.struck >= 3, "receipts without logs", mine=True)
    assert reason(await scene.answer(task)) is None
    await scene.finish(settled=1)


async def test_a_node_that_tells_of_few_blocks_at_once_is_asked_for_few(scene: Scene) -> None:
    await scene.sim.mine(8)
    rig = await scene.engine()
    (buyer,) = await buyers(scene, 1)

    def too_many(call: Call) -> bool:
        (query,) = call.params
        return "fromBlock" in query and int(query["toBlock"], 16) - int(query["fromBlock"], 16) >= 5

    async with scene.sim.faults(NodeSays(-32614, "eth_getLogs is limited to a 5 range", method="eth_getLogs", where=too_many)):
        scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
        task = await scene.settle_pooled(rig, scene.payment(buyer))
        await drain(scene, buyer)
        scene.sim.pool.hold = None
        assert reason(await scene.answer(task)) is Reason.INSUFFICIENT_BALANCE
    await scene.finish(settled=0)


async def test_mode_43_notifications_that_never_come(scene: Scene) -> None:
    owner = await scene.engine()
    front = await scene.engine(relayers=[])
    killed = await scene.rows("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'facilitator-listen'")
    assert len(killed) >= 2

    task = await scene.settle_pooled(front)

    assert owner.engine.replica_id != front.engine.replica_id
    assert reason(await scene.answer(task)) is None
    await scene.finish(settled=1)


async def test_mode_2_a_replica_that_dies_with_a_payment_queued(start_scene: StartScene) -> None:
    scene = await start_scene()
    front = await scene.engine(relayers=[])
    payment = scene.payment()
    scene.settle(front, payment)
    await scene.until(lambda: _queued(scene), "the payment on record")
    await scene.crash(front)

    owner = await scene.engine()

    assert reason(await scene.answer(scene.settle(owner, payment))) is None
    await scene.finish(settled=1)


async def _queued(scene: Scene) -> bool:
    return await scene.states() == ["queued"]
