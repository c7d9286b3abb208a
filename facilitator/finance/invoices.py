"""Monthly invoice statements: what a tenant is charged, from the books alone, the same to the byte each time.

An invoice is issued once its month is complete; it takes the next number, is kept as it was, and books what it charges.
Making it again from the books must give the same bytes: `issued_again` says whether it does.
"""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from facilitator.domain.money import decimal_text
from facilitator.domain.periods import month_of
from facilitator.domain.postings import Entry
from facilitator.domain.rates import MICROS
from facilitator.domain.schedules import USD, USD_DECIMALS, Schedule, Terms
from facilitator.errors import ConfigFault, Fault
from facilitator.finance.export import complete_through
from facilitator.finance.pricing import Pricer
from facilitator.store import billing, books
from facilitator.store.billing import Invoice
from facilitator.store.db import Db, Session
from facilitator.store.seals import record_event
from facilitator.store.tenants import lock_tenant
from facilitator.units import Address, Atomic, Network, Zone

CASH: Final = "cash:usd"
"""Where a tenant's payments arrive."""
_INSTANT: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Billing:
    """What invoices are made with."""

    booking_zone: Zone
    decimals: Mapping[tuple[Network, Address], int]
    rate_stale_s: float


@dataclass(slots=True)
class _Sum:
    settlements: int = 0
    volume_atomic: int = 0
    micros: int = 0
    wei: int = 0


@dataclass(slots=True)
class _Month:
    """What the settlements of a month come to."""

    fees: dict[tuple[Network, Address, int, int], _Sum] = field(default_factory=lambda: defaultdict(_Sum))
    """By network, asset, version and tier; tier -1 is the free allowance."""
    gas: dict[Network, _Sum] = field(default_factory=lambda: defaultdict(_Sum))
    unpriced: int = 0
    unscheduled: int = 0

    @property
    def total_micros(self) -> int:
        """What is charged."""
        return sum(part.micros for part in (*self.fees.values(), *self.gas.values()))


def receivable(tenant_id: str) -> str:
    """The account of what a tenant owes us."""
    return f"receivable:{tenant_id}"


def fee_income(tenant_id: str) -> str:
    """The account of what a tenant was charged."""
    return f"fee_income:{tenant_id}"


