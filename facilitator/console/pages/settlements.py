"""Settlements: those of a filter that lives in the URL, with what the whole filter comes to; and one with all that is on record."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode
from uuid import UUID

from aiohttp import web

from facilitator.console import names, show
from facilitator.console.desk import Desk, Refused, Visit
from facilitator.domain.states import State
from facilitator.downloads import send_text
from facilitator.finance import standing, views
from facilitator.finance.pricing import cost_in_dollars
from facilitator.store import views as rows
from facilitator.store.seals import record_event
from facilitator.store.views import StateTotal
from facilitator.units import UTC_ZONE, Address, Network, Zone, parse_zone

ROWS: Final = 50
"""Of a page."""
_CURSOR: Final = "cursor"
_MORE_FILTERS: Final = frozenset({"network", "asset", "payer", "pay_to", "tx", "amount_min", "amount_max"})
_ENDS: Final = {"good": "paid, final", "going": "on the way", "warn": "by somebody else", "bad": "not paid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """What the settlements of one asset that ended alike come to."""

    label: str
    settlements: int
    network: Network
    asset: Address
    amount_atomic: int


async def show_settlements(desk: Desk, visit: Visit) -> web.StreamResponse:
    """GET /settlements. Empty fields leave the URL: what is sent to a colleague says what was asked, and no more."""
    query = visit.request.query
    asked = {name: value.strip() for name, value in query.items() if value.strip()}
    address = _address("/settlements", asked)
    if len(asked) != len(query) and "HX-Request" not in visit.request.headers:
        return web.Response(status=303, headers={"Location": address})
    if unknown := set(asked) - {*views.FILTERS, _CURSOR}:
        raise Refused(400, f"There is no filter {min(unknown)[:40]!r}.")
    db, wrong, zone = desk.need_db(), {}, _zone(asked, desk.finance.booking_zone)
    cursor = asked.pop(_CURSOR, None)
    page, totals = None, []
    try:
        chosen = views.parse_filter(asked, desk.finance.booking_zone)
        page = await views.settlements(db, chosen, cursor, ROWS)
        totals = _totals(await views.totals(db, chosen))
    except ValueError as error:
        name, _, what = str(error).partition(": ")
        wrong[name] = what
    answer = desk.render(
        visit,
        "settlements.html",
        status=400 if wrong else 200,
        here="settlements",
        standing=await standing.read(db),
        zone=zone,
        booking_zone=desk.finance.booking_zone,
        asked=asked,
        wrong=wrong,
        narrowed=not _MORE_FILTERS.isdisjoint({*asked, *wrong}),
        states=[(state.value, state.value) for state in State],
        networks=sorted({(token.network, names.network(token.network)) for token in desk.tokens}),
        assets=sorted(
            {
                (token.address, f"{desk.names.token_unit(token.network, token.address)}, {names.network(token.network)}")
                for token in desk.tokens
            }
        ),
        page=page,
        totals=totals,
        first_page=_address("/settlements", asked) if cursor else None,
        next_page=_address("/settlements", {**asked, _CURSOR: page.next_cursor}) if page and page.next_cursor else None,
        download=_address("/settlements.csv", asked),
    )
    answer.headers["HX-Push-Url"] = address
    return answer


async def show_settlement(desk: Desk, visit: Visit) -> web.StreamResponse:
    """GET /settlements/{id}."""
    db = desk.need_db()
    try:
        sheet = await views.settlement(db, UUID(visit.request.match_info["id"]))
    except ValueError:
        sheet = None
    if sheet is None:
        raise Refused(404, "There is no such settlement.")
    row = sheet.row
    return desk.render(
        visit,
        "settlement.html",
        here="settlements",
        sheet=sheet,
        row=row,
        unit=desk.names.token_unit(row.network, row.asset),
        decimals=desk.names.token_decimals(row.network, row.asset),
        coin=names.coin(row.network),
        discrepancies=await rows.discrepancies_of(db, row.settlement_id),
        cost=await cost_in_dollars(db, row.tenant_id, sheet.entries, desk.finance.rate_stale_s),
    )


async def download_settlements(desk: Desk, visit: Visit) -> web.StreamResponse:
    """GET /settlements.csv: precisely the rows of the filter, as the finance API has them; on record in the audit trail."""
    asked = {name: value.strip() for name, value in visit.request.query.items() if value.strip()}
    if unknown := set(asked) - set(views.FILTERS):
        raise Refused(400, f"There is no filter {min(unknown)[:40]!r}.")
    try:
        chosen = views.parse_filter(asked, desk.finance.booking_zone)
    except ValueError as error:
        raise Refused(400, f"{error}.") from None
    await record_event(desk.need_db(), "settlements_downloaded", visit.person, json.dumps({"what": "settlements", "filter": asked}))
    parts = views.settlement_list(desk.need_db(), chosen, "csv", desk.decimals)
    return await send_text(visit.request, "settlements.csv", "text/csv", parts)


def _totals(found: Sequence[StateTotal]) -> list[Total]:
    """By asset and by how they ended, in this order."""
    sums: dict[tuple[Network, Address, str], tuple[int, int]] = {}
    for each in found:
        key = each.network, each.asset, show.kind_of(each.state)
        number, amount = sums.get(key, (0, 0))
        sums[key] = number + each.settlements, amount + each.amount_atomic
    return [
        Total(
            label=label,
            settlements=sums[network, asset, kind][0],
            network=network,
            asset=asset,
            amount_atomic=sums[network, asset, kind][1],
        )
        for network, asset in dict.fromkeys((each.network, each.asset) for each in found)
        for kind, label in _ENDS.items()
        if (network, asset, kind) in sums
    ]


def _zone(asked: Mapping[str, str], booking_zone: Zone) -> Zone:
    """Of the times on the page; a wrong one is told by the filter."""
    try:
        return parse_zone(asked["tz"]) if "tz" in asked else booking_zone
    except ValueError:
        return UTC_ZONE


def _address(path: str, asked: Mapping[str, str]) -> str:
    return f"{path}?{urlencode(asked)}" if asked else path
