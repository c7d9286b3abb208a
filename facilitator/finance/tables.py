"""Writes a table row by row to CSV, JSON Lines, XLSX or Parquet, in constant memory.

Text that came from outside never becomes a formula: in CSV a cell that begins like one gets a `'` before it, in XLSX it is
stored as a string. Integers of any size and decimals are exact in every format. The same rows make the same bytes.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Final

from facilitator.errors import ConfigFault
from facilitator.finance.detail import Cell, Column

AddRow = Callable[[Sequence[Cell]], None]
Spell = Callable[[Sequence[Cell]], str]
Opener = Callable[[Path, Sequence[Column]], AbstractContextManager[AddRow]]
SHEET_ROWS_MAX: Final = 1_048_576
"""Rows of one XLSX sheet, the header among them; more go to a further sheet."""
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")
_EXACT_DIGITS: Final = 15
"""Digits that a spreadsheet's number keeps."""
_BATCH_ROWS: Final = 1_000
"""Rows that are held as objects before they become Arrow's."""
_GROUP_BATCHES: Final = 10
"""Batches of one Parquet row group."""


def time_text(moment: datetime) -> str:
    """RFC 3339 in UTC, to the microsecond."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class _Echo:
    """A file for `csv.writer` that hands every line back."""

    def write(self, line: str) -> str:
        """The line."""
        return line


def csv_lines(columns: Sequence[Column]) -> tuple[str, Spell]:
    """RFC 4180: the header, and what makes a line of a row."""
    kinds = [column.kind for column in columns]
    writer: Any = csv.writer(_Echo())

    def spell(cell: Cell, kind: str) -> str | int | None:
        if isinstance(cell, datetime):
            return time_text(cell)
        if kind == "text" and isinstance(cell, str) and cell.startswith(_FORMULA):
            return "'" + cell
        return cell

    def line(row: Sequence[Cell]) -> str:
        text: str = writer.writerow([spell(cell, kind) for cell, kind in zip(row, kinds, strict=True)])
        return text

    head: str = writer.writerow([column.name for column in columns])
    return head, line


def json_lines(columns: Sequence[Column]) -> tuple[str, Spell]:
    """One object a line; counts are numbers, integers and decimals strings, what is not known is null. There is no header."""
    names = [column.name for column in columns]

    def line(row: Sequence[Cell]) -> str:
        plain = [time_text(cell) if isinstance(cell, datetime) else cell for cell in row]
        return json.dumps(dict(zip(names, plain, strict=True)), ensure_ascii=False, separators=(",", ":")) + "\n"

    return "", line


TEXTS: Final[Mapping[str, Callable[[Sequence[Column]], tuple[str, Spell]]]] = {"csv": csv_lines, "jsonl": json_lines}
"""Formats that can be sent as they are made."""


@contextmanager
def _text(form: str, path: Path, columns: Sequence[Column]) -> Iterator[AddRow]:
    """UTF-8, line by line."""
    head, line = TEXTS[form](columns)
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(head)

        def add(row: Sequence[Cell]) -> None:
            file.write(line(row))

        yield add


@contextmanager
def _xlsx(path: Path, columns: Sequence[Column]) -> Iterator[AddRow]:
    """Sheets with a frozen, filtered header; integers of any size as text, decimals as numbers where those are exact."""
    try:
        import xlsxwriter  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigFault("no_xlsx", "XLSX needs `pip install facilitator[xlsx]`") from None
    options = {"constant_memory": True, "strings_to_formulas": False, "strings_to_urls": False, "strings_to_numbers": False}
    book = xlsxwriter.Workbook(str(path), {**options, "remove_timezone": True})
    book.set_properties({"created": datetime(2000, 1, 1)})  # noqa: DTZ001 - the same rows make the same bytes
    head, time = book.add_format({"bold": True}), book.add_format({"num_format": "yyyy-mm-dd hh:mm:ss.000"})
    places = {number: book.add_format({"num_format": "0." + "0" * number}) for number in range(1, 19)}
    sheet: Any = None
    below = 0

    def add(row: Sequence[Cell]) -> None:
        nonlocal sheet, below
        if sheet is None or below == SHEET_ROWS_MAX:
            sheet, below = book.add_worksheet(), 1
            sheet.write_row(0, 0, [column.name for column in columns], head)
            sheet.freeze_panes(1, 0)
            sheet.autofilter(0, 0, SHEET_ROWS_MAX - 1, len(columns) - 1)
        for index, (cell, column) in enumerate(zip(row, columns, strict=True)):
            if isinstance(cell, datetime):
                sheet.write_datetime(below, index, cell.astimezone(UTC), time)
            elif isinstance(cell, int):
                sheet.write_number(below, index, cell)
            elif isinstance(cell, str) and column.kind == "decimal" and _exact_number(cell):
                sheet.write_number(below, index, Decimal(cell), places.get(len(cell.partition(".")[2])))
            elif isinstance(cell, str):
                sheet.write_string(below, index, cell)
        below += 1

    try:
        yield add
        if sheet is None:
            book.add_worksheet().write_row(0, 0, [column.name for column in columns], head)
    finally:
        book.close()


def _exact_number(text: str) -> bool:
    """Does a spreadsheet's number keep every digit?"""
    return len(text.lstrip("-").replace(".", "").lstrip("0")) <= _EXACT_DIGITS


@contextmanager
def _parquet(path: Path, columns: Sequence[Column]) -> Iterator[AddRow]:
    """Decimals as decimal128(38, 18), integers of any size as strings, times as UTC microseconds."""
    try:
        import pyarrow as pa  # noqa: PLC0415 - an extra
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError:
        raise ConfigFault("no_parquet", "Parquet needs `pip install facilitator[parquet]`") from None
    types = {
        "text": pa.string(),
        "integer": pa.string(),
        "count": pa.int64(),
        "decimal": pa.decimal128(38, 18),
        "time": pa.timestamp("us", tz="UTC"),
    }
    schema = pa.schema([(column.name, types[column.kind]) for column in columns])
    held: list[list[Any]] = [[] for _ in columns]

    batches: list[Any] = []

    def pack() -> None:
        parts = [pa.array(cells, field.type) for cells, field in zip(held, schema, strict=True)]
        batches.append(pa.record_batch(parts, schema=schema))
        held[:] = [[] for _ in columns]

    def write() -> None:
        writer.write_table(pa.Table.from_batches(batches, schema))
        batches.clear()

    def add(row: Sequence[Cell]) -> None:
        for cells, cell, column in zip(held, row, columns, strict=True):
            cells.append(Decimal(cell) if isinstance(cell, str) and column.kind == "decimal" else cell)
        if len(held[0]) == _BATCH_ROWS:
            pack()
        if len(batches) == _GROUP_BATCHES:
            write()

    with parquet.ParquetWriter(path, schema) as writer:
        yield add
        pack()
        write()


FORMATS: Final[Mapping[str, Opener]] = {
    "csv": partial(_text, "csv"),
    "jsonl": partial(_text, "jsonl"),
    "xlsx": _xlsx,
    "parquet": _parquet,
}
"""By the word of `--format`. Each raises ConfigFault when the extra that it needs is not installed."""
