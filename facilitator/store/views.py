"""What the finance API and the console read. One function per query; reads only, and never a signature or a stored answer."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import date, datetime
from typing import Final
from uuid import UUID

from facilitator.domain.periods import Period
from facilitator.store.billing import Invoice
from facilitator.store.db import Db, Session, load_queries
from facilitator.store.discrepancies import Discrepancy
from facilitator.units import Address, Atomic, AuthNonce, BlockHash, Network, TxHash, Wei, Zone

QUERIES: Final = load_queries("views")


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which settlements; None: not by this."""

    queued_from: datetime | None = None
    """Included."""
    queued_to: datetime | None = None
    """Excluded."""
    state: str | None = None
    tenant_id: str | None = None
    network: Network | None = None
    asset: Address | None = None
    payer: Address | None = None
    pay_to: Address | None = None
    tx_hash: TxHash | None = None
    amount_min_atomic: int | None = None
    """Included, as is the greatest amount."""
    amount_max_atomic: int | None = None

    @property
    def few(self) -> bool:
        """Whether it can fit few of millions only, found by an index of their own."""
        return self.payer is not None or self.tx_hash is not None

    @property
    def arguments(self) -> tuple[object, ...]:
        """As the queries take it."""
        least, most = self.amount_min_atomic, self.amount_max_atomic
        return (
            self.queued_from,
            self.queued_to,
            self.state,
            self.tenant_id,
            self.network,
            self.asset,
            self.payer,
            self.pay_to,
            self.tx_hash,
            None if least is None else str(least),
            None if most is None else str(most),
        )


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last settlement of a page."""

    queued_at: datetime
    settlement_id: UUID


@dataclass(frozen=True, slots=True)
class SettlementRow:
    """A settlement as a line of a table."""

    settlement_id: UUID
    queued_at: datetime
    resolved_at: datetime | None
    tenant_id: str
    state: str
    reason: str | None
    scheme: str
    network: Network
    asset: Address
    payer: Address
    pay_to: Address
    amount_atomic: Atomic
    auth_nonce: AuthNonce
    tx_hash: TxHash | None
    log_index: int | None
    block_number: int | None
    block_hash: BlockHash | None
    resource: str | None
    request_id: str
    cost_wei: int | None
    """Its shares of the fees of all transactions that carried it; None while none is mined."""


@dataclass(frozen=True, slots=True)
class StateTotal:
    """Of a filter: how many settlements of an asset are in a state, and what they come to."""

    network: Network
    asset: Address
    state: str
    settlements: int
    amount_atomic: int


@dataclass(frozen=True, slots=True)
class Day:
    """A day of UTC."""

    day: date


@dataclass(frozen=True, slots=True)
class DayTotal:
    """The same of one day of a zone, by when they were asked for."""

    day: date
    network: Network
    asset: Address
    state: str
    settlements: int
    amount_atomic: int


@dataclass(frozen=True, slots=True)
class SettlementEntry:
    """An entry of the journal that stands for a settlement."""

    entry_id: int
    phase: str
    debit: str
    credit: str
    asset: str
    amount_atomic: int
    tx_hash: TxHash | None
    resolves: int | None
    happened_at: datetime
    booked_at: datetime
    book_day: date | None
    seal_no: int | None
    """None while it is not sealed."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A signed transaction that carries a settlement."""

    tx_hash: TxHash
    relayer: Address
    tx_nonce: int
    attempt: int
    """From 0; each further one replaces the one before it."""
    purpose: str
    recorded_at: datetime
    max_fee_wei: int
    max_priority_fee_wei: int
    mined: bool | None


@dataclass(frozen=True, slots=True)
class GasSpent:
    """What a relayer's transactions cost on a day of a zone, by cause."""

    day: date
    network: Network
    relayer: Address
    cause: str
    transactions: int
    amount_wei: int


@dataclass(frozen=True, slots=True)
class RelayerRow:
    """A relayer and what it had when that was last read."""

    network: Network
    address: Address
    status: str
    next_tx_nonce: int
    open_slots: int
    balance_wei: Wei | None
    balance_block: int | None
    balance_at: datetime | None


@dataclass(frozen=True, slots=True)
class TenantRow:
    """A tenant, the terms that hold, and what it owes."""

    tenant_id: str
    created_at: datetime
    disabled_at: datetime | None
    confirm_level: str | None
    limits: str
    """JSON."""
    terms_version: int | None
    terms_from: date | None
    terms: str | None
    """JSON."""
    receivable_micros: int
    """Millionths of a dollar that it owes."""
    invoices: int


