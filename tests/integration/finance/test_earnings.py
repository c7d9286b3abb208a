"""A counted day is what its reports add up to; what cannot be priced has no figure; later terms and rates count it anew."""

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import asyncpg
import pytest

from facilitator.clock import SystemClock
from facilitator.devstack.stack import Postgres
from facilitator.domain.periods import Period, day_of, day_start, local_date
from facilitator.domain.schedules import Terms, Tier
from facilitator.finance import export, views
from facilitator.finance.detail import COLUMNS
from facilitator.finance.earnings import Earnings, gas_by_day
from facilitator.finance.export import Asked
from facilitator.finance.gas import COLUMNS as GAS_COLUMNS
from facilitator.finance.invoices import add_terms
from facilitator.finance.settings import Settings
from facilitator.schemes.usdc import USDC
from facilitator.store import earnings
from facilitator.store import views as rows
from facilitator.store.db import Db, Session
from facilitator.store.earnings import Earned
from facilitator.units import UTC_ZONE, Zone, parse_zone
from tests.fixtures.busy import Busy, fill

DECIMALS: Final = {(token.network, token.address): token.decimals for token in USDC}
SETTINGS: Final = Settings(close_grace_s=0.0)


@pytest.fixture(scope="module")
def filled() -> list[tuple[str, Busy]]:
    """The busy ledger, once it is there."""
    return []


@pytest.fixture
async def ledger(postgres: Postgres, database_template: str, filled: list[tuple[str, Busy]]) -> AsyncIterator[tuple[Db, Any, Busy]]:
    """A copy of one busy ledger."""
    if not filled:
        url = await postgres.create_database("earnings_filled", database_template)
        filled.append((url, await fill(url, now=datetime.now(UTC), a_day=6)))
    url = await postgres.create_database("earnings", "earnings_filled")
    db = await Db.connect(url, connections_max=4)
    connection = await asyncpg.connect(url)
    yield db, connection, filled[0][1]
    await connection.close()
    await db.close()
    await postgres.drop_database("earnings")


def counting(db: Db, zone: Zone = UTC_ZONE) -> Earnings:
    return Earnings(db, SystemClock(), replace(SETTINGS, booking_zone=zone), DECIMALS)


def asked(zone: Zone, period: Period, report: export.Report) -> Asked:
    return Asked(
        report=report, period=period, zone=zone, booking_zone=zone, tenant_id=None, format="csv", decimals=DECIMALS,
        rate_stale_s=SETTINGS.rate_stale_s,
    )  # fmt: skip


async def by_the_reports(db: Db, zone: Zone, day: date) -> Earned:
    """The day as the settlement detail report and the gas report tell it, row by row."""
    period = day_of(day, zone)
    async with db.snapshot() as session:
        fees = [dict(zip((each.name for each in COLUMNS), row.cells, strict=True))
                async for row in export.SETTLEMENTS.rows(session, asked(zone, period, export.SETTLEMENTS))]  # fmt: skip
        gas = [dict(zip((each.name for each in GAS_COLUMNS), row.cells, strict=True))
               async for row in export.GAS.rows(session, asked(zone, period, export.GAS))]  # fmt: skip
    spent = [row["gas_cost_usd"] for row in gas if str(row["debit"]).startswith("gas_expense:")]
    charged = [row["fee_usd"] for row in fees if row["fee_schedule_version"] is not None]
    unpriced, unrated = charged.count(None), spent.count(None)
    return Earned(
        day=day,
        fees_micros=None if unpriced else sum(_micros(each) for each in charged),
        unpriced=unpriced,
        gas_micros=None if unrated else sum(_micros(each) for each in spent),
        unrated=unrated,
    )


def _micros(usd: Any) -> int:
    return int(Decimal(usd) * 10**6)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/Los_Angeles"])
async def test_a_counted_day_is_what_its_reports_add_up_to(ledger: tuple[Db, Any, Busy], zone: str) -> None:
    db, connection, busy = ledger
    dark_from = day_start(busy.closed[9], UTC_ZONE)
    await connection.execute("delete from rate where quoted_at > $1 and quoted_at < $1 + interval '12 hours'", dark_from)
    local = parse_zone(zone)
    counted = await counting(db, local).count()
    found = await earnings.earned(db, local, busy.closed[0] - timedelta(days=2), busy.today)
    assert counted == len(found) >= len(busy.closed)
    assert found == [await by_the_reports(db, local, each.day) for each in found]
    assert sum(each.fees_micros or 0 for each in found) > 0
    assert sum(each.gas_micros or 0 for each in found) > 0
    dark = [each for each in found if each.unrated]
    assert dark
    assert {each.gas_micros for each in dark} == {each.margin_micros for each in dark} == {None}
    assert await counting(db, local).count() == 0


