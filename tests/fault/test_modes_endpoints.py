"""Failure modes of several RPC endpoints that do not agree: one lies or lags, the other is honest. Numbers as in docs/faults.md."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from facilitator.chain.evm import EvmClient
from facilitator.chain.rpc import RpcClient
from facilitator.clock import SystemClock
from facilitator.domain.abi import AUTHORIZATION_STATE, AUTHORIZATION_USED_TOPIC, TRANSFER_TOPIC
from facilitator.errors import ConfigFault
from facilitator.metrics import RPC_DISAGREEMENTS
from tests.fault.test_late import STRANGER, failed, in_state, use
from tests.fixtures.base_sim import Absent, BaseSim, Call, Drop, NodeSays, NoLogs, PretendAccepted, Rewrite, Rules, Stale, base_sim_before
from tests.fixtures.scene import AMOUNT, PAY_TO, Scene, reason
from tests.fixtures.waiting import PATIENCE_S
from tests.integration.settlement.conftest import NETWORK, USDC, Rig

RECEIPT = "eth_getTransactionReceipt"


@pytest_asyncio.fixture
async def honest(scene: Scene) -> AsyncIterator[BaseSim]:
    """A second endpoint of the same chain, which always says what is; it only pretends to take transactions."""
    async with base_sim_before(scene.sim.upstream.url, rules=Rules(pool=False)) as sim:
        sim.plant(PretendAccepted(method="eth_sendRawTransaction"))
        yield sim


async def engine(scene: Scene, honest: BaseSim, **changes: Any) -> Rig:
    """One that asks the honest endpoint second."""
    return await scene.engine(rpc_urls=[scene.sim.url, honest.url], **changes)


def disagreements(scene: Scene, fact: str) -> float:
    return RPC_DISAGREEMENTS.labels(scene.network, fact)._value.get()


def invented(scene: Scene, *, paid: bool) -> Rewrite:
    """A receipt of a transaction that no block holds: reverted, or with the logs of a payment."""
    payer = "0x" + "00" * 12 + scene.buyer.address[2:].lower()
    heads: dict[str, Any] = {}

    def lie(call: Call, result: Any) -> Any:
        if call.method == "eth_getBlockByNumber" and result is not None:
            heads["newest"] = result
        if call.method != RECEIPT or result is not None:
            return result
        [sent] = [each for each in scene.sim.sent if each.tx_hash == call.params[0]][:1]
        auth_nonce = "0x" + sent.raw.hex().partition(scene.buyer.address[2:].lower())[2][64 * 4 : 64 * 5]
        block = {"blockHash": heads["newest"]["hash"], "blockNumber": heads["newest"]["number"], "transactionHash": sent.tx_hash}
        logs = [
            {"topics": [AUTHORIZATION_USED_TOPIC, payer, auth_nonce], "data": "0x"},
            {"topics": [TRANSFER_TOPIC, payer, "0x" + "00" * 12 + PAY_TO[2:]], "data": "0x" + AMOUNT.to_bytes(32, "big").hex()},
        ]
        told = [log | block | {"address": USDC.address, "logIndex": hex(index), "removed": False} for index, log in enumerate(logs)]
        return block | {
            "status": "0x1" if paid else "0x0",
            "gasUsed": "0x5208",
            "effectiveGasPrice": "0x1",
            "logs": told if paid else [],
        }

    return Rewrite(lie, method="eth_get*")


async def test_mode_37_a_failure_that_one_endpoint_invents_is_none_while_another_denies_it(scene: Scene, honest: BaseSim) -> None:
    rig = await engine(scene, honest)
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    task = await scene.settle_pooled(rig)
    before = disagreements(scene, "authorization")

    async with scene.sim.faults(invented(scene, paid=False)):
        await scene.until(lambda: disagreements(scene, "authorization") >= before + 2, "the lie to be found out", mine=True)

    assert await scene.states() == ["submitted"]
    assert not task.done()
    scene.sim.pool.hold = None
    assert reason(await scene.answer(task)) is None
    await scene.finish(settled=1)


async def test_mode_37_a_payment_that_one_endpoint_hides_altogether_is_found_at_another(scene: Scene, honest: BaseSim) -> None:
    rig = await engine(scene, honest)
    task = await scene.settle_pooled(rig)

    def says_unused(call: Call, result: Any) -> Any:
        return "0x" + "00" * 32 if AUTHORIZATION_STATE.hex() in str(call.params[0]) and len(result) == 66 else result

    async with scene.sim.faults(NoLogs(), Rewrite(says_unused, method="eth_call")):
        answer = await scene.answer(task)

    assert reason(answer) is None
    assert await scene.states() == ["included"]
    await scene.finish(settled=1)


async def test_mode_37_a_payment_that_one_endpoint_invents_is_none_until_a_second_has_it(scene: Scene, honest: BaseSim) -> None:
    rig = await engine(scene, honest, receipt_witnesses=2)
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    task = await scene.settle_pooled(rig)
    before = disagreements(scene, "receipt")

    async with scene.sim.faults(invented(scene, paid=True)):
        await scene.until(lambda: disagreements(scene, "receipt") >= before + 2, "the lie to be found out", mine=True)

    assert await scene.states() == ["submitted"]
    scene.sim.pool.hold = None
    assert reason(await scene.answer(task)) is None
    await scene.finish(settled=1)


async def test_mode_37_a_tx_nonce_that_one_endpoint_calls_used_costs_no_relayer(scene: Scene, honest: BaseSim) -> None:
    rig = await engine(scene, honest)
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    task = await scene.settle_pooled(rig)
    before = disagreements(scene, "tx_count")

    async with scene.sim.faults(Rewrite(lambda _call, _result: "0x5", method="eth_getTransactionCount")):
        await scene.until(lambda: disagreements(scene, "tx_count") > before, "the lie to be found out", mine=True)

    assert [row["status"] for row in await scene.rows("select status from relayer")] == ["active"]
    scene.sim.pool.hold = None
    assert reason(await scene.answer(task)) is None
    await scene.finish(settled=1)


async def test_mode_37_a_block_that_one_endpoint_calls_gone_is_not_reorganised(scene: Scene, honest: BaseSim) -> None:
    rig = await engine(scene, honest)
    assert reason(await scene.answer(scene.settle(rig))) is None
    before = disagreements(scene, "canonical_block")

    def other(call: Call, result: Any) -> Any:
        return result if call.params[0] in {"latest", "finalized"} or result is None else result | {"hash": "0x" + "ab" * 32}

    async with scene.sim.faults(Rewrite(other, method="eth_getBlockByNumber")):
        await scene.until(lambda: disagreements(scene, "canonical_block") > before, "the lie to be found out", mine=True)

    assert await scene.states() == ["included"]
    assert await scene.rows("select from incident") == []
    await scene.finish(settled=1)


async def test_a_final_time_that_one_endpoint_invents_ends_no_watch(scene: Scene, honest: BaseSim) -> None:
    await scene.token.set_gas_money(STRANGER, 10**19)
    rig = await engine(scene, honest)
    buyer, payment = await failed(scene, rig)

    def lie(call: Call, result: Any) -> Any:
        return result | {"timestamp": hex(2**40)} if call.params[0] == "finalized" else result

    async with scene.sim.faults(Rewrite(lie, method="eth_getBlockByNumber", where=lambda call: call.params[0] == "finalized")) as (told,):
        await scene.until(lambda: told.struck >= 12, "many looks at final time")
    await use(scene, buyer, payment, "external")
    await in_state(scene, "external", mine=False)
    await scene.finish(settled=0)


async def test_mode_36_an_endpoint_that_is_stuck_is_asked_after_one_that_is_not(scene: Scene, honest: BaseSim) -> None:
    await scene.sim.mine(8)
    rig = await engine(scene, honest)
    async with scene.sim.faults(Stale(6)):
        first, second = rig.evm.rpc._endpoints
        await scene.until(lambda: (first.lag_blocks, second.lag_blocks) == (6, 0), "the lag to be seen")
        calls = scene.sim.calls[RECEIPT]

        answer = await scene.answer(scene.settle(rig))

        assert reason(answer) is None
        assert scene.sim.calls[RECEIPT] == calls
    await scene.until(lambda: first.lag_blocks == 0, "the lag to be over")
    await scene.finish(settled=1)


async def test_mode_37_nothing_is_decided_while_an_endpoint_that_should_know_does_not_answer(scene: Scene, honest: BaseSim) -> None:
    rig = await engine(scene, honest)
    scene.sim.pool.hold = lambda transaction: True  # noqa: ARG005
    task = await scene.settle_pooled(rig)
    unwilling = honest.plant(NodeSays(-32000, "state is not available here", method="eth_call"))
    absent = honest.plant(Absent(method=RECEIPT))
    async with scene.sim.faults(invented(scene, paid=False)):
        await scene.until(lambda: unwilling.struck + absent.struck >= 3, "questions to the second endpoint", mine=True)
        await asyncio.sleep(0)
    assert await scene.states() == ["submitted"]
    honest.uproot(unwilling, absent)
    scene.sim.pool.hold = None

    assert reason(await scene.answer(task)) is None
    await scene.finish(settled=1)


async def test_mode_37_a_tx_nonce_that_one_endpoint_invents_leaves_no_gap(scene: Scene, honest: BaseSim) -> None:
    def far_ahead(call: Call, result: Any) -> Any:
        return hex(int(result, 16) + 5) if call.method == "eth_getTransactionCount" else result

    async with scene.sim.faults(Rewrite(far_ahead, method="eth_getTransactionCount")):
        rig = await engine(scene, honest)
        assert [account.next_tx_nonce for account in rig.engine._dispatchers[NETWORK].pool.accounts] == [0]
        task = await scene.settle_pooled(rig)
    assert reason(await scene.answer(task)) is None
    await scene.finish(settled=1)


async def test_mode_37_an_endpoint_of_another_chain_is_refused_wherever_it_stands(scene: Scene, honest: BaseSim) -> None:
    honest.plant(Rewrite(lambda _call, _result: hex(8453), method="eth_chainId"))
    evm = EvmClient(NETWORK, RpcClient([scene.sim.url, honest.url], SystemClock()))
    try:
        with pytest.raises(ConfigFault, match="serves another chain"):
            await evm.connect(evm.deadline_in(PATIENCE_S))
        honest.plant(Drop(method="eth_chainId"))
        await evm.connect(evm.deadline_in(PATIENCE_S))
    finally:
        await evm.close()
