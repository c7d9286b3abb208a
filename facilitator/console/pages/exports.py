"""Files to take away: the settlement detail report of a period, and what was taken before."""

import json
from datetime import UTC, datetime, timedelta
from typing import Final

from aiohttp import web

from facilitator.console.desk import Desk, Refused, Visit
from facilitator.domain.periods import Period, local_date, parse_period
from facilitator.downloads import send_text
from facilitator.finance import export, standing
from facilitator.finance.tables import TEXTS
from facilitator.store import views as rows
from facilitator.store.seals import record_event
from facilitator.units import Zone, parse_zone

ROWS: Final = 50
_TAKEN: Final = "settlements_downloaded"
_TYPES: Final = {"csv": "text/csv", "jsonl": "application/jsonl"}


async def show_exports(desk: Desk, visit: Visit) -> web.StreamResponse:
    """GET /exports."""
    db = desk.need_db()
    month = local_date(datetime.now(UTC), desk.finance.booking_zone).replace(day=1)
    return desk.render(
        visit,
        "exports.html",
        here="exports",
        standing=await standing.read(db),
        start=(month - timedelta(days=1)).replace(day=1),
        end=month,
        tenants=[(each.tenant_id, each.tenant_id) for each in await rows.tenants(db, month)],
        taken=[(each, json.loads(each.detail)) for each in await rows.events(db, None, None, _TAKEN, None, None, ROWS)],
    )


async def download_report(desk: Desk, visit: Visit) -> web.StreamResponse:
    """GET /exports/report: the settlement detail report of a period, byte for byte as `facilitator export settlements` writes it."""
    asked = {name: value.strip() for name, value in visit.request.query.items() if value.strip()}
    if unknown := set(asked) - {"from", "to", "tz", "tenant", "format"}:
        raise Refused(400, f"There is no {min(unknown)[:40]!r} to choose.")
    form = asked.get("format", "csv")
    if form not in TEXTS:
        raise Refused(400, f"There is no format {form[:40]!r}.")
    zone, period = _period(asked, desk.finance.booking_zone)
    await record_event(desk.need_db(), _TAKEN, visit.person, json.dumps({"what": "report", "filter": asked}))
    report = export.Asked(
        period=period,
        zone=zone,
        booking_zone=desk.finance.booking_zone,
        tenant_id=asked.get("tenant"),
        format=form,
        decimals=desk.decimals,
        rate_stale_s=desk.finance.rate_stale_s,
    )
    parts = export.report_text(desk.need_db(), report)
    return await send_text(visit.request, f"settlements-{asked['from']}-{asked['to']}.{form}".replace(":", ""), _TYPES[form], parts)


def _period(asked: dict[str, str], booking_zone: Zone) -> tuple[Zone, Period]:
    """Raises Refused that says what is wrong with it."""
    if "from" not in asked or "to" not in asked:
        raise Refused(400, "A report needs its first day and the day after its last.")
    try:
        zone = parse_zone(asked["tz"]) if "tz" in asked else booking_zone
        return zone, parse_period(asked["from"], asked["to"], zone)
    except (ValueError, OverflowError) as error:
        raise Refused(400, f"{error}.") from None
