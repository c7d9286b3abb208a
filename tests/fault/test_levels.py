"""How deep a payment is before success is told; what a crash or a reorganisation does at each depth."""

import asyncio
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from facilitator.protocol.reasons import Reason
from facilitator.store import settlements
from facilitator.store.settlements import Answer, Preconfirmation
from tests.fault.conftest import StartScene
from tests.fault.test_modes_chain import buyers, drain
from tests.fixtures.scene import AMOUNT, SURE, Scene, reason
from tests.integration.settlement.conftest import Rig

SURER = SURE[1:]


@pytest_asyncio.fixture
async def scene(start_scene: StartScene) -> Scene:
    """`safe` is two blocks behind the head, `finalized` four."""
    scene = await start_scene(chain={"automine": False, "slots_in_an_epoch": 2})
    await scene.sim.mine(6)
    return scene


async def mine_until(scene: Scene, state: str) -> None:
    """Or a deeper one: blocks come faster than we look."""
    deep_enough = SURE[SURE.index(state) :] if state in SURE else (state,)

    async def there() -> bool:
        return len(found := await scene.states()) == 1 and found[0] in deep_enough

    await scene.until(there, state, mine=True)


async def history(scene: Scene) -> list[str]:
    rows = await scene.rows("select to_state from settlement_move order by settlement_id, move")
    return [row["to_state"] for row in rows]


async def incidents(scene: Scene) -> list[str]:
    return [row["kind"] for row in await scene.rows("select kind from incident order by incident_id")]


async def preconfirmed(scene: Scene, rig: Rig, **how: Any) -> asyncio.Task[Any]:
    """A payment that was told from a flashblock."""
    task = await scene.settle_pooled(rig, scene.payment(**how), confirm_level="preconfirmed")
    await scene.sim.mine()
    await scene.until(task.done, "the answer from a flashblock")
    assert reason(task.result()) is None
    return task


# --- safe and finalized ---


@pytest.mark.parametrize("level", SURER)
@pytest.mark.parametrize("whose", ["the default", "the tenant's own"])
async def test_below_its_level_a_payment_is_pending_with_its_hash_and_the_repeat_hears_the_truth(
    scene: Scene, level: str, whose: str
) -> None:
    default, rules = (level, {}) if whose == "the default" else ("latest", {"confirm_level": level})
    rig = await scene.engine(confirm_level=default)
    payment = scene.payment()
    task = await scene.settle_pooled(rig, payment, **rules)
    await scene.sim.mine(1 if level == "safe" else 3)
    below = "included" if level == "safe" else "safe"

    async def there() -> bool:
        return await scene.states() == [below]

    await scene.until(there, below)

    await rig.time_is_up(task)
    first = task.result()
    assert reason(first) is Reason.SETTLEMENT_PENDING
    assert first.result.tx_hash == scene.sent()[0].tx_hash
    assert await scene.states() == [below]

    again = scene.settle(rig, payment, **rules)
    await scene.sim.mine(2)
    await scene.until(again.done, "the answer")
    assert (reason(again.result()), again.result().result.tx_hash) == (None, first.result.tx_hash)
    assert await history(scene) == ["submitted", "included", "safe", "finalized"][: 3 if level == "safe" else 4]
    assert reason(await scene.settle(rig, payment, **rules)) is Reason.DUPLICATE_SETTLEMENT
    await scene.finish(settled=1)


async def test_a_caller_who_waits_long_enough_hears_success_when_it_is_final(scene: Scene) -> None:
    rig = await scene.engine(confirm_level="finalized")
    task = await scene.settle_pooled(rig)
    answer = await scene.answer(task)
    assert reason(answer) is None
    assert await scene.states() == ["finalized"]
    await scene.finish(settled=1)


@pytest.mark.parametrize("level", SURER)
async def test_a_crash_below_the_level_leaves_the_truth_to_the_next_engine(scene: Scene, level: str) -> None:
    first = await scene.engine(confirm_level=level)
    payment = scene.payment()
    await scene.settle_pooled(first, payment)
    await scene.sim.mine()
    await scene.until(lambda: included(scene), "inclusion")
    await scene.crash(first)

    second = await scene.engine(confirm_level=level)
    assert reason(await scene.answer(scene.settle(second, payment))) is None
    assert (await scene.states())[0] in {level, "finalized"}
    await scene.finish(settled=1)


async def included(scene: Scene) -> bool:
    return await scene.states() == ["included"]


@pytest.mark.parametrize(("depth", "state"), [(1, "included"), (2, "included"), (3, "safe"), (4, "safe")])
async def test_a_reorganisation_below_the_level_is_never_told_as_success_before_it_is_true_again(
    scene: Scene, depth: int, state: str
) -> None:
    rig = await scene.engine(confirm_level="finalized")
    task = await scene.settle_pooled(rig)
    await scene.sim.mine()
    await scene.until(lambda: included(scene), "inclusion")
    await scene.sim.mine(depth - 1)

    async def deep() -> bool:
        return await scene.states() == [state]

    await scene.until(deep, state)
    await scene.reorganise(depth)

    async def noticed() -> bool:
        return await incidents(scene) == ["reorganised"]

    await scene.until(noticed, "the reorganisation to be noticed", mine=True)
    assert not task.done()
    assert reason(await scene.answer(task)) is None
    assert await scene.states() == ["finalized"]
    assert len(scene.sent()) == 1
    await scene.finish(settled=1)


