"""How long statements may take: short ones as the pool says, on both sides of the wire; those of long reads for minutes."""

from dataclasses import dataclass

import pytest

from facilitator.errors import StoreFault
from facilitator.store.db import Db, Query, Session

LIMIT_S = 0.2
SLOW = Query(name="slow", kind="one", sql="select pg_sleep(0.5)::text as word")


@dataclass(frozen=True, slots=True)
class Word:
    word: str


async def in_every_way(session: Session) -> None:
    """Each way to ask that has a time limit."""
    await session.one(Word, SLOW)
    await session.many(Word, SLOW)
    await session.execute(SLOW)


async def test_a_long_read_may_take_longer_than_other_statements(database_url: str) -> None:
    db = await Db.connect(database_url, connections_max=2, statement_timeout_s=LIMIT_S)
    try:
        with pytest.raises(StoreFault, match="did not do slow"):
            await db.one(Word, SLOW)
        async with db.transaction(long=True) as session:
            await in_every_way(session)
        async with db.snapshot() as session:
            await in_every_way(session)
        with pytest.raises(StoreFault, match="did not do slow"):  # and no longer than that transaction
            async with db.transaction() as session:
                await session.one(Word, SLOW)
    finally:
        await db.close()
