"""Eight writers against a close at random moments, 200 seeds: nothing lands in a closed day."""

from typing import Any

import pytest

from facilitator.finance.closes import altered_days
from facilitator.finance.seals import verify
from facilitator.store.db import Db
from tests.integration.finance.test_closes import connection, db, race

__all__ = ["connection", "db"]


@pytest.mark.parametrize("first", range(0, 200, 50))
async def test_nothing_lands_in_a_closed_day(db: Db, database_url: str, connection: Any, first: int) -> None:
    late = [await race(db, database_url, connection, seed) for seed in range(first, first + 50)]
    assert sum(count > 0 for count in late) >= 3, f"too few of the races were races: {late}"
    assert await altered_days(db) == []
    assert (await verify(db, {})).wrong == ()
