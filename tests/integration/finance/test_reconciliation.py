"""A real engine settles on a real chain; then the ledger is falsified, or the chain rewritten, and it is seen."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from facilitator.chain.evm import EvmClient, Settings
from facilitator.chain.rpc import NodeError, RpcClient
from facilitator.clock import SystemClock
from facilitator.devstack.buyer import Buyer, requirements
from facilitator.devstack.stack import Anvil
from facilitator.devstack.token import Token
from facilitator.domain.abi import Log
from facilitator.errors import ChainFault, ConfigFault
from facilitator.finance import reconciliation
from facilitator.finance.reconciliation import Kind, Report, reconcile
from facilitator.units import Address
from tests.fixtures.oracle import assert_ledger_is_chain
from tests.fixtures.waiting import PATIENCE_S
from tests.integration.settlement.conftest import NETWORK, USDC, Rig, decoded

PAY_TO = "0x2222222222222222222222222222222222222222"
OTHER = "0x9999999999999999999999999999999999999999"
StartEngine = Callable[..., Awaitable[Rig]]
NewBuyer = Callable[..., Awaitable[Buyer]]


class Books:
    """An engine, its chain, and the comparison of both."""

    def __init__(self, rig: Rig, rpc_url: str, buyer: Buyer) -> None:
        self.rig = rig
        self.rpc_url = rpc_url
        self.buyer = buyer

    async def pay(self, count: int, amount_atomic: int = 10_000) -> None:
        terms = requirements(2, pay_to=PAY_TO, amount_atomic=amount_atomic)
        payments = [decoded(self.buyer.pay(2, terms), terms) for _ in range(count)]
        answers = await asyncio.gather(*(self.rig.engine.settle(self.rig.caller(), payment, None) for payment in payments))
        assert [answer.result.refusal for answer in answers] == [None] * count

    async def tamper(self, sql: str, *arguments: object) -> None:
        """As somebody may who owns the tables: nobody else gets past the journal's trigger. The engine ends, or it would mend it."""
        await self.rig.die()
        async with self.rig.db.session() as session:
            await session._connection.execute("alter table journal_entry disable trigger journal_entry_append_only")
            await session._connection.execute(sql, *arguments)
            await session._connection.execute("alter table journal_entry enable trigger journal_entry_append_only")

    async def report(self, from_block: int = 0, to_block: int | None = None, evm: EvmClient | None = None) -> Report:
        evm = evm or self.rig.evm
        if to_block is None:
            to_block = (await evm.head(evm.deadline_in(PATIENCE_S))).number
        return await reconcile(self.rig.db, evm, NETWORK, [USDC.address], from_block, to_block)

    async def kinds(self) -> list[Kind]:
        return sorted(difference.kind for difference in (await self.report()).differences)


@pytest.fixture
async def books(start_engine: StartEngine, new_buyer: NewBuyer, chain: Anvil) -> Books:
    return Books(await start_engine(), chain.rpc_url, await new_buyer())


async def test_what_the_engine_settled_is_what_the_chain_says(books: Books, database_url: str) -> None:
    await books.pay(7, amount_atomic=1_234)
    report = await assert_ledger_is_chain(database_url, books.rpc_url, settled=7)
    assert (report.payments, report.transfers) == (7, 7)
    assert report.amounts_atomic == {USDC.address: 7 * 1_234}


async def test_an_empty_ledger_beside_a_chain_of_strangers_is_balanced(books: Books, database_url: str) -> None:
    report = await assert_ledger_is_chain(database_url, books.rpc_url, settled=0)
    assert (report.balanced, report.payments, report.transfers, report.amounts_atomic) == (True, 0, 0, {})


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("update settlement set tx_hash = '0x' || repeat('ab', 32), log_index = 0", [Kind.PROOF_DIFFERS]),
        ("update settlement set auth_nonce = '0x' || repeat('ab', 32)", [Kind.TERMS_DIFFER]),
        ("update settlement set payer = $1", [Kind.BOOKED_OTHERWISE, Kind.TERMS_DIFFER]),
        ("update settlement set pay_to = $1", [Kind.BOOKED_OTHERWISE, Kind.TERMS_DIFFER]),
        ("update settlement set amount_atomic = amount_atomic + 1", [Kind.BOOKED_OTHERWISE, Kind.TERMS_DIFFER]),
        ("update settlement set log_index = log_index + 1", [Kind.PROOF_DIFFERS]),
        ("update settlement set block_hash = '0x' || repeat('ab', 32)", [Kind.PROOF_DIFFERS]),
        ("update settlement set state = 'submitted', resolved_at = null", [Kind.OPEN_BUT_USED]),
        ("update settlement set state = 'failed', reason = 'TRANSACTION_FAILED'", [Kind.BOOKED_OTHERWISE, Kind.NOT_IN_LEDGER]),
        ("update settlement set state = 'external', reason = 'SETTLEMENT_EXTERNAL'", [Kind.BOOKED_OTHERWISE, Kind.NOT_IN_LEDGER]),
        ("update settlement set state = 'finalized'", [Kind.BOOKED_OTHERWISE]),
        ("update journal_entry set amount_atomic = amount_atomic - 1", [Kind.BOOKED_OTHERWISE]),
        ("delete from journal_entry", [Kind.BOOKED_OTHERWISE]),
        ("update relayer_transaction set tx_hash = '0x' || repeat('ab', 32)", [Kind.STATE_DIFFERS]),
        (
            "with i as(delete from slot_item), m as(delete from settlement_move), j as(delete from journal_entry) delete from settlement",
            [Kind.NOT_IN_LEDGER],
        ),
    ],
)
async def test_a_falsified_ledger_is_seen(books: Books, database_url: str, sql: str, found: list[Kind]) -> None:
    await books.pay(1)
    assert await books.kinds() == []
    await books.tamper(sql, *([OTHER] if "$1" in sql else []))
    assert await books.kinds() == found
    with pytest.raises(AssertionError, match="ledger and chain differ"):
        await assert_ledger_is_chain(database_url, books.rpc_url)


