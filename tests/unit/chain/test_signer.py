"""Relayer keys: what they sign, what they refuse, what they never show."""

import asyncio
import json
from typing import Any

import eth_abi
import pytest
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st

from facilitator.chain.signer import GAS_CAP, LocalSigner, SigningPolicy, SigningRefusedError, load_key, load_signer
from facilitator.domain import abi
from facilitator.domain.facts import Call
from facilitator.domain.transactions import Transaction
from facilitator.errors import ConfigFault
from facilitator.units import Address, Gas, Wei
from tests.fixtures.vectors import PAYER, PAYER_KEY

KEY_TEXT = "0x" + PAYER_KEY.hex()
TOKEN = Address("0x" + "22" * 20)
FACTORY = Address("0x" + "55" * 20)
POLICY = SigningPolicy(chain_id=84532, assets=frozenset({TOKEN}), factories=frozenset({FACTORY}), max_fee_max_wei=Wei(10**12))
PAYMENT = abi.TRANSFER_WITH_AUTHORIZATION + b"\x01" * 288
KEYSTORE = json.dumps(Account.encrypt(PAYER_KEY, "correct horse", iterations=2))


def batch(other: Address) -> bytes:
    return abi.aggregate3([Call(to=TOKEN, data=PAYMENT), Call(to=other, data=PAYMENT), Call(to=TOKEN, data=PAYMENT)])


def deployment(factory: Address, pays: bytes | None = None) -> bytes:
    return abi.deploy_and_pay(Call(to=factory, data=b"anything"), Call(to=TOKEN, data=PAYMENT if pays is None else pays))


def transaction(**changes: Any) -> Transaction:
    fields: dict[str, Any] = {
        "chain_id": 84532,
        "tx_nonce": 3,
        "to": TOKEN,
        "data": PAYMENT,
        "gas": Gas(120_000),
        "max_fee_wei": Wei(10**9),
        "max_priority_fee_wei": Wei(10**6),
    }
    return Transaction(**fields | changes)


