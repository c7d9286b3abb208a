"""Migrations: in order, once each, each all or nothing, whoever runs them, beside whoever works; and which schema is served on."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
import pytest_asyncio

from facilitator.app import ensure_schema
from facilitator.devstack.children import StateDirectory
from facilitator.devstack.stack import Postgres
from facilitator.errors import ConfigFault, StoreFault
from facilitator.store import migrate as migrations
from facilitator.store.migrate import Migration, Standing, load_migrations, migrate, schema_standing

FIRST = Migration(1, "0001_pre_first", "create table first (id integer)")
SECOND = Migration(2, "0002_pre_second", "create table second (id integer); insert into first values (2)")
THIRD = Migration(3, "0003_post_third", "drop table second")
_numbers = itertools.count(1)


@pytest_asyncio.fixture
async def empty_url(postgres: Postgres) -> AsyncIterator[str]:
    """A database without any schema."""
    name = f"empty_{os.getpid()}_{next(_numbers)}"
    yield await postgres.create_database(name)
    await postgres.drop_database(name)


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the running release ship these migrations."""

    def ship(*shipped: Migration) -> None:
        monkeypatch.setattr(migrations, "load_migrations", lambda: list(shipped))

    return ship


async def fetch(url: str, sql: str) -> Sequence[Any]:
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(sql)]
    finally:
        await connection.close()


async def test_what_is_shipped_makes_the_schema_from_nothing(empty_url: str) -> None:
    shipped = [migration.name for migration in load_migrations()]
    assert await schema_standing(empty_url) == Standing(shipped, [])
    assert await migrate(empty_url) == shipped
    assert await schema_standing(empty_url) == Standing([], [])
    assert ("settlement",) in await fetch(empty_url, "select tablename::text from pg_tables where schemaname = 'public'")


def test_what_is_shipped_is_numbered_without_gap() -> None:
    assert [migration.version for migration in load_migrations()] == list(range(1, len(load_migrations()) + 1))


async def test_a_second_run_does_nothing(empty_url: str) -> None:
    await migrate(empty_url)
    assert await migrate(empty_url) == []


async def test_migrations_run_in_order_and_each_is_recorded_with_its_checksum(empty_url: str, release: Any) -> None:
    release(FIRST, SECOND)
    assert await migrate(empty_url) == [FIRST.name, SECOND.name]
    rows = await fetch(empty_url, "select version, name, checksum from schema_migration order by version")
    assert rows == [(1, FIRST.name, FIRST.checksum), (2, SECOND.name, SECOND.checksum)]


async def test_a_newer_release_applies_only_what_is_missing(empty_url: str, release: Any) -> None:
    release(FIRST)
    await migrate(empty_url)
    release(FIRST, SECOND, THIRD)
    assert await schema_standing(empty_url) == Standing([SECOND.name, THIRD.name], [])
    assert await migrate(empty_url) == [SECOND.name, THIRD.name]
    assert await fetch(empty_url, "select id from first") == [(2,)]


async def test_concurrent_migrators_apply_each_migration_once(empty_url: str, release: Any) -> None:
    release(FIRST, SECOND)
    applied = await asyncio.gather(*(migrate(empty_url) for _ in range(8)))
    assert sorted(map(len, applied)) == [0] * 7 + [2]
    assert await fetch(empty_url, "select count(*) from first") == [(1,)]


async def test_a_migration_that_fails_leaves_the_schema_as_those_before_it_made_it(empty_url: str, release: Any) -> None:
    release(FIRST, Migration(2, "0002_pre_broken", "create table half (id integer); select 1 / 0"), THIRD)
    with pytest.raises(
        StoreFault, match="0002_pre_broken failed, and the schema is as those before it left it: division by zero"
    ) as caught:
        await migrate(empty_url)
    assert caught.value.kind == "migration_failed"
    assert await schema_standing(empty_url) == Standing(["0002_pre_broken", THIRD.name], [])
    tables = await fetch(empty_url, "select tablename::text from pg_tables where schemaname = 'public' order by 1")
    assert tables == [("first",), ("schema_migration",)]


# --- under load


