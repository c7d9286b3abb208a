"""Every way a settlement can end, decided by chain facts alone, on a chain that mines when told."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from facilitator.devstack.accounts import dev_account
from facilitator.devstack.buyer import Buyer
from facilitator.devstack.stack import Anvil
from facilitator.devstack.token import BASE_SEPOLIA_USDC, Token, calldata, transact
from facilitator.domain.abi import AUTHORIZATION_USED_TOPIC
from facilitator.protocol.reasons import Reason
from facilitator.settlement.admission import SettleAnswer
from tests.fixtures.waiting import PATIENCE_S
from tests.integration.settlement.conftest import Rig, decoded
from tests.integration.settlement.test_engine import PAY_TO, NewBuyer, StartEngine, reason, terms

_TRANSFER = "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)"


class Bench:
    """A chain that mines when told, an engine on it, and a buyer with money."""

    def __init__(self, anvil: Anvil, token: Token, rig: Rig, buyer: Buyer) -> None:
        self.anvil, self.token, self.rig, self.buyer = anvil, token, rig, buyer
        self.stranger = dev_account("stranger").address

    async def call(self, method: str, *params: object) -> Any:
        return await self.anvil.node.call(method, *params)

    async def start_settling(self, payload: dict[str, Any] | None = None) -> tuple[asyncio.Task[SettleAnswer], dict[str, Any], Any]:
        """Settle in the background; returns once the transaction is in the pool."""
        asked = terms()
        payment = payload or self.buyer.pay(2, asked)
        message = decoded(payment, asked)
        task = asyncio.create_task(self.rig.engine.settle(self.rig.caller(), message, None))
        await self.pooled(1)
        return task, payment, message

    async def pooled(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while int((await self.call("txpool_status"))["pending"], 16) < count:
                await asyncio.sleep(0.01)

    async def execute_elsewhere(self, payment: dict[str, Any], value: str | None = None) -> None:
        """Somebody else sends the authorization, ahead of our transaction."""
        await self.call("anvil_dropAllTransactions")
        auth, signature = payment["payload"]["authorization"], payment["payload"]["signature"]
        data = calldata(
            _TRANSFER,
            auth["from"],
            auth["to"],
            int(value or auth["value"]),
            int(auth["validAfter"]),
            int(auth["validBefore"]),
            bytes.fromhex(auth["nonce"][2:]),
            bytes.fromhex(signature[2:]),
        )
        await transact(self.anvil.node, self.stranger, BASE_SEPOLIA_USDC, data)

    async def cancel(self, payment: dict[str, Any]) -> None:
        """Its payer cancels the authorization, ahead of our transaction."""
        await self.call("anvil_dropAllTransactions")
        auth_nonce = bytes.fromhex(payment["payload"]["authorization"]["nonce"][2:])
        domain = {"name": "USDC", "version": "2", "chainId": 84532, "verifyingContract": BASE_SEPOLIA_USDC}
        types = {"CancelAuthorization": [{"name": "authorizer", "type": "address"}, {"name": "nonce", "type": "bytes32"}]}
        signed = self.buyer.account.sign_typed_data(domain, types, {"authorizer": self.buyer.address, "nonce": auth_nonce})
        data = calldata("cancelAuthorization(address,bytes32,bytes)", self.buyer.address, auth_nonce, bytes(signed.signature))
        await transact(self.anvil.node, self.stranger, BASE_SEPOLIA_USDC, data)

    async def mine_until_done(self, task: asyncio.Task[SettleAnswer]) -> SettleAnswer:
        async with asyncio.timeout(PATIENCE_S):
            while not task.done():
                await self.call("evm_mine")
                await asyncio.wait([task], timeout=1.0)  # few blocks, or what they prove is final
        return task.result()

    async def state(self) -> str:
        [row] = await self.rig.fetch("select state from settlement")
        return str(row["state"])


@pytest_asyncio.fixture
async def bench(start_chain: Callable[..., Awaitable[Anvil]], start_engine: StartEngine, new_buyer: NewBuyer) -> Bench:
    anvil = await start_chain(automine=False, slots_in_an_epoch=2)
    token = Token.at(anvil.rpc_url)
    relayer = dev_account("relayer", 1)
    await token.set_gas_money(relayer.address, 10**19)
    await token.set_gas_money(dev_account("stranger").address, 10**19)
    buyer = await new_buyer(token=token)
    rig = await start_engine(rpc_url=anvil.rpc_url, relayers=[relayer], resend_s=0.2, bump_blocks=1000, finality_poll_s=0.2)
    return Bench(anvil, token, rig, buyer)


async def test_executed_by_another_sender_is_external_with_that_hash(bench: Bench) -> None:
    task, payment, _ = await bench.start_settling()
    await bench.execute_elsewhere(payment)

    answer = await bench.mine_until_done(task)

    assert reason(answer) is Reason.SETTLEMENT_EXTERNAL
    [ours] = await bench.rig.fetch("select tx_hash from relayer_transaction")
    assert answer.result.tx_hash not in {None, ours["tx_hash"]}
    assert await bench.state() == "external"
    phases = [row["phase"] for row in await bench.rig.fetch("select phase from journal_entry where book = 'register' order by entry_id")]
    assert phases == ["pending", "voided"]


async def test_used_with_other_terms_is_a_conflict(bench: Bench) -> None:
    auth_nonce = "0x" + "cd" * 32
    asked = terms()
    ours = bench.buyer.pay(2, asked, auth_nonce=auth_nonce)
    other = bench.buyer.pay(2, terms(amount_atomic=77), auth_nonce=auth_nonce)
    task, _, _ = await bench.start_settling(ours)
    await bench.execute_elsewhere(other)

    assert reason(await bench.mine_until_done(task)) is Reason.AUTHORIZATION_CONFLICT
    assert await bench.state() == "conflict"


async def test_a_token_that_says_used_but_moves_nothing_is_a_transfer_event_mismatch(bench: Bench) -> None:
    task, _, _ = await bench.start_settling()
    # log3(AuthorizationUsed, payer, nonce) of the calldata, and no Transfer
    says_used = f"0x60a4356004357f{AUTHORIZATION_USED_TOPIC[2:]}60006000a300"
    await bench.call("anvil_setCode", BASE_SEPOLIA_USDC, says_used)

    assert reason(await bench.mine_until_done(task)) is Reason.TRANSFER_EVENT_MISMATCH
    assert await bench.state() == "conflict"


async def test_cancelled_by_its_payer_is_cancelled(bench: Bench) -> None:
    task, payment, _ = await bench.start_settling()
    await bench.cancel(payment)

    assert reason(await bench.mine_until_done(task)) is Reason.AUTHORIZATION_CANCELED
    assert await bench.state() == "cancelled"


async def test_a_balance_that_moved_away_fails_with_the_reason_and_may_be_tried_again_when_final(bench: Bench) -> None:
    task, _, message = await bench.start_settling()
    pool = await bench.call("txpool_content")
    assert pool["pending"]
    await bench.call("anvil_dropAllTransactions")
    await bench.token.set_gas_money(bench.buyer.address, 10**18)
    balance = await bench.token.balance_of(bench.buyer.address)
    await transact(bench.anvil.node, bench.buyer.address, BASE_SEPOLIA_USDC, calldata("transfer(address,uint256)", bench.stranger, balance))

    answer = await bench.mine_until_done(task)
    assert reason(answer) is Reason.INSUFFICIENT_BALANCE
    assert answer.result.tx_hash is not None
    assert await bench.state() == "failed"

    await bench.token.fund([bench.buyer.address], amount_atomic=10_000_000)
    async with asyncio.timeout(PATIENCE_S):
        while (await bench.rig.fetch("select state from relayer_slot"))[0]["state"] != "finalized":
            await bench.call("evm_mine")
            await asyncio.sleep(0.05)
    again = asyncio.create_task(bench.rig.engine.settle(bench.rig.caller("globex"), message, None))
    await bench.pooled(1)
    assert reason(await bench.mine_until_done(again)) is None
    assert await bench.state() == "included"
    [row] = await bench.rig.fetch("select tenant_id, admissions from settlement")
    assert tuple(row) == ("globex", 2)


async def test_an_evicted_transaction_is_sent_again_byte_for_byte(bench: Bench) -> None:
    task, _, _ = await bench.start_settling()
    await bench.call("anvil_dropAllTransactions")
    await bench.pooled(1)

    answer = await bench.mine_until_done(task)

    assert reason(answer) is None
    [ours] = await bench.rig.fetch("select tx_hash from relayer_transaction")
    assert answer.result.tx_hash == ours["tx_hash"]


async def test_a_tx_nonce_used_by_somebody_else_quarantines_the_relayer_and_requeues_the_payment(bench: Bench) -> None:
    task, _, _ = await bench.start_settling()
    await bench.call("anvil_dropAllTransactions")
    relayer = bench.rig.engine.supported().signers["eip155:*"][0]
    await bench.call("anvil_setNonce", relayer, "0x1")
    async with asyncio.timeout(PATIENCE_S):
        while not await bench.rig.fetch("select from incident where kind = 'relayer_used_elsewhere'"):
            await bench.call("evm_mine")
            await asyncio.sleep(0.05)

    async with asyncio.timeout(PATIENCE_S):
        while await bench.state() != "queued":
            await asyncio.sleep(0.02)
    [row] = await bench.rig.fetch("select status from relayer")
    assert row["status"] == "quarantined"
    task.cancel()
    await asyncio.wait([task])


async def test_final_blocks_post_the_entry(bench: Bench) -> None:
    task, _, _ = await bench.start_settling()
    assert reason(await bench.mine_until_done(task)) is None
    async with asyncio.timeout(PATIENCE_S):
        while await bench.state() != "finalized":
            await bench.call("evm_mine")
            await asyncio.sleep(0.05)
    phases = [row["phase"] for row in await bench.rig.fetch("select phase from journal_entry where book = 'register' order by entry_id")]
    assert phases == ["pending", "posted"]


@pytest.mark.parametrize("depth", [1, 3])
async def test_a_reorganised_payment_is_opened_again_and_sent_again(bench: Bench, depth: int) -> None:
    for _ in range(depth + 2):  # a reorganisation must not take the money back that the test put there
        await bench.call("evm_mine")
    task, _, _ = await bench.start_settling()
    answer = await bench.mine_until_done(task)
    assert reason(answer) is None
    before = await bench.token.balance_of(PAY_TO)
    await bench.call("anvil_reorg", depth + int(await bench.call("eth_blockNumber"), 16) - await included_in(bench), [])

    async with asyncio.timeout(PATIENCE_S):
        while not await bench.rig.fetch("select from incident where kind = 'reorganised'"):
            await bench.call("evm_mine")
            await asyncio.sleep(0.1)
        while await bench.state() not in {"included", "finalized"}:
            await bench.call("evm_mine")
            await asyncio.sleep(0.1)
    assert await bench.token.balance_of(PAY_TO) == before
    [row] = await bench.rig.fetch("select tx_hash, answer->>'tx_hash' as told from settlement")
    assert row["tx_hash"] == row["told"] == answer.result.tx_hash


async def included_in(bench: Bench) -> int:
    [row] = await bench.rig.fetch("select block_number from settlement")
    return int(row["block_number"]) - 1
