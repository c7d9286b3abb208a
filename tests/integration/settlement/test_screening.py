"""Nobody on a sanctions list pays or is paid: at /verify, at /settle, in the queue, and at the last look before a signature."""

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from eth_utils.address import to_checksum_address

from facilitator.clock import SystemClock
from facilitator.devstack.stack import Anvil
from facilitator.devstack.token import Token
from facilitator.errors import OverloadFault, ScreeningFault
from facilitator.protocol.reasons import Reason
from facilitator.settlement.screening import ListFile, Screen, Settings
from tests.fixtures.sanctions import KNOWN_LISTED, Oracle, write_list
from tests.integration.settlement.conftest import NETWORK, Rig, decoded
from tests.integration.settlement.test_counts import QUIET, Counter
from tests.integration.settlement.test_engine import NewBuyer, StartEngine, reason, terms

OLD_S = 10_000.0
_CLOCK = SystemClock()


class List:
    """A list file, the screen that uses it, and how to change it."""

    def __init__(self, path: Path, oracle: Oracle | None = None, **changes: Any) -> None:
        self.path = path
        self.settings = Settings(known_listed=KNOWN_LISTED, list_file=str(path), list_age_max_s=OLD_S, **changes)
        self.file = ListFile(self.settings, _CLOCK)
        self.screen = Screen(NETWORK, self.settings, self.file, oracle.address if oracle else None, _CLOCK)

    async def names(self, *accounts: str) -> None:
        """From here on it names these."""
        write_list(self.path, *accounts)
        await self.file.load()

    async def grow_old(self) -> None:
        """Nobody has written it for too long."""
        import os  # noqa: PLC0415

        written = time.time() - OLD_S - 60
        os.utime(self.path, (written, written))
        self.file._seen = None
        await self.file.load()


@pytest_asyncio.fixture
async def accounts(tmp_path: Path) -> List:
    """A list that names nobody but the known one."""
    made = List(tmp_path / "list.csv")
    await made.names()
    return made


@pytest_asyncio.fixture
async def oracle(chain: Anvil) -> Oracle:
    return await Oracle.deployed(chain.node)


def oracle_screen(oracle: Oracle) -> Screen:
    return Screen(NETWORK, Settings(known_listed=KNOWN_LISTED), None, oracle.address, _CLOCK)


def nobody() -> str:
    return to_checksum_address("0x" + secrets.token_hex(20))


async def settled(rig: Rig, payment: Any, **rules: Any) -> Reason | None:
    answer = await rig.engine.settle(rig.caller(**rules), payment, None)
    if answer.ticket is not None:
        await rig.engine.delivered(answer.ticket)
    return reason(answer)


async def kept(rig: Rig) -> list[dict[str, Any] | None]:
    """What settlements were screened against, in the order of admission."""
    rows = await rig.fetch("select screening from settlement order by settlement_id")
    return [row["screening"] and json.loads(row["screening"]) for row in rows]


@pytest.mark.parametrize(("who", "expected"), [("payer", Reason.PAYER_SCREENED), ("payee", Reason.PAY_TO_SCREENED)])
async def test_who_is_on_the_file_is_refused_before_the_chain_is_asked(
    start_engine: StartEngine, new_buyer: NewBuyer, accounts: List, monkeypatch: pytest.MonkeyPatch, who: str, expected: Reason
) -> None:
    rig, buyer, asked = await start_engine(**QUIET, screen=accounts.screen), await new_buyer(), terms(pay_to=nobody())
    payment = decoded(buyer.pay(2, asked), asked)
    assert (await rig.engine.verify(rig.caller(), payment)).refusal is None
    await accounts.names(buyer.address if who == "payer" else asked["payTo"])
    counter = Counter(monkeypatch)

    verified = await rig.engine.verify(rig.caller(accept_unscreened=True), payment)
    assert verified.refusal is not None
    assert verified.refusal.reason is expected
    assert await settled(rig, payment, accept_unscreened=True) is expected

    assert counter.rpc == []
    assert counter.sql == ["records_of_authorizations"] * 2
    assert await rig.fetch("select from settlement") == []
    await accounts.names()
    assert await settled(rig, payment) is None


