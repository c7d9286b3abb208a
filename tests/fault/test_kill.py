"""Sudden death under load: nothing is paid twice, nothing is lost, and everybody learns the truth in the end.

Twenty clients pay at the same time, some payments with a rival that asks for the same one, while the service is killed at a
random moment and started again; a client that hears nothing, or nothing final, asks again, as the official SDKs do. Each
round ends in the oracle. `FACILITATOR_SEED` repeats a run; `make prove` runs many rounds of it.
"""

import asyncio
import os
import random
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from facilitator.devstack.children import StateDirectory
from facilitator.devstack.stack import Postgres
from facilitator.store.migrate import migrate
from tests.fixtures.house import AMOUNT, BRIEF_LEASES, Answer, House, Paid, client_session
from tests.fixtures.waiting import PATIENCE_S

ROUNDS = 4
CLIENTS = 20
RIVALS = 5
AGAIN_S = 0.1
"""How long a client waits before it asks again."""
FINAL = {"success", "duplicate_settlement"}
NOT_YET = {"settlement_pending"}


@dataclass(slots=True)
class Round:
    """What the clients of one round paid and heard."""

    payments: list[Paid] = field(default_factory=list)
    heard: list[tuple[Paid, Answer]] = field(default_factory=list)
    unanswered: int = 0
    """Requests that died with the service, or that it could not serve."""

    def successes(self, payment: Paid) -> int:
        return sum(of is payment and answer.word == "success" for of, answer in self.heard)


@pytest.fixture(scope="module")
def seed() -> int:
    """Printed when a test fails, and on demand with -s."""
    seed = int(os.environ.get("FACILITATOR_SEED") or secrets.randbelow(2**32))
    print(f"FACILITATOR_SEED={seed}")  # noqa: T201
    return seed


@pytest_asyncio.fixture
async def house(tmp_path: Path, database_url: str) -> AsyncIterator[House]:
    async with House.open(tmp_path, database_url, settlement=BRIEF_LEASES) as house:
        await house.serve()
        yield house


async def pay_until_final(house: House, session: aiohttp.ClientSession, payment: Paid, outcome: Round) -> None:
    """Ask, and ask again while nothing final was heard. Raises AssertionError for an answer that no caller should get."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            answer = await house.settle(session, payment)
        except (aiohttp.ClientError, ConnectionError, TimeoutError):
            answer = None
        if answer is not None and answer.status == 200 and answer.word in FINAL:
            assert answer.transaction.startswith("0x"), answer
            outcome.heard.append((payment, answer))
            return
        if answer is None or answer.status == 503:
            outcome.unanswered += 1
        else:
            assert answer.status == 200, answer
            assert answer.word in NOT_YET, answer
            assert answer.transaction.startswith("0x"), answer
        assert time.monotonic() < deadline, f"no final answer within {PATIENCE_S:g} s; last: {answer}"
        await asyncio.sleep(AGAIN_S)


async def pay_through(house: House, dice: random.Random, strike: Callable[[], Awaitable[None]]) -> Round:
    """CLIENTS pay within half a second; `strike` comes at a random moment meanwhile."""
    outcome = Round(payments=[house.payment() for _ in range(CLIENTS)])
    asked = [*outcome.payments, *dice.sample(outcome.payments, RIVALS)]
    delays_s = [dice.uniform(0, 0.5) for _ in asked]
    strike_s = dice.uniform(0, 0.6)

    async def client(session: aiohttp.ClientSession, payment: Paid, delay_s: float) -> None:
        await asyncio.sleep(delay_s)  # the schedule is the seed's
        await pay_until_final(house, session, payment, outcome)

    async def struck() -> None:
        await asyncio.sleep(strike_s)
        await strike()

    async with client_session() as session, asyncio.TaskGroup() as group:
        group.create_task(struck())
        for payment, delay_s in zip(asked, delays_s, strict=True):
            group.create_task(client(session, payment, delay_s))
    return outcome


async def assert_settled_once(house: House, outcome: Round, settled: int) -> None:
    """Each payment moved its money once, was told as a success at most once, and is found by its identity."""
    assert len(outcome.heard) == CLIENTS + RIVALS
    async with client_session() as session:
        for payment in outcome.payments:
            assert await house.balance(payment) == AMOUNT
            assert outcome.successes(payment) <= 1
            hashes = {answer.transaction for of, answer in outcome.heard if of is payment}
            found = await house.look_up(session, payment)
            assert found.status == 200
            assert found.json["state"] in {"included", "safe", "finalized"}
            assert hashes == {found.json["transaction"]}
    await house.assert_ledger_is_chain(settled)


def assert_told_once(outcome: Round) -> None:
    """The service lived on and nobody hung up: each payment's one success reached somebody."""
    assert [outcome.successes(payment) for payment in outcome.payments] == [1] * CLIENTS


