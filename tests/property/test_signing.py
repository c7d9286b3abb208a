"""Whatever is asked of a signer, under whatever policy: what comes back signed is within it, told by other readers than ours.

The signed bytes are read with rlp and eth-abi, and the rule is written out here once more; a key in this process and one that a
service holds are held to the same.
"""

import asyncio
from dataclasses import replace
from typing import Any, Final

import eth_abi
import rlp
from coincurve import PrivateKey
from eth_account import Account
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from facilitator.chain.remote_signer import RemoteSigner
from facilitator.chain.signer import GAS_CAP, LocalSigner, Signer, SigningPolicy, SigningRefusedError, address_of
from facilitator.domain import abi
from facilitator.domain.facts import Call
from facilitator.domain.transactions import Transaction
from facilitator.units import Address, Gas, Wei

KEY: Final = b"\x07" * 32
RELAYER: Final = address_of(PrivateKey(KEY))
TOKENS: Final = tuple(Address("0x" + f"{number:02x}" * 20) for number in (0xA1, 0xA2))
FACTORIES: Final = tuple(Address("0x" + f"{number:02x}" * 20) for number in (0xF1, 0xF2))
STRANGER: Final = Address("0x" + "66" * 20)
TARGETS: Final = (*TOKENS, *FACTORIES, RELAYER, abi.MULTICALL3_ADDRESS, STRANGER)
PAYMENTS: Final = {bytes.fromhex("e3ee160e"), bytes.fromhex("cf092995")}
"""transferWithAuthorization over (v, r, s) and over bytes, as the token's published ABI has them."""
OTHERS: Final = ("a9059cbb", "095ea7b3", "23b872dd", "40c10f19", "82ad56cb", "3659cfe6")
SELECTORS: Final = (*sorted(PAYMENTS), *map(bytes.fromhex, OTHERS))
"""Payments; then transfer, approve, transferFrom, mint, aggregate3 and upgradeTo."""

data = st.one_of(
    st.binary(max_size=40), st.builds(lambda selector, rest: selector + rest, st.sampled_from(SELECTORS), st.binary(max_size=300))
)
calls = st.lists(st.tuples(st.builds(Call, to=st.sampled_from(TARGETS), data=data), st.booleans()), max_size=4)
batches = calls.map(abi._aggregate3)
deployments = st.builds(
    lambda first, token, selector: abi._aggregate3([(first, True), (Call(to=token, data=selector), False)]),
    st.builds(Call, to=st.sampled_from(TARGETS), data=data),
    st.sampled_from(TOKENS),
    st.sampled_from(SELECTORS),
)
damaged = st.builds(
    lambda batch, place, byte, rest: batch[: place % (len(batch) + 1)] + byte + batch[place % (len(batch) + 1) + len(byte) :] + rest,
    batches,
    st.integers(0, 2000),
    st.binary(max_size=2),
    st.binary(max_size=33),
)
policies = st.builds(
    SigningPolicy,
    chain_id=st.sampled_from([8453, 84532]),
    assets=st.frozensets(st.sampled_from(TOKENS)),
    factories=st.frozensets(st.sampled_from(FACTORIES)),
    gas_max=st.sampled_from([Gas(21_000), Gas(500_000), GAS_CAP]),
    max_fee_max_wei=st.sampled_from([Wei(10**9), Wei(10**12)]),
)
anything = st.builds(
    Transaction,
    chain_id=st.sampled_from([1, 8453, 84532]),
    tx_nonce=st.integers(0, 2**64 - 2),
    to=st.sampled_from(TARGETS),
    data=st.one_of(data, batches, damaged),
    value_wei=st.one_of(st.just(Wei(0)), st.integers(1, 10**18).map(Wei)),
    gas=st.one_of(st.integers(0, 600_000), st.integers(GAS_CAP - 1, GAS_CAP + 1)).map(Gas),
    max_fee_wei=st.one_of(st.integers(0, 2 * 10**9), st.integers(10**12 - 1, 10**12 + 1)).map(Wei),
    max_priority_fee_wei=st.integers(0, 10**9).map(Wei),
)


@st.composite
def right(draw: st.DrawFn, policy: SigningPolicy) -> Transaction:
    """A transaction within the policy: a payment, some together, a wallet's first, or a no-op."""
    pay = st.builds(
        lambda token, selector, rest: Call(to=token, data=selector + rest),
        st.sampled_from(sorted(policy.assets) or [RELAYER]),
        st.sampled_from(sorted(PAYMENTS)),
        st.binary(max_size=64),
    )
    kinds = [st.just(Call(to=RELAYER, data=b""))]
    if policy.assets:
        kinds += [pay, st.lists(pay, min_size=1, max_size=4).map(lambda calls: Call(to=abi.MULTICALL3_ADDRESS, data=abi.aggregate3(calls)))]
    if policy.assets and policy.factories:
        makes = st.builds(Call, to=st.sampled_from(sorted(policy.factories)), data=st.binary(max_size=40))
        kinds.append(
            st.builds(lambda first, then: Call(to=abi.MULTICALL3_ADDRESS, data=abi._aggregate3([(first, True), (then, False)])), makes, pay)
        )
    call = draw(st.one_of(kinds))
    fee = draw(st.sampled_from([0, 1, policy.max_fee_max_wei]))
    return Transaction(
        chain_id=policy.chain_id,
        tx_nonce=draw(st.integers(0, 2**64 - 2)),
        to=call.to,
        data=call.data,
        gas=draw(st.sampled_from([Gas(0), policy.gas_max])),
        max_fee_wei=Wei(fee),
        max_priority_fee_wei=Wei(draw(st.sampled_from([0, fee]))),
    )


