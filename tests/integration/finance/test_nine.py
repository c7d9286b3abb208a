"""One of each class of discrepancy on a real chain: all nine are named, each once and nothing else; explained, all is well."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from facilitator.clock import SystemClock
from facilitator.devstack.accounts import dev_account
from facilitator.errors import ConfigFault
from facilitator.finance.examination import Examiner, examine, explain
from facilitator.finance.settings import Settings
from facilitator.store import discrepancies
from tests.fixtures.service import BASE_SEPOLIA, ServeFailed, ServeProcess
from tests.fixtures.waiting import PATIENCE_S
from tests.integration.settlement.conftest import NETWORK, USDC
from tests.integration.settlement.test_outcomes import Bench, bench

__all__ = ["bench"]

_ENDED = {"finalized", "external", "cancelled"}


class Ledger:
    """A busy chain whose books are right, and the means to make them wrong."""

    def __init__(self, bench: Bench, connection: Any) -> None:
        self.bench = bench
        self.connection = connection
        self.ids: list[Any] = []
        self.relayer = dev_account("relayer", 1).address.lower()

    async def busy(self, payments: int) -> None:
        """So many payments, each in a block of its own, all final; then the engine stops."""
        for _ in range(payments):
            task, _, _ = await self.bench.start_settling()
            answer = await self.bench.mine_until_done(task)
            assert answer.result.refusal is None
        task, payment, _ = await self.bench.start_settling()
        await self.bench.execute_elsewhere(payment)
        await self.bench.mine_until_done(task)
        async with asyncio.timeout(PATIENCE_S):
            while {row["state"] for row in await self.bench.rig.fetch("select state from settlement")} - _ENDED:
                await self.bench.call("evm_mine")
                await asyncio.sleep(0.1)
            while await self.bench.rig.fetch("select from relayer_slot where state <> 'finalized'"):
                await self.bench.call("evm_mine")
                await asyncio.sleep(0.1)
        await self.bench.rig.engine.stop(3.0)
        rows = await self.connection.fetch("select settlement_id from settlement where state = 'finalized' order by settlement_id")
        self.ids = [row["settlement_id"] for row in rows]
        await self.connection.execute("set session_replication_role = replica")  # a superuser need not mind triggers and keys

    async def look(self) -> list[str]:
        """The classes that a look at the whole chain finds and nobody has explained."""
        evm = self.bench.rig.evm
        head = await evm.head(evm.deadline_in(PATIENCE_S))
        await examine(self.bench.rig.db, evm, NETWORK, [USDC.address], 0, head.number)
        return sorted(found.class_ for found in await discrepancies.list_all(self.bench.rig.db, NETWORK))

    async def tamper(self, sql: str, *arguments: object) -> None:
        done = await self.connection.execute(sql, *arguments)
        assert not done.endswith(" 0"), f"changed nothing: {sql}"

    async def invent(self) -> None:
        """R1: a payment that never happened, booked in a block that exists."""
        new, auth_nonce, word = "00000000-0000-7000-8000-0000000000ff", "0x" + "ab" * 32, "0x" + "cd" * 32
        await self.connection.execute(
            f"create temp table clone as select * from settlement where settlement_id = '{self.ids[0]}'"  # noqa: S608 - a UUID
        )
        await self.tamper("update clone set settlement_id = $1, auth_nonce = $2, tx_hash = $3, log_index = 0", new, auth_nonce, word)
        await self.tamper("insert into settlement select * from clone")
        await self.tamper(
            "with p as (insert into journal_entry (phase, debit, credit, asset, amount_atomic, settlement_id, admission)"
            " select 'pending', debit, credit, asset, amount_atomic, $2::uuid, 1 from journal_entry"
            " where settlement_id = $1 and phase = 'pending' returning *)"
            " insert into journal_entry (phase, debit, credit, asset, amount_atomic, settlement_id, admission, resolves)"
            " select 'posted', debit, credit, asset, amount_atomic, settlement_id, 1, entry_id from p",
            self.ids[0],
            new,
        )

    async def plant(self) -> None:
        """One of each class but R4, which happened, and R9 and R6, which the chain does."""
        await self.invent()
        for table in ("journal_entry", "settlement_move", "slot_item", "settlement"):
            await self.tamper(f"delete from {table} where settlement_id = $1", self.ids[1])  # noqa: S608 - R2
        await self.tamper("update settlement set amount_atomic = amount_atomic + 1 where settlement_id = $1", self.ids[2])  # R3
        await self.tamper(
            "update relayer_transaction set gas_used = gas_used + 1"
            " where tx_hash = (select tx_hash from settlement where settlement_id = $1)",
            self.ids[3],
        )  # R5
        await self.tamper(
            "update settlement s set tx_hash = o.tx_hash, log_index = o.log_index, block_number = o.block_number, block_hash = o.block_hash"
            " from settlement o where s.settlement_id = $1 and o.settlement_id = $2",
            self.ids[4],
            self.ids[5],
        )  # R7
        await self.tamper("update settlement set block_hash = '0x' || repeat('ee', 32) where settlement_id = $1", self.ids[6])  # R8
        balance = int(await self.bench.call("eth_getBalance", self.relayer, "latest"), 16)
        await self.bench.call("anvil_setBalance", self.relayer, hex(balance + 12_345))  # R6
        await self.bench.call("evm_mine")

    async def cancel_one(self) -> None:
        """R9: its payer cancelled it on chain after it was admitted."""
        task, payment, _ = await self.bench.start_settling()
        await self.bench.cancel(payment)
        await self.bench.mine_until_done(task)


@pytest.fixture
async def ledger(bench: Bench, database_url: str) -> AsyncIterator[Ledger]:
    connection = await asyncpg.connect(database_url)
    yield Ledger(bench, connection)
    await connection.close()


async def test_all_nine_are_named_each_once_and_explained_all_is_well(ledger: Ledger, database_url: str, tmp_path: Path) -> None:
    await ledger.cancel_one()
    await ledger.busy(8)
    assert await ledger.look() == ["R4", "R9"]  # they did happen; the relayer's balance is known from here on
    await ledger.plant()

    rpc_url = ledger.bench.anvil.rpc_url
    command = ServeProcess(tmp_path, database_url=database_url, rpc_url=rpc_url, relayer_keys=["0x" + "11" * 32]).command
    with pytest.raises(ServeFailed, match="ended with 2"):
        command("reconcile", "--network", BASE_SEPOLIA)
    found = await discrepancies.list_all(ledger.bench.rig.db)
    assert [each.class_ for each in sorted(found, key=lambda each: each.class_)] == [f"R{number}" for number in range(1, 10)]
    by_class = {each.class_: each for each in found}
    assert {name: each.value_atomic for name, each in by_class.items() if name in {"R1", "R3", "R6"}} == {
        "R1": 10_000,
        "R3": 10_001,
        "R6": 12_345,
    }
    assert by_class["R3"].settlement_id == ledger.ids[2]
    assert by_class["R8"].settlement_id == ledger.ids[6]
    assert by_class["R7"].settlement_id in ledger.ids[4:6]
    assert all(each.age_s >= 0 for each in found)
    with pytest.raises(ServeFailed, match="ended with 2"):
        command("discrepancies", "list")

    ids = [str(each.discrepancy_id) for each in found if each.class_ != "R6"]
    command("discrepancies", "explain", *ids, "--by", "ada", "--note", "staged")
    command("discrepancies", "explain", str(by_class["R6"].discrepancy_id), "--by", "ada", "--note", "a gift", "--book")
    said = command("reconcile", "--network", BASE_SEPOLIA)
    assert said.strip().endswith("ledger = chain, 8 explained")
    report = json.loads(command("reconcile", "--network", BASE_SEPOLIA, "--json"))
    assert (report["balanced"], report["explained"], report["discrepancies"]) == (True, 8, [])
    assert "nothing is unexplained" in command("discrepancies", "list")
    every = json.loads(command("discrepancies", "list", "--all", "--json"))
    assert {row["explainedBy"] for row in every} == {"ada"}

    await ledger.bench.call("evm_mine")
    assert await ledger.look() == []  # the entry that explains a balance does not disturb the next roll-forward
    await ledger.connection.execute("set session_replication_role = origin")
    funding = await ledger.connection.fetchrow(
        "select debit, credit, amount_atomic::text from journal_entry where reference like 'disc%' and phase = 'posted'"
    )
    assert tuple(funding) == (f"gas:{NETWORK}:{ledger.relayer}", f"funding:{NETWORK}", "12345")


async def test_the_continuous_look_takes_each_final_block_once_and_lets_go_of_what_is_gone(ledger: Ledger) -> None:
    await ledger.busy(2)
    examiner = Examiner(ledger.bench.rig.db, SystemClock(), Settings(), ledger.bench.rig.evm, NETWORK, [USDC.address])
    await ledger.tamper("update settlement set amount_atomic = amount_atomic + 1 where settlement_id = $1", ledger.ids[0])
    await examiner.look()
    await examiner.look()
    runs = await ledger.connection.fetch("select from_block, to_block from reconciliation_run where background order by run_id")
    final = await ledger.bench.rig.evm.block_at("finalized", ledger.bench.rig.evm.deadline_in(PATIENCE_S))
    first = await ledger.connection.fetchval("select min(admitted_block) from settlement")
    assert [tuple(run) for run in runs] == [(max(first, 1), final.number)]
    assert [found.class_ for found in await discrepancies.list_all(ledger.bench.rig.db)] == ["R3", "R4"]

    await ledger.tamper("update settlement set amount_atomic = amount_atomic - 1 where settlement_id = $1", ledger.ids[0])
    assert await ledger.look() == ["R4"]
    gone = [found for found in await discrepancies.list_all(ledger.bench.rig.db, closed=True) if found.gone_at]
    assert [found.class_ for found in gone] == ["R3"]


async def test_the_share_that_was_matched_within_an_hour(ledger: Ledger) -> None:
    await ledger.busy(4)
    db = ledger.bench.rig.db
    await ledger.tamper("update settlement set resolved_at = now() - interval '70 minutes'")
    assert [(row.settled_atomic, row.matched_atomic) for row in await discrepancies.matched(db, NETWORK)] == [(40_000, 0)]
    await ledger.look()
    assert [row.matched_atomic for row in await discrepancies.matched(db, NETWORK)] == [0]  # too late
    await ledger.tamper("update reconciliation_run set ran_at = now() - interval '30 minutes'")
    assert [row.matched_atomic for row in await discrepancies.matched(db, NETWORK)] == [0]  # by hand, and not by the background
    await ledger.tamper("update reconciliation_run set background = true")
    assert [row.matched_atomic for row in await discrepancies.matched(db, NETWORK)] == [40_000]
    await ledger.tamper("update settlement set amount_atomic = amount_atomic + 1 where settlement_id = $1", ledger.ids[0])
    await ledger.look()
    await ledger.tamper("update reconciliation_run set ran_at = now() - interval '30 minutes'")
    assert [row.matched_atomic for row in await discrepancies.matched(db, NETWORK)] == [30_000]


async def test_only_what_is_open_is_explained_and_only_a_balance_is_booked(ledger: Ledger) -> None:
    await ledger.busy(1)
    assert await ledger.look() == ["R4"]
    db = ledger.bench.rig.db
    (found,) = await discrepancies.list_all(db)
    with pytest.raises(ConfigFault, match="not on record"):
        await explain(db, found.discrepancy_id + 1, "ada", "?", None, book=False)
    with pytest.raises(ConfigFault, match="only a relayer's balance"):
        await explain(db, found.discrepancy_id, "ada", "?", None, book=True)
    await explain(db, found.discrepancy_id, "ada", "another facilitator was quicker", None, book=False)
    with pytest.raises(ConfigFault, match="explained already"):
        await explain(db, found.discrepancy_id, "ada", "?", None, book=False)
