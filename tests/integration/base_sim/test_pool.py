"""Reth's pool rules and words before a real anvil, and our classifier reading them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from facilitator.chain.evm import EvmClient, SendOutcome
from facilitator.chain.rpc import NodeError, RpcCall, RpcError
from facilitator.devstack.accounts import dev_account
from facilitator.units import Address
from tests.fixtures.base_sim import BaseSim, Delay, RawTransaction, Rules
from tests.fixtures.waiting import PATIENCE_S
from tests.integration.base_sim.conftest import ETHER, GWEI, Relayer

TAKEN = SendOutcome(error=None)


async def mined(sim: BaseSim, *transactions: RawTransaction) -> list[bool]:
    receipts = [await sim.upstream.result("eth_getTransactionReceipt", each.tx_hash) for each in transactions]
    return [receipt is not None for receipt in receipts]


# Slots.


async def test_the_seventeenth_pending_transaction_of_a_sender_is_refused(base_sim: BaseSim, relayer: Relayer) -> None:
    for tx_nonce in range(16):
        assert await relayer.send(relayer.sign(tx_nonce)) == TAKEN
    refused = relayer.sign(16)

    assert await relayer.send(refused) == SendOutcome(error=NodeError.TXPOOL_FULL, message="txpool is full")
    await base_sim.mine()
    assert await relayer.send(refused) == TAKEN


async def test_a_full_sender_may_replace_its_next_transaction_only(relayer: Relayer) -> None:
    for tx_nonce in range(16):
        await relayer.send(relayer.sign(tx_nonce))

    assert await relayer.words(relayer.sign(5, max_fee_wei=20 * GWEI, tip_wei=2_000)) == "txpool is full"
    assert await relayer.send(relayer.sign(0, max_fee_wei=20 * GWEI, tip_wei=2_000)) == TAKEN
    assert await relayer.words(relayer.sign(5)) == "already known"


async def test_parked_and_gapped_transactions_take_slots_too(base_sim: BaseSim, relayer: Relayer) -> None:
    base_sim.rules = Rules(slots_max=3)
    await relayer.send(relayer.sign(0, max_fee_wei=100_000))
    await relayer.send(relayer.sign(1))
    await relayer.send(relayer.sign(7))

    assert await relayer.words(relayer.sign(2)) == "txpool is full"


async def test_another_sender_has_its_own_slots(base_sim: BaseSim, relayer: Relayer, evm: EvmClient) -> None:
    base_sim.rules = Rules(slots_max=1)
    other = Relayer(dev_account("relayer", 901), evm)
    await base_sim.upstream.result("anvil_setBalance", other.account.address, hex(ETHER))
    await relayer.send(relayer.sign(0))

    assert await relayer.words(relayer.sign(1)) == "txpool is full"
    assert await other.send(other.sign(0)) == TAKEN


async def test_a_delegated_sender_has_one_slot(base_sim: BaseSim, relayer: Relayer) -> None:
    await base_sim.upstream.result("anvil_setCode", relayer.account.address, "0xef0100" + "11" * 20)

    assert await relayer.words(relayer.sign(1)) == "gapped-nonce tx from delegated accounts"
    assert await relayer.send(relayer.sign(0)) == TAKEN
    outcome = await relayer.send(relayer.sign(1))
    assert outcome == SendOutcome(error=NodeError.TXPOOL_FULL, message="in-flight transaction limit reached for delegated accounts")


# Replacement.


@pytest.mark.parametrize(
    ("max_fee_wei", "tip_wei", "taken"),
    [
        (11 * GWEI, 1_100, True),
        (11 * GWEI - 1, 1_100, False),
        (11 * GWEI, 1_099, False),
        (11 * GWEI, 0, True),
        (20 * GWEI, 1_000, False),
        (10 * GWEI, 5_000, False),
    ],
)
async def test_a_replacement_pays_ten_percent_more_in_both_fields(
    base_sim: BaseSim, relayer: Relayer, max_fee_wei: int, tip_wei: int, *, taken: bool
) -> None:
    old, new = relayer.sign(0), relayer.sign(0, max_fee_wei=max_fee_wei, tip_wei=tip_wei)
    await relayer.send(old)
    outcome = await relayer.send(new)
    await base_sim.mine()

    expected = SendOutcome(error=NodeError.REPLACEMENT_UNDERPRICED, message="replacement transaction underpriced")
    assert outcome == (TAKEN if taken else expected)
    assert await mined(base_sim, old, new) == [not taken, taken]


async def test_from_no_tip_any_tip_replaces(base_sim: BaseSim, relayer: Relayer) -> None:
    old, new = relayer.sign(0, tip_wei=0), relayer.sign(0, max_fee_wei=11 * GWEI, tip_wei=1)
    await relayer.send(old)

    assert await relayer.send(new) == TAKEN
    await base_sim.mine()
    assert await mined(base_sim, old, new) == [False, True]


async def test_replacing_a_transaction_keeps_the_later_ones(base_sim: BaseSim, relayer: Relayer) -> None:
    later = [relayer.sign(tx_nonce) for tx_nonce in (1, 2)]
    for transaction in (relayer.sign(0), *later):
        await relayer.send(transaction)
    new = relayer.sign(0, max_fee_wei=12 * GWEI, tip_wei=2_000)
    await relayer.send(new)
    await base_sim.mine()

    assert await mined(base_sim, new, *later) == [True, True, True]


# The base fee.


async def test_a_transaction_below_the_base_fee_is_parked_and_mined_when_the_fee_has_fallen(base_sim: BaseSim, relayer: Relayer) -> None:
    transaction = relayer.sign(0, max_fee_wei=2 * GWEI)
    await base_sim.set_base_fee(3 * GWEI)

    assert await relayer.send(transaction) == TAKEN
    assert base_sim.pool.parked() == [transaction]
    assert await relayer.words(transaction) == "already known"
    found = await relayer.evm.rpc.call("eth_getTransactionByHash", (transaction.tx_hash,), relayer.evm.deadline_in(PATIENCE_S))
    assert transaction.tx_hash.encode() in bytes(found)
    await base_sim.mine()
    assert await mined(base_sim, transaction) == [False]
    await base_sim.set_base_fee(2 * GWEI)
    await base_sim.mine()
    assert await mined(base_sim, transaction) == [True]


async def test_a_base_fee_that_rises_parks_what_anvil_would_lose(base_sim: BaseSim, relayer: Relayer) -> None:
    transactions = [relayer.sign(0, max_fee_wei=2 * GWEI), relayer.sign(1), relayer.sign(2)]
    for transaction in transactions:
        await relayer.send(transaction)
    await base_sim.upstream.result("anvil_setNextBlockBaseFeePerGas", hex(5 * GWEI))
    await base_sim.upstream.result("evm_mine")
    await base_sim.upstream.result("anvil_setNextBlockBaseFeePerGas", hex(5 * GWEI))
    await base_sim.mine()
    assert await mined(base_sim, *transactions) == [False, False, False]
    assert base_sim.pool.parked()[:1] == transactions[:1]

    await base_sim.set_base_fee(GWEI)
    await base_sim.mine()
    assert await mined(base_sim, *transactions) == [True, True, True]


async def test_a_parked_transaction_is_replaced_by_one_that_pays(base_sim: BaseSim, relayer: Relayer) -> None:
    await base_sim.set_base_fee(5 * GWEI)
    old, new = relayer.sign(0, max_fee_wei=4 * GWEI), relayer.sign(0, max_fee_wei=6 * GWEI, tip_wei=2_000)
    await relayer.send(old)
    await relayer.send(new)
    await base_sim.mine()

    assert await mined(base_sim, old, new) == [False, True]


async def test_a_chain_that_mines_by_the_clock_is_followed(start_sim: Callable[..., Awaitable[BaseSim]], connect: Any) -> None:
    sim = await start_sim(chain={"block_time_s": 0.05})
    relayer = Relayer(dev_account("relayer", 900), connect(sim.url))
    await sim.upstream.result("anvil_setBalance", relayer.account.address, hex(ETHER))
    await sim.set_base_fee(10**9)
    transaction = relayer.sign(0, max_fee_wei=4 * 10**8)

    assert await relayer.send(transaction) == TAKEN
    async with asyncio.timeout(PATIENCE_S):  # empty blocks take an eighth off the base fee each
        while not (await mined(sim, transaction))[0]:
            await asyncio.sleep(0.02)


async def test_a_chain_that_mines_at_once_is_followed(start_sim: Callable[..., Awaitable[BaseSim]], connect: Any) -> None:
    sim = await start_sim(chain={})
    relayer = Relayer(dev_account("relayer", 900), connect(sim.url))
    await sim.upstream.result("anvil_setBalance", relayer.account.address, hex(ETHER))
    for tx_nonce in range(20):
        assert await relayer.send(relayer.sign(tx_nonce)) == TAKEN

    assert await relayer.words(relayer.sign(19)) == "nonce too low: next nonce 20, tx nonce 19"
    assert '"status":"0x1"' in await sync(relayer, relayer.sign(20), 1_000)


async def test_tip_competition_keeps_low_tips_out_of_blocks(base_sim: BaseSim, relayer: Relayer) -> None:
    base_sim.rules = Rules(tip_min_wei=5_000)
    low, high = relayer.sign(0, tip_wei=1_000), relayer.sign(0, max_fee_wei=12 * GWEI, tip_wei=5_000)
    await relayer.send(low)
    await base_sim.mine(2)
    assert await mined(base_sim, low) == [False]

    await relayer.send(high)
    await base_sim.mine()
    assert await mined(base_sim, low, high) == [False, True]


async def test_transactions_are_withheld_on_command(base_sim: BaseSim, relayer: Relayer) -> None:
    transaction = relayer.sign(0)
    await relayer.send(transaction)
    base_sim.pool.hold = lambda pending: pending.sender == relayer.address
    await base_sim.mine()
    assert await mined(base_sim, transaction) == [False]

    base_sim.pool.hold = None
    await base_sim.mine()
    assert await mined(base_sim, transaction) == [True]


# Losses.


async def test_an_evicted_transaction_is_gone_in_silence_and_the_later_ones_wait(base_sim: BaseSim, relayer: Relayer) -> None:
    first, second, third = (relayer.sign(tx_nonce) for tx_nonce in range(3))
    for transaction in (first, second, third):
        await relayer.send(transaction)
    assert await base_sim.pool.evict(first.tx_hash)
    await base_sim.mine()
    assert await mined(base_sim, first, second, third) == [False, False, False]
    assert base_sim.pool.pending() == [second, third]

    assert await relayer.send(first) == TAKEN
    await base_sim.mine()
    assert await mined(base_sim, first, second, third) == [True, True, True]


@pytest.mark.parametrize("through_the_proxy", [True, False])
async def test_what_somebody_drops_from_anvil_is_evicted(base_sim: BaseSim, relayer: Relayer, *, through_the_proxy: bool) -> None:
    first, second = relayer.sign(0), relayer.sign(1)
    for transaction in (first, second):
        await relayer.send(transaction)
    if through_the_proxy:
        await relayer.evm.rpc.call("anvil_dropTransaction", (first.tx_hash,), relayer.evm.deadline_in(PATIENCE_S))
    else:
        await base_sim.upstream.result("anvil_dropTransaction", first.tx_hash)
    await base_sim.mine()

    assert base_sim.pool.pending() == [second]
    assert await relayer.send(first) == TAKEN
    await base_sim.mine()
    assert await mined(base_sim, first, second) == [True, True]


async def test_all_is_forgotten_with_the_pool(base_sim: BaseSim, relayer: Relayer) -> None:
    transaction = relayer.sign(0)
    for method, parameters in (("anvil_dropAllTransactions", ()), ("anvil_removePoolTransactions", (relayer.account.address,))):
        assert await relayer.send(transaction) == TAKEN
        await relayer.evm.rpc.call(method, parameters, relayer.evm.deadline_in(PATIENCE_S))
        assert base_sim.pool.pending() == []


async def test_a_drained_sender_waits_for_money(base_sim: BaseSim, relayer: Relayer) -> None:
    transactions = [relayer.sign(0), relayer.sign(1)]
    for transaction in transactions:
        await relayer.send(transaction)
    await base_sim.upstream.result("anvil_setBalance", relayer.account.address, "0x1")
    await base_sim.mine()
    assert (await mined(base_sim, *transactions), base_sim.pool.pending()) == ([False, False], transactions)

    await base_sim.upstream.result("anvil_setBalance", relayer.account.address, hex(ETHER))
    await base_sim.mine()
    assert await mined(base_sim, *transactions) == [True, True]


async def test_a_reorganisation_does_not_bring_transactions_back(base_sim: BaseSim, relayer: Relayer) -> None:
    transaction = relayer.sign(0)
    await relayer.send(transaction)
    await base_sim.mine()
    await base_sim.upstream.result("anvil_reorg", 1, [])
    assert await mined(base_sim, transaction) == [False]

    assert await relayer.send(transaction) == TAKEN
    await base_sim.mine()
    assert await mined(base_sim, transaction) == [True]


# Words.


async def test_a_used_tx_nonce_is_told_with_the_next_one(base_sim: BaseSim, relayer: Relayer) -> None:
    for tx_nonce in range(3):
        await relayer.send(relayer.sign(tx_nonce))
    await base_sim.mine()

    outcome = await relayer.send(relayer.sign(1))
    assert outcome == SendOutcome(error=NodeError.NONCE_TOO_LOW, message="nonce too low: next nonce 3, tx nonce 1")


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"gas": 2**24 + 1}, NodeError.GAS_LIMIT, "gas limit too high"),
        ({"gas": 20_999}, NodeError.GAS_LIMIT, "intrinsic gas too low"),
        ({"gas": 30_000, "data": b"\xff" * 1_000}, NodeError.GAS_LIMIT, "intrinsic gas too low"),
        ({"tip_wei": 11 * GWEI}, NodeError.INVALID_TRANSACTION, "max priority fee per gas higher than max fee per gas"),
        ({"chainId": 1}, NodeError.INVALID_TRANSACTION, "invalid chain ID"),
        (
            {"value": 20 * ETHER},
            NodeError.INSUFFICIENT_FUNDS,
            f"insufficient funds for gas * price + value: have {10 * ETHER} want {20 * ETHER + 21_000 * 10 * GWEI}",
        ),
        ({"gas": 10_000_000, "data": b"\x00" * 128 * 1024}, NodeError.INVALID_TRANSACTION, "oversized data: transaction size 131"),
    ],
)
async def test_refusals_are_in_reths_words(relayer: Relayer, changes: dict[str, Any], kind: NodeError, words: str) -> None:
    outcome = await relayer.send(relayer.sign(0, **changes))

    assert outcome.error is kind
    assert outcome.message.startswith(words)


async def test_the_largest_gas_limit_is_taken(relayer: Relayer) -> None:
    assert await relayer.send(relayer.sign(0, gas=2**24)) == TAKEN


async def test_without_the_pool_anvil_answers_itself(base_sim: BaseSim, relayer: Relayer) -> None:
    base_sim.rules = Rules(pool=False)
    await relayer.send(relayer.sign(0))

    assert await relayer.words(relayer.sign(0)) == "transaction already imported"
    assert await relayer.words(relayer.sign(1, max_fee_wei=1, tip_wei=0)) == "max fee per gas less than block base fee"
    assert await relayer.send(relayer.sign(0, max_fee_wei=int(10.5 * GWEI), tip_wei=1_050)) == TAKEN


@pytest.mark.parametrize("kind", ["legacy", "access list"])
async def test_older_transaction_types_are_read_too(base_sim: BaseSim, relayer: Relayer, kind: str) -> None:
    fields: dict[str, Any] = {"chainId": 84532, "nonce": 0, "to": relayer.account.address, "value": 1, "gas": 30_000, "data": b""}
    fields |= {"gasPrice": 10 * GWEI} | ({} if kind == "legacy" else {"type": 1, "accessList": []})
    transaction = RawTransaction.decode(bytes(relayer.account.sign_transaction(fields).raw_transaction))
    assert (transaction.sender, transaction.max_fee_wei, transaction.value_wei) == (relayer.address, 10 * GWEI, 1)

    assert await relayer.send(transaction) == TAKEN
    await base_sim.mine()
    assert await mined(base_sim, transaction) == [True]


async def test_parallel_sends_never_exceed_the_slots(base_sim: BaseSim, relayer: Relayer) -> None:
    outcomes = await asyncio.gather(*(relayer.send(relayer.sign(tx_nonce)) for tx_nonce in range(40)))

    kinds = [outcome.error for outcome in outcomes]
    assert 16 <= kinds.count(None) <= 17  # the very next tx_nonce is let in at the limit
    assert set(kinds) == {None, NodeError.TXPOOL_FULL}
    assert len(base_sim.pool.pending()) == kinds.count(None)


async def test_the_pool_tells_what_it_holds(base_sim: BaseSim, relayer: Relayer) -> None:
    await base_sim.set_base_fee(3 * GWEI)
    await relayer.send(relayer.sign(0, max_fee_wei=4 * GWEI))
    await relayer.send(relayer.sign(1, max_fee_wei=2 * GWEI))

    content = bytes(await relayer.evm.rpc.call("txpool_contentFrom", (relayer.address,), relayer.evm.deadline_in(PATIENCE_S))).decode()
    pending, queued = content.split('"queued"')
    assert (relayer.sign(0, max_fee_wei=4 * GWEI).tx_hash in pending, relayer.sign(1, max_fee_wei=2 * GWEI).tx_hash in queued) == (
        True,
        True,
    )


async def test_pending_does_not_count_the_pool_unless_told(base_sim: BaseSim, relayer: Relayer) -> None:
    await relayer.send(relayer.sign(0))
    counts = []
    for counts_pool in (False, True):
        base_sim.rules = Rules(pending_counts_pool=counts_pool)
        counts.append(await relayer.evm.transaction_count(Address(relayer.address), "pending", relayer.evm.deadline_in(PATIENCE_S)))

    assert counts == [0, 1]


# eth_sendRawTransactionSync.


async def sync(relayer: Relayer, transaction: RawTransaction, *timeout: int) -> Any:
    call = RpcCall("eth_sendRawTransactionSync", ("0x" + transaction.raw.hex(), *timeout))
    (answer,) = await relayer.evm.rpc.batch([call], relayer.evm.deadline_in(PATIENCE_S))
    return answer if isinstance(answer, RpcError) else bytes(answer).decode()


async def test_sync_returns_the_receipt_once_it_is_mined(base_sim: BaseSim, relayer: Relayer) -> None:
    transaction = relayer.sign(0)
    answer = asyncio.create_task(sync(relayer, transaction, 5_000))
    while not base_sim.pool.pending():
        await asyncio.sleep(0.001)
    await base_sim.mine()

    assert f'"transactionHash":"{transaction.tx_hash}"' in await answer
    assert [sent.tx_hash for sent in base_sim.sent] == [transaction.tx_hash]


async def test_sync_ends_with_code_4_and_the_transaction_stays(base_sim: BaseSim, relayer: Relayer) -> None:
    transaction = relayer.sign(0)
    error = await sync(relayer, transaction, 50)

    words = f"Transaction {transaction.tx_hash} was added to the mempool but wasn't confirmed within 50ms."
    assert (error.code, error.message) == (4, words)
    await base_sim.mine()
    assert await mined(base_sim, transaction) == [True]


async def test_sync_takes_no_longer_timeout_than_six_seconds(base_sim: BaseSim, relayer: Relayer) -> None:
    error = await sync(relayer, relayer.sign(0), 6_001)

    assert (error.code, error.message) == (-32602, "time out too long, timeout: 6001 ms, max: 6s")
    assert base_sim.pool.pending() == []


async def test_sync_refuses_as_a_plain_send_does(base_sim: BaseSim, relayer: Relayer) -> None:
    await relayer.send(relayer.sign(0))

    assert (await sync(relayer, relayer.sign(0), 50)).kind is NodeError.ALREADY_KNOWN
    base_sim.rules = Rules(send_sync="unsupported")
    assert (await sync(relayer, relayer.sign(0), 50)).kind is NodeError.METHOD_UNSUPPORTED


async def test_strict_sync_says_at_once_that_a_transaction_cannot_run(base_sim: BaseSim, relayer: Relayer) -> None:
    base_sim.rules = Rules(send_sync="eip7966")
    gapped = await sync(relayer, relayer.sign(3), 5_000)
    parked = await sync(relayer, relayer.sign(0, max_fee_wei=100_000), 5_000)
    late = await sync(relayer, relayer.sign(0, tip_wei=2_000), 50)

    assert [(gapped.code, gapped.data), parked.code, late.code] == [(6, None), 5, 4]
    assert [transaction.tx_nonce for transaction in base_sim.pool.pending()] == [0]
    assert late.data == bytes.fromhex(relayer.sign(0, tip_wei=2_000).tx_hash[2:])


async def test_faults_befall_sync_sends_too(base_sim: BaseSim, relayer: Relayer) -> None:
    async with base_sim.faults(Delay(0.05, method="eth_sendRawTransaction*")) as (planted,):
        await sync(relayer, relayer.sign(0), 10)
    assert planted.struck == 1
