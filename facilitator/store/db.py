"""The door to Postgres: pool, named queries, codecs, and the translation of its errors.

Queries stand in `sql/queries/*.sql`, each under `-- name: what :kind`; kinds are `one`, `optional`, `many` and
`execute`. Nothing here builds SQL. Amounts travel as text and are `int` on both sides, whatever their size.
"""

import re
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from importlib import resources
from time import monotonic
from types import TracebackType
from typing import Any, Final, LiteralString, Self, TypeVar, cast

import asyncpg

from facilitator.errors import StoreFault
from facilitator.metrics import DATABASE_CONNECTIONS, DATABASE_CONNECTIONS_MAX, DATABASE_SECONDS, series

Row = TypeVar("Row")

_NAME = re.compile(r"^-- name: (?P<name>[a-z0-9_]+) :(?P<kind>one|optional|many|execute)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Query:
    """One named statement of a `.sql` file."""

    name: str
    kind: str
    sql: LiteralString


def load_queries(module: str) -> dict[str, Query]:
    """All statements of `sql/queries/<module>.sql` by name."""
    text = resources.files("facilitator.store").joinpath(f"sql/queries/{module}.sql").read_text("utf-8")
    heads = list(_NAME.finditer(text))
    ends = [head.start() for head in heads[1:]] + [len(text)]
    return {
        head["name"]: Query(head["name"], head["kind"], text[head.end() : end].strip().removesuffix(";"))
        for head, end in zip(heads, ends, strict=True)
    }


class ConstraintViolated(Exception):
    """A write broke a rule of the schema; `constraint` names it. The caller knows which ones may happen."""

    def __init__(self, constraint: str) -> None:
        super().__init__(constraint)
        self.constraint = constraint


NOT_REACHED: Final = "store_unreached"
"""Kind of the StoreFault when no connection was to be had: nothing was done."""
ROLLED_BACK: Final = "store_rolled_back"
"""Kind of the StoreFault when Postgres itself undid the statement (a deadlock): nothing was done, and it may be tried again."""
_LONG_READ_S: Final = 600
"""Longest that one read of a report may take."""
_STREAM_ROWS: Final = 1_000
"""Rows that a stream holds at a time."""
_IN_DOUBT: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # what a statement meets on a connection that is just being lost
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.LockNotAvailableError,
    asyncpg.ReadOnlySQLTransactionError,
    ConnectionError,
    TimeoutError,
    OSError,
)


class _translated:  # noqa: N801 (reads like a function)
    """Turn library exceptions into ours, and time the statement."""

    __slots__ = ("_query", "_started")

    def __init__(self, query: str) -> None:
        self._query = query

    def __enter__(self) -> None:
        self._started = monotonic()

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None) -> None:
        query = self._query
        series(DATABASE_SECONDS, query).observe(monotonic() - self._started)
        match error:
            case asyncpg.IntegrityConstraintViolationError():
                raise ConstraintViolated(error.constraint_name or "unknown") from None  # its text holds the row, and with it the signature
            case asyncpg.TransactionRollbackError():
                raise StoreFault(ROLLED_BACK, f"the database undid {query}: {type(error).__name__}", query=query) from error
            case asyncpg.InsufficientPrivilegeError():
                raise StoreFault("not_permitted", f"this login of the database may not do {query}: {error}", query=query) from error
            case _ if isinstance(error, _IN_DOUBT):
                kind = NOT_REACHED if query == "acquire" else "store_unavailable"
                raise StoreFault(kind, f"the database did not do {query}: {type(error).__name__}", query=query) from error
            case _:
                return


class Session:
    """One connection's worth of named queries; inside `Db.transaction()` they share a transaction."""

    def __init__(self, connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record] | asyncpg.Connection[asyncpg.Record]") -> None:
        self._connection = connection
        self._timeout_s: float | None = None
        """How long a statement may take, on our side of the wire; None: as the pool says."""

    async def take_time(self) -> None:
        """Until the transaction ends, statements may last as long as a report reads."""
        await self._connection.execute(f"set local statement_timeout = '{_LONG_READ_S}s'")
        await self._connection.execute("set local idle_in_transaction_session_timeout = '60s'")
        self._timeout_s = _LONG_READ_S

    async def one(self, row: type[Row], query: Query, *arguments: object) -> Row:
        """Exactly one row. Raises StoreFault when Postgres cannot be asked, ConstraintViolated when a rule forbids it."""
        found = await self.optional(row, query, *arguments)
        assert found is not None, f"{query.name} returned no row"
        return found

    async def optional(self, row: type[Row], query: Query, *arguments: object) -> Row | None:
        """One row or None. Faults as `one`."""
        with _translated(query.name):
            record = await self._connection.fetchrow(query.sql, *arguments, timeout=self._timeout_s)
        return None if record is None else row(*record)

    async def many(self, row: type[Row], query: Query, *arguments: object) -> list[Row]:
        """All rows. Faults as `one`."""
        with _translated(query.name):
            records = await self._connection.fetch(query.sql, *arguments, timeout=self._timeout_s)
        return [row(*record) for record in records]

    async def execute(self, query: Query, *arguments: object) -> int:
        """Run it and return how many rows it touched. Faults as `one`."""
        with _translated(query.name):
            status = await self._connection.execute(query.sql, *arguments, timeout=self._timeout_s)
        return int(status.rpartition(" ")[2]) if status[-1:].isdigit() else 0

    async def stream(self, row: type[Row], query: Query, *arguments: object) -> AsyncIterator[Row]:
        """All rows by a server-side cursor, in constant memory; inside a transaction. Faults as `one`."""
        with _translated(query.name):
            async for record in self._connection.cursor(query.sql, *arguments, prefetch=_STREAM_ROWS, timeout=_LONG_READ_S):
                yield row(*record)


