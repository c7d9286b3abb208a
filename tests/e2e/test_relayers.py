"""Relayer keys come and go while payments are made: none is lost, none is made twice, and no service is restarted."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
import pytest_asyncio
from eth_account.signers.local import LocalAccount

from facilitator.devstack.accounts import dev_account
from tests.fixtures.house import House, Paid, client_session, eventually
from tests.fixtures.service import BASE_SEPOLIA, ServeFailed

CALLERS = 12
ETHER = 10**18
_KEYS = itertools.count(41_000)


@pytest_asyncio.fixture
async def house(tmp_path: Path, database_url: str) -> AsyncIterator[House]:
    async with House.open(tmp_path, database_url, settlement={"batching": "off"}) as house:
        await house.serve()
        await house.serve()
        yield house


class Load:
    """Callers who pay all the time, at both services, each payment until it is decided."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.paid = 0
        self.enough = asyncio.Event()

    async def run(self) -> None:
        async with client_session() as session, asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                group.create_task(self._caller(session, number))

    async def _caller(self, session: aiohttp.ClientSession, number: int) -> None:
        service = self.house.services[number % 2]
        while not self.enough.is_set():
            payment: Paid = self.house.payment()
            while (answer := await self.house.settle(session, payment, service=service)).word != "success":
                assert answer.status == 503 or answer.word == "settlement_pending", answer
            self.paid += 1

    async def more(self, payments: int) -> None:
        """Return when so many more were made."""
        goal = self.paid + payments

        async def made() -> bool:
            return self.paid >= goal

        await eventually(made, f"{payments} more payments")


async def rows(house: House, sql: str, *arguments: object) -> list[Any]:
    connection = await asyncpg.connect(house.database_url)
    try:
        return list(await connection.fetch(sql, *arguments))
    finally:
        await connection.close()


async def key_file(house: House, directory: Path) -> tuple[LocalAccount, Path]:
    """A new relayer with gas money, and the file with its key."""
    relayer = dev_account("relayer", next(_KEYS))
    await house.token.set_gas_money(relayer.address, 10 * ETHER)
    path = directory / f"{relayer.address}.key"
    path.touch(mode=0o600)
    path.write_text("0x" + bytes(relayer.key).hex(), "utf-8")
    return relayer, path


async def command(house: House, *arguments: str) -> str:
    return await asyncio.to_thread(house.services[0].command, "relayers", *arguments)


async def carried(house: House, relayer: LocalAccount) -> int:
    [row] = await rows(house, "select count(*) from relayer_slot where relayer = $1", relayer.address.lower())
    return int(row["count"])


async def quiet(house: House, relayer: LocalAccount) -> None:
    """Return when nothing of the relayer is in flight."""

    async def none_open() -> bool:
        return not await rows(house, "select from relayer_slot where relayer = $1 and state = 'open'", relayer.address.lower())

    await eventually(none_open, "the drained relayer's transactions to be mined")


async def test_keys_are_added_drained_and_removed_under_load(house: House, tmp_path: Path) -> None:
    old = house.relayer
    (first, first_file), (second, second_file) = await key_file(house, tmp_path), await key_file(house, tmp_path)
    pids = [service.pid for service in house.services]
    load = Load(house)
    paying = asyncio.create_task(load.run())
    await load.more(20)

    assert first.address in await command(house, "add", "--network", BASE_SEPOLIA, f"file:{first_file}")
    await command(house, "add", "--network", BASE_SEPOLIA, f"file:{second_file}")
    for relayer in (first, second):

        async def used(relayer: LocalAccount = relayer) -> bool:
            return await carried(house, relayer) > 0

        await eventually(used, "an added relayer to carry payments")

    async def shared() -> bool:
        owners = await rows(house, "select owner, count(*) from relayer where lease_until > now() group by owner")
        return sorted(row["count"] for row in owners) == [1, 2]

    await eventually(shared, "both services to hold relayers")
    await command(house, "drain", "--network", BASE_SEPOLIA, old.address)
    await load.more(20)
    await quiet(house, old)
    await command(house, "remove", "--network", BASE_SEPOLIA, old.address)
    until_now = await carried(house, old)
    await load.more(20)
    assert await carried(house, old) == until_now, "a removed relayer carries nothing"

    await command(house, "drain", "--network", BASE_SEPOLIA, first.address)
    await quiet(house, first)
    await command(house, "remove", "--network", BASE_SEPOLIA, first.address)
    await load.more(10)
    assert first.address in await command(house, "add", "--network", BASE_SEPOLIA, f"file:{first_file}")
    again = await carried(house, first)

    async def used_again() -> bool:
        return await carried(house, first) > again

    await eventually(used_again, "a relayer that was removed and added again to carry payments")
    load.enough.set()
    await paying

    listed = {line.split()[1]: line for line in (await command(house, "list")).splitlines()}
    assert set(listed) == {old.address, first.address, second.address}
    assert "config" in listed[old.address]
    assert "removed" in listed[old.address]
    assert all(word in listed[first.address] for word in ("file", "active", "coins", "0 open", "held by"))
    assert [service.pid for service in house.services] == pids
    for service in house.services:
        assert not [event for event in service.log_events if event.get("level") == "error"]
        assert bytes(first.key).hex() not in service.logs
    await house.assert_ledger_is_chain(settled=load.paid)