@asynccontextmanager
async def held(url: str, statement: str) -> AsyncIterator[None]:
    """Somebody else's transaction that has run this statement, and stays open."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute(statement)
            yield
    finally:
        await connection.close()


async def waited_for(url: str, kind: str) -> None:
    """Return when a session waits for a lock of this kind."""
    waiting = f"wait_event_type = 'Lock' and wait_event = '{kind}' and datname = current_database()"
    sql = f"select count(*) > 0 from pg_stat_activity where {waiting}"  # noqa: S608
    async with asyncio.timeout(60):
        while await fetch(url, sql) != [(True,)]:
            await asyncio.sleep(0.01)


async def test_whoever_holds_a_table_is_waited_for_briefly_and_again_while_others_go_on(empty_url: str, release: Any) -> None:
    release(FIRST)
    await migrate(empty_url)
    release(FIRST, Migration(2, "0002_pre_column", "alter table first add column more integer"))
    async with held(empty_url, "select from first"):
        running = asyncio.create_task(migrate(empty_url))
        await waited_for(empty_url, "relation")
        async with asyncio.timeout(
            60
        ):  # queued behind the migrator, until it lets go: for as long as the holder stays without its lock_timeout
            assert await fetch(empty_url, "select id from first") == []
        assert not running.done()
    assert await running == ["0002_pre_column"]


async def test_locks_that_are_never_to_be_had_end_the_migration(empty_url: str, release: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    release(FIRST)
    await migrate(empty_url)
    monkeypatch.setattr(migrations, "LOCK_TRIES_MAX", 2)
    release(FIRST, Migration(2, "0002_pre_column", "create table more (id integer); alter table first add column more integer"))
    async with held(empty_url, "select from first"):
        with pytest.raises(StoreFault, match="0002_pre_column failed.*lock timeout"):
            await migrate(empty_url)
    assert await fetch(empty_url, "select to_regclass('more') is null") == [(True,)]


async def test_a_statement_that_takes_too_long_ends_the_migration(empty_url: str, release: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "STATEMENT_S", 1)
    release(Migration(1, "0001_pre_slow", "select pg_sleep(3600)"))
    with pytest.raises(StoreFault, match="0001_pre_slow failed.*statement timeout"):
        await migrate(empty_url)


INDEX: Final = Migration(
    2,
    "0002_pre_index",
    "-- compatible from 0001\n-- outside a transaction\ndrop index concurrently if exists first_id;\n"
    "create index concurrently first_id on first (id);\n",
)


async def test_an_index_is_built_beside_writers_and_beside_other_migrators(empty_url: str, release: Any) -> None:
    """The builder waits for the writer's transaction; the migrators that wait for the builder must not be waited for by it."""
    release(FIRST)
    await migrate(empty_url)
    release(FIRST, INDEX)
    async with held(empty_url, "insert into first values (1)"):
        running = asyncio.gather(*(migrate(empty_url) for _ in range(3)))
        await waited_for(empty_url, "virtualxid")
        await asyncio.gather(*(fetch(empty_url, "insert into first values (2) returning id") for _ in range(2)))
    assert sorted(await running) == [[], [], [INDEX.name]]
    assert await fetch(empty_url, "select indisvalid from pg_index where indexrelid = 'first_id'::regclass") == [(True,)]


async def test_what_failed_outside_a_transaction_is_run_again_from_the_start(empty_url: str, release: Any) -> None:
    release(FIRST)
    await migrate(empty_url)
    await fetch(empty_url, "insert into first values (1), (1)")
    unique = Migration(2, INDEX.name, INDEX.sql.replace("create index", "create unique index"))
    release(FIRST, unique)
    with pytest.raises(StoreFault, match="0002_pre_index failed"):
        await migrate(empty_url)
    assert await fetch(empty_url, "select indisvalid from pg_index where indexrelid = 'first_id'::regclass") == [(False,)]
    await fetch(empty_url, "delete from first")
    assert await migrate(empty_url) == [INDEX.name]
    assert await fetch(empty_url, "select indisvalid from pg_index where indexrelid = 'first_id'::regclass") == [(True,)]


async def test_a_migration_that_was_altered_after_it_ran_is_refused(empty_url: str, release: Any) -> None:
    release(FIRST)
    await migrate(empty_url)
    release(Migration(1, FIRST.name, FIRST.sql + " -- edited"), SECOND)
    for run in (migrate, schema_standing):
        with pytest.raises(ConfigFault, match=FIRST.name) as caught:
            await run(empty_url)
        assert caught.value.kind == "schema_altered"
    assert await fetch(empty_url, "select version from schema_migration") == [(1,)]


def compatible(migration: Migration, version: int) -> Migration:
    return Migration(migration.version, migration.name, f"-- compatible from {version:04}\n{migration.sql}")


async def test_the_release_before_serves_on_a_schema_that_says_so(empty_url: str, release: Any) -> None:
    release(FIRST, compatible(SECOND, 1), compatible(THIRD, 1))
    await migrate(empty_url)
    release(FIRST)
    assert await schema_standing(empty_url) == Standing([], [SECOND.name, THIRD.name])
    assert await ensure_schema(empty_url, may_migrate=True) == []
    assert await migrate(empty_url) == []


@pytest.mark.parametrize(
    ("newer", "shipped"),
    [((SECOND,), (FIRST,)), ((compatible(SECOND, 1), THIRD), (FIRST,)), ((compatible(SECOND, 1), compatible(THIRD, 2)), (FIRST,)),
     ((compatible(Migration(3, "0003_pre_other", "select"), 1),), (FIRST, SECOND))],
    ids=["it says nothing", "the second says nothing", "the second needs the first", "one of ours is missing in between"],
)  # fmt: skip
async def test_no_other_newer_schema_is_served_on(
    empty_url: str, release: Any, newer: tuple[Migration, ...], shipped: tuple[Migration, ...]
) -> None:
    release(FIRST, *newer)
    await migrate(empty_url)
    release(*shipped)
    for run in (migrate, schema_standing):
        with pytest.raises(ConfigFault, match="which this release does not know") as caught:
            await run(empty_url)
        assert caught.value.kind == "schema_unknown"


