"""Settlements in Postgres: admit, read, move. One function per query; every rule that must hold is in the schema.

Nothing here decides. What is durable on return: everything the function wrote, in one commit.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec

from facilitator.domain.confirmation import ConfirmLevel, deep_enough
from facilitator.domain.identity import AuthKey, fingerprint
from facilitator.domain.postings import Entry, pending_entry
from facilitator.domain.screening import decode_screening
from facilitator.domain.states import UNRESOLVED, State
from facilitator.domain.wallets import Wallet
from facilitator.protocol.messages import Authorization
from facilitator.store.db import Db, Session, as_text, load_queries
from facilitator.units import Address, Atomic, AuthNonce, BlockHash, Network, TxHash, UnixSeconds

QUERIES: Final = load_queries("settlements")
AUTHORIZATION_TAKEN: Final = "settlement_authorization"
"""Constraint: this authorization is on record already."""
IDEMPOTENCY_TAKEN: Final = "settlement_idempotency"
"""Constraint: this tenant bound this idempotency key to another settlement."""
IDENTIFIER_TAKEN: Final = "settlement_payment_identifier"
"""Constraint: this tenant bound this payment identifier to another settlement."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """One row of `settlement`, whether the replica that holds its answer slot lives, and whether it may yet give it back."""

    settlement_id: UUID
    network: Network
    asset: Address
    payer: Address
    auth_nonce: AuthNonce
    scheme: str
    pay_to: Address
    amount_atomic: Atomic
    valid_after: UnixSeconds
    valid_before: UnixSeconds
    signature: bytes
    fingerprint: bytes
    tenant_id: str
    request_id: str
    resource: str | None
    state: str
    moves: int
    admissions: int
    admitted_block: int
    reason: str | None
    tx_hash: TxHash | None
    log_index: int | None
    block_number: int | None
    block_hash: BlockHash | None
    queued_at: datetime
    resolved_at: datetime | None
    answer_state: str
    answer_holder: str
    answer_epoch: int
    answer_shared: bool
    idempotency_key: str | None
    answer: str | None
    alone: bool
    """It never shares a transaction: its tenant's rule, a smart wallet pays, or a batch failed it."""
    confirm_level: ConfirmLevel
    """How deep it must be before success is told."""
    accept_external: bool
    """Executed by another sender, it is answered as success."""
    closed: bool
    """It ended otherwise than paid, and nothing on chain can change that any more."""
    payment_identifier: str | None
    """What the buyer named it, by the extension of that name."""
    traceparent: str | None
    """Of the request that admitted it, if that was traced. (W3C Trace Context)"""
    screening: str | None
    """JSON, see domain/screening.py: what it was held against before it was last signed. None: its network screens nobody."""
    holder_alive: bool
    answer_under_way: bool
    """Spent, and its holder's replica may still find out that the answer was lost."""

    @property
    def key(self) -> AuthKey:
        """The identity of the payment."""
        return AuthKey(self.network, self.asset, self.payer, self.auth_nonce)

    @property
    def accept_unscreened(self) -> bool:
        """May it be signed while a sanctions list cannot be read?"""
        screening = decode_screening(self.screening)
        return screening is not None and screening.accept_unscreened

    @property
    def may_be_told(self) -> bool:
        """Is there an end that may be told: a success as deep as its tenant wants it, or any other end?"""
        state = State(self.state)
        if state in UNRESOLVED:
            return False
        success = self.answer is not None and decode_answer(self.answer).success
        return not success or deep_enough(state, self.confirm_level, closed=self.closed)

    @property
    def authorization(self) -> Authorization:
        """What the payer signed."""
        return Authorization(
            scheme=self.scheme,
            network=self.network,
            asset=self.asset,
            payer=self.payer,
            pay_to=self.pay_to,
            amount_atomic=self.amount_atomic,
            valid_after=self.valid_after,
            valid_before=self.valid_before,
            auth_nonce=self.auth_nonce,
            signature=self.signature,
        )


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a settlement ended, as it was told; stored once and never rewritten. `reason` is a `Reason` name."""

    success: bool
    reason: str | None = None
    message: str | None = None
    tx_hash: str | None = None
    log_index: int | None = None
    shared: bool = False
    """The transaction paid others too: only with `log_index` it proves this payment."""


def decode_answer(text: str) -> Answer:
    """Read the `answer` column."""
    return msgspec.json.decode(text, type=Answer)


def encode_answer(answer: Answer) -> str:
    """Write the `answer` column."""
    return msgspec.json.encode(answer).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """A settlement about to be admitted."""

    settlement_id: UUID
    authorization: Authorization
    tenant_id: str
    request_id: str
    resource: str | None
    idempotency_key: str | None
    admitted_block: int
    """Newest block when it was judged: its logs are looked for from there."""
    alone: bool = False
    """Its tenant does not share transactions, or a smart wallet pays."""
    confirm_level: ConfirmLevel = "latest"
    """How deep it must be before success is told."""
    accept_external: bool = False
    """Executed by another sender, it is answered as success."""
    payment_identifier: str | None = None
    """Bound to this payment for the life of the ledger, as an idempotency key is."""
    traceparent: str | None = None
    """Of the request that admits it, if that is traced. (W3C Trace Context)"""
    accept_unscreened: bool = False
    """It may be signed while a sanctions list cannot be read."""
    screening: str | None = None
    """As in `Settlement`."""
    wallet: Wallet | None = None
    """What pays, and with how much gas, by the last judgement; None for a payer without code. Not stored: the signed bytes are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to sign for one relayer, as last confirmed by the database."""

    network: Network
    relayer: Address
    owner: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedSlot:
    """One tx_nonce with its signed transaction and the settlements in it, in item order."""

    tx_nonce: int
    kind: str
    tx_hash: TxHash
    raw: bytes
    gas: int
    max_fee_wei: int
    max_priority_fee_wei: int
    most_wei: int
    """The most that it can cost, surcharges included: held of the gas budgets of those whose payments it carries."""
    settlement_ids: tuple[UUID, ...]
    wallet_code: bytes | None = None
    """What a smart wallet's gas is learned by. Not stored."""


