"""Failure modes of the chain itself: reorganisations, expiry, and what changes between our judgement and the block.

Numbers as in docs/faults.md.
"""

import secrets
import time
from typing import Any

import pytest
from eth_utils.address import to_checksum_address

from facilitator.devstack.accounts import dev_account
from facilitator.devstack.buyer import Buyer
from facilitator.protocol.reasons import Reason
from facilitator.settlement.admission import SettleAnswer
from tests.fault.conftest import StartScene
from tests.fixtures.base_sim import RawTransaction
from tests.fixtures.scene import AMOUNT, Scene, reason
from tests.integration.settlement.conftest import Rig

PAYER_GONE = "0x00000000000000000000000000000000000000aa"
DELEGATED = "0xef0100" + PAYER_GONE[2:]
LOOPS_FOR_EVER = "0x5b600056"


async def buyers(scene: Scene, count: int, amount_atomic: int = 10**6) -> list[Buyer]:
    """Buyers with money and nothing in common."""
    made = [Buyer(dev_account("buyer of a mode", secrets.randbelow(2**40))) for _ in range(count)]
    await scene.token.fund([buyer.address for buyer in made], amount_atomic=amount_atomic)
    return made


async def drain(scene: Scene, buyer: Buyer) -> None:
    """The buyer's money goes elsewhere."""
    await scene.token.set_gas_money(buyer.address, 10**18)
    await scene.token.transact(
        buyer.address, "transfer(address,uint256)", dev_account("stranger").address, await scene.token.balance_of(buyer.address)
    )


# --- 18: reorganisations ---


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
async def test_mode_18_a_payment_is_reorganised_away(scene: Scene, depth: int) -> None:
    await scene.sim.mine(6)  # what the test itself put on the chain must stay
    rig = await scene.engine()
    payment = scene.payment()
    task = await scene.settle_pooled(rig, payment)
    await scene.sim.mine()
    await scene.until(task.done, "the answer")
    assert reason(task.result()) is None
    await scene.sim.mine(depth - 1)
    await scene.reorganise(depth)

    async def undone() -> bool:
        return bool(await scene.rows("select from incident where kind = 'reorganised'"))

    await scene.until(undone, "the reorganisation to be noticed", mine=True)

    await scene.finish(settled=1)
    assert len(scene.sent()) == 1


@pytest.mark.parametrize("more", [0, 1, 3])
async def test_mode_18_a_block_that_proved_a_failure_is_reorganised_away(scene: Scene, more: int) -> None:
    rig = await scene.engine()
    (buyer,) = await buyers(scene, 1)
    await scene.sim.mine(6)
    payment = scene.payment(buyer)
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    task = await scene.settle_pooled(rig, payment)
    before = await scene.block()
    await drain(scene, buyer)
    scene.sim.pool.hold = None
    answer = await scene.answer(task)
    assert reason(answer) is Reason.INSUFFICIENT_BALANCE
    assert await scene.states() == ["failed"]

    await scene.sim.mine(more)
    await scene.reorganise(await scene.block() - before)

    async def paid() -> bool:
        return await scene.states() == ["included"]

    await scene.until(paid, "the payment after all", mine=True)
    [row] = await scene.rows("select answer ->> 'reason' as told, tx_hash from settlement")
    assert (row["told"], row["tx_hash"]) == ("INSUFFICIENT_BALANCE", answer.result.tx_hash)
    await scene.finish(settled=1, told_stands=False)


async def test_mode_18_a_flashblock_that_is_never_sealed(scene: Scene) -> None:
    await scene.sim.mine(3)
    rig = await scene.engine()
    await scene.sim.flashblocks()
    task = await scene.settle_pooled(rig)
    await scene.sim.mine()
    await scene.until(lambda: scene.sim.calls["eth_getTransactionReceipt"] >= 3, "looks at the flashblock")
    assert not task.done()

    await scene.reorganise(1)
    await scene.sim.no_flashblocks()

    assert reason(await scene.answer(task)) is None
    await scene.finish(settled=1)


# --- 23: time ---


async def held_until_expired(scene: Scene, rig: Rig, others: int) -> tuple[Any, list[Any]]:
    """A payment is withheld from every block until its time is over, with so many others behind it."""
    valid_before = int(time.time()) + 60
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    doomed = await scene.settle_pooled(rig, scene.payment(valid_before=valid_before))
    behind = [await scene.settle_pooled(rig, scene.payment(valid_before=valid_before + 3600)) for _ in range(others)]
    await scene.node.call("evm_setNextBlockTimestamp", valid_before + 1)
    await scene.sim.mine()
    return doomed, behind


