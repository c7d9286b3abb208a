"""A transaction of ours is mined, reverts, and the payment could be made again: failed, with the hash, and nothing is lost."""

import asyncio
from collections.abc import Awaitable, Callable

from facilitator.devstack.accounts import dev_account
from facilitator.devstack.buyer import Buyer, requirements
from facilitator.devstack.node import Node
from facilitator.devstack.stack import Anvil
from facilitator.devstack.token import PAUSER, Token, calldata
from facilitator.protocol.reasons import Reason
from tests.fixtures.waiting import PATIENCE_S
from tests.integration.settlement.conftest import Rig, decoded

PAY_TO = "0x2222222222222222222222222222222222222222"


async def put_in_pool(node: Node, token: Token, function: str) -> None:
    """The pauser's transaction, not mined yet."""
    await node.call("anvil_impersonateAccount", PAUSER)
    await node.call("eth_sendTransaction", {"from": PAUSER, "to": token.asset, "data": calldata(function), "gas": hex(200_000)})


async def test_a_payment_that_reverted_and_could_be_made_again_is_failed_with_its_hash(
    start_engine: Callable[..., Awaitable[Rig]],
    start_chain: Callable[..., Awaitable[Anvil]],
    new_buyer: Callable[..., Awaitable[Buyer]],
) -> None:
    chain = await start_chain(automine=False)
    token, node = Token.at(chain.rpc_url), chain.node
    relayer = dev_account("relayer", 900_001)
    await token.set_gas_money(relayer.address, 10**19)
    buyer = await new_buyer(token=token)
    rig = await start_engine(rpc_url=chain.rpc_url, relayers=[relayer])
    asked = requirements(2, pay_to=PAY_TO, amount_atomic=10_000)

    # One block, in this order: the token is paused, our transaction reverts, the token goes on.
    await put_in_pool(node, token, "pause()")
    settling = asyncio.create_task(rig.engine.settle(rig.caller(), decoded(buyer.pay(2, asked), asked), None))
    async with asyncio.timeout(PATIENCE_S):
        while not await rig.fetch("select 1 from relayer_transaction") or (await pool_size(node)) < 2:
            await asyncio.sleep(0.01)
    await put_in_pool(node, token, "unpause()")
    await node.call("evm_mine")
    answer = await settling

    [row] = await rig.fetch("select state, reason, tx_hash, answer_state from settlement")
    assert answer.result.refusal is not None
    assert answer.result.refusal.reason is Reason.TRANSACTION_FAILED
    assert (row["state"], row["reason"], row["answer_state"]) == ("failed", "TRANSACTION_FAILED", "free")
    assert answer.result.tx_hash == row["tx_hash"]
    assert answer.ticket is None
    assert await token.balance_of(PAY_TO) == 0
    entries = await rig.fetch("select phase from journal_entry where book = 'register' order by entry_id")
    assert [entry["phase"] for entry in entries] == ["pending", "voided"]


async def pool_size(node: Node) -> int:
    """Transactions that the chain has and that are not mined."""
    status = await node.call("txpool_status")
    assert isinstance(status, dict)
    return int(status["pending"], 16) + int(status["queued"], 16)