@pytest.mark.parametrize(("who", "expected"), [("payer", Reason.PAYER_SCREENED), ("payee", Reason.PAY_TO_SCREENED)])
async def test_an_oracle_is_asked_in_the_request_that_judges_the_payment(
    start_engine: StartEngine, new_buyer: NewBuyer, oracle: Oracle, monkeypatch: pytest.MonkeyPatch, who: str, expected: Reason
) -> None:
    rig, buyer, asked = await start_engine(**QUIET, screen=oracle_screen(oracle)), await new_buyer(), terms(pay_to=nobody())
    payment = decoded(buyer.pay(2, asked), asked)
    counter = Counter(monkeypatch)
    assert (await rig.engine.verify(rig.caller(), payment)).refusal is None
    assert counter.rpc == [("eth_getBlockByNumber", "eth_call", "eth_call")]
    await oracle.say(buyer.address if who == "payer" else asked["payTo"], "listed")

    verified = await rig.engine.verify(rig.caller(accept_unscreened=True), payment)
    assert verified.refusal is not None
    assert verified.refusal.reason is expected
    assert await settled(rig, payment, accept_unscreened=True) is expected
    assert await rig.fetch("select from settlement") == []
    await oracle.say(buyer.address if who == "payer" else asked["payTo"], "clear")
    assert await settled(rig, payment) is None, "it is asked again"


