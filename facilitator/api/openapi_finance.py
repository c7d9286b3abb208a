"""The routes of finance and fees as OpenAPI 3.1: what they answer is described by the rows that they are made of (`api/rows.py`)."""

from typing import Any, Final

from facilitator.api.describing import (
    ADDRESS,
    ATOMIC,
    BODY,
    HASH,
    LOCKED,
    NETWORK,
    Json,
    answer,
    body,
    closed,
    nullable,
    operation,
    parameter,
    struct,
)
from facilitator.api.rows import schema
from facilitator.domain.states import State
from facilitator.finance import views
from facilitator.finance.tables import TEXTS
from facilitator.store import billing, books
from facilitator.store import views as rows
from facilitator.store.discrepancies import Discrepancy

_SCOPES: Final = ("finance",)
_TEXT: Final[Json] = {"type": "string"}
_DATE: Final[Json] = {"type": "string", "format": "date"}
_BOUND: Final[Json] = {"type": "string", "description": "a date or a month of tz, or a time with its offset"}
_ZONE: Final[Json] = {"type": "string", "description": "IANA zone; finance.booking_zone by default"}
_LIMIT: Final = parameter("limit", {"type": "integer", "minimum": 1, "default": 50})
_BEFORE: Final = parameter("before", {"type": "integer", "description": "last id of the page before"})
_FORMAT: Final = parameter("format", {"type": "string", "enum": list(TEXTS), "default": "csv"})
_PERIOD: Final = [parameter("from", _BOUND, required=True), parameter("to", _BOUND, required=True), parameter("tz", _ZONE)]
_FILTERS: Final = [
    parameter("from", {**_BOUND, "description": f"when it was asked for: {_BOUND['description']}"}),
    parameter("to", {**_BOUND, "description": "excluded"}),
    parameter("tz", _ZONE),
    parameter("state", {"type": "string", "enum": [state.value for state in State]}),
    parameter("tenant", _TEXT),
    parameter("network", NETWORK),
    parameter("asset", ADDRESS),
    parameter("payer", ADDRESS),
    parameter("pay_to", ADDRESS),
    parameter("tx", HASH),
    parameter("amount_min", ATOMIC),
    parameter("amount_max", ATOMIC),
]


def _list(name: str, row: type[Any], *, leave_out: tuple[str, ...] = (), beside: Json | None = None, **more: object) -> Json:
    """`{name: [rows]}`, with what stands beside them."""
    properties: Json = {name: {"type": "array", "items": schema(row, leave_out=leave_out, **more)}, **(beside or {})}
    return struct(properties, list(properties))


_WHOLE: Final[Json] = {"type": "integer", "minimum": 0}
_TERMS: Final = closed(
    struct(
        {
            "tiers": {
                "type": "array",
                "minItems": 1,
                "items": closed(struct({"above": _WHOLE, "flat_micros": _WHOLE, "basis_points": _WHOLE}, [])),
            },
            "free_settlements": _WHOLE,
            "gas": nullable(closed(struct({"margin_basis_points": _WHOLE}, []))),
        },
        [],
        "as in the file of `facilitator fees add`",
    )
)
_FEES: Final[dict[str, Any]] = struct(
    {"tenant": _TEXT, "version": {"type": "integer"}, "from": {**_DATE, "description": "the first book day"}, "terms": _TERMS},
    ["tenant", "version", "from", "terms"],
)

