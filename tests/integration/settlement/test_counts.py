"""What one payment costs in round trips: the budget that the design promises."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from facilitator.chain.rpc import RpcCall, RpcClient
from facilitator.store.db import Session
from tests.fixtures.waiting import PATIENCE_S
from tests.integration.settlement.conftest import Rig, decoded, present
from tests.integration.settlement.test_engine import NewBuyer, StartEngine, reason, terms

QUIET = {
    "lease_renew_s": 60.0,
    "lease_trust_s": 61.0,
    "lease_ttl_s": 120.0,
    "queue_poll_s": 60.0,
    "finality_poll_s": 60.0,
    "survey_s": 60.0,
    "limits_poll_s": 60.0,
}


OF_LOOPS = {
    *("count_watched", "gas_budgets", "heartbeat", "list_queued", "list_relayers"),
    *("hold_presence", "live_replicas", "missing_replicas", "queue_ages", "struck", "take_watched", "unfinal_blocks"),
}
"""Statements of loops, whose first round may come late."""


class Counter:
    """HTTP requests to the chain by what they carry, and statements by name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rpc: list[tuple[str, ...]] = []
        self.sql: list[str] = []
        exchange = RpcClient._exchange
        optional, many, execute = Session.optional, Session.many, Session.execute

        async def counted_exchange(client: RpcClient, endpoint: Any, calls: list[RpcCall], timeout_s: float) -> Any:
            self.rpc.append(tuple(call.method for call in calls))
            return await exchange(client, endpoint, calls, timeout_s)

        def counted(original: Callable[..., Awaitable[Any]], place: int) -> Callable[..., Awaitable[Any]]:
            async def statement(session: Session, *arguments: Any) -> Any:
                if arguments[place].name not in OF_LOOPS:
                    self.sql.append(arguments[place].name)
                return await original(session, *arguments)

            return statement

        monkeypatch.setattr(RpcClient, "_exchange", counted_exchange)
        monkeypatch.setattr(Session, "optional", counted(optional, 1))
        monkeypatch.setattr(Session, "many", counted(many, 1))
        monkeypatch.setattr(Session, "execute", counted(execute, 0))


async def writes(rig: Rig) -> int:
    """Transactions that wrote something in this cluster: reading does not take an xid."""
    [row] = await rig.fetch("select pg_snapshot_xmax(pg_current_snapshot())::text::bigint as xmax")
    return int(row["xmax"])


async def test_a_verification_is_one_request_to_the_chain_and_one_query(
    start_engine: StartEngine, new_buyer: NewBuyer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, buyer, asked = await start_engine(**QUIET), await new_buyer(), terms()
    payment = decoded(buyer.pay(2, asked), asked)
    counter = Counter(monkeypatch)

    assert (await rig.engine.verify(rig.caller(), payment)).refusal is None

    assert counter.rpc == [("eth_getBlockByNumber", "eth_call")]
    assert counter.sql == ["records_of_authorizations"]


async def test_a_settlement_is_two_requests_before_its_receipt_and_two_commits(
    start_engine: StartEngine, new_buyer: NewBuyer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, buyer, asked = await start_engine(**QUIET), await new_buyer(), terms()
    payment = decoded(buyer.pay(2, asked), asked)
    await present(rig)
    counter = Counter(monkeypatch)
    before = await writes(rig)

    answer = await rig.engine.settle(rig.caller(), payment, None)

    assert reason(answer) is None
    assert await writes(rig) - before == 2
    new_block = ("eth_getBlockByNumber",)  # asked once for all payments in flight
    own = [calls for calls in counter.rpc if calls != new_block]
    assert own[:2] == [("eth_getBlockByNumber", "eth_call"), ("eth_sendRawTransaction",)]
    assert set(own[2:]) == {("eth_getLogs", "eth_getTransactionReceipt")}, "logs find, and with little to ask for the receipt comes along"
    assert counter.sql == ["records_of_authorizations", "write_ahead", "resolve"]


async def test_an_answer_that_was_not_delivered_costs_a_third_commit(start_engine: StartEngine, new_buyer: NewBuyer) -> None:
    rig, buyer, asked = await start_engine(**QUIET), await new_buyer(), terms()
    answer = await rig.engine.settle(rig.caller(), decoded(buyer.pay(2, asked), asked), None)
    await present(rig)
    before = await writes(rig)

    assert answer.ticket is not None
    await rig.engine.undelivered(answer.ticket)
    async with asyncio.timeout(PATIENCE_S):
        while (await rig.fetch("select answer_state from settlement"))[0]["answer_state"] != "free":
            await asyncio.sleep(0.01)

    assert await writes(rig) - before == 1


async def test_leases_of_all_relayers_are_renewed_in_one_statement(
    start_engine: StartEngine, new_relayer: Callable[..., Awaitable[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = await start_engine(**QUIET | {"lease_renew_s": 0.2}, relayers=[await new_relayer() for _ in range(4)])
    counter = Counter(monkeypatch)

    async with asyncio.timeout(PATIENCE_S):
        while counter.sql.count("renew_leases") < 3:
            await asyncio.sleep(0.02)

    assert "renew_lease" not in counter.sql
    assert "open_transactions" not in counter.sql
    rows = await rig.fetch("select epoch, lease_until > now() + interval '100 s' as renewed from relayer")
    assert [(row["epoch"], row["renewed"]) for row in rows] == [(1, True)] * 4


async def test_a_relayer_whose_row_is_being_written_keeps_no_other_lease_waiting(
    start_engine: StartEngine, new_relayer: Callable[..., Awaitable[Any]]
) -> None:
    keys = [await new_relayer() for _ in range(3)]
    rig = await start_engine(**QUIET | {"lease_renew_s": 0.2}, relayers=keys)
    busy, *others = [key.address.lower() for key in keys]

    async def leases() -> dict[str, Any]:
        return {row["address"]: row["lease_until"] for row in await rig.fetch("select address, lease_until from relayer")}

    async with rig.db.transaction() as session:
        await session._connection.execute("select from relayer where address = $1 for update", busy)
        before = await leases()
        async with asyncio.timeout(PATIENCE_S):
            while (now := await leases()) and any(now[other] <= before[other] for other in others):
                await asyncio.sleep(0.02)
    async with asyncio.timeout(PATIENCE_S):
        while (await leases())[busy] <= before[busy]:
            await asyncio.sleep(0.02)
    assert {row["epoch"] for row in await rig.fetch("select epoch from relayer")} == {1}


async def test_a_relayer_is_taken_up_in_two_requests_and_one_look_at_the_pool(
    start_engine: StartEngine, new_relayer: Callable[..., Awaitable[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await new_relayer()
    first = await start_engine(relayers=[key], **QUIET)
    await first.engine.stop(2.0)
    counter = Counter(monkeypatch)

    await start_engine(relayers=[key], **QUIET)

    account = ("eth_getBlockByNumber", "eth_getTransactionCount", "eth_getTransactionCount", "eth_getBalance", "eth_getCode")
    identity = ("eth_chainId", "eth_getCode", "eth_getBlockByNumber")
    assert counter.rpc.count(account) == 1
    assert counter.rpc.count(("txpool_contentFrom",)) == 1
    rest = [calls for calls in counter.rpc if calls not in {account, identity, ("txpool_contentFrom",), ("eth_getBlockByNumber",)}]
    assert all("eth_getTransactionCount" not in calls for calls in rest), rest
