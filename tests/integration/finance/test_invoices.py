"""Invoices from a real ledger: the sum of their lines, gapless, the same to the byte; and accounts that chain."""

import asyncio
import csv
import json
import random
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from facilitator.domain.periods import Period, day_of, month_of
from facilitator.domain.rates import Rate
from facilitator.domain.schedules import GasTerms, Terms, Tier
from facilitator.errors import ConfigFault, Fault
from facilitator.finance import invoices
from facilitator.finance.export import Asked, export_report
from facilitator.finance.invoices import Billing, issue, issued_again, make, parse_usd
from facilitator.store import billing, books, rates
from facilitator.store.db import Db
from facilitator.units import Address, Network, Zone
from tests.fixtures.books import NETWORK, USDC, plant

ZONE = Zone("America/New_York")
NOVEMBER = date(2025, 11, 1)
HOW = Billing(booking_zone=ZONE, decimals={(Network(NETWORK), Address(USDC)): 6}, rate_stale_s=86_400 * 90.0)
TERMS = Terms(
    tiers=(Tier(flat_micros=2_000, basis_points=30), Tier(above=50, flat_micros=1_000, basis_points=15), Tier(above=100)),
    free_settlements=10,
    gas=GasTerms(margin_basis_points=500),
)
TENANT = "tenant-1"


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(database_url)
    await plant(connection, 800, start=datetime(2025, 10, 25, tzinfo=UTC), step=timedelta(hours=2))
    yield connection
    await connection.close()


@pytest.fixture
async def db(database_url: str, connection: Any) -> AsyncIterator[Db]:
    assert not connection.is_closed()
    db = await Db.connect(database_url)
    quoted = datetime(2025, 10, 24, tzinfo=UTC)
    await rates.record(db, Network(NETWORK), Rate(source="file:x", round="1", quoted_at=quoted, usd_e8=312_055_123_456))
    yield db
    await db.close()


async def draft(db: Db, month: date = NOVEMBER) -> dict[str, Any]:
    async with db.snapshot() as session:
        document, _, _ = await make(session, HOW, TENANT, month, None, None)
    found: dict[str, Any] = json.loads(document)
    return found


