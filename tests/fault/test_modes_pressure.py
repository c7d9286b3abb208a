"""Failure modes of load and of what passes by itself: full pools, slow inclusion, a paused token. Numbers as in docs/faults.md."""

import asyncio

import pytest
from structlog.testing import capture_logs

from facilitator.errors import OverloadFault
from facilitator.protocol.messages import Payment
from facilitator.protocol.reasons import Reason
from facilitator.settlement import admission
from facilitator.settlement.relayer import Account
from facilitator.units import AuthNonce
from tests.fault.conftest import StartScene
from tests.fixtures.base_sim import Call, Fault, Hang, NodeSays, RawTransaction, Rules
from tests.fixtures.base_sim.node import decoded as decoded_call
from tests.fixtures.scene import Scene, reason
from tests.fixtures.waiting import PATIENCE_S
from tests.integration.settlement.conftest import Rig

SEND = "eth_sendRawTransaction"
ETHER = 10**18


def held(_: RawTransaction) -> bool:
    return True


def accounts(scene: Scene, rig: Rig) -> tuple[Account, ...]:
    return rig.engine._dispatchers[scene.network].pool.accounts


async def on_record(scene: Scene, states: list[str]) -> None:
    async def there() -> bool:
        return await scene.states() == states

    await scene.until(there, f"settlements {states}")


# --- 15: inclusion is withheld, and payments pile up ---


