"""What a tenant may have under way at the same time, on a real chain that takes its time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from facilitator.devstack.stack import Anvil
from facilitator.devstack.token import Token
from facilitator.domain.limits import Limits
from facilitator.protocol.reasons import Reason
from facilitator.settlement.admission import SettleAnswer
from facilitator.settlement.restraints import LimitReached
from tests.fixtures.waiting import PATIENCE_S
from tests.integration.settlement.conftest import decoded
from tests.integration.settlement.test_engine import NewBuyer, StartEngine, reason, terms


async def mined(anvil: Anvil, task: "asyncio.Task[SettleAnswer]") -> SettleAnswer:
    """Mine until it has its answer."""
    async with asyncio.timeout(PATIENCE_S):
        while not task.done():
            await anvil.node.call("evm_mine")
            await asyncio.wait([task], timeout=0.1)
    return task.result()


async def test_one_more_than_the_limit_is_told_so_leaves_no_settlement_and_may_come_again(
    start_engine: StartEngine, new_buyer: NewBuyer, start_chain: Callable[..., Awaitable[Any]]
) -> None:
    slow = await start_chain(automine=False)
    slow_token = Token.at(slow.rpc_url)
    rig = await start_engine(rpc_url=slow.rpc_url, ready=False)
    await slow_token.set_gas_money(rig.engine.supported().signers["eip155:*"][0], 10**18)
    buyer, asked = await new_buyer(token=slow_token), terms()
    limited, other = rig.caller(limits=Limits(settlements_max=1)), rig.caller("globex")
    first, second, third = (decoded(buyer.pay(2, asked), asked) for _ in range(3))
    holder = asyncio.create_task(rig.engine.settle(limited, first, None))
    async with asyncio.timeout(PATIENCE_S):
        while not await rig.fetch("select from settlement"):
            await asyncio.sleep(0.01)

    with pytest.raises(LimitReached) as raised:
        await rig.engine.settle(limited, second, None)

    assert (raised.value.breach.limit, raised.value.breach.facts) == ("settlementsMax", {"max": 1, "left": 0})
    assert raised.value.breach.frees_s is not None
    assert 1 <= raised.value.breach.frees_s <= rig.settings.deadline_s
    [counted] = await rig.fetch("select count(*) as settlements from settlement")
    assert counted["settlements"] == 1
    foreign = asyncio.create_task(rig.engine.settle(other, third, None))
    repeat = asyncio.create_task(rig.engine.settle(limited, first, None))
    await mined(slow, holder)
    answer = holder.result()
    assert reason(answer) is None
    assert answer.ticket is not None
    await rig.engine.delivered(answer.ticket)
    assert reason(await repeat) is Reason.DUPLICATE_SETTLEMENT, "a repeat took no room, and heard what it is"
    await mined(slow, foreign)
    assert reason(foreign.result()) is None, "another tenant's room is its own"
    assert reason(await mined(slow, asyncio.create_task(rig.engine.settle(limited, second, None)))) is None