async def test_gas_by_day_is_the_journal_s_whatever_is_counted(ledger: tuple[Db, Any, Busy]) -> None:
    db, connection, busy = ledger
    first, last = busy.closed[0], busy.today
    journal = await rows.gas(db, Period(day_start(first, UTC_ZONE), day_start(last + timedelta(days=1), UTC_ZONE)), UTC_ZONE)
    assert await gas_by_day(db, UTC_ZONE, first, last) == journal
    await counting(db).count()
    assert await gas_by_day(db, UTC_ZONE, first, last) == journal
    await connection.execute("update earnings_gas set amount_wei = amount_wei + 1 where day = $1", busy.closed[3])
    assert await gas_by_day(db, UTC_ZONE, first, last) != journal, "counted days are read where they were counted"


async def test_a_day_is_counted_when_nothing_of_it_can_be_booked_any_more(ledger: tuple[Db, Any, Busy]) -> None:
    db, connection, busy = ledger
    await connection.execute(
        "update settlement set state = 'included', closed = false where settlement_id = "
        "(select settlement_id from settlement where state = 'finalized' and queued_at >= $1 order by queued_at limit 1)",
        day_start(busy.closed[5], UTC_ZONE),
    )
    await counting(db).count()
    found = await earnings.earned(db, UTC_ZONE, busy.closed[0], busy.today)
    assert [each.day for each in found] == list(busy.closed[:5])


async def test_terms_that_reach_back_count_their_days_anew(ledger: tuple[Db, Any, Busy]) -> None:
    db, connection, busy = ledger
    await connection.execute("insert into tenant (tenant_id) values ('late')")
    await connection.execute("update settlement set tenant_id = 'late' where tenant_id = 'map-tiles'")
    await counting(db).count()
    before = await earnings.earned(db, UTC_ZONE, busy.closed[0], busy.today)
    since = busy.closed[-4]
    assert await add_terms(db, "ada", "late", since, Terms(tiers=(Tier(flat_micros=1_000_000),))) is not None
    kept = await earnings.earned(db, UTC_ZONE, busy.closed[0], busy.today)
    assert kept == [each for each in before if each.day < since], "what is no longer right is not shown"
    assert await counting(db).count() == len(before) - len(kept)
    after = await earnings.earned(db, UTC_ZONE, busy.closed[0], busy.today)
    assert after == [await by_the_reports(db, UTC_ZONE, each.day) for each in after]
    assert sum(each.fees_micros or 0 for each in after) > sum(each.fees_micros or 0 for each in before)


async def test_terms_that_come_while_a_day_is_priced_count_it_anew(ledger: tuple[Db, Any, Busy]) -> None:
    db, connection, busy = ledger
    await connection.execute("insert into tenant (tenant_id) values ('late')")
    await connection.execute("update settlement set tenant_id = 'late' where tenant_id = 'map-tiles'")
    since = busy.closed[0]

    class Overtaken(Earnings):
        async def _fees(self, session: Session, period: Period) -> tuple[int, int]:
            found = await super()._fees(session, period)
            if period == day_of(since, UTC_ZONE):
                assert await add_terms(db, "ada", "late", since, Terms(tiers=(Tier(flat_micros=1_000_000),))) is not None
            return found

    await Overtaken(db, SystemClock(), SETTINGS, DECIMALS).count()
    assert since not in {each.day for each in await earnings.earned(db, UTC_ZONE, busy.closed[0], busy.today)}, "what is no longer right"
    assert await counting(db).count() == 1
    after = await earnings.earned(db, UTC_ZONE, busy.closed[0], busy.today)
    assert after == [await by_the_reports(db, UTC_ZONE, each.day) for each in after]


async def test_a_rate_that_comes_late_gives_a_day_its_figure(ledger: tuple[Db, Any, Busy]) -> None:
    db, connection, busy = ledger
    gone = await connection.fetch("delete from rate returning *")
    await counting(db).count()
    found = await earnings.earned(db, UTC_ZONE, busy.closed[0], busy.today)
    assert {each.gas_micros for each in found if each.unrated} == {None}
    assert len([each for each in found if each.unrated]) >= len(busy.closed)
    assert await counting(db).count() == 0
    await connection.executemany(
        "insert into rate (network, quoted_at, source, round, usd_e8) values ($1, $2, $3, $4, $5::text::numeric)",
        [(row["network"], row["quoted_at"], row["source"], row["round"], str(row["usd_e8"])) for row in gone],
    )
    assert await counting(db).count() == len(found)
    assert [each.unrated for each in await earnings.earned(db, UTC_ZONE, busy.closed[0], busy.today)] == [0] * len(found)


async def test_the_overview_has_the_counted_days_of_its_month(ledger: tuple[Db, Any, Busy]) -> None:
    db, _, busy = ledger
    assert (await views.overview(db, UTC_ZONE)).earned == []
    await counting(db).count()
    found = await views.overview(db, UTC_ZONE)
    assert [each.day for each in found.earned][: len(busy.closed)] == list(busy.closed)
    assert local_date(datetime.now(UTC), UTC_ZONE) not in {each.day for each in found.earned}
    assert Counter(each.margin_micros is None for each in found.earned)[True] == 0
