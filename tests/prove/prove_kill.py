"""Thirty kills in a row on one ledger; `FACILITATOR_SEED` repeats a run, `FACILITATOR_ROUNDS` makes it longer or shorter."""

import os

from tests.fault.test_kill import house, kill_rounds, seed
from tests.fixtures.house import House

__all__ = ["house", "seed"]  # fixtures

ROUNDS = int(os.environ.get("FACILITATOR_ROUNDS") or 30)


async def test_killed_thirty_times_the_service_settles_every_payment_once(house: House, seed: int) -> None:
    await kill_rounds(house, seed, ROUNDS)
