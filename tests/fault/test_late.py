"""Authorizations that others use: before us, after we gave up, and in blocks that are reorganised away. All ends without a human."""

from typing import Any

import pytest
import pytest_asyncio

from facilitator.devstack.accounts import dev_account
from facilitator.devstack.buyer import Buyer
from facilitator.protocol.messages import Payment
from facilitator.protocol.reasons import Reason
from tests.fault.conftest import StartScene
from tests.fault.test_modes_chain import buyers, drain
from tests.fixtures.scene import SURE, Scene, reason
from tests.integration.settlement.conftest import Rig

STRANGER = dev_account("late stranger").address
TRANSFER = "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)"
CANCEL = "cancelAuthorization(address,bytes32,bytes)"
USES = {"external": Reason.SETTLEMENT_EXTERNAL, "conflict": Reason.AUTHORIZATION_CONFLICT, "cancelled": Reason.AUTHORIZATION_CANCELED}


@pytest_asyncio.fixture
async def scene(start_scene: StartScene) -> Scene:
    """`safe` is three blocks behind the head, `finalized` six."""
    scene = await start_scene(chain={"automine": False, "slots_in_an_epoch": 3})
    await scene.token.set_gas_money(STRANGER, 10**19)
    return scene


async def use(scene: Scene, buyer: Buyer, payment: Payment, how: str) -> None:
    """Somebody uses the authorization: as it is, with other terms, or to cancel it. One block."""
    signed: Any = payment.payload["authorization"]
    auth_nonce = bytes.fromhex(signed["nonce"][2:])
    if how == "cancelled":
        domain = {"name": "USDC", "version": "2", "chainId": 84532, "verifyingContract": payment.requirements.asset}
        types = {"CancelAuthorization": [{"name": "authorizer", "type": "address"}, {"name": "nonce", "type": "bytes32"}]}
        cancel = buyer.account.sign_typed_data(domain, types, {"authorizer": buyer.address, "nonce": auth_nonce})
        await scene.token.transact(STRANGER, CANCEL, buyer.address, auth_nonce, bytes(cancel.signature))
        return
    if how == "conflict":
        payment = scene.payment(buyer, amount_atomic=77, auth_nonce=signed["nonce"])
        signed = payment.payload["authorization"]
    signature = bytes.fromhex(str(payment.payload["signature"])[2:])
    numbers = [int(signed[name]) for name in ("value", "validAfter", "validBefore")]
    await scene.token.transact(STRANGER, TRANSFER, signed["from"], signed["to"], *numbers, auth_nonce, signature)


async def in_state(scene: Scene, state: str, *, mine: bool = True) -> None:
    deep_enough = SURE[SURE.index(state) :] if state in SURE else (state,)

    async def there() -> bool:
        return len(found := await scene.states()) == 1 and found[0] in deep_enough

    await scene.until(there, f"the settlement to be {state}", mine=mine)


async def incidents(scene: Scene) -> list[str]:
    return [row["kind"] for row in await scene.rows("select kind from incident order by incident_id")]


async def answer_on_record(scene: Scene) -> tuple[str, str | None]:
    [row] = await scene.rows("select answer ->> 'success' as success, answer ->> 'reason' as reason from settlement")
    return row["success"], row["reason"]


async def failed(scene: Scene, rig: Rig, **how: Any) -> tuple[Buyer, Payment]:
    """A payment whose buyer's money moved away before the block, and came back."""
    (buyer,) = await buyers(scene, 1)
    payment = scene.payment(buyer, **how)
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    task = await scene.settle_pooled(rig, payment)
    await drain(scene, buyer)
    scene.sim.pool.hold = None
    await scene.sim.mine()  # ours reverts; no block more, or the failure is final
    await scene.until(task.done, "the answer")
    assert reason(task.result()) is Reason.INSUFFICIENT_BALANCE
    await scene.token.fund([buyer.address], amount_atomic=10**6)
    return buyer, payment


