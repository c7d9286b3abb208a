"""Reads our own records for callers side by side: those who ask while a query is on its way share the next one."""

import asyncio
from typing import Final

from facilitator import tracing
from facilitator.errors import StoreFault
from facilitator.store import settlements
from facilitator.store.db import Db
from facilitator.store.settlements import Asked, Found

_ASKED_MAX: Final = 200
"""Callers in one query."""


class RecordReader:
    """One query in flight at a time; a lone caller does not wait, and nobody reads what was true before it asked."""

    def __init__(self, db: Db, holder_ttl_s: float) -> None:
        self._db = db
        self._holder_ttl_s = holder_ttl_s
        self._waiting: list[tuple[Asked, asyncio.Future[Found]]] = []
        self._reading: asyncio.Task[None] | None = None

    async def read(self, asked: Asked) -> Found:
        """The record of this authorization, and the settlements that the tenant bound these names to. Raises StoreFault."""
        found: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, found))
        if self._reading is None:
            self._reading = asyncio.create_task(self._drain())
        with tracing.span("record"):
            return await found

    async def _drain(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:_ASKED_MAX], self._waiting[_ASKED_MAX:]
                await self._answer([(asked, found) for asked, found in batch if not found.done()])
        finally:
            self._reading = None

    async def _answer(self, batch: list[tuple[Asked, asyncio.Future[Found]]]) -> None:
        try:
            rows = await settlements.own_records(self._db, [asked for asked, _ in batch], self._holder_ttl_s)
        except Exception as error:  # noqa: BLE001 - a fault or a bug: each caller hears it, none waits for ever
            for _, found in batch:
                if not found.done():
                    found.set_exception(_own_copy(error))
            return
        for (_, found), row in zip(batch, rows, strict=True):
            if not found.done():
                found.set_result(row)


def _own_copy(error: Exception) -> Exception:
    """A fault of the caller's own: one exception raised in many tasks would grow their tracebacks together."""
    return StoreFault(error.kind, error.message, **error.evidence) if isinstance(error, StoreFault) else error
