"""The books over HTTP, for scope `finance`: all tenants, the same questions as the console (`finance/views.py`).

What changes something is done by the functions that the command line uses, under the name of the key that asked: whoever
asks for a reopening with a key cannot confirm it with the same one. Each change and each file taken away is in the audit trail.
"""

import json
from asyncio import Semaphore
from collections.abc import Awaitable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Final, TypeVar
from uuid import UUID

import msgspec
from aiohttp import web

from facilitator.api.desk import Desk, Grant, HttpProblem, json_response
from facilitator.api.rows import render
from facilitator.api.x402 import read_json
from facilitator.domain.periods import Period, local_date, parse_day, parse_period
from facilitator.downloads import send_text
from facilitator.errors import ConfigFault, Fault
from facilitator.finance import closes, export, views
from facilitator.finance.examination import explain
from facilitator.finance.tables import TEXTS
from facilitator.store import books
from facilitator.store import views as rows
from facilitator.store.seals import record_event
from facilitator.store.views import Filter
from facilitator.units import Network, Zone, parse_network, parse_zone

_Result = TypeVar("_Result")
_PAGE_DEFAULT: Final = 50
_CALENDAR_DAYS_MAX: Final = 400
_DOWNLOADS: Final = Semaphore(2)
"""Files that this process makes at the same time: each holds a connection to the database."""
_CONTENT_TYPES: Final = {"csv": "text/csv", "jsonl": "application/jsonl"}


class Explanation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Body of POST /finance/discrepancies/{id}/explain."""

    note: str
    entry: int | None = None
    """The entry that resolves it."""
    book: bool = False
    """R6 only: book the difference against `funding:<network>`."""


class Reopening(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Body of POST /finance/days/{day}/reopen."""

    reason: str


# ---- looking


async def overview(desk: Desk, _request: web.Request, _grant: Grant) -> web.StreamResponse:
    """GET /finance/overview: how the books stand."""
    found = await views.overview(desk.need_db(), desk.finance.booking_zone)
    return json_response(render(found) | {"zone": desk.finance.booking_zone})


async def list_settlements(desk: Desk, request: web.Request, _grant: Grant) -> web.StreamResponse:
    """GET /finance/settlements: a page of a filter, newest first."""
    query = _query(request, (*views.FILTERS, "cursor", "limit"))
    chosen, limit = _filter(desk, query), _limit(query, desk.settings.page_max)
    try:
        page = await views.settlements(desk.need_db(), chosen, query.get("cursor"), limit)
    except ValueError as error:
        raise _wrong(str(error)) from None
    return json_response({"settlements": [render(row) for row in page.rows], "nextCursor": page.next_cursor})


async def settlement_totals(desk: Desk, request: web.Request, _grant: Grant) -> web.StreamResponse:
    """GET /finance/settlements/totals: what the whole filter comes to."""
    chosen = _filter(desk, _query(request, views.FILTERS))
    return json_response({"totals": [render(row) for row in await views.totals(desk.need_db(), chosen)]})


async def get_settlement(desk: Desk, request: web.Request, _grant: Grant) -> web.StreamResponse:
    """GET /finance/settlements/{id}: all that is on record of one."""
    try:
        found = await views.settlement(desk.need_db(), UUID(request.match_info["id"]))
    except ValueError:
        found = None
    if found is None:
        raise HttpProblem(404, "not_found", "there is no such settlement")
    return json_response(render(found.row) | render(found, leave_out=("row",)))


async def list_discrepancies(desk: Desk, request: web.Request, _grant: Grant) -> web.StreamResponse:
    """GET /finance/discrepancies: newest first; `status` is open unless said otherwise."""
    query = _query(request, ("status", "network", "class", "before", "limit"))
    status, limit = query.get("status", "open"), _limit(query, desk.settings.page_max)
    if status not in views.DISCREPANCY_STATUSES:
        raise _wrong(f"status: expected one of {', '.join(views.DISCREPANCY_STATUSES)}")
    network = _network(query)
    found = await views.discrepancies(desk.need_db(), status, network, query.get("class"), _before(query), limit)
    return json_response({"discrepancies": [render(row) for row in found]})