async def withdrawn(scene: Scene) -> tuple[Rig, Buyer, Payment]:
    """A payment that nobody had a relayer for."""
    rig = await scene.engine(relayers=[])
    (buyer,) = await buyers(scene, 1)
    payment = scene.payment(buyer)
    task = scene.settle(rig, payment)
    await in_state(scene, "queued", mine=False)
    await rig.time_is_up(task)
    with pytest.raises(Exception, match="withdrawn"):
        await task
    assert await scene.states() == ["withdrawn"]
    return rig, buyer, payment


# --- used after we gave up ---


@pytest.mark.parametrize("how", USES)
async def test_a_failed_payment_that_somebody_uses_later_is_what_the_chain_says_with_an_incident(scene: Scene, how: str) -> None:
    rig = await scene.engine()
    buyer, payment = await failed(scene, rig)
    await use(scene, buyer, payment, how)

    await in_state(scene, how, mine=False)
    assert await incidents(scene) == ["used_late"]
    assert await answer_on_record(scene) == ("false", "INSUFFICIENT_BALANCE")
    assert reason(await scene.settle(rig, payment)) is Reason.INSUFFICIENT_BALANCE, "what was told stays told"
    await scene.finish(settled=0)


async def test_a_withdrawn_payment_that_somebody_executes_later_is_external(scene: Scene) -> None:
    rig, buyer, payment = await withdrawn(scene)
    await use(scene, buyer, payment, "external")
    await in_state(scene, "external", mine=False)
    assert await incidents(scene) == ["used_late"]
    assert reason(await scene.settle(rig, payment)) is Reason.SETTLEMENT_EXTERNAL
    await scene.finish(settled=0)


async def test_it_is_watched_across_a_restart(scene: Scene) -> None:
    first = await scene.engine()
    buyer, payment = await failed(scene, first)
    await scene.crash(first)
    await use(scene, buyer, payment, "external")
    await scene.engine()
    await in_state(scene, "external", mine=False)
    await scene.finish(settled=0)


async def test_nothing_is_watched_for_ever_and_a_payment_refused_for_its_time_is_expired_by_final_chain_time(scene: Scene) -> None:
    rig = await scene.engine(bump_blocks=1)
    valid_before = await scene.chain_time() + 60
    (buyer,) = await buyers(scene, 1)
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    task = await scene.settle_pooled(rig, scene.payment(buyer, valid_before=valid_before))
    await scene.node.call("evm_setNextBlockTimestamp", valid_before + 1)
    await scene.sim.mine()
    scene.sim.pool.hold = None
    assert reason(await scene.answer(task)) is Reason.EXPIRED

    await in_state(scene, "expired")
    assert await answer_on_record(scene) == ("false", "EXPIRED")
    assert await scene.rows("select from settlement where not closed") == []
    await scene.finish(settled=0)


async def test_a_failure_whose_time_is_over_is_watched_no_longer_and_stays_failed(scene: Scene) -> None:
    rig = await scene.engine()
    valid_before = await scene.chain_time() + 600
    await failed(scene, rig, valid_before=valid_before)
    await scene.node.call("evm_setNextBlockTimestamp", valid_before)
    await scene.sim.mine()
    [over] = await scene.rows("select clock_timestamp() as at")

    async def looked_at() -> bool:
        return bool(await scene.rows("select from settlement where nonce_checked_at > $1", over["at"]))

    async def closed() -> bool:
        return bool(await scene.rows("select from settlement where closed"))

    for _ in range(2):  # a second round begins when the first is done
        await scene.until(looked_at, "a look at a time that is over, but not for good")
        [over] = await scene.rows("select clock_timestamp() as at")
    assert not await closed()
    await scene.until(closed, "the watch to end", mine=True)
    assert await scene.states() == ["failed"]
    await scene.finish(settled=0)


async def test_a_round_is_bounded_and_reaches_all_in_turn(scene: Scene) -> None:
    rig = await scene.engine(watched_max=2, relayers=[])
    made = await buyers(scene, 5)
    payments = [scene.payment(buyer) for buyer in made]
    tasks = [scene.settle(rig, payment) for payment in payments]

    async def all_queued() -> bool:
        return await scene.states() == ["queued"] * 5

    await scene.until(all_queued, "all to be queued")
    await rig.time_is_up(*tasks)
    for task in tasks:
        with pytest.raises(Exception, match="withdrawn"):
            await task
    for buyer, payment in zip(made, payments, strict=True):
        await use(scene, buyer, payment, "external")

    async def all_found() -> bool:
        return await scene.states() == ["external"] * 5

    await scene.until(all_found, "all to be found")
    await scene.finish(settled=0)


