"""Who is listed after the signature: what is recorded is not sent, what is sent is not bid for again, and a no-op takes its place."""

from pathlib import Path

import pytest
import pytest_asyncio

from facilitator.clock import SystemClock
from facilitator.devstack.buyer import Buyer
from facilitator.protocol.reasons import Reason
from facilitator.settlement.screening import ListFile, Screen, Settings
from tests.fixtures.base_sim import Call, Drop
from tests.fixtures.sanctions import KNOWN_LISTED, Oracle, write_list
from tests.fixtures.scene import PAY_TO, Scene, reason
from tests.integration.settlement.test_screening import List

SEND = "eth_sendRawTransaction"


@pytest_asyncio.fixture
async def accounts(tmp_path: Path) -> List:
    made = List(tmp_path / "list.csv")
    await made.names()
    return made


async def test_a_payment_of_who_is_listed_since_is_not_outbid_but_replaced(scene: Scene, accounts: List) -> None:
    rig = await scene.engine(bump_blocks=2, screen=accounts.screen)
    task = await scene.settle_pooled(rig)
    original = scene.sent()[0].tx_hash
    scene.sim.pool.hold = lambda transaction: transaction.tx_hash == original
    await accounts.names(scene.buyer.address)

    assert reason(await scene.answer(task)) is Reason.PAYER_SCREENED

    first, *others = [attempt["purpose"] for attempt in await scene.attempts()]
    assert (first, set(others)) == ("payment", {"noop"}), "outbid by a no-op, more than once where blocks come late"
    assert await scene.states() == ["failed"]
    await scene.finish(settled=0)


@pytest.mark.parametrize("by", ["file", "oracle"])
async def test_what_a_dead_replica_recorded_and_did_not_send_is_not_sent_by_its_heir(
    scene: Scene, accounts: List, tmp_path: Path, by: str
) -> None:
    rig = await scene.engine(screen=accounts.screen)
    oracle = await Oracle.deployed(scene.node)
    first: list[object] = []

    def is_first(call: Call) -> bool:
        first.extend(call.params[:1] if not first else [])
        return call.params[0] == first[0]

    lost = scene.sim.plant(Drop(method=SEND, where=is_first))
    before = await scene.token.balance_of(PAY_TO)
    payment = scene.payment()
    scene.settle(rig, payment)
    await scene.until(lambda: lost.struck, "a send that is lost")
    await scene.crash(rig)
    await scene.sim.mine()
    sent = lost.struck
    path = tmp_path / "theirs.txt"
    settings = Settings(known_listed=KNOWN_LISTED, list_file=str(write_list(path, *([scene.buyer.address] if by == "file" else []))))
    file = ListFile(settings, SystemClock())
    await file.load()
    await oracle.say(scene.buyer.address, "listed")
    screen = Screen(scene.network, settings, file, oracle.address if by == "oracle" else None, SystemClock())

    heir = await scene.engine(bump_blocks=2, screen=screen)

    assert reason(await scene.answer(scene.settle(heir, payment))) is Reason.PAYER_SCREENED
    first, *others = [attempt["purpose"] for attempt in await scene.attempts()]
    assert (first, set(others)) == ("payment", {"noop"}), "outbid by a no-op, more than once where blocks come late"
    assert lost.struck == sent, "the heir has not even tried"
    assert await scene.token.balance_of(PAY_TO) == before
    await scene.finish(settled=0)


async def test_of_a_batch_the_others_are_paid(scene: Scene, accounts: List) -> None:
    rig = await scene.engine(bump_blocks=2, screen=accounts.screen, batching="adaptive", batch_min=1, slots_soft=1, slots_max=1)
    other = Buyer.numbered(700_999)
    await scene.token.fund([other.address], amount_atomic=10**9)
    first = await scene.settle_pooled(rig)
    tasks = [scene.settle(rig, scene.payment(who)) for who in (other, None, None)]
    queue = rig.engine._dispatchers[scene.network]._queue
    await scene.until(lambda: len(queue) == 3, "three that wait together")
    await scene.sim.mine()
    await scene.until(lambda: len(scene.sent()) == 2, "the batch")
    batch = scene.sent()[1].tx_hash
    scene.sim.pool.hold = lambda transaction: transaction.tx_hash == batch
    await accounts.names(other.address)

    answers = await scene.answers([first, *tasks])

    assert [reason(answer) for answer in answers] == [None, Reason.PAYER_SCREENED, None, None]
    await scene.finish(settled=3)
