"""New heads over a real websocket."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from facilitator.chain.heads import follow_heads
from facilitator.devstack.stack import Anvil
from facilitator.domain.facts import Head
from facilitator.errors import ChainFault
from tests.fixtures.waiting import PATIENCE_S


async def test_each_block_is_heard_once_until_the_connection_is_lost(start_chain: Callable[..., Awaitable[Anvil]]) -> None:
    anvil = await start_chain(automine=False)
    heads: list[Head] = []
    came = asyncio.Event()

    def heard(head: Head) -> None:
        heads.append(head)
        came.set()

    following = asyncio.create_task(follow_heads(anvil.rpc_url.replace("http", "ws"), heard))
    async with asyncio.timeout(PATIENCE_S):
        while not heads:
            await anvil.node.call("evm_mine")
            await asyncio.wait([asyncio.create_task(came.wait())], timeout=0.1)
        for _ in range(3):
            came.clear()
            await anvil.node.call("evm_mine")
            await came.wait()
        await anvil.stop()
        with pytest.raises(ChainFault):
            await following
    numbers = [head.number for head in heads]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert heads[-1].base_fee_wei > 0


async def test_an_endpoint_that_is_away_is_a_fault_without_its_url() -> None:
    with pytest.raises(ChainFault) as raised:
        await follow_heads("ws://user:secret@127.0.0.1:1", lambda _: None)
    assert "secret" not in str(raised.value)
