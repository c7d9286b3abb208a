"""hledger, which knows nothing of us, agrees with every balance of ours; and with none if one unit was altered."""

import csv
import re
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from facilitator.domain.periods import Period
from facilitator.finance.export import GAS, SETTLEMENTS, Asked, export_report, verify
from facilitator.finance.hledger import hledger_lines
from facilitator.finance.journal import decimals_of
from facilitator.store import books
from facilitator.store.db import Db
from facilitator.units import UTC_ZONE
from tests.fixtures.books import NETWORK, USDC, plant
from tests.fixtures.hledger import hledger_program
from tests.fixtures.waiting import PATIENCE_S
from tests.integration.finance.test_nine import Ledger, bench, ledger
from tests.integration.settlement.conftest import USDC as TOKEN

__all__ = ["bench", "ledger"]

START = datetime(2025, 11, 5, tzinfo=UTC)
DAY = Period(START, START + timedelta(days=1))
DECIMALS = decimals_of([TOKEN])


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Db]:
    db = await Db.connect(database_url)
    yield db
    await db.close()


async def write(db: Db, path: Path, period: Period = DAY) -> Path:
    path.write_text("\n".join([line async for line in hledger_lines(db, period, UTC_ZONE, DECIMALS)]) + "\n", "utf-8")
    return path