async def test_a_payment_in_the_ledger_that_never_happened_is_seen(books: Books) -> None:
    await books.pay(2)
    await books.tamper(
        "update settlement set auth_nonce = '0x' || repeat('ab', 32), tx_hash = '0x' || repeat('ab', 32)"
        " where settlement_id = (select max(settlement_id::text)::uuid from settlement)"
    )
    assert await books.kinds() == [Kind.ANSWERED_UNPAID, Kind.NOT_IN_LEDGER, Kind.NOT_ON_CHAIN]


async def test_two_settlements_with_one_proof_are_seen(books: Books) -> None:
    await books.pay(2)
    await books.tamper(
        "update settlement s set tx_hash = o.tx_hash, log_index = o.log_index, block_hash = o.block_hash from settlement o"
        " where o.settlement_id < s.settlement_id"
    )
    assert await books.kinds() == [Kind.PAID_TWICE]
    await books.tamper(
        "update settlement s set auth_nonce = '0x' || repeat('ab', 32)"
        " where exists (select from settlement o where o.settlement_id < s.settlement_id)"
    )
    assert await books.kinds() == [Kind.NOT_IN_LEDGER, Kind.PAID_TWICE]


async def test_a_success_whose_payment_left_the_chain_is_seen(
    start_engine: StartEngine, new_buyer: NewBuyer, new_relayer: Callable[..., Awaitable[Any]], start_chain: Callable[..., Awaitable[Anvil]]
) -> None:
    own = await start_chain()
    token = Token.at(own.rpc_url)
    rig = await start_engine(rpc_url=own.rpc_url, relayers=[await new_relayer(token=token)], finality_poll_s=600.0)
    books = Books(rig, own.rpc_url, await new_buyer(token=token))
    await rig.evm.connect(rig.evm.deadline_in(PATIENCE_S))
    before = await own.node.call("evm_snapshot")
    await books.pay(1)
    assert await books.kinds() == []

    await own.node.call("evm_revert", before)
    await own.node.call("anvil_mine", "0x5")

    assert await books.kinds() == [Kind.ANSWERED_UNPAID, Kind.NOT_ON_CHAIN]
    await books.tamper(
        "update settlement set state = 'submitted', resolved_at = null, log_index = null, block_number = null, block_hash = null"
    )
    assert await books.kinds() == [Kind.ANSWERED_UNPAID]


async def test_a_range_sees_its_own_blocks_only(books: Books) -> None:
    await books.pay(1)
    (first,) = await books.rig.fetch("select block_number from settlement")
    await books.pay(1)
    upper = await books.report(first["block_number"] + 1)
    lower = await books.report(0, first["block_number"])
    assert (lower.payments, upper.payments) == (1, 1)
    assert lower.balanced
    assert upper.balanced
    assert upper.to_hash != lower.to_hash

    await books.tamper("update settlement set amount_atomic = 1 where block_number = $1", first["block_number"])
    assert (await books.report(first["block_number"] + 1)).balanced
    assert not (await books.report(0, first["block_number"])).balanced


async def test_ranges_that_hold_too_many_logs_are_halved(books: Books) -> None:
    for _ in range(6):
        await books.pay(1)
    start = (await books.rig.fetch("select min(block_number) as first from settlement"))[0]["first"]
    narrow = EvmClient(NETWORK, RpcClient([books.rpc_url], SystemClock()), Settings(logs_max=2))
    try:
        report = await books.report(start, evm=narrow)
    finally:
        await narrow.close()
    assert report.balanced
    assert report.transfers == 6


class Noting(EvmClient):
    """Notes how many logs each answer had."""

    def __init__(self, rpc: RpcClient) -> None:
        super().__init__(NETWORK, rpc)
        self.found: list[int] = []

    async def logs(self, *arguments: Any, **wanted: Any) -> tuple[Log, ...]:
        logs = await super().logs(*arguments, **wanted)
        self.found.append(len(logs))
        return logs


