"""What the service asks and writes for each payment, each block and each look costs as much in a big ledger as in a small one.

GROWTH_SETTLEMENTS says how big (300,000; ten million take a quarter of an hour and 45 GB). Time says little on a shared machine: judged are
pages touched, bytes of write-ahead log, and that no table that grows is scanned; processor time of PostgreSQL is shown beside. Statements
that write are run, measured, and taken back.
"""

import json
import os
import secrets
import statistics
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, cast

import asyncpg

from facilitator.devstack.stack import Postgres
from facilitator.domain.fees import Fees
from facilitator.domain.identity import AuthKey
from facilitator.domain.periods import Period
from facilitator.domain.postings import Cause, gas_entries
from facilitator.domain.states import State
from facilitator.finance.views import parse_filter
from facilitator.store import (
    billing,
    books,
    days,
    discrepancies,
    reconciliation,
    relayers,
    replicas,
    restraints,
    seals,
    settlements,
    survey,
    views,
)
from facilitator.store.db import Db, Query, Session, prepare_connection
from facilitator.store.seals import Leaf, Seal
from facilitator.store.settlements import Admission, Asked, Block, ClosedSlot, Cost, Lease, Outcome, SignedSlot
from facilitator.units import UTC_ZONE, Address, AuthNonce, BlockHash, Network, TxHash
from tests.fixtures.grown import ASSET, NETWORK, grow
from tests.fixtures.payments import authorization

SMALL: Final = 10_000
SETTLEMENTS: Final = int(os.environ.get("GROWTH_SETTLEMENTS", "300000"))
ROUNDS: Final = 5
GROUP: Final = 50
"""Payments in a statement."""
_BIG: Final = "select array_agg(relname::text) from pg_class where relkind = 'r' and relpages > 64"
_WRITTEN: Final = "select (pg_current_wal_insert_lsn() - '0/0')::bigint"
RECENT: Final = {f"{name}: view_{what}" for name in ("all", "tenant", "failed", "today") for what in ("settlements", "totals")}
"""They read what came in the last two days, which are not counted yet (ADR 27): that grows with the rate, not with the ledger."""
OF_A_TENANT: Final = {"settlement_lines", "counted_of"}
"""They read what that tenant ever settled, a thousandth of all here."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What a statement cost."""

    pages: int
    """Touched, in memory or not."""
    wal_bytes: int
    cpu_us: float
    """Of its PostgreSQL process, constraints and triggers included."""
    scans: tuple[str, ...]
    """Growing tables that were read from end to end."""


class Probe(Session):
    """A session that runs each statement twice: explained and taken back, then in earnest."""

    def __init__(self, connection: "asyncpg.Connection[Any]", pid: int, big: AbstractSet[str]) -> None:
        super().__init__(cast("Any", connection))
        self._big = big
        self._clock = Path(f"/proc/{pid}/schedstat")
        self.spent: dict[str, list[Spent]] = defaultdict(list)
        self.doing = ""
        """Goes before the name of the statement, where one is measured in several circumstances."""

    async def optional(self, row: type[Any], query: Query, *arguments: object) -> Any:
        async with self._measured(query, arguments):
            return await super().optional(row, query, *arguments)

    async def many(self, row: type[Any], query: Query, *arguments: object) -> list[Any]:
        async with self._measured(query, arguments):
            return await super().many(row, query, *arguments)

    async def execute(self, query: Query, *arguments: object) -> int:
        async with self._measured(query, arguments):
            return await super().execute(query, *arguments)

    async def stream(self, row: type[Any], query: Query, *arguments: object) -> AsyncIterator[Any]:
        for found in await self.many(row, query, *arguments):
            yield found

    @asynccontextmanager
    async def session(self) -> "AsyncIterator[Probe]":
        yield self

    snapshot = session

    @asynccontextmanager
    async def taken_back(self) -> AsyncIterator[None]:
        transaction = self._connection.transaction()
        await transaction.start()
        try:
            yield
        finally:
            await transaction.rollback()

    @asynccontextmanager
    async def _measured(self, query: Query, arguments: tuple[object, ...]) -> AsyncIterator[None]:
        async with self.taken_back():
            text = await self._connection.fetchval("explain (analyze, buffers, timing off, format json) " + query.sql, *arguments)
        (plan,) = json.loads(text)
        ran = [node for node in nodes(plan["Plan"]) if node["Actual Loops"]]
        written = await self._connection.fetchval(_WRITTEN)
        began = self._ran_ns
        yield
        cpu_us = (self._ran_ns - began) / 1000
        spent = Spent(
            pages=sum(own_pages(node) for node in ran),
            wal_bytes=await self._connection.fetchval(_WRITTEN) - written,
            cpu_us=cpu_us,
            scans=tuple(sorted({node["Relation Name"] for node in ran if node["Node Type"] == "Seq Scan"} & self._big)),
        )
        self.spent[f"{self.doing}{query.name}"].append(spent)

    @property
    def _ran_ns(self) -> int:
        return int(self._clock.read_text().split()[0])

    def told(self) -> dict[str, Spent]:
        """Medians of all rounds but the first, which warms up."""
        return {
            name: Spent(
                pages=round(statistics.median(one.pages for one in rounds[1:] or rounds)),
                wal_bytes=min(one.wal_bytes for one in rounds),  # after a checkpoint whole pages are logged
                cpu_us=statistics.median(one.cpu_us for one in rounds[1:] or rounds),
                scans=rounds[-1].scans,
            )
            for name, rounds in self.spent.items()
        }


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def own_pages(node: dict[str, Any]) -> int:
    """Pages that this node touched itself. What a common table expression touches is told of it and of whoever reads it first."""
    if node["Node Type"] == "CTE Scan":
        return 0
    below = [child for child in node.get("Plans", []) if not child.get("Subplan Name", "").startswith("CTE ")]
    return max(0, _pages(node) - sum(_pages(child) for child in below))