@dataclass(frozen=True, slots=True)
class OpenedSlot:
    """A slot that the write-ahead stored."""

    slot_id: int
    tx_nonce: int


@dataclass(frozen=True, slots=True)
class AnswerSlot:
    """State of an answer slot after a successful statement on it."""

    answer_epoch: int
    answer_state: str


@dataclass(frozen=True, slots=True)
class Readmitted:
    """The new answer slot of a settlement that was admitted again."""

    answer_epoch: int
    notified: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One judged move of a settlement."""

    settlement_id: UUID
    from_state: State
    to_state: State
    answer: Answer | None
    phase: str | None
    """Phase of the entry that resolves the pending one."""
    reason: str | None = None
    tx_hash: TxHash | None = None
    log_index: int | None = None
    block_number: int | None = None
    block_hash: BlockHash | None = None
    spend_epoch: int | None = None
    """Epoch of the answer slot that a connected caller of this process holds."""
    moves: int | None = None
    """Moves that the judged row had made; None when any row in `from_state` is meant."""
    struck_by: TxHash | None = None
    """Our transaction that was mined without paying it, by the doing of its payer or tenant: a strike."""
    of_payer: bool = False
    """The strike is the payer's too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedSlot:
    """How a relayer slot ended."""

    slot_id: int
    state: str
    mined_tx_hash: TxHash | None
    block_number: int | None
    block_hash: BlockHash | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What the mined transaction of a closed slot cost, from its receipt; who bears which part, and how it is booked."""

    slot_id: int
    tx_hash: TxHash
    gas_used: int
    effective_gas_price_wei: int
    l1_fee_wei: int | None
    operator_fee_wei: int | None
    shares_wei: Mapping[UUID, int]
    """By settlement that the slot carries; they add up to the whole."""
    entries: Sequence[Entry]
    """Of our own book."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A settlement after its outcome was committed."""

    settlement_id: UUID
    state: str
    moves: int
    answer_state: str
    answer_holder: str
    answer_epoch: int
    answer: str | None
    notified: str | None


@dataclass(frozen=True, slots=True)
class Move:
    """One line of a settlement's history."""

    settlement_id: UUID
    move: int
    from_state: str
    to_state: str
    tx_hash: TxHash | None
    reason: str | None
    moved_at: datetime


@dataclass(frozen=True, slots=True)
class ItemCost:
    """What one mined transaction that carried a settlement cost, and the settlement's share among so many."""

    settlement_id: UUID
    tx_hash: TxHash
    gas_used: int
    effective_gas_price_wei: int
    l1_fee_wei: int | None
    operator_fee_wei: int | None
    share_wei: int
    items: int


