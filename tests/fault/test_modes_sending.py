"""Failure modes of pools, fees and tx_nonces: what is sent and does not get mined, or not as it was sent. Numbers as in docs/faults.md."""

from itertools import pairwise
from typing import Any

import pytest

from facilitator.devstack.stack import Postgres
from facilitator.protocol.reasons import Reason
from facilitator.store import relayers
from facilitator.units import parse_address
from tests.fault.conftest import StartScene
from tests.fixtures.base_sim import Absent, Call, PretendAccepted, RawTransaction, Rules
from tests.fixtures.base_sim.node import decoded as decoded_call
from tests.fixtures.scene import Scene, reason

SEND = "eth_sendRawTransaction"
RECEIPT = "eth_getTransactionReceipt"
GWEI = 10**9
HIGH_CAP = {"max_fee_cap_wei": 10_000 * GWEI}


def assert_outbid(attempts: list[Any]) -> None:
    """Each replacement of a tx_nonce bids at least 12.5 % more than the highest before it, on both fields."""
    for before, after in pairwise(attempts):
        if before["tx_nonce"] == after["tx_nonce"]:
            for field in ("max_fee_wei", "max_priority_fee_wei"):
                assert after[field] * 8 >= before[field] * 9, (field, before, after)


async def test_mode_11_tx_nonce_too_low_because_our_own_transaction_used_it(scene: Scene) -> None:
    rig = await scene.engine()
    task = await scene.settle_pooled(rig)
    [slot] = rig.engine._watchers[scene.network]._open.values()

    async with scene.sim.faults(Absent(method=RECEIPT)):
        await scene.sim.mine()
        await rig.engine._watchers[scene.network].send(slot)
    assert slot.refused == "nonce_too_low"

    assert reason(await scene.answer(task)) is None
    assert len(scene.sent()) == 1
    await scene.finish(settled=1)


async def test_mode_12_the_lowest_of_five_is_lost_and_the_others_wait_for_it(scene: Scene) -> None:
    rig = await scene.engine()
    tasks = [await scene.settle_pooled(rig) for _ in range(5)]
    lowest = scene.sent()[0]
    assert await scene.sim.pool.evict(lowest.tx_hash)
    await scene.sim.mine()
    assert not any(task.done() for task in tasks)

    assert {reason(answer) for answer in await scene.answers(tasks)} == {None}
    assert [sent.tx_nonce for sent in scene.sent()] == [0, 1, 2, 3, 4]
    await scene.finish(settled=5)


async def test_mode_12_a_new_owner_fills_the_gap_that_a_dead_one_left(scene: Scene) -> None:
    rig = await scene.engine()
    payments = [scene.payment() for _ in range(3)]
    scene.sim.fail(SEND, with_=PretendAccepted(), times=1)
    first = scene.settle(rig, payments[0])
    await scene.until(lambda: scene.sim.sent, "the first send")
    for payment in payments[1:]:
        await scene.settle_pooled(rig, payment)
    assert not first.done()
    await scene.crash(rig)

    heir = await scene.engine()

    answers = await scene.answers([scene.settle(heir, payment) for payment in payments])
    assert {reason(answer) for answer in answers} == {None}
    assert [sent.tx_nonce for sent in scene.sent()] == [0, 1, 2]
    await scene.finish(settled=3)


async def test_mode_13_a_replacement_that_is_underpriced_is_outbid_from_its_own_bid(start_scene: StartScene) -> None:
    scene = await start_scene(rules=Rules(bump_percent=30))
    rig = await scene.engine(bump_blocks=1)
    task = await scene.settle_pooled(rig)
    original = scene.sent()[0].tx_hash
    scene.sim.pool.hold = lambda transaction: transaction.tx_hash == original

    answer = await scene.answer(task)

    attempts = await scene.attempts()
    assert [attempt["purpose"] for attempt in attempts][:3] == ["payment", "bump", "bump"]
    assert_outbid(attempts)
    assert answer.result.tx_hash in {attempt["tx_hash"] for attempt in attempts[2:]}
    await scene.finish(settled=1)


