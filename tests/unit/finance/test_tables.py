"""Files that people and programs read back exactly, and that run nothing."""

import csv
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from pyarrow import parquet

from facilitator.finance import tables
from facilitator.finance.detail import Cell, Column
from facilitator.finance.tables import FORMATS

COLUMNS = (
    Column("what", "text"),
    Column("number", "count"),
    Column("amount_atomic", "integer"),
    Column("amount", "decimal"),
    Column("at_utc", "time"),
)
MOMENT = datetime(2026, 11, 1, 5, 30, 0, 123456, tzinfo=UTC)
HUGE = str(2**256 - 1)
HOSTILE = ['=HYPERLINK("http://evil")', "+1", "-1", "@SUM(A1)", "\tx", "\rx", "\n=x", "<script>", 'a"b,c\nd', "plain", "Grüße 漢字", ""]
ROWS: list[list[Cell]] = [
    *([text, index, HUGE, "-0.000001", MOMENT] for index, text in enumerate(HOSTILE)),
    [None, None, None, None, None],
    ["largest", 2**63 - 1, "0", "999999999.999999", MOMENT],
]


def write(path: Path, kind: str, rows: list[list[Cell]] = ROWS) -> Path:
    with FORMATS[kind](path, COLUMNS) as add:
        for row in rows:
            add(row)
    return path


def test_csv_cells_that_begin_like_a_formula_are_text_and_numbers_stay_numbers(tmp_path: Path) -> None:
    with write(tmp_path / "t.csv", "csv").open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == [column.name for column in COLUMNS]
    for text, row in zip(HOSTILE, rows, strict=False):
        assert row[0] == ("'" + text if text[:1] in tuple("=+-@\t\r\n") and text else text)
        assert row[2:] == [HUGE, "-0.000001", "2026-11-01T05:30:00.123456Z"]
    assert rows[-2] == [""] * 5
    assert not any(cell.startswith(("=", "+", "@", "\t", "\r", "\n")) for row in rows for cell in row)


def test_json_lines_hold_every_value_as_it_was(tmp_path: Path) -> None:
    found = [json.loads(line) for line in write(tmp_path / "t.jsonl", "jsonl").read_text("utf-8").splitlines()]
    assert [row["what"] for row in found] == [row[0] for row in ROWS]
    assert found[0] == {
        "what": HOSTILE[0],
        "number": 0,
        "amount_atomic": HUGE,
        "amount": "-0.000001",
        "at_utc": "2026-11-01T05:30:00.123456Z",
    }
    assert found[-2] == dict.fromkeys(["what", "number", "amount_atomic", "amount", "at_utc"])


def sheet_rows(path: Path) -> list[list[Any]]:
    book = openpyxl.load_workbook(path)
    assert all(cell.data_type != "f" for sheet in book for row in sheet.iter_rows() for cell in row), "a formula"
    return [[cell.value for cell in row] for sheet in book for row in sheet.iter_rows(min_row=2)]


def test_xlsx_holds_strings_exact_numbers_and_dates(tmp_path: Path) -> None:
    rows = sheet_rows(write(tmp_path / "t.xlsx", "xlsx"))
    for text, row in zip(HOSTILE, rows, strict=False):
        assert (row[0] or "").replace("_x000D_", "\r") == text
        assert row[2] == HUGE
        assert Decimal(repr(row[3])) == Decimal("-0.000001")
        assert abs(row[4].replace(tzinfo=UTC) - MOMENT).total_seconds() < 0.001
    assert Decimal(repr(rows[-1][3])) == Decimal("999999999.999999")


def test_an_amount_that_a_spreadsheet_would_round_is_text(tmp_path: Path) -> None:
    rows = sheet_rows(
        write(tmp_path / "t.xlsx", "xlsx", [["x", 1, "1", "9999999999.999999", MOMENT], ["x", 1, "1", "0.123456789012345678", MOMENT]])
    )
    assert [row[3] for row in rows] == ["9999999999.999999", "0.123456789012345678"]


def test_xlsx_goes_on_in_a_further_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "SHEET_ROWS_MAX", 4)
    path = write(tmp_path / "t.xlsx", "xlsx")
    assert len(openpyxl.load_workbook(path).worksheets) == -(-len(ROWS) // 3)
    assert len(sheet_rows(path)) == len(ROWS)


def test_parquet_reads_back_decimal_equal(tmp_path: Path) -> None:
    table = parquet.read_table(write(tmp_path / "t.parquet", "parquet"))
    found = table.to_pylist()
    assert [row["what"] for row in found] == [row[0] for row in ROWS]
    assert found[0]["amount"] == Decimal("-0.000001")
    assert found[0]["amount_atomic"] == HUGE
    assert found[0]["at_utc"] == MOMENT
    assert found[-1]["amount"] == Decimal("999999999.999999")
    assert found[-1]["number"] == 2**63 - 1


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_the_same_rows_make_the_same_bytes_and_no_rows_a_header(tmp_path: Path, kind: str) -> None:
    assert write(tmp_path / "a", kind).read_bytes() == write(tmp_path / "b", kind).read_bytes()
    empty = write(tmp_path / "empty", kind, [])
    if kind == "csv":
        assert empty.read_text("utf-8") == "what,number,amount_atomic,amount,at_utc\n"
    if kind == "parquet":
        assert parquet.read_table(empty).num_rows == 0