@dataclass(frozen=True, slots=True)
class Incident:
    """Something ended otherwise than an answer of ours said."""

    settlement_id: UUID
    kind: str
    tx_hash: TxHash | None
    detail: str
    opened_at: datetime


@dataclass(frozen=True, slots=True)
class Block:
    """A block by number and hash."""

    block_number: int
    block_hash: BlockHash


@dataclass(frozen=True, slots=True)
class Deeper:
    """A settlement that a comparison with the canonical chain moved."""

    settlement_id: UUID
    notified: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Preconfirmation:
    """A payment that was seen in a flashblock."""

    settlement_id: UUID
    tx_hash: TxHash
    log_index: int
    block_number: int
    answer: Answer
    spend_epoch: int | None
    """As in `Outcome`."""


@dataclass(frozen=True, slots=True)
class Watched:
    """How many authorizations may yet be used although their settlements failed or were withdrawn; counted up to 100,000."""

    watched: int


@dataclass(frozen=True, slots=True)
class SettlementId:
    """A settlement that a statement touched."""

    settlement_id: UUID


@dataclass(frozen=True, slots=True)
class QueueAge:
    """The oldest queued settlement of an asset."""

    asset: Address
    oldest_s: float


def new_id(now_ms: int) -> UUID:
    """A UUID of version 7 (RFC 9562): sorts by the time it was made, so that inserts touch the end of the index."""
    random = int.from_bytes(secrets.token_bytes(10), "big")
    return UUID(int=now_ms << 80 | 0x7 << 76 | (random >> 68) << 64 | 0b10 << 62 | random & (1 << 62) - 1)


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """Whose record is looked for, and what the tenant may have bound."""

    key: AuthKey
    tenant_id: str
    idempotency_key: str | None = None
    payment_identifier: str | None = None


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What is on record: of the authorization itself, and which settlements the tenant bound the two names to."""

    record: Settlement | None = None
    by_idempotency_key: Settlement | None = None
    by_identifier: Settlement | None = None


async def own_records(db: Db, asked: Sequence[Asked], holder_ttl_s: float) -> list[Found]:
    """What is on record for each of them."""
    keys = {each.key for each in asked}
    bindings = {(each.tenant_id, each.idempotency_key) for each in asked if each.idempotency_key is not None}
    identifiers = {(each.tenant_id, each.payment_identifier) for each in asked if each.payment_identifier is not None}
    columns = [key.network for key in keys], [key.asset for key in keys], [key.payer for key in keys], [key.auth_nonce for key in keys]
    if bindings or identifiers:
        rows = await db.many(
            Settlement,
            QUERIES["own_records"],
            *columns,
            [tenant_id for tenant_id, _ in bindings],
            [idempotency_key for _, idempotency_key in bindings],
            holder_ttl_s,
            [tenant_id for tenant_id, _ in identifiers],
            [identifier for _, identifier in identifiers],
        )
    else:
        rows = await db.many(Settlement, QUERIES["records_of_authorizations"], *columns, holder_ttl_s)
    by_key = {row.key: row for row in rows}
    bound: dict[tuple[str, str | None], Settlement] = {(row.tenant_id, row.idempotency_key): row for row in rows if row.idempotency_key}
    named: dict[tuple[str, str | None], Settlement] = {
        (row.tenant_id, row.payment_identifier): row for row in rows if row.payment_identifier
    }
    return [
        Found(
            record=by_key.get(each.key),
            by_idempotency_key=bound.get((each.tenant_id, each.idempotency_key)),
            by_identifier=named.get((each.tenant_id, each.payment_identifier)),
        )
        for each in asked
    ]


async def find(db: Db, key: AuthKey) -> Settlement | None:
    """The settlement of this authorization."""
    [found] = await own_records(db, [Asked(key=key, tenant_id="")], 0.0)
    return found.record


async def records(db: Db | Session, settlement_ids: Sequence[UUID], holder_ttl_s: float) -> list[Settlement]:
    """The settlements of these ids that exist."""
    return await db.many(Settlement, QUERIES["records"], list(settlement_ids), holder_ttl_s)


async def get(db: Db, settlement_id: UUID) -> Settlement | None:
    """One settlement by id."""
    return next(iter(await records(db, [settlement_id], 0.0)), None)


async def page(  # noqa: PLR0913 (one argument per filter)
    db: Db,
    *,
    tenant_id: str | None,
    queued_from: datetime | None = None,
    queued_to: datetime | None = None,
    state: str | None = None,
    payer: Address | None = None,
    pay_to: Address | None = None,
    network: Network | None = None,
    asset: Address | None = None,
    tx_hash: TxHash | None = None,
    before: UUID | None = None,
    limit: int,
) -> list[Settlement]:
    """Settlements, newest first, that match every filter given; `before` is the last id of the page before."""
    return await db.many(
        Settlement, QUERIES["page"], tenant_id, queued_from, queued_to, state, payer, pay_to, network, asset, tx_hash, before, limit
    )


async def history(db: Db, settlement_ids: Sequence[UUID]) -> list[Move]:
    """Every move of these settlements, in order; the first line, `queued` at `queued_at`, is not among them."""
    return await db.many(Move, QUERIES["history"], list(settlement_ids))


async def costs(db: Db, settlement_ids: Sequence[UUID]) -> list[ItemCost]:
    """What the mined transactions that carried these settlements cost."""
    return await db.many(ItemCost, QUERIES["costs"], list(settlement_ids))


async def incidents(db: Db, settlement_ids: Sequence[UUID]) -> list[Incident]:
    """Incidents of these settlements."""
    return await db.many(Incident, QUERIES["incidents"], list(settlement_ids))


async def open_incident(
    db: Db,
    network: Network,
    kind: str,
    detail: str,
    *,
    settlement_id: UUID | None = None,
    relayer: Address | None = None,
    tx_hash: TxHash | None = None,
) -> None:
    """Record that something needs a person's eye."""
    await db.execute(QUERIES["open_incident"], network, kind, settlement_id, relayer, tx_hash, detail)


