"""Many payments tried out in one `eth_call`, each as if it were alone, packed for and read from `contracts/Trials.yul`.

The code runs as the creation code of a call without `to`. It makes each trial inside a contract creation that ends in a
revert, so that what one payment's simulation moves is not there for the next; and it calls nothing for a payer who has
code, so that no stranger's code runs at all. It must never be used where effects are wanted in order: payments that will
share a transaction are simulated together by Multicall3 instead (docs/adr/0015-verifications-share-a-call.md).
"""

from collections.abc import Sequence
from typing import Final

from facilitator.domain.facts import Reply, Trial

CREATION_CODE: Final = bytes.fromhex(
    "608f601f9061050081819238038091833901915f915b838110601f57825ff35b602a81836014600194015160f01c820191805160601c3b5f14604a57505060028553"
    "5b019201916015565b03601460168201918660708439830301905ff0505f8553823d03604257825f863e604256fe5f80601f8038038091833960131901601482805160"
    "601c5af15f5360015ffd"
)
"""`contracts/Trials.yul`, compiled; a test compiles it again."""
TRIALS_MAX: Final = 100
"""Trials in one call: they fit into the creation code that EIP-3860 allows (49,152 bytes), and into a node's gas cap."""
DATA_MAX: Final = 400
"""Longest calldata of a trial, in bytes. Transfers of a key's signature have 292."""
GAS: Final = 200_000
"""Gas for each trial: a transfer to a first-time recipient takes 104,000, the creation around it 34,000."""
GAS_OF_CREATION: Final = 2_000_000
"""Gas of the call itself: its data, at EIP-7623's floor price."""

_SUCCEEDED: Final = 1
_VERDICTS: Final = (0, 1, 2)


def fits(trial: Trial) -> bool:
    """May this trial share a call with others?"""
    return len(trial.call.data) <= DATA_MAX


def pack(trials: Sequence[Trial]) -> bytes:
    """The `data` of the call: at most TRIALS_MAX trials that each `fits`."""
    assert len(trials) <= TRIALS_MAX
    parts = [CREATION_CODE]
    for trial in trials:
        data = trial.call.data
        assert len(data) <= DATA_MAX
        parts += (bytes.fromhex(trial.payer[2:]), len(data).to_bytes(2, "big"), bytes.fromhex(trial.call.to[2:]), data)
    return b"".join(parts)


def read(returned: bytes, count: int) -> tuple[Reply, ...] | None:
    """A reply for each of `count` trials; None when this is not what the code returns (the node cannot run it)."""
    if len(returned) != count or any(verdict not in _VERDICTS for verdict in returned):
        return None
    return tuple(Reply(ok=verdict == _SUCCEEDED, data=b"") for verdict in returned)