async def test_mode_14_a_base_fee_a_hundred_times_as_high_is_outbid(scene: Scene) -> None:
    rig = await scene.engine(bump_blocks=2, **HIGH_CAP)
    tasks = [await scene.settle_pooled(rig) for _ in range(2)]
    await scene.sim.set_base_fee(100 * GWEI)
    await scene.sim.mine()
    assert len(scene.sim.pool.parked()) == 2

    answers = await scene.answers(tasks)

    assert {reason(answer) for answer in answers} == {None}
    attempts = await scene.attempts()
    assert attempts[1]["purpose"] == "bump"
    assert attempts[1]["max_fee_wei"] > 100 * GWEI
    assert_outbid(attempts)
    await scene.finish(settled=2)


async def test_mode_14_above_the_cap_we_wait_for_the_fee_to_fall(scene: Scene) -> None:
    rig = await scene.engine(bump_blocks=2, max_fee_cap_wei=10 * GWEI)
    task = await scene.settle_pooled(rig)
    await scene.sim.set_base_fee(20 * GWEI)

    answer = await scene.answer(task)

    assert reason(answer) is None
    assert max(attempt["max_fee_wei"] for attempt in await scene.attempts()) <= 10 * GWEI
    await scene.finish(settled=1)


async def test_mode_15_withheld_inclusion_outbids_the_lowest_tx_nonce_only(scene: Scene) -> None:
    rig = await scene.engine(bump_blocks=2, **HIGH_CAP)
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    tasks = [await scene.settle_pooled(rig) for _ in range(3)]

    async def bumps() -> list[Any]:
        return [attempt for attempt in await scene.attempts() if attempt["purpose"] != "payment"]

    async def three() -> bool:
        return len(await bumps()) >= 3

    await scene.until(three, "three bumps", mine=True)
    assert {bump["tx_nonce"] for bump in await bumps()} == {0}
    scene.sim.pool.hold = None

    assert {reason(answer) for answer in await scene.answers(tasks)} == {None}
    assert_outbid(await scene.attempts())
    await scene.finish(settled=3)


async def test_mode_16_a_pool_that_forgets_everything_again_and_again(scene: Scene) -> None:
    rig = await scene.engine()
    tasks = [await scene.settle_pooled(rig) for _ in range(3)]
    for _ in range(3):
        await scene.sim.pool.evict_all()
        await scene.sim.mine()
        await scene.until(lambda: len(scene.sim.pool.pending()) == 3, "everything to be sent again")

    assert {reason(answer) for answer in await scene.answers(tasks)} == {None}
    assert len(scene.sent()) == 3
    await scene.finish(settled=3)


async def test_mode_17_a_sender_whose_slots_are_taken_waits_for_the_next_block(start_scene: StartScene) -> None:
    scene = await start_scene(rules=Rules(slots_max=2))
    rig = await scene.engine()
    tasks = [scene.settle(rig) for _ in range(6)]
    await scene.until(lambda: len(scene.sent()) == 6, "six sends")
    slots = rig.engine._watchers[scene.network]._open.values()
    await scene.until(lambda: [slot.refused for slot in slots].count("txpool_full") >= 3, "refusals of a full pool")

    assert {reason(answer) for answer in await scene.answers(tasks)} == {None}
    assert [attempt["purpose"] for attempt in await scene.attempts()] == ["payment"] * 6
    await scene.finish(settled=6)


async def test_mode_39_the_original_is_mined_although_it_was_outbid(scene: Scene) -> None:
    rig = await scene.engine(bump_blocks=1)
    task = await scene.settle_pooled(rig)
    original = scene.sent()[0].tx_hash

    def of_another(call: Call) -> bool:
        transaction = decoded_call(call)
        return transaction is not None and transaction.tx_hash != original

    def original_is_held(transaction: RawTransaction) -> bool:
        return transaction.tx_hash == original

    scene.sim.pool.hold = original_is_held
    scene.sim.plant(PretendAccepted(method=SEND, where=of_another))
    await scene.until(lambda: len(scene.sent()) >= 2, "a bump", mine=True)
    scene.sim.pool.hold = None

    answer = await scene.answer(task)

    assert (reason(answer), answer.result.tx_hash) == (None, original)
    assert [row["mined_tx_hash"] for row in await scene.rows("select mined_tx_hash from relayer_slot")] == [original]
    await scene.finish(settled=1)


