"""SIGTERM under load: nobody is left without an answer, the process ends in time, and the next start loses nothing."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import asyncpg
import pytest_asyncio

from tests.fixtures.house import AMOUNT, Answer, House, Paid, client_session, eventually, words
from tests.fixtures.waiting import PATIENCE_S

CLIENTS = 20
GRACE_S = 600.0
"""Nobody waits that long for somebody who may yet be told the truth."""
BRIEF_GRACE_S = 4.0
DRAIN_S = 0.5
IN_POOL_MAX = 16
"""`slots_max`: the others wait for room in the relayer."""


@pytest_asyncio.fixture
async def house(tmp_path: Path, database_url: str) -> AsyncIterator[House]:
    async with open_house(tmp_path, database_url, GRACE_S) as house:
        yield house


@pytest_asyncio.fixture
async def hurried_house(tmp_path: Path, database_url: str) -> AsyncIterator[House]:
    """It tells how things stand a second before BRIEF_GRACE_S is over."""
    async with open_house(tmp_path, database_url, BRIEF_GRACE_S) as house:
        yield house


@contextlib.asynccontextmanager
async def open_house(directory: Path, database_url: str, grace_s: float) -> AsyncIterator[House]:
    settlement = {"batching": "off", "slots_soft": 16, "deadline_s": 600.0}
    async with House.open(
        directory, database_url, settlement=settlement, server={"stop_grace_s": grace_s, "drain_delay_s": DRAIN_S}
    ) as house:
        await house.serve()
        yield house


async def under_way(house: House, session: aiohttp.ClientSession, number: int) -> None:
    """Return when so many callers wait, each for its transaction or for room; the session keeps a connection to ask on."""

    async def waiting() -> bool:
        async with session.get(f"{house.services[0].base_url}/metrics") as response:
            text = await response.text()
        depth = next(line.rpartition(" ")[2] for line in text.splitlines() if line.startswith("facilitator_queue_depth{"))
        return float(depth) >= number - IN_POOL_MAX

    await house.pooled(min(number, IN_POOL_MAX))
    await eventually(waiting, "the others to wait for room")


async def ended(house: House) -> int:
    """Exit status of the service, which must end by itself."""
    service = house.services[0]

    async def over() -> bool:
        return not service.running

    await eventually(over, "the service to end")
    return await service.aterminate()  # it has ended: this only reads the status


async def readiness_drops(house: House, session: aiohttp.ClientSession) -> None:
    """While it drains, `/readyz` says why; connections that were open go on."""

    async def draining() -> bool:
        async with session.get(f"{house.services[0].base_url}/readyz") as response:
            gates = (await response.json())["gates"]
            return response.status == 503 and gates["not_draining"] is False and gates["store_reached"] is True

    await eventually(draining, "readiness to drop")


async def settle_again(house: House, session: aiohttp.ClientSession, payments: list[Paid]) -> list[Answer]:
    """Every payment asked for again until it is decided."""

    async def decided(payment: Paid) -> Answer:
        async with asyncio.timeout(PATIENCE_S):
            while (answer := await house.settle(session, payment)).word in {"settlement_pending", "not_sent", "draining"}:
                await asyncio.sleep(0.05)
        return answer

    return await asyncio.gather(*(decided(payment) for payment in payments))


async def test_sigterm_while_blocks_come_answers_every_waiter_with_the_truth(house: House) -> None:
    payments = [house.payment() for _ in range(CLIENTS)]
    await house.mine_on_command()
    async with client_session() as session:
        waiting = [asyncio.create_task(house.settle(session, payment)) for payment in payments]
        await under_way(house, session, CLIENTS)
        house.services[0].send_signal(signal.SIGTERM)
        await readiness_drops(house, session)
        await house.mine_at_once()
        answers = await asyncio.gather(*waiting)
        assert set(words(answers)) <= {"success", "draining"}
        assert words(answers)["success"] >= IN_POOL_MAX, "the others had room, or were told, as blocks came before or after the drain"
        assert await ended(house) == 0, "it stops as soon as nobody waits"

        await house.services[0].astart()
        again = await settle_again(house, session, payments)
        for first, second in zip(answers, again, strict=True):
            assert second.word == ("duplicate_settlement" if first.word == "success" else "success")
            assert first.transaction in {second.transaction, ""}
    await house.assert_ledger_is_chain(settled=CLIENTS)


async def test_sigterm_while_the_chain_stands_still_tells_every_waiter_how_things_stand(hurried_house: House) -> None:
    house = hurried_house
    payments = [house.payment() for _ in range(CLIENTS)]
    await house.mine_on_command()
    async with client_session() as session:
        waiting = [asyncio.create_task(house.settle(session, payment)) for payment in payments]
        await under_way(house, session, CLIENTS)
        house.services[0].send_signal(signal.SIGTERM)
        await readiness_drops(house, session)
        answers = await asyncio.gather(*waiting)
        assert await ended(house) == 0

        told = [event.get("error") for event in house.services[0].log_events if event.get("route") == "/settle"]
        unsent = CLIENTS - IN_POOL_MAX
        assert told == ["draining"] * unsent + [None] * IN_POOL_MAX, "those without a slot at once, the others when the grace ends"
        pending = [answer for answer in answers if answer.word == "settlement_pending"]
        assert len(pending) == IN_POOL_MAX
        for answer in pending:
            assert answer.status == 200
            assert await house.call("eth_getTransactionByHash", answer.transaction) is not None
        assert {answer.status for answer in answers if answer not in pending} == {503}, "nothing was sent for them"

        await house.services[0].astart()
        await house.mine_at_once()
        again = await settle_again(house, session, payments)
        assert words(again) == {"success": CLIENTS}, "nobody was told a success before"
        told = {answer.transaction for answer in again}
        assert {answer.transaction for answer in pending} <= told
        for payment in payments:
            assert await house.balance(payment) == AMOUNT
    await house.assert_ledger_is_chain(settled=CLIENTS)


async def test_sigterm_gives_the_relayer_to_the_other_service_at_once(tmp_path: Path, database_url: str) -> None:
    """Leases last ten minutes here: who waits for their end waits too long."""
    leases = {"lease_ttl_s": 600.0, "lease_trust_s": 400.0, "batching": "off", "slots_soft": 16}
    async with (
        House.open(tmp_path, database_url, settlement=leases, server={"stop_grace_s": GRACE_S}) as house,
        client_session() as session,
    ):
        leaving, staying = await house.serve(), await house.serve()
        assert (await house.settle(session, house.payment(), service=leaving)).word == "success"
        await house.mine_on_command()
        waiting = [asyncio.create_task(house.settle(session, house.payment(), service=service)) for service in (leaving, staying) * 3]
        await house.pooled(len(waiting))

        leaving.send_signal(signal.SIGTERM)
        await house.mine_at_once()

        assert words(await asyncio.gather(*waiting)) == {"success": len(waiting)}
        assert await ended(house) == 0
        async with asyncio.timeout(GRACE_S):
            assert (await house.settle(session, house.payment(), service=staying)).word == "success"
        connection = await asyncpg.connect(database_url)
        try:
            [row] = await connection.fetch("select epoch, owner from relayer")
        finally:
            await connection.close()
        assert (row["epoch"], row["owner"] is not None) == (2, True)
        await house.assert_ledger_is_chain(settled=len(waiting) + 2)


async def test_a_request_on_an_open_connection_is_told_that_the_service_stops(house: House) -> None:
    await house.mine_on_command()
    async with client_session() as session:
        waiting = asyncio.create_task(house.settle(session, house.payment()))
        await under_way(house, session, 1)
        house.services[0].send_signal(signal.SIGTERM)
        await readiness_drops(house, session)

        async def listener_closed() -> bool:
            return not await _connects(house.services[0].port)

        await eventually(listener_closed, "the listener to close")
        told = await house.settle(session, house.payment())  # on the connection that asked about readiness
        assert (told.status, told.word) == (503, "draining")
        await house.mine_at_once()
        assert (await waiting).word == "success"
        assert await ended(house) == 0


async def _connects(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def test_a_second_sigterm_ends_the_process_at_once(house: House) -> None:
    payments = [house.payment() for _ in range(5)]
    await house.mine_on_command()
    service = house.services[0]
    async with client_session() as session:
        waiting = [asyncio.create_task(house.settle(session, payment)) for payment in payments]
        await under_way(house, session, len(payments))
        service.send_signal(signal.SIGTERM)
        await readiness_drops(house, session)
        assert service.running
        service.send_signal(signal.SIGTERM)
        assert await ended(house) == 1, "it did not wait for anybody"
        for task in waiting:
            with contextlib.suppress(aiohttp.ClientError):
                raise AssertionError(f"answered by a process that was told to leave: {await task}")

        await house.mine_at_once()
        await house.leases_run_out(service)
        await service.astart()
        again = await settle_again(house, session, payments)
        assert words(again) == {"success": len(payments)}
    await house.assert_ledger_is_chain(settled=len(payments))
