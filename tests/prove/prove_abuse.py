"""Abuse at the length at which it happens; the short forms run in `make test`."""

from facilitator.devstack.stack import Anvil
from tests.fixtures.base_sim.fixtures import start_sim
from tests.integration.settlement.conftest import start_engine
from tests.integration.settlement.test_bad_signatures import NewBuyer, StartEngine, StartSim, asked_for
from tests.prove.conftest import Tell

__all__ = ["start_engine", "start_sim"]  # fixtures

SIGNATURES = 10_000


async def test_ten_thousand_wrong_signatures_ask_the_chain_nothing(
    start_engine: StartEngine, start_sim: StartSim, new_buyer: NewBuyer, chain: Anvil, tell: Tell
) -> None:
    sim = await start_sim(node_url=chain.rpc_url)
    rig = await start_engine(rpc_url=sim.url, plain_payer_ttl_s=3600.0)
    buyers = [await new_buyer() for _ in range(20)]
    first = await asked_for(rig, sim, buyers, len(buyers))
    asked = await asked_for(rig, sim, buyers, SIGNATURES)
    tell(f"{first} questions for {len(buyers)} payers seen for the first time, then {asked} for {SIGNATURES} wrong signatures")
    assert asked == 0
