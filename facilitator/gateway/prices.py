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


def _usdc(chain_id: int, address: str, name: str) -> Token:
    return Token(network=Network(f"eip155:{chain_id}"), address=parse_address(address), name=name, version="2")


USDC: Final[Mapping[Network, Token]] = {
    token.network: token
    for token in (
        _usdc(8453, "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913", "USD Coin"),
        _usdc(84532, "0x036CbD53842c5426634e7929541eC2318f3dCF7e", "USDC"),
        _usdc(1, "0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48", "USD Coin"),
        _usdc(43114, "0xB97EF9Ef8734C71904D8002F8b6Bc66Dd9c48a6E", "USD Coin"),
        _usdc(43113, "0x5425890298aed601595a70AB815c96711a31Bc65", "USD Coin"),
        _usdc(137, "0x3c499c542cEF5E3811e1192ce70d8cC03d5c3359", "USD Coin"),
        _usdc(80002, "0x41E94Eb019C0762f9Bfcf9Fb1E58725BfB0e7582", "USDC"),
        _usdc(42161, "0xaf88d065e77c8cC2239327C5EDb3A432268e5831", "USD Coin"),
        _usdc(421614, "0x75faf114eafb1BDbe2F0316DF893fd58CE46AA4d", "USDC"),
    )
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