async def test_an_invoice_is_the_sum_of_its_lines_and_of_the_settlements_in_the_detail_report(db: Db, tmp_path: Path) -> None:
    await billing.add_schedule(db, TENANT, date(2025, 1, 1), TERMS)
    later = Terms(tiers=(Tier(flat_micros=7),), gas=GasTerms())
    await billing.add_schedule(db, TENANT, date(2025, 11, 20), later)
    month = await draft(db)
    asked = Asked(
        period=month_of(NOVEMBER, ZONE), zone=ZONE, booking_zone=ZONE, tenant_id=TENANT, format="csv", decimals=HOW.decimals,
        rate_stale_s=HOW.rate_stale_s,
    )  # fmt: skip
    await export_report(db, asked, tmp_path / "f.csv")
    with (tmp_path / "f.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["reporting_category"] == "settlement"]
    charged = sum(Decimal(row["fee_usd"]) for row in rows)
    assert charged == Decimal(month["total"]) == sum(Decimal(line["charge"]) for line in month["lines"] + month["gas"]) > 0
    assert sum(line["settlements"] for line in month["lines"]) == len(rows) == 96
    assert {(line["schedule_version"], line["tier"]) for line in month["lines"]} == {(1, "free"), (1, 1), (1, 2), (2, 1)}
    assert sum(Decimal(line["volume"]) for line in month["lines"]) == sum(Decimal(row["amount"]) for row in rows)
    assert {row["fee_schedule_version"] for row in rows} == {"1", "2"}
    assert all(Decimal(row["margin_usd"]) == Decimal(row["fee_usd"]) - Decimal(row["gas_cost_usd"]) for row in rows)
    assert sum(int(row["total_fee_wei"]) for row in rows) == int(month["gas"][0]["cost_wei"])


async def test_a_file_that_begins_within_a_month_counts_what_came_before(db: Db, tmp_path: Path) -> None:
    await billing.add_schedule(db, TENANT, date(2025, 1, 1), TERMS)

    async def fees(period: Period) -> list[str]:
        asked = Asked(
            period=period, zone=ZONE, booking_zone=ZONE, tenant_id=None, format="csv", decimals=HOW.decimals, rate_stale_s=HOW.rate_stale_s
        )
        await export_report(db, asked, tmp_path / "f.csv")
        with (tmp_path / "f.csv").open(encoding="utf-8", newline="") as file:
            return [row["fee_usd"] for row in csv.DictReader(file) if row["tenant"] == TENANT]

    month = month_of(NOVEMBER, ZONE)
    middle = day_of(date(2025, 11, 17), ZONE).start
    assert await fees(Period(month.start, middle)) + await fees(Period(middle, month.end)) == await fees(month)


async def test_what_is_read_of_a_tenant_is_its_part_of_what_is_read_of_all(db: Db, connection: Any) -> None:
    """Some were admitted twice; periods are cut at entries, so that borders count."""
    await connection.execute(
        "with p as (insert into journal_entry (phase, debit, credit, asset, amount_atomic, settlement_id, admission, happened_at)"
        " select 'pending', debit, credit, asset, amount_atomic, settlement_id, 2, happened_at + interval '4 days' from journal_entry"
        " where phase = 'voided' returning *)"
        " insert into journal_entry (phase, debit, credit, asset, amount_atomic, settlement_id, admission, resolves, happened_at)"
        " select 'posted', debit, credit, asset, amount_atomic, settlement_id, 2, entry_id, happened_at + interval '3 s' from p"
    )
    ends = [
        row[0] for row in await connection.fetch("select distinct happened_at from journal_entry where resolves is not null order by 1")
    ]
    dice = random.Random(5)  # noqa: S311
    counted = 0
    async with db.snapshot() as session:
        for _ in range(20):
            start, end = sorted(dice.sample(ends, 2))
            period = Period(start, end)
            lines = [line async for line in books.settlement_lines(session, period, None, HOW.rate_stale_s)]
            every = await billing.counted(session, period)
            for tenant_id in ("tenant-0", "tenant-1", "tenant-2"):
                its = [line async for line in books.settlement_lines(session, period, tenant_id, HOW.rate_stale_s)]
                assert its == [line for line in lines if line.tenant_id == tenant_id]
                of_it = sum(line.phase == "posted" for line in its)
                assert every.get(tenant_id, 0) == of_it
                assert await billing.counted(session, period, tenant_id) == {tenant_id: of_it}
                counted += of_it
    assert counted > 2_000


async def test_numbers_have_no_gap_whoever_issues_at_the_same_time(db: Db, connection: Any) -> None:
    for tenant in ("tenant-0", "tenant-1", "tenant-2"):
        await billing.add_schedule(db, tenant, date(2025, 1, 1), TERMS)
    asked = [(f"tenant-{number % 3}", NOVEMBER) for number in range(9)]
    issued = await asyncio.gather(*(issue(db, HOW, tenant, month) for tenant, month in asked))
    assert sorted({invoice.number for invoice in issued}) == [1, 2, 3]
    with pytest.raises(Fault):
        await issue(db, HOW, "tenant-0", date(2999, 1, 1))
    december = await issue(db, HOW, "tenant-0", date(2025, 12, 1))
    assert december.number == 4
    posted = await connection.fetch(
        "select debit, credit, amount_atomic::text, reference from journal_entry where phase = 'posted' and book = 'own' order by entry_id"
    )
    assert [tuple(row) for row in posted] == [
        (
            f"receivable:{invoice.tenant_id}",
            f"fee_income:{invoice.tenant_id}",
            json.loads(invoice.document)["total"].replace(".", "").lstrip("0"),
            f"invoice {invoice.number}",
        )
        for invoice in [*sorted({invoice.number: invoice for invoice in issued}.values(), key=lambda invoice: invoice.number), december]
    ]


async def test_an_issued_invoice_is_made_again_to_the_byte_until_the_books_were_altered(db: Db, connection: Any) -> None:
    await billing.add_schedule(db, TENANT, date(2025, 1, 1), TERMS)
    first = await issue(db, HOW, TENANT, NOVEMBER)
    await invoices.book(db, "cli me", TENANT, "payment", parse_usd("0.10"), "bank 1", datetime.now(UTC))
    assert (await issue(db, HOW, TENANT, NOVEMBER)).document == first.document
    async with db.snapshot() as session:
        again = await billing.find_invoice(session, TENANT, NOVEMBER)
        assert again is not None
        assert await issued_again(session, HOW, again)
    await plant(connection, 3, first=900, start=datetime(2025, 11, 9, tzinfo=UTC), step=timedelta(0))
    async with db.snapshot() as session:
        assert not await issued_again(session, HOW, again)


async def test_what_is_owed_is_handed_on_from_month_to_month(db: Db) -> None:
    await billing.add_schedule(db, TENANT, date(2025, 1, 1), TERMS)
    await issue(db, HOW, TENANT, NOVEMBER)
    await invoices.book(db, "cli me", TENANT, "payment", parse_usd("0.1"), "bank 1", datetime(2025, 12, 5, tzinfo=UTC))
    await invoices.book(db, "cli me", TENANT, "credit", parse_usd("0.05"), "goodwill", datetime(2025, 12, 6, tzinfo=UTC))
    before, after = (await draft(db, NOVEMBER))["receivable"], (await draft(db, date(2025, 12, 1)))["receivable"]
    assert after["opening"] == json.loads((await issue(db, HOW, TENANT, NOVEMBER)).document)["receivable"]["closing"]
    assert (after["received"], after["credited"], before["received"]) == ("0.100000", "0.050000", "0.000000")
    assert Decimal(after["closing"]) == sum(Decimal(after[name]) for name in ("opening", "invoiced")) - Decimal("0.15")


async def test_what_cannot_be_invoiced_yet_says_why(db: Db, connection: Any) -> None:
    await billing.add_schedule(db, TENANT, date(2025, 1, 1), TERMS)
    await connection.execute(
        "update settlement set state = 'included', queued_at = '2025-11-20'"
        " where settlement_id = (select settlement_id from settlement where state = 'finalized' limit 1)"
    )
    with pytest.raises(Fault, match="not complete yet"):
        await issue(db, HOW, TENANT, NOVEMBER)
    await connection.execute("update settlement set state = 'finalized' where state = 'included'")
    await connection.execute("delete from rate")
    with pytest.raises(Fault, match="96 settlements of 2025-11 passed gas through and had no fresh dollar rate"):
        await issue(db, HOW, TENANT, NOVEMBER)
    assert (await draft(db))["unpriced_settlements"] == 96
    quoted = datetime(2025, 10, 24, tzinfo=UTC)
    await rates.record(db, Network(NETWORK), Rate(source="file:late", round="1", quoted_at=quoted, usd_e8=300_000_000_000))
    await issue(db, HOW, TENANT, NOVEMBER)
    with pytest.raises(Fault, match="in order"):
        await issue(db, HOW, TENANT, date(2025, 10, 1))


async def test_terms_are_never_edited_and_never_reach_back(db: Db, connection: Any) -> None:
    assert await billing.add_schedule(db, TENANT, date(2025, 6, 1), TERMS) is not None
    assert await billing.add_schedule(db, TENANT, date(2025, 6, 1), Terms()) is None
    assert await billing.add_schedule(db, TENANT, date(2025, 5, 1), Terms()) is None
    await issue(db, HOW, TENANT, NOVEMBER)
    assert await billing.add_schedule(db, TENANT, date(2025, 11, 30), Terms()) is None
    second = await billing.add_schedule(db, TENANT, date(2025, 12, 1), Terms())
    assert second is not None
    assert second.version == 2
    for statement in (
        "update fee_schedule set terms = '{}'",
        "delete from fee_schedule",
        "update invoice set number = 9",
        "delete from invoice",
        "truncate invoice",
    ):
        with pytest.raises(asyncpg.RestrictViolationError, match="append-only"):
            await connection.execute(statement)


@pytest.mark.parametrize("account", ["payee:0x" + "b" * 39 + "1", "payer:0x" + "a" * 38 + "2a"])
async def test_accounts_chain_over_the_days(db: Db, account: str) -> None:
    asset = f"{NETWORK}/{USDC}"
    closing = None
    moved = 0
    async with db.snapshot() as session:
        for number in range(30):
            day = day_of(NOVEMBER + timedelta(days=number), ZONE)
            opening = (await billing.opening(session, account, day.start)).get(asset, 0)
            assert closing in {None, opening}
            amounts = [movement.amount_atomic async for movement in billing.movements(session, account, day)]
            moved += len(amounts)
            closing = opening + sum(amounts)
        assert closing == (await billing.opening(session, account, month_of(NOVEMBER, ZONE).end))[asset]
    assert moved > 0


@pytest.mark.parametrize(("text", "micros"), [("12.50", 12_500_000), ("0.000001", 1), ("7", 7_000_000)])
def test_dollars_are_read_exactly(text: str, micros: int) -> None:
    assert parse_usd(text) == micros


@pytest.mark.parametrize("text", ["", "-1", "1e3", "0", "0.0000001", "1,50", "٣", ".", "1.٣"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ConfigFault):
        parse_usd(text)
