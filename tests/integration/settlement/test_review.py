"""What must hold when something goes wrong at the worst moment: each of these was once a way to lose a payment or an answer."""

import asyncio
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any

import pytest

from facilitator.chain.evm import Settings as EvmSettings
from facilitator.devstack.accounts import dev_account
from facilitator.devstack.stack import Anvil
from facilitator.devstack.token import BASE_SEPOLIA_USDC, Token, calldata, transact
from facilitator.errors import OverloadFault, StoreFault
from facilitator.protocol.reasons import Reason
from facilitator.settlement import dispatcher
from facilitator.settlement.dispatcher import InDoubtFault
from facilitator.store import settlements
from facilitator.store.settlements import Answer
from tests.fixtures.waiting import PATIENCE_S
from tests.integration.settlement.conftest import NETWORK, Rig, decoded, given_up
from tests.integration.settlement.test_engine import NewBuyer, StartEngine, reason, terms, told
from tests.integration.settlement.test_outcomes import Bench, bench

__all__ = ["bench"]

StartChain = Callable[..., Awaitable[Anvil]]


async def until(rig: Rig, sql: str, expected: object, *, mine: Bench | None = None, within_s: float = PATIENCE_S) -> None:
    """Wait until the first column of the only row is what is expected."""
    found: object = None
    try:
        async with asyncio.timeout(within_s):
            while True:
                rows = await rig.fetch(sql)
                found = rows[0][0] if rows else None
                if found == expected or (expected == "included" and found in {"safe", "finalized"}):
                    return
                if mine is not None:
                    await mine.call("evm_mine")
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"{sql}: {found!r}, not {expected!r}") from None


# --- the chain and the watcher ---


async def test_a_slot_that_another_replica_opened_again_is_taken_up_by_its_owner(
    start_chain: StartChain, start_engine: StartEngine, new_buyer: NewBuyer
) -> None:
    anvil = await start_chain(automine=False, slots_in_an_epoch=2)
    token = Token.at(anvil.rpc_url)
    relayer = dev_account("relayer", 1)
    await token.set_gas_money(relayer.address, 10**19)
    buyer = await new_buyer(token=token)
    owner = await start_engine(rpc_url=anvil.rpc_url, relayers=[relayer], resend_s=0.2, finality_poll_s=3600.0)
    other = await start_engine(rpc_url=anvil.rpc_url, relayers=[], finality_poll_s=3600.0)
    here = Bench(anvil, token, owner, buyer)
    for _ in range(3):
        await here.call("evm_mine")
    task, _, _ = await here.start_settling()
    assert reason(await here.mine_until_done(task)) is None
    [row] = await owner.fetch("select block_number from settlement")
    await here.call("anvil_reorg", int(await here.call("eth_blockNumber"), 16) - int(row[0]) + 1, [])
    await here.call("evm_mine")
    await here.call("evm_mine")

    await other.engine._finalities[NETWORK].check()

    await until(owner, "select state from settlement", "included", mine=here)


async def test_the_payers_other_transfers_do_not_hide_what_became_of_an_authorization(bench: Bench) -> None:
    bench.rig.evm._settings = EvmSettings(logs_max=3)
    task, _, _ = await bench.start_settling()
    await bench.call("anvil_dropAllTransactions")
    await bench.token.set_gas_money(bench.buyer.address, 10**18)
    balance = await bench.token.balance_of(bench.buyer.address)
    for amount in (1, 1, 1, 1, balance - 4):
        await transact(
            bench.anvil.node, bench.buyer.address, BASE_SEPOLIA_USDC, calldata("transfer(address,uint256)", bench.stranger, amount)
        )

    answer = await bench.mine_until_done(task)

    assert reason(answer) is Reason.INSUFFICIENT_BALANCE
    assert await bench.state() == "failed"


async def test_a_used_authorization_whose_log_is_not_to_be_seen_is_not_queued_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    task, payment, _ = await bench.start_settling()
    await bench.execute_elsewhere(payment)
    relayer = bench.rig.engine.supported().signers["eip155:*"][0]
    await bench.call("anvil_setNonce", relayer, "0x1")

    async def none(*_: object, **__: object) -> tuple[()]:
        return ()

    with monkeypatch.context() as patched:
        patched.setattr(bench.rig.evm, "logs", none)
        looks = bench.rig.evm.rpc.requests_sent
        while bench.rig.evm.rpc.requests_sent < looks + 100:  # it looks, again and again
            await bench.call("evm_mine")
            await asyncio.sleep(0.02)
        assert await bench.state() == "submitted"
        assert await bench.rig.fetch("select status from relayer") == [("active",)]

    assert reason(await bench.mine_until_done(task)) is Reason.SETTLEMENT_EXTERNAL