def hledger(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"LC_ALL": "C.UTF-8", "PATH": "/usr/bin"}
    return subprocess.run(
        [hledger_program(), "-f", path, *arguments], env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def its_balances(path: Path, *filters: str) -> dict[str, Decimal]:
    """What hledger says, by account."""
    done = hledger(path, "balance", "--flat", "--no-total", "--empty", "--layout=bare", "-O", "csv", *filters)
    assert done.returncode == 0, done.stderr
    return {row["account"]: Decimal(row["balance"]) for row in csv.DictReader(done.stdout.splitlines()) if row["commodity"]}


async def our_balances(db: Db, before: datetime) -> dict[str, Decimal]:
    async with db.snapshot() as session:
        return {total.account: Decimal(total.balance_atomic).scaleb(-6) async for total in books.balances(session, before)}


async def test_a_busy_day_passes_the_strict_check_and_every_balance_is_ours(db: Db, connection: Any, tmp_path: Path) -> None:
    await plant(connection, 2_000, start=START, step=timedelta(seconds=40))
    path = await write(db, tmp_path / "day.journal")
    done = hledger(path, "check", "--strict")
    assert done.returncode == 0, done.stderr
    ours = await our_balances(db, DAY.end)
    assert len(ours) == 83
    assert its_balances(path) == ours
    assert sum(ours.values()) == 0 < max(ours.values())


async def test_a_later_period_opens_with_what_was_there(db: Db, connection: Any, tmp_path: Path) -> None:
    await plant(connection, 200, start=START, step=timedelta(minutes=20))
    later = Period(DAY.end, DAY.end + timedelta(days=1))
    path = await write(db, tmp_path / "next.journal", later)
    assert "opening balances" in path.read_text("utf-8")
    assert hledger(path, "check", "--strict").returncode == 0
    assert its_balances(path) == await our_balances(db, later.end) != await our_balances(db, later.start)


async def test_what_is_pending_is_marked_as_such_wherever_it_began(db: Db, connection: Any, tmp_path: Path) -> None:
    await plant(connection, 20, start=START, step=timedelta(minutes=1))
    await connection.execute(
        "insert into journal_entry (phase, debit, credit, asset, amount_atomic, happened_at)"
        " values ('pending', 'payer:0xaa', 'payee:0xbb', $1, 5, $2), ('pending', 'payer:0xaa', 'payee:0xbb', $1, 7, $3)",
        f"{NETWORK}/{USDC}",
        START - timedelta(days=1),
        START,
    )
    path = await write(db, tmp_path / "day.journal")
    assert hledger(path, "check", "--strict").returncode == 0
    assert its_balances(path, "--pending") == {"payer:0xaa": Decimal("0.000012"), "payee:0xbb": Decimal("-0.000012")}
    assert its_balances(path, "--cleared") == await our_balances(db, DAY.end)


async def test_eighteen_decimals_and_an_unknown_asset_are_kept(db: Db, connection: Any, tmp_path: Path) -> None:
    await connection.execute(
        "with p as (insert into journal_entry (phase, debit, credit, asset, amount_atomic, happened_at)"
        " values ('pending', 'payer:0xaa', 'payee:0xbb', 'eip155:1/native', 123456789012345678901, $1),"
        " ('pending', 'payer:0xaa', 'payee:0xbb', 'eip155:1/0xunknown', 12, $1) returning *)"
        " insert into journal_entry (phase, debit, credit, asset, amount_atomic, happened_at, resolves)"
        " select 'posted', debit, credit, asset, amount_atomic, happened_at, entry_id from p",
        START,
    )
    path = await write(db, tmp_path / "day.journal")
    done = hledger(path, "check", "--strict")
    assert done.returncode == 0, done.stderr
    shown = hledger(path, "balance", "--flat", "--no-total", "payer").stdout
    assert '123.456789012345678901 "eip155:1/native"' in shown
    assert re.search(r'\b12 "eip155:1/0xunknown"', shown)


@pytest.mark.parametrize("sides", [1, 2])
async def test_one_altered_unit_fails_the_check(db: Db, connection: Any, tmp_path: Path, sides: int) -> None:
    """On one side the entry does not balance; on both, the asserted balances are not reached."""
    await plant(connection, 50, start=START, step=timedelta(minutes=1))
    path = await write(db, tmp_path / "day.journal")
    text = path.read_text("utf-8")
    assert text.index("0.001007") < text.index("-0.001007")
    path.write_text(text.replace("0.001007", "0.001008", sides), "utf-8")
    assert hledger(path, "check", "--strict").returncode == 1


async def test_an_entry_left_out_fails_the_check(db: Db, connection: Any, tmp_path: Path) -> None:
    await plant(connection, 50, start=START, step=timedelta(minutes=1))
    path = await write(db, tmp_path / "day.journal")
    whole = path.read_text("utf-8")
    less = re.sub(r"\n[^\n]*\(51\)[^\n]*\n[^\n]*\n[^\n]*\n", "\n", whole)
    assert less != whole
    path.write_text(less, "utf-8")
    assert hledger(path, "check", "--strict").returncode == 1


async def test_an_empty_journal_passes(db: Db, tmp_path: Path) -> None:
    assert hledger(await write(db, tmp_path / "day.journal"), "check", "--strict").returncode == 0


async def test_what_an_engine_booked_passes_with_its_gas(ledger: Ledger, db: Db, tmp_path: Path) -> None:
    """Both books: payments posted, one executed by somebody else, gas by cause to the wei."""
    await ledger.busy(3)
    now = datetime.now(UTC)
    path = await write(db, tmp_path / "engine.journal", Period(now - timedelta(hours=1), now + timedelta(hours=1)))
    done = hledger(path, "check", "--strict")
    assert done.returncode == 0, done.stderr
    async with db.snapshot() as session:
        totals = [total async for total in books.balances(session, now + timedelta(hours=1))]
    spent = sum(total.balance_atomic for total in totals if total.account.startswith(f"gas_expense:{NETWORK}:"))
    assert spent == -sum(total.balance_atomic for total in totals if total.account.startswith(f"gas:{NETWORK}:")) > 0
    shown = hledger(path, "balance", "--flat", "--no-total", "--layout=bare", "-O", "csv", "gas_expense").stdout
    assert sum(Decimal(row["balance"]) for row in csv.DictReader(shown.splitlines())) == Decimal(spent).scaleb(-18)


async def test_the_gas_report_has_every_wei_of_the_gas_book_and_hledger_agrees(ledger: Ledger, db: Db, tmp_path: Path) -> None:
    """What an engine booked, a transaction that paid nobody, a top-up; a block that left the chain and gas not final yet are not in it."""
    await ledger.busy(3)
    connection = await asyncpg.connect(db.url)
    burned = "0x" + "ab" * 32
    gas = f"gas:{NETWORK}:0x" + "11" * 20
    entries = [
        (f"gas_expense:{NETWORK}:revert", gas, 70_001, burned, "posted"),
        (f"gas_expense:{NETWORK}:noop", gas, 21_000, "0x" + "ac" * 32, "posted"),
        (f"gas_expense:{NETWORK}:revert", gas, 5, "0x" + "ad" * 32, "voided"),
        (f"gas_expense:{NETWORK}:payment", gas, 7, "0x" + "ae" * 32, "pending"),
        (gas, f"funding:{NETWORK}", 10**18, None, "posted"),
        (f"funding:{NETWORK}", gas, 3, None, "posted"),
        (gas, f"gas_expense:{NETWORK}:revert", 1, None, "posted"),
    ]
    for debit, credit, wei, tx_hash, phase in entries:
        values = "'own', {}, $1::text, $2::text, $3::text, $4::numeric, $5::text, case when $5::text is null then null else 1 end"
        columns = "book, phase, debit, credit, asset, amount_atomic, tx_hash, admission"
        first = await connection.fetchval(
            f"insert into journal_entry ({columns}) values ({values.format(chr(39) + 'pending' + chr(39))}) returning entry_id",  # noqa: S608
            *(debit, credit, f"{NETWORK}/native", wei, tx_hash),
        )
        if phase != "pending":
            await connection.execute(
                f"insert into journal_entry ({columns}, resolves) values ({values.format('$6::text')}, $7)",  # noqa: S608
                *(debit, credit, f"{NETWORK}/native", wei, tx_hash, phase, first),
            )
    await connection.close()
    now = datetime.now(UTC)
    hour = Period(now - timedelta(hours=1), now + timedelta(hours=1))
    common: dict[str, Any] = {"period": hour, "zone": UTC_ZONE, "booking_zone": UTC_ZONE, "tenant_id": None, "format": "csv"}
    decimals = {(TOKEN.network, TOKEN.address): TOKEN.decimals}
    manifests, rows = {}, {}
    for report in (SETTLEMENTS, GAS):
        path = tmp_path / f"{report.name}.csv"
        manifests[report] = await export_report(db, Asked(report=report, decimals=decimals, rate_stale_s=60.0, **common), path)
        assert verify(path, manifests[report]) == []
        with path.open(encoding="utf-8", newline="") as file:
            rows[report] = list(csv.DictReader(file))

    sums = {name: int(total["amount_atomic"]) for name, total in manifests[GAS]["sums"][f"{NETWORK}/native"].items()}
    paid = sums.pop("gas_payment")
    assert sums.pop("gas_revert") > 70_001, "the engine had one of its own: somebody else was quicker"
    assert sums == {"gas_noop": 21_000, "relayer_topup": 10**18, "relayer_sweep": 3, "correction": 1}
    assert paid == sum(int(row["total_fee_wei"]) for row in rows[SETTLEMENTS] if row["reporting_category"] == "settlement") > 0
    assert {row["tx_hash"] for row in rows[SETTLEMENTS] if row["reporting_category"] == "settlement"} == {
        row["tx_hash"] for row in rows[GAS] if row["reporting_category"] == "gas_payment"
    }
    assert [row["amount"] for row in rows[GAS] if row["tx_hash"] == burned] == ["0.000000000000070001"]

    moved: Counter[str] = Counter()
    for row in rows[GAS]:
        moved[row["debit"]] += int(row["amount_atomic"])
        moved[row["credit"]] -= int(row["amount_atomic"])
    book = await write(db, tmp_path / "engine.journal", hour)
    assert hledger(book, "check", "--strict").returncode == 0
    theirs = its_balances(book, "--cleared", f"cur:{NETWORK}/native")
    assert {name: Decimal(wei).scaleb(-18) for name, wei in moved.items()} == {name: amount for name, amount in theirs.items() if amount}
