"""Exports and reports from the command line, as finance people run them."""

import csv
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from tests.fixtures.books import USDC, plant
from tests.fixtures.hledger import hledger_program
from tests.fixtures.service import BASE_SEPOLIA, ServeFailed, ServeProcess
from tests.fixtures.waiting import PATIENCE_S

START = datetime(2025, 11, 1, tzinfo=UTC)


@pytest.fixture
async def books(tmp_path: Path, database_url: str) -> ServeProcess:
    """The command line on a ledger with settlements of November 2025; nothing is served."""
    connection = await asyncpg.connect(database_url)
    await plant(connection, 60, start=START, step=timedelta(hours=12))
    await connection.close()
    finance = {"finance": {"booking_zone": "America/New_York"}}
    return ServeProcess(
        tmp_path, database_url=database_url, rpc_url="http://127.0.0.1:1", relayer_keys=["0x" + "11" * 32], settings=finance
    )


def verify(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "facilitator", "export", "verify", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


async def test_an_export_is_whole_and_verifiable_and_one_changed_byte_is_exit_1(books: ServeProcess, tmp_path: Path) -> None:
    out = tmp_path / "november.csv"
    said = books.command("export", "settlements", "--from", "2025-11", "--to", "2025-12", "--out", str(out))
    assert said.strip() == f"{out}: 59 rows, complete; manifest {out}.manifest.json"  # the first lies in October, New York time
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 59
    assert {row["period"] for row in rows} == {"2025-11"}
    manifest = json.loads((tmp_path / "november.csv.manifest.json").read_text("utf-8"))
    assert manifest["zone"] == "America/New_York"
    assert manifest["filter"]["from"] == "2025-11-01T04:00:00.000000Z"
    done = verify(out, f"{out}.manifest.json")
    assert (done.returncode, done.stdout) == (0, f"{out}: as its manifest says\n")

    out.write_bytes(out.read_bytes().replace(b"r-7", b"r-8", 1))
    done = verify(out, f"{out}.manifest.json")
    assert done.returncode == 1
    assert "sha256" in done.stdout
    assert verify(out, out).returncode == 1


async def test_the_zone_of_a_file_may_be_another_than_the_books(books: ServeProcess, tmp_path: Path) -> None:
    out = tmp_path / "november.jsonl"
    books.command(
        "export", "settlements", "--from", "2025-11-01", "--to", "2025-11-02", "--tz", "UTC", "--format", "jsonl", "--out", str(out)
    )
    assert [json.loads(line)["local_date"] for line in out.read_text("utf-8").splitlines()] == ["2025-11-01"] * 2


async def test_the_journal_goes_to_hledger_and_its_balances_are_the_report_s(books: ServeProcess, tmp_path: Path) -> None:
    out = tmp_path / "november.journal"
    books.command("export", "journal", "--from", "2025-10", "--to", "2025-12", "--out", str(out))
    checked = subprocess.run([hledger_program(), "-f", out, "check", "--strict"], capture_output=True, timeout=PATIENCE_S, check=False)
    assert checked.returncode == 0, checked.stderr
    balances = json.loads(books.command("report", "balances", "--format", "json"))
    shown = subprocess.run(
        [hledger_program(), "-f", out, "balance", "--flat", "--no-total", "--empty", "--layout=bare", "-O", "csv"],
        env={"LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    ).stdout
    theirs = {row["account"]: row["balance"] for row in csv.DictReader(shown.splitlines())}
    assert {row["account"]: row["balance"].removesuffix(".000000") for row in balances} == theirs
    assert {row["asset"] for row in balances} == {f"{BASE_SEPOLIA}/{USDC}"}


async def test_balances_are_text_csv_or_json_as_of_a_date(books: ServeProcess) -> None:
    (head, *rows) = books.command("report", "balances", "--at", "2025-11-02").splitlines()
    assert head.split() == ["account", "asset", "debits", "credits", "balance", "pending"]
    assert [row.split()[2:] for row in rows if row.startswith("payee:")] == [
        ["0.000000", "0.001000", "-0.001000", "0.000000"],
        ["0.000000", "0.001001", "-0.001001", "0.000000"],
        ["0.000000", "0.001002", "-0.001002", "0.000000"],
    ]
    told = books.command("report", "balances", "--at", "2025-11-02", "--format", "csv")
    assert len(list(csv.DictReader(told.splitlines()))) == len(rows) == 6


async def test_journal_csv_has_every_entry_with_its_link(books: ServeProcess, tmp_path: Path) -> None:
    out = tmp_path / "journal.csv"
    books.command("export", "journal", "--format", "csv", "--from", "2025-10", "--to", "2025-12", "--out", str(out))
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 120
    by_id = {row["entry_id"]: row for row in rows}
    assert all(by_id[row["resolves"]]["resolved_by"] == row["entry_id"] for row in rows if row["resolves"])


async def test_terms_invoice_payment_statement(books: ServeProcess, tmp_path: Path) -> None:
    terms = tmp_path / "terms.json"
    terms.write_text('{"tiers": [{"flat_micros": 2000, "basis_points": 30}], "free_settlements": 3}', "utf-8")
    tenant = ["--tenant", "tenant-1"]
    said = books.command("fees", "add", *tenant, "--from", "2025-11-01", str(terms))
    assert said == "version 1 of tenant-1 holds from 2025-11-01\n"
    with pytest.raises(ServeFailed, match="choose a later one"):
        books.command("fees", "add", *tenant, "--from", "2025-11-01", str(terms))
    assert [row["version"] for row in json.loads(books.command("fees", "list", "--format", "json"))] == ["1"]

    month = ["report", "invoice", *tenant, "--month", "2025-11"]
    draft = books.command(*month)
    assert draft.startswith("Draft: tenant-1, 2025-11 (America/New_York), USD\n")
    issued = books.command(*month, "--issue")
    assert issued.startswith("Invoice 1, issued 20")
    assert "receivable, closing" in issued
    document = books.command(*month, "--format", "json")
    assert books.command(*month, "--issue", "--format", "json") == document
    total = json.loads(document)["total"]
    assert total == "0.026039"  # 13 of 16, each 0.002 and 0.30 % of about 0.001

    payment = ["fees", "payment", *tenant, "--reference", "bank 77", "--usd"]
    assert books.command(*payment, total) == f"entry 124: payment of {total} USD, tenant-1\n"
    assert "bank 77 was booked before, nothing is booked again" in books.command(*payment, total)
    with pytest.raises(ServeFailed, match="bank 77 was booked as entry 124"):
        books.command(*payment, "1")
    account = ["report", "statement", "--account", "receivable:tenant-1", "--from", "2025-11", "--to", "2999-01"]
    rows = json.loads(books.command(*account, "--format", "json"))
    assert [(row["debit"], row["credit"], row["balance"], row["about"]) for row in rows] == [
        (total, "", total, "invoice 1"),
        ("", total, "0.000000", "bank 77"),
        ("", "", "0.000000", ""),
    ]
    out = tmp_path / "all.journal"
    books.command("export", "journal", "--from", "2025-10", "--to", "2999-01", "--out", str(out))
    checked = subprocess.run([hledger_program(), "-f", out, "check", "--strict"], capture_output=True, timeout=PATIENCE_S, check=False)
    assert checked.returncode == 0, checked.stderr
    with pytest.raises(ServeFailed, match="expected a month"):
        books.command("report", "invoice", *tenant, "--month", "soon")
    with pytest.raises(ServeFailed, match="there is no tenant"):
        books.command("fees", "credit", "--tenant", "nobody", "--usd", "1", "--reference", "x")


async def test_an_auditor_reads_everything_leaves_a_trail_and_changes_nothing(database_url: str, tmp_path: Path) -> None:
    connection = await asyncpg.connect(database_url)
    await plant(connection, 10, start=START, step=timedelta(hours=12))
    await connection.execute("create role carla login")
    await connection.execute("grant facilitator_auditor to carla")
    url = database_url.replace("postgres@", "carla@", 1)
    assert url != database_url
    auditor = ServeProcess(tmp_path, database_url=url, rpc_url="http://127.0.0.1:1", relayer_keys=["0x" + "11" * 32])
    period = ["--from", "2025-10", "--to", "2025-12"]
    auditor.command("export", "settlements", *period, "--out", str(tmp_path / "f.csv"))
    auditor.command("export", "audit-bundle", "--out", str(tmp_path / "bundle"))
    assert "0 records" in auditor.command("audit", "verify")
    assert await connection.fetchval("select count(*) from audit_event") == 2
    with pytest.raises(ServeFailed, match="may not do"):
        auditor.command("fees", "payment", "--tenant", "tenant-1", "--usd", "1", "--reference", "x")
    with pytest.raises(ServeFailed, match="may not do"):
        auditor.command("close", "2025-11-01")
    await connection.execute("drop owned by carla")
    await connection.execute("drop role carla")
    await connection.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--from", "2025-12", "--to", "2025-11"], "the period is empty"),
        (["--from", "soon", "--to", "2025-11"], "expected a date"),
        (["--from", "2025-11", "--to", "2025-12", "--tz", "Mars/Olympus"], "expected an IANA time zone"),
    ],
)
async def test_wrong_usage_says_what_to_do(books: ServeProcess, tmp_path: Path, arguments: list[str], words: str) -> None:
    with pytest.raises(ServeFailed, match=words):
        books.command("export", "settlements", *arguments, "--out", str(tmp_path / "x.csv"))
    assert not (tmp_path / "x.csv").exists()