async def test_the_signed_bytes_are_eth_accounts() -> None:
    signer = LocalSigner(PAYER_KEY, POLICY)
    signed = await signer.sign(transaction())
    oracle = Account.sign_transaction(
        {
            "type": 2,
            "chainId": 84532,
            "nonce": 3,
            "to": "0x" + "22" * 20,
            "data": PAYMENT,
            "value": 0,
            "gas": 120_000,
            "maxFeePerGas": 10**9,
            "maxPriorityFeePerGas": 10**6,
        },
        PAYER_KEY,
    )
    assert signed.raw == bytes(oracle.raw_transaction)
    assert signed.tx_hash == "0x" + bytes(oracle.hash).hex()
    assert Account.recover_transaction(signed.raw) == PAYER


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"chain_id": 8453}, "chain 84532, not for 8453"),
        ({"value_wei": Wei(1)}, "never moves coins"),
        ({"gas": Gas(GAS_CAP + 1)}, "above the limit"),
        ({"max_fee_wei": Wei(10**12 + 1)}, "above the limit"),
        ({"max_priority_fee_wei": Wei(10**9 + 1)}, "priority fee"),
        ({"to": Address("0x" + "44" * 20)}, "payments of served tokens"),
        ({"data": b"\xa9\x05\x9c\xbb" + bytes(64)}, "payments of served tokens"),
        ({"data": b""}, "payments of served tokens"),
        ({"to": Address(PAYER.lower())}, "payments of served tokens"),
        ({"to": abi.MULTICALL3_ADDRESS}, "payments of served tokens"),
        ({"to": abi.MULTICALL3_ADDRESS, "data": abi.aggregate3([])}, "payments of served tokens"),
        ({"to": abi.MULTICALL3_ADDRESS, "data": batch(abi.MULTICALL3_ADDRESS)}, "payments of served tokens"),
        ({"to": abi.MULTICALL3_ADDRESS, "data": batch(TOKEN) + b"\x00"}, "payments of served tokens"),
        ({"to": abi.MULTICALL3_ADDRESS, "data": abi._aggregate3([(Call(to=TOKEN, data=PAYMENT), False)])}, "payments"),
        ({"to": abi.MULTICALL3_ADDRESS, "data": deployment(Address("0x" + "44" * 20))}, "no factory but those listed"),
        ({"to": abi.MULTICALL3_ADDRESS, "data": deployment(TOKEN)}, "no factory but those listed"),
        ({"to": abi.MULTICALL3_ADDRESS, "data": deployment(FACTORY, pays=b"\xa9\x05\x9c\xbb" + bytes(64))}, "no factory"),
        ({"to": abi.MULTICALL3_ADDRESS, "data": deployment(FACTORY) + b"\x00"}, "payments of served tokens"),
        (
            {"to": abi.MULTICALL3_ADDRESS, "data": abi.aggregate3([Call(to=FACTORY, data=b"\x01"), Call(to=TOKEN, data=PAYMENT)])},
            "payments",
        ),
        ({"to": FACTORY, "data": b"\x01"}, "payments of served tokens"),
    ],
)
async def test_a_transaction_outside_the_limits_is_not_signed(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(SigningRefusedError, match=says):
        await LocalSigner(PAYER_KEY, POLICY).sign(transaction(**changes))


async def test_a_batch_of_payments_is_signed_and_its_calls_are_read_back() -> None:
    await LocalSigner(PAYER_KEY, POLICY).sign(transaction(to=abi.MULTICALL3_ADDRESS, data=batch(TOKEN)))
    assert abi.read_aggregate3_calls(batch(TOKEN)) == (Call(to=TOKEN, data=PAYMENT),) * 2 + (Call(to=TOKEN, data=PAYMENT),)


async def test_a_wallets_deployment_by_a_listed_factory_is_signed_before_its_payment_and_nowhere_else() -> None:
    await LocalSigner(PAYER_KEY, POLICY).sign(transaction(to=abi.MULTICALL3_ADDRESS, data=deployment(FACTORY)))
    unlisted = SigningPolicy(chain_id=84532, assets=frozenset({TOKEN}), max_fee_max_wei=Wei(10**12))
    with pytest.raises(SigningRefusedError):
        await LocalSigner(PAYER_KEY, unlisted).sign(transaction(to=abi.MULTICALL3_ADDRESS, data=deployment(FACTORY)))


@given(
    st.sampled_from([TOKEN, FACTORY, Address(PAYER.lower()), abi.MULTICALL3_ADDRESS, Address("0x" + "44" * 20)]),
    st.one_of(
        st.binary(max_size=64),
        st.just(PAYMENT),
        st.lists(st.tuples(st.sampled_from([TOKEN, Address("0x" + "44" * 20)]), st.sampled_from([PAYMENT, b"", b"\xa9\x05\x9c\xbb"]))).map(
            lambda calls: abi.aggregate3([Call(to=to, data=data) for to, data in calls])
        ),
        st.lists(
            st.tuples(
                st.builds(Call, to=st.sampled_from([TOKEN, FACTORY, abi.MULTICALL3_ADDRESS]), data=st.sampled_from([PAYMENT, b"make one"])),
                st.booleans(),
            ),
            max_size=3,
        ).map(abi._aggregate3),
    ),
    st.integers(0, 1),
    st.sampled_from([84532, 8453]),
)
def test_nothing_outside_the_policy_is_ever_signed(to: Address, data: bytes, value_wei: int, chain_id: int) -> None:
    asked = transaction(to=to, data=data, value_wei=Wei(value_wei), chain_id=chain_id)
    try:
        asyncio.run(LocalSigner(PAYER_KEY, POLICY).sign(asked))
    except SigningRefusedError:
        return
    assert (value_wei, chain_id) == (0, 84532)
    if to == PAYER.lower():
        assert data == b""
        return
    [decoded] = eth_abi.decode(["(address,bool,bytes)[]"], data[4:]) if to == abi.MULTICALL3_ADDRESS else [[(to, True, data)]]
    assert decoded
    if len(decoded) == 2 and [may_fail for _, may_fail, _ in decoded] == [True, False]:
        assert decoded[0][0] == FACTORY
        decoded = decoded[1:]
    else:
        assert all(may_fail for _, may_fail, _ in decoded)
    assert {(target, called[:4]) for target, _, called in decoded} == {(TOKEN, abi.TRANSFER_WITH_AUTHORIZATION)}


async def test_a_transaction_at_the_limits_and_a_noop_are_signed() -> None:
    signer = LocalSigner(PAYER_KEY, POLICY)
    await signer.sign(transaction(gas=GAS_CAP, max_fee_wei=Wei(10**12)))
    await signer.sign(transaction(to=signer.address, data=b"", gas=Gas(21_000)))


@pytest.mark.parametrize("text", [KEY_TEXT, KEY_TEXT[2:], f"  {KEY_TEXT.upper().replace('0X', '0x')}\n"])
def test_a_key_is_read_from_hex(text: str) -> None:
    assert load_key(text) == PAYER_KEY
    assert load_signer(text, POLICY).address == PAYER.lower()


def test_a_key_is_read_from_an_encrypted_keystore() -> None:
    assert load_signer(KEYSTORE, POLICY, "correct horse").address == PAYER.lower()


@pytest.mark.parametrize(
    ("text", "password"),
    [
        ("", None),
        ("0x", None),
        (KEY_TEXT[:-2], None),
        (KEY_TEXT + "11", None),
        (KEY_TEXT[:-1] + "g", None),
        (KEY_TEXT[:34] + " " + KEY_TEXT[34:], None),
        ("00" * 32, None),
        ("ff" * 32, None),
        (KEYSTORE, None),
        (KEYSTORE, "battery staple"),
        ("{", "x"),
        ("{}", "x"),
        ('{"version": 3, "crypto": {}}', "x"),
        ('{"version": 9}', "x"),
    ],
)
def test_what_is_no_key_is_refused_without_being_shown(text: str, password: str | None) -> None:
    with pytest.raises(ConfigFault) as caught:
        load_key(text, password)
    told = str(caught.value) + repr(caught.value.__cause__) + str(caught.value.evidence)
    assert not any(piece in told for piece in (PAYER_KEY.hex()[:16], "battery staple", "correct horse"))


@pytest.mark.parametrize("key", [b"", bytes(32), b"\xff" * 32, b"\x11" * 31, b"\x11" * 33])
def test_bytes_that_are_no_key_make_no_signer(key: bytes) -> None:
    with pytest.raises(ValueError, match="secp256k1"):
        LocalSigner(key, POLICY)


def test_a_signer_shows_its_address_only() -> None:
    assert repr(LocalSigner(PAYER_KEY, POLICY)) == f"LocalSigner({PAYER.lower()})"