# --- preconfirmed ---


async def test_a_tenant_that_opted_in_hears_success_from_a_flashblock(scene: Scene) -> None:
    rig = await scene.engine()
    await scene.sim.flashblocks()
    task = await preconfirmed(scene, rig)
    assert await scene.states() == ["preconfirmed"]
    [row] = await scene.rows("select block_hash, answer_state, answer ->> 'tx_hash' as told from settlement")
    assert (row["block_hash"], row["answer_state"]) == ("0x" + "00" * 32, "spent")
    assert row["told"] == task.result().result.tx_hash

    await scene.sim.seal()
    await scene.until(lambda: included(scene), "the seal to be noticed")
    assert await history(scene) == ["submitted", "preconfirmed", "included"]
    await scene.sim.no_flashblocks()
    await mine_until(scene, "finalized")
    assert await incidents(scene) == []
    await scene.finish(settled=1)


async def test_who_did_not_opt_in_waits_for_the_seal(scene: Scene) -> None:
    rig = await scene.engine()
    await scene.sim.flashblocks()
    theirs = await scene.settle_pooled(rig)
    await preconfirmed(scene, rig)
    assert not theirs.done()
    assert sorted(await scene.states()) == ["preconfirmed", "submitted"]
    await scene.sim.seal()
    await scene.until(theirs.done, "the answer")
    assert reason(theirs.result()) is None
    await scene.sim.no_flashblocks()
    await scene.finish(settled=2)


async def test_above_the_cap_of_one_payment_it_waits_for_the_seal(scene: Scene) -> None:
    rig = await scene.engine(preconfirmed_payment_max_atomic=AMOUNT - 1)
    await scene.sim.flashblocks()
    task = await scene.settle_pooled(rig, confirm_level="preconfirmed")
    await scene.sim.mine()
    await scene.until(lambda: scene.sim.calls["eth_getTransactionReceipt"] >= 2, "looks")
    assert (task.done(), await scene.states()) == (False, ["submitted"])
    await scene.sim.seal()
    await scene.until(task.done, "the answer")
    assert reason(task.result()) is None
    await scene.sim.no_flashblocks()
    await scene.finish(settled=1)


async def test_above_its_total_of_unsealed_value_a_tenant_waits_for_the_seal(scene: Scene) -> None:
    rig = await scene.engine(preconfirmed_total_max_atomic=2 * AMOUNT)
    await scene.sim.flashblocks()
    for _ in range(2):
        await preconfirmed(scene, rig)
    third = await scene.settle_pooled(rig, confirm_level="preconfirmed")
    other = scene.settle(rig, tenant="globex", confirm_level="preconfirmed")
    await scene.until(lambda: len(scene.sim.pool.pending()) == 2, "both in the pool")
    await scene.sim.mine()
    await scene.until(other.done, "another tenant's answer")
    assert (third.done(), sorted(await scene.states())) == (False, ["preconfirmed"] * 3 + ["submitted"])
    await scene.sim.seal()
    await scene.until(third.done, "the answer after the seal")
    await preconfirmed(scene, rig)  # what is sealed counts no more
    await scene.sim.seal()
    await scene.sim.no_flashblocks()
    await scene.finish(settled=5)


async def test_replicas_that_look_at_the_same_flashblock_keep_to_a_tenant_s_total_together(scene: Scene) -> None:
    rigs = [await scene.engine(relayers=[relayer], preconfirmed_total_max_atomic=AMOUNT) for relayer in scene.relayers]
    await scene.sim.flashblocks()
    watchers = [rig.engine._watchers[scene.network] for rig in rigs]

    def looked() -> bool:
        return all(slot.flashblock_seen for watcher in watchers for slot in watcher._open.values())

    for round_ in range(1, 4):
        tasks = [await scene.settle_pooled(rig, confirm_level="preconfirmed") for rig in rigs]
        await scene.sim.mine()
        await scene.until(looked, "both to have looked")
        found = await scene.states()
        assert (found.count("preconfirmed"), found.count("submitted")) == (1, 1)
        await scene.until(lambda tasks=tasks: any(task.done() for task in tasks), "the one answer")
        assert [task.done() for task in tasks].count(True) == 1
        await scene.sim.seal()
        await scene.until(lambda tasks=tasks: all(task.done() for task in tasks), "both after the seal")

        async def sealed(count: int = 2 * round_) -> bool:
            return (await scene.states()).count("preconfirmed") == 0 and len(await scene.states()) == count

        await scene.until(sealed, "the seal on record")
    await scene.sim.no_flashblocks()
    await scene.finish(settled=6)