async def write_ahead(
    db: Db,
    lease: Lease | None,
    owner: str,
    network: Network,
    admissions: Sequence[Admission],
    slots: Sequence[SignedSlot],
    rate_age_max_s: float,
) -> list[OpenedSlot]:
    """Admit settlements and record every signed transaction, in one statement and one commit.

    Slots carry consecutive tx_nonces from the relayer's next one. An empty answer to a non-empty `slots` means that the
    lease is lost or the tx_nonce is not the next: the settlements stand as `queued` and nothing may be sent.
    `rate_age_max_s` is how old a rate may be that a gas budget in dollars is held by.
    Raises ConstraintViolated (AUTHORIZATION_TAKEN, IDEMPOTENCY_TAKEN, IDENTIFIER_TAKEN, GAS_BUDGET): then nothing was stored at all.
    """
    slot_of = {settlement_id: (slot, index) for slot in slots for index, settlement_id in enumerate(slot.settlement_ids)}
    entries = [pending_entry(admission.authorization) for admission in admissions]
    authorizations = [admission.authorization for admission in admissions]
    placed = [slot_of.get(admission.settlement_id) for admission in admissions]
    return await db.many(
        OpenedSlot,
        QUERIES["write_ahead"],
        network,
        lease.relayer if lease else None,
        owner,
        lease.epoch if lease else None,
        slots[0].tx_nonce if slots else None,
        len(slots),
        [admission.settlement_id for admission in admissions],
        [auth.asset for auth in authorizations],
        [auth.payer for auth in authorizations],
        [auth.auth_nonce for auth in authorizations],
        [auth.scheme for auth in authorizations],
        [auth.pay_to for auth in authorizations],
        as_text(auth.amount_atomic for auth in authorizations),
        as_text(auth.valid_after for auth in authorizations),
        as_text(auth.valid_before for auth in authorizations),
        [auth.signature for auth in authorizations],
        [fingerprint(auth) for auth in authorizations],
        [admission.tenant_id for admission in admissions],
        [admission.request_id for admission in admissions],
        [admission.resource for admission in admissions],
        [admission.admitted_block for admission in admissions],
        [admission.idempotency_key for admission in admissions],
        [place[0].tx_hash if place else None for place in placed],
        [place[0].tx_nonce if place else None for place in placed],
        [place[1] if place else None for place in placed],
        [entry.debit for entry in entries],
        [entry.credit for entry in entries],
        [entry.asset for entry in entries],
        *_slot_columns(slots),
        [admission.alone for admission in admissions],
        [admission.confirm_level for admission in admissions],
        [admission.accept_external for admission in admissions],
        [admission.payment_identifier for admission in admissions],
        [admission.traceparent for admission in admissions],
        [admission.screening for admission in admissions],
        as_text(slot.most_wei for slot in slots),
        rate_age_max_s,
    )