# --- reorganisations of what others' use proved ---


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("how", USES)
async def test_a_block_that_proved_somebody_else_s_use_is_reorganised_away_and_we_pay_after_all(scene: Scene, how: str, depth: int) -> None:
    rig = await scene.engine()
    (buyer,) = await buyers(scene, 1)
    await scene.sim.mine(7)
    payment = scene.payment(buyer)
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    task = await scene.settle_pooled(rig, payment)
    before = await scene.block()
    await use(scene, buyer, payment, how)
    scene.sim.pool.hold = None
    await scene.sim.mine()  # ours reverts; no more blocks than these, or what they prove is final
    await scene.until(task.done, "the answer")
    assert reason(task.result()) is USES[how]
    await in_state(scene, how, mine=False)
    await scene.sim.mine(max(0, depth - (await scene.block() - before)))
    await scene.reorganise(await scene.block() - before)

    await in_state(scene, "included")
    assert "reorganised" in await incidents(scene)
    assert await answer_on_record(scene) == ("false", USES[how].name), "answers are not rewritten"
    assert len(scene.sent()) == 1, "the same bytes"
    await scene.finish(settled=1, told_stands=False)


async def test_a_late_use_that_is_reorganised_away_leaves_the_failure_as_it_was(scene: Scene) -> None:
    rig = await scene.engine()
    buyer, payment = await failed(scene, rig)
    [was] = await scene.rows("select reason, tx_hash from settlement")
    await scene.sim.mine(5)
    await use(scene, buyer, payment, "external")
    await in_state(scene, "external", mine=False)
    await scene.reorganise(1)
    await in_state(scene, "failed")
    [row] = await scene.rows("select reason, tx_hash, log_index from settlement")
    assert tuple(row) == (*was, None)
    assert await incidents(scene) == ["used_late", "reorganised"]
    await use(scene, buyer, payment, "external")
    await in_state(scene, "external", mine=False)
    await scene.finish(settled=0)


async def test_a_proof_in_another_block_than_our_own_reverted_transaction_falls_alone(scene: Scene) -> None:
    """The payment reverted for lack of money; while that was being looked into, somebody executed it. Only that block goes."""
    rig = await scene.engine()
    (buyer,) = await buyers(scene, 1)
    await scene.sim.mine(4)
    payment = scene.payment(buyer)
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    task = await scene.settle_pooled(rig, payment)
    await drain(scene, buyer)
    await scene.crash(rig)
    assert task.cancelled()
    scene.sim.pool.hold = None
    await scene.sim.mine()  # our transaction reverts
    await scene.token.fund([buyer.address], amount_atomic=10**6)
    await use(scene, buyer, payment, "external")
    await scene.engine()
    await in_state(scene, "external", mine=False)
    await scene.reorganise(1)

    await in_state(scene, "included")
    assert len(scene.sent()) == 2, "the first one is mined and did not pay: another one does"
    assert await incidents(scene) == ["reorganised"]
    await scene.finish(settled=1, told_stands=False)


# --- accepted from others ---


@pytest.mark.parametrize("level", ["latest", "safe", "finalized"])
async def test_a_tenant_that_accepts_others_execution_hears_one_success_at_its_level(scene: Scene, level: str) -> None:
    rig = await scene.engine()
    (buyer,) = await buyers(scene, 1)
    rules: dict[str, Any] = {"accept_external": True, "confirm_level": level}
    payment = scene.payment(buyer)
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    task = await scene.settle_pooled(rig, payment, **rules)
    await use(scene, buyer, payment, "external")
    scene.sim.pool.hold = None
    answer = await scene.answer(task)

    assert reason(answer) is None
    assert answer.result.tx_hash not in {sent.tx_hash for sent in scene.sent()}
    [row] = await scene.rows("select state, reason, tx_hash, answer_state, closed from settlement")
    assert (row["state"], row["reason"], row["tx_hash"], row["answer_state"]) == (
        "external",
        "SETTLEMENT_EXTERNAL",
        answer.result.tx_hash,
        "spent",
    )
    assert row["closed"] or level == "latest"
    assert [entry["phase"] for entry in await scene.rows("select phase from journal_entry where book = 'register' order by entry_id")] == [
        "pending",
        "voided",
    ]
    assert reason(await scene.settle(rig, payment, **rules)) is Reason.DUPLICATE_SETTLEMENT
    scene.told.clear()  # the oracle knows of our own payments only
    await scene.finish(settled=0)


