"""Hand-made encodings equal those of the libraries, for payments and transactions that nobody thought of."""

import asyncio
from typing import Any

from eth_abi.abi import encode
from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_keys.datatypes import PrivateKey
from eth_utils.crypto import keccak
from hypothesis import assume, given
from hypothesis import strategies as st

from facilitator.chain.signer import LocalSigner, SigningPolicy
from facilitator.domain import abi
from facilitator.domain.abi import PaymentProof, find_payment
from facilitator.domain.facts import Call, Head, Reply
from facilitator.domain.fees import ETHEREUM, FeePolicy, max_fee, next_base_fee
from facilitator.domain.transactions import Transaction, read_call
from facilitator.protocol.address import checksum_address
from facilitator.protocol.messages import Authorization
from facilitator.schemes.signatures import GROUP_ORDER, HALF_ORDER, flaw, normalise, recover, transfer_digest
from facilitator.units import UINT256_MAX, Address, Atomic, AuthNonce, BlockHash, Gas, Network, UnixSeconds, Wei
from tests.fixtures.payments import transfer_log, typed_data, used_log

uint256 = st.integers(0, UINT256_MAX)
addresses = st.binary(min_size=20, max_size=20).map(lambda raw: Address("0x" + raw.hex()))
nonces = st.binary(min_size=32, max_size=32).map(lambda raw: AuthNonce("0x" + raw.hex()))
keys = st.integers(1, GROUP_ORDER - 1).map(lambda number: number.to_bytes(32, "big"))
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
authorizations = st.builds(
    Authorization,
    scheme=st.just("exact"),
    network=st.integers(1, 2**63 - 1).map(lambda number: Network(f"eip155:{number}")),
    asset=addresses,
    payer=addresses,
    pay_to=addresses,
    amount_atomic=uint256.map(Atomic),
    valid_after=uint256.map(UnixSeconds),
    valid_before=uint256.map(UnixSeconds),
    auth_nonce=nonces,
    signature=st.binary(max_size=300),
)


def words(terms: Authorization) -> list[Any]:
    """The six arguments that both overloads share."""
    nonce = bytes.fromhex(terms.auth_nonce[2:])
    return [terms.payer, terms.pay_to, terms.amount_atomic, terms.valid_after, terms.valid_before, nonce]


SIX = ["address", "address", "uint256", "uint256", "uint256", "bytes32"]


@given(authorizations, names, names)
def test_the_digest_is_what_a_wallet_signs(terms: Authorization, name: str, version: str) -> None:
    message = encode_typed_data(full_message=typed_data(terms, name, version))
    assert transfer_digest(terms, name, version) == keccak(b"\x19" + message.version + message.header + message.body)


@given(st.binary(min_size=32, max_size=32), keys)
def test_every_spelling_of_a_signature_recovers_its_signer(digest: bytes, key: bytes) -> None:
    signed = Account.unsafe_sign_hash(digest, key)
    raw = bytes(signed.signature)
    assert flaw(raw) is None
    expected = PrivateKey(key).public_key.to_address()
    compact = raw[:32] + bytes([raw[32] | (raw[64] - 27) << 7]) + raw[33:64]
    for spelling in (raw, raw[:64] + bytes([raw[64] - 27]), compact):
        assert normalise(spelling) == raw
        assert recover(digest, normalise(spelling)) == expected
    twin = raw[:32] + (GROUP_ORDER - signed.s).to_bytes(32, "big") + bytes([55 - raw[64]])
    assert flaw(twin) is not None


@given(st.binary(min_size=32, max_size=32), st.integers(1, GROUP_ORDER - 1), st.integers(1, HALF_ORDER), st.integers(27, 28))
def test_recovery_of_anything_without_a_flaw_never_raises(digest: bytes, r: int, s: int, v: int) -> None:
    signature = r.to_bytes(32, "big") + s.to_bytes(32, "big") + bytes([v])
    assert flaw(signature) is None
    signer = recover(digest, signature)
    assert signer is None or len(signer) == 42


