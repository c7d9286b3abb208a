"""One payment, one delivered success: whoever asks, how often, how its connections end, and through which service.

Every test runs at four stages: over one service; after that was killed and started again; through a second service on the
same database, while the first owns the relayer; and with the callers spread over both. Real HTTP, PostgreSQL, chain and token.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from facilitator.devstack.accounts import dev_account
from facilitator.devstack.stack import Postgres
from tests.fixtures.house import AMOUNT, Answer, House, Paid, RawCaller, client_session, words
from tests.fixtures.service import ServeProcess
from tests.fixtures.waiting import PATIENCE_S
from tests.integration.api.test_delivery import TCP_REPAIR, drop_everything

CALLERS = 50
DELIVERY_TIMEOUT_S = 1.0
STAGES = ("one service", "after a restart", "through another service", "through both")


@dataclass(frozen=True, slots=True)
class Stage:
    """Where callers ask."""

    house: House
    first: ServeProcess
    """Asked first, and by half of the callers."""
    then: ServeProcess
    """Asked by the others."""

    async def burst(self, payment: Paid, *, tenants: tuple[str, ...] = ("test",), keys: list[str] | None = None) -> list[Answer]:
        """The same payment, CALLERS times at once."""
        async with client_session() as session:
            return await asyncio.gather(
                *(
                    self.house.settle(
                        session,
                        payment,
                        service=(self.first, self.then)[index % 2],
                        tenant=tenants[index // 2 % len(tenants)],
                        idempotency_key=keys[index] if keys else None,
                    )
                    for index in range(CALLERS)
                )
            )

    async def ask(self, payment: Paid, **how: str) -> Answer:
        """One later caller."""
        async with client_session() as session:
            return await self.house.settle(session, payment, service=self.then, **how)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def house(postgres: Postgres, database_template: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    name = f"one_success_{os.getpid()}"
    database_url = await postgres.create_database(name, database_template)
    directory = tmp_path_factory.mktemp("one-success")
    async with House.open(
        directory, database_url, settlement={"answer_doubt_s": 2 * DELIVERY_TIMEOUT_S}, server={"delivery_timeout_s": DELIVERY_TIMEOUT_S}
    ) as house:
        await house.serve()
        await house.key("globex")
        yield house
    await postgres.drop_database(name)


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=STAGES)
async def stage(request: pytest.FixtureRequest, house: House) -> Stage:
    first = house.services[0]
    if request.param == "one service":
        return Stage(house, first, first)
    if request.param == "after a restart":
        await house.restart(first)
        return Stage(house, first, first)
    second = house.services[1] if len(house.services) > 1 else await house.serve()
    if request.param == "through another service":
        return Stage(house, second, second)
    return Stage(house, first, second)


@pytest_asyncio.fixture(autouse=True)
async def ledger_is_chain(house: House) -> AsyncIterator[None]:
    """Every test ends in the oracle, and leaves a chain that mines."""
    sent = await house.sent()
    yield
    await house.mine_at_once()
    assert await house.sent() == sent + 1, "one payment, one relayer transaction"
    await house.assert_ledger_is_chain()


async def assert_paid_once(house: House, payment: Paid, answers: list[Answer]) -> None:
    """One transfer; whoever was told a hash was told the same."""
    assert {answer.status for answer in answers} == {200}
    assert await house.balance(payment) == AMOUNT
    hashes = {answer.transaction for answer in answers}
    assert len(hashes) == 1, hashes
    receipt = await house.call("eth_getTransactionReceipt", hashes.pop())
    assert receipt["status"] == "0x1"


async def test_fifty_at_once_by_one_tenant_are_one_success(stage: Stage) -> None:
    payment = stage.house.payment()
    answers = await stage.burst(payment)

    assert words(answers) == {"success": 1, "duplicate_settlement": CALLERS - 1}
    await assert_paid_once(stage.house, payment, answers)
    assert (await stage.ask(payment)).word == "duplicate_settlement"


async def test_fifty_at_once_by_two_tenants_are_one_success(stage: Stage) -> None:
    payment = stage.house.payment(version=1)
    answers = await stage.burst(payment, tenants=("test", "globex"))

    assert words(answers) == {"success": 1, "duplicate_settlement": CALLERS - 1}
    await assert_paid_once(stage.house, payment, answers)
    for tenant in ("test", "globex"):
        assert (await stage.ask(payment, tenant=tenant)).word == "duplicate_settlement"


async def test_fifty_that_wait_for_a_block_are_one_success(stage: Stage) -> None:
    payment = stage.house.payment()
    await stage.house.mine_on_command()
    burst = asyncio.create_task(stage.burst(payment))
    await stage.house.pooled()
    assert not burst.done()
    await stage.house.mine_at_once()
    answers = await burst

    assert words(answers) == {"success": 1, "duplicate_settlement": CALLERS - 1}
    await assert_paid_once(stage.house, payment, answers)


async def test_fifty_with_one_idempotency_key_hear_the_same_success_byte_for_byte(stage: Stage) -> None:
    payment = stage.house.payment()
    key = f"order-{payment.auth_nonce}"
    answers = await stage.burst(payment, keys=[key] * CALLERS)

    assert words(answers) == {"success": CALLERS}
    assert len({answer.body for answer in answers}) == 1
    await assert_paid_once(stage.house, payment, answers)
    assert await stage.ask(payment, idempotency_key=key) == answers[0]
    assert (await stage.ask(payment)).word == "duplicate_settlement"
    assert (await stage.ask(payment, idempotency_key=f"other-{payment.auth_nonce}")).word == "duplicate_settlement"
    assert (await stage.ask(payment, idempotency_key=key, tenant="globex")).word == "duplicate_settlement"


async def test_fifty_with_fifty_idempotency_keys_are_one_success(stage: Stage) -> None:
    payment = stage.house.payment()
    keys = [f"order-{index}-{payment.auth_nonce}" for index in range(CALLERS)]
    answers = await stage.burst(payment, keys=keys)

    assert words(answers) == {"success": 1, "duplicate_settlement": CALLERS - 1}
    await assert_paid_once(stage.house, payment, answers)
    told = [answer.word for answer in answers].index("success")
    assert await stage.ask(payment, idempotency_key=keys[told]) == answers[told]


async def test_a_forged_signature_never_hears_a_success_and_neither_learns_nor_disturbs(stage: Stage) -> None:
    payment = stage.house.payment()
    stranger = dev_account("stranger").unsafe_sign_hash(bytes(32))
    halves = [stranger.signature, bytes.fromhex(payment.signature[2:])[:32] + stranger.signature[32:]]
    forgeries = [payment.with_signature("0x" + bytes(half).hex()) for half in halves]

    async def forged() -> list[bytes]:
        async with client_session() as session:
            answers = await asyncio.gather(
                *(
                    stage.house.settle(session, forgeries[index % 2], service=(stage.first, stage.then)[index // 2 % 2])
                    for index in range(CALLERS)
                )
            )
        assert {answer.status for answer in answers} == {200}
        assert {answer.json["success"] for answer in answers} == {False}
        assert {answer.transaction for answer in answers} == {""}
        return sorted({answer.body for answer in answers})

    before = await forged()
    await stage.house.mine_on_command()
    async with client_session() as session:
        honest = asyncio.create_task(stage.house.settle(session, payment, service=stage.first))
        await stage.house.pooled()
        meanwhile = await forged()
        assert not honest.done()
        await stage.house.mine_at_once()
        answer = await honest
    afterwards = await forged()

    assert answer.word == "success"
    await assert_paid_once(stage.house, payment, [answer])
    assert before == meanwhile == afterwards, "a forger is told the same, whatever became of the payment"


async def close(caller: RawCaller) -> None:
    caller.socket.close()


async def stop_reading(_caller: RawCaller) -> None:
    """It has not read since it connected: its receive window is full of an earlier answer."""


async def cut_the_cable(caller: RawCaller) -> None:
    drop_everything(caller.socket)


async def forget(caller: RawCaller) -> None:
    """The caller's machine lost its memory: no FIN, and a reset to whatever comes."""
    caller.socket.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    caller.socket.close()


