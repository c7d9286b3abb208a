"""Thirty kills in a row on one ledger, and a database that is away for half a minute.

`FACILITATOR_SEED` repeats a run, `FACILITATOR_ROUNDS` makes it longer or shorter.
"""

import os
from pathlib import Path

from tests.fault.test_kill import house, kill_rounds, outage, seed
from tests.fixtures.house import House

__all__ = ["house", "seed"]  # fixtures

ROUNDS = int(os.environ.get("FACILITATOR_ROUNDS") or 30)


async def test_killed_thirty_times_the_service_settles_every_payment_once(house: House, seed: int) -> None:
    await kill_rounds(house, seed, ROUNDS)


async def test_a_database_that_is_away_for_thirty_seconds_loses_and_repeats_nothing(tmp_path: Path, seed: int) -> None:
    await outage(tmp_path, seed, 30.0)
