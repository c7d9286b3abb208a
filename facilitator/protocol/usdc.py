"""Where Circle's native USDC lies, and the name in its EIP-712 domain: what sellers offer and the facilitator serves.

A chain is asked at start-up whether it agrees.
"""

from typing import Final, NamedTuple

from facilitator.units import Address, Network, parse_address

VERSION: Final = "2"
"""Of the EIP-712 domain, everywhere."""
DECIMALS: Final = 6


class Deployment(NamedTuple):
    """USDC on one network."""

    network: Network
    address: Address
    name: str
    """EIP-712 domain name: "USDC" on some networks, "USD Coin" on others."""


def _on(chain_id: int, address: str, name: str) -> Deployment:
    return Deployment(Network(f"eip155:{chain_id}"), parse_address(address), name)


DEPLOYMENTS: Final = (
    _on(8453, "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913", "USD Coin"),
    _on(84532, "0x036CbD53842c5426634e7929541eC2318f3dCF7e", "USDC"),
    _on(1, "0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48", "USD Coin"),
    _on(43114, "0xB97EF9Ef8734C71904D8002F8b6Bc66Dd9c48a6E", "USD Coin"),
    _on(43113, "0x5425890298aed601595a70AB815c96711a31Bc65", "USD Coin"),
    _on(137, "0x3c499c542cEF5E3811e1192ce70d8cC03d5c3359", "USD Coin"),
    _on(80002, "0x41E94Eb019C0762f9Bfcf9Fb1E58725BfB0e7582", "USDC"),
    _on(42161, "0xaf88d065e77c8cC2239327C5EDb3A432268e5831", "USD Coin"),
    _on(421614, "0x75faf114eafb1BDbe2F0316DF893fd58CE46AA4d", "USDC"),
)