async def test_a_record_of_migrations_without_the_column_is_read_and_gets_it(empty_url: str, release: Any) -> None:
    release(FIRST)
    await migrate(empty_url)
    await fetch(empty_url, "alter table schema_migration drop column compatible_from")
    release(FIRST, compatible(SECOND, 1))
    assert await schema_standing(empty_url) == Standing([SECOND.name], [])
    await migrate(empty_url)
    assert await fetch(empty_url, "select version, compatible_from from schema_migration order by 1") == [(1, None), (2, 1)]


async def test_a_database_of_a_newer_release_is_refused(empty_url: str, release: Any) -> None:
    release(FIRST, SECOND)
    await migrate(empty_url)
    release(FIRST)
    for run in (migrate, schema_standing):
        with pytest.raises(ConfigFault, match=f"{SECOND.name}, which this release does not know") as caught:
            await run(empty_url)
        assert caught.value.kind == "schema_unknown"


@pytest.mark.parametrize("run", [migrate, schema_standing])
async def test_a_server_that_cannot_be_reached_is_a_fault_of_the_store(tmp_path: Any, run: Any) -> None:
    with pytest.raises(StoreFault) as caught:
        await run(f"postgresql://nobody@/nothing?host={tmp_path}")
    assert caught.value.kind == "store_unavailable"
    assert caught.value.retryable


async def test_asking_what_is_missing_changes_nothing(empty_url: str) -> None:
    await schema_standing(empty_url)
    assert await fetch(empty_url, "select tablename from pg_tables where schemaname = 'public'") == []


async def test_an_owner_that_may_create_no_roles_migrates_without_them_and_whoever_may_adds_them_later() -> None:
    state = StateDirectory.open()
    postgres = Postgres(state)
    await postgres.start()
    root = None
    try:
        url = await postgres.create_database("modest")
        root = await asyncpg.connect(url)
        await root.execute("create role modest_owner login; grant all on schema public to modest_owner")
        assert await migrate(url.replace("postgres@", "modest_owner@")) == [migration.name for migration in load_migrations()]
        assert await root.fetch("select from pg_roles where rolname like 'facilitator%'") == []

        await root.execute("create role facilitator_app nologin; create role facilitator_auditor nologin")
        await root.execute("set role modest_owner; select grant_roles(); reset role")

        for role, table, privilege, granted in (
            ("facilitator_app", "settlement", "update", True),
            ("facilitator_app", "journal_entry", "insert", True),
            ("facilitator_app", "journal_entry", "update", False),
            ("facilitator_auditor", "journal_entry", "select", True),
            ("facilitator_auditor", "journal_entry", "insert", False),
        ):
            assert await root.fetchval("select has_table_privilege($1, $2, $3)", role, table, privilege) is granted, (
                role,
                table,
                privilege,
            )
    finally:
        if root is not None:
            await root.close()
        await postgres.stop()
        state.close()


async def test_a_server_that_has_one_connection_left_is_waited_for_like_one_that_has_none(empty_url: str) -> None:
    """The look for a pooler takes a second connection: what it does not get is no bug of ours, and no reason to start no more."""
    await migrate(empty_url)
    admin = await asyncpg.connect(empty_url)
    name = f"narrow_{os.getpid()}"
    try:
        await admin.execute(f"create role {name} login connection limit 1; grant select on schema_migration to {name}")
        narrow = empty_url.replace("//postgres@", f"//{name}@")
        with pytest.raises(StoreFault, match="TooManyConnections"):
            await schema_standing(narrow)
        await admin.execute(f"alter role {name} connection limit 9")
        assert (await schema_standing(narrow)).missing == []
    finally:
        await admin.execute(f"drop owned by {name}; drop role {name}")
        await admin.close()


async def test_a_server_that_stalls_is_no_pooler(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "CONNECT_S", 0.5)
    monkeypatch.setattr(migrations, "CLOSE_S", 0.1)
    parts = urlsplit(empty_url)
    (socket,) = Path(parse_qs(parts.query)["host"][0]).glob(".s.PGSQL.*[0-9]")
    stalled = asyncio.Event()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            if b"begin assert" in data:
                stalled.set()
            if not stalled.is_set():
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_unix_connection(str(socket))
        await asyncio.gather(forward(reader, server_writer), forward(server_reader, writer), return_exceptions=True)

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as relay:
        port = relay.sockets[0].getsockname()[1]
        with pytest.raises(StoreFault, match="TimeoutError"):
            await schema_standing(f"postgresql://postgres@127.0.0.1:{port}{parts.path}")
        assert stalled.is_set()
