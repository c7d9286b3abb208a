"""SIGTERM under load: nobody is left without an answer, the process ends in time, and the next start loses nothing."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import asyncpg
import pytest_asyncio

from tests.fixtures.house import AMOUNT, Answer, House, Paid, client_session, eventually, words

CLIENTS = 20
GRACE_S = 4.0
DRAIN_S = 0.5
IN_POOL_MAX = 16
"""`slots_max`: the others wait for room in the relayer."""


@pytest_asyncio.fixture
async def house(tmp_path: Path, database_url: str) -> AsyncIterator[House]:
    async with House.open(
        tmp_path, database_url, settlement={"batching": "off", "slots_soft": 16}, server={"stop_grace_s": GRACE_S, "drain_delay_s": DRAIN_S}
    ) as house:
        await house.serve()
        yield house


async def ended(house: House) -> int:
    """Exit status of the service, which must end by itself."""
    service = house.services[0]

    async def over() -> bool:
        return not service.running

    await eventually(over, "the service to end", timeout_s=GRACE_S + DRAIN_S + 10)
    return await service.aterminate()  # it has ended: this only reads the status


async def readiness_drops(house: House, session: aiohttp.ClientSession) -> None:
    """While it drains, `/readyz` says why; connections that were open go on."""

    async def draining() -> bool:
        async with session.get(f"{house.services[0].base_url}/readyz") as response:
            gates = (await response.json())["gates"]
            return response.status == 503 and gates["not_draining"] is False and gates["store_reached"] is True

    await eventually(draining, "readiness to drop", timeout_s=DRAIN_S + 2)


async def settle_again(house: House, session: aiohttp.ClientSession, payments: list[Paid]) -> list[Answer]:
    """Every payment asked for again until it is decided."""

    async def decided(payment: Paid) -> Answer:
        async with asyncio.timeout(20):
            while (answer := await house.settle(session, payment)).word in {"settlement_pending", "not_sent", "draining"}:
                await asyncio.sleep(0.05)
        return answer

    return await asyncio.gather(*(decided(payment) for payment in payments))


async def test_sigterm_while_blocks_come_answers_every_waiter_with_the_truth(house: House) -> None:
    payments = [house.payment() for _ in range(CLIENTS)]
    await house.mine_on_command()
    async with client_session() as session:
        waiting = [asyncio.create_task(house.settle(session, payment)) for payment in payments]
        await house.pooled(IN_POOL_MAX)
        started = time.monotonic()
        house.services[0].send_signal(signal.SIGTERM)
        await readiness_drops(house, session)
        await house.mine_at_once()
        answers = await asyncio.gather(*waiting)
        assert words(answers) == {"success": CLIENTS}
        assert await ended(house) == 0
        assert time.monotonic() - started < DRAIN_S + GRACE_S, "it stops as soon as nobody waits"

        await house.services[0].astart()
        again = await settle_again(house, session, payments)
        assert words(again) == {"duplicate_settlement": CLIENTS}
        assert [answer.transaction for answer in again] == [answer.transaction for answer in answers]
    await house.assert_ledger_is_chain(settled=CLIENTS)


async def test_sigterm_while_the_chain_stands_still_tells_every_waiter_how_things_stand(house: House) -> None:
    payments = [house.payment() for _ in range(CLIENTS)]
    await house.mine_on_command()
    async with client_session() as session:
        waiting = [asyncio.create_task(house.settle(session, payment)) for payment in payments]
        await house.pooled(IN_POOL_MAX)
        started = time.monotonic()
        house.services[0].send_signal(signal.SIGTERM)
        await readiness_drops(house, session)

        async def unsent_are_told() -> bool:
            return sum(task.done() for task in waiting) >= CLIENTS - IN_POOL_MAX

        await eventually(unsent_are_told, "those without a slot to be told, long before the grace ends", timeout_s=GRACE_S - 1.5)
        assert words([await task for task in waiting if task.done()]) == {"draining": CLIENTS - IN_POOL_MAX}
        answers = await asyncio.gather(*waiting)
        assert await ended(house) == 0
        assert time.monotonic() - started < DRAIN_S + GRACE_S + 5

        pending = [answer for answer in answers if answer.word == "settlement_pending"]
        assert len(pending) == IN_POOL_MAX
        for answer in pending:
            assert answer.status == 200
            assert await house.call("eth_getTransactionByHash", answer.transaction) is not None
        unsent = [answer for answer in answers if answer not in pending]
        assert {answer.status for answer in unsent} == {503}, "nothing was sent for them, and they are told so"

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
    """Leases last a minute here: who waits for their end waits too long."""
    leases = {"lease_ttl_s": 60.0, "lease_trust_s": 40.0, "batching": "off", "slots_soft": 16}
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
        await house.pooled()
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
        await house.pooled(len(payments))
        service.send_signal(signal.SIGTERM)
        await readiness_drops(house, session)
        assert service.running
        started = time.monotonic()
        service.send_signal(signal.SIGTERM)
        assert await ended(house) == 1
        assert time.monotonic() - started < DRAIN_S + GRACE_S - 1, "it did not wait for anybody"
        for task in waiting:
            with contextlib.suppress(aiohttp.ClientError):
                raise AssertionError(f"answered by a process that was told to leave: {await task}")

        await house.mine_at_once()
        await service.astart()
        again = await settle_again(house, session, payments)
        assert words(again) == {"success": len(payments)}
    await house.assert_ledger_is_chain(settled=len(payments))
