"""Smart wallets that pay (modes 29 to 31 in docs/faults.md): each kind is paid once, and each misdeed costs its cap at most."""

import asyncio
import itertools
import time
from typing import Any

import pytest
from eth_abi.abi import encode

from facilitator.devstack.accounts import dev_account
from facilitator.devstack.buyer import Buyer
from facilitator.devstack.token import MULTICALL3, transact
from facilitator.domain import probes
from facilitator.domain.transactions import read_call
from facilitator.domain.wallets import Rules
from facilitator.errors import OverloadFault
from facilitator.protocol.messages import VerifyResult
from facilitator.protocol.reasons import Reason
from facilitator.store import administration
from tests.fault.test_modes_costs import oracle_says
from tests.fixtures.base_sim import Hang
from tests.fixtures.scene import AMOUNT, PAY_TO, Scene, reason
from tests.fixtures.waiting import PATIENCE_S
from tests.fixtures.wallets import (
    DEPLOYS,
    FACTORY,
    IMPLEMENTATION,
    Misdeed,
    WalletBuyer,
    delegated,
    deployed,
    install_factory,
    misbehave,
    undeployed,
)
from tests.integration.settlement.conftest import Rig

_numbers = itertools.count(1)
CAP = 500_000
SOME = 250_000
"""Gas that a wallet burns which goes on afterwards."""
FUNDS = 10**6


async def contract(scene: Scene, prefix: bytes = b"passkey") -> WalletBuyer:
    buyer = await deployed(scene.node, next(_numbers), prefix)
    await scene.token.fund([buyer.address], amount_atomic=FUNDS)
    return buyer


async def delegating(scene: Scene) -> Buyer:
    """A key whose account's code is the wallet's, by a transaction of type 4."""
    number = next(_numbers)
    buyer = await delegated(scene.node, dev_account("delegating", number), sponsor=dev_account("sponsor", number))
    await scene.token.fund([buyer.address], amount_atomic=FUNDS)
    return buyer


async def new(scene: Scene, **how: Any) -> WalletBuyer:
    """A wallet that the factory is to make, with money."""
    await install_factory(scene.node)
    buyer = undeployed(next(_numbers), **how)
    await scene.token.fund([buyer.address], amount_atomic=FUNDS)
    return buyer


async def slots(scene: Scene) -> dict[str, Any]:
    """Mined transactions by hash: kind, limit, what they took."""
    rows = await scene.rows(
        "select tx_hash, kind, gas, gas_used from relayer_slot join relayer_transaction using (slot_id) where gas_used is not null"
    )
    return {row["tx_hash"]: row for row in rows}


async def test_every_kind_of_wallet_is_paid_once_alone_and_within_its_gas(scene: Scene) -> None:
    rig = await scene.engine(batching="adaptive", batch_min=1, wallets=DEPLOYS)
    first = await new(scene)
    wallets: list[Buyer] = [await contract(scene), await contract(scene, b""), await delegating(scene), first]
    tasks = [scene.settle(rig, scene.payment(each)) for each in wallets] + [scene.settle(rig) for _ in range(6)]

    answers = await scene.answers(tasks)

    assert [reason(answer) for answer in answers] == [None] * 10
    mined = await slots(scene)
    for buyer, answer in zip(wallets, answers, strict=False):
        row = mined[answer.result.tx_hash]
        assert row["kind"] == "contract_payer"
        assert not answer.result.shared_transaction
        assert row["gas_used"] < row["gas"] <= (DEPLOYS.deployment_gas_max if buyer is first else CAP), row
        assert row["gas"] < 2 * row["gas_used"], "measured, not guessed"
        assert await scene.token.balance_of(buyer.address) == FUNDS - AMOUNT
    assert len({answer.result.tx_hash for answer in answers[:4]}) == 4
    again = await scene.answer(scene.settle(rig, scene.payment(first)))  # wrapped as before, though it is deployed by now
    assert reason(again) is None
    assert (await slots(scene))[again.result.tx_hash]["gas"] < mined[answers[3].result.tx_hash]["gas"] / 2
    await scene.finish(settled=11)


