"""The settlement detail report from a real ledger: whole, exact, the same each time, and verifiable."""

import csv
import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import openpyxl
import pytest
from pyarrow import parquet

from facilitator.domain.periods import Period, day_of, days_of, month_of, parse_month
from facilitator.finance import detail
from facilitator.finance.detail import COLUMNS
from facilitator.finance.export import Asked, export_report, manifest_path, verify
from facilitator.store.db import Db
from facilitator.units import UTC_ZONE, Address, Network, Zone
from tests.fixtures.books import NETWORK, USDC, plant

NOVEMBER = Period(datetime(2025, 11, 1, tzinfo=UTC), datetime(2025, 12, 1, tzinfo=UTC))
ASSET = f"{NETWORK}/{USDC}"
GOLDEN = Path(__file__).with_name("golden_settlements_header.csv")


@pytest.fixture
async def connection(database_url: str) -> Any:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def db(database_url: str) -> Any:
    db = await Db.connect(database_url)
    yield db
    await db.close()


def asked(period: Period = NOVEMBER, *, zone: str = UTC_ZONE, tenant_id: str | None = None, kind: str = "csv") -> Asked:
    decimals = {(Network(NETWORK), Address(USDC)): 6}
    return Asked(
        period=period, zone=Zone(zone), tenant_id=tenant_id, format=kind, decimals=decimals, rate_stale_s=3600.0, booking_zone=UTC_ZONE
    )


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def amount(manifest: dict[str, Any], kind: str = "settlement") -> int:
    return int(manifest["sums"].get(ASSET, {}).get(kind, {"amount_atomic": "0"})["amount_atomic"])


async def test_the_report_is_the_journal(db: Db, connection: Any, tmp_path: Path) -> None:
    await plant(connection, 500, start=NOVEMBER.start - timedelta(hours=1), step=timedelta(hours=2))
    manifest = await export_report(db, asked(), tmp_path / "nov.csv")
    rows = read(tmp_path / "nov.csv")
    journal = await connection.fetch(
        "select entry_id, amount_atomic, phase from journal_entry where phase <> 'pending' and happened_at >= $1 and happened_at < $2"
        " order by entry_id",
        NOVEMBER.start,
        NOVEMBER.end,
    )
    assert [row["entry_ids"].split()[1] for row in rows] == [str(entry["entry_id"]) for entry in journal]
    posted = sum(int(entry["amount_atomic"]) for entry in journal if entry["phase"] == "posted")
    assert posted == amount(manifest) == sum(int(row["amount_atomic"]) for row in rows if row["reporting_category"] == "settlement") > 0
    assert manifest["rows"] == len(rows) == len(journal) == 360
    assert {row["reporting_category"] for row in rows} == {"settlement", "settlement_external", "unpaid"}
    assert manifest["is_complete"]
    assert manifest["complete_through"]["blocks"] == {NETWORK: 1497}
    assert verify(tmp_path / "nov.csv", manifest) == []
    assert json.loads(manifest_path(tmp_path / "nov.csv").read_text()) == manifest


async def test_a_row_says_all_that_is_known(db: Db, connection: Any, tmp_path: Path) -> None:
    await plant(connection, 1, start=datetime(2025, 11, 5, 3, tzinfo=UTC), step=timedelta(hours=1))
    await export_report(db, asked(zone="America/New_York"), tmp_path / "f.csv")
    (row,) = read(tmp_path / "f.csv")
    word = "0x" + "0" * 64
    assert {name: value for name, value in row.items() if value} == {
        "settlement_id": "00000000-0000-7000-8000-000000000000",
        "tenant": "tenant-0",
        "request_id": "r-0",
        "scheme": "exact",
        "network": NETWORK,
        "asset": USDC,
        "asset_decimals": "6",
        "payer": "0x" + "a" * 39 + "0",
        "pay_to": "0x" + "b" * 39 + "0",
        "amount_atomic": "1000",
        "amount": "0.001000",
        "auth_nonce": word,
        "valid_after_utc": "1970-01-01T00:00:00.000000Z",
        "valid_before_utc": "2030-03-17T17:46:40.000000Z",
        "resource": "https://shop.example/0",
        "state": "finalized",
        "requested_at_utc": "2025-11-05T02:59:57.000000Z",
        "submitted_at_utc": "2025-11-05T02:59:57.000000Z",
        "finalized_at_utc": "2025-11-05T03:00:00.000000Z",
        "booked_at_utc": "2025-11-05T03:00:00.000000Z",
        "local_date": "2025-11-04",
        "tx_hash": word,
        "log_index": "1",
        "block_number": "1000",
        "block_hash": word,
        "settled_by": "us",
        "relayer": "0x" + "11" * 20,
        "tx_nonce": "0",
        "gas_used": "86000",
        "effective_gas_price_wei": "1000000",
        "l2_fee_wei": "86000000000",
        "l1_fee_wei": "55000",
        "total_fee_wei": "86000055000",
        "total_fee_eth": "0.000000086000055000",
        "eth_usd_source": "none",
        "reporting_category": "settlement",
        "period": "2025-11",
        "entry_ids": "1 2",
    }


