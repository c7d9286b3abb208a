"""A token's proxy gets another implementation: seen in the logs, looked at like at the start, and not served if it differs."""

from typing import Any

from eth_utils.address import to_checksum_address

from facilitator.devstack.token import BASE_SEPOLIA_USDC, PROXY_ADMIN, calldata, transact
from facilitator.protocol.reasons import Reason
from tests.fault.conftest import scene, seed, start_scene
from tests.fixtures.scene import Scene, reason

__all__ = ["scene", "seed", "start_scene"]  # fixtures

OTHER = to_checksum_address("0x" + "0b" * 20)
OTHER_DOMAIN = "0x7f" + "ab" * 32 + "60005260206000f3"
"""Answers every call with the same word."""


async def upgrade(scene: Scene, *, same: bool) -> str:
    """Another implementation behind the proxy; its code is the old one's, or one of another domain."""
    position = "0x7050c9e0f4ca769c69bd3a8ef740bc37934f8e2c036e5a723fd8ee048ed3f8c3"  # org.zeppelinos.proxy.implementation
    old = str(await scene.node.call("eth_getStorageAt", BASE_SEPOLIA_USDC, position, "latest"))
    code = str(await scene.node.call("eth_getCode", "0x" + old[-40:], "latest")) if same else OTHER_DOMAIN
    await scene.node.call("anvil_setCode", OTHER, code)
    await scene.token.set_gas_money(PROXY_ADMIN, 10**19)
    return await transact(scene.node, PROXY_ADMIN, BASE_SEPOLIA_USDC, calldata("upgradeTo(address)", OTHER))


async def incidents(scene: Scene) -> list[Any]:
    return await scene.rows("select kind, tx_hash, detail from incident")


async def looked_at(scene: Scene) -> None:
    """Until the upgrade was judged, blocks coming."""

    async def reported() -> bool:
        return bool(await incidents(scene))

    await scene.until(reported, "the upgrade to be reported", mine=True)


async def test_mode_46_an_upgrade_that_changes_the_domain_stops_the_token_and_is_an_incident(scene: Scene) -> None:
    rig = await scene.engine()
    chain = rig.engine._networks[scene.network]
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    await scene.settle_pooled(rig)
    tx_hash = await upgrade(scene, same=False)

    await looked_at(scene)

    [incident] = await incidents(scene)
    assert (incident["kind"], incident["tx_hash"]) == ("token_upgraded", tx_hash)
    assert "EIP-712 domain" in incident["detail"]
    await scene.until(lambda: chain.findings, "the network to be withdrawn")
    assert reason(await scene.settle(rig)) is Reason.UNSUPPORTED_NETWORK
    assert [kind.network for kind in rig.engine.supported().kinds] == []
    scene.told.clear()


async def test_mode_46_an_upgrade_that_keeps_the_domain_is_an_incident_and_service_goes_on(scene: Scene) -> None:
    rig = await scene.engine()
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    task = await scene.settle_pooled(rig)
    tx_hash = await upgrade(scene, same=True)

    await looked_at(scene)

    [incident] = await incidents(scene)
    assert (incident["kind"], incident["tx_hash"]) == ("token_upgraded", tx_hash)
    assert "as configured" in incident["detail"]
    chain = rig.engine._networks[scene.network]
    await scene.until(lambda: not chain.withdrawn, "the token to be served again")
    scene.sim.pool.hold = None
    assert {reason(answer) for answer in await scene.answers([task, scene.settle(rig)])} == {None}
    await scene.finish(settled=2)


async def test_mode_46_an_upgrade_while_nothing_was_open_is_found_at_the_next_payment(scene: Scene) -> None:
    rig = await scene.engine()
    assert reason(await scene.answer(scene.settle(rig))) is None
    await scene.sim.mine(60)
    tx_hash = await upgrade(scene, same=True)
    await scene.sim.mine(60)
    assert await incidents(scene) == []

    assert reason(await scene.answer(scene.settle(rig))) is None

    await looked_at(scene)
    assert [incident["tx_hash"] for incident in await incidents(scene)] == [tx_hash]
    await scene.finish(settled=2)