SEEN = (Misdeed.BURN_ALL, Misdeed.REVERT, Misdeed.RETURN_MUCH, Misdeed.SAY_NO)


async def test_mode_30_what_a_wallet_does_in_the_simulation_is_refused_before_a_relayer_pays_for_it(scene: Scene) -> None:
    rig = await scene.engine(wallets=DEPLOYS)
    asked: dict[str, Buyer] = {}
    for misdeed in SEEN:
        asked[f"contract {misdeed.name}"] = await contract(scene)
        asked[f"delegated {misdeed.name}"] = await delegating(scene)  # its key signs, and its code refuses
        for name in ("contract", "delegated"):
            await misbehave(scene.node, asked[f"{name} {misdeed.name}"].address, misdeed)
        asked[f"new {misdeed.name}"] = await new(scene, misdeed=misdeed)

    answers = await asyncio.gather(*(scene.settle(rig, scene.payment(buyer)) for buyer in asked.values()))

    reasons = {name: reason(answer) for name, answer in zip(asked, answers, strict=True)}
    expected = dict.fromkeys(asked, Reason.SIGNATURE)
    expected |= {"delegated BURN_ALL": Reason.SIMULATION_FAILED, "new RETURN_MUCH": Reason.DEPLOYMENT_FAILED}
    assert reasons == expected
    assert scene.sent() == [], "nobody paid for it"
    await scene.finish(settled=0)


async def test_mode_30_what_a_wallet_does_only_in_the_block_costs_its_cap_at_most_and_is_not_tried_again(scene: Scene) -> None:
    rig = await scene.engine(wallets=DEPLOYS)
    asked: dict[str, Buyer] = {}
    for misdeed in (*SEEN, Misdeed.BURN_SOME, Misdeed.CALL_THE_TOKEN):
        asked[f"contract {misdeed.name}"] = await contract(scene)
        asked[f"delegated {misdeed.name}"] = await delegating(scene)
        for name in ("contract", "delegated"):
            await misbehave(scene.node, asked[f"{name} {misdeed.name}"].address, misdeed, in_block=True, gas=SOME)
        asked[f"new {misdeed.name}"] = await new(scene, misdeed=misdeed, in_block=True, gas=SOME)

    answers = await scene.answers([scene.settle(rig, scene.payment(buyer)) for buyer in asked.values()])

    mined = await slots(scene)
    assert len(mined) == len(scene.sent()) == len(asked), "one transaction each, whatever came of it"
    for name, answer in zip(asked, answers, strict=True):
        row = mined[answer.result.tx_hash]
        assert row["gas_used"] <= row["gas"] <= (DEPLOYS.deployment_gas_max if name.startswith("new") else CAP), (name, row)
        if "BURN_ALL" in name:
            assert row["gas"] < row["gas_used"] * 105 // 100, "it burned what it was given"
            assert row["gas"] < (500_000 if name.startswith("new") else 200_000), "and it was given little: it seemed to need little"
        if "BURN_SOME" not in name:
            assert reason(answer) is (None if "CALL_THE_TOKEN" in name else Reason.TRANSACTION_FAILED), name
    await scene.finish(settled=sum(reason(answer) is None for answer in answers))


async def test_mode_30_a_wallet_that_burns_again_and_again_is_never_given_more_for_it(scene: Scene) -> None:
    rig = await scene.engine()
    buyer = await contract(scene)
    await misbehave(scene.node, buyer.address, Misdeed.BURN_ALL, in_block=True)
    for _ in range(3):
        await scene.answer(scene.settle(rig, scene.payment(buyer)))
    limits = [row["gas"] for row in (await slots(scene)).values()]
    assert len(limits) == 3
    assert max(limits) - min(limits) < 1_000, limits
    strikes = await scene.rows("select tenant_id, of_payer from strike where not voided")
    assert [tuple(strike) for strike in strikes] == [("acme", True)] * 3, "its tenant and itself are struck each time"
    await scene.finish(settled=0)


