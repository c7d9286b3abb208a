"""Fee schedules, invoices and account movements in Postgres. One function per query; nothing here decides a price."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import date, datetime
from typing import Final
from uuid import UUID

from facilitator.domain.periods import Period
from facilitator.domain.postings import Entry
from facilitator.domain.schedules import Schedule, Terms, decode_terms, encode_terms
from facilitator.store.db import Db, Session, load_queries
from facilitator.units import TxHash

QUERIES: Final = load_queries("billing")


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """One version of a tenant's terms."""

    tenant_id: str
    version: int
    effective_from: date
    terms: str

    @property
    def schedule(self) -> Schedule:
        """As the pricing takes it."""
        return Schedule(version=self.version, effective_from=self.effective_from, terms=decode_terms(self.terms))


@dataclass(frozen=True, slots=True)
class Counted:
    """How many settlements a tenant had."""

    tenant_id: str
    settlements: int


@dataclass(frozen=True, slots=True)
class Invoice:
    """An invoice as it was issued."""

    number: int
    tenant_id: str
    month: date
    document: str
    issued_at: datetime


@dataclass(frozen=True, slots=True)
class NextNumber:
    """The number that follows, and the time by the database."""

    number: int
    issued_at: datetime


@dataclass(frozen=True, slots=True)
class EntryId:
    """An entry that was booked."""

    entry_id: int


@dataclass(frozen=True, slots=True)
class Booked:
    """An entry that was booked before, and of how much."""

    entry_id: int
    amount_atomic: int


@dataclass(frozen=True, slots=True)
class Opening:
    """Debits less credits of an account before a period."""

    asset: str
    balance_atomic: int


@dataclass(frozen=True, slots=True)
class Movement:
    """An entry as one of its accounts sees it: debits are positive."""

    entry_id: int
    asset: str
    amount_atomic: int
    against: str
    settlement_id: UUID | None
    tx_hash: TxHash | None
    reference: str | None
    happened_at: datetime
    booked_at: datetime


async def add_schedule(db: Db | Session, tenant_id: str, effective_from: date, terms: Terms) -> Schedule | None:
    """The next version; None when a version begins there or later already, or that day was invoiced.

    Raises ConstraintViolated when there is no such tenant.
    """
    row = await db.optional(ScheduleRow, QUERIES["add_schedule"], tenant_id, effective_from, encode_terms(terms))
    return None if row is None else row.schedule


async def list_schedules(session: Session, tenant_id: str | None = None) -> list[ScheduleRow]:
    """All versions, by tenant."""
    return await session.many(ScheduleRow, QUERIES["list_schedules"], tenant_id)


async def counted(session: Session, period: Period, tenant_id: str | None = None) -> dict[str, int]:
    """How many settlements each tenant had in the period, or one; it reads that tenant's settlements only."""
    if tenant_id is not None:
        row = await session.one(Counted, QUERIES["counted_of"], period.start, period.end, tenant_id)
        return {row.tenant_id: row.settlements}
    return {row.tenant_id: row.settlements for row in await session.many(Counted, QUERIES["counted"], period.start, period.end)}


async def find_invoice(session: Session, tenant_id: str, month: date) -> Invoice | None:
    """The invoice of that month, if it was issued."""
    return await session.optional(Invoice, QUERIES["find_invoice"], tenant_id, month)


async def invoiced_after(session: Session, tenant_id: str, month: date) -> bool:
    """Was a later month invoiced already?"""
    return await session.optional(Invoice, QUERIES["invoiced_after"], tenant_id, month) is not None


async def next_number(session: Session) -> NextNumber:
    """The number of the next invoice; nobody else gets it before the transaction ends."""
    await session.execute(QUERIES["lock_invoices"])
    return await session.one(NextNumber, QUERIES["next_number"])


async def store_invoice(session: Session, invoice: Invoice, entry_id: int | None) -> None:
    """Keep the invoice as issued."""
    await session.execute(QUERIES["store_invoice"], invoice.number, invoice.tenant_id, invoice.month, invoice.document, entry_id)


async def post_entry(session: Session, entry: Entry, happened_at: datetime, reference: str) -> int:
    """Book an entry of our own that needs no second phase; returns the posted entry's id."""
    arguments = entry.debit, entry.credit, entry.asset, entry.amount_atomic, happened_at, reference
    return (await session.one(EntryId, QUERIES["post_entry"], *arguments)).entry_id


async def find_entry(session: Session, debit: str, credit: str, reference: str) -> Booked | None:
    """What was booked between these accounts with that reference."""
    return await session.optional(Booked, QUERIES["find_entry"], debit, credit, reference)


async def opening(session: Session, account: str, before: datetime) -> dict[str, int]:
    """Balance of an account in each asset before that moment."""
    rows = await session.many(Opening, QUERIES[f"opening{_of_ours(account)}"], account, before)
    return {row.asset: row.balance_atomic for row in rows}


def movements(session: Session, account: str, period: Period) -> AsyncIterator[Movement]:
    """What moved an account in the period, in order."""
    return session.stream(Movement, QUERIES[f"movements{_of_ours(account)}"], account, period.start, period.end)


def _of_ours(account: str) -> str:
    """Which query: what tenants owe, and what they were charged, no transaction moves."""
    return "_of_ours" if account.startswith(("receivable:", "fee_income:")) else ""
