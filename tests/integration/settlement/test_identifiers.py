"""The extension `payment-identifier`: one payment of a tenant bears it, whoever asks and on whichever replica."""

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace
from x402.extensions.payment_identifier import append_payment_identifier_to_extensions, declare_payment_identifier_extension

from facilitator.devstack.buyer import Buyer
from facilitator.protocol.messages import Payment
from facilitator.protocol.reasons import Reason
from facilitator.settlement.admission import SettleAnswer
from tests.integration.settlement.conftest import Rig, decoded
from tests.integration.settlement.test_counts import QUIET, Counter
from tests.integration.settlement.test_engine import NewBuyer, StartEngine, reason, terms

ORDER = "pay_7d5d747be160e280504c099d984bcfe0"


def named(buyer: Buyer, identifier: str | None = ORDER, **how: Any) -> Payment:
    """A payment that its buyer named by the official client's own helper."""
    asked = terms()
    payload = buyer.pay(2, asked, **how)
    if identifier is not None:
        extensions = {"payment-identifier": declare_payment_identifier_extension()}
        payload["extensions"] = append_payment_identifier_to_extensions(extensions, identifier)
    return decoded(payload, asked)


async def settle(rig: Rig, payment: Payment, tenant: str = "acme", key: str | None = None, **rules: Any) -> SettleAnswer:
    answer = await rig.engine.settle(rig.caller(tenant, **rules), payment, key)
    if answer.ticket is not None:
        await rig.engine.delivered(answer.ticket)
    return answer


async def test_another_payment_by_the_same_name_is_refused_and_never_signed(start_engine: StartEngine, new_buyer: NewBuyer) -> None:
    rig, buyer = await start_engine(), await new_buyer()
    first, other = named(buyer), named(buyer)
    assert reason(await settle(rig, first)) is None

    verified = await rig.engine.verify(rig.caller(), other)
    assert verified.refusal is not None
    assert verified.refusal.reason is Reason.PAYMENT_IDENTIFIER_CONFLICT
    refused = await settle(rig, other)

    assert reason(refused) is Reason.PAYMENT_IDENTIFIER_CONFLICT
    assert refused.result.tx_hash is None
    assert ORDER not in str(refused.result)
    assert len(await rig.fetch("select from relayer_transaction")) == 1
    [row] = await rig.fetch("select payment_identifier from settlement")
    assert row["payment_identifier"] == ORDER
    assert reason(await settle(rig, other, tenant="globex")) is None, "a name belongs to its tenant"


async def test_the_same_payment_by_the_same_name_is_an_ordinary_repeat(start_engine: StartEngine, new_buyer: NewBuyer) -> None:
    rig, buyer = await start_engine(), await new_buyer()
    payment = named(buyer)
    first = await settle(rig, payment)
    assert reason(await settle(rig, payment)) is Reason.DUPLICATE_SETTLEMENT
    assert reason(await settle(rig, replace(payment, payment_identifier=None))) is Reason.DUPLICATE_SETTLEMENT
    assert reason(await settle(rig, replace(payment, payment_identifier=ORDER + "0"))) is Reason.DUPLICATE_SETTLEMENT
    assert first.result.tx_hash == (await settle(rig, payment)).result.tx_hash


async def test_for_a_tenant_that_trusts_it_the_name_gets_the_same_answer(start_engine: StartEngine, new_buyer: NewBuyer) -> None:
    rig, buyer = await start_engine(), await new_buyer()
    payment = named(buyer)
    first = await settle(rig, payment, trust_payment_identifier=True)
    assert reason(first) is None
    assert (await settle(rig, payment, trust_payment_identifier=True)).result == first.result
    assert reason(await settle(rig, named(buyer), trust_payment_identifier=True)) is Reason.PAYMENT_IDENTIFIER_CONFLICT


async def test_of_many_payments_by_one_name_at_once_on_two_replicas_one_is_made(start_engine: StartEngine, new_buyer: NewBuyer) -> None:
    rigs, buyer = [await start_engine(), await start_engine()], await new_buyer()
    payments = [named(buyer) for _ in range(12)]

    answers = await asyncio.gather(*(settle(rigs[index % 2], payment) for index, payment in enumerate(payments)))

    told = [reason(answer) for answer in answers]
    assert told.count(None) == 1
    assert set(told) == {None, Reason.PAYMENT_IDENTIFIER_CONFLICT}
    assert len(await rigs[0].fetch("select from settlement")) == 1
    assert len(await rigs[0].fetch("select from relayer_transaction")) == 1


async def test_many_callers_with_one_named_payment_are_one_success(start_engine: StartEngine, new_buyer: NewBuyer) -> None:
    rigs, payment = [await start_engine(), await start_engine()], named(await new_buyer())
    answers = await asyncio.gather(*(settle(rigs[index % 2], payment) for index in range(8)))
    told = [reason(answer) for answer in answers]
    assert (told.count(None), told.count(Reason.DUPLICATE_SETTLEMENT)) == (1, 7)


@pytest.mark.parametrize(("identifier", "looks_up"), [(None, "records_of_authorizations"), (ORDER, "own_records")])
async def test_a_name_costs_no_query(
    start_engine: StartEngine, new_buyer: NewBuyer, monkeypatch: pytest.MonkeyPatch, identifier: str | None, looks_up: str
) -> None:
    rig, payment = await start_engine(**QUIET), named(await new_buyer(), identifier)
    counter = Counter(monkeypatch)
    assert reason(await settle(rig, payment)) is None
    assert counter.sql == [looks_up, "write_ahead", "resolve"]
