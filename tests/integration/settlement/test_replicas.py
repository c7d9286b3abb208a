"""Several engines on one database: a queue hop, a take-over, a restart; still one payment and one success."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from eth_account.signers.local import LocalAccount

from facilitator.devstack.stack import Anvil
from facilitator.devstack.token import Token
from facilitator.errors import OverloadFault
from facilitator.protocol.reasons import Reason
from tests.fixtures.waiting import PATIENCE_S
from tests.integration.settlement.conftest import decoded, given_up
from tests.integration.settlement.test_engine import NewBuyer, StartEngine, reason, terms, told

NewRelayer = Callable[..., Awaitable[LocalAccount]]


async def test_a_replica_without_relayers_enqueues_and_hears_the_outcome(start_engine: StartEngine, new_buyer: NewBuyer) -> None:
    owner = await start_engine()
    front = await start_engine(relayers=[])
    buyer, asked = await new_buyer(), terms()
    payment = decoded(buyer.pay(2, asked), asked)

    answer = await front.engine.settle(front.caller(), payment, None)

    assert reason(answer) is None
    moves = await owner.fetch("select to_state from settlement_move order by move")
    assert [row["to_state"] for row in moves] == ["submitted", "included"]
    again = await owner.engine.settle(owner.caller(), payment, None)
    assert reason(again) is Reason.DUPLICATE_SETTLEMENT


async def test_duplicates_across_two_replicas_are_one_success(start_engine: StartEngine, new_buyer: NewBuyer) -> None:
    owner = await start_engine()
    other = await start_engine(relayers=[])
    buyer, asked = await new_buyer(), terms()
    for _ in range(5):
        payment = decoded(buyer.pay(2, asked), asked)
        answers = await asyncio.gather(*(told((owner, other)[index % 2], payment) for index in range(20)))
        assert [reason(answer) for answer in answers].count(None) == 1
        assert {reason(answer) for answer in answers} == {None, Reason.DUPLICATE_SETTLEMENT}
    assert len(await owner.fetch("select from relayer_transaction")) == 5


async def test_an_idempotency_key_is_answered_alike_by_another_replica_after_a_restart(
    start_engine: StartEngine, new_buyer: NewBuyer
) -> None:
    first = await start_engine()
    buyer, asked = await new_buyer(), terms()
    payment = decoded(buyer.pay(2, asked), asked)
    answer = await first.engine.settle(first.caller(), payment, "gateway-7")
    assert answer.ticket
    await first.engine.delivered(answer.ticket)
    await first.engine.stop(2.0)

    second = await start_engine(relayers=[])

    again = await second.engine.settle(second.caller(), payment, "gateway-7")
    assert again.result == answer.result
    assert reason(await second.engine.settle(second.caller(), payment, "gateway-8")) is Reason.DUPLICATE_SETTLEMENT
    assert reason(await second.engine.settle(second.caller("globex"), payment, "gateway-7")) is Reason.DUPLICATE_SETTLEMENT


async def test_the_key_of_a_holder_that_died_untold_still_hears_the_success(
    start_engine: StartEngine, new_buyer: NewBuyer, start_chain: Callable[..., Awaitable[Anvil]], new_relayer: NewRelayer
) -> None:
    anvil = await start_chain(automine=False)
    token = Token.at(anvil.rpc_url)
    relayer, buyer, asked = await new_relayer(token=token), await new_buyer(token=token), terms()
    payment = decoded(buyer.pay(2, asked), asked)
    first = await start_engine(rpc_url=anvil.rpc_url, relayers=[relayer])
    telling = asyncio.create_task(first.engine.settle(first.caller(), payment, "order-17"))
    async with asyncio.timeout(PATIENCE_S):
        while int(str((await anvil.node.call("txpool_status"))["pending"]), 16) < 1:  # type: ignore[index]
            await asyncio.sleep(0.01)
    await first.die()  # with its caller
    first.db._pool.terminate()
    telling.cancel()
    await anvil.node.call("evm_mine")
    second = await start_engine(rpc_url=anvil.rpc_url, relayers=[relayer])
    async with asyncio.timeout(PATIENCE_S):
        while (await second.fetch("select state from settlement"))[0]["state"] != "included":
            await asyncio.sleep(0.02)

    answer = await second.engine.settle(second.caller(), payment, "order-17")

    assert reason(answer) is None
    assert answer.ticket is not None


async def test_a_queued_payment_is_withdrawn_at_the_deadline_and_may_be_admitted_again(
    start_engine: StartEngine, new_buyer: NewBuyer
) -> None:
    front = await start_engine(relayers=[])
    buyer, asked = await new_buyer(), terms()
    payment = decoded(buyer.pay(2, asked), asked)
    with pytest.raises(OverloadFault) as raised:
        await given_up(front, payment)
    assert raised.value.kind == "not_sent"
    [row] = await front.fetch("select state from settlement")
    assert row["state"] == "withdrawn"

    owner = await start_engine()
    assert reason(await owner.engine.settle(owner.caller("globex"), payment, None)) is None


async def test_a_dead_owners_relayer_is_taken_over_after_its_lease(
    start_engine: StartEngine, new_buyer: NewBuyer, new_relayer: NewRelayer
) -> None:
    relayer = await new_relayer()
    soon = {"lease_ttl_s": 2.0, "lease_trust_s": 1.5}
    first = await start_engine(relayers=[relayer], **soon)
    buyer, asked = await new_buyer(), terms()
    assert reason(await first.engine.settle(first.caller(), decoded(buyer.pay(2, asked), asked), None)) is None
    assert first.engine._loops is not None
    first.engine._loops.cancel()  # dies without giving anything back

    second = await start_engine(relayers=[relayer], **soon)

    assert reason(await second.engine.settle(second.caller(), decoded(buyer.pay(2, asked), asked), None)) is None
    [row] = await second.fetch("select epoch, owner from relayer")
    assert (row["epoch"], row["owner"]) == (2, second.engine.replica_id)
