"""Keccak-256 and the EIP-55 spelling of addresses, the only spelling that leaves on the wire.

It must never judge: an address that comes in with a wrong checksum is accepted in any case (`units.parse_address`),
for buyers' wallets and sellers' configurations spell them freely.
"""

from functools import lru_cache
from typing import Final

import sha3

from facilitator.units import Address

CHECKSUM_CACHE_MAX: Final = 4096
"""Spellings kept, some 200 bytes each. Tokens and sellers always repeat, payers often do."""


def keccak256(data: bytes) -> bytes:
    """Hash with the Keccak-256 that Ethereum uses (not the later SHA3-256 of FIPS 202): 32 bytes."""
    digest: bytes = sha3.keccak_256(data).digest()
    return digest


@lru_cache(maxsize=CHECKSUM_CACHE_MAX)
def checksum_address(address: Address) -> str:
    """Spell an address as EIP-55 does: a hex letter is upper-case where the hash of the lower-case digits has a nibble above 7."""
    digits = address[2:]
    nibbles = keccak256(digits.encode("ascii")).hex()
    return "0x" + "".join(digit.upper() if nibble > "7" else digit for digit, nibble in zip(digits, nibbles, strict=False))
