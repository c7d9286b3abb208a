"""Every fault of the proxy, before a real anvil, as the service's own client meets it."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import aiohttp
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from facilitator.chain.evm import EvmClient, SendOutcome
from facilitator.chain.rpc import NodeError, RpcCall, RpcError
from facilitator.devstack.token import MINTER, Token
from facilitator.errors import ChainFault
from facilitator.units import Address, TxHash
from tests.fixtures.base_sim import (
    Absent,
    BaseSim,
    Call,
    Delay,
    DelayReply,
    Drop,
    Duplicate,
    Fault,
    Flipped,
    ForwardThenDrop,
    ForwardThenHang,
    Garbage,
    Hang,
    HttpError,
    NodeSays,
    NoLogs,
    PretendAccepted,
    RawTransaction,
    Rewrite,
    Stale,
    Truncated,
    WrongId,
    lagging_logs,
    rate_limited,
)
from tests.fixtures.base_sim.strategies import read_faults, send_faults
from tests.fixtures.waiting import PATIENCE_S
from tests.integration.base_sim.conftest import Relayer

SEND = "eth_sendRawTransaction"
TAKEN = SendOutcome(error=None)


async def fault_of(answer: Awaitable[object]) -> str:
    with pytest.raises(ChainFault) as caught:
        await answer
    return caught.value.kind


async def mined(sim: BaseSim, transaction: RawTransaction) -> bool:
    return await sim.upstream.result("eth_getTransactionReceipt", transaction.tx_hash) is not None


async def pooled(sim: BaseSim, transaction: RawTransaction) -> bool:
    return await sim.upstream.result("eth_getTransactionByHash", transaction.tx_hash) is not None


# Without a fault.


async def test_without_faults_the_client_sees_the_chain(base_sim: BaseSim, evm: EvmClient, relayer: Relayer) -> None:
    head = await evm.connect(evm.deadline_in(PATIENCE_S))
    transaction = relayer.sign(0)

    assert await relayer.send(transaction) == TAKEN
    assert await evm.receipts([TxHash(transaction.tx_hash)], evm.deadline_in(PATIENCE_S)) == [None]
    await base_sim.mine()

    (receipt,) = await evm.receipts([TxHash(transaction.tx_hash)], evm.deadline_in(PATIENCE_S))
    assert receipt is not None
    assert (receipt.succeeded, receipt.block_number, receipt.sealed) == (True, head.number + 1, True)


async def test_every_raw_transaction_is_on_record_in_order_of_arrival(base_sim: BaseSim, relayer: Relayer) -> None:
    first, second = relayer.sign(0), relayer.sign(1)
    for transaction in (first, second, first):
        await relayer.send(transaction)

    assert [(sent.tx_hash, sent.sender, sent.tx_nonce) for sent in base_sim.sent] == [
        (each.tx_hash, relayer.address, each.tx_nonce) for each in (first, second, first)
    ]
    assert [sent.raw for sent in base_sim.sent] == [first.raw, second.raw, first.raw]
    assert base_sim.sent[0].time <= base_sim.sent[1].time <= base_sim.sent[2].time


async def test_a_transaction_that_a_fault_kept_from_the_node_is_on_record_too(base_sim: BaseSim, relayer: Relayer) -> None:
    base_sim.fail(SEND, with_=Drop(), times=2)
    assert await fault_of(relayer.send(relayer.sign(0))) in {"disconnected", "unreachable"}

    assert len(base_sim.sent) == 1
    assert base_sim.forwarded[SEND] == 0


async def test_the_test_is_asked_before_a_transaction_goes_anywhere(base_sim: BaseSim, relayer: Relayer) -> None:
    at_the_time: list[tuple[str, bool]] = []
    transaction = relayer.sign(0)

    async def look(tx_hash: str) -> None:
        at_the_time.append((tx_hash, await pooled(base_sim, transaction)))

    base_sim.on_raw = look
    await relayer.send(transaction)

    assert at_the_time == [(transaction.tx_hash, False)]
    assert await pooled(base_sim, transaction)


async def test_what_the_test_objects_to_is_not_sent_and_not_forgotten(base_sim: BaseSim, relayer: Relayer) -> None:
    async def object_to_it(tx_hash: str) -> None:
        raise AssertionError(f"{tx_hash} is not in the database")

    base_sim.on_raw = object_to_it
    assert await fault_of(relayer.send(relayer.sign(0))) == "internal"

    assert not base_sim.pool.pending()
    with pytest.raises(BaseExceptionGroup, match="sent what should not have been sent"):
        base_sim.check()
    base_sim.violations.clear()


async def test_requests_and_calls_are_counted_by_method(base_sim: BaseSim, evm: EvmClient) -> None:
    await evm.rpc.batch([RpcCall("eth_chainId"), RpcCall("eth_blockNumber"), RpcCall("eth_chainId")], evm.deadline_in(PATIENCE_S))

    assert base_sim.requests == 1
    assert base_sim.calls == {"eth_chainId": 2, "eth_blockNumber": 1}
    assert base_sim.forwarded == base_sim.calls


async def test_what_is_no_transaction_is_on_record_apart(base_sim: BaseSim, evm: EvmClient) -> None:
    outcome = await evm.send_raw(b"\x02\xde\xad", evm.deadline_in(PATIENCE_S))

    assert (outcome.error, outcome.message) == (NodeError.INVALID_PARAMS, "failed to decode signed transaction") or (
        outcome.error is NodeError.INVALID_TRANSACTION
    )
    assert (len(base_sim.undecodable), base_sim.sent) == (1, [])


async def test_a_body_that_is_no_json_rpc_is_a_parse_error(base_sim: BaseSim) -> None:
    async with aiohttp.ClientSession() as session, session.post(base_sim.url, data=b"{") as response:
        assert (await response.json())["error"]["code"] == -32700


# The connection.


async def test_forward_then_drop_loses_the_answer_but_not_the_transaction(base_sim: BaseSim, relayer: Relayer) -> None:
    transaction = relayer.sign(0)
    base_sim.fail(SEND, with_=ForwardThenDrop())

    assert await fault_of(relayer.send(transaction)) == "disconnected"
    assert await relayer.send(transaction) == SendOutcome(error=NodeError.ALREADY_KNOWN, message="already known")
    await base_sim.mine()
    assert await mined(base_sim, transaction)


async def test_drop_keeps_the_transaction_from_the_node(base_sim: BaseSim, relayer: Relayer) -> None:
    transaction = relayer.sign(0)
    base_sim.fail(SEND, with_=Drop())

    assert await fault_of(relayer.send(transaction)) == "disconnected"
    assert not await pooled(base_sim, transaction)
    assert await relayer.send(transaction) == TAKEN


async def test_forward_then_hang_runs_into_the_deadline(base_sim: BaseSim, relayer: Relayer) -> None:
    transaction = relayer.sign(0)
    base_sim.fail(SEND, with_=ForwardThenHang())

    assert await fault_of(relayer.send(transaction, seconds=0.5)) == "timeout"
    async with asyncio.timeout(PATIENCE_S):
        while not await pooled(base_sim, transaction):
            await asyncio.sleep(0.01)


async def test_a_hanging_call_ends_on_command(base_sim: BaseSim, evm: EvmClient) -> None:
    base_sim.plant(Hang(method="eth_getBlockByNumber"))
    call = asyncio.create_task(evm.head(evm.deadline_in(PATIENCE_S)))
    while not base_sim.calls["eth_getBlockByNumber"]:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    assert not call.done()
    base_sim.uproot()
    base_sim.release()

    await call  # a read that was cut is asked again by the client
    assert base_sim.requests == 2


async def test_a_delayed_send_reaches_the_node_although_its_client_has_gone(base_sim: BaseSim, relayer: Relayer) -> None:
    transaction = relayer.sign(0)
    async with base_sim.faults(Delay(2.0, method=SEND)):
        assert await fault_of(relayer.send(transaction, seconds=0.2)) == "timeout"
        assert not await pooled(base_sim, transaction)
        async with asyncio.timeout(PATIENCE_S):
            while not await pooled(base_sim, transaction):
                await asyncio.sleep(0.01)


async def test_a_delayed_reply_finds_the_node_done(base_sim: BaseSim, relayer: Relayer) -> None:
    transaction = relayer.sign(0)
    async with base_sim.faults(DelayReply(2.0, method=SEND)):
        assert await fault_of(relayer.send(transaction, seconds=0.2)) == "timeout"
        async with asyncio.timeout(PATIENCE_S):
            while not await pooled(base_sim, transaction):
                await asyncio.sleep(0.01)


async def test_a_delay_is_of_one_method_only(base_sim: BaseSim, evm: EvmClient) -> None:
    async with base_sim.faults(Delay(0.15, method="eth_getBalance")) as (delay,):
        await evm.head(evm.deadline_in(PATIENCE_S))
        assert delay.struck == 0
        began = time.monotonic()
        await evm.balance(Address(MINTER.lower()), evm.deadline_in(PATIENCE_S))
        assert time.monotonic() - began >= 0.15


@pytest.mark.parametrize(("answer", "outcome"), [("first", None), ("last", NodeError.ALREADY_KNOWN)])
async def test_a_duplicated_send_reaches_the_node_twice(
    base_sim: BaseSim, relayer: Relayer, answer: str, outcome: NodeError | None
) -> None:
    base_sim.fail(SEND, with_=Duplicate(answer="first" if answer == "first" else "last"))

    assert (await relayer.send(relayer.sign(0))).error is outcome
    assert (base_sim.calls[SEND], base_sim.forwarded[SEND]) == (1, 2)


# What is not JSON-RPC.


async def test_429_carries_retry_after(base_sim: BaseSim, evm: EvmClient) -> None:
    base_sim.plant(rate_limited(7, times=2))

    body = {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []}
    async with aiohttp.ClientSession() as session, session.post(base_sim.url, json=body) as response:
        assert (response.status, response.headers["Retry-After"]) == (429, "7")
    assert await fault_of(evm.chain_id(evm.deadline_in(PATIENCE_S))) == NodeError.RATE_LIMITED.value
    assert await evm.chain_id(evm.deadline_in(PATIENCE_S)) == 84532


@pytest.mark.parametrize("status", [500, 502, 503])
async def test_http_errors_may_hide_that_the_node_acted(base_sim: BaseSim, relayer: Relayer, status: int) -> None:
    kept, lost = relayer.sign(0), relayer.sign(1)
    base_sim.fail(SEND, with_=HttpError(status, forward=True))
    assert await fault_of(relayer.send(kept)) == "http_status"
    base_sim.fail(SEND, with_=HttpError(status))
    assert await fault_of(relayer.send(lost)) == "http_status"

    assert (await pooled(base_sim, kept), await pooled(base_sim, lost)) == (True, False)


@pytest.mark.parametrize(
    "fault", [Garbage(), Garbage(b'{"jsonrpc": "2.0"'), Garbage(b""), Truncated(), Truncated(0.0), Truncated(0.99), WrongId()]
)
async def test_garbage_and_cut_bodies_are_faults_whatever_the_node_did(base_sim: BaseSim, relayer: Relayer, fault: Fault) -> None:
    transaction = relayer.sign(0)
    base_sim.fail(SEND, with_=fault)

    assert await fault_of(relayer.send(transaction)) == "bad_answer"
    assert await pooled(base_sim, transaction)


async def test_a_torn_body_breaks_the_connection(base_sim: BaseSim, relayer: Relayer) -> None:
    base_sim.fail(SEND, with_=Truncated(torn=True))

    assert await fault_of(relayer.send(relayer.sign(0))) in {"unreachable", "disconnected"}


async def test_a_fault_in_a_batch_befalls_the_whole_answer(base_sim: BaseSim, evm: EvmClient) -> None:
    calls = [RpcCall("eth_chainId"), RpcCall("eth_getBalance", (MINTER, "latest")), RpcCall("eth_blockNumber")]
    base_sim.fail("eth_getBalance", with_=Garbage())

    assert await fault_of(evm.rpc.batch(calls, evm.deadline_in(PATIENCE_S))) == "bad_answer"
    assert base_sim.forwarded == {"eth_chainId": 1, "eth_getBalance": 1, "eth_blockNumber": 1}


# What the node says.


async def test_one_call_of_a_batch_fails_and_the_others_do_not(base_sim: BaseSim, evm: EvmClient) -> None:
    calls = [RpcCall("eth_chainId"), RpcCall("eth_getBalance", (MINTER, "latest")), RpcCall("eth_blockNumber")]
    base_sim.fail("eth_getBalance", with_=NodeSays(-32000, "header not found"))
    chain_id, balance, number = await evm.rpc.batch(calls, evm.deadline_in(PATIENCE_S))

    assert isinstance(balance, RpcError)
    assert (balance.kind, balance.code, balance.message) == (NodeError.STATE_UNAVAILABLE, -32000, "header not found")
    assert not isinstance(chain_id, RpcError)
    assert not isinstance(number, RpcError)


async def test_an_error_may_hide_that_the_node_acted(base_sim: BaseSim, relayer: Relayer) -> None:
    transaction = relayer.sign(0)
    base_sim.fail(SEND, with_=NodeSays(-32603, "internal error", forward=True))

    assert await fault_of(relayer.send(transaction)) == "internal"
    assert await pooled(base_sim, transaction)


async def test_the_nth_call_fails(base_sim: BaseSim, evm: EvmClient) -> None:
    planted = base_sim.fail("eth_getBalance", with_=NodeSays(-32603, "internal error"), skip=2)
    outcomes = []
    for _ in range(4):
        try:
            await evm.balance(Address(MINTER.lower()), evm.deadline_in(PATIENCE_S))
            outcomes.append("ok")
        except ChainFault as fault:
            outcomes.append(fault.kind)

    assert outcomes == ["ok", "ok", "internal", "ok"]
    assert (planted.seen, planted.struck) == (4, 1)


async def test_a_fault_may_choose_its_calls(base_sim: BaseSim, evm: EvmClient) -> None:
    base_sim.plant(NodeSays(-32603, "internal error", where=lambda call: call.params[0] == MINTER.lower()))

    assert await fault_of(evm.balance(Address(MINTER.lower()), evm.deadline_in(PATIENCE_S))) == "internal"
    assert await evm.balance(Address("0x" + "11" * 20), evm.deadline_in(PATIENCE_S)) == 0


async def test_chance_follows_the_seed(start_sim: Callable[..., Awaitable[BaseSim]], connect: Callable[..., EvmClient]) -> None:
    histories = []
    for seed in (7, 7, 8):
        sim = await start_sim(seed=seed)
        evm = connect(sim.url)
        sim.plant(NodeSays(-32000, "execution reverted", method="eth_blockNumber", chance=0.5))
        answers = [(await evm.rpc.batch([RpcCall("eth_blockNumber")], evm.deadline_in(PATIENCE_S)))[0] for _ in range(24)]
        histories.append([isinstance(answer, RpcError) for answer in answers])

    assert histories[0] == histories[1] != histories[2]
    assert 0 < sum(histories[0]) < 24


async def test_a_node_may_pretend_to_have_taken_a_transaction(base_sim: BaseSim, relayer: Relayer) -> None:
    transaction = relayer.sign(0)
    base_sim.fail(SEND, with_=PretendAccepted())

    assert await relayer.send(transaction) == TAKEN
    await base_sim.mine()
    assert not await mined(base_sim, transaction)
    assert await relayer.send(transaction) == TAKEN


async def test_faults_end_with_their_block(base_sim: BaseSim, evm: EvmClient) -> None:
    with base_sim.faults(NodeSays(-32603, "internal error")) as (planted,):
        assert await fault_of(evm.head(evm.deadline_in(PATIENCE_S))) == "internal"
    await evm.head(evm.deadline_in(PATIENCE_S))

    assert planted.struck == 1


# Lies and lags.


async def mint(sim: BaseSim, relayer: Relayer) -> TxHash:
    """A mined transaction with logs."""
    tx_hash = TxHash(await Token.at(sim.upstream.url).mint(relayer.account.address, 5))
    await sim.mine()
    return tx_hash


async def supply(evm: EvmClient, token: Address) -> int:
    return int(
        bytes(await evm.rpc.call("eth_call", ({"to": token, "data": "0x18160ddd"}, "latest"), evm.deadline_in(PATIENCE_S)))[3:-1], 16
    )


async def test_a_receipt_may_be_absent_though_mined(base_sim: BaseSim, evm: EvmClient, relayer: Relayer) -> None:
    tx_hash = await mint(base_sim, relayer)
    base_sim.fail("eth_getTransactionReceipt", with_=Absent())

    assert await evm.receipts([tx_hash], evm.deadline_in(PATIENCE_S)) == [None]
    assert (await evm.receipts([tx_hash], evm.deadline_in(PATIENCE_S)))[0] is not None


async def test_a_receipt_may_lie_about_its_status_or_its_logs(base_sim: BaseSim, evm: EvmClient, relayer: Relayer) -> None:
    tx_hash = await mint(base_sim, relayer)

    async def read() -> tuple[bool, int]:
        (receipt,) = await evm.receipts([tx_hash], evm.deadline_in(PATIENCE_S))
        assert receipt is not None
        return receipt.succeeded, len(receipt.logs)

    assert await read() == (True, 2)
    async with base_sim.faults(Flipped()):
        assert await read() == (False, 2)
    async with base_sim.faults(NoLogs()):
        assert await read() == (True, 0)
        assert await evm.logs(evm.deadline_in(PATIENCE_S), addresses=[Address(Token.at("").asset.lower())]) == ()
    async with base_sim.faults(Rewrite(lambda _, result: result | {"blockHash": "0x" + "66" * 32}, method="eth_getTransactionReceipt")):
        (receipt,) = await evm.receipts([tx_hash], evm.deadline_in(PATIENCE_S))
        assert receipt is not None
        assert receipt.block_hash == "0x" + "66" * 32


async def test_a_stale_node_is_blocks_behind_in_everything(base_sim: BaseSim, evm: EvmClient, relayer: Relayer) -> None:
    token = Address(Token.at("").asset.lower())
    start = await evm.head(evm.deadline_in(PATIENCE_S))
    tx_hash = await mint(base_sim, relayer)
    transaction = relayer.sign(0)
    await relayer.send(transaction)
    await base_sim.mine()
    newest = await evm.head(evm.deadline_in(PATIENCE_S))
    behind = newest.number - start.number

    async with base_sim.faults(Stale(behind)):
        assert await evm.head(evm.deadline_in(PATIENCE_S)) == start
        assert await evm.receipts([tx_hash], evm.deadline_in(PATIENCE_S)) == [None]
        assert await evm.logs(evm.deadline_in(PATIENCE_S), addresses=[token], from_block=start.number + 1) == ()
        assert await evm.logs(evm.deadline_in(PATIENCE_S), addresses=[token], from_block=start.number + 1, to_block=newest.number) == ()
        for tag in ("latest", "pending"):
            assert await evm.transaction_count(Address(relayer.address), tag, evm.deadline_in(PATIENCE_S)) == 0
        assert await evm.block(newest.number, evm.deadline_in(PATIENCE_S)) is None
        assert await evm.block_by_hash(newest.block_hash, evm.deadline_in(PATIENCE_S)) is None
        assert bytes(await evm.rpc.call("eth_blockNumber", (), evm.deadline_in(PATIENCE_S))) == f'"{hex(start.number)}"'.encode()
        late = ({"to": token, "data": "0x18160ddd"}, hex(newest.number))
        assert await fault_of(evm.rpc.call("eth_call", late, evm.deadline_in(PATIENCE_S))) == NodeError.STATE_UNAVAILABLE.value
        for_block = evm.logs(evm.deadline_in(PATIENCE_S), addresses=[token], block_hash=newest.block_hash)
        assert await fault_of(for_block) == NodeError.STATE_UNAVAILABLE.value
        supply_then = await supply(evm, token)

    assert await evm.transaction_count(Address(relayer.address), "latest", evm.deadline_in(PATIENCE_S)) == 1
    assert (await evm.receipts([tx_hash], evm.deadline_in(PATIENCE_S)))[0] is not None
    assert await supply(evm, token) == supply_then + 5


async def test_logs_may_lag_behind_receipts(base_sim: BaseSim, evm: EvmClient, relayer: Relayer) -> None:
    token = Address(Token.at("").asset.lower())
    before = (await evm.head(evm.deadline_in(PATIENCE_S))).number
    tx_hash = await mint(base_sim, relayer)
    behind = (await evm.head(evm.deadline_in(PATIENCE_S))).number - before

    async with base_sim.faults(lagging_logs(behind)):
        assert (await evm.receipts([tx_hash], evm.deadline_in(PATIENCE_S)))[0] is not None
        assert await evm.logs(evm.deadline_in(PATIENCE_S), addresses=[token], from_block=before + 1) == ()
    assert len(await evm.logs(evm.deadline_in(PATIENCE_S), addresses=[token], from_block=before + 1)) == 2


# The proxy itself.


async def test_it_stops_and_comes_back_on_the_same_port(base_sim: BaseSim, evm: EvmClient, relayer: Relayer) -> None:
    transaction = relayer.sign(0)
    await relayer.send(transaction)
    await base_sim.stop()
    assert await fault_of(evm.head(evm.deadline_in(1))) in {"disconnected", "unreachable"}
    await base_sim.start()

    assert (await evm.head(evm.deadline_in(PATIENCE_S))).number > 0
    assert (await relayer.send(transaction)).error is NodeError.ALREADY_KNOWN


async def test_a_node_that_is_gone_is_a_bad_gateway(
    start_sim: Callable[..., Awaitable[BaseSim]], connect: Callable[..., EvmClient]
) -> None:
    sim = await start_sim(node_url="http://127.0.0.1:9")
    evm = connect(sim.url)

    with pytest.raises(ChainFault) as caught:
        await evm.head(evm.deadline_in(PATIENCE_S))
    assert (caught.value.kind, caught.value.evidence["status"]) == ("http_status", 502)


async def test_two_proxies_before_one_chain_are_two_providers(
    base_sim: BaseSim, start_sim: Callable[..., Awaitable[BaseSim]], connect: Callable[..., EvmClient], relayer: Relayer
) -> None:
    second = await start_sim(node_url=base_sim.upstream.url)
    evm = connect(base_sim.url, second.url)
    transaction = relayer.sign(0)
    base_sim.plant(HttpError(502))

    assert await evm.send_raw(transaction.raw, evm.deadline_in(PATIENCE_S)) == TAKEN
    await second.mine()
    assert (await evm.receipts([TxHash(transaction.tx_hash)], evm.deadline_in(PATIENCE_S)))[0] is not None
    assert [sent.tx_hash for sent in base_sim.sent + second.sent] == [transaction.tx_hash] * 2


def test_faults_are_values() -> None:
    assert Delay(1.0, method="eth_call") == Delay(1.0, method="eth_call")
    assert HttpError(502).once(skip=3) == HttpError(502, times=1, skip=3)
    assert "Stale(" in repr(Stale(2))
    assert Call("eth_call", (1,)).with_params(2) == Call("eth_call", (2,))


@hypothesis_settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_whatever_befalls_a_send_the_same_bytes_again_get_it_mined_once(
    base_sim: BaseSim, relayer: Relayer, data: st.DataObject
) -> None:
    evm = relayer.evm
    tx_nonce = int(await base_sim.upstream.result("eth_getTransactionCount", relayer.address, "latest"), 16)
    transaction = relayer.sign(tx_nonce)
    base_sim.uproot()
    base_sim.plant(data.draw(send_faults()))
    base_sim.plant(data.draw(read_faults()))

    async def found() -> bool:
        try:
            (receipt,) = await evm.receipts([TxHash(transaction.tx_hash)], evm.deadline_in(PATIENCE_S))
        except ChainFault:
            return False
        return receipt is not None

    async with asyncio.timeout(PATIENCE_S):
        while not await found():
            try:
                await relayer.send(transaction)
            except ChainFault:
                continue
            await base_sim.mine()
    assert await evm.transaction_count(Address(relayer.address), "latest", evm.deadline_in(PATIENCE_S)) == tx_nonce + 1
