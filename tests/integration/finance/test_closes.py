"""Book days close when nothing of them is open; what comes later goes to the open day; writers never wait and never slip in."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from prometheus_client import REGISTRY

from facilitator.clock import SystemClock
from facilitator.errors import Fault
from facilitator.finance.closes import altered_days, ask_reopening, close_day, confirm_reopening
from facilitator.finance.seals import Sealer, verify
from facilitator.finance.settings import Settings
from facilitator.metrics import CLOSE_DUE
from facilitator.store import days
from facilitator.store.db import Db
from facilitator.units import Zone
from tests.fixtures.books import NETWORK, plant
from tests.fixtures.service import ServeFailed, ServeProcess

SETTINGS = Settings(booking_zone=Zone("America/New_York"))
DAY = date(2025, 11, 1)
NOON = datetime(2025, 11, 1, 16, tzinfo=UTC)
PAID = (
    "with p as (insert into journal_entry (book, phase, debit, credit, asset, amount_atomic, happened_at)"
    " values ('own', 'pending', 'receivable:a', 'fee_income:a', 'USD', $1, $2) returning *)"
    " insert into journal_entry (book, phase, debit, credit, asset, amount_atomic, happened_at, resolves)"
    " select book, 'posted', debit, credit, asset, amount_atomic, happened_at, entry_id from p"
)


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


async def reconciled(connection: Any) -> None:
    await connection.execute(
        "insert into reconciliation_run (network, from_block, to_block, to_hash, found, background) values ($1, 0, 1000000, 'x', 0, true)",
        NETWORK,
    )


async def book_days(connection: Any) -> dict[str, int]:
    rows = await connection.fetch("select book_day, count(*) from sealed_leaf where source = 'journal' group by 1 order by 1")
    return {row["book_day"].isoformat(): row["count"] for row in rows}


async def test_a_day_closes_with_its_totals_its_seal_and_its_link(db: Db, connection: Any) -> None:
    await plant(connection, 20, start=NOON, step=timedelta(minutes=10))
    await reconciled(connection)
    first = await close_day(db, SETTINGS, DAY, "ada")
    assert (first["day"], first["entries"], first["previous"], first["adjusts"]) == ("2025-11-01", 40, None, {})
    assert first["zone"] == "America/New_York"
    posted = [total for total in first["totals"] if total["phase"] == "posted"]
    assert [(total["debit"], total["credit"], total["entries"]) for total in posted] == [("payer", "payee", 16)]
    assert posted[0]["amount_atomic"] == str(sum(1000 + number for number in range(20) if number % 10 < 8))
    second = await close_day(db, SETTINGS, DAY + timedelta(days=1), "ada")
    assert second["previous"]["day"] == "2025-11-01"
    assert second["entries"] == 0
    assert await altered_days(db) == []
    assert (await verify(db, {})).wrong == ()


async def test_what_keeps_a_day_open_is_said_all_at_once(db: Db, connection: Any) -> None:
    await plant(connection, 20, start=NOON, step=timedelta(minutes=10))
    await connection.execute(
        "update settlement set state = 'included', queued_at = $1"
        " where settlement_id = (select settlement_id from settlement where state = 'finalized' limit 1)",
        NOON,
    )
    await connection.execute("insert into discrepancy (network, class, subject, expected, got) values ($1, 'R3', 'x', 'e', 'g')", NETWORK)
    await connection.execute(
        "insert into journal_entry (phase, debit, credit, asset, amount_atomic, happened_at)"
        " values ('pending', 'payer:a', 'payee:b', 'x', 1, $1)",
        NOON,
    )
    with pytest.raises(Fault) as told:
        await close_day(db, SETTINGS, DAY, "ada")
    for words in ("asked for at 2025-11-01 16:00:00 is not final", "1 entries are pending", "15 settlements were not held", "R3 (1)"):
        assert words in str(told.value)
    assert await connection.fetchval("select count(*) from day_event") == 0


async def test_what_is_pending_is_looked_for_from_the_last_close_but_one_on(db: Db, connection: Any) -> None:
    for number in range(3):
        await connection.execute(PAID, 5, NOON + timedelta(days=number))
        await close_day(db, SETTINGS, DAY + timedelta(days=number), "ada")
    pending = (
        "insert into journal_entry (book, phase, debit, credit, asset, amount_atomic, happened_at)"
        " values ('own', 'pending', 'receivable:a', 'fee_income:a', 'USD', 1, $1)"
    )
    await connection.execute(pending, NOON)  # late: of a day that is closed
    await connection.execute(pending, NOON + timedelta(days=3))
    async with db.session() as session:
        entries = [row[0] for row in await connection.fetch("select entry_id from journal_entry order by 1")]
        assert await days.resolved_before(session) == entries[2], "the first of the second day"
        end = NOON + timedelta(days=3, hours=12)
        assert await days.pending_before(session, end, 0) == await days.pending_before(session, end, entries[2]) == 2
    with pytest.raises(Fault, match="2 entries are pending"):
        await close_day(db, SETTINGS, DAY + timedelta(days=3), "ada")
    await ask_reopening(db, DAY + timedelta(days=2), "ada", "?")
    await confirm_reopening(db, DAY + timedelta(days=2), "bob")
    async with db.session() as session:
        assert await days.resolved_before(session) == entries[0], "of the days that are closed still"


async def test_days_close_in_order_once_and_when_they_are_over(db: Db, connection: Any) -> None:
    await connection.execute(PAID, 5, NOON)
    await close_day(db, SETTINGS, DAY, "ada")
    with pytest.raises(Fault, match="closed already"):
        await close_day(db, SETTINGS, DAY, "ada")
    with pytest.raises(Fault, match="2025-11-02 comes first"):
        await close_day(db, SETTINGS, DAY + timedelta(days=2), "ada")
    await connection.execute("set session_replication_role = replica")
    today = datetime.now(UTC).date()
    await connection.execute("update day_event set day = $1", today - timedelta(days=1))  # as if all days before had been closed
    with pytest.raises(Fault, match="must have passed"):
        await close_day(db, SETTINGS, today, "ada")


async def test_the_day_that_is_due_is_the_oldest_that_is_open(db: Db, connection: Any) -> None:
    sealer = Sealer(db, SystemClock(), SETTINGS)
    CLOSE_DUE.set(0)
    await sealer.show_due()
    assert REGISTRY.get_sample_value("facilitator_close_due_timestamp_seconds") == 0, "nothing was booked"
    await connection.execute(PAID, 5, NOON)
    await sealer.seal()
    end = datetime(2025, 11, 2, 4, tzinfo=UTC).timestamp()  # of that day in New York, before summer time ends
    for due in (end, end + 25 * 3600):  # the next day is an hour longer
        await sealer.show_due()
        assert REGISTRY.get_sample_value("facilitator_close_due_timestamp_seconds") == due + SETTINGS.close_grace_s
        await close_day(db, SETTINGS, DAY if due == end else DAY + timedelta(days=1), "ada")


async def test_what_comes_later_goes_to_the_open_day_with_a_reference(db: Db, connection: Any) -> None:
    await connection.execute(PAID, 5, NOON)
    await close_day(db, SETTINGS, DAY, "ada")
    await connection.execute(PAID, 7, NOON)
    await Sealer(db, SystemClock(), SETTINGS).seal()
    assert await book_days(connection) == {"2025-11-01": 2, "2025-11-02": 2}
    second = await close_day(db, SETTINGS, DAY + timedelta(days=1), "ada")
    assert second["adjusts"] == {"2025-11-01": 2}
    assert await altered_days(db) == []


async def test_reopening_takes_two_people_and_leaves_a_record(db: Db, connection: Any) -> None:
    await connection.execute(PAID, 5, NOON)
    await close_day(db, SETTINGS, DAY, "ada")
    with pytest.raises(Fault, match="it needs two people"):
        await confirm_reopening(db, DAY, "bob")
    await ask_reopening(db, DAY, "ada", "a fee was forgotten")
    with pytest.raises(Fault, match="it needs two people"):
        await confirm_reopening(db, DAY, "ada")
    with pytest.raises(Fault, match="only the last closed day"):
        await ask_reopening(db, DAY - timedelta(days=1), "ada", "?")
    assert await confirm_reopening(db, DAY, "bob") == "ada"
    await connection.execute(PAID, 9, NOON)
    again = await close_day(db, SETTINGS, DAY, "eve")
    assert (again["entries"], again["adjusts"]) == (4, {})
    assert again["previous"]["day"] == "2025-11-01"
    with pytest.raises(Fault, match="it needs two people"):
        await confirm_reopening(db, DAY, "bob")  # what ada asked for has been done
    events = [tuple(row) for row in await connection.fetch("select kind, actor, second, document from day_event order by event_id")]
    assert [event[:3] for event in events] == [("closed", "ada", None), ("reopened", "ada", "bob"), ("closed", "eve", None)]
    assert json.loads(events[1][3])["reason"] == "a fee was forgotten"
    assert await altered_days(db) == []


async def test_a_close_that_was_rewritten_is_named(db: Db, connection: Any) -> None:
    for number in range(2):
        await connection.execute(PAID, 5, NOON + timedelta(days=number))
        await close_day(db, SETTINGS, DAY + timedelta(days=number), "ada")
    await connection.execute("set session_replication_role = replica")
    await connection.execute("update day_event set document = replace(document, '\"5\"', '\"6\"') where event_id = 1")
    wrong = await altered_days(db)
    assert wrong == [
        "day 2025-11-01: how it was closed does not follow from what was done before it",
        "day 2025-11-01: its entries do not come to what it was closed with",
    ]


async def race(db: Db, database_url: str, connection: Any, seed: int) -> int:
    """Eight writers of a day against its close at a random moment; returns how many entries came after it."""
    chance = random.Random(seed)  # noqa: S311 - a race, repeated by its seed
    day = DAY + timedelta(days=seed)
    noon = NOON + timedelta(days=seed)
    booked: list[int] = []

    async def write(writer: int) -> None:
        own = random.Random(seed * 8 + writer)  # noqa: S311
        writing = await asyncpg.connect(database_url)
        for _ in range(4):
            await asyncio.sleep(own.random() * 0.2)
            amount, transaction = own.randrange(1, 10**6), writing.transaction()
            await transaction.start()
            await writing.execute(PAID, amount, noon)
            if own.random() < 0.2:
                await asyncio.sleep(own.random() * 0.02)
            if own.random() < 0.1:
                await transaction.rollback()
            else:
                await transaction.commit()
                booked.append(amount)
        await writing.close()

    async def close() -> dict[str, Any]:
        moment = chance.randrange(20)
        while len(booked) < moment:
            await asyncio.sleep(0.001)
        while True:
            try:
                return await close_day(db, SETTINGS, day, "ada")
            except Fault as fault:
                assert "cannot be sealed before transactions that still run" in str(fault)  # noqa: PT017 - the only way to be refused
                await asyncio.sleep(0.002)

    closing = asyncio.create_task(close())
    await asyncio.gather(*(write(writer) for writer in range(8)))
    document = await closing
    await Sealer(db, SystemClock(), SETTINGS).seal()
    landed = await connection.fetch(
        "select l.book_day, count(*) as entries, sum(e.amount_atomic)::bigint as amount from sealed_leaf l"
        " join journal_entry e on e.entry_id = l.row_id"
        " where l.source = 'journal' and e.phase = 'posted' and e.happened_at = $1 group by 1",
        noon,
    )
    by_day = {row["book_day"]: (row["entries"], row["amount"]) for row in landed}
    told = [total for total in document["totals"] if total["phase"] == "posted"]
    assert set(by_day) <= {day, day + timedelta(days=1)}, f"seed {seed}"
    assert sum(amount for _, amount in by_day.values()) == sum(booked), f"seed {seed}"
    on_the_day = await connection.fetchrow(
        "select count(*) as entries, coalesce(sum(e.amount_atomic), 0)::bigint as amount from sealed_leaf l"
        " join journal_entry e on e.entry_id = l.row_id where l.book_day = $1 and e.phase = 'posted'",
        day,
    )
    assert (on_the_day["entries"], str(on_the_day["amount"])) == ((told[0]["entries"], told[0]["amount_atomic"]) if told else (0, "0")), (
        f"seed {seed}: something landed in a closed day"
    )
    return int(by_day.get(day + timedelta(days=1), (0, 0))[0])


async def test_writers_against_a_close_at_random_moments(db: Db, database_url: str, connection: Any) -> None:
    late = [await race(db, database_url, connection, seed) for seed in range(12)]
    assert sum(count > 0 for count in late) >= 3, f"too few of the races were races: {late}"
    assert await altered_days(db) == []
    assert (await verify(db, {})).wrong == ()


async def test_closing_and_reopening_by_command(database_url: str, connection: Any, tmp_path: Path) -> None:
    await connection.execute(PAID, 5_000_000, NOON)
    finance = {"finance": {"booking_zone": "America/New_York"}}
    process = ServeProcess(
        tmp_path, database_url=database_url, rpc_url="http://127.0.0.1:1", relayer_keys=["0x" + "11" * 32], settings=finance
    )
    said = process.command("close", "2025-11-01", "--by", "ada")
    assert said.startswith("2025-11-01 is closed: 2 entries\n")
    assert "5.000000" in said
    with pytest.raises(ServeFailed, match="ended with 3"):
        process.command("close", "2025-11-01", "--by", "ada")
    process.command("reopen", "2025-11-01", "--by", "ada", "--reason", "a mistake")
    assert "ada asked, bob confirmed" in process.command("reopen", "2025-11-01", "--by", "bob", "--confirm")
    rows = json.loads(process.command("report", "days", "--format", "json"))
    assert [(row["what"], row["by"], row["second"]) for row in rows] == [("closed", "ada", ""), ("reopened", "ada", "bob")]
    assert "as they were sealed" in process.command("audit", "verify")