async def test_a_wallets_payment_that_is_valid_from_the_next_block_on_is_given_the_most_for_nobody_could_measure_it(scene: Scene) -> None:
    """The token stops its simulation in the last block before the wallet is asked: what that took says nothing."""
    rig = await scene.engine()
    wallets = [await contract(scene), await delegating(scene)]
    await scene.sim.mine()
    newest: Any = await scene.node.call("eth_getBlockByNumber", "latest", False)
    now = int(newest["timestamp"], 16)
    await scene.until(lambda: time.time() >= now + 1, "the wall clock to be ahead of the chain")
    tasks = [scene.settle(rig, scene.payment(buyer, valid_after=now)) for buyer in wallets]
    await scene.until(lambda: len(scene.sent()) == 2 or any(task.done() for task in tasks), "both signed before the next block")

    answers = await scene.answers(tasks)

    assert [reason(answer) for answer in answers] == [None] * 2
    assert [row["gas"] for row in (await slots(scene)).values()] == [CAP] * 2
    await scene.finish(settled=2)


async def test_payers_code_that_keeps_a_node_busy_keeps_no_plain_payment_waiting(scene: Scene) -> None:
    rig = await scene.engine(request_timeout_s=PATIENCE_S)
    wallets = [await contract(scene) for _ in range(9)]
    lane = rig.engine._networks[scene.network].doubts
    hanging = Hang(method="eth_call", where=lambda call: probes.CREATION_CODE.hex() in str(call.params[0]))
    async with scene.sim.faults(hanging):
        stuck: list[asyncio.Task[VerifyResult]] = []
        for buyer in wallets:
            stuck.append(asyncio.create_task(rig.engine.verify(rig.caller(), scene.payment(buyer))))
            await scene.until(lambda: len(lane._waiting) + len(lane._under_way) >= len(stuck), "one request after the other")
        assert (await rig.engine.verify(rig.caller(), scene.payment())).refusal is None
    scene.sim.release()
    await asyncio.gather(*stuck, return_exceptions=True)
    await scene.finish(settled=0)


async def test_mode_29_a_wallet_that_changes_its_mind_on_the_way_costs_its_cap_and_may_ask_again(scene: Scene) -> None:
    rig = await scene.engine()
    contracted, key = await contract(scene), await delegating(scene)
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    tasks = [await scene.settle_pooled(rig, scene.payment(buyer)) for buyer in (contracted, key)]
    for buyer in (contracted, key):
        await misbehave(scene.node, buyer.address, Misdeed.SAY_NO)
    scene.sim.pool.hold = None

    answers = await scene.answers(tasks)

    assert [reason(answer) for answer in answers] == [Reason.SIGNATURE] * 2
    assert all(row["gas_used"] <= row["gas"] <= CAP for row in (await slots(scene)).values())
    assert [reason(await scene.settle(rig, scene.payment(buyer))) for buyer in (contracted, key)] == [Reason.SIGNATURE] * 2
    assert len(scene.sent()) == 2
    await misbehave(scene.node, key.address, Misdeed.NONE)
    assert reason(await scene.answer(scene.settle(rig, scene.payment(key)))) is None
    await scene.finish(settled=1)


async def test_a_delegation_that_ends_on_the_way_leaves_the_keys_own_signature(scene: Scene) -> None:
    rig = await scene.engine()
    key = await delegating(scene)
    task = await scene.settle_pooled(rig, scene.payment(key))
    await scene.node.call("anvil_setCode", key.address, "0x")
    assert reason(await scene.answer(task)) is None
    await scene.finish(settled=1)


