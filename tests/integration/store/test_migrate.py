"""Migrations: in order, once each, all or nothing, whoever runs them; and nothing runs on a schema that it does not know."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from facilitator.devstack.children import StateDirectory
from facilitator.devstack.stack import Postgres
from facilitator.errors import ConfigFault, StoreFault
from facilitator.store import migrate as migrations
from facilitator.store.migrate import Migration, load_migrations, migrate, missing_migrations

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
    assert await missing_migrations(empty_url) == shipped
    assert await migrate(empty_url) == shipped
    assert await missing_migrations(empty_url) == []
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
    assert await missing_migrations(empty_url) == [SECOND.name, THIRD.name]
    assert await migrate(empty_url) == [SECOND.name, THIRD.name]
    assert await fetch(empty_url, "select id from first") == [(2,)]


async def test_concurrent_migrators_apply_each_migration_once(empty_url: str, release: Any) -> None:
    release(FIRST, SECOND)
    applied = await asyncio.gather(*(migrate(empty_url) for _ in range(8)))
    assert sorted(map(len, applied)) == [0] * 7 + [2]
    assert await fetch(empty_url, "select count(*) from first") == [(1,)]


async def test_a_migration_that_fails_leaves_the_schema_as_it_was(empty_url: str, release: Any) -> None:
    release(FIRST, Migration(2, "0002_pre_broken", "create table half (id integer); select 1 / 0"))
    with pytest.raises(StoreFault, match="left as it was: division by zero") as caught:
        await migrate(empty_url)
    assert caught.value.kind == "migration_failed"
    assert await fetch(empty_url, "select tablename from pg_tables where schemaname = 'public'") == []


async def test_a_migration_that_was_altered_after_it_ran_is_refused(empty_url: str, release: Any) -> None:
    release(FIRST)
    await migrate(empty_url)
    release(Migration(1, FIRST.name, FIRST.sql + " -- edited"), SECOND)
    for run in (migrate, missing_migrations):
        with pytest.raises(ConfigFault, match=FIRST.name) as caught:
            await run(empty_url)
        assert caught.value.kind == "schema_altered"
    assert await fetch(empty_url, "select version from schema_migration") == [(1,)]


async def test_a_database_of_a_newer_release_is_refused(empty_url: str, release: Any) -> None:
    release(FIRST, SECOND)
    await migrate(empty_url)
    release(FIRST)
    for run in (migrate, missing_migrations):
        with pytest.raises(ConfigFault, match=f"{SECOND.name}, which this release does not know") as caught:
            await run(empty_url)
        assert caught.value.kind == "schema_unknown"


@pytest.mark.parametrize("run", [migrate, missing_migrations])
async def test_a_server_that_cannot_be_reached_is_a_fault_of_the_store(tmp_path: Any, run: Any) -> None:
    with pytest.raises(StoreFault) as caught:
        await run(f"postgresql://nobody@/nothing?host={tmp_path}")
    assert caught.value.kind == "store_unavailable"
    assert caught.value.retryable


async def test_asking_what_is_missing_changes_nothing(empty_url: str) -> None:
    await missing_migrations(empty_url)
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