@dataclass(frozen=True, slots=True)
class EventRow:
    """An event of the audit trail."""

    event_id: int
    kind: str
    actor: str
    detail: str
    happened_at: datetime
    seal_no: int | None


@dataclass(frozen=True, slots=True)
class NetworkRow:
    """How far a network's ledger was held against its chain, and what disagrees."""

    network: Network
    reconciled_block: int | None
    reconciled_at: datetime | None
    discrepancies: int
    """That nobody has explained."""


async def settlements(db: Db, chosen: Filter, after: Cursor | None, limit: int) -> list[SettlementRow]:
    """Settlements of a filter, newest first."""
    mark = (None, None) if after is None else (after.queued_at, after.settlement_id)
    query = QUERIES["view_few_settlements" if chosen.few else "view_settlements"]
    return await db.many(SettlementRow, query, *chosen.arguments, *mark, limit)


def stream_settlements(session: Session, chosen: Filter) -> AsyncIterator[SettlementRow]:
    """All of them, newest first, in constant memory."""
    return session.stream(SettlementRow, QUERIES["stream_settlements"], *chosen.arguments)


async def totals(db: Db, chosen: Filter) -> list[StateTotal]:
    """What a whole filter comes to."""
    if chosen.few:
        return await db.many(StateTotal, QUERIES["view_few_totals"], *chosen.arguments)
    return await db.many(StateTotal, QUERIES["view_totals"], *chosen.arguments)


async def uncounted_days(db: Db) -> list[Day]:
    """UTC days that may be counted now."""
    return await db.many(Day, QUERIES["uncounted_days"])


async def count_day(session: Session, day: date) -> None:
    """Count a UTC day, unless it was counted."""
    await session.execute(QUERIES["count_day"], day)


async def settlement(db: Db, settlement_id: UUID) -> SettlementRow | None:
    """One settlement."""
    return await db.optional(SettlementRow, QUERIES["view_settlement"], settlement_id)


async def entries_of(db: Db, settlement_id: UUID) -> list[SettlementEntry]:
    """Its entries, in order."""
    return await db.many(SettlementEntry, QUERIES["entries_of"], settlement_id)


async def attempts_of(db: Db, settlement_id: UUID) -> list[Attempt]:
    """Every transaction that was signed for it, in order."""
    return await db.many(Attempt, QUERIES["attempts_of"], settlement_id)


async def gas(db: Db, period: Period, zone: Zone) -> list[GasSpent]:
    """What transactions cost on each day."""
    return await db.many(GasSpent, QUERIES["view_gas"], period.start, period.end, zone)


async def relayers(db: Db) -> list[RelayerRow]:
    """All on record."""
    return await db.many(RelayerRow, QUERIES["view_relayers"])


async def tenants(db: Db, day: date) -> list[TenantRow]:
    """All of them, with the terms of that day."""
    return await db.many(TenantRow, QUERIES["view_tenants"], day)


async def invoices(db: Db, tenant_id: str | None = None) -> list[Invoice]:
    """As issued, newest first."""
    return await db.many(Invoice, QUERIES["list_invoices"], tenant_id)


async def invoice(db: Db, number: int) -> Invoice | None:
    """One invoice as issued."""
    return await db.optional(Invoice, QUERIES["invoice_numbered"], number)


async def events(
    db: Db | Session,
    start: datetime | None,
    end: datetime | None,
    kind: str | None,
    actor: str | None,
    before: int | None,
    limit: int,
) -> list[EventRow]:
    """The audit trail, newest first; `before` is the last id of the page before."""
    return await db.many(EventRow, QUERIES["view_events"], start, end, kind, actor, before, limit)


async def discrepancies(
    db: Db, status: str, network: Network | None, class_: str | None, before: int | None, limit: int
) -> list[Discrepancy]:
    """Discrepancies of a status (`open`, `explained`, `gone` or `all`), newest first."""
    return await db.many(Discrepancy, QUERIES["view_discrepancies"], status, network, class_, before, limit)


async def discrepancy(db: Db, discrepancy_id: int) -> Discrepancy | None:
    """One of them."""
    return await db.optional(Discrepancy, QUERIES["view_discrepancy"], discrepancy_id)


async def discrepancies_of(db: Db, settlement_id: UUID) -> list[Discrepancy]:
    """What was ever found of one settlement."""
    return await db.many(Discrepancy, QUERIES["discrepancies_of"], settlement_id)


async def networks(db: Db) -> list[NetworkRow]:
    """Networks that were ever served."""
    return await db.many(NetworkRow, QUERIES["view_networks"])
