"""Closes book days, one after the other: refuses while something of the day is open or unexplained, then fixes its totals.

Nobody who writes waits for a close. A close and the sealer exclude each other, and the sealer gives what comes later the first
day that is not closed. Each close and reopening follows from the one before it, as seals do.
"""

import json
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from typing import Any, Final

import structlog

from facilitator.domain.periods import day_of
from facilitator.errors import Fault
from facilitator.finance.export import complete_through
from facilitator.finance.seals import publish, seal_once
from facilitator.finance.settings import Settings
from facilitator.store import books, days, seals
from facilitator.store.days import DayEvent
from facilitator.store.db import Db, Session
from facilitator.store.discrepancies import list_open
from facilitator.units import Zone

FIRST: Final = bytes(32)
"""The head before the first close."""
_DAY: Final = timedelta(days=1)
log = structlog.get_logger(__name__)


async def close_day(db: Db, settings: Settings, day: date, actor: str) -> dict[str, Any]:
    """Close a book day and return its document. Raises Fault that says all that keeps it open."""
    made = []
    async with db.transaction(long=True) as session:
        await seals.lock(session)
        while (sealed := await seal_once(session, settings.booking_zone)) is not None:
            made.append(sealed)
        open_still = await _open_still(session, settings, day)
        if open_still:
            raise Fault("day_open", f"{day} stays open: {'; '.join(open_still)}")
        document = await _document(session, settings.booking_zone, day, actor)
        await _add(session, day, "closed", actor, None, document)
    for sealed in made:
        publish(sealed, settings)
    log.info("day.closed", day=day.isoformat(), actor=actor, entries=document["entries"])
    return document


async def what_keeps_open(db: Db, settings: Settings, day: date) -> list[str]:
    """All that keeps a day open at this moment, as `close_day` would say it."""
    async with db.snapshot() as session:
        return await _open_still(session, settings, day)


async def ask_reopening(db: Db, day: date, actor: str, reason: str) -> None:
    """Put on record that somebody wants the last closed day reopened. Raises Fault when it is not that."""
    async with db.transaction() as session:
        await _must_be_last(session, day)
        await seals.record_event(session, "reopen_asked", actor, f"{day} {reason}")


async def confirm_reopening(db: Db, day: date, actor: str) -> str:
    """Reopen the last closed day, which somebody else asked for within a day; returns who. Raises Fault."""
    async with db.transaction() as session:
        await seals.lock(session)
        await _must_be_last(session, day)
        asked = [each for each in await days.reopen_asked(session, day) if each.actor != actor]
        if not asked:
            raise Fault("one_person", f"nobody but {actor} asked within a day that {day} be reopened: it needs two people")
        first = asked[0]
        await _add(session, day, "reopened", first.actor, actor, {"day": day.isoformat(), "reason": first.detail.partition(" ")[2]})
    log.warning("day.reopened", day=day.isoformat(), actor=first.actor, second=actor)
    return first.actor


async def altered_days(db: Db) -> list[str]:
    """What of the closes does not follow from the one before it, or is not what its entries come to."""
    wrong: list[str] = []
    async with db.snapshot() as session:
        previous = FIRST
        closed: dict[date, DayEvent] = {}
        for event in await days.events(session):
            if _head(previous, event.document) != event.head:
                wrong.append(f"day {event.day}: how it was {event.kind} does not follow from what was done before it")
            previous = event.head
            closed.pop(event.day, None)
            if event.kind == "closed":
                closed[event.day] = event
        for day, event in closed.items():
            document = json.loads(event.document)
            if await _totals(session, day) != document["totals"]:
                wrong.append(f"day {day}: its entries do not come to what it was closed with")
    return wrong


async def _open_still(session: Session, settings: Settings, day: date) -> list[str]:
    """All that keeps a day open."""
    end = day_of(day, settings.booking_zone).end
    reasons = []
    closed = await seals.last_closed(session)
    if closed is not None and day <= closed:
        return [f"it is closed already, {closed} being the last closed day"]
    if closed is not None and day != closed + _DAY:
        return [f"{closed + _DAY} comes first"]
    now = datetime.now(UTC)
    if now < end + timedelta(seconds=settings.close_grace_s):
        return [f"it ends at {end:%Y-%m-%d %H:%M} UTC, and {settings.close_grace_s:g} s must have passed since"]
    complete = complete_through(await books.completeness(session))
    if complete is not None and complete < end:
        reasons.append(f"a settlement asked for at {complete:%Y-%m-%d %H:%M:%S} is not final")
    if pending := await days.pending_before(session, end, await days.resolved_before(session)):
        reasons.append(f"{pending} entries are pending")
    if unlooked := await days.unreconciled_before(session, end):
        reasons.append(f"{unlooked} settlements were not held against the chain yet")
    if unexplained := await list_open(session):
        reasons.append("unexplained: " + ", ".join(f"{each.class_} ({each.discrepancy_id})" for each in unexplained[:10]))
    newest = await seals.low_water(session)
    if unsealed := await days.unsealed_before(session, end, newest):
        reasons.append(f"{unsealed} entries cannot be sealed before transactions that still run")
    return reasons


async def _document(session: Session, zone: Zone, day: date, actor: str) -> dict[str, Any]:
    totals, newest, before = await days.totals(session, day), await seals.last(session), await days.last_event(session)
    return {
        "day": day.isoformat(),
        "zone": zone,
        "closed_by": actor,
        "entries": sum(total.entries for total in totals),
        "first_entry": min((total.first_entry for total in totals), default=None),
        "last_entry": max((total.last_entry for total in totals), default=None),
        "totals": await _totals(session, day),
        "adjusts": {adjusted.day.isoformat(): adjusted.entries for adjusted in await days.adjusts(session, day, zone)},
        "seal": None if newest is None else {"number": newest.seal_no, "root": newest.root.hex(), "head": newest.head.hex()},
        "previous": None if before is None else {"day": before.day.isoformat(), "head": before.head.hex()},
    }


async def _totals(session: Session, day: date) -> list[dict[str, Any]]:
    return [
        {
            "book": total.book,
            "phase": total.phase,
            "debit": total.debit,
            "credit": total.credit,
            "asset": total.asset,
            "entries": total.entries,
            "amount_atomic": str(total.amount_atomic),
        }
        for total in await days.totals(session, day)
    ]


async def _add(session: Session, day: date, kind: str, actor: str, second: str | None, document: dict[str, Any]) -> None:
    before = await days.last_event(session)
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    await days.store_event(session, day, kind, actor, second, text, _head(before.head if before else FIRST, text))


def _head(previous: bytes, document: str) -> bytes:
    return sha256(b"\x03" + previous + document.encode()).digest()


async def _must_be_last(session: Session, day: date) -> None:
    closed = await seals.last_closed(session)
    if closed != day:
        raise Fault("not_last", f"only the last closed day may be reopened; that is {closed or 'none'}")
