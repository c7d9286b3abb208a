"""Seals the journal and the audit trail in the background, lets each head leave the database, and verifies what is sealed.

A seal takes only rows of transactions that had ended before every one that still runs, so it never races a writer and no
writer waits for it. An entry gets its book day here: the local date on which it happened, or the first day that is not closed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final

import structlog

from facilitator.clock import Clock
from facilitator.domain.periods import day_of, local_date
from facilitator.domain.seals import FIRST, EntryRecord, EventRecord, entry_fields, event_fields, head, leaf, root
from facilitator.errors import ConfigFault
from facilitator.finance.export import TOLD_ROWS, Progress, unheard
from facilitator.finance.settings import Settings
from facilitator.metrics import CLOSE_DUE, SEAL_NO, SEAL_TIMESTAMP, SEALED_AT
from facilitator.store import seals
from facilitator.store.db import Db, Session
from facilitator.store.seals import Leaf, Seal, SealedRow
from facilitator.units import Zone

LEAVES_MAX: Final = 20_000
"""Rows of one seal."""
LATE: Final = timedelta(minutes=15)
"""No writer's transaction lasts longer: what was booked so long before the seal before it was put there later."""
_DAY: Final = timedelta(days=1)
log = structlog.get_logger(__name__)


async def seal_once(session: Session, booking_zone: Zone) -> Seal | None:
    """Seal what may be sealed, up to `LEAVES_MAX` rows; None when there is nothing. The caller holds the lock."""
    entries = await seals.unsealed_entries(session, LEAVES_MAX)
    events = await seals.unsealed_events(session, LEAVES_MAX - len(entries)) if len(entries) < LEAVES_MAX else []
    if not entries and not events:
        return None
    closed = await seals.last_closed(session)
    leaves = [_entry_leaf(entry, booking_zone, closed) for entry in entries]
    leaves += [Leaf("audit", event.event_id, None, leaf(event_fields(event))) for event in events]
    before = await seals.last(session)
    number, of_root = (before.seal_no if before else 0) + 1, root([each.leaf for each in leaves])
    seal = Seal(
        number,
        len(leaves),
        of_root,
        head(before.head if before else FIRST, number, len(leaves), of_root),
        max([before.journal_through if before else 0, *(entry.entry_id for entry in entries)]),
        max([before.audit_through if before else 0, *(event.event_id for event in events)]),
        datetime.now(UTC),
    )
    await seals.store(session, seal, leaves)
    return seal


def _entry_leaf(entry: EntryRecord, zone: Zone, closed: date | None) -> Leaf:
    day = local_date(entry.happened_at, zone)
    if closed is not None:
        day = max(day, closed + _DAY)
    return Leaf("journal", entry.entry_id, day, leaf(entry_fields(entry, day)))


class Sealer:
    """Seals again and again; one replica at a time."""

    def __init__(self, db: Db, clock: Clock, settings: Settings) -> None:
        self._db = db
        self._clock = clock
        self._settings = settings

    async def run(self) -> None:
        """Every `seal_s`, until all is sealed."""
        while True:
            while (sealed := await self.seal()) is not None and sealed.leaves == LEAVES_MAX:
                pass
            SEALED_AT.set_to_current_time()
            await self.show_due()
            await self._clock.sleep(self._settings.seal_s)

    async def seal(self) -> Seal | None:
        """One seal, and its head out of the database; None when there was nothing, or somebody else seals."""
        async with self._db.transaction(long=True) as session:
            if not await seals.try_lock(session):
                return None
            sealed = await seal_once(session, self._settings.booking_zone)
        if sealed is not None:
            publish(sealed, self._settings)
        return sealed

    async def show_due(self) -> None:
        """Show it as a gauge."""
        if (due := await close_due(self._db, self._settings)) is not None:
            CLOSE_DUE.set(due.timestamp())


async def close_due(db: Db, settings: Settings) -> datetime | None:
    """Since when the oldest book day that is not closed could be, or from when on; None: nothing was booked."""
    async with db.session() as session:
        closed = await seals.last_closed(session)
        oldest = closed + _DAY if closed is not None else await seals.first_day(session)
    return None if oldest is None else day_of(oldest, settings.booking_zone).end + timedelta(seconds=settings.close_grace_s)


def publish(seal: Seal, settings: Settings) -> None:
    """Let a head leave the database: to the log, to the metrics, and to the file that is configured."""
    log.info("seal.made", seal_no=seal.seal_no, leaves=seal.leaves, head=seal.head.hex())
    SEAL_NO.set(seal.seal_no)
    SEAL_TIMESTAMP.set(seal.sealed_at.timestamp())
    if settings.seal_file is not None:
        with Path(settings.seal_file).open("a", encoding="ascii") as file:
            file.write(f"{seal.seal_no} {seal.head.hex()}\n")


@dataclass(frozen=True, slots=True)
class Verified:
    """What a verification found."""

    seals: int
    leaves: int
    head: bytes
    """Of the last seal."""
    wrong: tuple[str, ...]
    """Each names a row or a seal; empty: history is as it was sealed."""


