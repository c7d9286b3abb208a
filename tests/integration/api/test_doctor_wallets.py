"""What `facilitator doctor` says of smart wallets: can an endpoint judge them, and are the factories there?"""

from dataclasses import replace

from facilitator.chain.evm import EvmClient
from facilitator.chain.rpc import RpcClient
from facilitator.clock import SystemClock
from facilitator.devstack.node import Node
from facilitator.devstack.stack import Anvil
from facilitator.doctor import _examine_wallets
from facilitator.domain.wallets import Rules
from facilitator.units import Address
from tests.fixtures.base_sim import NodeSays
from tests.fixtures.base_sim.fixtures import StartSim, start_sim
from tests.fixtures.payments import BASE_SEPOLIA
from tests.fixtures.wallets import DEPLOYS, install_factory

__all__ = ["start_sim"]
NOWHERE = Address("0x" + "6d" * 20)
UNRUNNABLE = NodeSays(code=-32000, message="max initcode size exceeded", method="eth_call", where=lambda call: "to" not in call.params[0])


async def test_an_endpoint_that_cannot_judge_wallets_and_a_factory_that_is_not_there_are_named(start_sim: StartSim, chain: Anvil) -> None:
    await install_factory(Node(chain.rpc_url))
    sim = await start_sim(node_url=chain.rpc_url)
    client = EvmClient(BASE_SEPOLIA, RpcClient([sim.url], SystemClock()))

    async def verdicts(rules: Rules) -> list[tuple[str, str]]:
        return [(finding.verdict, finding.what) async for finding in _examine_wallets(rules, client, "wallets")]

    try:
        assert await verdicts(Rules()) == [("ok", "deployed: their code can be tried out, 0 factories")]
        assert await verdicts(DEPLOYS) == [("ok", "counterfactual: their code can be tried out, 1 factories")]
        missing = replace(DEPLOYS, factories=DEPLOYS.factories | {(BASE_SEPOLIA, NOWHERE)})
        assert [verdict for verdict, _ in await verdicts(missing)] == ["fail", "ok"]
        sim.plant(UNRUNNABLE)
        [(verdict, what)] = await verdicts(DEPLOYS)
        assert (verdict, "initcode" in what) == ("warn", True)
    finally:
        await client.close()