async def test_mode_41_a_ledger_restored_to_an_older_state_pays_nothing_twice(scene: Scene, postgres: Postgres) -> None:
    rig = await scene.engine()
    assert reason(await scene.answer(scene.settle(rig))) is None
    await scene.crash(rig)
    backup = scene.databases[0].partition("@/")[2].partition("?")[0]
    restored = await postgres.create_database(f"{backup}_restored", backup)
    rig = await scene.engine()
    lost = scene.payment()
    forgotten = await scene.answer(scene.settle(rig, lost))
    await scene.crash(rig)
    scene.told.pop()  # nobody remembers

    scene.databases.append(restored)
    heir = await scene.engine()

    assert forgotten.result.tx_hash is not None
    incidents = [(row["kind"], row["tx_hash"]) for row in await scene.rows("select kind, tx_hash from incident")]
    assert incidents == [("transaction_found", forgotten.result.tx_hash)]
    again = await scene.answer(scene.settle(heir, lost))
    assert (reason(again), again.result.tx_hash) == (Reason.DUPLICATE_SETTLEMENT, forgotten.result.tx_hash)
    scene.told.pop()
    assert [row["tenant_id"] for row in await scene.rows("select tenant_id from settlement order by settlement_id")][1:] == ["found"]
    assert reason(await scene.answer(scene.settle(heir))) is None
    assert [sent.tx_nonce for sent in scene.sent()] == [0, 1, 2]
    await scene.finish(settled=3)


@pytest.mark.parametrize("mined", [False, True], ids=["in-the-pool", "mined-while-away"])
async def test_mode_41_a_lost_transaction_that_is_still_in_the_pool(scene: Scene, postgres: Postgres, *, mined: bool) -> None:
    backup = scene.databases[0].partition("@/")[2].partition("?")[0]
    rig = await scene.engine()
    await scene.crash(rig)
    restored = await postgres.create_database(f"{backup}_restored", backup)
    rig = await scene.engine()
    lost = scene.payment()
    await scene.settle_pooled(rig, lost)
    await scene.crash(rig)
    [forgotten] = scene.sent()
    if mined:
        await scene.sim.mine()

    scene.databases.append(restored)
    heir = await scene.engine(relayers=scene.relayers)
    again = scene.settle(heir, lost) if mined else await scene.settle_pooled(heir, lost)
    answers = await scene.answers([again, scene.settle(heir)])

    assert reason(answers[1]) is None
    assert [row["status"] for row in await scene.rows("select status from relayer")] == ["active"] * 2
    assert await scene.token.balance_of(lost.requirements.pay_to) == 20_000
    if mined:  # before anybody asked again: it is on record, in nobody's name
        assert (reason(answers[0]), answers[0].result.tx_hash) == (Reason.DUPLICATE_SETTLEMENT, forgotten.tx_hash)
        scene.told = [told for told in scene.told if told[0] is not lost]
        await scene.finish(settled=2)
    else:  # the forgotten transaction is ours, and pays the one who asks again
        assert (reason(answers[0]), answers[0].result.tx_hash) == (None, forgotten.tx_hash)
        await scene.finish(settled=2)


async def test_mode_41_a_lost_transaction_that_is_mined_before_anybody_asks_again(scene: Scene, postgres: Postgres) -> None:
    backup = scene.databases[0].partition("@/")[2].partition("?")[0]
    await scene.crash(await scene.engine())
    restored = await postgres.create_database(f"{backup}_restored", backup)
    rig = await scene.engine()
    lost = scene.payment()
    await scene.settle_pooled(rig, lost)
    await scene.crash(rig)
    [forgotten] = scene.sent()

    scene.databases.append(restored)
    heir = await scene.engine()
    await scene.sim.mine()

    await scene.until(lambda: _states_are(scene, ["included"]), "the payment on record")
    assert [row["tenant_id"] for row in await scene.rows("select tenant_id from settlement")] == ["found"]
    again = await scene.answer(scene.settle(heir, lost))
    assert (reason(again), again.result.tx_hash) == (Reason.DUPLICATE_SETTLEMENT, forgotten.tx_hash)
    scene.told.clear()
    await scene.finish(settled=1)