async def make(
    session: Session, how: Billing, tenant_id: str, month: date, number: int | None, issued: date | None
) -> tuple[str, int, int]:
    """The document, what it charges in micro-dollars, and how many settlements could not be priced."""
    found = await _month(session, how, tenant_id, month)
    account = await _receivable(session, how, tenant_id, month, number)
    total = found.total_micros
    document = {
        "invoice": number,
        "issued": None if issued is None else issued.isoformat(),
        "tenant": tenant_id,
        "month": f"{month:%Y-%m}",
        "zone": how.booking_zone,
        "currency": USD,
        "lines": [
            {
                "network": network,
                "asset": asset,
                "schedule_version": version,
                "tier": "free" if tier < 0 else tier + 1,
                "settlements": part.settlements,
                "volume": decimal_text(part.volume_atomic, how.decimals[network, asset]),
                "charge": _usd(part.micros),
            }
            for (network, asset, version, tier), part in sorted(found.fees.items())
        ],
        "gas": [
            {"network": network, "settlements": part.settlements, "cost_wei": str(part.wei), "charge": _usd(part.micros)}
            for network, part in sorted(found.gas.items())
        ],
        "unpriced_settlements": found.unpriced,
        "settlements_without_terms": found.unscheduled,
        "total": _usd(total),
        "receivable": {
            "opening": _usd(account["opening"]),
            "invoiced": _usd(account["invoiced"] + total),
            "received": _usd(-account["received"]),
            "credited": _usd(-account["credited"]),
            "closing": _usd(sum(account.values()) + total),
        },
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n", total, found.unpriced


async def issue(db: Db, how: Billing, tenant_id: str, month: date) -> Invoice:
    """Issue the invoice of a month, or return the one that was issued. Raises Fault while the month is not complete or not priced."""
    period = month_of(month, how.booking_zone)
    async with db.transaction(long=True) as session:
        head = await billing.next_number(session)
        known = await billing.find_invoice(session, tenant_id, month)
        if known is not None:
            return known
        if await billing.invoiced_after(session, tenant_id, month):
            raise Fault("later_invoiced", f"a later month of {tenant_id} was invoiced already: months are issued in order")
        complete = complete_through(await books.completeness(session))
        if complete is None or complete < period.end:
            raise Fault("month_open", f"{month:%Y-%m} is not complete yet: the books are complete through {complete}")
        issued = head.issued_at.astimezone(UTC)
        document, total, unpriced = await make(session, how, tenant_id, month, head.number, issued.date())
        if unpriced:
            raise Fault(
                "unpriced", f"{unpriced} settlements of {month:%Y-%m} passed gas through and had no fresh dollar rate: record one first"
            )
        entry_id = None
        if total:
            entry = Entry(debit=receivable(tenant_id), credit=fee_income(tenant_id), asset=USD, amount_atomic=Atomic(total))
            entry_id = await billing.post_entry(session, entry, period.end - _INSTANT, reference_of(head.number))
        invoice = Invoice(head.number, tenant_id, month, document, issued)
        await billing.store_invoice(session, invoice, entry_id)
    return invoice


async def issued_again(session: Session, how: Billing, invoice: Invoice) -> bool:
    """Do the books still make the very bytes that were issued?"""
    issued = invoice.issued_at.astimezone(UTC).date()
    document, _, _ = await make(session, how, invoice.tenant_id, invoice.month, invoice.number, issued)
    return document == invoice.document


def reference_of(number: int) -> str:
    """What the entry of an invoice refers to."""
    return f"invoice {number}"


def parse_usd(text: str) -> Atomic:
    """`12.50` as micro-dollars. Raises ConfigFault."""
    whole, _, part = text.partition(".")
    if not (
        whole.isascii() and whole.isdigit() and len(whole) <= 12 and (not part or (part.isascii() and part.isdigit())) and len(part) <= 6
    ):
        raise ConfigFault("bad_amount", f"expected dollars such as 12.50, got {text!r}")
    micros = int(whole) * MICROS + int(part.ljust(USD_DECIMALS, "0") or "0")
    if micros == 0:
        raise ConfigFault("bad_amount", "an amount of nothing is not booked")
    return Atomic(micros)


async def add_terms(db: Db, actor: str, tenant_id: str, effective_from: date, terms: Terms) -> Schedule | None:
    """The next version of a tenant's terms, with its event; None when it would reach back. Raises ConfigFault without a tenant."""
    async with db.transaction() as session:
        await _lock(session, tenant_id)
        added = await billing.add_schedule(session, tenant_id, effective_from, terms)
        if added is not None:
            await record_event(session, "terms_added", actor, f"{tenant_id}, version {added.version} from {added.effective_from}")
        return added


def reaches_back(tenant_id: str, effective_from: date) -> str:
    """Why terms were not added."""
    return f"{tenant_id} has terms from {effective_from} or later already, or was invoiced for that day: choose a later one"


async def book(
    db: Db, actor: str, tenant_id: str, kind: str, amount: Atomic, reference: str, happened_at: datetime | None = None
) -> tuple[int, bool]:
    """Book a `payment` of a tenant or a `credit` to it, with its event; returns the entry's id, and whether it is a new one.

    A reference is booked once: again, and of the same amount, is the entry that it has. Raises ConfigFault without a tenant,
    and Fault for another amount.
    """
    debit, credit = CASH if kind == "payment" else fee_income(tenant_id), receivable(tenant_id)
    async with db.transaction() as session:
        await _lock(session, tenant_id)
        known = await billing.find_entry(session, debit, credit, reference)
        if known is not None and known.amount_atomic != amount:
            raise Fault("reference_taken", f"{reference} was booked as entry {known.entry_id}, of {_usd(known.amount_atomic)} USD")
        if known is not None:
            return known.entry_id, False
        entry = Entry(debit=debit, credit=credit, asset=USD, amount_atomic=amount)
        entry_id = await billing.post_entry(session, entry, happened_at or datetime.now(UTC), reference)
        await record_event(session, f"{kind}_booked", actor, f"entry {entry_id}, {tenant_id}: {reference}")
        return entry_id, True


async def _lock(session: Session, tenant_id: str) -> None:
    if await lock_tenant(session, tenant_id) is None:
        raise ConfigFault("unknown_tenant", f"there is no tenant {tenant_id}")


async def _month(session: Session, how: Billing, tenant_id: str, month: date) -> _Month:
    period = month_of(month, how.booking_zone)
    pricer = await Pricer.open(session, period, tenant_id, how.booking_zone, how.decimals)
    found = _Month()
    async for line in books.settlement_lines(session, period, tenant_id, how.rate_stale_s):
        if line.phase != "posted":
            continue
        charge = pricer.price(line)
        if charge is None:
            found.unscheduled += 1
            continue
        part = found.fees[line.network, line.asset, charge.version, -1 if charge.tier is None else charge.tier]
        part.settlements += 1
        part.volume_atomic += line.amount_atomic
        part.micros += charge.fee_micros
        if charge.gas_micros is None:
            found.unpriced += 1
        elif charge.gas_micros:
            passed = found.gas[line.network]
            passed.settlements += 1
            passed.wei += line.cost_wei or 0
            passed.micros += charge.gas_micros
    return found


async def _receivable(session: Session, how: Billing, tenant_id: str, month: date, number: int | None) -> dict[str, int]:
    """What the tenant owed, and what moved it, without the invoice of that number."""
    period, account = month_of(month, how.booking_zone), receivable(tenant_id)
    moved = {"opening": (await billing.opening(session, account, period.start)).get(USD, 0), "invoiced": 0, "received": 0, "credited": 0}
    async for movement in billing.movements(session, account, period):
        if number is None or movement.reference != reference_of(number):
            kind = "received" if movement.against == CASH else "invoiced" if movement.amount_atomic > 0 else "credited"
            moved[kind] += movement.amount_atomic
    return moved


def _usd(micros: int) -> str:
    return decimal_text(micros, USD_DECIMALS)


def heading(document: str) -> list[str]:
    """What stands above the rows, for people."""
    read = json.loads(document)
    name = f"Invoice {read['invoice']}, issued {read['issued']}" if read["invoice"] else "Draft"
    return [f"{name}: {read['tenant']}, {read['month']} ({read['zone']}), {read['currency']}", ""]


def ending(document: str) -> list[str]:
    """What stands below the rows, for people."""
    read = json.loads(document)
    figures = {"total": read["total"]} | {f"receivable, {name}": value for name, value in read["receivable"].items()}
    if read["unpriced_settlements"]:
        figures["settlements without a dollar rate for their gas"] = str(read["unpriced_settlements"])
    if read["settlements_without_terms"]:
        figures["settlements without terms, not charged"] = str(read["settlements_without_terms"])
    wide, right = max(map(len, figures)), max(map(len, figures.values()))
    return ["", *(f"{name:<{wide}}  {value:>{right}}" for name, value in figures.items())]


def lines_of(document: str) -> list[dict[str, Any]]:
    """The rows of a document: what each price, and the gas of each network, came to."""
    read = json.loads(document)
    rows = [
        {"what": f"settlements, {line['network']}, {line['asset']}, version {line['schedule_version']}, tier {line['tier']}"} | line
        for line in read["lines"]
    ]
    rows += [{"what": f"gas, {line['network']}, {line['cost_wei']} wei", "volume": ""} | line for line in read["gas"]]
    return [{name: str(row[name]) for name in ("what", "settlements", "volume", "charge")} for row in rows]
