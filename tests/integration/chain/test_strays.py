"""Transactions of an account that nobody remembers, found on a real chain; what its key did not sign is not believed."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from facilitator.chain.evm import EvmClient
from facilitator.chain.rpc import RpcClient
from facilitator.chain.signer import LocalSigner, SigningPolicy
from facilitator.chain.strays import mined, pooled
from facilitator.clock import SystemClock
from facilitator.devstack.accounts import dev_account
from facilitator.devstack.token import Token
from facilitator.domain.transactions import SignedTransaction, Transaction
from facilitator.units import Gas, Wei
from tests.fixtures.base_sim import BaseSim, Call, NodeSays, Rewrite
from tests.fixtures.base_sim.fixtures import StartSim, start_sim
from tests.fixtures.payments import BASE_SEPOLIA
from tests.fixtures.waiting import PATIENCE_S

__all__ = ["start_sim"]
SIGNER = LocalSigner(bytes(dev_account("stray", 1).key), SigningPolicy(chain_id=84532, assets=frozenset(), max_fee_max_wei=Wei(10**13)))


@pytest_asyncio.fixture
async def sim(start_sim: StartSim) -> BaseSim:
    sim = await start_sim()
    await Token.at(sim.upstream.url).set_gas_money(SIGNER.address, 10**19)
    return sim


@pytest_asyncio.fixture
async def evm(sim: BaseSim) -> AsyncIterator[EvmClient]:
    client = EvmClient(BASE_SEPOLIA, RpcClient([sim.url], SystemClock()))
    yield client
    await client.close()


async def send(evm: EvmClient, tx_nonce: int) -> SignedTransaction:
    transaction = Transaction(
        chain_id=84532,
        tx_nonce=tx_nonce,
        to=SIGNER.address,
        data=b"",
        gas=Gas(50_000),
        max_fee_wei=Wei(5 * 10**9),
        max_priority_fee_wei=Wei(10**9),
    )
    signed = await SIGNER.sign(transaction)
    assert (await evm.send_raw(signed.raw, evm.deadline_in(PATIENCE_S))).in_pool
    return signed


async def test_each_used_tx_nonce_leads_to_its_transaction_wherever_it_was_mined(evm: EvmClient, sim: BaseSim) -> None:
    sent = [await send(evm, 0), await send(evm, 1)]
    await sim.mine(7)
    sent.append(await send(evm, 2))
    await sim.mine(3)
    head = await evm.head(evm.deadline_in(PATIENCE_S))

    found = [await mined(evm, SIGNER.address, tx_nonce, head.number, evm.deadline_in(PATIENCE_S)) for tx_nonce in range(3)]

    assert [stray.signed if stray else None for stray in found] == sent
    assert [stray.gas if stray else None for stray in found] == [50_000] * 3


async def test_the_pool_is_searched_by_sender_and_a_node_that_has_no_such_method_finds_nothing(evm: EvmClient, sim: BaseSim) -> None:
    sent = {tx_nonce: await send(evm, tx_nonce) for tx_nonce in (0, 1, 3)}
    found = await pooled(evm, SIGNER.address, evm.deadline_in(PATIENCE_S))
    assert {tx_nonce: stray.signed for tx_nonce, stray in found.items()} == sent

    sim.plant(NodeSays(-32601, "Method not found", method="txpool_contentFrom"))
    assert await pooled(evm, SIGNER.address, evm.deadline_in(PATIENCE_S)) == {}


@pytest.mark.parametrize("field", ["r", "gas", "input", "hash", "v"])
async def test_what_the_key_did_not_sign_is_not_believed(evm: EvmClient, sim: BaseSim, field: str) -> None:
    await send(evm, 0)

    def forged(_call: Call, result: Any) -> Any:
        wire = result["pending"]["0"]
        other = {"hash": "0x" + "12" * 32, "v": "0xffff"}.get(field, wire[field] + "12")
        return {"pending": {"0": wire | {field: other}}, "queued": {}}

    sim.plant(Rewrite(forged, method="txpool_contentFrom"))
    assert await pooled(evm, SIGNER.address, evm.deadline_in(PATIENCE_S)) == {}


async def test_a_history_that_cannot_be_read_is_no_transaction(evm: EvmClient, sim: BaseSim) -> None:
    await send(evm, 0)
    await sim.mine(2)
    sim.plant(NodeSays(-32000, "missing trie node", method="eth_getTransactionCount"))
    assert await mined(evm, SIGNER.address, 0, 2, evm.deadline_in(PATIENCE_S)) is None