async def queue_ages(db: Db, network: Network, put_off: Sequence[UUID] = ()) -> dict[Address, float]:
    """How many seconds the oldest queued settlement of each asset has waited, without those put off."""
    return {row.asset: row.oldest_s for row in await db.many(QueueAge, QUERIES["queue_ages"], network, list(put_off))}


async def list_queued(db: Db, network: Network, limit: int, put_off: Sequence[UUID] = (), patience_s: float = 5.0) -> list[Settlement]:
    """Up to `limit` queued settlements in their turn (`domain.pressure.due_s`), without those put off."""
    return await db.many(Settlement, QUERIES["list_queued"], network, limit, list(put_off), patience_s)


async def claim_queued(session: Session, judged: Sequence[Settlement]) -> set[UUID]:
    """Lock those that are still queued as they were judged and that nobody else has locked, until the transaction ends."""
    ids, moves = [record.settlement_id for record in judged], [record.moves for record in judged]
    return {row.settlement_id for row in await session.many(SettlementId, QUERIES["claim_queued"], ids, moves)}


async def restamp(session: Session, screenings: Mapping[UUID, str]) -> int:
    """Keep with settlements claimed in this transaction what they were screened against. Returns how many."""
    return await session.execute(QUERIES["restamp"], list(screenings), list(screenings.values()))


async def dispatch_claimed(session: Session, lease: Lease, slots: Sequence[SignedSlot], rate_age_max_s: float) -> list[OpenedSlot]:
    """The write-ahead for settlements claimed in this transaction. An empty answer means a lost lease: roll back.

    Raises ConstraintViolated (GAS_BUDGET).
    """
    items = [(settlement_id, slot, index) for slot in slots for index, settlement_id in enumerate(slot.settlement_ids)]
    return await session.many(
        OpenedSlot,
        QUERIES["dispatch_claimed"],
        lease.network,
        lease.relayer,
        lease.owner,
        lease.epoch,
        slots[0].tx_nonce,
        len(slots),
        [settlement_id for settlement_id, _, _ in items],
        [slot.tx_hash for _, slot, _ in items],
        [slot.tx_nonce for _, slot, _ in items],
        [index for _, _, index in items],
        *_slot_columns(slots),
        as_text(slot.most_wei for slot in slots),
        rate_age_max_s,
    )


def _slot_columns(slots: Sequence[SignedSlot]) -> tuple[list[object], ...]:
    """The seven arrays that describe signed slots, in the order both write-aheads take them."""
    return (
        [slot.tx_nonce for slot in slots],
        [slot.kind for slot in slots],
        [slot.tx_hash for slot in slots],
        [slot.raw for slot in slots],
        [slot.gas for slot in slots],
        [str(slot.max_fee_wei) for slot in slots],
        [str(slot.max_priority_fee_wei) for slot in slots],
    )


async def readmit(db: Db, record: Settlement, admission: Admission, owner: str) -> int | None:
    """Queue a withdrawn or failed settlement again under a new answer slot, and return the slot's epoch.

    None when somebody else was faster, or a transaction that carried it is not final yet.
    """
    auth = admission.authorization
    entry = pending_entry(auth)
    readmitted = await db.optional(
        Readmitted,
        QUERIES["readmit"],
        record.settlement_id,
        owner,
        auth.scheme,
        auth.pay_to,
        str(auth.amount_atomic),
        str(auth.valid_after),
        str(auth.valid_before),
        auth.signature,
        fingerprint(auth),
        admission.tenant_id,
        admission.request_id,
        admission.resource,
        admission.admitted_block,
        admission.idempotency_key,
        entry.debit,
        entry.credit,
        entry.asset,
        record.state,
        admission.confirm_level,
        admission.accept_external,
        admission.payment_identifier,
        admission.traceparent,
        admission.screening,
    )
    return readmitted.answer_epoch if readmitted else None


