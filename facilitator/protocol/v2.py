"""The wire of x402 version 2: its structs, its spelling of networks, and where in a request each thing stands.

It must never judge a payment: it says where v2 puts a value, `codec` checks the value. v1 answers with the same shapes,
so the answers stand here only.
"""

from collections.abc import Mapping
from typing import ClassVar

import msgspec

from facilitator.protocol.messages import BAZAAR, Offer
from facilitator.units import Network
from facilitator.units import parse_network as parse_caip2


def parse_network(text: str) -> Network | None:
    """Find the network that a CAIP-2 id names; None when it is of no namespace of ours."""
    try:
        return parse_caip2(text)
    except ValueError:
        return None


def render_network(network: Network) -> str:
    """Spell a network as v2 does, which is how we do."""
    return network


class Requirements(msgspec.Struct, frozen=True, rename="camel"):
    """`paymentRequirements` of v2."""

    scheme: str
    network: str
    amount: str
    asset: str
    pay_to: str
    max_timeout_seconds: int | float
    extra: dict[str, object] | None = None


class Accepted(msgspec.Struct, frozen=True, rename="camel"):
    """`accepted`: the requirements as the buyer saw them. Only scheme and network decide anything."""

    scheme: str
    network: str
    amount: str | None = None
    asset: str | None = None
    pay_to: str | None = None
    max_timeout_seconds: int | float | None = None
    extra: dict[str, object] | None = None


class ResourceInfo(msgspec.Struct, frozen=True, rename="camel"):
    """`resource`: what is sold, for the record only."""

    url: str | None = None
    description: str | None = None
    mime_type: str | None = None
    service_name: object = None
    tags: object = None
    icon_url: object = None


class PaymentPayload(msgspec.Struct, frozen=True, rename="camel"):
    """`paymentPayload` of v2: scheme and network stand in `accepted`."""

    x402_version: int
    accepted: Accepted
    payload: dict[str, object]
    resource: ResourceInfo | None = None
    extensions: dict[str, object] | None = None


class Request(msgspec.Struct, frozen=True, rename="camel"):
    """Body of `/verify` and `/settle` in v2. The properties have the same names in every version."""

    payment_payload: PaymentPayload
    payment_requirements: Requirements
    x402_version: int | None = None

    buyer_path: ClassVar = "$.paymentPayload.accepted"
    """JSON path below which the buyer's `scheme` and `network` stand."""
    amount_path: ClassVar = "$.paymentRequirements.amount"

    @property
    def buyer_scheme(self) -> str:
        """The scheme that the buyer names."""
        return self.payment_payload.accepted.scheme

    @property
    def buyer_network(self) -> str:
        """The network that the buyer names."""
        return self.payment_payload.accepted.network

    @property
    def amount(self) -> str:
        """The seller's price, exact."""
        return self.payment_requirements.amount

    @property
    def resource_url(self) -> str | None:
        """URL of what is sold."""
        resource = self.payment_payload.resource
        return resource.url if resource is not None else None

    @property
    def offer(self) -> Offer | None:
        """What is said about the resource for a catalogue."""
        bazaar, sold = (self.extensions or {}).get(BAZAAR), self.payment_payload.resource
        if not isinstance(bazaar, dict):
            return None
        if sold is None:
            return Offer(url=None, bazaar=bazaar)
        return Offer(
            url=sold.url,
            description=sold.description,
            mime_type=sold.mime_type,
            service_name=sold.service_name,
            tags=sold.tags,
            icon_url=sold.icon_url,
            bazaar=bazaar,
        )

    @property
    def extensions(self) -> dict[str, object] | None:
        """Extension name to what the buyer sent for it."""
        return self.payment_payload.extensions

    @property
    def accepted_differs(self) -> tuple[str, ...]:
        """Wire names of the terms in which what the buyer saw is not what the seller asks, addresses compared in any case."""
        saw, asked = self.payment_payload.accepted, self.payment_requirements
        if saw.pay_to == asked.pay_to and saw.asset == asked.asset and saw.amount == asked.amount:
            return ()
        terms = (
            ("amount", saw.amount, asked.amount),
            ("asset", (saw.asset or "").lower(), asked.asset.lower()),
            ("payTo", (saw.pay_to or "").lower(), asked.pay_to.lower()),
        )
        return tuple(name for name, seen, wanted in terms if seen != wanted)


class VerifyResponse(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The same in v1 and v2 but for the word in `invalidReason`."""

    is_valid: bool
    payer: str
    """Always present: a legacy client demands the key. "" when unknown."""
    invalid_reason: str | None = None
    invalid_message: str | None = None


class Proof(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Which payment of a shared transaction this is, and where to ask about it (docs/architecture.md decision 11)."""

    log_index: int | None = None
    settlement_id: str | None = None
    shared_transaction: bool = False


class SettleResponse(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The same in v1 and v2 but for the word in `errorReason` and the spelling of `network`."""

    success: bool
    transaction: str
    """"" when there is none, never null."""
    network: str
    payer: str
    error_reason: str | None = None
    error_message: str | None = None
    extra: Proof | None = None


class Kind(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One (version, scheme, network) that is served."""

    x402_version: int
    scheme: str
    network: str
    extra: Mapping[str, object] | None = None


class SupportedResponse(msgspec.Struct, frozen=True):
    """All three keys always: clients take neither absence nor null for `extensions` and `signers` alike."""

    kinds: list[Kind]
    extensions: tuple[str, ...]
    signers: dict[str, list[str]]
