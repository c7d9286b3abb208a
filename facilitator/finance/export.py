"""Writes the settlement detail report, or the gas report, to a file with a manifest beside it, and verifies such a file.

The file is written under another name and takes its own only when it is whole. What the manifest says was counted while
the rows went by, in the snapshot in which they were read.
"""

import csv
import hashlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

from facilitator.domain.periods import Period
from facilitator.finance import detail, gas
from facilitator.finance.detail import Cell, Column
from facilitator.finance.pricing import Pricer
from facilitator.finance.tables import FORMATS, TEXTS, time_text
from facilitator.store import books, seals
from facilitator.store.books import Completeness
from facilitator.store.db import Db, Session
from facilitator.units import Address, Network, Zone

COMMIT_S: Final = 60
"""A transaction that began earlier than this has ended: no entry with an earlier time can still appear."""
TOLD_ROWS: Final = 2_000
"""Rows between two times that a long work tells how far it is."""
_CHUNK_BYTES: Final = 1 << 20

Progress = Callable[[int], Awaitable[None]]
"""Is told how many rows are done; whatever it raises ends the work."""


async def unheard(_rows: int) -> None:
    """Tell nobody."""


class Row(NamedTuple):
    """One row of a report, and what it counts as."""

    entry_id: int
    asset: str
    category: str
    amount_atomic: int
    cells: list[Cell]


@dataclass(frozen=True, slots=True)
class Report:
    """What a file is made of."""

    name: str
    version: int
    columns: tuple[Column, ...]
    rows: "Callable[[Session, Asked], AsyncIterator[Row]]"


async def _settlement_rows(session: Session, asked: "Asked") -> AsyncIterator[Row]:
    pricer = await Pricer.open(session, asked.period, asked.tenant_id, asked.booking_zone, asked.decimals)
    async for line in books.settlement_lines(session, asked.period, asked.tenant_id, asked.rate_stale_s):
        cells = detail.cells(line, pricer.price(line), asked.zone, asked.decimals)
        yield Row(line.entry_id, f"{line.network}/{line.asset}", detail.category(line), line.amount_atomic, cells)


async def _gas_rows(session: Session, asked: "Asked") -> AsyncIterator[Row]:
    async for line in books.gas_lines(session, asked.period, asked.rate_stale_s):
        yield Row(line.entry_id, f"{line.network}/native", gas.category(line), line.amount_wei, gas.cells(line, asked.zone))


SETTLEMENTS: Final = Report("settlements", detail.REPORT_VERSION, detail.COLUMNS, _settlement_rows)
GAS: Final = Report("gas", gas.REPORT_VERSION, gas.COLUMNS, _gas_rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Which rows, and how."""

    report: Report = SETTLEMENTS
    period: Period
    zone: Zone
    """Of `local_date` and `period`."""
    booking_zone: Zone
    """Whose months fee schedules count by."""
    tenant_id: str | None
    """None: of all. Gas is nobody's in particular."""
    format: str
    """One of `FORMATS`."""
    decimals: Mapping[tuple[Network, Address], int]
    """Of each asset that is known."""
    rate_stale_s: float


async def export_report(db: Db, asked: Asked, path: Path, progress: Progress = unheard) -> dict[str, Any]:
    """Write `path` and its manifest; returns the manifest. Raises StoreFault, OSError, and ConfigFault for a missing extra."""
    report = asked.report
    sums: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    rows, first, last = 0, None, None
    with whole_or_absent(path) as partial:
        with FORMATS[asked.format](partial, report.columns) as add:  # an XLSX file takes long to close: the snapshot ends before
            async with db.snapshot() as session:
                through, seal = await books.completeness(session), await seals.last(session)
                async for row in report.rows(session, asked):
                    add(row.cells)
                    total = sums[row.asset][row.category]
                    total[0] += 1
                    total[1] += row.amount_atomic
                    rows, first, last = rows + 1, first or row.entry_id, row.entry_id
                    if rows % TOLD_ROWS == 0:
                        await progress(rows)
        complete = complete_through(through)
        manifest = {
            "report": report.name,
            "report_version": report.version,
            "file": path.name,
            "format": asked.format,
            "bytes": partial.stat().st_size,
            "sha256": sha256_of(partial),
            "rows": rows,
            "first_entry": first,
            "last_entry": last,
            "sums": {
                asset: {kind: {"rows": count, "amount_atomic": str(amount)} for kind, (count, amount) in sorted(kinds.items())}
                for asset, kinds in sorted(sums.items())
            },
            "filter": {"from": time_text(asked.period.start), "to": time_text(asked.period.end), "tenant": asked.tenant_id},
            "zone": asked.zone,
            "complete_through": {
                "time": None if complete is None else time_text(complete),
                "blocks": {network.network: network.final_block for network in through},
            },
            "is_complete": complete is not None and asked.period.end <= complete,
            "seal": None if seal is None else {"number": seal.seal_no, "head": seal.head.hex()},
        }
    manifest_path(path).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    return manifest


async def report_text(db: Db, asked: Asked) -> AsyncIterator[str]:
    """The same rows as text, part by part, in the bytes of the file: `asked.format` is one of `TEXTS`. Raises StoreFault."""
    head, spell = TEXTS[asked.format](asked.report.columns)
    yield head
    async with db.snapshot() as session:
        async for row in asked.report.rows(session, asked):
            yield spell(row.cells)


@contextmanager
def whole_or_absent(path: Path) -> Iterator[Path]:
    """Another name to write under; the file takes its own when the block ends well, and is gone when it does not."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def complete_through(networks: list[Completeness]) -> datetime | None:
    """Before this moment nothing can be booked any more, save corrections; None when no network was ever served."""
    bounds = [network.read_at - timedelta(seconds=COMMIT_S) for network in networks]
    bounds += [since for network in networks for since in (network.open_since, network.unfinal_since) if since is not None]
    return min(bounds, default=None)


def manifest_path(path: Path) -> Path:
    """Where the manifest of a file stands."""
    return path.with_name(f"{path.name}.manifest.json")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def verify(path: Path, manifest: Mapping[str, Any]) -> list[str]:
    """What of the file is not as its manifest says; for CSV and JSON Lines the rows are counted and added up again."""
    wrong = []
    if (size := path.stat().st_size) != manifest["bytes"]:
        wrong.append(f"{size} bytes, the manifest says {manifest['bytes']}")
    if (digest := sha256_of(path)) != manifest["sha256"]:
        wrong.append(f"sha256 {digest}, the manifest says {manifest['sha256']}")
    if not wrong and "sums" in manifest and manifest["format"] in _READERS:
        sums: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
        rows = 0
        for row in _READERS[manifest["format"]](path):
            total = sums[f"{row['network']}/{row['asset']}"][row["reporting_category"]]
            total[0] += 1
            total[1] += int(row["amount_atomic"])
            rows += 1
        found = {
            asset: {kind: {"rows": count, "amount_atomic": str(amount)} for kind, (count, amount) in kinds.items()}
            for asset, kinds in sums.items()
        }
        if rows != manifest["rows"]:
            wrong.append(f"{rows} rows, the manifest says {manifest['rows']}")
        if found != manifest["sums"]:
            wrong.append(f"sums {found}, the manifest says {manifest['sums']}")
    return wrong


def _csv_rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _jsonl_rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


_READERS: Final = {"csv": _csv_rows, "jsonl": _jsonl_rows}