@pytest.mark.parametrize("how", ["conflict", "cancelled"])
async def test_who_accepts_others_execution_accepts_the_matching_transfer_only(scene: Scene, how: str) -> None:
    rig = await scene.engine()
    (buyer,) = await buyers(scene, 1)
    payment = scene.payment(buyer)
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    task = await scene.settle_pooled(rig, payment, accept_external=True)
    await use(scene, buyer, payment, how)
    scene.sim.pool.hold = None
    assert reason(await scene.answer(task)) is USES[how]
    await scene.finish(settled=0)


async def test_a_withdrawn_payment_executed_by_another_is_one_success_for_who_accepts_that(scene: Scene) -> None:
    rig = await scene.engine(relayers=[])
    (buyer,) = await buyers(scene, 1)
    payment = scene.payment(buyer)
    task = scene.settle(rig, payment, accept_external=True)
    await in_state(scene, "queued", mine=False)
    await rig.time_is_up(task)
    with pytest.raises(Exception, match="withdrawn"):
        await task
    await use(scene, buyer, payment, "external")
    await in_state(scene, "external", mine=False)
    answers = [await scene.settle(rig, payment, accept_external=True) for _ in range(2)]
    assert [reason(answer) for answer in answers] == [None, Reason.DUPLICATE_SETTLEMENT]
    assert reason(await scene.settle(rig, payment, tenant="globex", accept_external=True)) is Reason.DUPLICATE_SETTLEMENT
    scene.told.clear()
    await scene.finish(settled=0)


# --- admitted again ---


@pytest.mark.parametrize("tenant", ["acme", "globex"])
async def test_until_what_carried_it_is_final_nobody_admits_a_failed_payment_again(scene: Scene, tenant: str) -> None:
    rig = await scene.engine(finality_poll_s=0.2)
    _, payment = await failed(scene, rig)
    if tenant == "acme":
        assert reason(await scene.settle(rig, payment)) is Reason.INSUFFICIENT_BALANCE
    else:
        with pytest.raises(Exception, match="not final yet"):
            await scene.settle(rig, payment, tenant="globex")

    async def final() -> bool:
        return [row["state"] for row in await scene.rows("select state from relayer_slot")] == ["finalized"]

    await scene.until(final, "finality", mine=True)
    answer = await scene.answer(await scene.settle_pooled(rig, payment, tenant=tenant))
    assert reason(answer) is None
    [row] = await scene.rows("select tenant_id, admissions from settlement")
    assert tuple(row) == (tenant, 2)
    await scene.finish(settled=1, told_stands=False)


async def test_what_a_stranger_s_transaction_displaced_is_admitted_again_once_that_is_final(scene: Scene) -> None:
    rig = await scene.engine()
    (buyer,) = await buyers(scene, 1)
    payment = scene.payment(buyer)
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    task = await scene.settle_pooled(rig, payment)
    await drain(scene, buyer)
    await scene.node.call("anvil_setNonce", scene.relayers[0].address, "0x1")
    scene.sim.pool.hold = None

    async def displaced() -> bool:
        return await scene.states() in (["failed"], ["queued"])

    await scene.until(displaced, "the stranger to be noticed", mine=True)
    await in_state(scene, "failed")
    assert reason(await scene.answer(task)) is Reason.INSUFFICIENT_BALANCE
    await scene.token.fund([buyer.address], amount_atomic=10**6)

    async def closed() -> bool:
        return bool(await scene.rows("select from relayer_slot where closed"))

    await scene.until(closed, "the stranger's transaction to be final", mine=True)
    second = await scene.engine(relayers=scene.relayers[1:])
    assert reason(await scene.answer(scene.settle(second, payment, tenant="globex"))) is None
