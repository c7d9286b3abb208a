"""A chain as the loops see it: whose accounts pay for gas, also while they come and go."""

from types import SimpleNamespace
from typing import Any, cast

from facilitator.chain.evm import EvmClient
from facilitator.chain.rpc import RpcClient
from facilitator.clock import SystemClock
from facilitator.domain.facts import Call, CodeOf, Probe, Question, Trial
from facilitator.settlement.network import HeadClock, OwnAccounts, ServedNetwork
from facilitator.units import Address, Gas, Network

NETWORK = Network("eip155:84532")
ONE, OTHER, THIRD = (Address("0x" + digit * 40) for digit in "123")


def signers(*addresses: Address) -> tuple[Any, ...]:
    return tuple(SimpleNamespace(address=address) for address in addresses)


def client() -> EvmClient:
    return EvmClient(NETWORK, RpcClient(["http://127.0.0.1:1"], SystemClock()))


def test_own_accounts_are_those_of_the_moment() -> None:
    chain = ServedNetwork(NETWORK, client(), signers(ONE), HeadClock(NETWORK, SystemClock(), 30))
    own = OwnAccounts([chain])
    assert [address in own for address in (ONE, OTHER)] == [True, False]
    chain.signers = (*chain.signers, *cast("tuple[Any, ...]", signers(OTHER)))
    assert [address in own for address in (ONE, OTHER, THIRD)] == [True, True, False]
    chain.signers = chain.signers[1:]
    assert [address in own for address in (ONE, OTHER)] == [False, True]
    assert chain.relayers == (OTHER,)


def test_questions_weigh_what_they_add_to_a_request() -> None:
    evm = client()
    call = Call(to=ONE, data=b"")
    long = Call(to=ONE, data=bytes(500))
    questions: tuple[Question, ...] = (
        CodeOf(address=ONE),
        call,
        call,
        Probe(call=call, gas=Gas(1)),
        Trial(payer=ONE, call=call),
        Trial(payer=ONE, call=long),
    )
    alone = [evm.weigh([question]) for question in questions]
    assert alone == [1, 1, 1, 1, 0, 2], "a trial that shares a call adds none, one that does not asks for its payer's code too"
    assert evm.weigh(questions) == 5, "calls share Multicall3's"
    evm.multicall = False
    assert evm.weigh(questions) == 6
    assert evm.weigh(()) == 0
