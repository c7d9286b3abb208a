"""The audit trail: who signed in, looked for files, explained, closed, billed and administered."""

from typing import Final

from aiohttp import web

from facilitator.console.desk import Desk, Refused, Visit
from facilitator.domain.periods import parse_period
from facilitator.finance import views

ROWS: Final = 100
_FILTERS: Final = ("from", "to", "kind", "actor", "before")
_DIGITS_MAX: Final = 18


async def show_audit(desk: Desk, visit: Visit) -> web.StreamResponse:
    """GET /audit."""
    db, zone = desk.need_db(), desk.finance.booking_zone
    asked = {name: value.strip() for name, value in visit.request.query.items() if value.strip()}
    if unknown := set(asked) - set(_FILTERS):
        raise Refused(400, f"There is no filter {min(unknown)[:40]!r}.")
    period, wrong = None, None
    if "from" in asked or "to" in asked:
        try:
            period = parse_period(asked.get("from", "1970-01-01"), asked.get("to", "9999-01-01"), zone)
        except (ValueError, OverflowError) as error:
            wrong = str(error)
    before = asked.get("before", "")
    mark = int(before) if before.isascii() and before.isdigit() and len(before) <= _DIGITS_MAX else None
    found = [] if wrong else await views.audit_events(db, period, asked.get("kind"), asked.get("actor"), mark, ROWS + 1)
    return desk.render(
        visit,
        "audit.html",
        status=400 if wrong else 200,
        here="audit",
        asked=asked,
        wrong=wrong,
        found=found[:ROWS],
        last=found[ROWS - 1].event_id if len(found) > ROWS else None,
    )
