"""Tenants: their terms, what they owe, and their invoices as issued or as they would be today."""

import json
from datetime import UTC, date, datetime, timedelta
from itertools import accumulate
from typing import Final, NamedTuple

from aiohttp import web

from facilitator.console.desk import Desk, Refused, Visit
from facilitator.domain.money import decimal_text
from facilitator.domain.periods import Period, day_start, local_date, parse_month
from facilitator.domain.schedules import USD, USD_DECIMALS, Terms, Tier, decode_terms
from facilitator.finance import invoices, views
from facilitator.finance.invoices import Billing
from facilitator.store import billing
from facilitator.store import views as rows
from facilitator.store.billing import Movement

_NUMBER_DIGITS: Final = 18


class _Account(NamedTuple):
    """What a tenant owes, in micro-dollars."""

    first: date
    opening: int
    movements: list[tuple[Movement, int]]
    """With what was owed after each."""
    closing: int


async def show_tenants(desk: Desk, visit: Visit) -> web.StreamResponse:
    """GET /tenants."""
    found = await rows.tenants(desk.need_db(), _today(desk))
    return desk.render(visit, "tenants.html", here="tenants", tenants=[(each, _terms(each.terms)) for each in found])


async def show_tenant(desk: Desk, visit: Visit) -> web.StreamResponse:
    """GET /tenants/{id}."""
    db, tenant_id, today = desk.need_db(), visit.request.match_info["id"], _today(desk)
    found = next((each for each in await rows.tenants(db, today) if each.tenant_id == tenant_id), None)
    if found is None:
        raise Refused(404, "There is no such tenant.")
    issued = await rows.invoices(db, tenant_id)
    async with db.session() as session:
        schedules = await billing.list_schedules(session, tenant_id)
    month = today.replace(day=1)
    return desk.render(
        visit,
        "tenant.html",
        here="tenants",
        tenant=found,
        limits=json.loads(found.limits),
        schedules=[(each.version, each.effective_from, describe(decode_terms(each.terms))) for each in schedules],
        issued=[(each, json.loads(each.document)) for each in issued],
        drafts=_drafts(month, {each.month for each in issued}),
        account=await _account(desk, tenant_id, month.replace(year=month.year - 1), today),
    )


async def show_invoice(desk: Desk, visit: Visit) -> web.StreamResponse:
    """GET /invoices/{number}: as it was issued."""
    text = visit.request.match_info["number"]
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= _NUMBER_DIGITS else 0
    found = await rows.invoice(desk.need_db(), number)
    if found is None:
        raise Refused(404, "There is no such invoice.")
    return desk.render(visit, "invoice.html", here="tenants", document=json.loads(found.document), month=found.month)


async def show_draft(desk: Desk, visit: Visit) -> web.StreamResponse:
    """GET /tenants/{id}/{month}: what its invoice would be by the books of this moment."""
    db, tenant_id = desk.need_db(), visit.request.match_info["id"]
    try:
        month = parse_month(visit.request.match_info["month"])
    except ValueError:
        raise Refused(404, "There is no such month.") from None
    if all(each.tenant_id != tenant_id for each in await rows.tenants(db, month)):
        raise Refused(404, "There is no such tenant.")
    how = Billing(booking_zone=desk.finance.booking_zone, decimals=desk.decimals, rate_stale_s=desk.finance.rate_stale_s)
    async with db.snapshot() as session:
        text, _, _ = await invoices.make(session, how, tenant_id, month, None, None)
    return desk.render(visit, "invoice.html", here="tenants", document=json.loads(text), month=month)


async def _account(desk: Desk, tenant_id: str, first: date, today: date) -> _Account:
    zone = desk.finance.booking_zone
    period = Period(day_start(first, zone), day_start(today + timedelta(days=1), zone))
    found = await views.statement(desk.need_db(), invoices.receivable(tenant_id), period)
    opening = found.opening.get(USD, 0)
    after = list(accumulate((each.amount_atomic for each in found.movements), initial=opening))
    return _Account(first, opening, list(zip(found.movements, after[1:], strict=True)), after[-1])


def describe(terms: Terms) -> list[str]:
    """Terms in words, a line for each part."""
    lines = [_tier(tier) for tier in terms.tiers]
    if terms.free_settlements:
        lines.insert(0, f"first {terms.free_settlements:,} settlements of a month free")
    if terms.gas is None:
        return [*lines, "gas is ours"]
    margin = terms.gas.margin_basis_points
    return [*lines, "gas passed through" + (f" with {_percent(margin)} on top" if margin else "")]


def _tier(tier: Tier) -> str:
    parts = [f"{decimal_text(tier.flat_micros, USD_DECIMALS)} USD each"] if tier.flat_micros else []
    parts += [f"{_percent(tier.basis_points)} of the amount"] if tier.basis_points else []
    priced = " and ".join(parts) or "nothing"
    return f"above {tier.above:,} in a month: {priced}" if tier.above else priced


def _percent(basis_points: int) -> str:
    return f"{decimal_text(basis_points, 2)} %"


def _terms(text: str | None) -> list[str]:
    return [] if text is None else describe(decode_terms(text))


def _drafts(month: date, issued: set[date]) -> list[date]:
    """This month, and the one before it while it has no invoice."""
    before = (month - timedelta(days=1)).replace(day=1)
    return [each for each in (month, before) if each not in issued]


def _today(desk: Desk) -> date:
    return local_date(datetime.now(UTC), desk.finance.booking_zone)
