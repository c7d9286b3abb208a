"""How deep a payment must be, from the command line to the answer over HTTP; what a reorganisation shows to its tenant."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.fixtures.base_sim import base_sim_before
from tests.fixtures.house import Answer, House, Paid, client_session, eventually

SETTLEMENT = {"finality_poll_s": 0.2, "deadline_s": 6.0, "bump_blocks": 1000}


@pytest_asyncio.fixture
async def house(tmp_path: Path, database_url: str) -> AsyncIterator[House]:
    """`safe` is two blocks behind the head, `finalized` four; blocks on command."""
    async with House.open(tmp_path, database_url, settlement=SETTLEMENT, slots_in_an_epoch=2) as house:
        await house.mine_on_command()
        yield house


async def choose(house: House, *rules: str) -> None:
    """Set rules of the tenant, as its operator does."""
    await house.key("test")
    await asyncio.to_thread(house.services[0].command, "tenants", "set", "test", *rules)


async def state_of(house: House, session: aiohttp.ClientSession, payment: Paid) -> str:
    return str((await house.look_up(session, payment)).json.get("state"))


async def settle_in_block(house: House, session: aiohttp.ClientSession, payment: Paid) -> "asyncio.Task[Answer]":
    """Ask, and mine the block that pays."""
    task = asyncio.create_task(house.settle(session, payment))
    await house.pooled()
    await house.mine()

    async def included() -> bool:
        return await state_of(house, session, payment) == "included"

    await eventually(included, "inclusion")
    return task


@pytest.mark.parametrize(("level", "blocks"), [("safe", 2), ("finalized", 4)])
async def test_a_tenant_s_own_level_is_waited_for_and_a_repeat_after_the_deadline_hears_the_truth(
    house: House, level: str, blocks: int
) -> None:
    await house.serve()
    await choose(house, "--confirm-level", level)
    async with client_session() as session:
        payment = house.payment()
        task = await settle_in_block(house, session, payment)
        pending = await task
        assert (pending.status, pending.word) == (200, "settlement_pending")

        for _ in range(blocks):
            await house.mine()
        while (told := await house.settle(session, payment)).word == "settlement_pending":
            pass
        assert (told.word, told.transaction) == ("success", pending.transaction)
        found = (await house.look_up(session, payment)).json
        assert (found["state"], found["answered"]) == (level, True)
        assert (await house.settle(session, payment)).word == "duplicate_settlement"
    await house.assert_ledger_is_chain(settled=1)


async def test_by_default_a_sealed_block_is_deep_enough(house: House) -> None:
    await house.serve()
    async with client_session() as session:
        payment = house.payment()
        assert (await (await settle_in_block(house, session, payment))).word == "success"
        assert await state_of(house, session, payment) == "included"
    await house.assert_ledger_is_chain(settled=1)


async def test_a_tenant_that_opted_in_hears_success_from_a_flashblock_and_others_do_not(house: House) -> None:
    async with base_sim_before(house.rpc_url) as sim, client_session() as session:
        house.rpc_url = sim.url
        await house.serve()
        await choose(house, "--confirm-level", "preconfirmed")
        await house.key("globex")
        await sim.flashblocks()
        quick, usual = house.payment(), house.payment()
        tasks = [asyncio.create_task(house.settle(session, quick)), asyncio.create_task(house.settle(session, usual, tenant="globex"))]
        await eventually(lambda: pooled(sim, 2), "both in the pool")
        await sim.mine()

        assert (await tasks[0]).word == "success"
        assert await state_of(house, session, quick) == "preconfirmed"
        assert not tasks[1].done()
        await sim.seal()
        assert (await tasks[1]).word == "success"
        await sim.no_flashblocks()

        async def final() -> bool:
            await sim.mine()
            return await state_of(house, session, quick) == "finalized"

        await eventually(final, "finality", poll_s=0.05)
        found = (await house.look_up(session, quick)).json
        assert [move["state"] for move in found["history"]][:4] == ["queued", "submitted", "preconfirmed", "included"]
        assert found["incidents"] == []
        await house.assert_ledger_is_chain(settled=2)
        await house.services[0].aterminate()


async def pooled(sim: Any, count: int) -> bool:
    return len(sim.pool.pending()) >= count


async def test_a_reorganisation_after_success_shows_its_incident_to_the_tenant_and_ends_right_by_itself(house: House) -> None:
    await house.serve()
    for _ in range(4):
        await house.mine()
    async with client_session() as session:
        payment = house.payment()
        told = await (await settle_in_block(house, session, payment))
        assert told.word == "success"
        await house.mine()
        await house.call("anvil_reorg", 2, [])

        async def noticed() -> bool:
            await house.mine()
            return bool((await house.look_up(session, payment)).json["incidents"])

        await eventually(noticed, "the incident", poll_s=0.05)

        async def final() -> bool:
            await house.mine()
            return await state_of(house, session, payment) == "finalized"

        await eventually(final, "finality", poll_s=0.05)
        identity = (await house.look_up(session, payment)).json["id"]
        headers = {"Authorization": f"Bearer {await house.key('test')}"}
        async with session.get(f"{house.services[0].base_url}/settlements/{identity}", headers=headers) as response:
            found = await response.json()
        assert [(incident["kind"], incident["transaction"]) for incident in found["incidents"]] == [("reorganised", told.transaction)]
        assert [move["state"] for move in found["history"]][:4] == ["queued", "submitted", "included", "submitted"]
        assert (found["transaction"], found["answered"]) == (told.transaction, True)
        assert (await house.settle(session, payment)).word == "duplicate_settlement"
    await house.assert_ledger_is_chain(settled=1)
