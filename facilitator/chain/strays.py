"""Finds transactions that an account sent and that nobody here remembers: in blocks by their tx_nonce, and in the pool.

It believes a transaction only when it was signed by the account's own key: what a node merely says is no transaction.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from facilitator.chain.evm import EvmClient
from facilitator.domain.facts import Call
from facilitator.domain.fees import Fees
from facilitator.domain.transactions import SignedTransaction, Transaction, assemble, signing_hash
from facilitator.errors import ChainFault
from facilitator.schemes.signatures import recover
from facilitator.units import Address, Gas, TxHash, Wei

_RECENT_BLOCKS: Final = 100
"""Every node has the state of so many blocks."""
_BLOCKS_MAX: Final = 43_200
"""How far back a tx_nonce is searched: a day of blocks every 2 s."""
_DYNAMIC_FEE: Final = "0x2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stray:
    """A transaction that the account's key signed."""

    tx_nonce: int
    call: Call
    """What it does."""
    signed: SignedTransaction
    gas: Gas
    fees: Fees
    block: int | None = None
    """Where it was mined; None: in the pool."""


class _WireTransaction(msgspec.Struct, frozen=True, rename="camel"):
    """A transaction on the wire; what only other types have is left out."""

    hash: str
    tx_nonce: str = msgspec.field(name="nonce")
    gas: str
    input: str
    value: str
    sender: str = msgspec.field(name="from")
    type: str = "0x0"
    to: str | None = None
    max_fee_per_gas: str = "0x0"
    max_priority_fee_per_gas: str = "0x0"
    chain_id: str = "0x0"
    r: str = "0x0"
    s: str = "0x0"
    v: str = "0x0"
    access_list: list[object] | None = None


class _WireBlock(msgspec.Struct, frozen=True):
    """A block with whole transactions."""

    transactions: list[_WireTransaction]


class _WireContent(msgspec.Struct, frozen=True):
    """What `txpool_contentFrom` answers: by tx_nonce."""

    pending: dict[str, _WireTransaction] = msgspec.field(default_factory=dict)
    queued: dict[str, _WireTransaction] = msgspec.field(default_factory=dict)


async def pooled(evm: EvmClient, account: Address, deadline: float) -> Mapping[int, Stray]:
    """The account's transactions in the pool by tx_nonce; none where the node does not tell (`txpool_contentFrom`)."""
    try:
        found = msgspec.json.decode(await evm.rpc.call("txpool_contentFrom", (account,), deadline), type=_WireContent)
    except (ChainFault, msgspec.MsgspecError):
        return {}
    strays = [_read(wire, account) for part in (found.pending, found.queued) for wire in part.values()]
    return {stray.tx_nonce: stray for stray in strays if stray is not None}


async def mined(evm: EvmClient, account: Address, tx_nonce: int, head: int, deadline: float) -> Stray | None:
    """The account's transaction of that tx_nonce in a block up to `head`, which must be there; None when it is out of reach.

    Halves the blocks by how many transactions the account had sent: some twenty small requests.
    """

    async def sent_by(block: int) -> int:
        return int(msgspec.json.decode(await evm.rpc.call("eth_getTransactionCount", (account, hex(block)), deadline), type=str), 16)

    try:
        low = max(0, head - _RECENT_BLOCKS)
        if low and await sent_by(low) > tx_nonce:
            low = max(0, head - _BLOCKS_MAX)
            if low and await sent_by(low) > tx_nonce:
                return None
        high = head
        while low + 1 < high:
            middle = (low + high) // 2
            low, high = (low, middle) if await sent_by(middle) > tx_nonce else (middle, high)
        block = msgspec.json.decode(await evm.rpc.call("eth_getBlockByNumber", (hex(high), True), deadline), type=_WireBlock | None)
    except (ChainFault, ValueError):  # msgspec's errors are ValueErrors
        return None
    for wire in block.transactions if block else ():
        stray = _read(wire, account) if wire.sender.lower() == account else None
        if stray is not None and stray.tx_nonce == tx_nonce:
            return replace(stray, block=high)
    return None


def _read(wire: _WireTransaction, account: Address) -> Stray | None:
    """The transaction, if it is one of ours by its form and its signature (EIP-1559, no access list, no contract made)."""
    if wire.type != _DYNAMIC_FEE or wire.to is None or wire.access_list:
        return None
    try:
        transaction = Transaction(
            chain_id=int(wire.chain_id, 16),
            tx_nonce=int(wire.tx_nonce, 16),
            to=Address(wire.to.lower()),
            data=bytes.fromhex(wire.input.removeprefix("0x")),
            value_wei=Wei(int(wire.value, 16)),
            gas=Gas(int(wire.gas, 16)),
            max_fee_wei=Wei(int(wire.max_fee_per_gas, 16)),
            max_priority_fee_wei=Wei(int(wire.max_priority_fee_per_gas, 16)),
        )
        r, s, parity = int(wire.r, 16), int(wire.s, 16), int(wire.v, 16)
        signature = r.to_bytes(32, "big") + s.to_bytes(32, "big") + bytes((27 + parity,))
        if parity > 1:
            return None
        signed = assemble(transaction, r=r, s=s, y_parity=parity)
        signer = recover(signing_hash(transaction), signature)
    except (ValueError, OverflowError):
        return None
    if signer != account or signed.tx_hash != TxHash(wire.hash.lower()):
        return None
    fees = Fees(transaction.max_fee_wei, transaction.max_priority_fee_wei)
    call = Call(to=transaction.to, data=transaction.data)
    return Stray(tx_nonce=transaction.tx_nonce, call=call, signed=signed, gas=transaction.gas, fees=fees)