async def test_mode_31_no_factory_can_be_made_to_move_anything_but_its_wallet(scene: Scene) -> None:
    rig = await scene.engine(wallets=DEPLOYS)
    grant = bytes.fromhex("095ea7b3") + encode(["address", "uint256"], [PAY_TO, 10**12])
    calls_the_token = await new(scene, creation=Misdeed.RETURN_MUCH, target=scene.token.asset, data=grant)
    burns = await new(scene, creation=Misdeed.BURN_ALL)
    reverts = await new(scene, creation=Misdeed.REVERT)
    listed = await new(scene)
    unlisted = WalletBuyer(listed.account, wallet=listed.wallet, prefix=b"x", deployment=(scene.token.asset, grant))
    itself = WalletBuyer(dev_account("no wallet", 1), wallet=dev_account("no wallet", 1).address, deployment=(FACTORY, bytes(33)))
    asked = (burns, reverts, unlisted, itself, WalletBuyer(listed.account, wallet=listed.wallet, deployment=(FACTORY, b"")))

    answers = await asyncio.gather(*(scene.settle(rig, scene.payment(buyer)) for buyer in asked))

    assert [reason(answer) for answer in answers] == [
        Reason.DEPLOYMENT_FAILED,
        Reason.DEPLOYMENT_FAILED,
        Reason.FACTORY_NOT_ALLOWED,
        Reason.DEPLOYMENT_FAILED,  # a key's own signature is no reason to call a factory
        Reason.UNDEPLOYED_WALLET,
    ]
    assert scene.sent() == []
    assert reason(await scene.answer(scene.settle(rig, scene.payment(calls_the_token)))) is None
    granted = [await scene.token.read("allowance(address,address)", "uint256", each, PAY_TO) for each in given_away(scene, calls_the_token)]
    assert granted == [10**12, *[0] * (len(granted) - 1)], "a wallet may give away its own in its creation, and nothing else"
    await scene.finish(settled=1)


def given_away(scene: Scene, buyer: Buyer) -> list[str]:
    """Whose money a deployment might reach: the wallet's, and that of everybody on the way to it."""
    return [buyer.address, FACTORY, MULTICALL3, *(relayer.address for relayer in scene.relayers)]


async def test_mode_31_somebody_else_deploys_the_wallet_first(scene: Scene) -> None:
    rig = await scene.engine(wallets=DEPLOYS)
    buyer = await new(scene)
    assert buyer.deployment is not None
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    task = await scene.settle_pooled(rig, scene.payment(buyer))
    stranger = dev_account("stranger", 1).address
    await scene.token.set_gas_money(stranger, 10**18)
    await transact(scene.node, stranger, FACTORY, "0x" + buyer.deployment[1].hex())
    scene.sim.pool.hold = None
    assert reason(await scene.answer(task)) is None
    await scene.finish(settled=1)


async def test_where_wallets_are_off_or_none_is_deployed_they_hear_so_before_anything_is_signed(scene: Scene) -> None:
    off, deployed_only = await scene.engine(wallets=Rules(mode="off")), await scene.engine(relayers=[])
    buyers = [await contract(scene), await delegating(scene), await new(scene)]
    told = [reason(await scene.settle(off, scene.payment(buyer))) for buyer in buyers]
    assert told == [Reason.SMART_WALLET_UNSUPPORTED] * 3
    assert reason(await scene.settle(deployed_only, scene.payment(buyers[2]))) is Reason.UNDEPLOYED_WALLET
    assert scene.sent() == []
    await scene.finish(settled=0)


async def test_no_wallet_is_deployed_for_a_tenant_without_a_gas_budget(scene: Scene) -> None:
    rig = await scene.engine(wallets=DEPLOYS)
    buyer, there = await new(scene), await contract(scene)
    await budget(rig, None)
    for told in (
        (await rig.engine.verify(rig.caller(), scene.payment(buyer))).refusal,
        (await scene.settle(rig, scene.payment(buyer))).result.refusal,
    ):
        assert told is not None
        assert told.reason is Reason.UNDEPLOYED_WALLET
        assert "gasWeiPerDay or gasUsdPerDay" in told.message
    assert scene.sent() == []
    assert reason(await scene.answer(scene.settle(rig, scene.payment(there)))) is None, "one that is deployed pays as ever"
    await budget(rig, str(10**18))
    assert reason(await scene.answer(scene.settle(rig, scene.payment(buyer)))) is None
    await scene.finish(settled=2)


