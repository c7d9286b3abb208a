"""What strangers do to make us spend gas, and what it costs us: undefended, and as we are. Rows of SECURITY.md.

Undefended is the same call sent as it is, without our judgement, by somebody who pays for it: what a facilitator burns that
believes what it verified a moment ago.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from facilitator.devstack.accounts import dev_account
from facilitator.devstack.buyer import Buyer
from facilitator.devstack.token import BASE_SEPOLIA_USDC, calldata
from facilitator.errors import OverloadFault
from facilitator.protocol.messages import Payment
from facilitator.protocol.reasons import Reason
from tests.fault.conftest import StartScene
from tests.fault.test_late import STRANGER, TRANSFER, use
from tests.fixtures.scene import Scene, reason
from tests.integration.settlement.conftest import Rig

VICTIM = dev_account("undefended facilitator").address
GAS = 120_000
ETHER = 10**18
_buyers = iter(range(880_000, 900_000))


@pytest_asyncio.fixture
async def scene(start_scene: StartScene) -> Scene:
    scene = await start_scene()
    for address in (VICTIM, STRANGER):
        await scene.token.set_gas_money(address, 10 * ETHER)
    return scene


async def new_buyer(scene: Scene) -> Buyer:
    buyer = Buyer.numbered(next(_buyers))
    await scene.token.fund([buyer.address], amount_atomic=10**6)
    return buyer


class Burned(NamedTuple):
    """What sending a payment's call cost."""

    gas: int
    wei: int
    paid: bool
    """Whether it moved the money."""


async def undefended(scene: Scene, payment: Payment) -> Burned:
    """What this payment's call costs whoever sends it as it is."""
    signed: Any = payment.payload["authorization"]
    numbers = [int(signed[name]) for name in ("value", "validAfter", "validBefore")]
    data = calldata(
        TRANSFER,
        *(signed["from"], signed["to"], *numbers),
        *(bytes.fromhex(text[2:]) for text in (signed["nonce"], str(payment.payload["signature"]))),
    )
    await scene.node.call("anvil_impersonateAccount", VICTIM)
    tx_hash = await scene.node.call("eth_sendTransaction", {"from": VICTIM, "to": BASE_SEPOLIA_USDC, "data": data, "gas": hex(GAS)})
    await scene.node.call("evm_mine")
    receipt: Any = await scene.node.call("eth_getTransactionReceipt", tx_hash)
    gas = int(receipt["gasUsed"], 16)
    return Burned(gas, gas * int(receipt["effectiveGasPrice"], 16), receipt["status"] == "0x1")


async def gas_money(scene: Scene) -> int:
    return int(str(await scene.node.call("eth_getBalance", scene.relayers[0].address, "latest")), 16)


async def cancelled(scene: Scene, buyer: Buyer, payment: Payment) -> None:
    await use(scene, buyer, payment, "cancelled")


async def moved_away(scene: Scene, buyer: Buyer, _: Payment) -> None:
    await scene.token.set_gas_money(buyer.address, ETHER)
    await scene.token.transact(buyer.address, "transfer(address,uint256)", STRANGER, 10**6)


async def given_to_another(scene: Scene, buyer: Buyer, payment: Payment) -> None:
    await use(scene, buyer, payment, "external")


@pytest.mark.parametrize(
    ("attack", "refused_as"),
    [(cancelled, Reason.NONCE_USED), (moved_away, Reason.INSUFFICIENT_BALANCE), (given_to_another, Reason.NONCE_USED)],
)
async def test_what_is_undone_after_verify_costs_us_nothing(
    scene: Scene, attack: Callable[[Scene, Buyer, Payment], Awaitable[None]], refused_as: Reason
) -> None:
    rig: Rig = await scene.engine()
    buyer = await new_buyer(scene)
    payment = scene.payment(buyer)
    assert (await rig.engine.verify(rig.caller(), payment)).refusal is None
    await attack(scene, buyer, payment)
    before = await gas_money(scene)

    assert reason(await scene.settle(rig, payment)) is refused_as

    burned = await undefended(scene, payment)
    print(f"{attack.__name__}: {burned.gas} gas undefended")  # noqa: T201
    assert (burned.gas > 0, burned.paid) == (True, False)
    assert before - await gas_money(scene) == 0
    await scene.finish(settled=0)


async def test_one_payment_handed_in_a_hundred_times_costs_one_transaction(scene: Scene) -> None:
    rig: Rig = await scene.engine()
    payment = scene.payment(await new_buyer(scene))
    before = await gas_money(scene)

    answers = [scene.settle(rig, payment, tenant) for tenant in ("acme", "globex") for _ in range(50)]
    outcomes = [reason(answer) for answer in await scene.answers(answers)]

    assert len(scene.sent()) == 1
    assert before - await gas_money(scene) > 0
    burned = await undefended(scene, payment)
    print(f"repeated: one transaction for all, {burned.gas} gas for each repeat undefended")  # noqa: T201
    assert outcomes.count(None) == 1
    assert (burned.gas > 0, burned.paid) == (True, False)
    await scene.finish(settled=1)


async def test_what_expires_before_its_block_is_refused(scene: Scene) -> None:
    rig: Rig = await scene.engine()
    now = max(int(time.time()), await scene.chain_time())
    payment = scene.payment(await new_buyer(scene), valid_before=now + 1)
    before = await gas_money(scene)

    assert reason(await scene.settle(rig, payment)) is Reason.EXPIRED

    await scene.node.call("evm_setNextBlockTimestamp", now + 60)
    burned = await undefended(scene, payment)
    print(f"near expiry: {burned.gas} gas undefended")  # noqa: T201
    assert (burned.gas > 0, burned.paid) == (True, False)
    assert before - await gas_money(scene) == 0
    await scene.finish(settled=0)


async def test_a_fee_spike_stops_the_intake_before_it_is_paid_for(scene: Scene) -> None:
    buyer = await new_buyer(scene)
    calm = await undefended(scene, scene.payment(buyer))
    head: Any = await scene.node.call("eth_getBlockByNumber", "latest", False)
    await scene.node.call("anvil_setNextBlockBaseFeePerGas", hex(int(head["baseFeePerGas"], 16) * 100))
    await scene.sim.mine()
    rig: Rig = await scene.engine(payment_cost_cap_wei=10 * calm.wei)
    before = await gas_money(scene)

    with pytest.raises(OverloadFault) as raised:
        await scene.settle(rig)

    assert raised.value.kind == "gas_price_too_high"
    burned = await undefended(scene, scene.payment(buyer))
    print(f"fee spike: {burned.wei} wei for one payment undefended, {calm.wei} in the calm")  # noqa: T201
    assert (burned.wei > 10 * calm.wei, burned.paid) == (True, True)
    assert before - await gas_money(scene) == 0
    assert scene.sent() == []


async def test_dust_costs_more_than_it_moves_so_a_least_amount_is_worth_having(scene: Scene) -> None:
    """Without one a payment of a millionth of a dollar is made at our cost. That the limit refuses it is shown over HTTP."""
    rig: Rig = await scene.engine()
    before = await gas_money(scene)
    assert reason(await scene.answer(scene.settle(rig, scene.payment(amount_atomic=1)))) is None
    spent = before - await gas_money(scene)
    [sent] = scene.sent()
    receipt: Any = await scene.node.call("eth_getTransactionReceipt", sent.tx_hash)
    print(f"dust: {int(receipt['gasUsed'], 16)} gas to move 1 atomic unit")  # noqa: T201
    assert spent > 0
    await scene.finish(settled=1)