async def test_mode_41_a_settlement_that_outlived_the_record_of_its_transaction_is_paid_by_it(scene: Scene, postgres: Postgres) -> None:
    """The admission was replicated before the failover, what was signed for it was not; the transaction was mined all the same."""
    await scene.crash(await scene.engine())
    front = await scene.engine(relayers=[])
    payment = scene.payment()
    scene.settle(front, payment)
    await scene.until(lambda: _states_are(scene, ["queued"]), "the payment on record")
    await scene.crash(front)
    backup = scene.databases[0].partition("@/")[2].partition("?")[0]
    restored = await postgres.create_database(f"{backup}_restored", backup)
    rig = await scene.engine()
    await scene.until(lambda: len(scene.sim.pool.pending()) == 1, "the transaction in the pool")
    await scene.crash(rig)
    await scene.sim.mine()
    [sent] = scene.sent()

    scene.databases.append(restored)
    heir = await scene.engine()

    answer = await scene.answer(scene.settle(heir, payment))
    assert (reason(answer), answer.result.tx_hash) == (None, sent.tx_hash), "paid by our own key: never called somebody else's"
    assert [row["kind"] for row in await scene.rows("select kind from incident")] == ["transaction_found"]
    assert len(scene.sent()) == 1
    await scene.finish(settled=1)


async def _states_are(scene: Scene, states: list[str]) -> bool:
    return await scene.states() == states


async def test_mode_51_a_relayer_whose_key_is_used_elsewhere_is_left_and_the_payment_goes_by_another(scene: Scene) -> None:
    stolen, other = scene.relayers
    rig = await scene.engine(relayers=[stolen])
    task = await scene.settle_pooled(rig)
    fields = {"chainId": 84532, "nonce": 0, "to": stolen.address, "value": 1, "gas": 21_000, "type": 2, "data": b""}
    foreign = stolen.sign_transaction(fields | {"maxFeePerGas": 50 * GWEI, "maxPriorityFeePerGas": GWEI})
    assert (await scene.sim.pool.add(RawTransaction.decode(bytes(foreign.raw_transaction)))).error is None
    await scene.engine(relayers=[other])

    answer = await scene.answer(task)

    assert reason(answer) is None
    statuses = {row["address"]: row["status"] for row in await scene.rows("select address, status from relayer")}
    assert statuses == {stolen.address.lower(): "quarantined", other.address.lower(): "active"}
    assert [row["kind"] for row in await scene.rows("select kind from incident")] == ["relayer_used_elsewhere"]
    await scene.finish(settled=1, strangers={"0x" + foreign.hash.hex().removeprefix("0x")})


async def test_a_payment_of_a_removed_relayer_is_sent_again_when_its_block_is_reorganised_away(scene: Scene) -> None:
    removed, _ = scene.relayers
    rig = await scene.engine()
    assert reason(await scene.answer(scene.settle(rig))) is None
    assert await relayers.set_status(rig.db, "cli me", scene.network, parse_address(removed.address), "removed")
    [account] = rig.engine._dispatchers[scene.network].pool.accounts
    await scene.until(lambda: account.lease is None, "the lease to be given back")

    [row] = await scene.rows("select block_number from settlement")
    await scene.reorganise(await scene.block() - row["block_number"] + 1)

    async def open_again() -> bool:
        return await scene.states() == ["submitted"]

    await scene.until(open_again, "the payment to be open again", mine=True)
    await scene.finish(settled=1)
    assert len(scene.sent()) == 1
    await scene.until(lambda: account.lease is None, "the lease to be given back again")