async def test_a_reference_that_leads_nowhere_here_is_told_once_and_the_others_go_on(house: House) -> None:
    elsewhere = dev_account("relayer", next(_KEYS))
    added = await command(house, "add", "--network", BASE_SEPOLIA, "--address", elsewhere.address, "env:KEY_OF_ANOTHER_MACHINE")
    assert "send it gas money" in added

    def told(index: int) -> list[dict[str, object]]:
        return [event for event in house.services[index].log_events if event.get("event") == "relayer.unresolved"]

    async def both() -> bool:
        return all(told(index) for index in (0, 1))

    await eventually(both, "both services to say so")
    async with client_session() as session:
        for _ in range(10):
            assert (await house.settle(session, house.payment())).word == "success"
    assert [len(told(index)) for index in (0, 1)] == [1, 1]
    assert told(0)[0]["reference"] == "env:KEY_OF_ANOTHER_MACHINE"
    [line] = [line for line in (await command(house, "list")).splitlines() if elsewhere.address in line]
    assert "env" in line
    assert "held by nobody" in line
    doctored = await asyncio.to_thread(house.services[0].command, "doctor")
    assert f"warn  {BASE_SEPOLIA} {elsewhere.address.lower()[:10]}" in doctored
    await house.assert_ledger_is_chain(settled=10)


async def test_what_cannot_be_added_is_refused_and_a_key_is_never_quoted(house: House, tmp_path: Path) -> None:
    relayer, path = await key_file(house, tmp_path)
    key = "0x" + bytes(relayer.key).hex()
    with pytest.raises(ServeFailed, match="must not stand in the configuration") as raised:
        house.services[0].command("relayers", "add", "--network", BASE_SEPOLIA, key)
    assert key not in str(raised.value).partition("ended with")[2]
    with pytest.raises(ServeFailed, match="is not set"):
        await command(house, "add", "--network", BASE_SEPOLIA, "env:NOT_THERE")
    with pytest.raises(ServeFailed, match="leads to the key of"):
        await command(house, "add", "--network", BASE_SEPOLIA, "--address", house.relayer.address, f"file:{path}")
    await house.call("anvil_setCode", relayer.address, "0xef0100" + "22" * 20)
    with pytest.raises(ServeFailed, match="must be a plain account"):
        await command(house, "add", "--network", BASE_SEPOLIA, f"file:{path}")
    assert [row["address"] for row in await rows(house, "select address from relayer")] == [house.relayer.address.lower()]


async def test_a_relayer_with_transactions_in_flight_is_not_removed(house: House) -> None:
    await house.mine_on_command()
    async with client_session() as session:
        waiting = asyncio.create_task(house.settle(session, house.payment()))
        await house.pooled()
        with pytest.raises(ServeFailed, match="open transactions"):
            await command(house, "remove", "--network", BASE_SEPOLIA, house.relayer.address)
        assert " active " in await command(house, "list"), "nothing has changed"
        await house.mine_at_once()
        assert (await waiting).word == "success"
    await house.assert_ledger_is_chain(settled=1)
    for service in house.services:
        await service.akill()
        await house.leases_run_out(service)
    listed = (await command(house, "list")).splitlines()
    assert all("held by nobody" in line for line in listed), "an owner that died holds nothing"
