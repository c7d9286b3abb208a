"""The units every layer speaks in, and the only parsers that make them from text.

A value of one of these types has been checked: an `Address` is 0x and 40 lower-case hex digits, an `Atomic` is a
non-negative integer below 2**256. Nothing here knows the wire, the chain or the database.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final, NewType, Self
from zoneinfo import ZoneInfo

Address = NewType("Address", str)
"""An EVM account or contract: `0x` and 40 lower-case hex digits. EIP-55 spelling exists on the wire only."""
AuthNonce = NewType("AuthNonce", str)
"""The payer's EIP-3009 nonce: `0x` and 64 lower-case hex digits (bytes32, random, never a counter)."""
TxHash = NewType("TxHash", str)
"""A transaction hash: `0x` and 64 lower-case hex digits."""
BlockHash = NewType("BlockHash", str)
"""A block hash: `0x` and 64 lower-case hex digits. All zero means preconfirmed, not sealed."""
Atomic = NewType("Atomic", int)
"""A token amount in the token's smallest unit (USDC: 6 decimals)."""
Wei = NewType("Wei", int)
"""An amount of the chain's gas currency, 10**-18 of a coin."""
Gas = NewType("Gas", int)
"""A count of gas units."""
UnixSeconds = NewType("UnixSeconds", int)
"""Seconds since 1970-01-01 UTC. A payer may write any uint256 here, so it is not bounded by a machine word."""
Network = NewType("Network", str)
"""A CAIP-2 chain id such as `eip155:84532`."""
Zone = NewType("Zone", str)
"""An IANA time zone such as `Europe/Berlin` that this machine knows."""

UTC_ZONE: Final = Zone("UTC")
UINT256_MAX: Final = 2**256 - 1
ZERO_ADDRESS: Final = Address("0x" + "00" * 20)

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}", re.ASCII)
_BYTES32 = re.compile(r"0x[0-9a-fA-F]{64}", re.ASCII)
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,77}", re.ASCII)
_LISTEN = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9.-]+)):(?P<port>[0-9]{1,5})", re.ASCII)
_EIP155 = re.compile(r"eip155:([1-9][0-9]{0,18})", re.ASCII)


def parse_address(text: str) -> Address:
    """Read `0x` + 40 hex digits in any case. Raises ValueError that says what was expected."""
    if not _ADDRESS.fullmatch(text):
        raise ValueError("expected an address: 0x and 40 hex digits")
    return Address(text.lower())


def parse_bytes32(text: str) -> str:
    """Read `0x` + 64 hex digits in any case, lower-cased. Raises ValueError that says what was expected."""
    if not _BYTES32.fullmatch(text):
        raise ValueError("expected 32 bytes: 0x and 64 hex digits")
    return text.lower()


def parse_uint256(text: str) -> int:
    """Read a canonical ASCII decimal below 2**256: no sign, no leading zero, no exponent, no space.

    Raises ValueError that says what was expected. (docs/architecture.md decision 12)
    """
    if not _DECIMAL.fullmatch(text):
        raise ValueError("expected a decimal integer without sign or leading zero")
    number = int(text)
    if number > UINT256_MAX:
        raise ValueError("expected an integer below 2**256")
    return number


def parse_network(text: str) -> Network:
    """Read a CAIP-2 id of the eip155 namespace. Raises ValueError that says what was expected."""
    if not _EIP155.fullmatch(text):
        raise ValueError("expected a CAIP-2 chain id such as eip155:8453")
    return Network(text)


def parse_zone(text: str) -> Zone:
    """Read the name of an IANA time zone. Raises ValueError that says what was expected."""
    try:
        ZoneInfo(text)
    except (OSError, ValueError, KeyError):  # a directory, a path that leads out, a name that is not there
        raise ValueError(f"expected an IANA time zone such as Europe/Berlin, got {text!r}") from None
    return Zone(text)


def chain_id_of(network: Network) -> int:
    """The EIP-155 chain id of a CAIP-2 network."""
    return int(network.removeprefix("eip155:"))


@dataclass(frozen=True, slots=True)
class Listen:
    """An address to listen on: `127.0.0.1:4022`, `[::1]:4022` or `localhost:4022`."""

    host: str
    port: int
    """0 takes a free one."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `host:port`. Raises ValueError that says what was expected."""
        match = _LISTEN.fullmatch(text)
        if match is None or int(match["port"]) > 65535:
            raise ValueError('expected "host:port" such as "127.0.0.1:4022"')
        return cls(match["six"] or match["host"], int(match["port"]))

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        """As it is written in the configuration."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
