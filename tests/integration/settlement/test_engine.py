"""One engine on a real database and a real chain: a payment is made once, and its one success is told once."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from facilitator.devstack.buyer import Buyer, requirements
from facilitator.devstack.token import Token
from facilitator.protocol.messages import Payment
from facilitator.protocol.reasons import Reason
from facilitator.settlement.admission import SettleAnswer
from tests.fixtures.waiting import PATIENCE_S
from tests.integration.settlement.conftest import Rig, decoded

PAY_TO = "0x2222222222222222222222222222222222222222"
StartEngine = Callable[..., Awaitable[Rig]]
NewBuyer = Callable[..., Awaitable[Buyer]]


def terms(version: Any = 2, amount_atomic: int = 10_000, pay_to: str = PAY_TO) -> dict[str, Any]:
    return requirements(version, pay_to=pay_to, amount_atomic=amount_atomic)


def reason(answer: SettleAnswer) -> Reason | None:
    return answer.result.refusal.reason if answer.result.refusal else None


async def told(rig: Rig, payment: Payment, *, tenant: str = "acme", key: str | None = None) -> SettleAnswer:
    """Settle as a caller who receives what is answered."""
    answer = await rig.engine.settle(rig.caller(tenant), payment, key)
    if answer.ticket:
        await rig.engine.delivered(answer.ticket)
    return answer


async def test_a_payment_settles_and_its_row_proof_and_entries_agree(start_engine: StartEngine, new_buyer: NewBuyer, token: Token) -> None:
    rig, buyer = await start_engine(), await new_buyer()
    asked = terms()
    payment = decoded(buyer.pay(2, asked), asked)
    before = await token.balance_of(PAY_TO)

    assert (await rig.engine.verify(rig.caller(), payment)).refusal is None
    answer = await rig.engine.settle(rig.caller(), payment, None)

    assert answer.result.refusal is None
    assert answer.ticket is not None
    assert await token.balance_of(PAY_TO) == before + 10_000
    [row] = await rig.fetch("select * from settlement")
    assert (row["state"], row["answer_state"], row["tx_hash"]) == ("included", "spent", answer.result.tx_hash)
    [slot] = await rig.fetch("select * from relayer_slot")
    assert (slot["state"], slot["mined_tx_hash"]) == ("included", answer.result.tx_hash)
    [entry] = await rig.fetch("select * from journal_entry where book = 'register'")
    assert (entry["phase"], entry["amount_atomic"]) == ("pending", 10_000)
    moves = await rig.fetch("select from_state, to_state from settlement_move order by move")
    assert [tuple(move) for move in moves] == [("queued", "submitted"), ("submitted", "included")]


async def test_fifty_at_once_are_one_transfer_one_success_and_forty_nine_duplicates(start_engine: StartEngine, new_buyer: NewBuyer) -> None:
    rig, buyer = await start_engine(), await new_buyer()
    asked = terms()
    payment = decoded(buyer.pay(2, asked), asked)

    answers = await asyncio.gather(*(told(rig, payment) for _ in range(50)))

    assert sorted(str(reason(answer)) for answer in answers) == sorted(["None"] + [str(Reason.DUPLICATE_SETTLEMENT)] * 49)
    assert len({answer.result.tx_hash for answer in answers}) == 1
    assert len(await rig.fetch("select from relayer_transaction")) == 1


async def test_fifty_callers_with_one_idempotency_key_hear_the_same_success(start_engine: StartEngine, new_buyer: NewBuyer) -> None:
    rig, buyer = await start_engine(), await new_buyer()
    asked = terms()
    payment = decoded(buyer.pay(2, asked), asked)

    answers = await asyncio.gather(*(rig.engine.settle(rig.caller(), payment, "key-1") for _ in range(50)))

    assert {reason(answer) for answer in answers} == {None}
    assert len({answer.result for answer in answers}) == 1
    again = await rig.engine.settle(rig.caller(), payment, "key-1")
    assert again.result == answers[0].result


async def test_fifty_callers_with_fifty_keys_hear_one_success(start_engine: StartEngine, new_buyer: NewBuyer) -> None:
    rig, buyer = await start_engine(), await new_buyer()
    asked = terms()
    payment = decoded(buyer.pay(2, asked), asked)

    answers = await asyncio.gather(*(told(rig, payment, key=f"key-{index}") for index in range(50)))

    assert [reason(answer) for answer in answers].count(None) == 1
    assert {reason(answer) for answer in answers} == {None, Reason.DUPLICATE_SETTLEMENT}


async def test_two_tenants_at_once_are_one_success(start_engine: StartEngine, new_buyer: NewBuyer) -> None:
    rig, buyer = await start_engine(), await new_buyer()
    asked = terms()
    payment = decoded(buyer.pay(2, asked), asked)

    answers = await asyncio.gather(*(told(rig, payment, tenant=("acme", "globex")[index % 2]) for index in range(50)))

    assert [reason(answer) for answer in answers].count(None) == 1
    assert len(await rig.fetch("select from relayer_transaction")) == 1


async def test_an_undelivered_success_goes_to_the_next_caller(start_engine: StartEngine, new_buyer: NewBuyer) -> None:
    rig, buyer = await start_engine(), await new_buyer()
    asked = terms()
    payment = decoded(buyer.pay(2, asked), asked)
    first = await rig.engine.settle(rig.caller(), payment, None)
    assert first.ticket is not None

    waiting = asyncio.create_task(rig.engine.settle(rig.caller(), payment, None))
    await rig.engine.undelivered(first.ticket)

    assert reason(await waiting) is None


async def test_a_caller_that_goes_away_mid_wait_leaves_the_truth_to_the_next(
    start_engine: StartEngine, new_buyer: NewBuyer, start_chain: Callable[..., Awaitable[Any]]
) -> None:
    slow = await start_chain(automine=False)
    slow_token = Token.at(slow.rpc_url)
    rig = await start_engine(rpc_url=slow.rpc_url, ready=False)
    relayer = rig.engine.supported().signers["eip155:*"][0]
    await slow_token.set_gas_money(relayer, 10**18)
    buyer = await new_buyer(token=slow_token)
    asked = terms()
    payment = decoded(buyer.pay(2, asked), asked)
    holder = asyncio.create_task(rig.engine.settle(rig.caller(), payment, None))
    async with asyncio.timeout(PATIENCE_S):
        while not await rig.fetch("select from settlement"):
            await asyncio.sleep(0.01)
    holder.cancel()
    await asyncio.wait([holder])

    following = asyncio.create_task(told(rig, payment))
    while not following.done():
        await slow.node.call("evm_mine")
        await asyncio.wait([following], timeout=0.1)

    assert reason(following.result()) is None
    assert reason(await rig.engine.settle(rig.caller(), payment, None)) is Reason.DUPLICATE_SETTLEMENT


async def test_past_the_deadline_the_caller_hears_pending_with_the_hash_and_the_repeat_hears_the_truth(
    start_engine: StartEngine, new_buyer: NewBuyer, start_chain: Callable[..., Awaitable[Any]]
) -> None:
    slow = await start_chain(automine=False)
    slow_token = Token.at(slow.rpc_url)
    rig = await start_engine(rpc_url=slow.rpc_url, ready=False)
    await slow_token.set_gas_money(rig.engine.supported().signers["eip155:*"][0], 10**18)
    buyer = await new_buyer(token=slow_token)
    asked = terms()
    payment = decoded(buyer.pay(2, asked), asked)
    first = asyncio.create_task(rig.engine.settle(rig.caller(), payment, None))
    async with asyncio.timeout(PATIENCE_S):
        while not await rig.fetch("select from settlement where state = 'submitted'"):
            await asyncio.sleep(0.01)
    await rig.time_is_up(first)
    pending = first.result()
    again = asyncio.create_task(rig.engine.settle(rig.caller(), payment, None))
    while not again.done():
        await slow.node.call("evm_mine")
        await asyncio.wait([again], timeout=0.1)
    assert (reason(pending), reason(again.result())) == (Reason.SETTLEMENT_PENDING, None)
    assert pending.result.tx_hash == again.result().result.tx_hash is not None


async def test_settlements_on_one_relayer_do_not_wait_for_each_others_receipts(start_engine: StartEngine, new_buyer: NewBuyer) -> None:
    rig, buyer = await start_engine(batching="off"), await new_buyer()
    asked = terms(amount_atomic=100)
    payments = [decoded(buyer.pay(2, asked), asked) for _ in range(40)]

    answers = await asyncio.gather(*(rig.engine.settle(rig.caller(), payment, None) for payment in payments))

    assert {reason(answer) for answer in answers} == {None}
    nonces = await rig.fetch("select tx_nonce from relayer_slot order by tx_nonce")
    assert [row["tx_nonce"] for row in nonces] == list(range(nonces[0]["tx_nonce"], nonces[0]["tx_nonce"] + 40))
