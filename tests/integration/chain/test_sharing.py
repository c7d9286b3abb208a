"""Shared look-ups on a real anvil: how few requests they take, and that no payment changes how another is judged."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest_asyncio

from facilitator.chain.evm import EvmClient
from facilitator.chain.rpc import RpcClient
from facilitator.chain.sharing import SharedAnswers
from facilitator.clock import SystemClock
from facilitator.devstack.accounts import dev_account
from facilitator.devstack.buyer import Buyer
from facilitator.devstack.stack import Anvil
from facilitator.domain.facts import CodeOf
from facilitator.protocol.messages import Authorization
from facilitator.protocol.reasons import Reason
from facilitator.units import Address, Atomic, AuthNonce
from tests.fixtures.payments import BASE_SEPOLIA, SCHEME, USDC, authorization, sign
from tests.fixtures.waiting import PATIENCE_S

NewBuyer = Callable[..., Awaitable[Buyer]]
SELLER = Address(dev_account("seller", 8).address.lower())
LOOP = "0x5b600056"  # JUMPDEST PUSH1 0 JUMP: whatever is called on it, isValidSignature too, burns all its gas


@pytest_asyncio.fixture
async def evm(chain: Anvil) -> AsyncIterator[EvmClient]:
    client = EvmClient(BASE_SEPOLIA, RpcClient([chain.rpc_url], SystemClock()))
    await client.connect(client.deadline_in(PATIENCE_S))
    yield client
    await client.close()


def pay(buyer: Buyer, number: int = 0, pay_to: Address = SELLER, amount_atomic: int = 10_000) -> Authorization:
    """One of this buyer's payments, signed by its key."""
    fields = {
        "payer": Address(buyer.address.lower()),
        "pay_to": pay_to,
        "amount_atomic": Atomic(amount_atomic),
        "auth_nonce": AuthNonce(f"0x{number:064x}"),
    }
    return authorization(**fields, signature=sign(authorization(**fields), bytes(buyer.account.key)))


async def verdict(evm: EvmClient, answers: SharedAnswers, terms: Authorization) -> Reason | None:
    """What verification says of a payment: None when it is valid."""
    assert SCHEME.check_signature(terms) is None
    refusal = SCHEME.judge(terms, await answers.answer(SCHEME.ask(terms), evm.deadline_in(PATIENCE_S)))
    return None if refusal is None else refusal.reason


async def test_a_lone_verification_is_one_request(evm: EvmClient, new_buyer: NewBuyer) -> None:
    terms, answers, sent = pay(await new_buyer()), SharedAnswers(evm), evm.rpc.requests_sent
    assert await verdict(evm, answers, terms) is None
    assert evm.rpc.requests_sent == sent + 1


async def test_two_hundred_verifications_at_once_are_a_dozen_requests_at_most(evm: EvmClient, new_buyer: NewBuyer) -> None:
    buyers = [await new_buyer() for _ in range(4)]
    payments = [pay(buyer, number) for buyer in buyers for number in range(50)]
    answers, sent = SharedAnswers(evm), evm.rpc.requests_sent
    assert await asyncio.gather(*(verdict(evm, answers, terms) for terms in payments)) == [None] * 200
    assert evm.rpc.requests_sent - sent <= 12


async def test_a_payer_whose_code_burns_all_gas_is_refused_and_harms_nobody_beside_it(
    evm: EvmClient, new_buyer: NewBuyer, chain: Anvil
) -> None:
    bombers = [await new_buyer() for _ in range(3)]
    for bomber in bombers:
        await chain.node.call("anvil_setCode", bomber.address, LOOP)
    honest = [pay(await new_buyer()) for _ in range(9)]
    payments = [
        terms for bomber, group in zip(bombers, (honest[:3], honest[3:6], honest[6:]), strict=True) for terms in (pay(bomber), *group)
    ]
    answers, sent = SharedAnswers(evm), evm.rpc.requests_sent

    verdicts = await asyncio.gather(*(verdict(evm, answers, terms) for terms in payments))

    assert evm.rpc.requests_sent == sent + 1, "they were to share one request"
    assert verdicts == [Reason.SIGNATURE, None, None, None] * 3


async def test_payments_in_one_request_are_each_judged_as_if_alone(evm: EvmClient, new_buyer: NewBuyer) -> None:
    rich, poor = await new_buyer(amount_atomic=10_000), await new_buyer(amount_atomic=0)
    gift = pay(rich, 1, pay_to=Address(poor.address.lower()))
    out_of_the_gift = pay(poor, 1)
    once_more = pay(rich, 2)
    answers, sent = SharedAnswers(evm), evm.rpc.requests_sent

    verdicts = await asyncio.gather(*(verdict(evm, answers, terms) for terms in (gift, out_of_the_gift, once_more)))

    assert evm.rpc.requests_sent == sent + 1, "they were to share one request"
    assert verdicts == [None, Reason.INSUFFICIENT_BALANCE, None]  # money that a simulation moved is nobody's


async def test_without_multicall3_callers_share_a_request_too(evm: EvmClient, new_buyer: NewBuyer) -> None:
    evm.multicall = False
    payments = [pay(await new_buyer()), pay(await new_buyer(amount_atomic=1))]
    answers, sent = SharedAnswers(evm), evm.rpc.requests_sent
    verdicts = await asyncio.gather(*(verdict(evm, answers, terms) for terms in payments))
    assert verdicts == [None, Reason.INSUFFICIENT_BALANCE]
    assert evm.rpc.requests_sent == sent + 1


async def test_an_account_that_several_ask_about_is_looked_up_once(evm: EvmClient, new_buyer: NewBuyer) -> None:
    plain = CodeOf(address=Address((await new_buyer()).address.lower()))
    answers, deadline = SharedAnswers(evm), evm.deadline_in(PATIENCE_S)
    first, second = await asyncio.gather(answers.answer((plain,), deadline), answers.answer((plain, CodeOf(address=USDC)), deadline))
    assert first.replies == (second.replies[0],)
    assert len(second.replies[1].data) > 100
