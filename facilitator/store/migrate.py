"""Brings the schema up: `sql/migrations/NNNN_{pre,post}_what.sql` in order, forward only, each in a transaction.

`pre` adds what the next release needs, `post` removes what the last one left (expand, then contract). An advisory lock
keeps concurrent migrators apart; a checksum refuses a migration that was edited after it was applied.
"""

import hashlib
import re
from dataclasses import dataclass
from importlib import resources

import asyncpg

from facilitator.errors import ConfigFault, StoreFault

_FILE = re.compile(r"(?P<version>\d{4})_(?P<phase>pre|post)_(?P<what>[a-z0-9_]+)\.sql")
_LOCK = 0x783430325F6D6967  # "x402_mig": any constant that nobody else takes
_LEDGER = """
create table if not exists schema_migration (
    version    integer primary key,
    name       text not null,
    checksum   text not null,
    applied_at timestamptz not null default now()
)"""


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
    """Apply what is missing and return the names applied. Several migrators at once are safe.

    Raises ConfigFault when the database holds a migration we do not know or another text under a known number,
    StoreFault when it cannot be reached.
    """
    try:
        connection = await asyncpg.connect(url, timeout=10)
    except (OSError, asyncpg.PostgresError, TimeoutError) as error:
        raise StoreFault("store_unavailable", f"cannot reach the database to migrate it: {type(error).__name__}") from error
    try:
        applied: list[str] = []
        async with connection.transaction():
            await connection.execute("set local lock_timeout = '10s'; set local statement_timeout = '5min'")
            await connection.execute("select pg_advisory_xact_lock($1)", _LOCK)
            await connection.execute(_LEDGER)
            done = await _recorded(connection)
            for migration in load_migrations():
                if migration.version in done:
                    continue
                await connection.execute(migration.sql)
                await connection.execute(
                    "insert into schema_migration (version, name, checksum) values ($1, $2, $3)",
                    migration.version,
                    migration.name,
                    migration.checksum,
                )
                applied.append(migration.name)
        return applied
    except (OSError, asyncpg.PostgresError, TimeoutError) as error:
        raise StoreFault("migration_failed", f"the schema was left as it was: {error}") from error
    finally:
        await connection.close(timeout=5)


async def missing_migrations(url: str) -> list[str]:
    """Names that `migrate` would apply. Faults as `migrate`."""
    try:
        connection = await asyncpg.connect(url, timeout=10)
    except (OSError, asyncpg.PostgresError, TimeoutError) as error:
        raise StoreFault("store_unavailable", f"cannot reach the database to read its schema: {type(error).__name__}") from error
    try:
        if await connection.fetchval("select to_regclass('schema_migration')") is None:
            return [migration.name for migration in load_migrations()]
        done = await _recorded(connection)
        return [migration.name for migration in load_migrations() if migration.version not in done]
    finally:
        await connection.close(timeout=5)


async def _recorded(connection: "asyncpg.Connection[asyncpg.Record]") -> set[int]:
    """Versions on record, each held against the text we ship."""
    known = {migration.version: migration for migration in load_migrations()}
    rows = await connection.fetch("select version, name, checksum from schema_migration order by version")
    for row in rows:
        ours = known.get(row["version"])
        if ours is None:
            raise ConfigFault(
                "schema_unknown",
                f"the database holds migration {row['name']}, which this release does not know: run a newer release",
            )
        if ours.checksum != row["checksum"]:
            raise ConfigFault("schema_altered", f"migration {row['name']} was applied with another text than this release ships")
    return {row["version"] for row in rows}