CUTS = [
    pytest.param(close, id="closed"),
    pytest.param(stop_reading, id="reading stopped"),
    pytest.param(cut_the_cable, id="cable cut"),
    *([pytest.param(forget, id="dropped without FIN")] if os.geteuid() == 0 else []),  # TCP_REPAIR needs CAP_NET_ADMIN
]
UNREAD = b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.mark.parametrize("cut", CUTS)
async def test_the_next_caller_hears_the_truth_when_the_first_is_cut_mid_wait(stage: Stage, cut: object) -> None:
    payment = stage.house.payment()
    await stage.house.mine_on_command()
    unread = {"before": UNREAD, "receive_bytes": 2048} if cut is stop_reading else {}
    caller = await stage.house.raw_caller(payment, service=stage.first, **unread)  # type: ignore[arg-type]
    try:
        await stage.house.pooled()  # signed, recorded, sent: mid-wait
        await cut(caller)  # type: ignore[operator]
        following = asyncio.create_task(stage.ask(payment))
        await stage.house.mine_at_once()
        answer = await following

        assert answer.word == "success", answer
        await assert_paid_once(stage.house, payment, [answer])
        assert (await stage.ask(payment)).word == "duplicate_settlement"
        if cut is stop_reading:
            told = await caller.read_all()
            assert told.startswith(b"HTTP/1.1 200")
            assert answer.transaction.encode() not in told, "two callers hold the success"
    finally:
        caller.socket.close()


async def test_after_the_answer_was_lost_on_its_way_the_next_caller_hears_it(stage: Stage) -> None:
    """The cable is cut, the payment settles, and only then does the next caller come."""
    payment = stage.house.payment()
    await stage.house.mine_on_command()
    caller = await stage.house.raw_caller(payment, service=stage.first)
    try:
        await stage.house.pooled()
        await cut_the_cable(caller)
        await stage.house.mine_at_once()
        async with asyncio.timeout(PATIENCE_S):
            while await stage.house.balance(payment) != AMOUNT:
                await asyncio.sleep(0.01)
        answer = await stage.ask(payment)
        assert answer.word == "success", answer
        await assert_paid_once(stage.house, payment, [answer])
    finally:
        caller.socket.close()


async def test_what_was_told_before_a_kill_is_told_alike_after_it(stage: Stage) -> None:
    payment = stage.house.payment()
    key = f"order-{payment.auth_nonce}"
    first = await stage.ask(payment, idempotency_key=key)
    assert first.word == "success"

    await stage.house.restart(stage.first)

    answers = await stage.burst(payment)
    assert words(answers) == {"duplicate_settlement": CALLERS}
    assert {answer.transaction for answer in answers} == {first.transaction}
    again = await stage.burst(payment, keys=[key] * CALLERS)
    assert {answer.body for answer in again} == {first.body}
    assert await stage.house.balance(payment) == AMOUNT
