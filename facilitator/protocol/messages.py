"""What is said between gateway and facilitator, freed of its protocol version.

The codecs turn wire bytes of v1 or v2 into a `Payment` and turn results back into the caller's version. Everything
below the codec sees these types only. Amounts are ints in atomic units, addresses lower-case, networks CAIP-2.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from facilitator.protocol.reasons import Refusal
from facilitator.units import Address, Atomic, AuthNonce, Network, TxHash, UnixSeconds

Version = Literal[1, 2]

PAYMENT_IDENTIFIER: Final = "payment-identifier"
"""The extension by which a buyer names a payment."""
BAZAAR: Final = "bazaar"
"""The extension by which a seller lets a resource be listed."""


class Requirements(msgspec.Struct, frozen=True, kw_only=True):
    """What the seller asked, from `paymentRequirements` of the request: the authority for every check."""

    scheme: str
    network: Network
    asset: Address
    pay_to: Address
    amount_atomic: Atomic
    max_timeout_s: int
    extra: Mapping[str, object]
    """Scheme data as sent; for EIP-3009 the token's EIP-712 `name` and `version`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What is said about the resource for a catalogue, unread: see `protocol.bazaar`."""

    url: str | None
    description: object = None
    mime_type: object = None
    service_name: object = None
    tags: object = None
    icon_url: object = None
    bazaar: Mapping[str, object] | None = None
    """v2: the `bazaar` extension."""
    output_schema: Mapping[str, object] | None = None
    """v1: what stands in its place."""


class Payment(msgspec.Struct, frozen=True, kw_only=True):
    """One `/verify` or `/settle` request: what the buyer sent and what the seller asked."""

    version: Version
    wire_network: str
    """The network as the caller spelled it (`base-sepolia` or `eip155:84532`), echoed in answers."""
    scheme: str
    """The scheme that the buyer's payload names."""
    network: Network
    """The network that the buyer's payload names, as CAIP-2."""
    payload: Mapping[str, object]
    """The scheme's own part, unparsed: `signature` and `authorization` for EIP-3009."""
    requirements: Requirements
    accepted_differs: tuple[str, ...] = ()
    """v2: fields in which the buyer's `accepted` differs from the requirements; logged, the requirements decide."""
    payment_identifier: str | None = None
    """The `payment-identifier` extension's id; written by the buyer, so it names one payment and is no idempotency key by default."""
    resource: str | None = None
    """URL of what is sold, for the record only."""
    offer: Offer | None = None
    """Only when the seller declared it for listing."""


class Authorization(msgspec.Struct, frozen=True, kw_only=True):
    """An EIP-3009 TransferWithAuthorization as the payer signed it, plus the terms that name the token."""

    scheme: str
    network: Network
    asset: Address
    payer: Address
    pay_to: Address
    amount_atomic: Atomic
    valid_after: UnixSeconds
    valid_before: UnixSeconds
    auth_nonce: AuthNonce
    signature: bytes
    """As it came: a key's in one of its spellings, or any bytes that a contract judges."""

    def __repr__(self) -> str:
        """All but the signature."""
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__struct_fields__ if name != "signature")
        return f"Authorization({shown})"


class VerifyResult(msgspec.Struct, frozen=True, kw_only=True):
    """Would this payment settle now? `refusal` is None when it would."""

    payer: Address | None
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleResult:
    """How a settlement stands for this caller. Success when `refusal` is None; then `tx_hash` and `log_index` prove it."""

    payer: Address | None
    refusal: Refusal | None = None
    tx_hash: TxHash | None = None
    log_index: int | None = None
    """Index of the token's AuthorizationUsed log in its block: with `tx_hash` the proof of this payment."""
    settlement_id: str | None = None
    shared_transaction: bool = False
    """The transaction paid others too: only together with `log_index` is it this payment's proof."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SupportedKind:
    """One (scheme, network) that we serve; the codec lists it for each protocol version that can name the network."""

    scheme: str
    network: Network
    extra: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Supported:
    """What `/supported` says: kinds, extensions, and the accounts that send transactions."""

    kinds: tuple[SupportedKind, ...]
    extensions: tuple[str, ...]
    signers: Mapping[str, tuple[Address, ...]]
    """CAIP-2 family pattern (`eip155:*`) to relayer addresses."""