def _pages(node: dict[str, Any]) -> int:
    return int(node["Shared Hit Blocks"] + node["Shared Read Blocks"])


class Round:
    """Fifty payments of fifty tenants from admission to finality, and what goes on beside them."""

    def __init__(self, probe: Probe, connection: "asyncpg.Connection[Any]", lease: Lease, number: int) -> None:
        self._probe = probe
        self._db = cast("Db", probe)
        self._connection = connection
        self._lease = lease
        self._block = Block(1 + number, BlockHash("0x" + secrets.token_hex(32)))
        self._next_tx_nonce = 0

    def _slot(self, settlement_ids: tuple[Any, ...]) -> SignedSlot:
        self._next_tx_nonce += 1
        return SignedSlot(
            tx_nonce=self._next_tx_nonce - 1,
            kind="batch",
            tx_hash=TxHash("0x" + secrets.token_hex(32)),
            raw=secrets.token_bytes(1600),
            gas=3_000_000,
            max_fee_wei=10,
            max_priority_fee_wei=1,
            most_wei=10**9,
            settlement_ids=settlement_ids,
        )

    def _admissions(self) -> list[Admission]:
        now_ms = int(datetime.now(UTC).timestamp() * 1000)
        return [
            Admission(
                settlement_id=settlements.new_id(now_ms),
                authorization=authorization(
                    auth_nonce=AuthNonce("0x" + secrets.token_hex(32)), payer=Address("0x" + secrets.token_hex(20)), asset=Address(ASSET)
                ),
                tenant_id=f"tenant-{secrets.randbelow(1000)}",
                request_id="request",
                resource="https://shop.example/reports/1",
                idempotency_key="key-" + secrets.token_hex(8),
                admitted_block=self._block.block_number,
            )
            for _ in range(GROUP)
        ]

    async def play(self) -> None:
        """One round, taken back in the end."""
        async with self._probe.taken_back():
            await self._connection.execute("update relayer set next_tx_nonce = 0, owner = null where address = $1", self._lease.relayer)
            row = await relayers.take_lease(self._db, Network(NETWORK), self._lease.relayer, "growth", 600.0)
            assert row is not None
            self._lease = Lease(network=Network(NETWORK), relayer=self._lease.relayer, owner="growth", epoch=row.epoch)
            self._next_tx_nonce = 10**9
            await self._connection.execute("update relayer set next_tx_nonce = $2 where address = $1", self._lease.relayer, 10**9)
            await self._pay()
            await self._queue()
            await self._beside()
            await self._look()
            await self._close()
            await self._show()

    async def _pay(self) -> None:
        db, network, admissions = self._db, Network(NETWORK), self._admissions()
        keys = [AuthKey(network, Address(ASSET), each.authorization.payer, each.authorization.auth_nonce) for each in admissions]
        asked = [
            Asked(key=key, tenant_id=each.tenant_id, idempotency_key=each.idempotency_key)
            for key, each in zip(keys, admissions, strict=True)
        ]
        self._probe.doing = "unknown: "
        await settlements.own_records(db, asked, 30.0)
        self._probe.doing = ""
        slot = self._slot(tuple(each.settlement_id for each in admissions))
        [opened] = await settlements.write_ahead(db, self._lease, "growth", network, admissions, [slot], 3600.0)
        self._probe.doing = "known: "
        await settlements.own_records(db, asked, 30.0)
        self._probe.doing = ""
        outcomes = [
            Outcome(
                settlement_id=each.settlement_id,
                from_state=State.SUBMITTED,
                to_state=State.INCLUDED,
                answer={"success": True},
                phase=None,
                tx_hash=slot.tx_hash,
                log_index=2 * index + 1,
                block_number=self._block.block_number,
                block_hash=self._block.block_hash,
                spend_epoch=1,
            )
            for index, each in enumerate(admissions)
        ]
        closed = ClosedSlot(
            slot_id=opened.slot_id,
            state="included",
            mined_tx_hash=slot.tx_hash,
            block_number=self._block.block_number,
            block_hash=self._block.block_hash,
        )
        cost = Cost(
            slot_id=opened.slot_id,
            tx_hash=slot.tx_hash,
            gas_used=2_500_000,
            effective_gas_price_wei=2,
            l1_fee_wei=0,
            operator_fee_wei=0,
            shares_wei=dict.fromkeys(slot.settlement_ids, 10**5),
            entries=gas_entries(network, self._lease.relayer, {Cause.PAYMENT: 5 * 10**6}),
        )
        resolved = await settlements.resolve(db, "growth", outcomes, [closed], [cost], 2.0)
        assert len(resolved) == GROUP
        await settlements.spend_answer(db, admissions[0].settlement_id, "growth", 1, 2.0, 2)
        await settlements.free_answer(db, admissions[0].settlement_id, "growth", 1)
        await settlements.unfinal_blocks(db, network, 10**9)
        async with self._probe.taken_back():
            assert len(await settlements.reopen(db, network, [self._block])) == GROUP
        await settlements.make_safe(db, network, [self._block])
        await settlements.finalize(db, network, [self._block])

    async def _queue(self) -> None:
        db, network, admissions = self._db, Network(NETWORK), self._admissions()
        self._probe.doing = "queued: "
        await settlements.write_ahead(db, None, "growth", network, admissions, [], 3600.0)
        self._probe.doing = ""
        await settlements.queue_ages(db, network)
        queued = await settlements.list_queued(db, network, GROUP)
        await settlements.claim_queued(self._probe, queued)
        slot = self._slot(tuple(each.settlement_id for each in queued))
        [opened] = await settlements.dispatch_claimed(self._probe, self._lease, [slot], 3600.0)
        outbid = TxHash("0x" + secrets.token_hex(32))
        fees = Fees(max_fee_wei=20, max_priority_fee_wei=2)
        await relayers.record_attempt(db, self._lease, opened.slot_id, 1, "bump", outbid, b"raw", cast("Any", 3_000_000), fees, 2 * 10**9)
        await relayers.open_transactions(db, network, self._lease.relayer)
        await relayers.open_items(db, network, self._lease.relayer)

    async def _beside(self) -> None:
        db, network = self._db, Network(NETWORK)
        await replicas.heartbeat(db, "growth", [network], [])
        await relayers.renew_leases(db, network, "growth", {self._lease.relayer: self._lease.epoch}, 60.0)
        await relayers.list_relayers(db, network)
        await settlements.take_watched(db, network, 30.0, 100)
        await settlements.count_watched(db, network)
        await relayers.consumed_slots(db, network, 100)
        await survey.open_settlements(db, [network])
        await survey.oldest_unfinal(db, [network])
        await survey.open_incidents(db)
        await restraints.gas_budgets(db, [network])
        await restraints.fresh_rates(db, [network], 3600.0)
        await restraints.struck(db, 3600.0, 600.0, 1000)
        await views.uncounted_days(db)
        last = await seals.last(self._probe)
        assert last is not None
        await seals.unsealed_entries(self._probe, 1000)
        await seals.unsealed_events(self._probe, 1000)
        leaves = [Leaf("journal", 10**12 + number, datetime.now(UTC).date(), secrets.token_bytes(32)) for number in range(2 * GROUP)]
        seal = Seal(
            last.seal_no + 1, len(leaves), secrets.token_bytes(32), secrets.token_bytes(32), last.journal_through, 0, datetime.now(UTC)
        )
        await seals.store(self._probe, seal, leaves)

    async def _look(self) -> None:
        """A look of the reconciliation at one block of the past with ten payments in it."""
        db, network = self._db, Network(NETWORK)
        row = await self._connection.fetchrow(
            "select * from settlement where state = 'finalized' and block_number < 0 order by settlement_id desc limit 1"
        )
        assert row is not None
        block = row["block_number"]
        await discrepancies.reconciled_through(db, network)
        key = AuthKey(network, Address(row["asset"]), Address(row["payer"]), AuthNonce(row["auth_nonce"]))
        await reconciliation.rows_of_authorizations(db, network, [key] * 10)
        await relayers.our_transactions(db, [row["tx_hash"]])
        async for _ in reconciliation.claims_in_blocks(db, network, block, block):
            break
        async for _ in reconciliation.claimless_in_blocks(db, network, block, block):
            break
        await discrepancies.mined_costs(db, network, block, block, "")
        await discrepancies.roll_forward(db, network, block + 1)
        await discrepancies.list_all(db, network)
        await discrepancies.matched(db, network)
        last = (await self._connection.fetchval("select max(starts_at) from settled_slice")) or datetime.now(UTC)
        await self._connection.execute("delete from settled_sum where starts_at = $1", last)
        await self._connection.execute("delete from settled_slice where starts_at = $1", last)
        await discrepancies.uncounted_slices(db)
        await discrepancies.count_slice(self._probe, last)
        self._probe.doing = "new network: "
        await discrepancies.reconciled_through(db, Network("eip155:1"))
        self._probe.doing = ""

    async def _close(self) -> None:
        """The second book day after one that began 20,000 entries ago, and the invoice of a tenant."""
        first = await self._connection.fetchval("select max(entry_id) - 20000 from journal_entry")
        await self._connection.execute(
            "insert into day_event (day, kind, actor, document, head)"
            " select d::date, 'closed', 'growth', $1, decode(repeat('00', 32), 'hex')"
            " from generate_series(timestamp '2025-01-01', '2025-01-02', '1 day') d",
            json.dumps({"first_entry": first}),
        )
        now = datetime.now(UTC)
        await days.pending_before(self._probe, now, await days.resolved_before(self._probe))
        await days.unsealed_before(self._probe, now, await self._connection.fetchval("select max(entry_id) from journal_entry"))
        month = Period(now - timedelta(days=31), now)
        assert [line async for line in books.settlement_lines(self._probe, month, "tenant-7", 3600.0)]
        await billing.counted(self._probe, month, "tenant-7")

    async def _show(self) -> None:
        db = self._db
        row = await self._connection.fetchrow(
            "select * from settlement where state = 'finalized' and block_number < 0 order by settlement_id desc limit 1"
        )
        assert row is not None
        await settlements.records(db, [row["settlement_id"]], 30.0)
        await settlements.history(db, [row["settlement_id"]])
        await settlements.costs(db, [row["settlement_id"]])
        await views.entries_of(db, row["settlement_id"])
        await views.attempts_of(db, row["settlement_id"])
        await settlements.page(db, tenant_id="tenant-7", limit=50)
        await views.tenants(db, datetime.now(UTC).date())
        yesterday = str((datetime.now(UTC) - timedelta(days=1)).date())
        for name, query in (
            ("all", {}),
            ("tenant", {"tenant": "tenant-7"}),
            ("failed", {"state": "failed"}),
            ("payer", {"payer": row["payer"]}),
            ("tx", {"tx": row["tx_hash"]}),
            ("today", {"from": yesterday}),
        ):
            self._probe.doing = f"{name}: "
            chosen = parse_filter(query, UTC_ZONE)
            await views.settlements(db, chosen, None, 50)
            await views.totals(db, chosen)
        self._probe.doing = ""


