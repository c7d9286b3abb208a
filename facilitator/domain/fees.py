"""What gas will cost in the next block, from a header alone, what a relayer should offer, and what it paid in the end.

Integers only: a rounding error here is a transaction that waits, or books that do not balance. It must never ask a node.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from facilitator.domain.facts import Head
from facilitator.units import Wei

GWEI: Final = 10**9
_HOLOCENE_LENGTH: Final = 9
_JOVIAN_LENGTH: Final = 17
WINDOW: Final = 50
"""Transactions by whose delay the tip is judged."""
_JUDGED_FROM: Final = 10
"""Fewer of them say nothing: one straggler among nine would be the p90."""
_TIP_STEP_MIN: Final = 10_000
"""Least rise in wei, so that a tip of nothing rises too."""
_MAX_FEE_MIN: Final = Wei(GWEI // 20)
_MAX_FEE_MAX: Final = Wei(100 * GWEI)


@dataclass(frozen=True, slots=True)
class FeeMarket:
    """The EIP-1559 parameters that rule the next block."""

    denominator: int
    """The base fee changes by at most one part in so many."""
    elasticity: int
    """The gas target is the limit divided by this."""
    base_fee_min_wei: Wei


ETHEREUM: Final = FeeMarket(8, 2, Wei(0))
"""EIP-1559's own constants, for a header that carries none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeePolicy:
    """How a relayer prices a transaction. Only base fee and tip are paid, so head-room costs nothing but reserved balance."""

    headroom: int = 8
    """Multiple of the next base fee; at +4 % a block, 8 last for 52 blocks."""
    max_fee_min_wei: Wei = _MAX_FEE_MIN
    """`maxFeePerGas` never falls below this; 0.05 gwei is ten times Base's floor."""
    max_fee_max_wei: Wei = _MAX_FEE_MAX
    """`maxFeePerGas` never rises above this: above it we wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TipPolicy:
    """How `maxPriorityFeePerGas` follows the time that inclusion takes."""

    min_wei: Wei
    """It begins here and decays to this."""
    max_wei: Wei
    """It never rises above this."""
    late_blocks: int = 2
    """Blocks from send to inclusion that are well: sent during one block, included in the next or the one after."""


@dataclass(frozen=True, slots=True)
class Fees:
    """The two fee fields of a type-2 transaction."""

    max_fee_wei: Wei
    max_priority_fee_wei: Wei


def fee_market(head: Head) -> FeeMarket:
    """The parameters in the header's extraData: OP Stack since Holocene (version 0) and Jovian (version 1), else Ethereum's."""
    data = head.extra_data
    if not is_jovian(data) and not (len(data) == _HOLOCENE_LENGTH and data[0] == 0):
        return ETHEREUM
    denominator, elasticity = int.from_bytes(data[1:5], "big"), int.from_bytes(data[5:9], "big")
    if denominator == 0 or elasticity == 0:
        return ETHEREUM
    return FeeMarket(denominator, elasticity, Wei(int.from_bytes(data[9:17], "big")))


def is_jovian(extra_data: bytes) -> bool:
    """Is this the extraData of an OP Stack block since Jovian? Then the header's blobGasUsed is its DA footprint."""
    return len(extra_data) == _JOVIAN_LENGTH and extra_data[0] == 1


def next_base_fee(head: Head) -> Wei:
    """Base fee of the block after `head`, exactly (EIP-1559; OP Stack Holocene and Jovian)."""
    market = fee_market(head)
    base_fee = _moved(head, market)
    return Wei(max(base_fee, market.base_fee_min_wei))


def next_tip(tip_wei: Wei, delays: Sequence[int], policy: TipPolicy) -> Wei:
    """The tip after these delays in blocks, all of transactions since it last changed: at most `WINDOW`.

    Doubled when one in ten took longer than `late_blocks`; an eighth less after a whole window in which that was not so.
    """
    count = len(delays)
    if count >= _JUDGED_FROM and sorted(delays)[-(-count * 9 // 10) - 1] > policy.late_blocks:
        return Wei(min(max(tip_wei * 2, tip_wei + _TIP_STEP_MIN), policy.max_wei))
    if count >= WINDOW:
        return Wei(max(tip_wei - -(-tip_wei // 8), policy.min_wei))
    return tip_wei


def max_fee(base_fee_next_wei: Wei, tip_wei: Wei, policy: FeePolicy) -> Fees:
    """What to offer: head-room times the next base fee and the tip, within the policy's bounds.

    Above the upper bound the offer may lie below the base fee: then the transaction waits, which is what the bound is for.
    """
    wanted = policy.headroom * base_fee_next_wei + tip_wei
    offer = min(max(wanted, policy.max_fee_min_wei), policy.max_fee_max_wei)
    return Fees(Wei(offer), Wei(min(tip_wei, offer)))


def operator_fee(gas: int, scalar: int, constant_wei: int, *, jovian: bool) -> Wei:
    """The OP Stack's operator fee for so much gas: Isthmus divides the scaled gas by 10^6, Jovian multiplies it by 100.

    ethereum-optimism/specs, protocol/isthmus/exec-engine.md and protocol/jovian/exec-engine.md.
    """
    scaled = gas * scalar
    return Wei((scaled * 100 if jovian else scaled // 10**6) + constant_wei)


def split_evenly(cost_wei: int, parts: int) -> tuple[Wei, ...]:
    """Equal shares that add up to the cost: the remainder goes wei by wei to the first. Nothing when nobody is there.

    By heads and not by gas: a receipt does not tell what each item of a batch used.
    """
    share, left = divmod(cost_wei, max(1, parts))
    return tuple(Wei(share + (index < left)) for index in range(parts))


def _moved(head: Head, market: FeeMarket) -> int:
    """The base fee after the step that the parent's gas asks for."""
    parent = head.base_fee_wei
    target = head.gas_limit // market.elasticity
    used = max(head.gas_used, head.da_footprint_gas)
    if target == 0:
        return parent
    if used > target:
        return parent + max(parent * (used - target) // target // market.denominator, 1)
    return parent - parent * (target - used) // target // market.denominator