async def test_a_wallet_that_waits_to_be_deployed_goes_on_waiting_when_its_tenant_has_no_budget_any_more(scene: Scene) -> None:
    front = await scene.engine(relayers=[], wallets=DEPLOYS)
    task = scene.settle(front, scene.payment(await new(scene)))
    await scene.until(lambda: queued(scene, 1), "it to be queued")
    await budget(front, None)
    back = await scene.engine(wallets=DEPLOYS, budgets=False)
    await scene.until(lambda: back.engine._dispatchers[scene.network].claims._put_off, "it to be looked at and put off")
    await front.time_is_up(task)
    with pytest.raises(OverloadFault) as raised:
        await task
    assert raised.value.kind == "not_sent"
    assert scene.sent() == []
    await scene.finish(settled=0)


async def budget(rig: Rig, wei: str | None) -> None:
    """Give the tenant this gas budget, or none, and have the engine know it."""
    await administration.change_tenant(rig.db, "cli me", "acme", {}, limits={"gasWeiPerDay": wei})
    await rig.engine._restraints._read()


async def test_of_one_wallet_one_transaction_is_in_flight_and_others_do_not_wait_for_it(scene: Scene) -> None:
    rig = await scene.engine(wallet_waiting_max=1)
    buyer = await contract(scene)
    scene.sim.pool.hold = lambda transaction: transaction.tx_nonce < 2
    first = await scene.settle_pooled(rig, scene.payment(buyer))
    second = scene.settle(rig, scene.payment(buyer))
    await scene.until(lambda: rig.engine._dispatchers[scene.network]._queue._aside, "the second to be set aside")
    with pytest.raises(OverloadFault) as third:
        await scene.settle(rig, scene.payment(buyer))
    assert third.value.kind == "wallet_busy"
    other = await scene.settle_pooled(rig)
    assert [row["kind"] for row in await scene.rows("select kind from relayer_slot order by tx_nonce")] == ["contract_payer", "single"]
    scene.sim.pool.hold = None

    answers = await scene.answers([first, second, other])

    assert [reason(answer) for answer in answers] == [None] * 3
    blocks = {row["tx_hash"]: row["block_number"] for row in await scene.rows("select tx_hash, block_number from settlement")}
    assert blocks[answers[0].result.tx_hash] < blocks[answers[1].result.tx_hash]
    await scene.finish(settled=3)


async def test_what_a_wallet_costs_is_held_against_the_cap_by_its_size_and_gas(scene: Scene) -> None:
    rig = await scene.engine(l1_fee_poll_s=0.05, payment_cost_cap_wei=10**15)
    buyer = await contract(scene)
    await oracle_says(scene, l1_fee_wei=6 * 10**14)
    await scene.until(lambda: rig.engine._watchers[scene.network].pricing.l1_fee_wei, "the fee to be read")
    with pytest.raises(OverloadFault) as raised:
        await scene.settle(rig, scene.payment(buyer))
    assert raised.value.kind == "gas_price_too_high"
    assert reason(await scene.answer(scene.settle(rig))) is None, "a key's payment has half the data"
    await scene.finish(settled=1)


async def test_a_wallet_that_there_is_no_money_for_holds_up_nobody(scene: Scene) -> None:
    rig = await scene.engine(deadline_s=3.0, max_fee_floor_wei=10**10)  # what is bid does not fall with the blocks
    buyer, [account] = await contract(scene), rig.engine._dispatchers[scene.network].pool.accounts
    enough_wei = rig.engine._dispatchers[scene.network].pool.most_wei(1) * 5 // 4
    await scene.token.set_gas_money(account.address, enough_wei)
    await scene.until(lambda: account.balance_wei == enough_wei, "the balance to be read")
    waits = scene.settle(rig, scene.payment(buyer))
    await scene.until(lambda: rig.engine._dispatchers[scene.network]._queue._aside or waits.done(), "the wallet's payment to be set aside")
    assert reason(await scene.answer(scene.settle(rig))) is None
    with pytest.raises(OverloadFault) as raised:
        await waits
    assert raised.value.kind == "not_sent"
    await scene.finish(settled=1)


