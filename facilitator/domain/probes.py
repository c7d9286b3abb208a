"""One call tried out with bounded gas and a bounded return, packed for and read from `contracts/Probe.yul`.

The code runs as the creation code of a call without `to`. Strangers' contracts are asked by it and by nothing else: what they
burn is what they were given, and however much they return, 512 bytes of it reach us.
"""

from typing import Final

from facilitator.domain.facts import Probe, Reply
from facilitator.units import Gas

CREATION_CODE: Final = bytes.fromhex(
    "605580380380915f395a905f8060085160601c601c82601b19860192815160c01cf191602082019283535a3d91036102008211604c575b602982935f9260c01b"
    "6021820152013e60090190f35b6102009150603656"
)
"""`contracts/Probe.yul`, compiled; a test compiles it again."""
_HEAD: Final = 1 + 8
_RETURNED_MAX: Final = 512
_OVERHEAD: Final = 100_000
"""Gas of the creation and of the call itself, beside data and the called."""


def pack(probe: Probe) -> bytes:
    """The `data` of the call."""
    return CREATION_CODE + probe.gas.to_bytes(8, "big") + bytes.fromhex(probe.call.to[2:]) + probe.call.data


def gas(probe: Probe, data: bytes) -> Gas:
    """Gas of the whole call: a frame hands on no more than 63/64 of what it has (EIP-150), and data has a floor price (EIP-7623)."""
    return Gas(probe.gas + probe.gas // 32 + 48 * len(data) + _OVERHEAD)


def read(returned: bytes) -> Reply | None:
    """What became of it; None when this is not what the code returns (the node cannot run it)."""
    if not _HEAD <= len(returned) <= _HEAD + _RETURNED_MAX or returned[0] > 1:
        return None
    return Reply(ok=returned[0] == 1, data=returned[_HEAD:], gas_used=Gas(int.from_bytes(returned[1:_HEAD], "big")))
