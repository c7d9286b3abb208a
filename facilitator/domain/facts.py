"""Questions to a chain and the facts that came back, as plain values.

A scheme asks (`Question`), `chain.evm` answers all of them from one block in one round trip (`Facts`), the scheme
judges. No call leaves this module and none arrives: it is the paper that the two sides pass to each other.
"""

from typing import Final

import msgspec

from facilitator.domain.deadlines import LIFE_MIN_S
from facilitator.units import Address, BlockHash, Gas, UnixSeconds, Wei

_NO_GAS: Final = Gas(0)


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A contract call: asked read-only of a block (`eth_call`), or sent as the body of a transaction."""

    to: Address
    data: bytes
    """Selector and ABI-encoded arguments."""


class CodeOf(msgspec.Struct, frozen=True, kw_only=True):
    """Which code lies at this address? The reply's `data` is the code, empty for a plain account."""

    address: Address


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """Would this call succeed alone, and does no code lie at the payer's address? The reply's `ok` says so, its `data` is empty."""

    payer: Address
    call: Call


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of this call, given so much gas? Nothing else shares its `eth_call`: it may run anybody's code.

    The reply says what it took; of what the call returned, `data` has the first 512 bytes.
    """

    call: Call
    gas: Gas


Question = Call | CodeOf | Trial | Probe


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """One answer. For a `Call`: `ok` false means the contract reverted and `data` is the revert data."""

    ok: bool
    data: bytes
    gas_used: Gas = _NO_GAS
    """Of a `Probe`: without what a transaction costs by itself, refunds not counted."""


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """A block header, as far as we need it."""

    number: int
    block_hash: BlockHash
    timestamp: UnixSeconds
    base_fee_wei: Wei
    """EIP-1559 base fee of this block."""
    extra_data: bytes = b""
    """OP Stack: carries the EIP-1559 parameters (Holocene and Jovian)."""
    gas_used: int = 0
    gas_limit: int = 0
    da_footprint_gas: int = 0
    """OP Stack since Jovian: what the block's data weighs against the gas target (the header's blobGasUsed); else 0."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Replies in the order of their questions, all read at `head`."""

    head: Head
    replies: tuple[Reply, ...]


class Now(msgspec.Struct, frozen=True, kw_only=True):
    """The time a payment is judged at (docs/architecture.md decision 8)."""

    head: UnixSeconds
    """Timestamp of the newest block."""
    wall: UnixSeconds | None
    """The machine's wall clock; None when it disagrees with a moving head by more than 30 s and must not be believed."""
    life_min_s: int = LIFE_MIN_S
    """Seconds that must be left until validBefore."""

    @property
    def latest(self) -> UnixSeconds:
        """The later of chain and wall time."""
        return self.head if self.wall is None else max(self.head, self.wall)
