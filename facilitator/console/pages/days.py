"""The close calendar: which book days are closed, what keeps one open, closing one, and reopening it by two people."""

import calendar
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from aiohttp import web

from facilitator.console.desk import Desk, Refused, Visit
from facilitator.domain.periods import day_of, local_date, next_month, parse_day, parse_month
from facilitator.errors import Fault
from facilitator.finance import closes, standing, views
from facilitator.finance.views import CloseDay

REASON_MAX: Final = 1_000
_DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A day in the calendar."""

    day: date
    kind: str
    """A class of the style sheet."""
    text: str
    linked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Month:
    """A month in the calendar; None stands for days of other months."""

    name: str
    weeks: Sequence[Sequence[Cell | None]]


async def show_days(desk: Desk, visit: Visit) -> web.StreamResponse:
    """GET /days: the `month` asked for, else the present one, and the one before it."""
    db, today = desk.need_db(), _today(desk)
    try:
        month = parse_month(visit.request.query.get("month", f"{today:%Y-%m}"))
    except ValueError as error:
        raise Refused(400, f"month: {error}") from None
    before = (month - _DAY).replace(day=1)
    found = await views.calendar(db, before, next_month(month) - _DAY)
    closing = await standing.closing(db)
    first = closing.last_closed + _DAY if closing.last_closed else closing.first_day
    events = await views.day_events(db)
    return desk.render(
        visit,
        "days.html",
        here="days",
        months=[_month(each, found, first, today) for each in (month, before)],
        newer=f"{next_month(month):%Y-%m}" if next_month(month) <= today else None,
        older=f"{before:%Y-%m}",
        last_closed=closing.last_closed,
        next_open=first if first is not None and first < today else None,
        due=0 if first is None else max((today - first).days, 0),
        events=events[::-1][:60],
    )


async def show_day(desk: Desk, visit: Visit) -> web.StreamResponse:
    """GET /days/{day}."""
    return await _sheet(desk, visit, _day(desk, visit))


async def close_day(desk: Desk, visit: Visit) -> web.StreamResponse:
    """POST /days/{day}/close."""
    day = _day(desk, visit)
    try:
        await closes.close_day(desk.need_db(), desk.finance, day, visit.person)
    except Fault as fault:
        if fault.kind != "day_open":
            raise
        return await _sheet(desk, visit, day, fault.message)
    return _see(day)


async def reopen_day(desk: Desk, visit: Visit) -> web.StreamResponse:
    """POST /days/{day}/reopen: asked for with a reason, or confirmed by somebody else."""
    day, reason = _day(desk, visit), " ".join(visit.form.get("reason", "").split())
    try:
        if visit.form.get("step") == "confirm":
            await closes.confirm_reopening(desk.need_db(), day, visit.person)
        elif 0 < len(reason) <= REASON_MAX:
            await closes.ask_reopening(desk.need_db(), day, visit.person, reason)
        else:
            return await _sheet(desk, visit, day, f"A reason of up to {REASON_MAX} letters must say why.")
    except Fault as fault:
        if fault.kind not in {"not_last", "one_person"}:
            raise
        return await _sheet(desk, visit, day, fault.message)
    return _see(day)


async def _sheet(desk: Desk, visit: Visit, day: date, problem: str | None = None) -> web.Response:
    db, zone, today = desk.need_db(), desk.finance.booking_zone, _today(desk)
    (found,) = await views.calendar(db, day, day)
    closing = await standing.closing(db)
    reasons = await closes.what_keeps_open(db, desk.finance, day) if found.closed is None and day < today else []
    document = json.loads(found.closed.document) if found.closed else None
    return desk.render(
        visit,
        "day.html",
        status=409 if problem else 200,
        here="days",
        day=day,
        period=day_of(day, zone),
        over=day < today,
        problem=problem,
        found=found,
        document=document,
        reasons=reasons,
        may_reopen=found.closed is not None and day == closing.last_closed and visit.may("close"),
        may_confirm=any(ask.actor != visit.person for ask in found.reopening_asked),
        totals=await standing.day_totals(db, day) if document is None else [_total(each) for each in document["totals"]],
    )


def _total(fixed: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a closed day was closed with; `facilitator audit verify` holds it against its entries."""
    return {**fixed, "amount_atomic": int(fixed["amount_atomic"])}


def _month(first: date, days: Sequence[CloseDay], open_since: date | None, today: date) -> Month:
    by_day = {each.day: each for each in days}
    weeks = [
        [None if day.month != first.month else _cell(by_day[day], open_since, today) for day in week]
        for week in calendar.Calendar().monthdatescalendar(first.year, first.month)
    ]
    return Month(name=f"{first:%B %Y}", weeks=weeks)


def _cell(day: CloseDay, open_since: date | None, today: date) -> Cell:
    if day.closed is not None:
        return Cell(day=day.day, kind="closed", text="closed", linked=True)
    if day.day == today:
        return Cell(day=day.day, kind="today", text="today", linked=True)
    if open_since is not None and open_since <= day.day < today:
        return Cell(day=day.day, kind="due", text="reopened" if day.history else "to close", linked=True)
    return Cell(day=day.day, kind="idle", text="", linked=False)


def _day(desk: Desk, visit: Visit) -> date:
    try:
        day = parse_day(visit.request.match_info["day"])
    except ValueError:
        raise Refused(404, "There is no such day.") from None
    if day > _today(desk):
        raise Refused(404, "This day has not begun.")
    return day


def _today(desk: Desk) -> date:
    return local_date(datetime.now(UTC), desk.finance.booking_zone)


def _see(day: date) -> web.Response:
    return web.Response(status=303, headers={"Location": f"/days/{day}"})