SCHEMAS: Final[Json] = {
    "FinanceOverview": schema(views.Overview, zone=_TEXT),
    "FinanceSettlementPage": _list("settlements", rows.SettlementRow, beside={"nextCursor": nullable(_TEXT)}),
    "FinanceTotals": _list("totals", rows.StateTotal),
    "FinanceSettlement": schema(rows.SettlementRow, **schema(views.SettlementSheet, leave_out=("row",))["properties"]),  # type: ignore[arg-type]
    "DiscrepancyList": _list("discrepancies", Discrepancy),
    "Discrepancy": schema(Discrepancy),
    "Explanation": closed(struct({"note": _TEXT, "entry": nullable({"type": "integer"}), "book": {"type": "boolean"}}, ["note"])),
    "DayList": _list("days", views.CloseDay, beside={"zone": _TEXT}),
    "ClosedDay": {"type": "object", "description": "the document of the close"},
    "NewReopening": closed(struct({"reason": _TEXT}, ["reason"])),
    "Reopening": struct({"day": _DATE, "asked": _TEXT, "confirmed": _TEXT}, ["day", "asked"]),
    "RelayerList": _list("relayers", rows.RelayerRow),
    "GasList": _list("gas", rows.GasSpent, beside={"zone": _TEXT}),
    "FinanceTenantList": _list("tenants", rows.TenantRow),
    "InvoiceList": _list("invoices", billing.Invoice, leave_out=("document",)),
    "Invoice": {"type": "object", "description": "the document as it was issued, byte for byte"},
    "BalanceList": _list("balances", books.AccountTotal, balance=_TEXT),
    "Statement": struct(
        {
            "account": _TEXT,
            "opening": {"type": "object", "additionalProperties": _TEXT},
            "movements": {"type": "array", "items": schema(billing.Movement)},
            "closing": {"type": "object", "additionalProperties": _TEXT},
        },
        ["account", "opening", "movements", "closing"],
    ),
    "Fees": _FEES,
    "FeesList": struct({"fees": {"type": "array", "items": _FEES}}, ["fees"]),
    "NewFees": closed(struct({name: _FEES["properties"][name] for name in ("tenant", "from", "terms")}, ["tenant", "from", "terms"])),
    "Booked": struct(
        {"entry": {"type": "integer"}, "tenant": _TEXT, "amount": {**ATOMIC, "description": "micro-dollars"}, "reference": _TEXT},
        ["entry", "tenant", "amount", "reference"],
    ),
    "NewBooking": closed(
        struct(
            {
                "tenant": _TEXT,
                "usd": {"type": "string", "pattern": r"^[0-9]{1,12}(\.[0-9]{0,6})?$", "description": "dollars such as 12.50; not 0"},
                "reference": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": 200,
                    "description": "what it can be found by outside; each is booked once, again is the same entry",
                },
            },
            ["tenant", "usd", "reference"],
        )
    ),
    "EventList": _list("events", rows.EventRow),
}


def _get(name: str, summary: str, of: str, *parameters: Json, scopes: tuple[str, ...] = _SCOPES, missing: str | None = None) -> Json:
    answers = {"200": answer(summary, of), "400": answer("a wrong query parameter", "Problem"), **LOCKED}
    if missing:
        answers["404"] = answer(missing, "Problem")
    return {"get": operation(name, summary, answers, scopes, parameters=list(parameters))}


def _post(name: str, summary: str, of: str, where: Json, *, takes: str | None = None, status: str = "200") -> Json:
    answers = {status: answer(summary, of), "409": answer("the books forbid it; the message says why", "Problem"), **BODY, **LOCKED}
    more: dict[str, object] = {"requestBody": body(takes)} if takes else {}
    return {"post": operation(name, summary, answers, _SCOPES, parameters=[where], **more)}


def _file(name: str, summary: str, *parameters: Json) -> Json:
    shown = {form: {"schema": _TEXT} for form in ("text/csv", "application/jsonl")}
    answers = {"200": {"description": summary, "content": shown}, "400": answer("a wrong query parameter", "Problem"), **LOCKED}
    return {"get": operation(name, summary, answers, _SCOPES, parameters=[*parameters, _FORMAT])}


_ADMIN: Final = ("admin",)
_NO_TENANT: Final[Json] = {"404": answer("no such tenant", "Problem"), **BODY, **LOCKED}


def _booking(name: str, summary: str) -> Json:
    answers = {
        "201": answer("the entry", "Booked"),
        "200": answer("the entry that this reference has already, of the same amount", "Booked"),
        "409": answer("the reference was booked with another amount", "Problem"),
        **_NO_TENANT,
    }
    return {"post": operation(name, summary, answers, _ADMIN, requestBody=body("NewBooking"))}


_ID: Final[Json] = {"name": "id", "in": "path", "required": True, "schema": _TEXT}
_DAY: Final[Json] = {"name": "day", "in": "path", "required": True, "schema": _DATE}
_CURSOR: Final = parameter("cursor", {"type": "string", "description": "nextCursor of the page before"})

