"""Relayer keys: sign type-2 transactions, and nothing else.

It must never sign for another chain than its own, move the relayer's coins, or show a key: not in `repr`, not in a
message, not in a log. A signer in a key service is a second implementation of `Signer`.
"""

import json
from dataclasses import dataclass
from typing import Final, Protocol

from coincurve import PrivateKey

from facilitator.domain import abi
from facilitator.domain.facts import Call
from facilitator.domain.transactions import SignedTransaction, Transaction, assemble, signing_hash
from facilitator.errors import ConfigFault
from facilitator.protocol.address import keccak256
from facilitator.units import Address, Gas, Wei

GAS_CAP: Final = Gas(16_777_216)
"""EIP-7825: no transaction may have a higher gas limit."""


class Signer(Protocol):
    """One relayer account that can sign."""

    @property
    def address(self) -> Address:
        """The account that sends and pays for gas."""
        ...

    async def sign(self, transaction: Transaction) -> SignedTransaction:
        """Sign exactly this transaction. Raises SigningRefusedError outside the policy, SignerFault when a service does not sign."""
        ...

    async def close(self) -> None:
        """Let go of what was opened for it."""
        ...


class SigningRefusedError(Exception):
    """A transaction outside the policy came to be signed: a bug above, or an attempt to misuse the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningPolicy:
    """What a key may be used for. The last line of defence, so it repeats limits that the loops above keep already."""

    chain_id: int
    """The only chain that this key signs for."""
    assets: frozenset[Address]
    """The tokens whose payments are signed."""
    factories: frozenset[Address] = frozenset()
    """Contracts that may be called, in one transaction with a payment, to deploy the wallet that pays."""
    gas_max: Gas = GAS_CAP
    """Highest gas limit signed."""
    max_fee_max_wei: Wei
    """Highest `maxFeePerGas` signed; with `gas_max` the most that one signature can cost."""

    def check(self, transaction: Transaction, signer: Address) -> None:
        """Raise SigningRefusedError unless it pays served tokens, alone or through Multicall3, or is a no-op to `signer` itself.

        A payment may have the deployment of its wallet before it, by a factory that is listed.
        """
        if transaction.chain_id != self.chain_id:
            raise SigningRefusedError(f"this key signs for chain {self.chain_id}, not for {transaction.chain_id}")
        if transaction.value_wei != 0:
            raise SigningRefusedError(f"a relayer never moves coins, but the value is {transaction.value_wei} wei")
        if transaction.gas > self.gas_max:
            raise SigningRefusedError(f"gas {transaction.gas} is above the limit of {self.gas_max}")
        if transaction.max_fee_wei > self.max_fee_max_wei:
            raise SigningRefusedError(f"max fee {transaction.max_fee_wei} wei is above the limit of {self.max_fee_max_wei}")
        if transaction.max_priority_fee_wei > transaction.max_fee_wei:
            raise SigningRefusedError("the priority fee is above the max fee: every node would refuse it")
        if transaction.to == signer and not transaction.data:
            return
        call = Call(to=transaction.to, data=transaction.data)
        if call.to == abi.MULTICALL3_ADDRESS and (pair := abi.read_deploy_and_pay(call.data)) is not None:
            deployment, payment = pair
            if deployment.to not in self.factories or not self._pays(payment):
                raise SigningRefusedError(
                    f"a relayer calls no factory but those listed, and this calls {deployment.to} before {payment.to}"
                )
            return
        calls = abi.read_aggregate3_calls(call.data) if call.to == abi.MULTICALL3_ADDRESS else (call,)
        if not calls or not all(self._pays(each) for each in calls):
            raise SigningRefusedError(f"a relayer calls nothing but payments of served tokens, and this calls {transaction.to} otherwise")

    def _pays(self, call: Call) -> bool:
        return call.to in self.assets and call.data[:4] in _PAYMENTS


_PAYMENTS: Final = frozenset({abi.TRANSFER_WITH_AUTHORIZATION, abi.TRANSFER_WITH_AUTHORIZATION_BYTES})


class LocalSigner:
    """A key in this process's memory."""

    __slots__ = ("_key", "_policy", "address")

    def __init__(self, key: bytes, policy: SigningPolicy) -> None:
        """`key` is the 32-byte private key. Raises ValueError, without the key, when it is not one."""
        try:
            self._key = PrivateKey(key)
        except ValueError:
            raise ValueError("not a secp256k1 private key: expected 32 bytes between 1 and the group order") from None
        if len(key) != 32:
            raise ValueError("not a secp256k1 private key: expected 32 bytes")
        self._policy = policy
        self.address = address_of(self._key)

    def __repr__(self) -> str:
        """The address only."""
        return f"LocalSigner({self.address})"

    async def sign(self, transaction: Transaction) -> SignedTransaction:
        """Sign in about 25 µs; deterministic (RFC 6979), so the same transaction gives the same bytes."""
        self._policy.check(transaction, self.address)
        signature = self._key.sign_recoverable(signing_hash(transaction), hasher=None)
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")  # libsecp256k1 gives low s
        return assemble(transaction, r=r, s=s, y_parity=signature[64])

    async def close(self) -> None:
        """Nothing was opened."""


def load_signer(secret_text: str, policy: SigningPolicy, password: str | None = None) -> LocalSigner:
    """A signer from a hex key or an encrypted JSON keystore. Raises ConfigFault that names no part of the secret."""
    return LocalSigner(load_key(secret_text, password), policy)


def load_key(secret_text: str, password: str | None = None) -> bytes:
    """The 32 key bytes of 64 hex digits (with or without 0x), or of a version 3 keystore and its password.

    Decrypting a keystore takes up to a second by design. Raises ConfigFault that names no part of the secret.
    """
    text = secret_text.strip()
    if text.startswith("{"):
        return _decrypt(text, password)
    digits = text.removeprefix("0x")
    try:
        key = bytes.fromhex(digits)
    except ValueError:
        key = b""
    if len(key) != 32 or len(digits) != 64:
        raise ConfigFault("bad_relayer_key", "a relayer key must be 64 hex digits or an encrypted JSON keystore; what came is neither")
    return _in_range(key)


def address_of(key: PrivateKey) -> Address:
    """The account of a private key: the last 20 bytes of the hash of its public key."""
    return Address("0x" + keccak256(key.public_key.format(compressed=False)[1:])[-20:].hex())


def _decrypt(text: str, password: str | None) -> bytes:
    """The key of a version 3 keystore."""
    if password is None:
        raise ConfigFault("keystore_without_password", "the relayer's keystore is encrypted and no password is configured for it")
    try:
        keystore = json.loads(text)
    except ValueError:
        raise ConfigFault("bad_keystore", "the relayer's keystore is not JSON") from None
    from eth_keyfile.keyfile import decode_keyfile_json  # noqa: PLC0415 (a third of a second to load, and few keys are kept so)

    try:
        key = decode_keyfile_json(keystore, password.encode())
    except (ValueError, KeyError, TypeError, NotImplementedError, AttributeError):
        raise ConfigFault("bad_keystore", "the relayer's keystore does not open: wrong password, or no version 3 keystore") from None
    return _in_range(bytes(key))


def _in_range(key: bytes) -> bytes:
    """The same key, when secp256k1 has it."""
    try:
        PrivateKey(key)
    except ValueError:
        raise ConfigFault("bad_relayer_key", "the relayer key is not between 1 and the group order of secp256k1") from None
    return key