def test_the_columns_are_those_that_were_promised() -> None:
    """Raise `REPORT_VERSION` when this file has to change."""
    assert GOLDEN.read_text("utf-8").strip() == ",".join(column.name for column in COLUMNS)


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"])
async def test_the_sum_of_the_days_is_the_sum_of_the_month(db: Db, connection: Any, tmp_path: Path, zone: str) -> None:
    month = month_of(parse_month("2025-11"), Zone(zone))
    await plant(connection, 400, start=month.start - timedelta(hours=30), step=timedelta(hours=2, minutes=7))
    whole = await export_report(db, asked(month, zone=zone), tmp_path / "month.csv")
    days = list(days_of(month, Zone(zone)))
    assert days[0] == date(2025, 11, 1)
    assert len(days) == 30
    parts = [await export_report(db, asked(day_of(day, Zone(zone)), zone=zone), tmp_path / "day.csv") for day in days]
    for kind in ("settlement", "settlement_external", "unpaid"):
        assert sum(amount(part, kind) for part in parts) == amount(whole, kind) > 0
    assert sum(part["rows"] for part in parts) == whole["rows"]
    assert {row["period"] for row in read(tmp_path / "month.csv")} == {"2025-11"}


async def test_all_formats_hold_the_same_rows(db: Db, connection: Any, tmp_path: Path) -> None:
    await plant(connection, 50, start=NOVEMBER.start, step=timedelta(hours=2))
    manifests = {kind: await export_report(db, asked(kind=kind), tmp_path / f"f.{kind}") for kind in ("csv", "jsonl", "xlsx", "parquet")}
    assert len({json.dumps(manifest["sums"]) for manifest in manifests.values()}) == 1
    assert [verify(tmp_path / f"f.{kind}", manifest) for kind, manifest in manifests.items()] == [[]] * 4
    rows = read(tmp_path / "f.csv")
    lines = [json.loads(line) for line in (tmp_path / "f.jsonl").read_text("utf-8").splitlines()]
    assert [{name: "" if value is None else str(value) for name, value in line.items()} for line in lines] == rows
    sheet = openpyxl.load_workbook(tmp_path / "f.xlsx").active
    assert sheet is not None
    head, *cells = [[cell.value for cell in row] for row in sheet.iter_rows()]
    at = head.index("amount_atomic"), head.index("settlement_id")
    assert [(row[at[0]], row[at[1]]) for row in cells] == [(row["amount_atomic"], row["settlement_id"]) for row in rows]
    arrow = parquet.read_table(tmp_path / "f.parquet").to_pylist()
    assert [(row["amount_atomic"], f"{row['amount']:.6f}") for row in arrow] == [(row["amount_atomic"], row["amount"]) for row in rows]


async def test_one_tenant_sees_its_own_only(db: Db, connection: Any, tmp_path: Path) -> None:
    await plant(connection, 30, start=NOVEMBER.start, step=timedelta(hours=2))
    manifest = await export_report(db, asked(tenant_id="tenant-1"), tmp_path / "f.csv")
    assert {row["tenant"] for row in read(tmp_path / "f.csv")} == {"tenant-1"}
    assert (manifest["rows"], manifest["filter"]["tenant"]) == (10, "tenant-1")


async def test_what_is_still_open_makes_later_periods_incomplete(db: Db, connection: Any, tmp_path: Path) -> None:
    await plant(connection, 30, start=NOVEMBER.start, step=timedelta(hours=2))
    await connection.execute(
        "update settlement set state = 'included', queued_at = $1"
        " where settlement_id = (select settlement_id from settlement where state = 'finalized' limit 1)",
        datetime(2025, 11, 20, tzinfo=UTC),
    )
    early = Period(NOVEMBER.start, datetime(2025, 11, 20, tzinfo=UTC))
    assert (await export_report(db, asked(early), tmp_path / "a.csv"))["is_complete"]
    late = await export_report(db, asked(), tmp_path / "b.csv")
    assert not late["is_complete"]
    assert late["complete_through"]["time"] == "2025-11-20T00:00:00.000000Z"
    future = Period(NOVEMBER.start, datetime.now(UTC) + timedelta(days=1))
    await connection.execute("update settlement set state = 'finalized' where state = 'included'")
    assert not (await export_report(db, asked(future), tmp_path / "c.csv"))["is_complete"]


async def test_one_changed_byte_is_found(db: Db, connection: Any, tmp_path: Path) -> None:
    await plant(connection, 30, start=NOVEMBER.start, step=timedelta(hours=2))
    path = tmp_path / "f.csv"
    manifest = await export_report(db, asked(), path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"0.001003", b"0.001004", 1))
    assert [word.split()[0] for word in verify(path, manifest)] == ["sha256"]
    path.write_bytes(whole[:-1])
    assert "bytes," in verify(path, manifest)[0]
    path.write_bytes(whole)
    assert any("sums" in word for word in verify(path, manifest | {"sums": {}}))
    assert any("rows" in word for word in verify(path, manifest | {"rows": 29}))


async def test_a_file_that_could_not_be_finished_is_not_there(
    db: Db, connection: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await plant(connection, 30, start=NOVEMBER.start, step=timedelta(hours=2))

    def broken(*_: object) -> str:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(detail, "category", broken)
    with pytest.raises(RuntimeError):
        await export_report(db, asked(), tmp_path / "f.csv")
    assert list(tmp_path.iterdir()) == []
