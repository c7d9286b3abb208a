"""Files to take away: asked for here, made in the background, kept for a while; and who took what."""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from aiohttp import web

from facilitator.console.desk import Desk, Refused, Visit, see
from facilitator.console.roles import Permission
from facilitator.domain.periods import local_date
from facilitator.downloads import send_bytes
from facilitator.finance import standing
from facilitator.finance.export_files import KINDS, Wanted, formats
from facilitator.store import exports
from facilitator.store import views as rows
from facilitator.store.db import Db
from facilitator.store.exports import Export
from facilitator.store.seals import record_event

ROWS: Final = 20
_NAMES: Final = {
    "settlements": "Settlement detail report",
    "gas": "Gas report",
    "journal": "Journal",
    "hledger": "Journal for hledger",
    "audit_bundle": "Audit bundle",
}
_LISTS: Final = {"settlements": "List of settlements", "report": "Settlement detail report"}
"""What was streamed: by the page of settlements, and by the finance API."""
_FORMAT_NAMES: Final = {"csv": "CSV", "jsonl": "JSON Lines", "xlsx": "Excel (XLSX)", "parquet": "Parquet", "text": "text", "zip": "ZIP"}
_PERIOD: Final = ("from", "to", "tz", "tenant")
_TAKEN: Final = ("settlements_downloaded", "export_downloaded")
_TYPES: Final = {
    "csv": "text/csv",
    "jsonl": "application/jsonl",
    "text": "text/plain",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "parquet": "application/vnd.apache.parquet",
    "zip": "application/zip",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """An export as the page shows it."""

    row: Export
    name: str
    format: str
    chosen: Mapping[str, str]
    manifest: Mapping[str, Any] | None
    may: bool
    """Whether the visitor may have it."""

    @property
    def moving(self) -> bool:
        """Whether it is to come yet."""
        return self.row.state in {"waiting", "running"}


async def show_exports(desk: Desk, visit: Visit) -> web.StreamResponse:
    """GET /exports."""
    return await _page(desk, visit, {}, {})


async def ask_export(desk: Desk, visit: Visit) -> web.StreamResponse:
    """POST /exports: put a file in the queue."""
    asked = {name: value.strip() for name, value in visit.form.items() if value.strip()}
    wanted, wrong = _wanted(desk, visit, asked)
    if wanted is None:
        return await _page(desk, visit, asked, wrong)
    text = json.dumps(dict(wanted.asked))
    async with desk.need_db().transaction() as session:
        waiting_max = desk.settings.exports_waiting_max
        export_id = await exports.ask(session, wanted.kind, wanted.format, text, visit.person, waiting_max)
        if export_id is not None:
            told = {"export": str(export_id), "kind": wanted.kind, "format": wanted.format, "filter": wanted.asked}
            await record_event(session, "export_asked", visit.person, json.dumps(told))
    if export_id is None:
        return await _page(desk, visit, asked, {"kind": f"{waiting_max} files wait to be made: ask again when some of them are"}, 429)
    desk.exporter.wake()
    return see(f"/exports/{export_id}")


async def show_export(desk: Desk, visit: Visit) -> web.StreamResponse:
    """GET /exports/{id}: how far it is; a browser without scripts looks again by itself."""
    job = await _job(desk, visit)
    return desk.render(visit, "export.html", here="exports", job=job, kept_h=round(desk.settings.export_kept_s / 3600))


async def cancel_export(desk: Desk, visit: Visit) -> web.StreamResponse:
    """POST /exports/{id}/cancel."""
    job = await _job(desk, visit)
    async with desk.need_db().transaction() as session:
        if await exports.cancel(session, job.row.export_id):
            await record_event(session, "export_cancelled", visit.person, json.dumps({"export": str(job.row.export_id)}))
    return see(f"/exports/{job.row.export_id}")


async def download_export(desk: Desk, visit: Visit) -> web.StreamResponse:
    """GET /exports/{id}/file: as it was made; on record in the audit trail."""
    job = await _job(desk, visit)
    if job.manifest is None:
        raise Refused(409, "This file is not made.")
    if job.row.expired:
        raise Refused(410, "This file was kept for as long as files are kept. Ask for it again.")
    db, row = desk.need_db(), job.row
    told = {"export": str(row.export_id), "what": row.kind, "filter": job.chosen, "sha256": job.manifest["sha256"]}
    await record_event(db, "export_downloaded", visit.person, json.dumps(told))
    return await send_bytes(visit.request, job.manifest["file"], _TYPES[row.format], job.manifest["bytes"], _parts(db, row.export_id))


async def download_manifest(desk: Desk, visit: Visit) -> web.StreamResponse:
    """GET /exports/{id}/manifest: what `facilitator export verify` holds the file against; it outlives the file."""
    job = await _job(desk, visit)
    if job.manifest is None or job.row.manifest is None:
        raise Refused(409, "This file is not made.")
    name = {"Content-Disposition": f'attachment; filename="{job.manifest["file"]}.manifest.json"'}
    return web.Response(text=job.row.manifest, content_type="application/json", charset="utf-8", headers=name)


async def _parts(db: Db, export_id: UUID) -> AsyncIterator[bytes]:
    number = 0
    while (part := await exports.read_chunk(db, export_id, number)) is not None:
        yield part
        number += 1


async def _page(
    desk: Desk, visit: Visit, asked: Mapping[str, str], wrong: Mapping[str, str], status: int | None = None
) -> web.StreamResponse:
    db = desk.need_db()
    month = local_date(datetime.now(UTC), desk.finance.booking_zone).replace(day=1)
    before = {"from": f"{(month - timedelta(days=1)).replace(day=1)}", "to": f"{month}", "tz": desk.finance.booking_zone}
    return desk.render(
        visit,
        "exports.html",
        status=status or (400 if wrong else 200),
        here="exports",
        standing=await standing.read(db),
        asked=dict(asked) or before,
        wrong=wrong,
        kinds=[(kind, name) for kind, name in _NAMES.items() if visit.may(_needs(kind))],
        formats=[(form, _FORMAT_NAMES[form]) for form in formats()],
        missing=[_FORMAT_NAMES[form] for form in ("xlsx", "parquet") if form not in formats()],
        tenants=[(each.tenant_id, each.tenant_id) for each in await rows.tenants(db, month)],
        jobs=[_shown(visit, each) for each in await exports.newest(db, ROWS)],
        taken=await _taken(db),
    )


async def _taken(db: Db) -> list[tuple[rows.EventRow, str, Any]]:
    """Who took what lately."""
    events = [event for kind in _TAKEN for event in await rows.events(db, None, None, kind, None, None, ROWS)]
    events.sort(key=lambda event: event.event_id, reverse=True)
    return [(event, _taken_name(event.kind, detail["what"]), detail) for event in events[:ROWS] if (detail := json.loads(event.detail))]


def _taken_name(kind: str, what: str) -> str:
    """Of a list or a report that was streamed, or of a file that was made."""
    return _LISTS.get(what, _NAMES.get(what, what)) if kind == _TAKEN[0] else _NAMES[what]


def _wanted(desk: Desk, visit: Visit, asked: Mapping[str, str]) -> tuple[Wanted | None, dict[str, str]]:
    """What a form asks for, or what is wrong with it by field. Raises Refused for what no form of ours sends."""
    if unknown := set(asked) - {"kind", "format", *_PERIOD}:
        raise Refused(400, f"There is no {min(unknown)[:40]!r} to choose.")
    kind = asked.get("kind", "")
    if kind not in KINDS:
        raise Refused(400, f"There is no file of kind {kind[:40]!r}.")
    if not visit.may(_needs(kind)):
        raise Refused(403, f"Your role ({visit.role}) does not include this.")
    form = KINDS[kind] or asked.get("format", "csv")
    if KINDS[kind] is None and form not in formats():
        return None, {"format": f"{_FORMAT_NAMES.get(form, form[:40])} cannot be written here"}
    names = () if kind == "audit_bundle" else _PERIOD if kind == "settlements" else _PERIOD[:3]
    wanted = Wanted(
        kind=kind,
        format=form,
        asked={name: asked[name] for name in names if name in asked},
        tokens=tuple(desk.tokens),
        booking_zone=desk.finance.booking_zone,
        rate_stale_s=desk.finance.rate_stale_s,
    )
    if kind == "audit_bundle":
        return wanted, {}
    for name, what in (("from", "the first day is missing"), ("to", "the day after the last is missing")):
        if name not in asked:
            return None, {name: what}
    try:
        _ = wanted.zone
    except ValueError as error:
        return None, {"tz": str(error)}
    try:
        _ = wanted.period
    except (ValueError, OverflowError) as error:
        return None, {"from": str(error)}
    return wanted, {}


async def _job(desk: Desk, visit: Visit) -> Job:
    """The one of the address. Raises Refused."""
    try:
        row = await exports.get(desk.need_db(), UUID(visit.request.match_info["id"]))
    except ValueError:
        row = None
    if row is None:
        raise Refused(404, "There is no such export.")
    job = _shown(visit, row)
    if not job.may:
        raise Refused(403, f"Your role ({visit.role}) does not include this.")
    return job


def _shown(visit: Visit, row: Export) -> Job:
    return Job(
        row=row,
        name=_NAMES[row.kind],
        format=_FORMAT_NAMES[row.format],
        chosen=json.loads(row.asked),
        manifest=None if row.manifest is None else json.loads(row.manifest),
        may=visit.may(_needs(row.kind)),
    )


def _needs(kind: str) -> Permission:
    """The bundle holds the audit trail."""
    return "audit" if kind == "audit_bundle" else "export"