async def record_found(
    session: Session, tenant_id: str, tx_hash: TxHash, block: int, ids: Sequence[UUID], paid: Sequence[Authorization]
) -> int:
    """Put payments of a found transaction on record as `submitted` and carried by it; how many were not on record before."""
    entries = [pending_entry(authorization) for authorization in paid]
    return await session.execute(
        QUERIES["record_found"],
        paid[0].network,
        tenant_id,
        tx_hash,
        max(0, block - 1),
        list(ids),
        [auth.asset for auth in paid],
        [auth.payer for auth in paid],
        [auth.auth_nonce for auth in paid],
        [auth.scheme for auth in paid],
        [auth.pay_to for auth in paid],
        as_text(auth.amount_atomic for auth in paid),
        as_text(auth.valid_after for auth in paid),
        as_text(auth.valid_before for auth in paid),
        [auth.signature for auth in paid],
        [fingerprint(auth) for auth in paid],
        list(range(len(paid))),
        [entry.debit for entry in entries],
        [entry.credit for entry in entries],
        [entry.asset for entry in entries],
    )


async def notify_queue(db: Db, network: Network) -> None:
    """Wake whoever holds this network's relayers."""
    await db.execute(QUERIES["notify_queue"], network)


async def resolve(
    db: Db,
    replica_id: str,
    outcomes: Sequence[Outcome],
    closed: Sequence[ClosedSlot],
    costs: Sequence[Cost],
    delivery_s: float,
) -> list[Resolved]:
    """Commit what one look at the chain has shown: moves, entries, answers, slots and costs together.

    `delivery_s` is how long a holder's replica may take to give a slot back that is spent here.
    A settlement that is no longer in `from_state` is left alone and missing from the answer. A cost is recorded and booked
    only with the closing of its slot, so that two replicas that saw the same receipt book it once.
    """
    return await db.many(
        Resolved,
        QUERIES["resolve"],
        replica_id,
        [outcome.settlement_id for outcome in outcomes],
        [outcome.from_state.value for outcome in outcomes],
        [outcome.to_state.value for outcome in outcomes],
        [outcome.reason for outcome in outcomes],
        [outcome.tx_hash for outcome in outcomes],
        [outcome.log_index for outcome in outcomes],
        [outcome.block_number for outcome in outcomes],
        [outcome.block_hash for outcome in outcomes],
        [encode_answer(outcome.answer) if outcome.answer else None for outcome in outcomes],
        [outcome.spend_epoch for outcome in outcomes],
        [outcome.phase for outcome in outcomes],
        [slot.slot_id for slot in closed],
        [slot.state for slot in closed],
        [slot.mined_tx_hash for slot in closed],
        [slot.block_number for slot in closed],
        [slot.block_hash for slot in closed],
        [cost.tx_hash for cost in costs],
        [cost.gas_used for cost in costs],
        [str(cost.effective_gas_price_wei) for cost in costs],
        [_text_or_none(cost.l1_fee_wei) for cost in costs],
        delivery_s,
        [outcome.moves for outcome in outcomes],
        [_text_or_none(cost.operator_fee_wei) for cost in costs],
        [cost.slot_id for cost in costs for _ in cost.shares_wei],
        [settlement_id for cost in costs for settlement_id in cost.shares_wei],
        as_text(wei for cost in costs for wei in cost.shares_wei.values()),
        [cost.tx_hash for cost in costs for _ in cost.entries],
        [entry.debit for cost in costs for entry in cost.entries],
        [entry.credit for cost in costs for entry in cost.entries],
        [entry.asset for cost in costs for entry in cost.entries],
        as_text(entry.amount_atomic for cost in costs for entry in cost.entries),
        [outcome.struck_by for outcome in outcomes],
        [outcome.of_payer for outcome in outcomes],
    )


def _text_or_none(number: int | None) -> str | None:
    return None if number is None else str(number)


async def preconfirm(db: Db, replica_id: str, seen: Sequence[Preconfirmation], total_max_atomic: int, delivery_s: float) -> list[Resolved]:
    """Commit what a flashblock showed, as far as each tenant's total of unsealed value allows; `delivery_s` as in `resolve`."""
    ids = [each.settlement_id for each in seen]
    async with db.transaction() as session:
        await session.execute(QUERIES["lock_tenants"], ids)
        return await session.many(
            Resolved,
            QUERIES["preconfirm"],
            replica_id,
            ids,
            [each.tx_hash for each in seen],
            [each.log_index for each in seen],
            [each.block_number for each in seen],
            [encode_answer(each.answer) for each in seen],
            [each.spend_epoch for each in seen],
            str(total_max_atomic),
            delivery_s,
        )


async def unseal(db: Db, settlement_ids: Sequence[UUID]) -> list[SettlementId]:
    """Their flashblock was not sealed as it was seen: open again, with an incident. Answers stay as they were told."""
    return await db.many(SettlementId, QUERIES["unseal"], list(settlement_ids))