async def get_discrepancy(desk: Desk, request: web.Request, _grant: Grant) -> web.StreamResponse:
    """GET /finance/discrepancies/{id}."""
    found = await views.discrepancy(desk.need_db(), _number(request.match_info["id"]))
    if found is None:
        raise HttpProblem(404, "not_found", "there is no such discrepancy")
    return json_response(render(found))


async def list_days(desk: Desk, request: web.Request, _grant: Grant) -> web.StreamResponse:
    """GET /finance/days: book days with what was done to them; the last 31 unless said otherwise."""
    query = _query(request, ("from", "to"))
    today = local_date(datetime.now(UTC), desk.finance.booking_zone)
    try:
        last = parse_day(query["to"]) if "to" in query else today
        first = parse_day(query["from"]) if "from" in query else last - timedelta(days=30)
    except ValueError as error:
        raise _wrong(str(error)) from None
    if not 0 <= (last - first).days < _CALENDAR_DAYS_MAX:
        raise _wrong(f"from, to: expected 1 to {_CALENDAR_DAYS_MAX} days")
    found = await views.calendar(desk.need_db(), first, last)
    return json_response({"days": [render(day) for day in found], "zone": desk.finance.booking_zone})


async def list_relayers(desk: Desk, _request: web.Request, _grant: Grant) -> web.StreamResponse:
    """GET /finance/relayers: with the balance that was last read."""
    return json_response({"relayers": [render(row) for row in await rows.relayers(desk.need_db())]})


async def list_gas(desk: Desk, request: web.Request, _grant: Grant) -> web.StreamResponse:
    """GET /finance/gas: what transactions cost, by day, relayer and cause."""
    query = _query(request, ("from", "to", "tz"))
    zone = _zone(desk, query)
    return json_response({"gas": [render(row) for row in await rows.gas(desk.need_db(), _period(query, zone), zone)], "zone": zone})


async def list_tenants(desk: Desk, _request: web.Request, _grant: Grant) -> web.StreamResponse:
    """GET /finance/tenants: with terms and what they owe."""
    today = local_date(datetime.now(UTC), desk.finance.booking_zone)
    return json_response({"tenants": [render(row) for row in await rows.tenants(desk.need_db(), today)]})


async def list_invoices(desk: Desk, request: web.Request, _grant: Grant) -> web.StreamResponse:
    """GET /finance/invoices: as issued, newest first."""
    query = _query(request, ("tenant",))
    found = await rows.invoices(desk.need_db(), query.get("tenant"))
    return json_response({"invoices": [render(row, leave_out=("document",)) for row in found]})


async def get_invoice(desk: Desk, request: web.Request, _grant: Grant) -> web.StreamResponse:
    """GET /finance/invoices/{id}: the document as it was issued, byte for byte."""
    found = await rows.invoice(desk.need_db(), _number(request.match_info["id"]))
    if found is None:
        raise HttpProblem(404, "not_found", "there is no such invoice")
    return web.Response(text=found.document, content_type="application/json", charset="utf-8")


async def get_statement(desk: Desk, request: web.Request, _grant: Grant) -> web.StreamResponse:
    """GET /finance/statement: one account: opening, movements, closing."""
    query = _query(request, ("account", "from", "to", "tz"))
    if not query.get("account"):
        raise _wrong("account: expected one, such as receivable:acme")
    period = _period(query, _zone(desk, query))
    found = await views.statement(desk.need_db(), query["account"], period)
    balances = {"opening": found.opening, "closing": found.closing}
    told = {name: {asset: str(amount) for asset, amount in balance.items()} for name, balance in balances.items()}
    return json_response(render(found, leave_out=tuple(balances)) | told)


