"""What something costs, and how both versions of the protocol say it.

A price is exact: dollars as text (`"$0.01"`) or a count of the token's smallest unit (`10_000`). Terms are made by the
seller alone; of what a buyer sends, only equality with them counts.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from facilitator.errors import ConfigFault
from facilitator.protocol import v1
from facilitator.protocol.address import checksum_address
from facilitator.protocol.messages import Version
from facilitator.protocol.usdc import DECIMALS, DEPLOYMENTS, VERSION
from facilitator.units import ZERO_ADDRESS, Address, Atomic, Network, parse_address, parse_network

Price = str | int
"""`"$0.01"` or `"0.01"` of a dollar coin, or atomic units as an int."""
Json = dict[str, object]

_DOLLARS: Final = re.compile(r"\$?([0-9]{1,15})(?:\.([0-9]{1,18}))?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token that buyers may pay with, with the EIP-712 domain that their signatures need. Prices in dollars take it for a dollar."""

    network: Network
    address: Address
    name: str
    version: str
    decimals: int = 6


USDC: Final[Mapping[Network, Token]] = {
    each.network: Token(network=each.network, address=each.address, name=each.name, version=VERSION, decimals=DECIMALS)
    for each in DEPLOYMENTS
}
"""Circle's native USDC, the coin of a network for which no other token is named."""


def find_token(network: str | Token) -> Token:
    """The coin that is meant: a `Token`, or the USDC of a network by CAIP-2 id or nickname (`base`). Raises ConfigFault."""
    if isinstance(network, Token):
        return network
    try:
        caip2 = v1.parse_network(network) or parse_network(network)
    except ValueError as error:
        raise ConfigFault("network", f"network {network!r}: {error}, or a nickname such as base") from None
    if caip2 not in USDC:
        raise ConfigFault("network", f"network {network!r}: its USDC is not known here: give a Token")
    return USDC[caip2]


def parse_payee(text: str) -> Address:
    """Whom to pay. Raises ConfigFault."""
    try:
        payee = parse_address(text)
    except ValueError as error:
        raise ConfigFault("pay_to", f"pay_to: {error}, got {text!r}") from None
    if payee == ZERO_ADDRESS:
        raise ConfigFault("pay_to", "pay_to: the zero address cannot be paid")
    return payee


def parse_price(price: Price, token: Token) -> Atomic:
    """A price in the token's smallest unit, exactly: what the token cannot express is an error. Raises ConfigFault."""
    if isinstance(price, bool):
        raise ConfigFault("price", f"price: expected text such as $0.01 or atomic units, got {price!r}")
    if isinstance(price, int):
        atomic = price
    else:
        found = _DOLLARS.fullmatch(price.strip())
        if found is None:
            raise ConfigFault("price", f"price: expected text such as $0.01, got {price!r}")
        fraction = (found[2] or "").rstrip("0")
        if len(fraction) > token.decimals:
            raise ConfigFault("price", f"price: {price!r} is finer than the token's {token.decimals} decimals")
        atomic = int(found[1] + fraction.ljust(token.decimals, "0"))
    if atomic <= 0:
        raise ConfigFault("price", f"price: expected more than nothing, got {price!r}; a free route needs none")
    return Atomic(atomic)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What one request costs in one coin."""

    token: Token
    pay_to: Address
    amount_atomic: Atomic
    max_timeout_s: int

    def render(self, version: Version, resource: "Resource") -> Json | None:
        """`paymentRequirements` of that version; None when it cannot name the network."""
        token = self.token
        network = v1.render_network(token.network) if version == 1 else token.network
        if network is None:
            return None
        same: Json = {
            "payTo": checksum_address(self.pay_to),
            "asset": checksum_address(token.address),
            "maxTimeoutSeconds": self.max_timeout_s,
            "extra": {"name": token.name, "version": token.version},
        }
        if version == 2:
            return {"scheme": "exact", "network": network, "amount": str(self.amount_atomic)} | same
        described: Json = {"resource": resource.url, "description": resource.description, "mimeType": resource.mime_type}
        return {"scheme": "exact", "network": network, "maxAmountRequired": str(self.amount_atomic)} | described | same


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """What is sold."""

    url: str
    description: str
    mime_type: str


def offer(terms: Sequence[Terms], resource: Resource, version: Version, error: str) -> Json | None:
    """The demand of one version: `accepts` and what it is for; None when that version cannot name any of the networks."""
    accepts = [rendered for each in terms if (rendered := each.render(version, resource)) is not None]
    if not accepts:
        return None
    if version == 1:
        return {"x402Version": 1, "error": error, "accepts": accepts}
    sold = {"url": resource.url, "description": resource.description, "mimeType": resource.mime_type}
    return {"x402Version": 2, "error": error, "resource": sold, "accepts": accepts}


def dollars(terms: Iterable[Terms]) -> str:
    """The price for people to read, of the first coin."""
    first = next(iter(terms))
    decimals = first.token.decimals
    digits = str(first.amount_atomic).rjust(decimals + 1, "0")
    whole, fraction = (digits[:-decimals], digits[-decimals:].rstrip("0")) if decimals else (digits, "")
    return f"{whole}.{fraction}" if fraction else whole
