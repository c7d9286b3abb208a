"""What is in flight, as the loops of one process know it: slots, what they carry, and how a settlement was found to end."""

from dataclasses import dataclass, field
from enum import Enum
from uuid import UUID

from facilitator.domain.abi import Log
from facilitator.domain.fees import Fees
from facilitator.domain.states import State
from facilitator.protocol.messages import Authorization
from facilitator.protocol.reasons import Reason
from facilitator.store.settlements import Admission, Answer, Settlement
from facilitator.units import Address, Gas, TxHash


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A settlement in a transaction."""

    settlement_id: UUID
    authorization: Authorization
    admitted_block: int


def item_of(payment: Admission | Settlement) -> Item:
    """What a transaction has to know of a settlement."""
    return Item(settlement_id=payment.settlement_id, authorization=payment.authorization, admitted_block=payment.admitted_block)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One signed transaction of a slot; recorded before it was ever sent."""

    tx_hash: TxHash
    raw: bytes = field(repr=False)
    fees: Fees
    purpose: str = "payment"
    """`payment`, `bump`, or `noop`: it only clears the way."""


@dataclass(eq=False, slots=True, kw_only=True)
class OpenSlot:
    """A tx_nonce whose end nobody knows yet."""

    slot_id: int
    relayer: Address
    tx_nonce: int
    attempts: list[Attempt]
    kind: str
    """`single`, `batch` or `noop`."""
    gas: Gas
    items: tuple[Item, ...]
    opened_at: float
    """Monotonic."""
    sent_block: int = 0
    """Newest block when its newest attempt was first sent."""
    sent_at: float = float("-inf")
    sent_head: int = -1
    """Newest block when something was last sent for it."""
    resending: bool = False
    """The same bytes are on their way once more."""
    misses: int = 0
    refused: str | None = None
    """How the network last refused it; said once, however often it is sent again."""

    def is_noop(self, tx_hash: TxHash) -> bool:
        """Is this the attempt that carries no payment?"""
        return any(attempt.purpose == "noop" for attempt in self.attempts if attempt.tx_hash == tx_hash)

    @property
    def reserved_wei(self) -> int:
        """The most that this slot can still cost its relayer."""
        return self.gas * max(attempt.fees.max_fee_wei for attempt in self.attempts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """How a settlement ended, by chain facts."""

    state: State
    answer: Answer
    reason: Reason | None = None
    log: Log | None = None
    tx_hash: TxHash | None = None


class NoRuling(Enum):
    """Why the resolver cannot say how a settlement ended."""

    UNUSED = "unused"
    """By the chain's own word the authorization is unused and would be paid now."""
    UNTOLD = "untold"
    """The chain does not tell yet."""


def included(proof: Log, *, shared: bool = False) -> Ruling:
    """Our transaction paid: the log is the proof. `shared`: it paid others too."""
    return Ruling(
        state=State.INCLUDED,
        log=proof,
        tx_hash=proof.tx_hash,
        answer=Answer(success=True, tx_hash=proof.tx_hash, log_index=proof.log_index, shared=shared),
    )


def refused(state: State, reason: Reason, message: str, proof: Log) -> Ruling:
    """It ended without our paying: the log is the proof."""
    return Ruling(
        state=state,
        reason=reason,
        log=proof,
        tx_hash=proof.tx_hash,
        answer=Answer(success=False, reason=reason.name, message=f"{message} (transaction {proof.tx_hash})", tx_hash=proof.tx_hash),
    )
