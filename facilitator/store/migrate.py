"""Brings the schema up under load: `sql/migrations/NNNN_{pre,post}_what.sql` in order, forward only, each by itself.

`pre` adds what the next release needs, `post` removes what the last one left (expand, then contract), so that the release
before serves on while replicas are replaced. Each migration says so in a line of its own, which is recorded with it:
`-- compatible from 0013` means that releases that know migrations up to that one may serve on this schema. A second
line, `-- outside a transaction`, is for statements that Postgres refuses within one (`create index concurrently`): each is run
by itself, and again from the first one after a failure. Locks are waited for briefly and asked for again, for whoever waits for
one keeps all later statements on that table waiting. A session's advisory lock keeps concurrent migrators apart; a checksum
refuses a migration that was edited after it was applied.
"""

import asyncio
import hashlib
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Final

import asyncpg

from facilitator.domain.backoff import Backoff
from facilitator.errors import ConfigFault, StoreFault

_FILE = re.compile(r"(?P<version>\d{4})_(?P<phase>pre|post)_(?P<what>[a-z0-9_]+)\.sql")
_COMPATIBLE = re.compile(r"^-- compatible from (?P<version>\d{4})$", re.MULTILINE)
_OUTSIDE = re.compile(r"^-- outside a transaction$", re.MULTILINE)
_STATEMENT_END = re.compile(r";\s*\n")
_LOCK = 0x783430325F6D6967  # "x402_mig": any constant that nobody else takes
_LEDGER = """
create table if not exists schema_migration (
    version    integer primary key,
    name       text not null,
    checksum   text not null,
    applied_at timestamptz not null default now()
);
alter table schema_migration add column if not exists compatible_from integer"""

CLOSE_S: Final = 5.0
"""Longest good-bye to the database, which may have stalled."""
CONNECT_S: Final = 10.0
"""Longest wait for a connection."""
TURN_S: Final = 3600.0
"""Longest wait for another migrator to end."""
_TURN_POLL_S: Final = 0.2
LOCK_WAIT_MS: Final = 500
"""Longest wait for a lock on a table: so long at most do the statements of a running service wait behind us."""
LOCK_TRIES_MAX: Final = 40
"""Attempts at a migration whose locks are not to be had."""
_PAUSE_S: Final = 0.2
_PAUSE_MAX_S: Final = 5.0
"""First and longest pause between two of them."""
STATEMENT_S: Final = 60
"""Longest that a statement within a transaction may take: it holds locks all the while."""
OUTSIDE_S: Final = 3600
"""Longest that a statement outside one may take: it holds up nobody."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of `sql/migrations`."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text, in hex."""
        return hashlib.sha256(self.sql.encode()).hexdigest()

    @property
    def compatible_from(self) -> int | None:
        """Releases that know migrations up to this one serve on the schema with it. None: only those that know it."""
        match = _COMPATIBLE.search(self.sql)
        return None if match is None else int(match["version"])

    @property
    def outside(self) -> bool:
        """Is it run statement by statement, outside a transaction?"""
        return _OUTSIDE.search(self.sql) is not None


@dataclass(frozen=True, slots=True)
class Standing:
    """How a database's schema stands to this release."""

    missing: list[str]
    """Migrations of ours that it lacks, in order."""
    ahead: list[str]
    """Migrations of a newer release that let this one serve."""


def load_migrations() -> list[Migration]:
    """All migrations that this release knows, in order."""
    files = resources.files("facilitator.store").joinpath("sql/migrations").iterdir()
    found = [
        Migration(int(match["version"]), file.name.removesuffix(".sql"), file.read_text("utf-8"))
        for file in files
        if (match := _FILE.fullmatch(file.name))
    ]
    return sorted(found, key=lambda migration: migration.version)


async def migrate(url: str) -> list[str]:
    """Apply what is missing and return the names applied. Several migrators at once are safe, a running service too.

    Raises ConfigFault when the database holds a migration that neither we know nor it lets us serve on, or another text
    under a known number; StoreFault when it cannot be reached, or a migration failed: those before it stay.
    """
    async with _connected(url, "migrate it") as connection:
        await _take_turn(connection)
        doing = "the record of migrations"
        try:
            await connection.execute(_LEDGER)
            missing = (await _stand(connection)).missing
            for migration in load_migrations():
                if (doing := migration.name) in missing:
                    await _apply(connection, migration)
        except (OSError, asyncpg.PostgresError, TimeoutError) as error:
            raise StoreFault("migration_failed", f"{doing} failed, and the schema is as those before it left it: {error}") from error
    return missing


async def schema_standing(url: str) -> Standing:
    """What `migrate` would apply, and what is ahead of us. Faults as `migrate`."""
    async with _connected(url, "read its schema") as connection:
        if await connection.fetchval("select to_regclass('schema_migration')") is None:
            return Standing([migration.name for migration in load_migrations()], [])
        return await _stand(connection)


