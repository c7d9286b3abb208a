"""Two services, one database, one chain; everything is sent several times while processes die. `make prove` does it with 10,000."""

from pathlib import Path

from tests.fixtures.chaos import Chaos, Plan

PLAN = Plan(payments=300, clients=16, kill_every_s=(2.0, 4.0), database={0.5: "immediate"}, patience_s=60.0)


async def test_two_services_that_die_in_turn_pay_every_authorization_once(tmp_path: Path, seed: int) -> None:
    async with Chaos.open(tmp_path, PLAN, seed) as chaos:
        await chaos.run()
        print(await chaos.judge())  # noqa: T201
        assert chaos.kills >= 2
        assert chaos.restarts == ["immediate"]
