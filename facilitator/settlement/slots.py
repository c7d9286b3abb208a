"""What is in flight, as the loops of one process know it: slots, what they carry, and how a settlement was found to end."""

from dataclasses import dataclass, field
from enum import Enum
from uuid import UUID

from facilitator.domain.abi import Log
from facilitator.domain.confirmation import ConfirmLevel
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
    confirm_level: ConfirmLevel
    accept_external: bool
    traceparent: str | None


def item_of(payment: Admission | Settlement) -> Item:
    """What a transaction has to know of a settlement."""
    return Item(
        settlement_id=payment.settlement_id,
        authorization=payment.authorization,
        admitted_block=payment.admitted_block,
        confirm_level=payment.confirm_level,
        accept_external=payment.accept_external,
        traceparent=payment.traceparent,
    )


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
    """`single`, `batch`, `contract_payer` (a smart wallet pays) or `noop`."""
    gas: Gas
    items: tuple[Item, ...]
    opened_at: float
    """Monotonic."""
    wallet_code: bytes | None = None
    """What a smart wallet's gas is learned by; None also once it was taken up from the record."""
    sent_block: int = 0
    """Newest block when its newest attempt was first sent."""
    first_sent_block: int = 0
    """Newest block when its first attempt was first sent, or when it was taken up."""
    sent_at: float = float("-inf")
    sent_head: int = -1
    """Newest block when something was last sent for it."""
    asked_at: float = float("-inf")
    """When its receipts were last asked for."""
    used_elsewhere: set[UUID] = field(default_factory=set)
    """Items whose authorization a log shows used or cancelled by a transaction that is not this slot's."""
    resending: bool = False
    """The same bytes are on their way once more."""
    misses: int = 0
    preconfirmed: dict[UUID, int] = field(default_factory=dict)
    """Settlements that are `preconfirmed`, and the number of the flashblock that showed them."""
    flashblock_seen: bool = False
    """What a flashblock says of it was looked at."""
    refused: str | None = None
    """How the network last refused it; said once, however often it is sent again."""

    def is_noop(self, tx_hash: TxHash) -> bool:
        """Is this the attempt that carries no payment?"""
        return any(attempt.purpose == "noop" for attempt in self.attempts if attempt.tx_hash == tx_hash)

    @property
    def payload(self) -> bytes:
        """The signed bytes that carry its payments."""
        return next(attempt.raw for attempt in self.attempts if attempt.purpose != "noop")

    @property
    def wants_flashblock(self) -> bool:
        """May a payment in it be told from a flashblock, and none was seen yet?"""
        return not self.flashblock_seen and any(item.confirm_level == "preconfirmed" for item in self.items)

    def state_of(self, item: Item) -> State:
        """Where the settlement stands while nobody knows the slot's end."""
        return State.PRECONFIRMED if item.settlement_id in self.preconfirmed else State.SUBMITTED

    @property
    def traceparents(self) -> list[str | None]:
        """Of the requests that brought its payments."""
        return [item.traceparent for item in self.items]

    @property
    def tx_hashes(self) -> list[TxHash]:
        """Of all its attempts."""
        return [attempt.tx_hash for attempt in self.attempts]

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


def external(proof: Log, item: Item) -> Ruling:
    """Another sender executed it: a failure, but for a tenant that de-duplicates by nonce and whose request came first."""
    if item.accept_external and proof.block_number > item.admitted_block:
        answer = Answer(success=True, tx_hash=proof.tx_hash, log_index=proof.log_index)
        return Ruling(state=State.EXTERNAL, reason=Reason.SETTLEMENT_EXTERNAL, log=proof, tx_hash=proof.tx_hash, answer=answer)
    return refused(State.EXTERNAL, Reason.SETTLEMENT_EXTERNAL, "another sender executed this authorization", proof)


def refused(state: State, reason: Reason, message: str, proof: Log) -> Ruling:
    """It ended without our paying: the log is the proof."""
    return Ruling(
        state=state,
        reason=reason,
        log=proof,
        tx_hash=proof.tx_hash,
        answer=Answer(success=False, reason=reason.name, message=f"{message} (transaction {proof.tx_hash})", tx_hash=proof.tx_hash),
    )