@st.composite
def asked(draw: st.DrawFn, policy: SigningPolicy) -> Transaction:
    """Anything at all, or something right with one thing about it that may be wrong, often by one."""
    if draw(st.integers(0, 9)) == 0:
        return draw(anything)
    transaction = draw(right(policy))
    wrong: dict[str, st.SearchStrategy[Any]] = {
        "chain_id": st.sampled_from([1, 8453, 84532]),
        "to": st.sampled_from(TARGETS),
        "data": st.one_of(data, batches, deployments, damaged, st.just(b""), st.just(abi.aggregate3([]))),
        "value_wei": st.sampled_from([Wei(1), Wei(10**18)]),
        "gas": st.sampled_from([Gas(policy.gas_max + 1), Gas(2**63)]),
        "max_fee_wei": st.just(Wei(policy.max_fee_max_wei + 1)),
        "max_priority_fee_wei": st.just(Wei(transaction.max_fee_wei + 1)),
    }
    field = draw(st.sampled_from(sorted(wrong)))
    changed = replace(transaction, **{field: draw(wrong[field])})
    if field == "data" and draw(st.booleans()):
        return replace(changed, to=abi.MULTICALL3_ADDRESS)
    return changed


cases = policies.flatmap(lambda policy: st.tuples(st.just(policy), asked(policy)))
fitting = policies.flatmap(lambda policy: st.tuples(st.just(policy), right(policy)))


class Obliging:
    """A key service that signs whatever reaches it."""

    def __init__(self) -> None:
        self.asked = 0

    async def sign(self, transaction: Transaction, digest: bytes) -> tuple[int, int]:
        del transaction
        self.asked += 1
        signature = PrivateKey(KEY).sign_recoverable(digest, hasher=None)
        return int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")

    async def close(self) -> None:
        pass


def within(policy: SigningPolicy, raw: bytes) -> bool:
    """The rule, of the bytes that would be sent."""
    assert raw[:1] == b"\x02"
    chain_id, _, tip, fee, gas, to, value, called, access_list, *_ = rlp.decode(raw[1:])
    chain_id, tip, fee, gas, value = (int.from_bytes(number, "big") for number in (chain_id, tip, fee, gas, value))
    if (chain_id, value, access_list) != (policy.chain_id, 0, []) or gas > policy.gas_max or not tip <= fee <= policy.max_fee_max_wei:
        return False
    target = "0x" + to.hex()
    if target == abi.MULTICALL3_ADDRESS:
        if called[:4] != bytes.fromhex("82ad56cb"):
            return False
        [inner] = eth_abi.decode(["(address,bool,bytes)[]"], called[4:])
        pays = [where in policy.assets and what[:4] in PAYMENTS for where, _, what in inner]
        may_fail = [each for _, each, _ in inner]
        deploys = len(inner) == 2 and inner[0][0] in policy.factories and pays[1] and may_fail == [True, False]
        return bool(inner) and (deploys or (all(pays) and all(may_fail)))
    return (target == RELAYER and not called) or (target in policy.assets and called[:4] in PAYMENTS)


RUNNER: Final = asyncio.Runner()


def signed(signer: Signer, transaction: Transaction) -> bytes | None:
    try:
        return RUNNER.run(signer.sign(transaction)).raw
    except SigningRefusedError:
        return None


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases)
def test_what_is_signed_is_within_the_policy_whatever_is_asked(case: tuple[SigningPolicy, Transaction]) -> None:
    policy, transaction = case
    service = Obliging()
    raw = signed(LocalSigner(KEY, policy), transaction)
    remote = signed(RemoteSigner(service, RELAYER, policy), transaction)

    assert raw == remote, "one policy, wherever the key is"
    assert service.asked == (raw is not None), "what is refused is not even asked of the service"
    if raw is None:
        return
    assert within(policy, raw), transaction
    assert Account.recover_transaction(raw).lower() == RELAYER


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(fitting)
def test_what_is_within_the_policy_is_signed(case: tuple[SigningPolicy, Transaction]) -> None:
    """Or nothing would be paid, and the first test would hold for a signer that refuses everything."""
    policy, transaction = case
    raw = signed(LocalSigner(KEY, policy), transaction)
    assert raw is not None
    assert within(policy, raw)
