"""Trials on a real anvil: many in one call, each judged as if it were alone."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from facilitator.chain.evm import EvmClient
from facilitator.chain.rpc import RpcClient
from facilitator.clock import SystemClock
from facilitator.devstack.accounts import dev_account
from facilitator.devstack.buyer import Buyer
from facilitator.devstack.stack import Anvil
from facilitator.domain import trials
from facilitator.domain.facts import Reply, Trial
from facilitator.errors import ChainFault
from facilitator.protocol.messages import Authorization
from facilitator.units import Address, Atomic, AuthNonce, UnixSeconds
from tests.fixtures.base_sim import BaseSim, NodeSays, Rewrite
from tests.fixtures.base_sim.fixtures import StartSim, start_sim
from tests.fixtures.payments import BASE_SEPOLIA, SCHEME, authorization, sign
from tests.fixtures.waiting import PATIENCE_S

__all__ = ["start_sim"]
NewBuyer = Callable[..., Awaitable[Buyer]]
SELLER = Address(dev_account("seller", 8).address.lower())
LOOP = "0x5b600056"  # JUMPDEST PUSH1 0 JUMP: whatever is called on it burns all its gas
YES, NO = Reply(ok=True, data=b""), Reply(ok=False, data=b"")
UNRUNNABLE = NodeSays(code=-32000, message="max initcode size exceeded", method="eth_call", where=lambda call: "to" not in call.params[0])


@pytest_asyncio.fixture
async def evm(chain: Anvil) -> AsyncIterator[EvmClient]:
    client = EvmClient(BASE_SEPOLIA, RpcClient([chain.rpc_url], SystemClock()))
    yield client
    await client.close()


def pay(buyer: Buyer, number: int = 0, pay_to: Address = SELLER, amount_atomic: int = 10_000, valid_after: int = 0) -> Authorization:
    fields = {
        "payer": Address(buyer.address.lower()),
        "pay_to": pay_to,
        "amount_atomic": Atomic(amount_atomic),
        "auth_nonce": AuthNonce(f"0x{number:064x}"),
        "valid_after": UnixSeconds(valid_after),
    }
    return authorization(**fields, signature=sign(authorization(**fields), bytes(buyer.account.key)))


def trial_of(terms: Authorization) -> Trial:
    trial = SCHEME.trial(terms)
    assert trial is not None
    return trial


async def tried(evm: EvmClient, *payments: Authorization) -> list[Reply]:
    """Each caller's one reply, all asked in one request."""
    answers = await evm.answer_each([(trial_of(terms),) for terms in payments], evm.deadline_in(PATIENCE_S))
    return [answer.replies[0] for answer in answers if not isinstance(answer, ChainFault)]


async def alone(evm: EvmClient, *payments: Authorization) -> list[Reply]:
    """The same, each by an `eth_call` of its own."""
    evm._apart_until = evm.deadline_in(60)
    try:
        return await tried(evm, *payments)
    finally:
        evm._apart_until = float("-inf")


async def test_money_that_one_trial_moves_is_not_there_for_the_next(evm: EvmClient, new_buyer: NewBuyer) -> None:
    rich, poor = await new_buyer(amount_atomic=10_000), await new_buyer(amount_atomic=0)
    gift, spent_gift = pay(rich, 1, pay_to=Address(poor.address.lower())), pay(poor, 1)
    assert await tried(evm, gift, spent_gift) == [YES, NO]


async def test_money_that_one_trial_moves_is_still_there_for_the_next(evm: EvmClient, new_buyer: NewBuyer) -> None:
    rich = await new_buyer(amount_atomic=10_000)
    assert await tried(evm, pay(rich, 1), pay(rich, 2), pay(rich, 1), pay(rich, 3, amount_atomic=10_001)) == [YES, YES, YES, NO]


async def test_nothing_is_called_for_a_payer_with_code(evm: EvmClient, new_buyer: NewBuyer, chain: Anvil) -> None:
    bomber, delegated, honest = await new_buyer(), await new_buyer(), await new_buyer()
    await chain.node.call("anvil_setCode", bomber.address, LOOP)
    await chain.node.call("anvil_setCode", delegated.address, "0xef0100" + "11" * 20)
    assert await tried(evm, *[pay(bomber)] * 3, pay(delegated), pay(honest)) == [NO, NO, NO, NO, YES]


