"""Gas budgets, farther: a walk for each of a thousand seeds, `FACILITATOR_SEEDS` of them, from `FACILITATOR_SEED` on."""

import os

from tests.fixtures.gas_books import Ground
from tests.prove.conftest import Tell

FIRST = int(os.environ["FACILITATOR_SEED"])
SEEDS = int(os.environ.get("FACILITATOR_SEEDS") or 1_000)


def test_gas_spent_for_a_tenant_never_exceeds_its_budget_by_more_than_one_transaction(database_url: str, tell: Tell) -> None:
    ground = Ground(database_url)
    for seed in range(FIRST, FIRST + SEEDS):
        ground.walk(seed, 1, 25)
    tell(f"{SEEDS} seeds, {ground.steps} steps, {ground.refused} refused, {ground.unaffordable} higher bids not made")
    assert ground.refused
    assert ground.unaffordable
