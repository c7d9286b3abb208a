"""Sealed history: no false alarm whatever writers do, and every alteration named, by whoever it was made."""

import asyncio
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from facilitator.clock import SystemClock
from facilitator.errors import ConfigFault
from facilitator.finance.seals import Sealer, read_heads, verify, write_bundle
from facilitator.finance.settings import Settings
from facilitator.store.db import Db
from facilitator.store.seals import Seal, record_event
from tests.fixtures.books import plant
from tests.fixtures.waiting import PATIENCE_S

_ENTRY = (
    "insert into journal_entry (phase, debit, credit, asset, amount_atomic, happened_at)"
    " values ('pending', 'payer:0xaa', 'payee:0xbb', 'eip155:84532/0xcc', $1, now())"
)

_BACK_DATED = (
    "insert into journal_entry (phase, debit, credit, asset, amount_atomic, booked_at)"
    " values ('pending', 'payer:0xaa', 'payee:0xbb', 'x', 1, now() - interval '2 days')"
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


def sealer(db: Db, **settings: Any) -> Sealer:
    return Sealer(db, SystemClock(), Settings(**settings))


async def history(db: Db, connection: Any) -> list[Seal]:
    """Three seals over entries and events."""
    made = []
    for number in range(3):
        await plant(connection, 10, first=10 * number, start=datetime.now(UTC), step=timedelta(0))
        await record_event(db, "settlements_exported", "ada", f"{number}")
        while (sealed := await sealer(db).seal()) is None:  # a transaction of the server's own may run just now
            await asyncio.sleep(0.01)
        made.append(sealed)
    return made


async def test_what_was_booked_is_sealed_once_and_verified(db: Db, connection: Any, tmp_path: Path) -> None:
    made = await history(db, connection)
    assert [(seal.seal_no, seal.leaves) for seal in made] == [(1, 21), (2, 21), (3, 21)]
    assert await sealer(db).seal() is None
    found = await verify(db, {seal.seal_no: seal.head for seal in made})
    assert (found.seals, found.leaves, found.head, found.wrong) == (3, 63, made[-1].head, ())
    file = tmp_path / "heads"
    await connection.execute(_ENTRY, 1)
    last = await sealer(db, seal_file=str(file)).seal()
    assert last is not None
    assert read_heads(file.read_text("ascii")) == {4: last.head}


async def test_eight_writers_with_rollbacks_and_slow_transactions_raise_no_false_alarm(db: Db, database_url: str) -> None:
    """Ids are drawn before commit and lost by rollbacks; every entry that was committed is sealed exactly once."""
    stop = asyncio.Event()
    committed = 0

    async def write(seed: int) -> None:
        nonlocal committed
        chance = random.Random(seed)  # noqa: S311 - a race, repeated by its seed
        connection = await asyncpg.connect(database_url)
        for _ in range(60):
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute(_ENTRY, chance.randrange(1, 10**9))
            if chance.random() < 0.2:
                await asyncio.sleep(chance.random() * 0.05)
            if chance.random() < 0.1:
                await transaction.rollback()
            else:
                await transaction.commit()
                committed += 1
        await connection.close()

    async def seal() -> int:
        count = 0
        while not stop.is_set():
            sealed = await sealer(db).seal()
            count += sealed is not None
            assert (await verify(db, {})).wrong == ()
        return count

    sealing = asyncio.create_task(seal())
    await asyncio.gather(*(write(seed) for seed in range(8)))
    stop.set()
    seals = await sealing
    await sealer(db).seal()
    found = await verify(db, {})
    assert found.wrong == ()
    assert found.leaves == committed > 400
    assert seals > 3


async def test_a_transaction_that_still_runs_keeps_its_place_open(db: Db, connection: Any, database_url: str) -> None:
    slow = await asyncpg.connect(database_url)
    transaction = slow.transaction()
    await transaction.start()
    await slow.execute(_ENTRY, 1)
    await connection.execute(_ENTRY, 2)
    assert await sealer(db).seal() is None, "what came after a transaction that still runs was sealed before it"
    await transaction.commit()
    sealed = await sealer(db).seal()
    assert sealed is not None
    assert sealed.leaves == 2
    await slow.close()


@pytest.mark.parametrize(
    ("sql", "named"),
    [
        ("update journal_entry set amount_atomic = amount_atomic + 1 where entry_id = 7", ["journal 7: it was altered after seal 1"]),
        ("update journal_entry set booked_at = booked_at + interval '1 us' where entry_id = 7", ["journal 7: it was altered after seal 1"]),
        ("update audit_event set actor = 'eve' where event_id = 2", ["audit 2: it was altered after seal 2"]),
        ("delete from journal_entry where entry_id = 7", ["journal 7: it is gone; seal 1 held it"]),
        ("update sealed_leaf set leaf = sha256('x') where row_id = 7 and source = 'journal'", ["journal 7: it was altered after seal 1"]),
        (
            "update sealed_leaf set book_day = book_day - 1 where row_id = 7 and source = 'journal'",
            ["journal 7: it was altered after seal 1"],
        ),
        ("delete from sealed_leaf where seal_no = 2 and position = 20", ["seal 2: its root is not that of its 20 leaves"]),
        ("update seal set root = sha256('x') where seal_no = 2", ["seal 2: its root is not", "seal 2: its head does not follow"]),
        ("delete from seal where seal_no = 3", ["its seal 3 is gone"] * 21),
        (
            _BACK_DATED,
            ["journal 61: it is of 20"],
        ),
    ],
)
async def test_whatever_a_superuser_changes_is_named(db: Db, connection: Any, sql: str, named: list[str]) -> None:
    await history(db, connection)
    await connection.execute("set session_replication_role = replica")
    assert not (await connection.execute(sql)).endswith(" 0")
    wrong = (await verify(db, {})).wrong
    assert len(wrong) == len(named), wrong
    assert all(words in line for words, line in zip(named, wrong, strict=True)), wrong


async def test_a_tail_that_was_cut_and_sealed_again_does_not_agree_with_a_head_that_left(db: Db, connection: Any) -> None:
    made = await history(db, connection)
    await connection.execute("set session_replication_role = replica")
    await connection.execute(
        "delete from journal_entry where entry_id in (select row_id from sealed_leaf where seal_no = 3 and position = 0)"
    )
    await connection.execute("delete from sealed_leaf where seal_no >= 2")
    await connection.execute("delete from seal where seal_no >= 2")
    again = await sealer(db).seal()
    assert again is not None
    assert (await verify(db, {})).wrong == (), "the database alone looks sound"
    wrong = (await verify(db, {seal.seal_no: seal.head for seal in made})).wrong
    assert [line.split(":")[0] for line in wrong] == ["seal 2", "seal 3"]
    assert "what left the database was" in wrong[0]
    assert "it is gone" in wrong[1]


async def test_an_entry_that_was_dated_back_and_sealed_is_named(db: Db, connection: Any) -> None:
    await history(db, connection)
    await connection.execute(_BACK_DATED)
    await sealer(db).seal()
    (wrong,) = (await verify(db, {})).wrong
    assert wrong.startswith("journal 61: it says 20")
    assert wrong.endswith("came after seal 3: back-dated")


async def test_a_bundle_is_checked_by_a_script_that_needs_nothing(db: Db, connection: Any, tmp_path: Path) -> None:
    made = await history(db, connection)
    await record_event(db, "note", "ada", 'Grüße "漢字"\n\u2028\x85')
    last = await sealer(db).seal()
    assert last is not None
    newest = await write_bundle(db, tmp_path)
    assert newest is not None
    assert newest.head == last.head

    def check(*given: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-I", tmp_path / "verify.py", *given], capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        return done.returncode, done.stdout.strip()

    assert check() == check("4", last.head.hex()) == check("2", made[1].head.hex()) == (0, "every record is as it was sealed")
    assert check("3", "00" * 32) == (1, f"seal 3: its head is {made[2].head.hex()}, not the one given")
    assert check("9", "00" * 32) == (1, "seal 9 is not here")
    records = tmp_path / "records.jsonl"
    whole = records.read_text("utf-8")
    records.write_text(whole.replace('"1007"', '"1008"', 1), "utf-8")
    assert check() == (1, "seal 1: a record is not as it was sealed")
    records.write_text("".join(whole.splitlines(keepends=True)[:50]), "utf-8")
    assert check()[0] == 1


def test_heads_that_are_none_are_refused() -> None:
    with pytest.raises(ConfigFault, match="number and its head"):
        read_heads("one two three")
    with pytest.raises(ConfigFault, match="number and its head"):
        read_heads("1 xyz")


async def test_a_backlog_of_several_seals_is_no_alarm(db: Db, connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger that is older than its seals, or a sealer that was away."""
    monkeypatch.setattr("facilitator.finance.seals.LEAVES_MAX", 6)
    await plant(connection, 10, start=datetime(2025, 11, 1, tzinfo=UTC), step=timedelta(hours=1))
    for _ in range(4):
        assert (await verify(db, {})).wrong == ()
        assert await sealer(db).seal() is not None
    found = await verify(db, {})
    assert (found.wrong, found.leaves, found.seals) == ((), 20, 4)
    await connection.execute(_BACK_DATED)
    await sealer(db).seal()
    assert "back-dated" in (await verify(db, {})).wrong[0]