async def test_a_hundred_fit_into_one_call_and_more_into_two(evm: EvmClient, new_buyer: NewBuyer) -> None:
    buyer = await new_buyer(amount_atomic=10_000)
    payments = [pay(buyer, number, amount_atomic=10_000 + number % 2) for number in range(trials.TRIALS_MAX + 20)]
    sent = evm.rpc.requests_sent
    assert await tried(evm, *payments) == [YES, NO] * (len(payments) // 2)
    assert evm.rpc.requests_sent == sent + 1


@pytest.mark.parametrize("round_", range(3))
async def test_together_they_are_judged_as_each_alone(evm: EvmClient, new_buyer: NewBuyer, chain: Anvil, round_: int) -> None:
    seed = random.SystemRandom().getrandbits(32)
    draw = random.Random(seed)  # noqa: S311 (repeats by its seed)
    buyers = [await new_buyer(amount_atomic=draw.choice((0, 10_000, 15_000))) for _ in range(5)]
    if round_:
        await chain.node.call("anvil_setCode", buyers[0].address, LOOP)
    accounts = [SELLER, *(Address(buyer.address.lower()) for buyer in buyers)]
    payments = [
        pay(
            draw.choice(buyers),
            draw.randrange(6),
            pay_to=draw.choice(accounts),
            amount_atomic=draw.choice((1, 10_000, 20_000)),
            valid_after=draw.choice((0, 4_000_000_000)),
        )
        for _ in range(30)
    ]
    rich = await new_buyer(amount_atomic=10_000)
    payments += [pay(rich, 1), pay(rich, 2, amount_atomic=10_001)]  # one of either kind, whatever was drawn
    together, apart = await tried(evm, *payments), await alone(evm, *payments)
    assert together == apart, f"seed {seed}"
    assert {reply.ok for reply in together} == {True, False}


async def of_sim(sim: BaseSim) -> EvmClient:
    return EvmClient(BASE_SEPOLIA, RpcClient([sim.url], SystemClock()))


@pytest.mark.parametrize(
    "fault",
    [UNRUNNABLE, Rewrite(method="eth_call", change=lambda _call, _result: "0x", where=lambda call: "to" not in call.params[0])],
    ids=["error", "nothing"],
)
async def test_an_endpoint_that_cannot_run_them_is_asked_one_by_one(
    start_sim: StartSim, chain: Anvil, new_buyer: NewBuyer, fault: NodeSays | Rewrite
) -> None:
    sim = await start_sim(node_url=chain.rpc_url)
    sim.plant(fault)
    evm = await of_sim(sim)
    good, bad = pay(await new_buyer(), 1), pay(await new_buyer(amount_atomic=1), 1)
    try:
        assert await tried(evm, good, bad) == [YES, NO]
        asked = evm.rpc.requests_sent
        assert await tried(evm, good, bad) == [YES, NO]
        assert evm.rpc.requests_sent == asked + 1, "it was tried together again at once"
    finally:
        await evm.close()


async def test_an_endpoint_in_passing_trouble_gives_faults_and_is_asked_together_again(
    start_sim: StartSim, chain: Anvil, new_buyer: NewBuyer
) -> None:
    sim = await start_sim(node_url=chain.rpc_url)
    evm = await of_sim(sim)
    terms = pay(await new_buyer())
    try:
        sim.plant(NodeSays(code=-32005, message="rate limit exceeded", method="eth_call", times=1))
        [answer] = await evm.answer_each([(trial_of(terms),)], evm.deadline_in(PATIENCE_S))
        assert isinstance(answer, ChainFault)
        assert answer.kind == "rate_limited"
        assert await tried(evm, terms) == [YES]
        assert evm._apart_until == float("-inf")
    finally:
        await evm.close()


async def test_trials_and_questions_share_a_request(evm: EvmClient, new_buyer: NewBuyer) -> None:
    terms, poor = pay(await new_buyer()), pay(await new_buyer(amount_atomic=1))
    sent = evm.rpc.requests_sent
    yes, no, why = await evm.answer_each(
        [(trial_of(terms),), (trial_of(poor),), (trial_of(poor), *SCHEME.ask(poor))], evm.deadline_in(PATIENCE_S)
    )
    assert evm.rpc.requests_sent == sent + 1
    for answer, expected in ((yes, YES), (no, NO), (why, NO)):
        assert not isinstance(answer, ChainFault)
        assert answer.replies[0] == expected
    assert not isinstance(why, ChainFault)
    assert len(why.replies) == 1 + len(SCHEME.ask(poor))