async def test_mode_23_expired_and_in_the_way_of_others_it_is_replaced_by_a_noop(scene: Scene) -> None:
    rig = await scene.engine(bump_blocks=1)
    doomed, behind = await held_until_expired(scene, rig, others=1)
    first, second = (sent.tx_hash for sent in scene.sent())

    def withheld(transaction: RawTransaction) -> bool:
        return transaction.tx_hash == first

    scene.sim.pool.hold = withheld
    answers = await scene.answers([doomed, *behind])

    assert [reason(answer) for answer in answers] == [Reason.EXPIRED, None]
    purposes = [(attempt["tx_nonce"], attempt["purpose"]) for attempt in await scene.attempts()]
    assert (0, "noop") in purposes
    assert not [purpose for purpose in purposes if purpose[0] == 1 and purpose[1] == "noop"]
    assert answers[1].result.tx_hash == second
    await scene.finish(settled=1)


async def test_mode_23_expired_and_in_nobodys_way_it_is_left_to_revert(scene: Scene) -> None:
    rig = await scene.engine(bump_blocks=1)
    doomed, _ = await held_until_expired(scene, rig, others=0)
    await scene.sim.mine(4)
    scene.sim.pool.hold = None

    answer = await scene.answer(doomed)

    assert reason(answer) is Reason.EXPIRED
    assert "noop" not in {attempt["purpose"] for attempt in await scene.attempts()}
    assert answer.result.tx_hash is not None
    await scene.finish(settled=0)


async def test_a_payment_with_less_life_than_inclusion_takes_is_refused_before_anything_is_signed(scene: Scene) -> None:
    rig = await scene.engine()
    head = rig.engine._networks[scene.network].head
    assert reason(await scene.answer(await scene.settle_pooled(rig))) is None
    assert len(head._inclusions) == 1, "what inclusion takes is measured"
    for _ in range(20):
        head.included_after(29.5)
    await scene.until(lambda: head.life_min_s() == 31, "the measure to be taken")

    now = max(int(time.time()), await scene.chain_time())
    assert reason(await scene.settle(rig, scene.payment(valid_before=now + 25))) is Reason.EXPIRED
    assert len(scene.sent()) == 1
    assert reason(await scene.answer(await scene.settle_pooled(rig, scene.payment(valid_before=now + 60)))) is None
    await scene.finish(settled=2)


# --- 28, 29: judged payable, and not so in the block ---


@pytest.mark.parametrize("what", ["paused", "payer", "payee"])
async def test_mode_28_paused_or_blacklisted_between_our_judgement_and_the_block(scene: Scene, what: str) -> None:
    rig = await scene.engine()
    (buyer,) = await buyers(scene, 1)
    payment = scene.payment(buyer)
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    task = await scene.settle_pooled(rig, payment)
    frozen = {"payer": buyer.address, "payee": payment.requirements.pay_to}.get(what)
    await (scene.token.pause() if frozen is None else scene.token.set_blacklisted(frozen, blacklisted=True))
    scene.sim.pool.hold = None

    answer = await scene.answer(task)

    assert reason(answer) is (Reason.TOKEN_PAUSED if frozen is None else Reason.ACCOUNT_BLACKLISTED)
    assert answer.result.tx_hash == scene.sent()[0].tx_hash
    again = await scene.settle(rig, scene.payment(buyer))
    assert reason(again) is reason(answer), "refused before anything is signed"
    assert len(scene.sent()) == 1
    await (scene.token.unpause() if frozen is None else scene.token.set_blacklisted(frozen, blacklisted=False))
    assert reason(await scene.answer(scene.settle(rig, scene.payment(buyer)))) is None
    await scene.finish(settled=1)


async def test_mode_29_a_payer_who_delegates_between_our_judgement_and_the_block(start_scene: StartScene) -> None:
    scene = await start_scene(chain={"automine": False, "slots_in_an_epoch": 2})
    rig = await scene.engine()
    (buyer,) = await buyers(scene, 1)
    payment = scene.payment(buyer)
    task = await scene.settle_pooled(rig, payment)
    await scene.node.call("anvil_setCode", buyer.address, DELEGATED)

    answer = await scene.answer(task)

    assert reason(answer) is Reason.SIGNATURE
    assert await scene.states() == ["failed"]
    await scene.node.call("anvil_setCode", buyer.address, "0x")
    scene.told.clear()  # the failure was true when it was told; from here on the same payment may be made

    async def final() -> bool:
        return [row["state"] for row in await scene.rows("select state from relayer_slot")] == ["finalized"]

    await scene.until(final, "the failure to be final", mine=True)
    assert reason(await scene.answer(scene.settle(rig, payment))) is None
    await scene.finish(settled=1)