@pytest.mark.parametrize("where", ["here", "in the queue"])
async def test_a_wallet_is_paid_for_by_a_relayer_that_has_the_money_though_another_has_as_much_room(scene: Scene, where: str) -> None:
    back = await scene.engine(relayers=scene.relayers, max_fee_floor_wei=10**10)  # what is bid does not fall with the blocks
    front = back if where == "here" else await scene.engine(relayers=[])
    pool = back.engine._dispatchers[scene.network].pool
    poor, rich = pool.accounts
    enough_wei = pool.most_wei(1) * 5 // 4
    await scene.token.set_gas_money(poor.address, enough_wei)
    await scene.until(lambda: poor.balance_wei == enough_wei, "the balance to be read")
    assert pool.choose()[0] is poor, "it has as much room as the other"

    assert reason(await scene.answer(scene.settle(front, scene.payment(await contract(scene))))) is None

    assert [row["relayer"] for row in await scene.rows("select relayer from relayer_slot")] == [rich.address]
    await scene.finish(settled=1)


@pytest.mark.parametrize("where", ["here", "in the queue"])
async def test_a_wallet_that_there_is_no_money_for_leaves_the_one_slot_to_others_and_is_paid_when_there_is(
    scene: Scene, where: str
) -> None:
    back = await scene.engine(max_fee_floor_wei=10**10, slots_soft=1, slots_max=1)
    front = back if where == "here" else await scene.engine(relayers=[])
    buyer, [account] = await contract(scene), back.engine._dispatchers[scene.network].pool.accounts
    enough_wei = back.engine._dispatchers[scene.network].pool.most_wei(1) * 5 // 4
    await scene.token.set_gas_money(account.address, enough_wei)
    await scene.until(lambda: account.balance_wei == enough_wei, "the balance to be read")
    waits = scene.settle(front, scene.payment(buyer))
    queue = back.engine._dispatchers[scene.network]._queue
    await scene.until((lambda: queue._all or queue._aside) if front is back else (lambda: queued(scene, 1)), "it to wait")
    assert reason(await scene.answer(scene.settle(front))) is None
    await scene.sim.mine()  # anvil changes the newest block's balances: not those of the block that holds the payment
    await scene.token.set_gas_money(account.address, 10**19)
    assert reason(await scene.answer(waits)) is None
    await scene.finish(settled=2)


async def test_what_a_replica_without_relayers_queued_is_judged_afresh_by_the_one_that_signs(scene: Scene) -> None:
    front = await scene.engine(relayers=[], wallets=DEPLOYS)
    buyers = [await contract(scene), await delegating(scene), await new(scene)]
    buyers.append(buyers[0])
    tasks = [scene.settle(front, scene.payment(buyer)) for buyer in buyers]
    await scene.until(lambda: queued(scene, 4), "all in the queue")
    await scene.engine(wallets=DEPLOYS)

    answers = await scene.answers(tasks)

    assert [reason(answer) for answer in answers] == [None] * 4
    assert {row["kind"] for row in (await slots(scene)).values()} == {"contract_payer"}
    await scene.finish(settled=4)


async def queued(scene: Scene, count: int) -> bool:
    return await scene.states() == ["queued"] * count


async def test_after_a_crash_a_wallets_transaction_is_sent_and_outbid_as_it_stands_on_record(scene: Scene) -> None:
    rig = await scene.engine(wallets=DEPLOYS)
    buyers = [await contract(scene), await new(scene)]
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    for buyer in buyers:
        await scene.settle_pooled(rig, scene.payment(buyer))
    await scene.crash(rig)
    await scene.node.call("anvil_setCode", IMPLEMENTATION, "0x")
    heir = await scene.engine(wallets=DEPLOYS, bump_blocks=1)

    async def outbid() -> bool:
        return len(await scene.attempts()) > len(buyers)

    await scene.until(outbid, "a higher bid", mine=True)
    scene.sim.pool.hold = None

    async def paid() -> bool:
        return await scene.states() == ["included"] * 2

    await scene.until(paid, "both payments", mine=True)
    rows = await scene.rows("select slot_id, raw, gas from relayer_transaction where purpose <> 'noop' order by slot_id, attempt")
    said = {(row["slot_id"], read_call(row["raw"]).data, row["gas"]) for row in rows}
    assert len(rows) > len(said) == 2, "the same call with the same gas, whatever is bid"
    assert heir.engine._watchers[scene.network]._open == {}
    await scene.finish(settled=2)