async def test_mode_15_payments_that_wait_too_long_stop_the_intake_until_they_move(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_BEGUN_MAX", 2)
    rig = await scene.engine(slots_soft=1, slots_max=1)
    scene.sim.pool.hold = held
    first = await scene.settle_pooled(rig)
    second_payment, late_payment = scene.payment(), scene.payment()
    second = scene.settle(rig, second_payment)
    queue = rig.engine._dispatchers[scene.network]._queue
    await scene.until(lambda: len(queue) == 1, "the second to wait")
    third = scene.settle(rig)  # its wait is not too long yet
    await scene.until(lambda: len(queue) == 2, "the third to wait")
    next(iter(queue._all)).judged_at -= rig.settings.queue_wait_max_s + 1
    looks = scene.sim.plant(Fault(method="eth_call"))

    with pytest.raises(OverloadFault) as raised:
        await scene.settle(rig, late_payment)

    assert raised.value.kind == "queue_slow"
    assert raised.value.retry_after_s is not None
    assert raised.value.retry_after_s >= 1
    assert looks.seen == 0, "refused before the chain was asked"
    told = rig.engine.full(scene.network, 0)
    assert told is not None, "and before it is parsed"
    assert told.kind == "queue_slow"
    assert not rig.engine.began(AuthNonce(nonce_of(late_payment)))
    assert rig.engine.began(AuthNonce(nonce_of(second_payment))), "who is in the queue may ask again"
    assert len(rig.engine._admitter._begun) == 2, "the first of the three is forgotten"
    assert len(scene.sent()) == 1
    again = scene.settle(rig, second_payment)  # who is in the queue stays in it, and may ask again
    scene.sim.pool.hold = None
    answers = await scene.answers([first, second, third, again])
    assert [reason(answer) for answer in answers] == [None, None, None, Reason.DUPLICATE_SETTLEMENT]
    assert rig.engine.full(scene.network, 0) is None
    assert reason(await scene.answer(scene.settle(rig, late_payment))) is None
    await scene.finish(settled=4)


async def test_mode_15_payments_that_wait_in_postgres_stop_the_intake_of_a_replica_without_relayers(scene: Scene) -> None:
    front = await scene.engine(relayers=[], queue_wait_max_s=0.5)
    waiting = scene.settle(front)
    await on_record(scene, ["queued"])
    queue = front.engine._dispatchers[scene.network]._queue
    await scene.until(lambda: queue._oldest_s() > 0.5, "the wait to be too long")

    with pytest.raises(OverloadFault) as raised:
        await scene.settle(front)

    assert raised.value.kind == "queue_slow"
    await scene.engine()
    assert reason(await scene.answer(waiting)) is None
    await scene.until(lambda: not queue._oldest_s(), "the queue to be empty")
    assert reason(await scene.answer(scene.settle(front))) is None
    await scene.finish(settled=2)


async def test_mode_15_whoever_would_expire_before_its_turn_is_sent_first(scene: Scene) -> None:
    rig = await scene.engine(slots_soft=1, slots_max=1)
    scene.sim.pool.hold = held
    first = await scene.settle_pooled(rig)
    queue = rig.engine._dispatchers[scene.network]._queue
    patient = [scene.payment(valid_before=await scene.chain_time() + 3600) for _ in range(3)]
    tasks = []
    for payment in [*patient, hurried := scene.payment(valid_before=await scene.chain_time() + 1200)]:
        waiting = len(queue)
        tasks.append(scene.settle(rig, payment))
        await scene.until(lambda waiting=waiting: len(queue) > waiting, "it to wait")
    assert queue._heap[0][2].admission.authorization.auth_nonce != nonce_of(hurried), "twenty minutes are time enough"
    brief = scene.payment(valid_before=await scene.chain_time() + 300)
    tasks.append(scene.settle(rig, brief))
    await scene.until(lambda: len(queue) == 5, "it to wait")
    assert queue._heap[0][2].admission.authorization.auth_nonce == nonce_of(brief)

    scene.sim.pool.hold = None
    assert {reason(answer) for answer in await scene.answers([first, *tasks])} == {None}
    await scene.finish(settled=6)


def nonce_of(payment: Payment) -> str:
    authorization = payment.payload["authorization"]
    assert isinstance(authorization, dict)
    return str(authorization["nonce"])


# --- 17: a pool takes no more of one relayer ---


@pytest.mark.parametrize(
    "refusal",
    [
        NodeSays(code=-32003, message="txpool is full"),
        NodeSays(code=-32000, message="transaction underpriced"),
        NodeSays(code=-32000, message="insufficient funds for gas * price + value"),
        NodeSays(code=429, message="too many requests"),
    ],
    ids=lambda refusal: refusal.message.split()[0],
)
async def test_mode_17_a_relayer_that_is_refused_rests_and_the_others_go_on(scene: Scene, refusal: NodeSays) -> None:
    refused, welcome = scene.relayers
    rig = await scene.engine(relayers=scene.relayers, relayer_rest_s=600.0, relayer_rest_max_s=10**6)
    first, second = accounts(scene, rig)

    def of_refused(call: Call) -> bool:
        transaction = decoded_call(call)
        return transaction is not None and transaction.sender == refused.address.lower()

    payments = 12
    with capture_logs() as logs:
        async with scene.sim.faults(NodeSays(code=refusal.code, message=refusal.message, method=SEND, where=of_refused)):
            tasks = []
            for number in range(payments):
                tasks.append(scene.settle(rig))
                await scene.until(lambda number=number: len(scene.sent()) > number, "the next send")
                await scene.until(lambda: first.rest_until > 0, "the first refusal")
            carried = [sent.sender for sent in scene.sent()].count(refused.address.lower())
            assert carried == 1
            assert second.rest_until == float("-inf")
            for failures in (2, 3):
                first.rest_until = float("-inf")  # its rest is over
                tasks.append(scene.settle(rig))
                await scene.until(lambda failures=failures: first.backoff._failures >= failures, "its rests to grow", mine=True)
        assert {reason(answer) for answer in await scene.answers(tasks)} == {None}
    rests = [float(line["rest_s"]) for line in logs if line["event"] == "relayer.resting"]
    assert rests[2] > rests[0]
    assert {line["log_level"] for line in logs} <= {"info", "warning"}, "nobody has to act"
    assert welcome.address.lower() in {sent.sender for sent in scene.sent()}

    first.rest_until = float("-inf")
    tasks += (later := [scene.settle(rig) for _ in range(4)])
    await scene.answers(later)
    assert first.backoff._failures == 0, "it was welcome again"
    await scene.finish(settled=len(tasks))


async def test_mode_17_with_every_relayer_at_rest_payments_wait_and_go_on_by_themselves(start_scene: StartScene) -> None:
    scene = await start_scene(rules=Rules(slots_max=1))
    rig = await scene.engine(relayer_rest_s=0.3, relayer_rest_max_s=0.6)
    tasks = [scene.settle(rig) for _ in range(4)]
    await scene.until(lambda: accounts(scene, rig)[0].rest_until > 0, "the rest")
    assert {reason(answer) for answer in await scene.answers(tasks)} == {None}
    await scene.finish(settled=4)


# --- 28: the token is paused while payments wait ---


async def paused(scene: Scene, rig: Rig) -> None:
    """The token is paused, and who asks anew hears it in the protocol's word."""
    await scene.token.pause()
    assert reason(await scene.settle(rig)) is Reason.TOKEN_PAUSED


async def looked_at(scene: Scene, times: int) -> None:
    """The engines have asked the chain so many times more."""
    looks = scene.sim.plant(Fault(method="eth_call"))
    await scene.until(lambda: looks.seen >= times, "another look at the token", mine=True)


async def test_mode_28_what_is_queued_waits_until_the_token_goes_on(scene: Scene) -> None:
    front = await scene.engine(relayers=[])
    tasks = [scene.settle(front) for _ in range(3)]
    await on_record(scene, ["queued"] * 3)
    await paused(scene, front)
    await scene.engine()

    await looked_at(scene, 6)
    assert await scene.states() == ["queued"] * 3
    assert scene.sent() == []
    assert reason(await scene.settle(front)) is Reason.TOKEN_PAUSED, "what waits for the token stops nobody"
    await scene.token.unpause()

    assert {reason(answer) for answer in await scene.answers(tasks)} == {None}
    await scene.finish(settled=3)


@pytest.mark.parametrize("batching", ["off", "adaptive"])
async def test_mode_28_what_waits_in_memory_is_looked_at_again_and_waits_until_the_token_goes_on(scene: Scene, batching: str) -> None:
    [relayer, _] = scene.relayers
    await scene.token.set_gas_money(relayer.address, 1)
    rig = await scene.engine(batching=batching, batch_min=1)
    tasks = [scene.settle(rig) for _ in range(3)]
    queue = rig.engine._dispatchers[scene.network]._queue
    await scene.until(lambda: len(queue) == 3 and queue._oldest_s() > 2.1, "three to wait for gas money")
    await paused(scene, rig)

    await scene.token.set_gas_money(relayer.address, ETHER)
    await scene.until(lambda: len(queue) == 0, "them to be looked at again")
    await looked_at(scene, 2)
    assert scene.sent() == []
    assert not any(task.done() for task in tasks)
    await scene.token.unpause()

    assert {reason(answer) for answer in await scene.answers(tasks)} == {None}
    await scene.finish(settled=3)


async def test_mode_28_what_waits_for_a_paused_token_ends_by_its_own_time(scene: Scene) -> None:
    front = await scene.engine(relayers=[])
    task = scene.settle(front, scene.payment(valid_before=await scene.chain_time() + 600))
    await on_record(scene, ["queued"])
    await paused(scene, front)
    await scene.engine()
    await looked_at(scene, 2)
    assert not task.done()

    await scene.node.call("evm_increaseTime", 1200)

    assert reason(await scene.answer(task)) is Reason.EXPIRED
    assert scene.sent() == []
    await scene.token.unpause()
    await scene.finish(settled=0)


async def test_mode_28_a_blacklisted_payer_waits_for_nothing(scene: Scene) -> None:
    front = await scene.engine(relayers=[])
    task = scene.settle(front)
    await on_record(scene, ["queued"])
    await scene.token.set_blacklisted(scene.buyer.address, blacklisted=True)
    await scene.engine()

    assert reason(await scene.answer(task)) is Reason.ACCOUNT_BLACKLISTED
    assert scene.sent() == []
    await scene.token.set_blacklisted(scene.buyer.address, blacklisted=False)
    await scene.finish(settled=0)


async def test_mode_28_a_stop_tells_those_who_wait_for_a_paused_token(scene: Scene) -> None:
    [relayer, _] = scene.relayers
    await scene.token.set_gas_money(relayer.address, 1)
    rig = await scene.engine()
    task = scene.settle(rig)
    queue = rig.engine._dispatchers[scene.network]._queue
    await scene.until(lambda: len(queue) == 1 and queue._oldest_s() > 2.1, "one to wait for gas money")
    await paused(scene, rig)
    await scene.token.set_gas_money(relayer.address, ETHER)
    await scene.until(lambda: len(queue._aside) == 1, "it to be looked at again")

    async with asyncio.timeout(PATIENCE_S):
        await rig.engine.stop(1.2)
    with pytest.raises(OverloadFault) as raised:
        await task
    assert raised.value.kind == "draining"
    assert scene.sent() == []
    await scene.token.unpause()
    await scene.finish(settled=0)


# --- a chain that does not answer for one relayer, or about balances ---


async def test_a_chain_that_does_not_answer_about_one_relayer_holds_up_no_other(scene: Scene) -> None:
    mute, other = scene.relayers

    def of_mute(call: Call) -> bool:
        return str(call.params[0]).lower() == mute.address.lower()

    scene.sim.plant(Hang(method="eth_getTransactionCount", where=of_mute))
    rig = await scene.engine(relayers=scene.relayers, ready=False)
    first, second = accounts(scene, rig)
    await scene.until(lambda: second.ready, "the other relayer to be ready")
    scene.sim.plant(Hang(method="eth_getBalance"))
    epoch = second.lease.epoch if second.lease else None

    renewals, renewed_at = 0, second.renewed_at
    while renewals < 5:
        assert reason(await scene.answer(scene.settle(rig))) is None
        if second.renewed_at != renewed_at:
            renewals, renewed_at = renewals + 1, second.renewed_at

    assert not first.adopted
    assert second.lease is not None
    assert second.lease.epoch == epoch, "it was renewed all the time"
    assert {sent.sender for sent in scene.sent()} == {other.address.lower()}
    scene.sim.uproot()
    scene.sim.release()
    await scene.until(lambda: first.ready, "the first to be taken up", mine=True)
    await scene.finish(settled=len(scene.told))