@given(st.binary(max_size=200))
def test_any_bytes_are_normalised_once_and_judged(raw: bytes) -> None:
    once = normalise(raw)
    assert normalise(once) == once
    found = flaw(once)
    assert found is None or all(found)


@given(authorizations)
def test_calldata_of_the_bytes_overload_is_eth_abis(terms: Authorization) -> None:
    expected = abi.TRANSFER_WITH_AUTHORIZATION_BYTES + encode([*SIX, "bytes"], [*words(terms), terms.signature])
    assert abi.transfer_with_authorization_bytes(terms, terms.signature) == expected


@given(authorizations, st.binary(min_size=65, max_size=65))
def test_calldata_of_the_v_r_s_overload_is_eth_abis(terms: Authorization, signature: bytes) -> None:
    arguments = [*words(terms), signature[64], signature[:32], signature[32:64]]
    assert abi.transfer_with_authorization(terms, signature) == abi.TRANSFER_WITH_AUTHORIZATION + encode(
        [*SIX, "uint8", "bytes32", "bytes32"], arguments
    )


calls = st.builds(Call, to=addresses, data=st.binary(max_size=100))


@given(st.lists(calls, max_size=6))
def test_a_batch_is_encoded_as_eth_abi_encodes_it(batch: list[Call]) -> None:
    expected = encode(["(address,bool,bytes)[]"], [[(call.to, True, call.data) for call in batch]])
    assert abi.aggregate3(batch) == abi.AGGREGATE3 + expected


replies = st.builds(Reply, ok=st.booleans(), data=st.binary(max_size=100))


@given(st.lists(replies, max_size=6))
def test_a_batchs_return_is_read_as_eth_abi_wrote_it(answers: list[Reply]) -> None:
    assert abi.read_aggregate3(encode(["(bool,bytes)[]"], [[(reply.ok, reply.data) for reply in answers]])) == tuple(answers)


@given(st.lists(replies, min_size=1, max_size=4), st.data())
def test_a_damaged_return_never_raises(answers: list[Reply], data: st.DataObject) -> None:
    whole = bytearray(encode(["(bool,bytes)[]"], [[(reply.ok, reply.data) for reply in answers]]))
    for _ in range(3):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    found = abi.read_aggregate3(cut)
    assert found is None or all(isinstance(reply, Reply) for reply in found)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=150), st.binary(max_size=31))
def test_any_revert_text_is_read_whatever_follows_it(text: str, dirt: bytes) -> None:
    raw = text.encode()
    clean = encode(["string"], [text])
    told = abi.revert_reason(bytes.fromhex("08c379a0") + clean[: 64 + len(raw)] + dirt)
    assert told == "".join(character if character.isprintable() else "?" for character in text)


@given(st.binary(max_size=300))
def test_revert_data_of_any_kind_never_raises(data: bytes) -> None:
    for candidate in (data, bytes.fromhex("08c379a0") + data):
        told = abi.revert_reason(candidate)
        assert told is None or len(told) <= 200


@given(authorizations, authorizations)
def test_a_payments_own_logs_prove_it_and_no_others(terms: Authorization, other: Authorization) -> None:
    assume((terms.asset, terms.payer, terms.auth_nonce) != (other.asset, other.payer, other.auth_nonce))
    logs = [
        used_log(other, 5, address=other.asset),
        transfer_log(other, 6, address=other.asset),
        used_log(terms, 7, address=terms.asset),
        transfer_log(terms, 8, address=terms.asset),
    ]
    assert find_payment(logs, terms) == PaymentProof(log=logs[2])
    assert find_payment(logs[:2], terms) is None


transactions = st.builds(
    Transaction,
    chain_id=st.integers(1, 2**53),
    tx_nonce=st.integers(0, 2**64 - 2),
    to=addresses,
    data=st.binary(max_size=400).map(lambda arguments: abi.TRANSFER_WITH_AUTHORIZATION + arguments),
    gas=st.integers(0, 16_777_216).map(Gas),
    max_fee_wei=st.integers(0, 10**30).map(Wei),
    max_priority_fee_wei=st.integers(0, 10**30).map(Wei),
)


