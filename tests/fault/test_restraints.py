"""Who wants us to spend gas: budgets that hold on a real chain, strikes for what burned it, and who is not struck."""

import asyncio
from typing import Any

import pytest
from prometheus_client import REGISTRY

from facilitator.devstack.buyer import Buyer
from facilitator.domain.limits import Limits
from facilitator.protocol.messages import Payment
from facilitator.protocol.reasons import Reason
from facilitator.settlement.restraints import LimitReached
from facilitator.store import administration
from tests.fault.conftest import StartScene
from tests.fault.test_modes_chain import batched, buyers, drain
from tests.fixtures.base_sim import Rules
from tests.fixtures.scene import Scene, reason
from tests.fixtures.wallets import deployed
from tests.integration.settlement.conftest import Rig

UNKNOWN: dict[str, Any] = {"limits_poll_s": 600.0}
"""The engine knows what it read when it started."""
AT_ONCE: dict[str, Any] = {"limits_poll_s": 0.05}
RIVAL = "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)"


async def budget(rig: Rig, tenant: str, **limits: str | int | None) -> None:
    await administration.change_tenant(rig.db, "cli me", tenant, {}, limits=limits)


def one(scene: Scene, rig: Rig) -> str:
    """Wei that suffice for one payment in flight, and not for two."""
    return str(rig.engine._dispatchers[scene.network].need_wei() * 3 // 2)


async def known(scene: Scene, rig: Rig, tenant: str) -> None:
    """The engine has read the tenant's budgets."""
    await scene.until(lambda: tenant in rig.engine._restraints._budgets, "the budget to be read")


async def gas(scene: Scene) -> dict[tuple[str, str], tuple[int, int]]:
    """Held and spent by tenant and unit, of all days."""
    rows = await scene.rows("select tenant_id, unit, sum(held)::bigint as held, sum(spent)::bigint as spent from gas_day group by 1, 2")
    return {(row["tenant_id"], row["unit"]): (row["held"], row["spent"]) for row in rows}


async def balance(scene: Scene) -> int:
    return int(str(await scene.node.call("eth_getBalance", scene.relayers[0].address, "latest")), 16)


async def strikes(scene: Scene) -> list[tuple[str, str, bool]]:
    rows = await scene.rows("select tenant_id, reason, of_payer from strike where not voided order by struck_at")
    return [(row["tenant_id"], row["reason"], row["of_payer"]) for row in rows]


async def struck(scene: Scene, rig: Rig, payer: Buyer, **rules: Any) -> None:
    """A payment of this payer burns gas: its money moves away between our simulation and the block."""
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    task = await scene.settle_pooled(rig, scene.payment(payer), **rules)
    await drain(scene, payer)
    scene.sim.pool.hold = None
    assert reason(await scene.answer(task)) is Reason.INSUFFICIENT_BALANCE
    await scene.token.fund([payer.address], amount_atomic=10**6)


async def word(rig: Rig, payment: Payment, tenant: str = "acme", **rules: Any) -> Reason | str | None:
    """What `/verify` says: a reason, or the name of the limit that was reached."""
    try:
        refusal = (await rig.engine.verify(rig.caller(tenant, **rules), payment)).refusal
    except LimitReached as reached:
        return reached.breach.limit
    return refusal.reason if refusal else None


async def test_a_budget_that_no_replica_has_read_refuses_its_tenant_in_the_write_ahead_and_nobody_beside_it(scene: Scene) -> None:
    rig = await scene.engine(**UNKNOWN)
    await budget(rig, "acme", gasWeiPerDay="1")
    async with rig.db.transaction() as blocker:  # while one write-ahead waits, the others gather
        await blocker._connection.execute("select from relayer for update")
        first = scene.settle(rig, tenant="globex")
        await scene.until(rig.engine._dispatchers[scene.network].pool.writing.locked, "the first write-ahead")
        poor, other = scene.settle(rig), scene.settle(rig, tenant="globex")
        await scene.until(lambda: len(rig.engine._dispatchers[scene.network]._queue) == 2, "both in the queue")
    with pytest.raises(LimitReached) as raised:
        await asyncio.shield(poor)
    answers = await scene.answers([first, other])

    assert [reason(answer) for answer in answers] == [None, None]
    breach = raised.value.breach
    assert (breach.limit, breach.facts | {"needs": ""}) == ("gasWeiPerDay", {"max": "1", "left": "1", "needs": "", "unit": "wei"})
    assert breach.frees_s is not None
    assert 0 < breach.frees_s <= 24 * 3600
    assert {row["tenant_id"] for row in await scene.rows("select tenant_id from settlement")} == {"globex"}
    assert await word(rig, scene.payment()) == "gasWeiPerDay", "it is known from now on"
    with pytest.raises(LimitReached):
        await scene.settle(rig)
    await scene.finish(settled=2)


async def test_what_is_under_way_goes_on_without_a_budget_and_a_repeat_hears_the_truth(scene: Scene) -> None:
    rig = await scene.engine(**AT_ONCE)
    await budget(rig, "acme", gasWeiPerDay=one(scene, rig))
    await known(scene, rig, "acme")
    payment = scene.payment()
    task = await scene.settle_pooled(rig, payment)
    await budget(rig, "acme", gasWeiPerDay="0")

    async def gone() -> bool:
        return await word(rig, scene.payment()) == "gasWeiPerDay"

    await scene.until(gone, "the budget to be known as gone")
    repeat = scene.settle(rig, payment)
    assert reason(await scene.answer(task)) is None
    assert reason(await scene.answer(repeat)) is Reason.DUPLICATE_SETTLEMENT
    await scene.finish(settled=1)


async def test_what_is_queued_for_another_replica_is_signed_within_the_budget_only(scene: Scene) -> None:
    """The replica that admits has no relayer, and has not read the budget; the one that signs holds it."""
    front = await scene.engine(relayers=[], ready=False, **UNKNOWN)
    back = await scene.engine(**UNKNOWN)
    await budget(back, "acme", gasWeiPerDay="1")
    task = scene.settle(front)
    await scene.until(lambda: back.engine._dispatchers[scene.network].claims._put_off, "it to be put off for want of a budget")
    await front.time_is_up(task)
    assert getattr(task.exception(), "kind", None) == "not_sent"
    assert await scene.states() == ["withdrawn"]
    assert await gas(scene) == {}
    await budget(back, "acme", gasWeiPerDay=one(scene, back))
    again = scene.settle(front, scene.payment())
    assert reason(await scene.answer(again)) is None
    await scene.finish(settled=1)


async def test_the_gas_of_all_tenants_together_is_what_the_relayers_balances_fell_by(start_scene: StartScene) -> None:
    scene = await start_scene(chain={"automine": False, "slots_in_an_epoch": 2})
    rig = await scene.engine(batching="adaptive", batch_min=1, **UNKNOWN)
    for tenant in ("acme", "globex"):
        await budget(rig, tenant, gasWeiPerDay=str(10**18))
    before = await balance(scene)
    payers = await buyers(scene, 6)
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    tasks = await batched(scene, rig, payers, [scene.buyer.address] * 6)
    tasks.append(await scene.settle_pooled(rig, scene.payment(payers[0]), tenant="globex"))
    held = await gas(scene)
    assert all(wei > 0 for wei, _ in held.values())
    assert len(held) == 2
    for payer in payers[1:3]:
        await drain(scene, payer)
    scene.sim.pool.hold = None
    answers = await scene.answers(tasks)
    assert [reason(answer) for answer in answers].count(None) == 6
    await scene.finish(settled=6)

    told = await gas(scene)
    assert [wei for wei, _ in told.values()] == [0, 0], "nothing is held once nothing is open"
    assert sum(spent for _, spent in told.values()) == before - await balance(scene)
    assert [row[:2] for row in await strikes(scene)] == [("acme", "INSUFFICIENT_BALANCE")] * 2


async def test_a_higher_bid_that_no_budget_pays_for_gives_way_to_a_no_op_and_what_it_carried_waits(start_scene: StartScene) -> None:
    scene = await start_scene(rules=Rules(bump_percent=10))
    rig = await scene.engine(bump_blocks=1, deadline_s=60.0, **UNKNOWN)
    await budget(rig, "acme", gasWeiPerDay=one(scene, rig))
    scene.sim.pool.hold = lambda transaction: transaction.data != b""
    poor = await scene.settle_pooled(rig)
    await budget(rig, "acme", gasWeiPerDay="0")
    other = await scene.settle_pooled(rig, tenant="globex")

    async def cleared() -> bool:
        return "noop" in [attempt["purpose"] for attempt in await scene.attempts()]

    await scene.until(cleared, "the no-op", mine=True)
    assert [attempt["purpose"] for attempt in await scene.attempts() if attempt["tx_nonce"] == 0] == ["payment", "noop"], "no bump"
    scene.sim.pool.hold = None
    assert reason(await scene.answer(other)) is None
    cost = "select i.cost_wei from slot_item i join relayer_slot using (slot_id) where tx_nonce = 0 and cost_wei > 0"

    async def over() -> bool:
        return bool(await scene.rows(cost))

    await scene.until(over, "the slot's end", mine=True)
    [(_, spent)] = [found for (tenant, _), found in (await gas(scene)).items() if tenant == "acme"]
    [row] = await scene.rows(cost)
    assert spent == row["cost_wei"], "the no-op is its tenant's"
    assert await strikes(scene) == []
    await budget(rig, "acme", gasWeiPerDay=one(scene, rig))
    assert reason(await scene.answer(poor)) is None, "paid once its budget is there"
    await scene.finish(settled=2)


async def test_a_payer_that_burns_gas_rests_at_every_replica_and_others_do_not(scene: Scene) -> None:
    rig = await scene.engine(**AT_ONCE, payer_strikes_max=2)
    other = await scene.engine(relayers=[], ready=False, **AT_ONCE, payer_strikes_max=2)
    (payer,) = await buyers(scene, 1)
    for _ in range(2):
        assert await word(rig, scene.payment(payer)) is None
        await struck(scene, rig, payer)
    assert await strikes(scene) == [("acme", "INSUFFICIENT_BALANCE", True)] * 2

    async def rests() -> bool:
        return {await word(each, scene.payment(payer)) for each in (rig, other)} == {Reason.PAYER_COOLING_DOWN}

    await scene.until(rests, "both replicas to know")
    answer = await scene.settle(rig, scene.payment(payer))
    assert answer.result.refusal is not None
    assert answer.result.refusal.reason is Reason.PAYER_COOLING_DOWN
    assert answer.result.refusal.evidence["until"] in answer.result.refusal.message
    assert await word(other, scene.payment(payer), "globex") is Reason.PAYER_COOLING_DOWN, "whoever's it is"
    assert await word(other, scene.payment(payer), limits=Limits(payer_strikes_max=3)) is None, "a tenant may bear more"
    assert await word(other, scene.payment()) is None
    await scene.rows("update strike set voided = true")

    async def forgiven() -> bool:
        return await word(other, scene.payment(payer)) is None

    await scene.until(forgiven, "strikes to be forgiven")
    await scene.finish(settled=0)


async def test_a_tenant_s_strikes_are_counted_together_and_a_reorganisation_takes_one_back(scene: Scene) -> None:
    rig = await scene.engine(**AT_ONCE)
    first, second = await buyers(scene, 2)
    own = Limits(strikes_max=2)
    await scene.sim.mine(6)
    await struck(scene, rig, first)
    await struck(scene, rig, second)

    async def rests() -> bool:
        return await word(rig, scene.payment(), limits=own) == "strikesMax"

    await scene.until(rests, "the tenant to rest")
    with pytest.raises(LimitReached) as raised:
        await rig.engine.settle(rig.caller(limits=own), scene.payment(), None)
    assert raised.value.breach.facts == {"max": 2, "strikes": 2, "paid": 0, "left": 0}
    assert 0 < (raised.value.breach.frees_s or 0) <= rig.settings.cool_down_s
    assert await word(rig, scene.payment(), "globex", limits=own) is None
    [row] = await scene.rows("select max(block_number) as mined from relayer_slot")
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    await scene.reorganise(await scene.block() - row["mined"] + 1)

    async def taken_back() -> bool:
        return len(await strikes(scene)) == 1 and await word(rig, scene.payment(), limits=own) is None

    await scene.until(taken_back, "the strike to be taken back", mine=True)
    await scene.finish(settled=0)
    assert len(await strikes(scene)) == 2, "mined again, and in vain again"


async def test_a_tenant_whose_payments_outweigh_its_strikes_does_not_rest(scene: Scene) -> None:
    """Strangers with accounts enough can strike a shop as often as they like; while as many others pay there, it stays open."""
    rig = await scene.engine(**UNKNOWN, tenant_strikes_max=2)
    payers = await buyers(scene, 3)

    async def told() -> Reason | str | None:
        await rig.engine._restraints._read()
        return await word(rig, scene.payment())

    for _ in range(2):
        assert reason(await scene.answer(scene.settle(rig))) is None
    assert reason(await scene.answer(scene.settle(rig, tenant="globex"))) is None, "whose payments say nothing of another's"
    for payer in payers[:2]:
        await struck(scene, rig, payer)
    assert await told() is None
    await struck(scene, rig, payers[2])
    assert await told() == "strikesMax", "three strikes, and two were paid"
    assert REGISTRY.get_sample_value("facilitator_cooling_down", {"who": "tenant"}) == 1
    with pytest.raises(LimitReached) as raised:
        await rig.engine.verify(rig.caller(), scene.payment())
    assert raised.value.breach.facts == {"max": 2, "strikes": 3, "paid": 2, "left": 0}
    await scene.finish(settled=3)


async def test_gauges_count_who_is_refused_for_a_spent_budget_or_by_a_bound_of_its_own(scene: Scene) -> None:
    rig = await scene.engine(**AT_ONCE)

    async def told(spent: int, cooling: int) -> None:
        def shown() -> bool:
            found = [
                REGISTRY.get_sample_value("facilitator_gas_budgets_exhausted"),
                REGISTRY.get_sample_value("facilitator_cooling_down", {"who": "tenant"}),
            ]
            return found == [spent, cooling]

        await scene.until(shown, f"{spent} spent budgets and {cooling} tenants at rest")

    await budget(rig, "acme", gasWeiPerDay=one(scene, rig))
    await known(scene, rig, "acme")
    assert await word(rig, scene.payment()) is None
    await told(0, 0)
    await budget(rig, "acme", gasWeiPerDay=str(int(one(scene, rig)) // 3))  # not nothing, and too little for one more
    await refused(scene, rig, "gasWeiPerDay")
    await told(1, 0)
    await budget(rig, "acme", gasWeiPerDay=None)
    await told(0, 0)
    (payer,) = await buyers(scene, 1)
    await struck(scene, rig, payer)
    await told(0, 0)
    await budget(rig, "acme", strikesMax=1)
    await told(0, 1)
    await budget(rig, "acme", strikesMax=None)
    await told(0, 0)
    await scene.finish(settled=0)


async def refused(scene: Scene, rig: Rig, limit: str) -> None:
    """Return when the tenant's payments are refused by this limit."""

    async def is_refused() -> bool:
        return await word(rig, scene.payment()) == limit

    await scene.until(is_refused, f"{limit} to refuse")


async def test_what_another_sender_executed_is_a_strike_of_the_tenant_alone(scene: Scene) -> None:
    rig = await scene.engine(**AT_ONCE, payer_strikes_max=1)
    payment = scene.payment()
    signed: Any = payment.payload["authorization"]
    numbers = [int(signed[name]) for name in ("value", "validAfter", "validBefore")]
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    task = await scene.settle_pooled(rig, payment)
    signature = bytes.fromhex(str(payment.payload["signature"])[2:])
    arguments = [signed["from"], signed["to"], *numbers, bytes.fromhex(signed["nonce"][2:]), signature]
    await scene.token.transact(scene.relayers[1].address, RIVAL, *arguments)
    scene.sim.pool.hold = None
    assert reason(await scene.answer(task)) is Reason.SETTLEMENT_EXTERNAL
    assert await strikes(scene) == [("acme", "SETTLEMENT_EXTERNAL", False)], "committed with the answer"
    assert await word(rig, scene.payment()) is None, "the payer is not struck"
    await scene.finish(settled=0)


async def informed(scene: Scene, spare_tenths: int) -> Rig:
    """An engine that has read the budget of `acme`, a payment and so many tenths of one, and reads it no more."""
    first = await scene.engine(relayers=scene.relayers[1:], **UNKNOWN)
    need_wei = first.engine._dispatchers[scene.network].need_wei()
    await budget(first, "acme", gasWeiPerDay=str(need_wei + need_wei * spare_tenths // 10))
    rig = await scene.engine(**UNKNOWN)
    await known(scene, rig, "acme")
    return rig


async def test_what_the_chain_refuses_takes_nothing_of_its_tenants_budget(scene: Scene) -> None:
    rig = await informed(scene, 5)
    penniless = await buyers(scene, 2)
    for buyer in penniless:
        await drain(scene, buyer)
    told = await asyncio.gather(*(scene.settle(rig, scene.payment(buyer)) for buyer in penniless))
    assert [reason(answer) for answer in told] == [Reason.INSUFFICIENT_BALANCE] * 2
    assert reason(await scene.answer(scene.settle(rig))) is None, "strangers without money do not use up a tenant's gas"
    await scene.finish(settled=1)


async def test_a_wallet_that_the_budget_is_too_small_for_is_refused_before_the_write_ahead(scene: Scene) -> None:
    rig = await informed(scene, 0)
    wallet = await deployed(scene.node, 9_001, b"passkey" * 400)  # so long that it needs more than a key
    await scene.token.fund([wallet.address], amount_atomic=10**6)
    with pytest.raises(LimitReached) as raised:
        await scene.settle(rig, scene.payment(wallet))
    assert raised.value.breach.limit == "gasWeiPerDay"
    assert reason(await scene.answer(scene.settle(rig))) is None
    await scene.finish(settled=1)