async def test_as_many_blocks_are_read_at_once_as_make_an_answer_of_fair_size(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciliation, "_BLOCKS_FIRST", 1)
    for _ in range(9):
        await books.pay(1)  # two logs in a block
    start = (await books.rig.fetch("select min(block_number) as first from settlement"))[0]["first"]
    for aimed, found in [(1, [2] * 9), (4, [2, 4, 4, 4, 4]), (1_000, [2, 4, 8, 4])]:
        monkeypatch.setattr(reconciliation, "_LOGS_AIMED", aimed)
        evm = Noting(RpcClient([books.rpc_url], SystemClock()))
        try:
            report = await books.report(start, evm=evm)
        finally:
            await evm.close()
        assert (report.balanced, report.transfers, evm.found) == (True, 9, found)


async def test_a_node_that_wants_shorter_ranges_is_asked_for_a_longer_one_once(books: Books) -> None:
    for _ in range(6):
        await books.pay(1)
    start = (await books.rig.fetch("select min(block_number) as first from settlement"))[0]["first"]
    asked: list[int] = []

    class Narrow(EvmClient):
        async def logs(self, *arguments: Any, **wanted: Any) -> tuple[Log, ...]:
            asked.append(wanted["to_block"] - wanted["from_block"] + 1)
            if asked[-1] > 2:
                raise ChainFault(NodeError.RANGE_TOO_LARGE.value, "at most 2 blocks")
            return await super().logs(*arguments, **wanted)

    evm = Narrow(NETWORK, RpcClient([books.rpc_url], SystemClock()))
    try:
        assert (await books.report(start, start + 5, evm=evm)).transfers == 6
    finally:
        await evm.close()
    assert asked == [6, 3, 1, 1, 1, 1, 1, 1]


async def test_pages_hold_every_row(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facilitator.store.reconciliation.PAGE_ROWS", 3)
    await books.pay(10)
    report = await books.report()
    assert report.balanced
    assert report.payments == 10
    await books.tamper("update settlement set state = 'submitted', resolved_at = null, log_index = null, block_number = null")
    assert await books.kinds() == [Kind.OPEN_BUT_USED] * 10


async def test_a_block_of_the_future_is_a_fault_and_no_absence(books: Books) -> None:
    head = await books.rig.evm.head(books.rig.evm.deadline_in(PATIENCE_S))
    with pytest.raises(ChainFault, match="has no block"):
        await books.report(0, head.number + 1_000)
    with pytest.raises(ConfigFault, match="from_block"):
        await books.report(5, 4)


async def test_another_asset_is_another_matter(books: Books) -> None:
    await books.pay(1)
    head = await books.rig.evm.head(books.rig.evm.deadline_in(PATIENCE_S))
    report = await reconcile(books.rig.db, books.rig.evm, NETWORK, [Address(OTHER)], 0, head.number)
    assert {difference.kind for difference in report.differences} == {Kind.NOT_ON_CHAIN, Kind.ANSWERED_UNPAID}


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("update relayer set next_tx_nonce = next_tx_nonce + 1", "goes on at"),
        ("update relayer_slot set state = 'open', mined_tx_hash = null", "open relayer slots"),
        ("update slot_item set unresolved = true", "unresolved slot items"),
        ("insert into settlement_move select settlement_id, 9, 'a', 'b' from settlement", "a history with a hole"),
        ("update relayer_slot set tx_nonce = tx_nonce + 7", "goes on at|on chain"),
        ("update slot_item set settlement_id = (select min(settlement_id::text)::uuid from settlement)", "never carried it"),
        ("update journal_entry set amount_atomic = amount_atomic + 1 where book = 'own'", "wei for gas"),
        ("delete from journal_entry where book = 'own'", "wei for gas"),
        ("update slot_item set cost_wei = cost_wei + 1", "shares do not add up"),
    ],
)
async def test_the_oracle_sees_what_is_not_a_matter_of_money(books: Books, database_url: str, sql: str, words: str) -> None:
    await books.pay(2)
    await assert_ledger_is_chain(database_url, books.rpc_url, settled=2)
    await books.tamper(sql)
    with pytest.raises(AssertionError, match=words):
        await assert_ledger_is_chain(database_url, books.rpc_url)


async def test_the_oracle_sees_a_transaction_that_was_never_recorded(
    books: Books, database_url: str, chain: Anvil, start_engine: StartEngine, new_relayer: Callable[..., Awaitable[Any]]
) -> None:
    key = await new_relayer()
    rig = await start_engine(relayers=[key])
    own = Books(rig, books.rpc_url, books.buyer)
    await own.pay(1)
    await chain.node.call("anvil_impersonateAccount", key.address)
    await chain.node.call("eth_sendTransaction", {"from": key.address, "to": key.address, "value": "0x0"})
    await chain.node.call("anvil_stopImpersonatingAccount", key.address)
    with pytest.raises(AssertionError, match="not on record"):
        await assert_ledger_is_chain(database_url, books.rpc_url)


async def test_the_oracle_counts(books: Books, database_url: str) -> None:
    await books.pay(2)
    with pytest.raises(AssertionError, match="expected 3 paid settlements, got 2"):
        await assert_ledger_is_chain(database_url, books.rpc_url, settled=3)
