"""Payments share transactions under load, and none suffers for another."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from facilitator.devstack.buyer import Buyer
from facilitator.devstack.stack import Anvil
from facilitator.devstack.token import BASE_SEPOLIA_USDC, Token, calldata
from facilitator.protocol.reasons import Reason
from facilitator.settlement.admission import Caller
from facilitator.store.tenants import Tenant
from tests.fixtures.oracle import assert_ledger_is_chain
from tests.fixtures.waiting import PATIENCE_S
from tests.integration.settlement.conftest import NETWORK, decoded
from tests.integration.settlement.test_engine import NewBuyer, StartEngine, reason, terms

_SINGLE_GAS_USED = 85_680


async def test_a_load_shares_transactions_and_each_proof_is_hash_and_log_index(
    start_engine: StartEngine, new_buyer: NewBuyer, chain: Anvil, database_url: str
) -> None:
    rig, buyer = await start_engine(), await new_buyer()
    asked = terms(amount_atomic=100)
    payments = [decoded(buyer.pay(2, asked), asked) for _ in range(60)]

    answers = await asyncio.gather(*(rig.engine.settle(rig.caller(), payment, None) for payment in payments))

    assert {reason(answer) for answer in answers} == {None}
    assert len({(answer.result.tx_hash, answer.result.log_index) for answer in answers}) == 60
    assert sum(answer.result.shared_transaction for answer in answers) >= 50
    slots = await rig.fetch("select kind, gas_used from relayer_slot join relayer_transaction using (slot_id) order by tx_nonce")
    assert len(slots) < 10
    assert sum(row["gas_used"] for row in slots) < 0.7 * 60 * _SINGLE_GAS_USED
    await assert_ledger_is_chain(database_url, chain.rpc_url, settled=60)


async def test_a_lone_payment_is_never_wrapped(start_engine: StartEngine, new_buyer: NewBuyer) -> None:
    rig, buyer, asked = await start_engine(), await new_buyer(), terms()
    answer = await rig.engine.settle(rig.caller(), decoded(buyer.pay(2, asked), asked), None)
    assert reason(answer) is None
    assert not answer.result.shared_transaction
    assert [row["kind"] for row in await rig.fetch("select kind from relayer_slot")] == ["single"]


async def test_a_relayer_whose_money_pays_for_no_batch_sends_what_it_can_and_keeps_no_other_from_sending(
    start_engine: StartEngine, new_buyer: NewBuyer, new_relayer: Callable[..., Awaitable[Any]], chain: Anvil, database_url: str
) -> None:
    relayers = [await new_relayer(), await new_relayer()]
    rig, buyer = await start_engine(relayers=relayers, balance_poll_s=3600.0), await new_buyer()
    dispatcher = rig.engine._dispatchers[NETWORK]
    dispatcher.pool.accounts[0].balance_wei = int(2.5 * dispatcher.pool.most_wei(1))
    asked = terms(amount_atomic=100)

    answers = await asyncio.gather(*(rig.engine.settle(rig.caller(), decoded(buyer.pay(2, asked), asked), None) for _ in range(40)))

    assert {reason(answer) for answer in answers} == {None}
    await assert_ledger_is_chain(database_url, chain.rpc_url, settled=40)


async def test_a_tenant_that_does_not_share_gets_transactions_of_its_own(start_engine: StartEngine, new_buyer: NewBuyer) -> None:
    rig, buyer = await start_engine(), await new_buyer()
    asked = terms(amount_atomic=100)
    alone = Caller(tenant=Tenant(tenant_id="acme", shared_transactions=False), request_id="alone")
    callers = [rig.caller("globex")] * 24 + [alone] * 2
    answers = await asyncio.gather(*(rig.engine.settle(caller, decoded(buyer.pay(2, asked), asked), None) for caller in callers))
    assert {reason(answer) for answer in answers} == {None}
    assert not any(answer.result.shared_transaction for answer in answers[-2:])
    assert any(answer.result.shared_transaction for answer in answers[:24])


async def test_a_payer_whose_money_lasts_for_some_pays_those_and_the_rest_hear_why(
    start_engine: StartEngine, new_buyer: NewBuyer, chain: Anvil, database_url: str
) -> None:
    rig, rich, poor = await start_engine(), await new_buyer(), await new_buyer(amount_atomic=450)
    asked = terms(amount_atomic=100)
    payments = [decoded(buyer.pay(2, asked), asked) for buyer in [rich] * 12 + [poor] * 12]

    answers = await asyncio.gather(*(rig.engine.settle(rig.caller(), payment, None) for payment in payments))

    outcomes = [reason(answer) for answer in answers]
    assert outcomes[:12] == [None] * 12
    assert outcomes[12:].count(None) == 4
    assert set(outcomes[12:]) <= {None, Reason.INSUFFICIENT_BALANCE, Reason.TRANSACTION_FAILED}
    await assert_ledger_is_chain(database_url, chain.rpc_url, settled=16)


async def test_a_bug_while_planning_pays_nobody_who_was_told_of_it(
    start_engine: StartEngine, new_buyer: NewBuyer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, buyer, asked = await start_engine(slots_soft=1, slots_max=1), await new_buyer(), terms()
    dispatcher = rig.engine._dispatchers[NETWORK]
    alone = Caller(tenant=Tenant(tenant_id="acme", shared_transactions=False), request_id="alone")
    payments = [decoded(buyer.pay(2, asked), asked) for _ in range(3)]

    async def broken(*_: object) -> None:
        monkeypatch.undo()
        raise RuntimeError("planted")

    monkeypatch.setattr(dispatcher.pool, "payable_together", broken)
    async with dispatcher.pool.writing:  # all three form one group, of which one has room
        settling = [asyncio.create_task(rig.engine.settle(alone, payment, None)) for payment in payments]
        async with asyncio.timeout(PATIENCE_S):
            while len(dispatcher._queue) < 3:
                await asyncio.sleep(0.01)
    outcomes = await asyncio.gather(*settling, return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["planted"] * 3

    again = await rig.engine.settle(alone, decoded(buyer.pay(2, asked), asked), None)

    assert reason(again) is None
    assert len(await rig.fetch("select from settlement")) == 1


async def test_an_item_that_fails_on_chain_is_tried_again_alone_while_the_others_are_paid(
    start_chain: Callable[..., Awaitable[Anvil]], start_engine: StartEngine, new_buyer: NewBuyer, new_relayer: Any, database_url: str
) -> None:
    anvil = await start_chain(automine=False)
    token = Token.at(anvil.rpc_url)
    relayer = await new_relayer(token=token)
    buyers: list[Buyer] = [await new_buyer(token=token) for _ in range(8)]
    rig = await start_engine(rpc_url=anvil.rpc_url, relayers=[relayer], batch_min=1)
    asked = terms(amount_atomic=100)
    payments = [decoded(buyer.pay(2, asked), asked) for buyer in buyers]
    settling = [asyncio.create_task(rig.engine.settle(rig.caller(), payment, None)) for payment in payments]
    async with asyncio.timeout(PATIENCE_S):
        while len(await rig.fetch("select from slot_item")) < 8:
            await asyncio.sleep(0.01)
    # The last buyer's balance leaves and comes back: its item fails in the batch, and would pay afterwards.
    balance_slot = await _balance_slot(anvil, buyers[-1].address)
    before = await anvil.node.call("eth_getStorageAt", BASE_SEPOLIA_USDC, balance_slot, "latest")
    await anvil.node.call("anvil_setStorageAt", BASE_SEPOLIA_USDC, balance_slot, "0x" + "00" * 32)
    await anvil.node.call("evm_mine")
    await anvil.node.call("anvil_setStorageAt", BASE_SEPOLIA_USDC, balance_slot, before)
    async with asyncio.timeout(PATIENCE_S):
        while not all(task.done() for task in settling):
            await anvil.node.call("evm_mine")
            await asyncio.wait(settling, timeout=0.1)

    assert {reason(task.result()) for task in settling} == {None}
    moves = await rig.fetch("select to_state from settlement_move join settlement using (settlement_id) where alone order by move")
    assert [row["to_state"] for row in moves] == ["submitted", "queued", "submitted", "included"]
    assert not settling[-1].result().result.shared_transaction
    await assert_ledger_is_chain(database_url, anvil.rpc_url, settled=8)


async def _balance_slot(anvil: Anvil, account: str) -> str:
    """The storage slot of an account's balance: the one that `balanceOf` reads and whose word is the balance."""
    call = {"to": BASE_SEPOLIA_USDC, "data": calldata("balanceOf(address)", account)}
    access: Any = await anvil.node.call("eth_createAccessList", call, "latest")
    balance = int(str(await anvil.node.call("eth_call", call, "latest")), 16)
    for entry in access["accessList"]:
        for key in entry["storageKeys"]:
            word = int(str(await anvil.node.call("eth_getStorageAt", BASE_SEPOLIA_USDC, key, "latest")), 16)
            if entry["address"].lower() == BASE_SEPOLIA_USDC.lower() and word == balance:
                return str(key)
    raise AssertionError("no storage slot holds the balance")
