"""Gas budgets, farther: a thousand walks, twenty for each of `FACILITATOR_SEEDS` seeds, from `FACILITATOR_SEED` on."""

import os

from tests.fixtures.gas_books import Ground
from tests.prove.conftest import Tell

FIRST = int(os.environ["FACILITATOR_SEED"])
SEEDS = int(os.environ.get("FACILITATOR_SEEDS") or 50)


def test_gas_spent_for_a_tenant_never_exceeds_its_budget_by_more_than_one_transaction(database_url: str, tell: Tell) -> None:
    ground = Ground(database_url)
    for seed in range(FIRST, FIRST + SEEDS):
        ground.walk(seed, 20, 25)  # the first one of a seed is the plainest
    tell(f"{SEEDS} seeds, {ground.steps} steps, {ground.refused} refused, {ground.unaffordable} higher bids not made")
    assert ground.refused
    assert ground.unaffordable
