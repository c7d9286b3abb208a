"""The pool of relayers: shared fairly, bounded by money and slots, outbid when the chain lags, fed by subscription."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest
from eth_account.signers.local import LocalAccount

from facilitator.devstack.stack import Anvil
from facilitator.devstack.token import Token
from facilitator.errors import OverloadFault
from tests.fixtures.base_sim import Rules
from tests.fixtures.oracle import assert_ledger_is_chain
from tests.fixtures.waiting import PATIENCE_S
from tests.integration.settlement.conftest import NETWORK, Rig, decoded
from tests.integration.settlement.test_engine import NewBuyer, StartEngine, reason, terms

NewRelayer = Callable[..., Awaitable[LocalAccount]]
StartChain = Callable[..., Awaitable[Anvil]]


def held(rig: Rig) -> int:
    return sum(account.lease is not None for account in rig.engine._dispatchers[NETWORK].pool.accounts)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.02)


async def test_live_replicas_share_the_relayers_and_a_leaver_s_part_is_taken_over(
    start_engine: StartEngine, new_relayer: NewRelayer
) -> None:
    keys = [await new_relayer() for _ in range(4)]
    first = await start_engine(relayers=keys, ready=False)
    await until(lambda: held(first) == 4)
    second = await start_engine(relayers=keys, ready=False)

    await until(lambda: (held(first), held(second)) == (2, 2))

    owners = await first.fetch("select owner, count(*) from relayer group by owner")
    assert {row["owner"] for row in owners} == {first.engine.replica_id, second.engine.replica_id}
    await second.engine.stop(2.0)
    await until(lambda: held(first) == 4)


async def test_replicas_with_keys_of_their_own_hold_all_of_them(start_engine: StartEngine, new_relayer: NewRelayer) -> None:
    ours, theirs = [await new_relayer() for _ in range(2)], [await new_relayer() for _ in range(2)]
    first, second = await start_engine(relayers=ours, ready=False), await start_engine(relayers=theirs, ready=False)
    await until(lambda: (held(first), held(second)) == (2, 2))


async def test_an_account_with_code_signs_nothing(start_engine: StartEngine, new_relayer: NewRelayer, chain: Anvil) -> None:
    smart, plain = await new_relayer(), await new_relayer()
    await chain.node.call("anvil_setCode", smart.address, "0xef0100" + "22" * 20)
    rig = await start_engine(relayers=[smart, plain], ready=False)
    accounts = rig.engine._dispatchers[NETWORK].pool.accounts
    await until(lambda: all(account.adopted for account in accounts))
    await until(lambda: accounts[1].ready)
    assert (accounts[0].has_code, accounts[0].ready) == (True, False)
    renewed = accounts[0].renewed_at
    await until(lambda: accounts[0].renewed_at > renewed)
    assert not accounts[0].ready


async def test_without_gas_money_nothing_is_signed_and_funding_is_noticed(
    start_engine: StartEngine, new_buyer: NewBuyer, new_relayer: NewRelayer, token: Token
) -> None:
    relayer = await new_relayer(wei=1)
    rig = await start_engine(relayers=[relayer], balance_poll_s=0.1)
    rig.callers_wait(3.0)
    buyer, asked = await new_buyer(), terms()
    payment = decoded(buyer.pay(2, asked), asked)
    with pytest.raises(OverloadFault):
        await rig.engine.settle(rig.caller(), payment, None)
    assert await rig.fetch("select from settlement") == []
    rig.callers_wait(PATIENCE_S)

    await token.set_gas_money(relayer.address, 10**18)
    await until(lambda: (rig.engine._dispatchers[NETWORK].pool.accounts[0].balance_wei or 0) > 1)
    assert reason(await rig.engine.settle(rig.caller(), payment, None)) is None


async def test_a_transaction_that_misses_blocks_is_outbid_and_both_bids_stand_on_record(
    start_engine: StartEngine,
    new_buyer: NewBuyer,
    new_relayer: NewRelayer,
    start_chain: StartChain,
    start_sim: Any,
    database_url: str,
) -> None:
    anvil = await start_chain(automine=False)
    sim = await start_sim(node_url=anvil.rpc_url, rules=Rules())
    token = Token.at(anvil.rpc_url)
    relayer, buyer = await new_relayer(token=token), await new_buyer(token=token)
    rig = await start_engine(rpc_url=sim.url, relayers=[relayer], resend_s=0.1, bump_blocks=2)

    async def stored(tx_hash: str) -> None:
        assert await rig.fetch("select from relayer_transaction where tx_hash = $1", tx_hash)

    sim.on_raw = stored
    sim.pool.hold = lambda _: True  # the builder takes nothing of ours
    asked = terms()
    task = asyncio.create_task(rig.engine.settle(rig.caller(), decoded(buyer.pay(2, asked), asked), None))
    async with asyncio.timeout(PATIENCE_S):
        while len(await rig.fetch("select from relayer_transaction")) < 2:
            await sim.mine()
            await asyncio.sleep(0.05)
        sim.pool.hold = lambda _: False
        while not task.done():
            await sim.mine()
            await asyncio.wait([task], timeout=0.05)

    assert reason(task.result()) is None
    bids = await rig.fetch("select attempt, purpose, max_fee_wei, max_priority_fee_wei from relayer_transaction order by attempt")
    assert [row["purpose"] for row in bids][:2] == ["payment", "bump"]
    for low, high in pairwise(bids):
        assert high["max_fee_wei"] * 1000 >= low["max_fee_wei"] * 1125
        assert high["max_priority_fee_wei"] * 1000 >= low["max_priority_fee_wei"] * 1125
    assert len(await rig.fetch("select from relayer_slot")) == 1
    await assert_ledger_is_chain(database_url, anvil.rpc_url, settled=1)


async def test_a_halted_chain_takes_no_new_work_and_resumes(
    start_chain: StartChain, start_engine: StartEngine, new_buyer: NewBuyer, new_relayer: NewRelayer
) -> None:
    anvil = await start_chain(automine=False)
    token = Token.at(anvil.rpc_url)
    relayer, buyer = await new_relayer(token=token), await new_buyer(token=token)
    rig = await start_engine(rpc_url=anvil.rpc_url, relayers=[relayer], max_head_age_s=1)
    asked = terms()
    waiting = asyncio.create_task(rig.engine.settle(rig.caller(), decoded(buyer.pay(2, asked), asked), None))
    await until(rig.engine._watchers[NETWORK].halted)

    with pytest.raises(OverloadFault) as raised:
        await rig.engine.settle(rig.caller(), decoded(buyer.pay(2, asked), asked), None)
    assert raised.value.kind == "chain_halted"

    async with asyncio.timeout(PATIENCE_S):
        while not waiting.done():
            await anvil.node.call("evm_mine")
            await asyncio.wait([waiting], timeout=0.1)
    assert reason(waiting.result()) is None


async def test_new_heads_by_subscription_settle_without_waiting_for_a_poll(
    start_chain: StartChain, start_engine: StartEngine, new_buyer: NewBuyer, new_relayer: NewRelayer
) -> None:
    anvil = await start_chain()
    token = Token.at(anvil.rpc_url)
    relayer, buyer = await new_relayer(token=token), await new_buyer(token=token)
    rig = await start_engine(rpc_url=anvil.rpc_url, relayers=[relayer], poll_s=3600.0, ws_url=anvil.rpc_url.replace("http", "ws"))
    await anvil.node.call("evm_mine")
    await until(lambda: rig.engine._networks[NETWORK].head.pushed)
    asked = terms()
    answer = await rig.engine.settle(rig.caller(), decoded(buyer.pay(2, asked), asked), None)
    assert reason(answer) is None
