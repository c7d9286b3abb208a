"""What reconciliations found, in Postgres: recorded once, aged, resolved by a person with a note. One function per query."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from facilitator.domain.discrepancies import Finding
from facilitator.store.db import Db, Session, load_queries
from facilitator.units import Address, BlockHash, Network, TxHash, Wei

QUERIES: Final = load_queries("discrepancies")
PAGE_ROWS: Final = 200


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """One disagreement and what became of it."""

    discrepancy_id: int
    network: Network
    class_: str
    subject: str
    settlement_id: UUID | None
    tx_hash: TxHash | None
    block_number: int | None
    asset: str | None
    value_atomic: int | None
    expected: str
    got: str
    first_seen_at: datetime
    gone_at: datetime | None
    resolved_at: datetime | None
    resolved_by: str | None
    note: str | None
    resolution_entry: int | None
    age_s: int


@dataclass(frozen=True, slots=True)
class MinedCost:
    """What the ledger has of a mined transaction: its receipt's figures, what is booked for it, what its items share."""

    tx_hash: TxHash
    relayer: Address
    block_number: int
    gas_used: int | None
    effective_gas_price_wei: int | None
    l1_fee_wei: int | None
    operator_fee_wei: int | None
    booked_wei: int | None
    shared_wei: int | None


@dataclass(frozen=True, slots=True)
class RollForward:
    """A relayer's last known balance and what moved it since; None before the first look."""

    relayer: Address
    block_number: int | None
    wei: int | None
    last_entry: int | None
    newest_entry: int
    spent_wei: int
    moved_wei: int


@dataclass(frozen=True, slots=True)
class Through:
    """The last block that was held against the ledger."""

    block_number: int | None


@dataclass(frozen=True, slots=True)
class Matched:
    """Of one asset: what was settled, and what of it was matched to the chain within an hour."""

    asset: Address
    settled_atomic: int
    matched_atomic: int


@dataclass(frozen=True, slots=True)
class Slice:
    """Five minutes of settlements."""

    starts_at: datetime


@dataclass(frozen=True, slots=True)
class Mine:
    """Was the lock to be had?"""

    mine: bool


async def record(
    db: Db, network: Network, blocks: tuple[int, int], to_hash: BlockHash, findings: Sequence[Finding], *, background: bool
) -> None:
    """Record what these blocks hold, let go of what they hold no more, and the look itself, in one commit."""
    from_block, to_block = blocks
    async with db.transaction() as session:
        await session.execute(
            QUERIES["record"],
            network,
            [finding.class_ for finding in findings],
            [finding.subject for finding in findings],
            [finding.settlement_id for finding in findings],
            [finding.tx_hash for finding in findings],
            [finding.block_number for finding in findings],
            [finding.asset for finding in findings],
            [None if finding.value_atomic is None else str(finding.value_atomic) for finding in findings],
            [finding.expected for finding in findings],
            [finding.got for finding in findings],
        )
        seen = [f"{finding.class_} {finding.subject}" for finding in findings]
        await session.execute(QUERIES["let_go"], network, from_block, to_block, seen)
        await session.execute(QUERIES["record_run"], network, from_block, to_block, to_hash, len(findings), background)


async def list_all(db: Db, network: Network | None = None, *, closed: bool = False) -> list[Discrepancy]:
    """Discrepancies that nobody has explained; `closed`: the others too."""
    return await db.many(Discrepancy, QUERIES["list_discrepancies"], network, closed)


async def list_open(session: Session) -> list[Discrepancy]:
    """Of every network, within a transaction."""
    return await session.many(Discrepancy, QUERIES["list_discrepancies"], None, False)


async def lock(session: Session, discrepancy_id: int) -> Discrepancy | None:
    """One discrepancy, nobody else's to resolve until the transaction ends."""
    return await session.optional(Discrepancy, QUERIES["lock_discrepancy"], discrepancy_id)


async def resolve(session: Session, discrepancy_id: int, by: str, note: str, entry_id: int | None) -> bool:
    """Say what it was; False when somebody did already."""
    return await session.execute(QUERIES["resolve_discrepancy"], discrepancy_id, by, note, entry_id) == 1


async def mined_costs(db: Db, network: Network, from_block: int, to_block: int, after: str) -> list[MinedCost]:
    """A page of our mined transactions in these blocks, by hash."""
    return await db.many(MinedCost, QUERIES["mined_costs"], network, from_block, to_block, after, PAGE_ROWS)


async def roll_forward(db: Db, network: Network, to_block: int) -> list[RollForward]:
    """Every relayer of the network."""
    return await db.many(RollForward, QUERIES["roll_forward"], network, to_block)


async def record_balance(db: Db, network: Network, relayer: Address, block_number: int, wei: Wei, last_entry: int) -> None:
    """What a relayer had at a block, the journal being taken into account up to `last_entry`."""
    await db.execute(QUERIES["record_balance"], network, relayer, block_number, wei, last_entry)


async def reconciled_through(db: Db, network: Network) -> int | None:
    """The last block that was held against the ledger, from its first settlement on; None while it has none."""
    return (await db.one(Through, QUERIES["reconciled_through"], network)).block_number


async def uncounted_slices(db: Db) -> list[Slice]:
    """What may be counted now, oldest first."""
    return await db.many(Slice, QUERIES["uncounted_slices"])


async def count_slice(session: Session, starts_at: datetime) -> None:
    """Count what was settled in five minutes, unless it was counted, or too much of it may end otherwise yet."""
    await session.execute(QUERIES["count_slice"], starts_at)


async def matched(db: Db, network: Network) -> list[Matched]:
    """Of the day that ended an hour ago, by asset. It reads the settlements of what is not counted, which may take long."""
    async with db.snapshot() as session:
        return [row async for row in session.stream(Matched, QUERIES["matched"], network)]


async def lock_reconciling(session: Session, network: Network) -> bool:
    """Nobody else reconciles this network in the background until the transaction ends; False when somebody does."""
    return (await session.one(Mine, QUERIES["lock_reconciling"], network)).mine