class Db:
    """A bounded pool. Each method outside `transaction()` is one statement and one commit."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", url: str, acquire_timeout_s: float) -> None:
        self._pool = pool
        self._acquire_timeout_s = acquire_timeout_s
        self.url: Final = url

    @classmethod
    async def connect(
        cls, url: str, *, connections_max: int = 10, statement_timeout_s: float = 5.0, acquire_timeout_s: float = 5.0
    ) -> Self:
        """Open the pool. Raises StoreFault when the server cannot be reached."""

        async def prepare(connection: "asyncpg.Connection[Any]") -> None:
            await prepare_connection(connection)
            await connection.execute(  # not parameters of the start, which PgBouncer refuses
                f"set statement_timeout = {int(statement_timeout_s * 1000)};"
                f" set idle_in_transaction_session_timeout = {int(statement_timeout_s * 2000)};"
                " set jit = off"  # estimates of what is seldom there are high: compiling would cost more than reading
            )

        with _translated("connect"):
            pool = await asyncpg.create_pool(
                url,
                min_size=min(2, connections_max),
                max_size=connections_max,
                timeout=acquire_timeout_s,
                command_timeout=statement_timeout_s,
                init=prepare,
                reset=_keep,
                server_settings={"application_name": "facilitator", "timezone": "UTC"},
            )
        DATABASE_CONNECTIONS_MAX.set(connections_max)
        DATABASE_CONNECTIONS.labels("idle").set_function(pool.get_idle_size)
        DATABASE_CONNECTIONS.labels("busy").set_function(lambda: pool.get_size() - pool.get_idle_size())
        return cls(pool, url, acquire_timeout_s)

    async def close(self, timeout_s: float = 5.0) -> None:
        """Close the pool; connections that do not come back in time are cut."""
        import asyncio  # noqa: PLC0415

        try:
            await asyncio.wait_for(self._pool.close(), timeout_s)
        except TimeoutError:
            self._pool.terminate()

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """A connection for several statements, each with a commit of its own."""
        with _translated("acquire"):
            connection = await self._pool.acquire(timeout=self._acquire_timeout_s)
        try:
            yield Session(connection)
        finally:
            with _translated("release"):
                await self._pool.release(connection)

    @asynccontextmanager
    async def transaction(self, *, long: bool = False) -> AsyncIterator[Session]:
        """A connection whose statements commit together when the block ends, or not at all; a `long` one may read for minutes."""
        async with self.session() as session:
            transaction = session._connection.transaction()  # noqa: SLF001
            with _translated("begin"):
                await transaction.start()
                if long:
                    await session.take_time()
            try:
                yield session
            except BaseException:
                with _translated("rollback"):
                    await transaction.rollback()
                raise
            with _translated("commit"):
                await transaction.commit()

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Session]:
        """A connection on which every read sees the database as it was at the first one, and may take long. Writes nothing."""
        async with self.session() as session:
            transaction = session._connection.transaction(isolation="repeatable_read", readonly=True)  # noqa: SLF001
            with _translated("begin"):
                await transaction.start()
                await session.take_time()
            try:
                yield session
            finally:
                with _translated("rollback"):
                    await transaction.rollback()

    async def one(self, row: type[Row], query: Query, *arguments: object) -> Row:
        """`Session.one` on a connection of the pool."""
        async with self.session() as session:
            return await session.one(row, query, *arguments)

    async def optional(self, row: type[Row], query: Query, *arguments: object) -> Row | None:
        """`Session.optional` on a connection of the pool."""
        async with self.session() as session:
            return await session.optional(row, query, *arguments)

    async def many(self, row: type[Row], query: Query, *arguments: object) -> list[Row]:
        """`Session.many` on a connection of the pool."""
        async with self.session() as session:
            return await session.many(row, query, *arguments)

    async def execute(self, query: Query, *arguments: object) -> int:
        """`Session.execute` on a connection of the pool."""
        async with self.session() as session:
            return await session.execute(query, *arguments)


async def prepare_connection(connection: "asyncpg.Connection[Any]") -> None:
    """Teach a connection our codecs: numeric is int, and a fraction in it is a bug that raises."""
    await connection.set_type_codec("numeric", schema="pg_catalog", encoder=str, decoder=int, format="text")


async def _keep(_: object) -> None:
    """Nothing to reset: no statement of ours leaves session state, and the usual reset costs a round trip a query."""


def column_names(row: type[object]) -> Sequence[str]:
    """The columns a query must return for this row type, in order. Used by the test that prepares every query."""
    return [field.name for field in fields(cast("Any", row))]


def as_text(numbers: Iterable[int]) -> list[str]:
    """Integers of any size for a `text[]` parameter that SQL casts to numeric."""
    return [str(number) for number in numbers]