async def list_balances(desk: Desk, _request: web.Request, _grant: Grant) -> web.StreamResponse:
    """GET /finance/balances: of every account, now."""
    async with desk.need_db().snapshot() as session:
        found = [total async for total in books.balances(session, datetime.now(UTC))]
    return json_response({"balances": [render(total) | {"balance": str(total.balance_atomic)} for total in found]})


async def list_events(desk: Desk, request: web.Request, _grant: Grant) -> web.StreamResponse:
    """GET /finance/audit: the audit trail, newest first."""
    query = _query(request, ("from", "to", "tz", "kind", "actor", "before", "limit"))
    period = _period(query, _zone(desk, query)) if query.keys() & {"from", "to"} else None
    limit = _limit(query, desk.settings.page_max)
    found = await views.audit_events(desk.need_db(), period, query.get("kind"), query.get("actor"), _before(query), limit)
    return json_response({"events": [render(row) for row in found]})


# ---- files


async def download_settlements(desk: Desk, request: web.Request, grant: Grant) -> web.StreamResponse:
    """GET /finance/settlements/file: precisely the settlements of a filter, as CSV or JSON Lines."""
    query = _query(request, (*views.FILTERS, "format"))
    chosen, form = _filter(desk, query), _format(query)
    parts = views.settlement_list(desk.need_db(), chosen, form, desk.decimals)
    async with _DOWNLOADS:
        await _taken(desk, grant, "settlements", dict(query))
        return await send_text(request, f"settlements.{form}", _CONTENT_TYPES[form], parts)


async def download_report(desk: Desk, request: web.Request, grant: Grant) -> web.StreamResponse:
    """GET /finance/report: the settlement detail report of a period, byte for byte as `facilitator export settlements` writes it."""
    return await _send_report(desk, request, grant, export.SETTLEMENTS, "report")


async def download_gas(desk: Desk, request: web.Request, grant: Grant) -> web.StreamResponse:
    """GET /finance/gas/file: the gas report of a period, byte for byte as `facilitator export gas` writes it."""
    return await _send_report(desk, request, grant, export.GAS, "gas")


async def _send_report(desk: Desk, request: web.Request, grant: Grant, report: export.Report, name: str) -> web.StreamResponse:
    of_tenant = ("tenant",) if report is export.SETTLEMENTS else ()
    query = _query(request, ("from", "to", "tz", "format", *of_tenant))
    zone, form = _zone(desk, query), _format(query)
    asked = export.Asked(
        report=report,
        period=_period(query, zone),
        zone=zone,
        booking_zone=desk.finance.booking_zone,
        tenant_id=query.get("tenant"),
        format=form,
        decimals=desk.decimals,
        rate_stale_s=desk.finance.rate_stale_s,
    )
    async with _DOWNLOADS:
        await _taken(desk, grant, name, dict(query))
        return await send_text(request, f"{name}.{form}", _CONTENT_TYPES[form], export.report_text(desk.need_db(), asked))


async def _taken(desk: Desk, grant: Grant, what: str, query: Mapping[str, str]) -> None:
    await record_event(desk.need_db(), "settlements_downloaded", grant.actor, json.dumps({"what": what, "filter": query}))


# ---- doing


async def explain_discrepancy(desk: Desk, request: web.Request, grant: Grant) -> web.StreamResponse:
    """POST /finance/discrepancies/{id}/explain: say what it was."""
    asked = await read_json(desk, request, Explanation)
    if not asked.note.strip():
        raise _wrong("note: expected some words")
    number = _number(request.match_info["id"])
    try:
        entry = await explain(desk.need_db(), number, grant.actor, asked.note, asked.entry, book=asked.book)
    except ConfigFault as fault:
        raise HttpProblem(409, fault.kind, fault.message) from None
    await record_event(desk.need_db(), "discrepancy_explained", grant.actor, f"{number}: {asked.note}")
    found = await views.discrepancy(desk.need_db(), number)
    assert found is not None
    return json_response(render(found) | {"resolutionEntry": entry})


