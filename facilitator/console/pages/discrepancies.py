"""Discrepancies of books and chain: listed, shown, explained."""

from typing import Final

from aiohttp import web

from facilitator.console.desk import Desk, Refused, Visit
from facilitator.errors import ConfigFault
from facilitator.finance import examination, standing, views
from facilitator.store.discrepancies import Discrepancy
from facilitator.store.seals import record_event

ROWS: Final = 200
NOTE_MAX: Final = 2_000
_DIGITS_MAX: Final = 18


async def show_discrepancies(desk: Desk, visit: Visit) -> web.StreamResponse:
    """GET /discrepancies: those to explain, or by `status`."""
    query, db = visit.request.query, desk.need_db()
    status = query.get("status", "open")
    if status not in views.DISCREPANCY_STATUSES:
        raise Refused(400, f"There is no status {status[:40]!r}.")
    before = query.get("before")
    found = await views.discrepancies(db, status, before=_number(before) if before else None, limit=ROWS + 1)
    return desk.render(
        visit,
        "discrepancies.html",
        here="discrepancies",
        standing=await standing.read(db),
        chosen=status,
        statuses=[("open", "To explain"), ("explained", "Explained"), ("gone", "Gone"), ("all", "All")],
        found=found[:ROWS],
        next_page=f"/discrepancies?status={status}&before={found[ROWS - 1].discrepancy_id}" if len(found) > ROWS else None,
    )


async def show_discrepancy(desk: Desk, visit: Visit) -> web.StreamResponse:
    """GET /discrepancies/{id}."""
    return _sheet(desk, visit, await _find(desk, visit))


async def explain_discrepancy(desk: Desk, visit: Visit) -> web.StreamResponse:
    """POST /discrepancies/{id}: under the visitor's name, with a note."""
    found, note, entry = await _find(desk, visit), visit.form.get("note", "").strip(), visit.form.get("entry", "").strip()
    if not 0 < len(note) <= NOTE_MAX:
        return _sheet(desk, visit, found, f"A note of up to {NOTE_MAX} letters must say what it was.")
    if entry and not _is_number(entry):
        return _sheet(desk, visit, found, "The entry is the number of an entry.")
    try:
        await examination.explain(
            desk.need_db(), found.discrepancy_id, visit.person, note, int(entry) if entry else None, book="book" in visit.form
        )
    except ConfigFault as fault:
        return _sheet(desk, visit, found, fault.message)
    await record_event(desk.need_db(), "discrepancy_explained", visit.person, f"{found.discrepancy_id}: {note}")
    return web.Response(status=303, headers={"Location": f"/discrepancies/{found.discrepancy_id}"})


def _sheet(desk: Desk, visit: Visit, found: Discrepancy, problem: str | None = None) -> web.Response:
    return desk.render(visit, "discrepancy.html", status=409 if problem else 200, here="discrepancies", found=found, problem=problem)


async def _find(desk: Desk, visit: Visit) -> Discrepancy:
    found = await views.discrepancy(desk.need_db(), _number(visit.request.match_info["id"]))
    if found is None:
        raise Refused(404, "There is no such discrepancy.")
    return found


def _number(text: str) -> int:
    if not _is_number(text):
        raise Refused(404, "There is no such discrepancy.")
    return int(text)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX
