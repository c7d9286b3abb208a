"""The wire of x402 version 1: its structs, its spelling of networks, and where in a request each thing stands.

It must never judge a payment: it says where v1 puts a value, `codec` checks the value. A network without a nickname
does not exist in v1 and is not listed for it.
"""

from typing import ClassVar, Final

import msgspec

from facilitator.protocol.messages import Offer
from facilitator.units import Network

CHAIN_ID_BY_NICKNAME: Final = {
    "abstract": 2741,
    "abstract-testnet": 11124,
    "avalanche": 43114,
    "avalanche-fuji": 43113,
    "base": 8453,
    "base-sepolia": 84532,
    "celo": 42220,
    "educhain": 41923,
    "ethereum": 1,
    "flare": 14,
    "iotex": 4689,
    "megaeth": 4326,
    "monad": 143,
    "monad-testnet": 10143,
    "peaq": 3338,
    "polygon": 137,
    "polygon-amoy": 80002,
    "sei": 1329,
    "sei-testnet": 1328,
    "sepolia": 11155111,
    "skale-base-sepolia": 324705682,
    "stable": 988,
    "stable-testnet": 2201,
    "story": 1514,
}
"""Where the official SDKs disagree on an id (story, educhain, skale-base-sepolia) this is TypeScript's and Go's."""

NETWORK_BY_NICKNAME: Final = {nickname: Network(f"eip155:{chain_id}") for nickname, chain_id in CHAIN_ID_BY_NICKNAME.items()}
NICKNAME_BY_NETWORK: Final = {network: nickname for nickname, network in NETWORK_BY_NICKNAME.items()}


def parse_network(text: str) -> Network | None:
    """Find the network that a v1 nickname means; None when it means none."""
    return NETWORK_BY_NICKNAME.get(text)


def render_network(network: Network) -> str | None:
    """Find the v1 nickname of a network; None when v1 cannot name it."""
    return NICKNAME_BY_NETWORK.get(network)


class Requirements(msgspec.Struct, frozen=True, rename="camel"):
    """`paymentRequirements` of v1."""

    scheme: str
    network: str
    max_amount_required: str
    asset: str
    pay_to: str
    max_timeout_seconds: int | float
    extra: dict[str, object] | str | None = None
    """Some v1 clients send it as a string that holds JSON."""
    resource: str | None = None
    """URL of what is sold. Older schemas demand it; it is kept for the record only, so its absence harms nobody."""
    description: str | None = None
    mime_type: str | None = None
    output_schema: object = None
    """How the resource is asked for; with it the seller lets it be listed."""


class PaymentPayload(msgspec.Struct, frozen=True, rename="camel"):
    """`paymentPayload` of v1: scheme and network stand at its top."""

    x402_version: int
    scheme: str
    network: str
    payload: dict[str, object]


class Request(msgspec.Struct, frozen=True, rename="camel"):
    """Body of `/verify` and `/settle` in v1. The properties have the same names in every version."""

    payment_payload: PaymentPayload
    payment_requirements: Requirements
    x402_version: int | None = None

    buyer_path: ClassVar = "$.paymentPayload"
    """JSON path below which the buyer's `scheme` and `network` stand."""
    amount_path: ClassVar = "$.paymentRequirements.maxAmountRequired"

    @property
    def buyer_scheme(self) -> str:
        """The scheme that the buyer names."""
        return self.payment_payload.scheme

    @property
    def buyer_network(self) -> str:
        """The network that the buyer names."""
        return self.payment_payload.network

    @property
    def amount(self) -> str:
        """The seller's price: exact, although v1 calls it a maximum (docs/architecture.md decision 7)."""
        return self.payment_requirements.max_amount_required

    @property
    def resource_url(self) -> str | None:
        """URL of what is sold."""
        return self.payment_requirements.resource

    @property
    def offer(self) -> Offer | None:
        """What is said about the resource for a catalogue."""
        asked = self.payment_requirements
        if not isinstance(asked.output_schema, dict):
            return None
        return Offer(url=asked.resource, description=asked.description, mime_type=asked.mime_type, output_schema=asked.output_schema)

    @property
    def extensions(self) -> dict[str, object] | None:
        """v1 has none."""
        return None

    @property
    def accepted_differs(self) -> tuple[str, ...]:
        """v1 sends no copy of what the buyer saw, so nothing can differ."""
        return ()