async def kill_rounds(house: House, seed: int, rounds: int) -> None:
    """Kill the service once in each round, at a random moment."""
    dice = random.Random(seed)  # noqa: S311
    (service,) = house.services

    async def strike() -> None:
        await service.arestart()

    unanswered = told = 0
    for number in range(1, rounds + 1):
        if slow := dice.random() < 0.5:
            await house.mine_every_second()
        else:
            await house.mine_at_once()
        started = time.monotonic()
        outcome = await pay_through(house, dice, strike)
        await house.mine_at_once()
        await assert_settled_once(house, outcome, settled=number * CLIENTS)
        successes = sum(outcome.successes(payment) for payment in outcome.payments)
        unanswered, told = unanswered + outcome.unanswered, told + successes
        blocks = "every second" if slow else "at once"
        print(  # noqa: T201
            f"round {number} of {rounds}, seed {seed}: blocks {blocks}, {outcome.unanswered} requests unanswered,"
            f" {successes} of {CLIENTS} successes told, {time.monotonic() - started:.1f} s"
        )
    payments = rounds * CLIENTS
    print(f"seed {seed}: {rounds} kills, {payments} payments settled once, {told} told, {unanswered} requests unanswered")  # noqa: T201
    assert not [event for event in service.log_events if event.get("level") == "error"]


async def test_killed_under_load_the_service_settles_every_payment_once(house: House, seed: int) -> None:
    await kill_rounds(house, seed, ROUNDS)


async def outage(tmp_path: Path, seed: int, away_s: float) -> None:
    """The database stops under load and comes back after so long, while blocks come all the time."""
    state = StateDirectory.open(tmp_path / "postgres")
    database = Postgres(state)
    await database.start()
    try:
        database_url = await database.create_database("away")
        await migrate(database_url)

        async def strike() -> None:
            await database.stop()
            await asyncio.sleep(away_s)  # that long is the fault
            await database.start()

        async with House.open(tmp_path / "house", database_url) as house:
            service = await house.serve()
            pid = service.pid
            await house.mine_every_second()
            outcome = await pay_through(house, random.Random(seed), strike)  # noqa: S311
            await assert_settled_once(house, outcome, settled=CLIENTS)
            assert (service.running, service.pid) == (True, pid)
            assert not [event for event in service.log_events if event.get("level") == "error"]
    finally:
        await database.stop()
        state.close()


async def test_a_database_that_is_away_for_five_seconds_loses_and_repeats_nothing(tmp_path: Path, seed: int) -> None:
    await outage(tmp_path, seed, 5.0)


async def test_a_killed_database_loses_and_repeats_nothing(tmp_path: Path, seed: int) -> None:
    state = StateDirectory.open(tmp_path / "postgres")
    database = Postgres(state)
    await database.start()
    try:
        database_url = await database.create_database("killed")
        await migrate(database_url)

        async def strike() -> None:
            await database.kill()
            await database.start()

        async with House.open(tmp_path / "house", database_url) as house:
            service = await house.serve()
            pid = service.pid
            outcome = await pay_through(house, random.Random(seed), strike)  # noqa: S311
            await assert_settled_once(house, outcome, settled=CLIENTS)
            assert_told_once(outcome)
            assert (service.running, service.pid) == (True, pid)
    finally:
        await database.stop()
        state.close()


async def test_a_chain_that_stands_still_for_three_seconds_loses_and_repeats_nothing(house: House, seed: int) -> None:
    async def strike() -> None:
        os.kill(house.anvil.pid, signal.SIGSTOP)
        await asyncio.sleep(3)  # that long is the fault
        os.kill(house.anvil.pid, signal.SIGCONT)

    await house.mine_every_second()
    outcome = await pay_through(house, random.Random(seed), strike)  # noqa: S311
    await house.mine_at_once()
    await assert_settled_once(house, outcome, settled=CLIENTS)
    assert_told_once(outcome)
