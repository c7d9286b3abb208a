"""Ten thousand authorizations through two services, each sent several times, while one is killed every few seconds.

`FACILITATOR_SEED` repeats the schedule; `FACILITATOR_PAYMENTS` says how many authorizations.
"""

import os
from pathlib import Path

from tests.fault.conftest import seed
from tests.fixtures.chaos import Chaos, Plan
from tests.prove.conftest import Tell

__all__ = ["seed"]  # fixture

PAYMENTS = int(os.environ.get("FACILITATOR_PAYMENTS") or 10_000)
PLAN = Plan(
    payments=PAYMENTS,
    clients=48,
    kill_every_s=(3.0, 8.0),
    database={0.33: "fast", 0.66: "immediate"},
    patience_s=180.0,
)


async def test_two_services_that_die_in_turn_pay_ten_thousand_authorizations_once(tmp_path: Path, seed: int, tell: Tell) -> None:
    async with Chaos.open(tmp_path, PLAN, seed) as chaos:
        await chaos.run()
        tell(await chaos.judge())
        assert chaos.restarts == ["fast", "immediate"]