# --- 33: one authorization nonce, two sets of terms ---


async def test_mode_33_the_same_authorization_nonce_for_other_terms_is_a_duplicate(scene: Scene) -> None:
    rig = await scene.engine()
    auth_nonce = "0x" + secrets.token_hex(32)
    ours = scene.payment(auth_nonce=auth_nonce)
    others = [
        scene.payment(auth_nonce=auth_nonce, amount_atomic=AMOUNT + 1),
        scene.payment(auth_nonce=auth_nonce, pay_to=to_checksum_address("0x" + secrets.token_hex(20))),
    ]
    task = await scene.settle_pooled(rig, ours)

    answers: list[SettleAnswer] = await scene.answers(
        [task, *(scene.settle(rig, other) for other in others), scene.settle(rig, ours, "globex")]
    )

    assert [reason(answer) for answer in answers] == [None] + [Reason.DUPLICATE_SETTLEMENT] * 3
    assert {answer.result.tx_hash for answer in answers} == {scene.sent()[0].tx_hash}
    await scene.finish(settled=1)


# --- 48, 49: batches ---


async def batched(scene: Scene, rig: Rig, payers: list[Buyer], pay_to: list[str]) -> list[Any]:
    """Settle one payment of each payer, all of them in one transaction that is not mined yet."""
    async with rig.db.transaction() as blocker:  # while one write-ahead waits, the others gather
        await blocker._connection.execute("select from relayer for update")
        first = scene.settle(rig)
        await scene.until(rig.engine._dispatchers[scene.network].pool.writing.locked, "the first write-ahead")
        tasks = [scene.settle(rig, scene.payment(payer, pay_to=to, amount_atomic=100)) for payer, to in zip(payers, pay_to, strict=True)]
        await scene.until(lambda: len(rig.engine._dispatchers[scene.network]._queue) == len(payers), "everybody in the queue")
    await scene.until(lambda: len(scene.sim.pool.pending()) == 2, "a payment and a batch in the pool")
    assert [row["kind"] for row in await scene.rows("select kind from relayer_slot order by tx_nonce")] == ["single", "batch"]
    return [first, *tasks]


async def test_mode_48_two_of_six_in_a_batch_fail_and_only_they(scene: Scene) -> None:
    rig = await scene.engine(batching="adaptive", batch_min=1)
    payers = await buyers(scene, 6)
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    tasks = await batched(scene, rig, payers, [scene.buyer.address] * 6)
    for payer in payers[1:3]:
        await drain(scene, payer)
    scene.sim.pool.hold = None

    answers = await scene.answers(tasks)

    poor = Reason.INSUFFICIENT_BALANCE
    assert [reason(answer) for answer in answers] == [None, None, poor, poor, None, None, None]
    assert len({answer.result.tx_hash for answer in answers[1:]}) == 1
    await scene.finish(settled=5)


async def test_mode_49_the_gas_of_a_batch_is_enough_when_every_recipient_is_new(scene: Scene) -> None:
    rig = await scene.engine(batching="adaptive", batch_min=1)
    payers = await buyers(scene, 20)
    tasks = await batched(scene, rig, payers, [to_checksum_address("0x" + secrets.token_hex(20)) for _ in payers])

    answers = await scene.answers(tasks)

    assert {reason(answer) for answer in answers} == {None}
    [row] = await scene.rows("select gas, gas_used from relayer_transaction join relayer_slot using (slot_id) where kind = 'batch'")
    assert row["gas_used"] < 0.98 * row["gas"]
    await scene.finish(settled=21)


async def test_mode_30_a_payer_who_turns_into_a_gas_bomb_costs_the_others_a_second_transaction_only(scene: Scene) -> None:
    rig = await scene.engine(batching="adaptive", batch_min=1)
    payers = await buyers(scene, 6)
    tasks = await batched(scene, rig, payers, [scene.buyer.address] * 6)
    await scene.node.call("anvil_setCode", payers[0].address, LOOPS_FOR_EVER)

    answers = await scene.answers(tasks)

    assert [reason(answer) for answer in answers] == [None, Reason.SIMULATION_FAILED, *[None] * 5]
    assert not any(answer.result.shared_transaction for answer in answers[2:])
    await scene.finish(settled=6)
