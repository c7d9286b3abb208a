"""Failure modes of our own side: money, replicas, the database, the clock; and a chain that stands still. Numbers as in docs/faults.md."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from facilitator.clock import SystemClock
from facilitator.errors import Fault, OverloadFault, StoreFault
from facilitator.protocol.reasons import Reason
from facilitator.settlement.dispatcher import InDoubtFault
from facilitator.units import UnixSeconds
from tests.fixtures.base_sim import base_sim_before
from tests.fixtures.house import BRIEF_LEASES, House, client_session, eventually
from tests.fixtures.scene import Scene, reason
from tests.fixtures.waiting import PATIENCE_S

ETHER = 10**18


# --- 19: gas money ---


async def test_mode_19_a_relayer_without_money_signs_nothing_fails_nothing_and_goes_on_once_funded(scene: Scene) -> None:
    await scene.token.set_gas_money(scene.relayers[0].address, 10**12)
    rig = await scene.engine()
    rig.callers_wait(3.0)
    payment = scene.payment()
    with pytest.raises(OverloadFault) as raised:
        await scene.settle(rig, payment)
    assert raised.value.kind == "not_sent"
    assert scene.sim.sent == []
    assert await scene.states() == []

    rig.callers_wait(PATIENCE_S)
    task = scene.settle(rig, payment)
    await scene.token.set_gas_money(scene.relayers[0].address, ETHER)

    assert reason(await scene.answer(task)) is None
    await scene.finish(settled=1)


async def test_mode_19_a_relayer_drained_after_signing_keeps_its_payment_until_there_is_money(scene: Scene) -> None:
    rig = await scene.engine()
    payment = scene.payment()
    task = await scene.settle_pooled(rig, payment)
    await scene.sim.pool.evict_all()
    await scene.token.set_gas_money(scene.relayers[0].address, 1)
    account = rig.engine._dispatchers[scene.network].pool.accounts[0]
    await scene.until(lambda: account.balance_wei == 1, "the loss to be noticed", mine=True)

    await rig.time_is_up(task)
    answer = task.result()

    assert (reason(answer), answer.result.tx_hash) == (Reason.SETTLEMENT_PENDING, scene.sent()[0].tx_hash)
    assert await scene.states() == ["submitted"]
    rig.callers_wait(3.0)
    with pytest.raises(OverloadFault):
        await scene.settle(rig)
    rig.callers_wait(PATIENCE_S)
    await scene.token.set_gas_money(scene.relayers[0].address, ETHER)
    assert reason(await scene.answer(scene.settle(rig, payment))) is None
    assert len(scene.sent()) == 1
    await scene.finish(settled=1)


# --- 21, 22: an owner that is stopped past its lease and wakes up ---


async def test_modes_21_and_22_an_owner_stopped_past_its_lease_wakes_up_and_harms_nobody(tmp_path: Path, database_url: str) -> None:
    async with (
        House.open(tmp_path, database_url, settlement=BRIEF_LEASES) as house,
        base_sim_before(house.anvil.rpc_url) as sim,
        client_session() as session,
    ):
        house.rpc_url = sim.url

        async def recorded(tx_hash: str) -> None:
            assert await fetch("select true from relayer_transaction where tx_hash = $1", tx_hash), f"{tx_hash} is not on record"

        async def fetch(sql: str, *arguments: object) -> object:
            connection = await asyncpg.connect(database_url)
            try:
                return await connection.fetchval(sql, *arguments)
            finally:
                await connection.close()

        async def owned_by_another() -> bool:
            return await fetch("select epoch from relayer where lease_until > now()") == 2

        sim.on_raw = recorded
        await house.mine_on_command()
        owner = await house.serve()
        first, second, third = (house.payment() for _ in range(3))
        waiting = asyncio.create_task(house.settle(session, first, service=owner))
        await eventually(lambda: _pool_holds(house, 1), "the first transaction")
        other = await house.serve()
        owner.send_signal(signal.SIGSTOP)
        try:
            await eventually(owned_by_another, "the lease to change hands")
            asked = asyncio.create_task(house.settle(session, second, service=other))
            await eventually(lambda: _pool_holds(house, 2), "the second transaction")
        finally:
            owner.send_signal(signal.SIGCONT)
        late = asyncio.create_task(house.settle(session, third, service=owner))
        answers = []
        for task in (asked, late, waiting):
            while not task.done():
                await sim.mine()
                await asyncio.wait([task], timeout=0.1)
            answers.append(task.result())

        assert [answer.word for answer in answers] == ["success"] * 3
        assert [sent.tx_nonce for sent in {sent.tx_hash: sent for sent in sim.sent}.values()] == [0, 1, 2]
        assert await fetch("select epoch from relayer") == 2
        await house.assert_ledger_is_chain(settled=3)
        for service in (owner, other):
            assert not [event for event in service.log_events if event.get("level") == "error"]


async def _pool_holds(house: House, number: int) -> bool:
    status = await house.call("txpool_status")
    return int(status["pending"], 16) >= number


# --- 42: the database is slow ---


@contextlib.asynccontextmanager
async def locked(scene: Scene, table: str) -> AsyncIterator[None]:
    """Nobody gets at a table meanwhile, as when a migration or a vacuum holds it."""
    connection = await asyncpg.connect(scene.databases[-1])
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(f"lock table {table} in access exclusive mode")
    try:
        yield
    finally:
        await transaction.rollback()
        await connection.close()


async def test_mode_42_a_database_that_does_not_answer_refuses_before_anything_is_signed(scene: Scene) -> None:
    rig = await scene.engine(statement_timeout_s=3.0)
    payments = [scene.payment() for _ in range(12)]

    async with locked(scene, "settlement"):
        refused = await asyncio.gather(*(scene.settle(rig, payment) for payment in payments), return_exceptions=True)

    assert {type(each) for each in refused} == {StoreFault}
    assert scene.sim.sent == []
    assert {reason(answer) for answer in await scene.answers([scene.settle(rig, payment) for payment in payments])} == {None}
    await scene.finish(settled=12)


async def test_mode_42_a_slow_database_serves_some_refuses_the_rest_and_is_never_wrong(scene: Scene) -> None:
    rig = await scene.engine(queue_max=8, group_max=4)
    await scene.rows("create function slow() returns trigger language plpgsql as $$ begin perform pg_sleep(0.1); return new; end $$;")
    await scene.rows("create trigger slow before insert on relayer_slot for each row execute function slow()")
    payments = [scene.payment() for _ in range(30)]

    answers = asyncio.gather(*(scene.settle(rig, payment) for payment in payments), return_exceptions=True)
    await scene.until(answers.done, "answers", mine=True)
    heard = await answers

    refusals = [each for each in heard if isinstance(each, Fault)]
    assert {each.kind for each in refusals} <= {"queue_full", "not_sent", "in_doubt"}
    assert any(each.kind == "queue_full" for each in refusals)
    assert not [each for each in refusals if isinstance(each, InDoubtFault)]
    assert {reason(each) for each in heard if not isinstance(each, BaseException)} == {None}
    await scene.rows("drop trigger slow on relayer_slot")
    again = [scene.settle(rig, payment) for payment, each in zip(payments, heard, strict=True) if isinstance(each, Fault)]
    await scene.until(lambda: all(task.done() for task in again), "answers", mine=True)
    left = sum(task.exception() is not None for task in again)
    await scene.finish(settled=30 - left)


# --- 44: the chain stands still ---


async def test_mode_44_a_halted_chain_takes_no_more_work_keeps_what_it_has_and_goes_on(scene: Scene) -> None:
    rig = await scene.engine(max_head_age_s=1, bump_blocks=1)
    await scene.sim.mine()
    task = await scene.settle_pooled(rig)

    await scene.until(rig.engine._watchers[scene.network].halted, "the halt to be noticed")
    with pytest.raises(OverloadFault) as raised:
        await scene.settle(rig)
    assert raised.value.kind == "chain_halted"
    assert not task.done()
    assert [attempt["purpose"] for attempt in await scene.attempts()] == ["payment"]

    assert reason(await scene.answer(task)) is None
    assert reason(await scene.answer(scene.settle(rig))) is None
    await scene.finish(settled=2)


# --- 45: the clock of the machine is wrong ---


class WrongClock(SystemClock):
    """Right about durations, wrong about the time of day."""

    def __init__(self, skew_s: int) -> None:
        self._skew_s = skew_s

    def now(self) -> UnixSeconds:
        return UnixSeconds(super().now() + self._skew_s)

    def now_ms(self) -> int:
        return super().now_ms() + 1000 * self._skew_s


@pytest.mark.parametrize("skew_s", [-600, 600])
async def test_mode_45_a_clock_ten_minutes_off_is_not_believed_beside_a_chain_that_moves(scene: Scene, skew_s: int) -> None:
    rig = await scene.engine(clock=WrongClock(skew_s))
    head = rig.engine._networks[scene.network].head
    await scene.until(lambda: not head.wall_trusted, "the clock to be found out", mine=True)
    valid_before = await scene.chain_time() + 60

    good = await scene.answer(scene.settle(rig, scene.payment(valid_before=valid_before)))
    late = await scene.settle(rig, scene.payment(valid_before=await scene.chain_time() + 3))

    assert (reason(good), reason(late)) == (None, Reason.EXPIRED)
    await scene.finish(settled=1)
