"""Fees over HTTP, for scope `admin`: terms of tenants, what they paid and what they are credited.

The functions are those of `facilitator fees`; each change is in the audit trail under the id of the key that asked.
"""

import json
from collections.abc import Awaitable
from datetime import date
from typing import Annotated, Any, TypeVar

import msgspec
from aiohttp import web

from facilitator.api.desk import Desk, Grant, HttpProblem, json_response
from facilitator.api.x402 import read_json
from facilitator.domain.schedules import Schedule, decode_terms, encode_terms
from facilitator.errors import ConfigFault, Fault
from facilitator.finance import invoices
from facilitator.store import billing

_Result = TypeVar("_Result")


class NewTerms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /admin/fees."""

    tenant: str
    effective_from: date = msgspec.field(name="from")
    """The first book day of the version."""
    terms: dict[str, Any]
    """The document of `facilitator fees add`."""


class Booking(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /admin/fees/payment and /admin/fees/credit."""

    tenant: str
    usd: str
    """Such as 12.50."""
    reference: Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]*\S[^\x00-\x1f]*$")]
    """What it can be found by outside; each is booked once."""


async def list_fees(desk: Desk, request: web.Request, _grant: Grant) -> web.StreamResponse:
    """GET /admin/fees: every version of the terms of all tenants, or of one."""
    if wrong := set(request.query) - {"tenant"}:
        raise HttpProblem(400, "invalid_request", f"expected no query parameter but tenant, got {min(wrong)[:64]!r}")
    async with desk.need_db().session() as session:
        found = await billing.list_schedules(session, request.query.get("tenant"))
    return json_response({"fees": [_facts(row.tenant_id, row.schedule) for row in found]})


async def add_fees(desk: Desk, request: web.Request, grant: Grant) -> web.StreamResponse:
    """POST /admin/fees: a new version of a tenant's terms; versions are never edited."""
    asked = await read_json(desk, request, NewTerms)
    try:
        terms = decode_terms(json.dumps(asked.terms))
    except ValueError as error:
        raise HttpProblem(400, "invalid_request", str(error)) from None
    added = await _told(invoices.add_terms(desk.need_db(), grant.actor, asked.tenant, asked.effective_from, terms))
    if added is None:
        raise HttpProblem(409, "reaches_back", invoices.reaches_back(asked.tenant, asked.effective_from))
    return json_response(_facts(asked.tenant, added), 201)


async def book_payment(desk: Desk, request: web.Request, grant: Grant) -> web.StreamResponse:
    """POST /admin/fees/payment: what a tenant paid."""
    return await _book(desk, request, grant, "payment")


async def book_credit(desk: Desk, request: web.Request, grant: Grant) -> web.StreamResponse:
    """POST /admin/fees/credit: what a tenant is credited."""
    return await _book(desk, request, grant, "credit")


async def _book(desk: Desk, request: web.Request, grant: Grant, kind: str) -> web.StreamResponse:
    asked = await read_json(desk, request, Booking)
    try:
        amount = invoices.parse_usd(asked.usd)
    except ConfigFault as fault:
        raise HttpProblem(400, "invalid_request", f"usd: {fault.message}") from None
    entry_id, new = await _told(invoices.book(desk.need_db(), grant.actor, asked.tenant, kind, amount, asked.reference))
    return json_response(
        {"entry": entry_id, "tenant": asked.tenant, "amount": str(amount), "reference": asked.reference}, 201 if new else 200
    )


async def _told(work: Awaitable[_Result]) -> _Result:
    """What it returns; 404 without a tenant, 409 when the books forbid it."""
    try:
        return await work
    except ConfigFault as fault:
        raise HttpProblem(404, "not_found", fault.message) from None
    except Fault as fault:
        if type(fault) is Fault:
            raise HttpProblem(409, fault.kind, fault.message) from None
        raise


def _facts(tenant_id: str, schedule: Schedule) -> dict[str, object]:
    return {
        "tenant": tenant_id,
        "version": schedule.version,
        "from": schedule.effective_from.isoformat(),
        "terms": json.loads(encode_terms(schedule.terms)),
    }
