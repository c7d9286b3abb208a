"""Relayer keys: what they sign, what they refuse, what they never show."""

import json
from typing import Any

import pytest
from eth_account import Account

from facilitator.chain.signer import GAS_CAP, LocalSigner, SigningLimits, SigningRefusedError, load_key, load_signer
from facilitator.domain.transactions import Transaction
from facilitator.errors import ConfigFault
from facilitator.units import Address, Gas, Wei
from tests.fixtures.vectors import PAYER, PAYER_KEY

KEY_TEXT = "0x" + PAYER_KEY.hex()
LIMITS = SigningLimits(chain_id=84532, max_fee_max_wei=Wei(10**12))
KEYSTORE = json.dumps(Account.encrypt(PAYER_KEY, "correct horse", iterations=2))


def transaction(**changes: Any) -> Transaction:
    fields: dict[str, Any] = {
        "chain_id": 84532,
        "tx_nonce": 3,
        "to": Address("0x" + "22" * 20),
        "data": b"\x01" * 292,
        "gas": Gas(120_000),
        "max_fee_wei": Wei(10**9),
        "max_priority_fee_wei": Wei(10**6),
    }
    return Transaction(**fields | changes)


async def test_the_signed_bytes_are_eth_accounts() -> None:
    signer = LocalSigner(PAYER_KEY, LIMITS)
    signed = await signer.sign(transaction())
    oracle = Account.sign_transaction(
        {
            "type": 2,
            "chainId": 84532,
            "nonce": 3,
            "to": "0x" + "22" * 20,
            "data": b"\x01" * 292,
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
    ],
)
async def test_a_transaction_outside_the_limits_is_not_signed(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(SigningRefusedError, match=says):
        await LocalSigner(PAYER_KEY, LIMITS).sign(transaction(**changes))


async def test_a_transaction_at_the_limits_and_a_noop_are_signed() -> None:
    signer = LocalSigner(PAYER_KEY, LIMITS)
    await signer.sign(transaction(gas=GAS_CAP, max_fee_wei=Wei(10**12)))
    await signer.sign(transaction(to=signer.address, data=b"", gas=Gas(21_000)))


@pytest.mark.parametrize("text", [KEY_TEXT, KEY_TEXT[2:], f"  {KEY_TEXT.upper().replace('0X', '0x')}\n"])
def test_a_key_is_read_from_hex(text: str) -> None:
    assert load_key(text) == PAYER_KEY
    assert load_signer(text, LIMITS).address == PAYER.lower()


def test_a_key_is_read_from_an_encrypted_keystore() -> None:
    assert load_signer(KEYSTORE, LIMITS, "correct horse").address == PAYER.lower()


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
        LocalSigner(key, LIMITS)


def test_a_signer_shows_its_address_only() -> None:
    assert repr(LocalSigner(PAYER_KEY, LIMITS)) == f"LocalSigner({PAYER.lower()})"