async def verify(db: Db, against: Mapping[int, bytes]) -> Verified:
    """Compute every leaf, root and head anew; `against` are heads that left the database, by number of the seal."""
    async with db.snapshot() as session:
        check = _Check([seal async for seal in seals.seals(session)], against)
        async for row in seals.sealed_rows(session):
            check.row(row)
        check.finish()
        async for late in seals.overdue(session, LEAVES_MAX):
            check.wrong.append(f"{late.source} {late.row_id}: it is of {late.at:%Y-%m-%d %H:%M:%S} and no seal holds it")
    return Verified(len(check.seals), check.leaves, check.head, tuple(check.wrong))


class _Check:
    """Goes through the seals, row by row."""

    def __init__(self, known: Sequence[Seal], against: Mapping[int, bytes]) -> None:
        self.seals = known
        self.wrong: list[str] = []
        self.leaves = 0
        self.head = FIRST
        self._against = dict(against)
        self._at = 0
        self._own: list[bytes] = []
        self._sound = True
        self._complete_at: datetime | None = None
        """When the last seal was made that took all there was; one of `LEAVES_MAX` rows may have left some."""

    def row(self, row: SealedRow) -> None:
        while self._at < len(self.seals) and self.seals[self._at].seal_no < row.seal_no:
            self._end()
        if self._at == len(self.seals) or self.seals[self._at].seal_no != row.seal_no:
            self.wrong.append(f"{row.source} {row.row_id}: its seal {row.seal_no} is gone")
            return
        name = f"{row.source} {row.row_id}"
        found = _leaf_of(row)
        if row.position != len(self._own):
            self._say(f"seal {row.seal_no}: place {len(self._own)} is empty")
        if found is None:
            self._say(f"{name}: it is gone; seal {row.seal_no} held it")
        elif found != row.leaf:
            self._say(f"{name}: it was altered after seal {row.seal_no}")
        written = row.booked_at or row.event_at
        if self._complete_at is not None and written is not None and written < self._complete_at - LATE:
            self._say(f"{name}: it says {written:%Y-%m-%d %H:%M:%S} and came after seal {row.seal_no - 1}: back-dated")
        self._own.append(row.leaf if found is None else found)
        self.leaves += 1

    def finish(self) -> None:
        while self._at < len(self.seals):
            self._end()
        self.wrong += [f"seal {number}: it is gone; its head was {value.hex()}" for number, value in sorted(self._against.items())]

    def _say(self, what: str) -> None:
        self.wrong.append(what)
        self._sound = False

    def _end(self) -> None:
        """All rows of a seal were seen."""
        seal = self.seals[self._at]
        before = self.seals[self._at - 1].seal_no if self._at else 0
        if seal.seal_no != before + 1:
            self.wrong.append(f"seal {seal.seal_no}: it follows seal {before}")
        if self._sound and (len(self._own) != seal.leaves or root(self._own or [FIRST]) != seal.root):
            self.wrong.append(f"seal {seal.seal_no}: its root is not that of its {len(self._own)} leaves")
        if head(self.head, seal.seal_no, seal.leaves, seal.root) != seal.head:
            self.wrong.append(f"seal {seal.seal_no}: its head does not follow from the one before it")
        given = self._against.pop(seal.seal_no, seal.head)
        if given != seal.head:
            self.wrong.append(f"seal {seal.seal_no}: its head is {seal.head.hex()}, what left the database was {given.hex()}")
        self.head = seal.head
        if seal.leaves < LEAVES_MAX:
            self._complete_at = seal.sealed_at
        self._own, self._sound, self._at = [], True, self._at + 1


def fields_of(row: SealedRow) -> list[str | None] | None:
    """The record of the row that stands in a sealed place; None when it is gone."""
    if row.entry_id is not None and row.book_day is not None:
        values = {field.name: getattr(row, field.name) for field in fields(EntryRecord)}
        return entry_fields(EntryRecord(**values), row.book_day)
    if row.event_id is not None:
        values = {field.name: getattr(row, field.name) for field in fields(EventRecord)} | {"happened_at": row.event_at}
        return event_fields(EventRecord(**values))
    return None


def _leaf_of(row: SealedRow) -> bytes | None:
    record = fields_of(row)
    return None if record is None else leaf(record)


def read_heads(text: str) -> dict[int, bytes]:
    """Heads as `seal_file` has them: number and head in hex, one a line. Raises ConfigFault."""
    try:
        pairs = [line.split() for line in text.splitlines() if line.strip()]
        return {int(number): bytes.fromhex(value) for number, value in pairs}
    except ValueError:
        raise ConfigFault("bad_heads", "expected lines of a seal's number and its head in hex") from None


async def write_bundle(db: Db, directory: Path, progress: Progress = unheard) -> Seal | None:
    """All that is sealed, with the seals and the script that checks them, for somebody who has neither our database nor our code."""
    directory.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - a command's own directory
    newest = None
    async with db.snapshot() as session:
        with (directory / "seals.txt").open("w", encoding="ascii") as file:
            async for seal in seals.seals(session):
                file.write(f"{seal.seal_no} {seal.leaves} {seal.root.hex()} {seal.head.hex()}\n")
                newest = seal
        with (directory / "records.jsonl").open("w", encoding="utf-8") as file:
            rows = 0
            async for row in seals.sealed_rows(session):
                record = json.dumps(fields_of(row), ensure_ascii=False, separators=(",", ":"))
                file.write(f"{row.seal_no} {row.position} {record}\n")
                rows += 1
                if rows % TOLD_ROWS == 0:
                    await progress(rows)
    (directory / "verify.py").write_bytes(Path(__file__).with_name("bundle_check.py").read_bytes())
    return newest
