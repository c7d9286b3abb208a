"""Every kind of file that people take away, made in a directory with a manifest that says what it is.

The settlement detail report and the gas report have the manifests of `export.py`; the others say bytes, SHA-256, rows and what
was asked for.
"""

import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from facilitator.domain.periods import Period, parse_period
from facilitator.errors import ConfigFault
from facilitator.finance import export, seals
from facilitator.finance.export import TOLD_ROWS, Progress, sha256_of, unheard, whole_or_absent
from facilitator.finance.hledger import hledger_lines
from facilitator.finance.journal import JOURNAL_COLUMNS, decimals_of, journal_cells
from facilitator.finance.tables import FORMATS, time_text
from facilitator.schemes.scheme import Token
from facilitator.store import books, exports
from facilitator.store.db import Db
from facilitator.units import Zone, parse_zone

KINDS: Final[Mapping[str, str | None]] = {"settlements": None, "gas": None, "journal": None, "hledger": "text", "audit_bundle": "zip"}
"""Kinds of files, with the one format of those that have no choice of `FORMATS`."""
_EXTRAS: Final = {"xlsx": "xlsxwriter", "parquet": "pyarrow"}
_ENDINGS: Final = {"text": "journal"}
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9.-]")
"""What a path or a header may read as something else. ISO 8601 times may have any character between date and time."""
_TENANT_CHARS: Final = 64
"""Of a tenant's id in a file's name, for that is bounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A file that somebody asked for. `kind` is one of `KINDS`, `format` one of `FORMATS` or the kind's own."""

    kind: str
    format: str
    asked: Mapping[str, str]
    """As it was typed: `from`, `to`, `tz`, `tenant`; an audit bundle has none of it."""
    tokens: tuple[Token, ...]
    booking_zone: Zone
    rate_stale_s: float

    @property
    def zone(self) -> Zone:
        """Of its dates. Raises ValueError."""
        return parse_zone(self.asked["tz"]) if "tz" in self.asked else self.booking_zone

    @property
    def period(self) -> Period:
        """Raises ValueError and OverflowError."""
        return parse_period(self.asked["from"], self.asked["to"], self.zone)

    @property
    def file_name(self) -> str:
        """What the file is called."""
        ending = _ENDINGS.get(self.format, self.format)
        if self.kind == "audit_bundle":
            return f"audit-bundle.{ending}"
        tenant, bounds = self.asked.get("tenant", "")[:_TENANT_CHARS], (self.asked["from"], self.asked["to"])
        parts = [self.kind, tenant, *(bound.replace(":", "").replace("+", "") for bound in bounds)]
        return f"{_UNSAFE.sub('-', '-'.join(part for part in parts if part))}.{ending}"

    @property
    def report(self) -> export.Asked:
        """As a report of `export.py`."""
        return export.Asked(
            report=export.GAS if self.kind == "gas" else export.SETTLEMENTS,
            period=self.period,
            zone=self.zone,
            booking_zone=self.booking_zone,
            tenant_id=self.asked.get("tenant"),
            format=self.format,
            decimals={(token.network, token.address): token.decimals for token in self.tokens},
            rate_stale_s=self.rate_stale_s,
        )


def formats() -> list[str]:
    """Formats that this installation can write."""
    return [form for form in FORMATS if form not in _EXTRAS or find_spec(_EXTRAS[form]) is not None]


async def expected_rows(db: Db, wanted: Wanted) -> int:
    """How many rows it will have, as far as that is known before it is read. Raises StoreFault."""
    async with db.snapshot() as session:
        match wanted.kind:
            case "settlements":
                return await exports.expected_settlements(session, wanted.period, wanted.asked.get("tenant"))
            case "gas":
                return await exports.expected_gas(session, wanted.period)
            case "audit_bundle":
                return await exports.expected_sealed(session)
            case _:
                return await exports.expected_journal(session, wanted.period)


async def make_file(db: Db, wanted: Wanted, directory: Path, progress: Progress = unheard) -> tuple[Path, dict[str, Any]]:
    """Make it; where it is, and its manifest. Raises StoreFault, OSError, and ConfigFault for an extra that is missing."""
    path = directory / wanted.file_name
    if wanted.kind in {"settlements", "gas"}:
        return path, await export.export_report(db, wanted.report, path, progress)
    match wanted.kind:
        case "journal":
            rows = await write_journal(db, wanted.period, wanted.format, wanted.tokens, path, progress)
        case "hledger":
            rows = await write_hledger(db, wanted.period, wanted.zone, wanted.tokens, path, progress)
        case "audit_bundle":
            rows = await _write_bundle(db, path, progress)
        case _:
            raise ConfigFault("unknown_export", f"there is no file of kind {wanted.kind}")
    period = {"from": time_text(wanted.period.start), "to": time_text(wanted.period.end)} if wanted.asked else {}
    manifest = {
        "report": wanted.kind,
        "file": path.name,
        "format": wanted.format,
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
        "rows": rows,
        "filter": period,
        "zone": wanted.zone,
    }
    return path, manifest


async def write_journal(db: Db, period: Period, form: str, tokens: Iterable[Token], path: Path, progress: Progress = unheard) -> int:
    """Every entry of a period, in a format of `FORMATS`; how many."""
    rows, decimals = 0, decimals_of(tokens)
    with whole_or_absent(path) as partial, FORMATS[form](partial, JOURNAL_COLUMNS) as add:
        async with db.snapshot() as session:
            async for entry in books.journal_lines(session, period):
                add(journal_cells(entry, decimals))
                rows += 1
                if rows % TOLD_ROWS == 0:
                    await progress(rows)
    return rows


async def write_hledger(db: Db, period: Period, zone: Zone, tokens: Iterable[Token], path: Path, progress: Progress = unheard) -> int:
    """The journal as hledger reads it; how many transactions."""
    rows = 0
    with whole_or_absent(path) as partial, partial.open("w", encoding="utf-8") as file:
        async for line in hledger_lines(db, period, zone, decimals_of(tokens)):
            file.write(f"{line}\n")
            if line[:1].isdigit():
                rows += 1
                if rows % TOLD_ROWS == 0:
                    await progress(rows)
    return rows


async def _write_bundle(db: Db, path: Path, progress: Progress) -> int:
    directory = path.with_suffix("")
    await seals.write_bundle(db, directory, progress)
    with whole_or_absent(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as packed:
        for part in sorted(directory.iterdir()):
            packed.write(part, part.name)
    with (directory / "records.jsonl").open("rb") as file:
        return sum(1 for _ in file)
