"""Sanctions lists: what a file of them says, and what stands with a settlement of how it was screened. Pure.

A list is read strictly, for a line that is skipped is an account that is not found: one line that is no address, or a list
without any, and the whole file is refused.
"""

import hashlib
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from facilitator.domain.facts import Call, Reply
from facilitator.units import Address, parse_address

Decision = Literal["clear", "unscreened"]
"""`unscreened`: a list was stale or could not be read, and the tenant accepts that."""

_IS_SANCTIONED: Final = bytes.fromhex("df592f7d")
"""Selector of `isSanctioned(address)`, as the Chainalysis oracle has it."""


@dataclass(frozen=True, slots=True)
class AddressList:
    """One version of a list."""

    version: str
    """`sha256:` and the hash of the file's bytes."""
    addresses: frozenset[Address]


class Screening(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What payer and payee of a payment were held against before it was signed, as the settlement keeps it."""

    decision: Decision
    lists: tuple[str, ...]
    """Versions: `sha256:…` of a file, `ADDRESS@BLOCK` of an oracle as of a block."""
    at: int
    """Unix seconds."""
    accept_unscreened: bool
    """The tenant's rule when it was admitted; it holds for whoever signs later."""


def parse_list(text: bytes) -> AddressList:
    """A list from text: an address a line, in any case, what follows a comma or a `#` ignored; a CSV may have a head.

    Raises ValueError that names the line.
    """
    addresses: set[Address] = set()
    head = True
    for number, line in enumerate(text.decode("utf-8").splitlines(), start=1):
        entry = line.partition("#")[0].partition(",")[0].strip().strip('"')
        if not entry:
            continue
        try:
            addresses.add(parse_address(entry))
        except ValueError:
            if not (head and entry.lower() in {"address", "addresses", "account"}):
                raise ValueError(f"line {number}: expected an address: 0x and 40 hex digits") from None
        head = False
    if not addresses:
        raise ValueError("there is no address in it")
    return AddressList(f"sha256:{hashlib.sha256(text).hexdigest()}", frozenset(addresses))


def is_sanctioned(oracle: Address, account: Address) -> Call:
    """The question whether an oracle lists the account."""
    return Call(to=oracle, data=_IS_SANCTIONED + bytes(12) + bytes.fromhex(account[2:]))


def read_sanctioned(reply: Reply) -> bool | None:
    """The oracle's word. None: it has none; no code, a revert, or something that is no boolean."""
    if not reply.ok or len(reply.data) != 32:
        return None
    return {0: False, 1: True}.get(int.from_bytes(reply.data, "big"))


def encode_screening(screening: Screening) -> str:
    """As JSON, for the column."""
    return msgspec.json.encode(screening).decode()


def decode_screening(text: str | None) -> Screening | None:
    """From the column."""
    return None if text is None else msgspec.json.decode(text, type=Screening)
