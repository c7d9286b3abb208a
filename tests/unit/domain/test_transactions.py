"""RLP at its edges; the property tests hold whole transactions equal to eth-account's."""

from typing import Any

import pytest
import rlp  # type: ignore[import-untyped]

from facilitator.domain import transactions
from facilitator.domain.transactions import Transaction, assemble, signing_hash
from facilitator.units import Address, Gas, Wei


def transaction(**changes: Any) -> Transaction:
    fields: dict[str, Any] = {
        "chain_id": 84532,
        "tx_nonce": 0,
        "to": Address("0x" + "22" * 20),
        "data": b"",
        "gas": Gas(21_000),
        "max_fee_wei": Wei(10**9),
        "max_priority_fee_wei": Wei(10**6),
    }
    return Transaction(**fields | changes)


@pytest.mark.parametrize("length", [0, 1, 2, 55, 56, 57, 255, 256, 257, 65535, 65536])
def test_strings_of_every_length_class_are_encoded_as_rlp_has_them(length: int) -> None:
    for data in (b"\x7f" * length, b"\x80" * length):
        assert transactions._string(data) == rlp.encode(data)


@pytest.mark.parametrize("number", [0, 1, 127, 128, 255, 256, 2**64, 2**256 - 1])
def test_integers_are_encoded_as_rlp_has_them(number: int) -> None:
    assert transactions._integer(number) == rlp.encode(number)


@pytest.mark.parametrize("field", ["tx_nonce", "gas", "max_fee_wei", "value_wei", "chain_id"])
@pytest.mark.parametrize("number", [-1, 2**256])
def test_a_field_outside_uint256_is_refused(field: str, number: int) -> None:
    with pytest.raises(ValueError, match="outside uint256"):
        signing_hash(transaction(**{field: number}))


def test_a_signed_transaction_does_not_show_its_bytes() -> None:
    signed = assemble(transaction(), r=1, s=1, y_parity=0)
    assert signed.raw.hex() not in repr(signed)
