"""What a network's own coin is worth in US dollars: integers, with source, round and time. Pure.

A rate is used for what happened at or after its time, for as long as it is fresh. Without a fresh one a cost has no dollar
figure; it is never 0.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from facilitator.units import Wei

RATE_DECIMALS: Final = 8
"""Decimal places of `usd_e8`, as Chainlink's dollar feeds have them."""
MICROS: Final = 10**6
"""Micro-dollars in a dollar."""
_WEI_OF_A_COIN: Final = 10**18


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Dollars per coin, times 10**8."""

    source: str
    """`chainlink:<feed>` or `file:<name>`."""
    round: str
    """The source's own number of this quotation."""
    quoted_at: datetime
    usd_e8: int


def read_round(source: str, words: bytes, decimals: int) -> Rate:
    """What `latestRoundData()` of a Chainlink feed returned. Raises ValueError that says what is wrong with it."""
    if len(words) < 160:
        raise ValueError(f"{source} answered {len(words)} bytes, expected five words")
    round_id, answer, _, updated_at, _ = (int.from_bytes(words[at : at + 32], "big") for at in range(0, 160, 32))
    if updated_at == 0 or updated_at >= 1 << 40:
        raise ValueError(f"{source} has no complete round")
    if not 0 < answer < 1 << 255:
        raise ValueError(f"{source} says that a coin is worth nothing")
    return Rate(
        source=source,
        round=str(round_id),
        quoted_at=datetime.fromtimestamp(updated_at, UTC),
        usd_e8=_scaled(answer, decimals),
    )


def usd_micros(wei: Wei, usd_e8: int) -> int:
    """So much gas money in micro-dollars, rounded half up."""
    unit = _WEI_OF_A_COIN * 10**RATE_DECIMALS // MICROS
    return (2 * wei * usd_e8 + unit) // (2 * unit)


def _scaled(answer: int, decimals: int) -> int:
    return answer * int(10**RATE_DECIMALS) // int(10**decimals)