PATHS: Final[Json] = {
    "/finance/overview": _get("financeOverview", "How the books stand", "FinanceOverview"),
    "/finance/settlements": _get(
        "financeSettlements", "Settlements of a filter, newest first", "FinanceSettlementPage", *_FILTERS, _CURSOR, _LIMIT
    ),
    "/finance/settlements/totals": _get("financeTotals", "What the whole filter comes to", "FinanceTotals", *_FILTERS),
    "/finance/settlements/file": _file("financeSettlementsFile", "Precisely the settlements of a filter", *_FILTERS),
    "/finance/settlements/{id}": _get(
        "financeSettlement", "All that is on record of one settlement", "FinanceSettlement", _ID, missing="no such settlement"
    ),
    "/finance/report": _file("financeReport", "The settlement detail report of a period", *_PERIOD, parameter("tenant", _TEXT)),
    "/finance/discrepancies": _get(
        "financeDiscrepancies",
        "Discrepancies, newest first",
        "DiscrepancyList",
        parameter("status", {"type": "string", "enum": list(views.DISCREPANCY_STATUSES), "default": "open"}),
        parameter("network", NETWORK),
        parameter("class", {"type": "string", "pattern": "^R[1-9]$"}),
        _BEFORE,
        _LIMIT,
    ),
    "/finance/discrepancies/{id}": _get("financeDiscrepancy", "One discrepancy", "Discrepancy", _ID, missing="no such discrepancy"),
    "/finance/discrepancies/{id}/explain": _post("explainDiscrepancy", "Say what it was", "Discrepancy", _ID, takes="Explanation"),
    "/finance/days": _get(
        "financeDays", "Book days and what was done to them", "DayList", parameter("from", _DATE), parameter("to", _DATE)
    ),
    "/finance/days/{day}/close": _post("closeDay", "Close a book day", "ClosedDay", _DAY),
    "/finance/days/{day}/reopen": _post(
        "askReopening", "Ask that the last closed day be reopened", "Reopening", _DAY, takes="NewReopening", status="202"
    ),
    "/finance/days/{day}/reopen/confirm": _post("confirmReopening", "Reopen what somebody else asked for", "Reopening", _DAY),
    "/finance/relayers": _get("financeRelayers", "Relayers and what they had when that was last read", "RelayerList"),
    "/finance/gas": _get("financeGas", "What transactions cost, by day, relayer and cause", "GasList", *_PERIOD),
    "/finance/gas/file": _file("financeGasFile", "The gas report of a period: every wei of relayers by cause", *_PERIOD),
    "/finance/tenants": _get("financeTenants", "Tenants, their terms and what they owe", "FinanceTenantList"),
    "/finance/invoices": _get("financeInvoices", "Invoices as issued, newest first", "InvoiceList", parameter("tenant", _TEXT)),
    "/finance/invoices/{id}": _get("financeInvoice", "One invoice as issued", "Invoice", _ID, missing="no such invoice"),
    "/finance/balances": _get("financeBalances", "Balances of all accounts, now", "BalanceList"),
    "/finance/statement": _get(
        "financeStatement", "One account: opening, movements, closing", "Statement", parameter("account", _TEXT, required=True), *_PERIOD
    ),
    "/finance/audit": _get(
        "financeAudit",
        "The audit trail, newest first",
        "EventList",
        *(parameter(name, _BOUND) for name in ("from", "to")),
        parameter("tz", _ZONE),
        parameter("kind", _TEXT),
        parameter("actor", _TEXT),
        _BEFORE,
        _LIMIT,
        scopes=_ADMIN,
    ),
    "/admin/fees": {
        "get": operation(
            "listFees",
            "Every version of tenants' terms",
            {"200": answer("of all tenants, or of one", "FeesList"), "400": answer("a wrong query parameter", "Problem"), **LOCKED},
            _ADMIN,
            parameters=[parameter("tenant", _TEXT)],
        ),
        "post": operation(
            "addFees",
            "A new version of a tenant's terms; versions are never edited",
            {"201": answer("the version", "Fees"), "409": answer("it would reach back", "Problem"), **_NO_TENANT},
            _ADMIN,
            requestBody=body("NewFees"),
        ),
    },
    "/admin/fees/payment": _booking("bookPayment", "Book what a tenant paid"),
    "/admin/fees/credit": _booking("bookCredit", "Book what a tenant is credited"),
}