async def measure(url: str) -> dict[str, Spent]:
    """What each statement costs in this ledger."""
    connection = await asyncpg.connect(url, command_timeout=600)
    try:
        await prepare_connection(connection)
        pid = await connection.fetchval("select pg_backend_pid()")
        await connection.execute("set plan_cache_mode = force_custom_plan")
        probe = Probe(connection, pid, set(await connection.fetchval(_BIG)))
        relayer = await connection.fetchval("select address from relayer order by address limit 1")
        for number in range(ROUNDS):
            await Round(probe, connection, Lease(network=Network(NETWORK), relayer=relayer, owner="growth", epoch=0), number).play()
        return probe.told()
    finally:
        await connection.close()


def table(spent: dict[int, dict[str, Spent]]) -> str:
    """A line for each statement."""
    sizes = sorted(spent)
    lines = [f"{'pages, WAL bytes, CPU us in a ledger of':44}" + "".join(f"{size:>26,}" for size in sizes)]
    for name in spent[sizes[0]]:
        cells = [spent[size][name] for size in sizes]
        lines.append(
            f"{name:44}"
            + "".join(f"{one.pages:>9,}{one.wal_bytes:>8,}{one.cpu_us:>9,.0f}" for one in cells)
            + f"  {' '.join(cells[-1].scans)}"
        )
    return "\n".join(lines)


async def test_what_each_statement_costs_stays_as_the_ledger_grows(postgres: Postgres, database_template: str) -> None:
    spent = {}
    for size in (SMALL, SETTLEMENTS):
        url = await postgres.create_database(f"growth_{size}", database_template)
        try:
            await grow(url, size)
            spent[size] = await measure(url)
        finally:
            await postgres.drop_database(f"growth_{size}")
    print(table(spent))  # noqa: T201
    grown = {}
    for name, small in spent[SMALL].items():
        big = spent[SETTLEMENTS][name]
        more = big.pages > 2 * small.pages + 3 * GROUP and name not in OF_A_TENANT
        if name not in RECENT and (big.scans or more or big.wal_bytes > 2 * small.wal_bytes + 8192):
            grown[name] = (small, big)
    assert not grown, grown