async def test_every_slot_that_a_stranger_used_up_is_resolved_though_the_relayer_is_quarantined_by_the_first(
    bench: Bench,
) -> None:
    asked = terms()
    tasks = []
    for _ in range(3):
        message = decoded(bench.buyer.pay(2, asked), asked)
        tasks.append(asyncio.create_task(bench.rig.engine.settle(bench.rig.caller(), message, None)))
    await bench.pooled(3)
    await bench.call("anvil_dropAllTransactions")
    await bench.call("anvil_setNonce", bench.rig.engine.supported().signers["eip155:*"][0], "0x3")

    await until(bench.rig, "select count(*) from relayer_slot where state = 'consumed_externally'", 3, mine=bench)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_open_slots_of_a_quarantined_relayer_are_found_out_about_after_a_restart(bench: Bench, start_engine: StartEngine) -> None:
    task, _, _ = await bench.start_settling()
    await bench.rig.fetch("update relayer set status = 'quarantined'")
    await bench.rig.engine.stop(0.5)
    await asyncio.wait([task])

    await start_engine(rpc_url=bench.anvil.rpc_url, relayers=[dev_account("relayer", 1)], ready=False, resend_s=0.2)

    await until(bench.rig, "select state from settlement", "included", mine=bench)


async def test_what_a_reorganised_block_ended_otherwise_is_open_again_and_counts_when_we_pay_after_all(bench: Bench) -> None:
    for _ in range(4):
        await bench.call("evm_mine")
    task, payment, _ = await bench.start_settling()
    await bench.execute_elsewhere(payment)
    assert reason(await bench.mine_until_done(task)) is Reason.SETTLEMENT_EXTERNAL
    [row] = await bench.rig.fetch("select block_number from relayer_slot")
    [foreign] = await bench.rig.fetch("select block_number from settlement")
    depth = int(await bench.call("eth_blockNumber"), 16) - min(int(row[0]), int(foreign[0])) + 1
    await bench.call("anvil_reorg", depth, [])

    await until(bench.rig, "select state from settlement", "included", mine=bench)
    phases = [row["phase"] for row in await bench.rig.fetch("select phase from journal_entry where book = 'register' order by entry_id")]
    assert phases == ["pending", "voided", "pending"]


# --- the way out ---