async def test_who_preconfirms_while_another_replica_does_waits_for_its_commit(scene: Scene) -> None:
    rig = await scene.engine()
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    for _ in range(2):
        await scene.settle_pooled(rig, confirm_level="preconfirmed")
    first, second = await scene.rows("select settlement_id, tx_hash from settlement order by settlement_id")
    seen = Preconfirmation(
        settlement_id=second["settlement_id"],
        tx_hash=second["tx_hash"],
        log_index=1,
        block_number=9,
        answer=Answer(success=True, tx_hash=second["tx_hash"], log_index=1),
        spend_epoch=None,
    )
    other = await asyncpg.connect(scene.databases[-1])
    try:
        transaction = other.transaction()
        await transaction.start()
        await other.execute("select from tenant where tenant_id = 'acme' for no key update")
        await other.execute(
            "update settlement set state = 'preconfirmed', log_index = 0, block_number = 9, block_hash = $2, resolved_at = now()"
            " where settlement_id = $1",
            first["settlement_id"],
            "0x" + "00" * 32,
        )
        ours = asyncio.create_task(settlements.preconfirm(rig.db, rig.engine.replica_id, [seen], AMOUNT, 1.0))

        async def waits() -> bool:
            return ours.done() or bool(await scene.rows("select from pg_stat_activity where wait_event_type = 'Lock'"))

        await scene.until(waits, "the second one to wait")
        assert not ours.done()
        await transaction.commit()
        assert await ours == [], "it sees what the first one took of the total"
        await other.execute(
            "update settlement set state = 'submitted', log_index = null, block_number = null, block_hash = null, resolved_at = null"
            " where settlement_id = $1",
            first["settlement_id"],
        )
    finally:
        await other.close()
    await scene.finish(settled=2)


async def test_a_preconfirmed_payment_whose_flashblock_is_not_sealed_is_sent_again_and_paid(scene: Scene) -> None:
    rig = await scene.engine()
    await scene.sim.flashblocks()
    task = await preconfirmed(scene, rig)
    await scene.reorganise(1)
    await scene.sim.mine()
    await scene.sim.no_flashblocks()

    await mine_until(scene, "finalized")
    assert await incidents(scene) == ["unsealed"]
    assert (await history(scene))[:4] == ["submitted", "preconfirmed", "submitted", "included"]
    assert len(scene.sent()) == 1
    [row] = await scene.rows("select answer ->> 'tx_hash' as told, tx_hash from settlement")
    assert row["told"] == row["tx_hash"] == task.result().result.tx_hash
    await scene.finish(settled=1)


async def test_a_preconfirmed_payment_that_fails_in_the_end_is_our_loss_and_the_answer_stays(scene: Scene) -> None:
    rig = await scene.engine()
    (buyer,) = await buyers(scene, 1)
    await scene.sim.mine(2)
    await scene.sim.flashblocks()
    payment = scene.payment(buyer)
    task = await scene.settle_pooled(rig, payment, confirm_level="preconfirmed")
    await scene.sim.mine()
    await scene.until(task.done, "the answer from a flashblock")
    assert reason(task.result()) is None
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    await scene.reorganise(1)
    await drain(scene, buyer)
    scene.sim.pool.hold = None
    await scene.sim.no_flashblocks()
    await mine_until(scene, "failed")

    assert await incidents(scene) == ["unsealed", "lost_after_success"]
    [row] = await scene.rows("select answer ->> 'success' as told, answer_state, reason from settlement")
    assert tuple(row) == ("true", "spent", "INSUFFICIENT_BALANCE")
    again = await scene.answer(scene.settle(rig, payment, confirm_level="preconfirmed"))
    assert reason(again) in {Reason.INSUFFICIENT_BALANCE, Reason.DUPLICATE_SETTLEMENT}
    with pytest.raises(AssertionError, match="answered_unpaid"):  # the reconciliation names it until a person has dealt with it
        await scene.finish(settled=0)


async def test_a_crash_after_a_success_from_a_flashblock_is_taken_up_by_the_next_engine(scene: Scene) -> None:
    first = await scene.engine()
    await scene.sim.flashblocks()
    await preconfirmed(scene, first)
    await scene.crash(first)
    await scene.sim.seal()
    await scene.engine()
    await scene.until(lambda: included(scene), "the seal to be noticed")
    await scene.sim.no_flashblocks()
    await scene.finish(settled=1)


async def test_a_flashblock_that_is_gone_while_nobody_looked_is_noticed_by_the_next_engine(scene: Scene) -> None:
    first = await scene.engine()
    await scene.sim.flashblocks()
    await preconfirmed(scene, first)
    await scene.crash(first)
    await scene.reorganise(1)
    await scene.sim.mine()
    await scene.sim.no_flashblocks()
    await scene.engine()
    await mine_until(scene, "included")
    assert await incidents(scene) == ["unsealed"]
    await scene.finish(settled=1)