async def test_a_settlement_keeps_what_it_was_held_against_and_costs_no_statement_more(
    start_engine: StartEngine, new_buyer: NewBuyer, accounts: List, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = List(accounts.path, oracle)
    version = (await both.file.load()).version
    rig, buyer, asked = await start_engine(**QUIET, screen=both.screen), await new_buyer(), terms()
    counter = Counter(monkeypatch)
    before = int(time.time())

    assert await settled(rig, decoded(buyer.pay(2, asked), asked)) is None

    assert counter.sql == ["records_of_authorizations", "write_ahead", "resolve"]
    own = [calls for calls in counter.rpc if calls != ("eth_getBlockByNumber",)]
    assert own[:2] == [("eth_getBlockByNumber", "eth_call", "eth_call"), ("eth_sendRawTransaction",)]
    [found] = await kept(rig)
    assert found is not None
    [row] = await rig.fetch("select admitted_block from settlement")
    assert found["decision"] == "clear"
    assert found["lists"] == [version, f"{oracle.address}@{row['admitted_block']}"]
    assert found["acceptUnscreened"] is False
    assert before <= found["at"] <= int(time.time())


@pytest.mark.parametrize("word", ["silent", "nonsense"])
async def test_an_oracle_without_an_answer_is_the_tenants_risk_or_nobodys(
    start_engine: StartEngine, new_buyer: NewBuyer, oracle: Oracle, word: Any
) -> None:
    rig, buyer, asked = await start_engine(screen=oracle_screen(oracle)), await new_buyer(), terms()
    await oracle.say(buyer.address, word)
    payment = decoded(buyer.pay(2, asked), asked)
    for ask in (rig.engine.verify(rig.caller(), payment), rig.engine.settle(rig.caller(), payment, None)):
        with pytest.raises(ScreeningFault) as raised:
            await ask
        assert raised.value.retryable
    assert await rig.fetch("select from settlement") == []

    assert (await rig.engine.verify(rig.caller(accept_unscreened=True), payment)).refusal is None
    assert await settled(rig, payment, accept_unscreened=True) is None
    [found] = await kept(rig)
    assert found is not None
    assert (found["decision"], found["lists"], found["acceptUnscreened"]) == ("unscreened", [], True)


async def test_a_stale_file_closes_for_one_tenant_and_not_for_another(
    start_engine: StartEngine, new_buyer: NewBuyer, accounts: List
) -> None:
    rig, buyer, asked = await start_engine(screen=accounts.screen), await new_buyer(), terms()
    await accounts.grow_old()
    payment = decoded(buyer.pay(2, asked), asked)
    with pytest.raises(ScreeningFault):
        await rig.engine.settle(rig.caller(), payment, None)
    assert await settled(rig, payment, accept_unscreened=True) is None


async def test_what_was_paid_is_told_whoever_is_listed_since(start_engine: StartEngine, new_buyer: NewBuyer, accounts: List) -> None:
    rig, buyer, asked = await start_engine(screen=accounts.screen), await new_buyer(), terms()
    payment = decoded(buyer.pay(2, asked), asked)
    first = await rig.engine.settle(rig.caller(), payment, "order-1")
    await accounts.names(buyer.address)
    assert (await rig.engine.settle(rig.caller(), payment, "order-1")).result == first.result


async def test_who_is_listed_while_waiting_for_a_relayer_is_never_signed_for(
    start_engine: StartEngine, new_buyer: NewBuyer, new_relayer: Callable[..., Awaitable[Any]], token: Token, accounts: List
) -> None:
    relayer = await new_relayer(wei=0)
    rig = await start_engine(screen=accounts.screen, relayers=[relayer], balance_poll_s=0.1)
    bad, good, asked = await new_buyer(), await new_buyer(), terms()
    waiting = [asyncio.create_task(settled(rig, decoded(buyer.pay(2, asked), asked))) for buyer in (bad, good)]
    dispatcher = rig.engine._dispatchers[NETWORK]
    async with asyncio.timeout(30):
        while len(dispatcher._queue) < 2:
            await asyncio.sleep(0.01)
    await accounts.names(bad.address)
    await token.set_gas_money(relayer.address, 10**19)

    assert await asyncio.gather(*waiting) == [Reason.PAYER_SCREENED, None]
    assert len(await rig.fetch("select from settlement")) == 1
    assert len(await rig.fetch("select from relayer_transaction")) == 1


async def test_who_is_listed_while_queued_is_not_signed_for_by_the_replica_that_takes_it(
    start_engine: StartEngine, new_buyer: NewBuyer, accounts: List, tmp_path: Path
) -> None:
    theirs = List(tmp_path / "theirs.txt")
    front = await start_engine(relayers=[], screen=accounts.screen)
    bad, good, asked = await new_buyer(), await new_buyer(), terms()
    waiting = [asyncio.create_task(settled(front, decoded(buyer.pay(2, asked), asked))) for buyer in (bad, good)]
    async with asyncio.timeout(30):
        while len(await front.fetch("select from settlement where state = 'queued'")) < 2:
            await asyncio.sleep(0.02)
    await theirs.names(bad.address)
    owner = await start_engine(screen=theirs.screen)

    assert await asyncio.gather(*waiting) == [Reason.PAYER_SCREENED, None]
    rows = await owner.fetch("select payer, state, reason, screening from settlement")
    states = {row["payer"]: (row["state"], row["reason"]) for row in rows}
    assert states == {bad.address.lower(): ("failed", "PAYER_SCREENED"), good.address.lower(): ("included", None)}
    assert len(await owner.fetch("select from relayer_transaction")) == 1
    [signed] = [json.loads(row["screening"]) for row in rows if row["state"] == "included"]
    assert signed["lists"] == [theirs.file.current and theirs.file.current.version], "kept by who signed"


@pytest.mark.parametrize("accept_unscreened", [True, False])
async def test_the_tenants_rule_goes_with_a_queued_payment(
    start_engine: StartEngine,
    new_buyer: NewBuyer,
    accounts: List,
    tmp_path: Path,
    accept_unscreened: bool,  # noqa: FBT001
) -> None:
    theirs = List(tmp_path / "theirs.txt")
    await theirs.names()
    await theirs.grow_old()
    owner = await start_engine(screen=theirs.screen)
    front = await start_engine(relayers=[], screen=accounts.screen, **({} if accept_unscreened else {"deadline_s": 3.0}))
    buyer, asked = await new_buyer(), terms()
    task = settled(front, decoded(buyer.pay(2, asked), asked), accept_unscreened=accept_unscreened)
    if accept_unscreened:
        assert await task is None
        [found] = await kept(owner)
        assert found is not None
        assert found["decision"] == "unscreened"
        return
    with pytest.raises(OverloadFault) as raised:
        await task
    assert raised.value.kind == "not_sent"
    assert await owner.fetch("select from relayer_transaction") == []
