"""The books read for reports and exports: streams and summaries of one snapshot. Reads only."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from facilitator.domain.periods import Period
from facilitator.store.db import Session, load_queries
from facilitator.units import Address, Atomic, AuthNonce, BlockHash, Network, TxHash, UnixSeconds

QUERIES: Final = load_queries("books")


@dataclass(frozen=True, slots=True)
class SettlementLine:
    """One admission of a settlement and how it ended: its pending entry, the entry that resolved it, and the transaction."""

    pending_entry_id: int
    entry_id: int
    phase: str
    settlement_id: UUID
    tenant_id: str
    payment_identifier: str | None
    """What the buyer named it, else the gateway's Idempotency-Key."""
    request_id: str
    scheme: str
    network: Network
    asset: Address
    payer: Address
    pay_to: Address
    amount_atomic: Atomic
    auth_nonce: AuthNonce
    valid_after: UnixSeconds
    valid_before: UnixSeconds
    resource: str | None
    state: str
    reason: str | None
    requested_at: datetime
    submitted_at: datetime | None
    included_at: datetime | None
    finalized_at: datetime | None
    happened_at: datetime
    booked_at: datetime
    tx_hash: TxHash | None
    screening: str | None
    """JSON, see domain/screening.py; of the newest admission only."""
    log_index: int | None
    block_number: int | None
    block_hash: BlockHash | None
    relayer: Address | None
    tx_nonce: int | None
    gas_used: int | None
    effective_gas_price_wei: int | None
    l1_fee_wei: int | None
    operator_fee_wei: int | None
    cost_wei: int | None
    """This settlement's share of what the transaction cost."""
    usd_e8: int | None
    """Dollars per coin of the network, times 10**8, as last quoted before the transaction was included."""
    rate_source: str | None
    rate_round: str | None
    rate_at: datetime | None
    seal_no: int | None
    """Of the entry that ended it."""
    rate_fresh: bool | None


@dataclass(frozen=True, slots=True)
class GasLine:
    """One posted entry in the coin of a network, and the transaction that it pays for, if it does."""

    entry_id: int
    pending_entry_id: int
    network: Network
    debit: str
    credit: str
    amount_wei: int
    reference: str | None
    included_at: datetime
    """When the pending entry happened."""
    happened_at: datetime
    booked_at: datetime
    tx_hash: TxHash | None
    tx_nonce: int | None
    block_number: int | None
    block_hash: BlockHash | None
    settlements: int
    """That the transaction carried."""
    gas_used: int | None
    effective_gas_price_wei: int | None
    l1_fee_wei: int | None
    operator_fee_wei: int | None
    usd_e8: int | None
    """As in `SettlementLine`."""
    rate_source: str | None
    rate_round: str | None
    rate_at: datetime | None
    seal_no: int | None
    rate_fresh: bool | None


@dataclass(frozen=True, slots=True)
class Completeness:
    """What of one network is not final yet."""

    network: Network
    read_at: datetime
    open_since: datetime | None
    unfinal_since: datetime | None
    final_block: int | None


@dataclass(frozen=True, slots=True)
class JournalLine:
    """One entry; `resolved_by` is the entry that posted or voided a pending one."""

    entry_id: int
    book: str
    phase: str
    debit: str
    credit: str
    asset: str
    amount_atomic: Atomic
    settlement_id: UUID | None
    tx_hash: TxHash | None
    reference: str | None
    resolves: int | None
    resolved_by: int | None
    happened_at: datetime
    booked_at: datetime


@dataclass(frozen=True, slots=True)
class AccountTotal:
    """One account's turnover in one asset; None where there was none."""

    account: str
    asset: str
    debits_atomic: int | None
    credits_atomic: int | None
    pending_atomic: int | None
    """Debits less credits of what may still be posted or voided."""

    @property
    def balance_atomic(self) -> int:
        """What is posted: debits less credits."""
        return (self.debits_atomic or 0) - (self.credits_atomic or 0)


def settlement_lines(session: Session, period: Period, tenant_id: str | None, rate_stale_s: float) -> AsyncIterator[SettlementLine]:
    """Admissions that ended in the period, in order of their ends; of one tenant, if one is named."""
    return session.stream(SettlementLine, QUERIES["settlement_lines"], period.start, period.end, tenant_id, rate_stale_s)


def gas_lines(session: Session, period: Period, rate_stale_s: float) -> AsyncIterator[GasLine]:
    """What moved the accounts of relayers in the period, in order: gas by cause, top-ups, sweeps and corrections."""
    return session.stream(GasLine, QUERIES["gas_lines"], period.start, period.end, rate_stale_s)


async def completeness(session: Session) -> list[Completeness]:
    """For each network that was ever served."""
    return await session.many(Completeness, QUERIES["completeness"])


def journal_lines(session: Session, period: Period) -> AsyncIterator[JournalLine]:
    """Every entry of what happened in the period, in the order of booking."""
    return session.stream(JournalLine, QUERIES["journal_lines"], period.start, period.end)


def open_lines(session: Session, before: datetime) -> AsyncIterator[JournalLine]:
    """Pending entries from before that moment that nothing has resolved."""
    return session.stream(JournalLine, QUERIES["open_lines"], before)


def balances(session: Session, before: datetime) -> AsyncIterator[AccountTotal]:
    """Each account's turnover in each asset from what happened before that moment."""
    return session.stream(AccountTotal, QUERIES["balances"], before)
