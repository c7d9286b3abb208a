"""Flashblocks, lagging call times and websockets through the proxy."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from facilitator.chain.evm import UNSEALED, EvmClient
from facilitator.chain.rpc import NodeError
from facilitator.devstack.token import Token
from facilitator.errors import ChainFault
from facilitator.units import Address, TxHash
from tests.fixtures.base_sim import BaseSim, Drop, Garbage, NodeSays, Rules
from tests.fixtures.waiting import PATIENCE_S
from tests.integration.base_sim.conftest import Relayer

TOKEN = Address(Token.at("").asset.lower())
TIMESTAMP_CODE = "0x425f5260205ff3"  # returns block.timestamp


async def transfer(sim: BaseSim, relayer: Relayer, tx_nonce: int) -> TxHash:
    """A mined transaction with a log, sent through the proxy: an approval."""
    data = bytes.fromhex("095ea7b3" + "22" * 32 + "00" * 31 + "01")
    transaction = relayer.sign(tx_nonce, to=Token.at("").asset, gas=100_000, data=data)
    await relayer.send(transaction)
    await sim.mine()
    return TxHash(transaction.tx_hash)


# Flashblocks.


async def test_a_receipt_has_no_block_hash_before_the_seal(base_sim: BaseSim, evm: EvmClient, relayer: Relayer) -> None:
    await base_sim.flashblocks()
    before = await evm.head(evm.deadline_in(PATIENCE_S))
    tx_hash = await transfer(base_sim, relayer, 0)

    (receipt,) = await evm.receipts([tx_hash], evm.deadline_in(PATIENCE_S))
    assert receipt is not None
    assert (receipt.sealed, receipt.succeeded, {log.block_hash for log in receipt.logs}) == (False, True, {UNSEALED})
    assert await evm.head(evm.deadline_in(PATIENCE_S)) == before
    await base_sim.seal()

    (sealed,) = await evm.receipts([tx_hash], evm.deadline_in(PATIENCE_S))
    head = await evm.head(evm.deadline_in(PATIENCE_S))
    assert sealed is not None
    assert (sealed.block_hash, sealed.block_number) == (head.block_hash, receipt.block_number)
    assert {log.block_hash for log in sealed.logs} == {head.block_hash}


async def test_pending_is_the_flashblocks_and_latest_the_seal(base_sim: BaseSim, evm: EvmClient, relayer: Relayer) -> None:
    await base_sim.flashblocks()
    start = await evm.head(evm.deadline_in(PATIENCE_S))
    await transfer(base_sim, relayer, 0)
    await relayer.send(relayer.sign(1))

    async def count(tag: Any) -> int:
        return await evm.transaction_count(Address(relayer.address), tag, evm.deadline_in(PATIENCE_S))

    assert (await count("latest"), await count("pending")) == (0, 1)
    pending = await evm.block_at("pending", evm.deadline_in(PATIENCE_S))
    assert (pending.number, pending.block_hash) == (start.number + 1, UNSEALED)
    assert await evm.block(start.number + 1, evm.deadline_in(PATIENCE_S)) is None
    assert await evm.logs(evm.deadline_in(PATIENCE_S), addresses=[TOKEN], from_block=start.number + 1) == ()
    logs = await evm.logs(evm.deadline_in(PATIENCE_S), addresses=[TOKEN], from_block=start.number + 1, to_block="pending")
    assert [log.block_hash for log in logs] == [UNSEALED]
    await base_sim.no_flashblocks()
    assert (await count("latest"), await count("pending")) == (1, 1)


async def test_a_flashblock_may_be_lost_before_the_seal(base_sim: BaseSim, evm: EvmClient, relayer: Relayer) -> None:
    await base_sim.flashblocks()
    tx_hash = await transfer(base_sim, relayer, 0)
    assert (await evm.receipts([tx_hash], evm.deadline_in(PATIENCE_S)))[0] is not None
    await base_sim.upstream.result("anvil_reorg", 1, [])
    await base_sim.seal()

    assert await evm.receipts([tx_hash], evm.deadline_in(PATIENCE_S)) == [None]


async def test_seals_come_by_themselves_after_so_many_flashblocks(base_sim: BaseSim, evm: EvmClient) -> None:
    await base_sim.flashblocks(seal_every=3)
    start = (await evm.head(evm.deadline_in(PATIENCE_S))).number
    heads = []
    for _ in range(7):
        await base_sim.mine()
        heads.append((await evm.head(evm.deadline_in(PATIENCE_S))).number - start)

    assert heads == [0, 0, 3, 3, 3, 6, 6]


async def test_sync_returns_a_preconfirmed_receipt(base_sim: BaseSim, relayer: Relayer) -> None:
    await base_sim.flashblocks()
    parameters = ("0x" + relayer.sign(0).raw.hex(), 4_000)
    answer = asyncio.create_task(relayer.evm.rpc.call("eth_sendRawTransactionSync", parameters, relayer.evm.deadline_in(PATIENCE_S)))
    while not base_sim.pool.pending():
        await asyncio.sleep(0.001)
    await base_sim.mine()

    assert f'"blockHash":"{UNSEALED}"' in bytes(await answer).decode()


async def test_calls_run_in_the_past_when_told(base_sim: BaseSim, evm: EvmClient) -> None:
    head = await evm.head(evm.deadline_in(PATIENCE_S))
    base_sim.rules = Rules(call_lag_s=10)

    times = {}
    for tag in ("latest", "pending", hex(head.number)):
        answer = await evm.rpc.call("eth_call", ({"data": TIMESTAMP_CODE}, tag), evm.deadline_in(PATIENCE_S))
        times[tag] = int(bytes(answer)[3:-1], 16) - head.timestamp
    assert times == {"latest": -10, "pending": -10, hex(head.number): 0}


# Websockets.


class Socket:
    """A JSON-RPC client over a websocket, as plain as can be."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.heard: list[dict[str, Any]] = []

    async def ask(self, method: str, *params: object) -> dict[str, Any]:
        await self.socket.send_json({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        while True:
            body: dict[str, Any] = await self.socket.receive_json(timeout=PATIENCE_S)
            if "method" not in body:
                return body
            self.heard.append(body)

    async def hear(self) -> Any:
        if self.heard:
            return self.heard.pop(0)["params"]["result"]
        return (await self.socket.receive_json(timeout=PATIENCE_S))["params"]["result"]

    async def silent(self) -> bool:
        try:
            await self.socket.receive(timeout=0.1)
        except TimeoutError:
            return not self.heard
        return False


Open = Callable[[], Awaitable[Socket]]


@pytest_asyncio.fixture
async def open_socket(base_sim: BaseSim) -> AsyncIterator[Open]:
    async with aiohttp.ClientSession() as session:

        async def make() -> Socket:
            return Socket(await session.ws_connect(base_sim.ws_url))

        yield make


async def test_new_heads_and_logs_pass_through(base_sim: BaseSim, relayer: Relayer, open_socket: Open) -> None:
    heads, logs = await open_socket(), await open_socket()
    assert "result" in await heads.ask("eth_subscribe", "newHeads")
    assert "result" in await logs.ask("eth_subscribe", "logs", {"address": TOKEN})
    tx_hash = await transfer(base_sim, relayer, 0)

    head = await heads.hear()
    assert int(head["number"], 16) == (await relayer.evm.head(relayer.evm.deadline_in(PATIENCE_S))).number
    assert (await logs.hear())["transactionHash"] == tx_hash
    assert len(base_sim.notifications) == 2


async def test_calls_and_faults_work_over_a_websocket(base_sim: BaseSim, open_socket: Open) -> None:
    socket = await open_socket()
    assert (await socket.ask("eth_chainId"))["result"] == hex(84532)
    base_sim.fail("eth_chainId", with_=NodeSays(-32603, "internal error"))
    assert (await socket.ask("eth_chainId"))["error"]["code"] == -32603

    base_sim.fail("eth_chainId", with_=Garbage(b"<html>"))
    await socket.socket.send_json({"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []})
    assert (await socket.socket.receive(timeout=PATIENCE_S)).data == "<html>"
    base_sim.fail("eth_chainId", with_=Drop())
    await socket.socket.send_json({"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []})
    assert (await socket.socket.receive(timeout=PATIENCE_S)).type in {aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR}


async def test_websockets_are_cut_on_command_and_may_be_refused(base_sim: BaseSim, open_socket: Open) -> None:
    sockets = [await open_socket(), await open_socket()]
    for socket in sockets:
        await socket.ask("eth_subscribe", "newHeads")

    assert base_sim.drop_websockets() == 2
    for socket in sockets:
        assert (await socket.socket.receive(timeout=PATIENCE_S)).type in {aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR}
    base_sim.refuse_websockets = True
    with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
        await open_socket()
    base_sim.refuse_websockets = False
    assert "result" in await (await open_socket()).ask("eth_subscribe", "newHeads")


async def test_a_muted_subscription_stands_and_says_nothing(base_sim: BaseSim, open_socket: Open) -> None:
    socket = await open_socket()
    await socket.ask("eth_subscribe", "newHeads")
    base_sim.mute()
    await base_sim.mine()
    assert await socket.silent()
    assert (await socket.ask("eth_chainId"))["result"] == hex(84532)

    base_sim.mute(muted=False)
    await base_sim.mine()
    assert await socket.hear()


async def test_unsubscribed_is_unsubscribed(base_sim: BaseSim, open_socket: Open) -> None:
    socket = await open_socket()
    subscription = (await socket.ask("eth_subscribe", "newHeads"))["result"]
    assert (await socket.ask("eth_unsubscribe", subscription))["result"] is True
    await base_sim.mine()

    assert await socket.silent()


async def test_heads_are_announced_at_the_seal_and_pending_logs_before(base_sim: BaseSim, relayer: Relayer, open_socket: Open) -> None:
    heads, logs, transactions, blocks = [await open_socket() for _ in range(4)]
    assert "error" in await logs.ask("eth_subscribe", "pendingLogs", {"address": TOKEN})
    await base_sim.flashblocks()
    await heads.ask("eth_subscribe", "newHeads")
    assert "result" in await logs.ask("eth_subscribe", "pendingLogs", {"address": TOKEN})
    assert "result" in await transactions.ask("eth_subscribe", "newFlashblockTransactions")
    assert "result" in await blocks.ask("eth_subscribe", "newFlashblocks")
    tx_hash = await transfer(base_sim, relayer, 0)
    await base_sim.mine()

    log = await logs.hear()
    assert (log["transactionHash"], log["blockHash"]) == (tx_hash, UNSEALED)
    assert await transactions.hear() == tx_hash
    assert (await blocks.hear())["hash"] == UNSEALED
    await heads.ask("eth_chainId")
    assert heads.heard == []
    newest = await base_sim.seal()
    assert [int((await heads.hear())["number"], 16) for _ in range(2)] == [newest - 1, newest]


async def test_pubsub_needs_a_websocket(evm: EvmClient) -> None:
    with pytest.raises(ChainFault) as caught:
        await evm.rpc.call("eth_subscribe", ("newHeads",), evm.deadline_in(PATIENCE_S))
    assert caught.value.kind == NodeError.METHOD_UNSUPPORTED.value