@given(transactions, keys)
def test_a_signed_transaction_is_byte_for_byte_eth_accounts(transaction: Transaction, key: bytes) -> None:
    assume(transaction.max_priority_fee_wei <= transaction.max_fee_wei)
    signer = LocalSigner(key, SigningPolicy(chain_id=transaction.chain_id, assets=frozenset({transaction.to}), max_fee_max_wei=Wei(10**30)))
    signed = asyncio.run(signer.sign(transaction))
    oracle = Account.sign_transaction(
        {
            "type": 2,
            "chainId": transaction.chain_id,
            "nonce": transaction.tx_nonce,
            "to": checksum_address(transaction.to),
            "data": transaction.data,
            "value": 0,
            "gas": transaction.gas,
            "maxFeePerGas": transaction.max_fee_wei,
            "maxPriorityFeePerGas": transaction.max_priority_fee_wei,
        },
        key,
    )
    assert signed.raw == bytes(oracle.raw_transaction)
    assert signed.tx_hash == "0x" + bytes(oracle.hash).hex()
    assert signer.address == PrivateKey(key).public_key.to_address()
    assert read_call(signed.raw) == Call(to=transaction.to, data=transaction.data)


def block(base_fee: int, used: int, limit: int, extra_data: bytes = b"") -> Head:
    return Head(
        number=1,
        block_hash=BlockHash("0x" + "00" * 32),
        timestamp=UnixSeconds(1),
        base_fee_wei=Wei(base_fee),
        gas_used=used,
        gas_limit=limit,
        extra_data=extra_data,
    )


def reference_base_fee(parent: int, used: int, limit: int, elasticity: int, denominator: int) -> int:
    """EIP-1559's specification, line by line."""
    target = limit // elasticity
    if used == target:
        return parent
    if used > target:
        return parent + max(parent * (used - target) // target // denominator, 1)
    return parent - parent * (target - used) // target // denominator


limits = st.integers(5_000, 10**9)


@given(st.integers(0, 10**15), limits, st.data())
def test_the_next_base_fee_is_eip_1559s(parent: int, limit: int, data: st.DataObject) -> None:
    used = data.draw(st.integers(0, limit))
    found = next_base_fee(block(parent, used, limit))
    assert found == reference_base_fee(parent, used, limit, ETHEREUM.elasticity, ETHEREUM.denominator)


@given(st.integers(0, 10**15), limits, st.integers(1, 50), st.integers(1, 2**32 - 1), st.integers(0, 2**64 - 1), st.data())
def test_parameters_of_the_header_rule_and_its_floor_holds(
    parent: int, limit: int, elasticity: int, denominator: int, floor: int, data: st.DataObject
) -> None:
    used = data.draw(st.integers(0, limit))
    extra = b"\x01" + denominator.to_bytes(4, "big") + elasticity.to_bytes(4, "big") + floor.to_bytes(8, "big")
    expected = max(floor, reference_base_fee(parent, used, limit, elasticity, denominator))
    assert next_base_fee(block(parent, used, limit, extra)) == expected


@given(st.integers(0, 10**20), st.integers(0, 10**12), st.integers(1, 20), st.integers(0, 10**12), st.integers(0, 10**12))
def test_an_offer_keeps_its_bounds_and_its_tip_within_it(base: int, tip: int, headroom: int, low: int, span: int) -> None:
    policy = FeePolicy(headroom=headroom, max_fee_min_wei=Wei(low), max_fee_max_wei=Wei(low + span))
    fees = max_fee(Wei(base), Wei(tip), policy)
    assert low <= fees.max_fee_wei <= low + span
    assert fees.max_priority_fee_wei <= min(tip, fees.max_fee_wei)
    assert fees.max_fee_wei >= base + tip or fees.max_fee_wei == low + span
    assert max_fee(Wei(base + 1), Wei(tip), policy).max_fee_wei >= fees.max_fee_wei
