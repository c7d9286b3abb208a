"""A refusal names the fact behind it, as far as the chain tells."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from facilitator.devstack.accounts import dev_account
from facilitator.devstack.token import Token
from facilitator.protocol.reasons import Reason
from tests.fixtures.base_sim import NodeSays
from tests.integration.settlement.conftest import Rig, decoded
from tests.integration.settlement.test_engine import NewBuyer, StartEngine, terms

RIVAL = dev_account("rival", 9).address
PAY = "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)"


async def pay_elsewhere(token: Token, payment: dict[str, Any]) -> str:
    auth = payment["payload"]["authorization"]
    numbers = [int(auth[key]) for key in ("value", "validAfter", "validBefore")]
    secrets = [bytes.fromhex(text[2:]) for text in (auth["nonce"], payment["payload"]["signature"])]
    await token.set_gas_money(RIVAL, 10**18)
    return await token.transact(RIVAL, PAY, auth["from"], auth["to"], *numbers, *secrets)


@pytest.mark.parametrize(("searched", "named"), [(2000, True), (0, False)])
async def test_a_used_nonce_is_refused_with_the_transaction_that_used_it(
    start_engine: StartEngine,
    new_buyer: NewBuyer,
    token: Token,
    searched: int,
    named: bool,  # noqa: FBT001
) -> None:
    rig: Rig = await start_engine(nonce_search_blocks=searched)
    asked = terms()
    payment = (await new_buyer()).pay(2, asked)
    tx_hash = await pay_elsewhere(token, payment)

    refusal = (await rig.engine.verify(rig.caller(), decoded(payment, asked))).refusal

    assert refusal is not None
    assert refusal.reason is Reason.NONCE_USED
    assert (tx_hash in refusal.message) is named
    assert (refusal.evidence.get("tx_hash") == tx_hash) is named


async def test_without_logs_the_refusal_stands(
    start_engine: StartEngine, start_sim: Callable[..., Awaitable[Any]], new_buyer: NewBuyer, token: Token, chain: Any
) -> None:
    sim = await start_sim(node_url=chain.rpc_url)
    rig: Rig = await start_engine(rpc_url=sim.url)
    asked = terms()
    payment = (await new_buyer()).pay(2, asked)
    await pay_elsewhere(token, payment)
    sim.plant(NodeSays(code=-32005, message="query returned more than 10000 results", method="eth_getLogs"))

    refusal = (await rig.engine.verify(rig.caller(), decoded(payment, asked))).refusal

    assert refusal is not None
    assert refusal.reason is Reason.NONCE_USED