async def withdraw(db: Db, settlement_id: UUID, holder: str, epoch: int) -> bool:
    """Withdraw a settlement that is still queued; False when something was signed meanwhile."""
    return await db.optional(SettlementId, QUERIES["withdraw"], settlement_id, holder, epoch) is not None


async def take_answer(db: Db, settlement_id: UUID, holder: str, idempotency_key: str | None, epoch: int, holder_ttl_s: float) -> int | None:
    """Take the answer slot if it is free or its holder's replica is dead, and return its new epoch; None when not."""
    slot = await db.optional(AnswerSlot, QUERIES["take_answer"], settlement_id, holder, idempotency_key, epoch, holder_ttl_s)
    return slot.answer_epoch if slot else None


async def spend_answer(db: Db, settlement_id: UUID, holder: str, epoch: int, delivery_s: float, moves: int) -> bool:
    """Mark the slot spent for its connected holder; False when the holder lost it, or the settlement has moved since it was read.

    `delivery_s` as in `resolve`.
    """
    return await db.optional(AnswerSlot, QUERIES["spend_answer"], settlement_id, holder, epoch, delivery_s, moves) is not None


async def share_answer(db: Db, settlement_id: UUID, tenant_id: str, idempotency_key: str) -> bool:
    """Note that a caller with the holder's own key is told too; False when the slot is not spent."""
    return await db.optional(AnswerSlot, QUERIES["share_answer"], settlement_id, tenant_id, idempotency_key) is not None


async def free_answer(db: Db, settlement_id: UUID, holder: str, epoch: int) -> bool:
    """Free the slot: its holder went away or was told `settlement_pending`."""
    return await db.execute(QUERIES["free_answer"], settlement_id, holder, epoch) == 1


async def unfinal_blocks(db: Db, network: Network, up_to: int) -> list[Block]:
    """Blocks up to a number that hold included work, or prove that an authorization was used by somebody else."""
    return await db.many(Block, QUERIES["unfinal_blocks"], network, up_to)


async def make_safe(db: Db, network: Network, blocks: Sequence[Block]) -> int:
    """Everything included in these blocks is safe. Returns how many settlements moved."""
    return len(await db.many(Deeper, QUERIES["make_safe"], network, *_block_columns(blocks)))


async def finalize(db: Db, network: Network, blocks: Sequence[Block]) -> int:
    """Everything included in these blocks is final; their entries are posted. Returns how many settlements that concerned."""
    return len(await db.many(Deeper, QUERIES["finalize"], network, *_block_columns(blocks)))


async def reopen(db: Db, network: Network, blocks: Sequence[Block]) -> list[Deeper]:
    """These blocks left the canonical chain: what they proved is open again. Answers stay as they were told."""
    return await db.many(Deeper, QUERIES["reopen"], network, *_block_columns(blocks))


async def take_watched(db: Db, network: Network, every_s: float, limit: int) -> list[Settlement]:
    """Failed and withdrawn settlements whose auth nonce was not looked at for `every_s`; replicas share them."""
    return await db.many(Settlement, QUERIES["take_watched"], network, every_s, limit)


async def count_watched(db: Db, network: Network) -> int:
    """How many there are."""
    return (await db.one(Watched, QUERIES["count_watched"], network)).watched


async def resolve_late(db: Db, record: Settlement, outcome: Outcome) -> bool:
    """What failed or was withdrawn was used after all: the move and its incident. False when the record has moved since."""
    moved = await db.optional(
        SettlementId,
        QUERIES["resolve_late"],
        record.settlement_id,
        outcome.from_state.value,
        record.moves,
        outcome.to_state.value,
        outcome.reason,
        outcome.tx_hash,
        outcome.log_index,
        outcome.block_number,
        outcome.block_hash,
        encode_answer(outcome.answer) if outcome.answer else None,
    )
    return moved is not None


async def close_watched(db: Db, unused: Sequence[Settlement]) -> None:
    """Their time is over by final chain time and they are unused: they are watched no longer, and what was refused for it is `expired`."""
    await db.execute(QUERIES["close_watched"], [record.settlement_id for record in unused], [record.moves for record in unused])


def _block_columns(blocks: Sequence[Block]) -> tuple[list[int], list[BlockHash]]:
    return [block.block_number for block in blocks], [block.block_hash for block in blocks]
