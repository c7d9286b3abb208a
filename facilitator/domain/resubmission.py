"""What to do about a transaction that was sent and is not in a block: wait, send it again, outbid it, or clear its place.

One pure ruling from what was seen so far. Every replacement is stored before it is sent, and only the lowest open
tx_nonce of a relayer is ever outbid: the ones behind it wait for it, not for their own fee.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from facilitator.domain.fees import Fees
from facilitator.units import Wei

NOOP_GAS: Final = 21_000
"""Gas of a self-transfer of nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BumpPolicy:
    """When and how far to outbid."""

    resend_s: float = 1.0
    """Age of the last send at which the same bytes are sent again."""
    blocks: int = 2
    """Blocks that an attempt may miss before it is outbid."""
    max_fee_cap_wei: Wei
    """No bid above this; at the cap the same bytes are sent again and again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What is known of one open slot."""

    attempts: Sequence[Fees]
    """Bids so far, in order; at least one."""
    idle_s: float
    """Seconds since something was sent for it."""
    blocks_missed: int
    """Blocks since the newest attempt was first sent. A halted chain misses none."""
    lowest: bool
    """It is its relayer's lowest open tx_nonce."""
    blocks_others: bool
    """Later tx_nonces of its relayer are open."""
    dead: bool
    """What it carries is known to pay no more, for its time is over."""


@dataclass(frozen=True, slots=True)
class Wait:
    """It is on its way."""


@dataclass(frozen=True, slots=True)
class Rebroadcast:
    """Send the newest attempt's bytes again: identical bytes do no harm."""


@dataclass(frozen=True, slots=True)
class Bump:
    """Sign the same payload at these fees; a no-op, where the chain says that it would pay nobody and others wait behind it."""

    fees: Fees


@dataclass(frozen=True, slots=True)
class Replace:
    """Sign a no-op at these fees: the payload is dead and stands in others' way."""

    fees: Fees


Ruling = Wait | Rebroadcast | Bump | Replace


def rule(sent: Sent, quote: Fees, policy: BumpPolicy) -> Ruling:
    """Rule on one open slot. `quote` is what a fresh transaction would bid now."""
    due = sent.lowest and sent.blocks_missed >= policy.blocks
    if due and (sent.blocks_others or not sent.dead):
        fees = outbid(sent.attempts, quote)
        if fees.max_fee_wei <= policy.max_fee_cap_wei:
            return Replace(fees) if sent.dead else Bump(fees)
    return Rebroadcast() if sent.idle_s >= policy.resend_s else Wait()


def outbid(attempts: Sequence[Fees], quote: Fees) -> Fees:
    """The next bid: both fields at least 12.5 % above the highest so far (25 % from the second bump on), or the quote.

    Nodes demand 10 % on both (geth, reth); the rest is room for their rounding.
    """
    percent_thousandths = 1125 if len(attempts) == 1 else 1250
    max_fee = max(_raised(max(fees.max_fee_wei for fees in attempts), percent_thousandths), quote.max_fee_wei)
    tip = max(_raised(max(fees.max_priority_fee_wei for fees in attempts), percent_thousandths), quote.max_priority_fee_wei)
    return Fees(Wei(max(max_fee, tip)), Wei(tip))


def _raised(fee_wei: int, thousandths: int) -> int:
    """`fee_wei` times thousandths/1000, rounded up; at least one wei more."""
    return max(fee_wei + 1, -(-fee_wei * thousandths // 1000))