@asynccontextmanager
async def _connected(url: str, purpose: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    try:
        connection = await asyncpg.connect(url, timeout=CONNECT_S)
        try:
            await _keep_session(url, connection)
            yield connection
        finally:
            await connection.close(timeout=CLOSE_S)
    except (OSError, asyncpg.PostgresError, TimeoutError) as error:
        raise StoreFault("store_unavailable", f"cannot reach the database to {purpose}: {type(error).__name__}") from error


async def _keep_session(url: str, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Refuse a pooler that gives each transaction whatever session is free: another one's prepared statements would be run.

    A second connection's transaction takes the session that was just given back; ours must be the same as before.
    """
    ours = secrets.token_hex(8)
    await connection.execute(f"set facilitator.session = '{ours}'")
    other = await asyncpg.connect(url, timeout=CONNECT_S)
    try:
        await other.execute("begin")
        await connection.execute(f"do $$ begin assert current_setting('facilitator.session', true) = '{ours}'; end $$", timeout=CONNECT_S)
    except (asyncpg.AssertError, TimeoutError) as error:
        if isinstance(error, TimeoutError):
            await other.execute("select 1", timeout=CONNECT_S)  # a server that stalls does not answer this either
        raise ConfigFault(
            "transaction_pooling",
            "database.url leads through a pooler that gives each transaction another session: connect directly, or set pool_mode = session",
        ) from None
    finally:
        await other.close(timeout=CLOSE_S)


async def _take_turn(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """One migrator at a time, until its connection closes.

    Asked for again and again: who waits for the lock within a statement holds a snapshot, and an index that another one builds
    concurrently waits for every snapshot.
    """
    try:
        async with asyncio.timeout(TURN_S):
            while not await connection.fetchval("select pg_try_advisory_lock($1)", _LOCK):  # noqa: ASYNC110 (another process holds it)
                await asyncio.sleep(_TURN_POLL_S)
    except TimeoutError:
        raise StoreFault("migration_failed", f"another migrator has not ended within {TURN_S:g} s") from None


async def _apply(connection: "asyncpg.Connection[asyncpg.Record]", migration: Migration) -> None:
    """Apply one migration; again, while somebody else holds the locks that it needs."""
    pause = Backoff(_PAUSE_S, _PAUSE_MAX_S)
    for attempt in range(1, LOCK_TRIES_MAX + 1):
        try:
            await (_apply_outside if migration.outside else _apply_within)(connection, migration)
            return
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            if attempt == LOCK_TRIES_MAX:
                raise
            await asyncio.sleep(pause.next_s())


async def _apply_within(connection: "asyncpg.Connection[asyncpg.Record]", migration: Migration) -> None:
    """All of it and its record in one transaction."""
    async with connection.transaction():
        await connection.execute(f"set local lock_timeout = '{LOCK_WAIT_MS}ms'; set local statement_timeout = '{STATEMENT_S}s'")
        await connection.execute(migration.sql)
        await _record(connection, migration)


async def _apply_outside(connection: "asyncpg.Connection[asyncpg.Record]", migration: Migration) -> None:
    """Statement by statement, then its record; what takes long here takes no lock that others wait for."""
    await connection.execute(f"set lock_timeout = 0; set statement_timeout = '{OUTSIDE_S}s'")
    for statement in _STATEMENT_END.split(migration.sql + "\n"):
        if statement.strip():
            await connection.execute(statement)
    await _record(connection, migration)


async def _record(connection: "asyncpg.Connection[asyncpg.Record]", migration: Migration) -> None:
    await connection.execute(
        "insert into schema_migration (version, name, checksum, compatible_from) values ($1, $2, $3, $4)",
        migration.version,
        migration.name,
        migration.checksum,
        migration.compatible_from,
    )


async def _stand(connection: "asyncpg.Connection[asyncpg.Record]") -> Standing:
    """What is on record against what we ship. The column is read as JSON, for a ledger of old has none."""
    known = {migration.version: migration for migration in load_migrations()}
    rows = await connection.fetch(
        "select version, name, checksum, (to_jsonb(m) ->> 'compatible_from')::integer as compatible_from"
        " from schema_migration m order by version"
    )
    done = {row["version"] for row in rows}
    ahead = []
    for row in rows:
        ours = known.get(row["version"])
        if ours is None:
            if row["compatible_from"] not in known or not done.issuperset(known):
                raise ConfigFault(
                    "schema_unknown",
                    f"the database holds migration {row['name']}, which this release does not know: run a newer release",
                )
            ahead.append(row["name"])
        elif ours.checksum != row["checksum"]:
            raise ConfigFault("schema_altered", f"migration {row['name']} was applied with another text than this release ships")
    return Standing([migration.name for version, migration in known.items() if version not in done], ahead)