async def test_a_deadline_during_the_write_ahead_never_says_that_nothing_was_signed(
    start_engine: StartEngine, new_buyer: NewBuyer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, buyer, asked = await start_engine(deadline_s=2.0), await new_buyer(), terms()
    monkeypatch.setattr(dispatcher, "_RECORD_S", PATIENCE_S)
    clock = rig.engine._clock
    async with rig.db.transaction() as blocker:
        await blocker._connection.execute("select from relayer for update")
        task = asyncio.create_task(rig.engine.settle(rig.caller(), decoded(buyer.pay(2, asked), asked), None))
        over = clock.monotonic() + rig.settings.deadline_s
        while clock.monotonic() <= over:
            await asyncio.sleep(0.05)
        assert not task.done()

    answer = await task

    assert reason(answer) in {Reason.SETTLEMENT_PENDING, None}
    assert answer.result.tx_hash is not None


async def test_a_queued_payment_that_the_chain_does_not_tell_about_keeps_nobody_else_waiting(
    start_engine: StartEngine, new_buyer: NewBuyer, chain: Anvil, token: Token
) -> None:
    front = await start_engine(relayers=[])
    asked = terms()
    stuck, honest = [(buyer, buyer.pay(2, asked)) for buyer in (await new_buyer(), await new_buyer())]
    tasks = []
    for count, (_, payment) in enumerate((stuck, honest), start=1):
        tasks.append(asyncio.create_task(front.engine.settle(front.caller(), decoded(payment, asked), None)))
        await until(front, "select count(*) from settlement", count)
    auth, signature = stuck[1]["payload"]["authorization"], stuck[1]["payload"]["signature"]
    stranger = dev_account("stranger", 7).address
    await token.set_gas_money(stranger, 10**18)
    await transact(
        chain.node,
        stranger,
        BASE_SEPOLIA_USDC,
        calldata(
            "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)",
            auth["from"],
            auth["to"],
            int(auth["value"]),
            int(auth["validAfter"]),
            int(auth["validBefore"]),
            bytes.fromhex(auth["nonce"][2:]),
            bytes.fromhex(signature[2:]),
        ),
    )
    await front.fetch("update settlement set admitted_block = 1000000000 where payer = $1", stuck[0].address.lower())

    await start_engine(slots_max=1)

    async with asyncio.timeout(PATIENCE_S):
        assert reason(await tasks[1]) is None
    assert not tasks[0].done()
    tasks[0].cancel()
    await asyncio.wait([tasks[0]])


async def test_what_was_admitted_again_since_it_was_judged_is_not_claimed(start_engine: StartEngine, new_buyer: NewBuyer) -> None:
    front = await start_engine(relayers=[])
    buyer, asked = await new_buyer(), terms()
    task = asyncio.create_task(front.engine.settle(front.caller(), decoded(buyer.pay(2, asked), asked), None))
    await until(front, "select state from settlement", "queued")
    judged = await settlements.list_queued(front.db, NETWORK, 10)
    await front.time_is_up(task)
    assert isinstance(task.exception(), OverloadFault)  # withdrawn
    again = asyncio.create_task(
        front.engine.settle(front.caller("globex"), decoded(buyer.pay(2, asked, auth_nonce=judged[0].auth_nonce), asked), None)
    )
    await until(front, "select state from settlement", "queued")

    async with front.db.transaction() as session:
        assert await settlements.claim_queued(session, judged) == set()
        assert len(await settlements.claim_queued(session, await settlements.list_queued(front.db, NETWORK, 10))) == 1

    again.cancel()
    await asyncio.wait([again])


async def test_who_waits_in_postgres_is_served_while_this_replica_has_plenty_of_its_own(
    start_chain: StartChain, start_engine: StartEngine, new_buyer: NewBuyer
) -> None:
    anvil = await start_chain(block_time_s=1)
    token = Token.at(anvil.rpc_url)
    relayer = dev_account("relayer", 1)
    await token.set_gas_money(relayer.address, 10**19)
    owner = await start_engine(rpc_url=anvil.rpc_url, relayers=[relayer], slots_soft=2, slots_max=2, batching="off")
    front = await start_engine(rpc_url=anvil.rpc_url, relayers=[])
    buyer, asked = await new_buyer(token=token), terms(amount_atomic=100)
    own = [asyncio.create_task(owner.engine.settle(owner.caller(), decoded(buyer.pay(2, asked), asked), None)) for _ in range(40)]
    await until(owner, "select count(*) > 0 from settlement", True)

    answer = await front.engine.settle(front.caller(), decoded(buyer.pay(2, asked), asked), None)

    assert reason(answer) is None
    assert not all(task.done() for task in own)
    for task in own:
        task.cancel()
    await asyncio.wait(own)


# --- answers ---


class Doubt:
    """A statement of the store that the first time loses its answer: done, or not done at all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, *, done: bool, module: ModuleType = settlements) -> None:
        self.times = 0
        original = getattr(module, name)

        async def doubtful(*arguments: Any) -> Any:
            self.times += 1
            if self.times > 1:
                return await original(*arguments)
            if done:
                await original(*arguments)
            raise StoreFault("store_unavailable", "the connection was lost")

        monkeypatch.setattr(module, name, doubtful)


async def test_a_write_ahead_whose_answer_was_lost_is_found_on_record_by_its_own_caller(
    start_engine: StartEngine, new_buyer: NewBuyer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, buyer, asked = await start_engine(), await new_buyer(), terms()
    doubt = Doubt(monkeypatch, "write_ahead", done=True)

    answer = await rig.engine.settle(rig.caller(), decoded(buyer.pay(2, asked), asked), None)

    assert doubt.times == 1
    assert reason(answer) is None
    assert await rig.fetch("select state, answer_state from settlement") == [("included", "spent")]


async def test_a_write_ahead_that_was_not_done_is_done_again(
    start_engine: StartEngine, new_buyer: NewBuyer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, buyer, asked = await start_engine(), await new_buyer(), terms()
    Doubt(monkeypatch, "write_ahead", done=False)

    assert reason(await rig.engine.settle(rig.caller(), decoded(buyer.pay(2, asked), asked), None)) is None


async def test_a_claim_of_the_answer_slot_whose_answer_was_lost_keeps_the_truth_from_nobody(
    start_engine: StartEngine, new_buyer: NewBuyer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, buyer, asked = await start_engine(), await new_buyer(), terms()
    payment = decoded(buyer.pay(2, asked), asked)
    first = await rig.engine.settle(rig.caller(), payment, None)
    assert first.ticket is not None
    await rig.engine.undelivered(first.ticket)
    Doubt(monkeypatch, "take_answer", done=True)

    assert reason(await rig.engine.settle(rig.caller(), payment, None)) is Reason.SETTLEMENT_PENDING
    assert reason(await told(rig, payment)) is None
    assert reason(await rig.engine.settle(rig.caller(), payment, None)) is Reason.DUPLICATE_SETTLEMENT


async def test_a_withdrawal_in_doubt_is_said_to_be_and_is_made_good(
    start_engine: StartEngine, new_buyer: NewBuyer, monkeypatch: pytest.MonkeyPatch
) -> None:
    front, buyer, asked = await start_engine(relayers=[]), await new_buyer(), terms()
    Doubt(monkeypatch, "withdraw", done=False)

    with pytest.raises(InDoubtFault):
        await given_up(front, decoded(buyer.pay(2, asked), asked))

    await until(front, "select state from settlement", "withdrawn")


async def test_who_is_admitted_again_does_not_hear_what_the_earlier_admission_came_to(
    start_engine: StartEngine, new_buyer: NewBuyer
) -> None:
    front, buyer, asked = await start_engine(relayers=[]), await new_buyer(), terms()
    payment = decoded(buyer.pay(2, asked), asked)
    with pytest.raises(OverloadFault):
        await given_up(front, payment)
    [row] = await front.fetch("select settlement_id from settlement")

    with front.engine._board.seat(row["settlement_id"]) as seat:  # somebody who waited for the earlier one has not left yet
        seat.answer = Answer(success=False, reason="INSUFFICIENT_BALANCE")
        again = asyncio.create_task(front.engine.settle(front.caller(), payment, None))
        await until(front, "select state from settlement", "queued")
        await front.time_is_up(again)
        assert isinstance(again.exception(), OverloadFault)


async def test_a_success_that_was_reorganised_away_untold_is_told_once_it_is_true_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(4):
        await bench.call("evm_mine")
    task, _, message = await bench.start_settling()
    first = await bench.mine_until_done(task)
    assert first.ticket is not None
    await bench.rig.engine.undelivered(first.ticket)
    [row] = await bench.rig.fetch("select block_number from settlement")
    await bench.call("anvil_reorg", int(await bench.call("eth_blockNumber"), 16) - int(row[0]) + 1, [])
    await until(bench.rig, "select state from settlement", "submitted")

    again = asyncio.create_task(bench.rig.engine.settle(bench.rig.caller(), message, None))
    looks, records = 0, settlements.records

    async def counted(*arguments: Any) -> Any:
        nonlocal looks
        looks += 1
        return await records(*arguments)

    monkeypatch.setattr(settlements, "records", counted)
    async with asyncio.timeout(PATIENCE_S):
        while looks < 3:
            await asyncio.sleep(0.01)
    assert not again.done()
    assert reason(await bench.mine_until_done(again)) is None


async def test_a_withdrawn_payment_keeps_no_idempotency_key(start_engine: StartEngine, new_buyer: NewBuyer) -> None:
    front, buyer, asked = await start_engine(relayers=[]), await new_buyer(), terms()

    for _ in range(2):  # signed afresh, as a buyer does when the first is about to expire
        with pytest.raises(OverloadFault):
            await given_up(front, decoded(buyer.pay(2, asked), asked), key="order-7")


async def test_a_failure_is_told_again_to_its_own_idempotency_key_though_it_might_be_paid_now(
    start_engine: StartEngine, new_buyer: NewBuyer, chain: Anvil, token: Token
) -> None:
    front = await start_engine(relayers=[])
    buyer, asked = await new_buyer(), terms()
    payment = decoded(buyer.pay(2, asked), asked)
    first = asyncio.create_task(front.engine.settle(front.caller(), payment, "order-8"))
    await until(front, "select state from settlement", "queued")
    await token.set_gas_money(buyer.address, 10**18)
    away = calldata("transfer(address,uint256)", dev_account("stranger", 8).address, await token.balance_of(buyer.address))
    await transact(chain.node, buyer.address, BASE_SEPOLIA_USDC, away)
    owner = await start_engine()
    failure = await first
    assert reason(failure) is Reason.INSUFFICIENT_BALANCE
    await token.fund([buyer.address], amount_atomic=10_000_000)

    assert (await owner.engine.settle(owner.caller(), payment, "order-8")).result == failure.result
    assert reason(await owner.engine.settle(owner.caller(), payment, "order-9")) is None


async def test_another_tenant_hears_the_hash_that_paid_but_not_our_id_of_it(start_engine: StartEngine, new_buyer: NewBuyer) -> None:
    rig, buyer, asked = await start_engine(), await new_buyer(), terms()
    payment = decoded(buyer.pay(2, asked), asked)
    first = await rig.engine.settle(rig.caller(), payment, None)

    other = await rig.engine.settle(rig.caller("globex"), payment, None)

    assert reason(other) is Reason.DUPLICATE_SETTLEMENT
    assert (other.result.tx_hash, other.result.settlement_id) == (first.result.tx_hash, None)