async def close_day(desk: Desk, request: web.Request, grant: Grant) -> web.StreamResponse:
    """POST /finance/days/{day}/close: its document; 409 says all that keeps it open."""
    return json_response(await _ruled(closes.close_day(desk.need_db(), desk.finance, _day(request), grant.actor)))


async def ask_reopening(desk: Desk, request: web.Request, grant: Grant) -> web.StreamResponse:
    """POST /finance/days/{day}/reopen: ask for it; somebody else confirms."""
    asked = await read_json(desk, request, Reopening)
    if not asked.reason.strip():
        raise _wrong("reason: expected some words")
    await _ruled(closes.ask_reopening(desk.need_db(), _day(request), grant.actor, asked.reason))
    return json_response({"day": request.match_info["day"], "asked": grant.actor}, 202)


async def confirm_reopening(desk: Desk, request: web.Request, grant: Grant) -> web.StreamResponse:
    """POST /finance/days/{day}/reopen/confirm: reopen what somebody else asked for."""
    first = await _ruled(closes.confirm_reopening(desk.need_db(), _day(request), grant.actor))
    return json_response({"day": request.match_info["day"], "asked": first, "confirmed": grant.actor})


# ---- reading what was asked


async def _ruled(work: Awaitable[_Result]) -> _Result:
    """What it returns; 409 when the books forbid it."""
    try:
        return await work
    except Fault as fault:
        if type(fault) is Fault:
            raise HttpProblem(409, fault.kind, fault.message) from None
        raise


def _query(request: web.Request, allowed: Sequence[str]) -> Mapping[str, str]:
    """Parameters, each known and given once: a filter that is ignored shows too much."""
    for name in request.query:
        if name not in allowed:
            raise _wrong(f"unknown query parameter {name[:40]!a}; known: {', '.join(allowed)}")
        if len(request.query.getall(name)) > 1:
            raise _wrong(f"query parameter {name}: expected once")
    return dict(request.query)


def _wrong(message: str) -> HttpProblem:
    return HttpProblem(400, "invalid_request", message)


def _filter(desk: Desk, query: Mapping[str, str]) -> Filter:
    try:
        return views.parse_filter(query, desk.finance.booking_zone)
    except ValueError as error:
        raise _wrong(f"query parameter {error}") from None


def _zone(desk: Desk, query: Mapping[str, str]) -> Zone:
    try:
        return parse_zone(query["tz"]) if "tz" in query else desk.finance.booking_zone
    except ValueError as error:
        raise _wrong(f"query parameter tz: {error}") from None


def _period(query: Mapping[str, str], zone: Zone) -> Period:
    if not {"from", "to"} <= query.keys():
        raise _wrong("expected the query parameters from and to")
    try:
        return parse_period(query["from"], query["to"], zone)
    except (ValueError, OverflowError) as error:
        raise _wrong(str(error)) from None


def _network(query: Mapping[str, str]) -> Network | None:
    try:
        return parse_network(query["network"]) if "network" in query else None
    except ValueError as error:
        raise _wrong(f"query parameter network: {error}") from None


def _format(query: Mapping[str, str]) -> str:
    form = query.get("format", "csv")
    if form not in TEXTS:
        raise _wrong(f"query parameter format: expected one of {', '.join(TEXTS)}")
    return form


def _limit(query: Mapping[str, str], most: int) -> int:
    text = query.get("limit", str(_PAGE_DEFAULT))
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and int(text) >= 1):
        raise _wrong(f"query parameter limit: expected an integer from 1 to {most}")
    return min(int(text), most)


def _before(query: Mapping[str, str]) -> int | None:
    return _number(query["before"]) if "before" in query else None


def _number(text: str) -> int:
    """An id of the ledger; what is none leads to nothing."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else 0


def _day(request: web.Request) -> date:
    try:
        return parse_day(request.match_info["day"])
    except ValueError as error:
        raise _wrong(str(error)) from None
