"""Gets admitted payments onto the chain: choose a relayer, sign, record, then send.

Nothing is sent that the write-ahead did not return. One write-ahead per network is in flight at a time; whatever
arrived meanwhile forms the next group, so that commits are shared under load and immediate when idle.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import structlog

from facilitator.chain.signer import Signer
from facilitator.clock import Clock
from facilitator.domain.fees import FeePolicy, max_fee, next_base_fee
from facilitator.domain.postings import resolution
from facilitator.domain.states import State, move
from facilitator.domain.transactions import Transaction
from facilitator.errors import OverloadFault, StoreFault
from facilitator.metrics import QUEUE_DEPTH, QUEUE_LIMIT, STAGE_SECONDS
from facilitator.protocol.messages import Authorization
from facilitator.schemes.scheme import Registry
from facilitator.settlement.network import ServedNetwork
from facilitator.settlement.settings import Settings
from facilitator.settlement.tasks import Background
from facilitator.settlement.verification import Judged, Verifier
from facilitator.settlement.watcher import Attempt, Item, OpenSlot, Watcher
from facilitator.store import settlements
from facilitator.store.db import ConstraintViolated, Db
from facilitator.store.settlements import Admission, Lease, OpenedSlot, Outcome, Settlement, SignedSlot
from facilitator.units import Address, Gas, TxHash, Wei, chain_id_of

SINGLE_GAS: Final = Gas(120_000)
"""Gas limit of one transferWithAuthorization from a plain account: needs 86k, or 104k for a first-time recipient."""

log = structlog.get_logger(__name__)


@dataclass(eq=False, slots=True)
class Account:
    """One relayer key of this process, and the lease it holds, if any."""

    signer: Signer
    lease: Lease | None = None
    next_tx_nonce: int = 0
    renewed_at: float = float("-inf")
    """Monotonic time of the last confirmed renewal."""
    ready: bool = False
    """The lease is held and everything left open by an earlier owner was taken up."""

    @property
    def address(self) -> Address:
        """The account that pays for gas."""
        return self.signer.address

    def lose(self) -> None:
        """Stop signing: the lease, or the knowledge of the next tx_nonce, is gone."""
        self.ready = False
        self.lease = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A settlement is on record, and its admitter holds the answer slot."""

    settlement_id: UUID
    epoch: int
    tx_hash: TxHash | None
    """None while it is queued."""


@dataclass(eq=False, slots=True)
class _Waiting:
    """A settlement on its way into the write-ahead."""

    admission: Admission
    done: asyncio.Future[Admitted]
    abandoned: bool = False
    entered_at: float = field(default=0.0)


class Dispatcher:
    """One network's way out."""

    def __init__(
        self,
        chain: ServedNetwork,
        registry: Registry,
        verifier: Verifier,
        watcher: Watcher,
        db: Db,
        clock: Clock,
        settings: Settings,
        replica_id: str,
        background: Background,
    ) -> None:
        self._chain = chain
        self._registry = registry
        self._verifier = verifier
        self._watcher = watcher
        self._db = db
        self._clock = clock
        self._settings = settings
        self._replica_id = replica_id
        self._background = background
        self._queue: deque[_Waiting] = deque()
        self._wake = asyncio.Event()
        self._claim_due = True
        self._fees = FeePolicy(
            tip_wei=Wei(settings.priority_fee_wei),
            headroom=settings.fee_multiplier,
            max_fee_min_wei=Wei(settings.max_fee_floor_wei),
            max_fee_max_wei=Wei(settings.max_fee_cap_wei),
        )
        self.accounts: tuple[Account, ...] = tuple(Account(signer) for signer in chain.signers)
        self.stopping = False
        """Set on shutdown: no new slots."""
        QUEUE_LIMIT.labels(chain.network).set(settings.queue_max)

    # --- in ---

    async def admit(self, admission: Admission, deadline: float) -> Admitted:
        """Put a settlement on record, signed if a relayer is ours, else queued for whoever owns one.

        Raises ConstraintViolated when the authorization or the idempotency key is taken, OverloadFault when the queue
        is full or the deadline comes first, StoreFault when it is unknown whether it was recorded. A caller that goes
        away takes its settlement along if it is not recorded yet, else its answer slot is freed.
        """
        if self.stopping or len(self._queue) >= self._settings.queue_max:
            raise OverloadFault("queue_full", "too many payments are waiting to be sent; ask again")
        waiting = _Waiting(admission, asyncio.get_running_loop().create_future(), entered_at=self._clock.monotonic())
        self._queue.append(waiting)
        QUEUE_DEPTH.labels(self._chain.network).set(len(self._queue))
        self._wake.set()
        try:
            async with asyncio.timeout(max(0.0, deadline - self._clock.monotonic())):
                return await asyncio.shield(waiting.done)
        except TimeoutError:
            waiting.abandoned = True
            raise OverloadFault("not_sent", "no relayer was free in time; nothing was signed; ask again") from None
        except asyncio.CancelledError:
            waiting.abandoned = True
            if waiting.done.done() and not waiting.done.cancelled() and waiting.done.exception() is None:
                self._free(waiting.done.result())
            raise

    def claim_soon(self) -> None:
        """Look at the queue in Postgres: something was put there."""
        self._claim_due = True
        self._wake.set()

    def watches(self, settlement_id: UUID) -> bool:
        """Does this process find out about this settlement by itself?"""
        return self._watcher.watches(settlement_id)

    def _free(self, admitted: Admitted) -> None:
        self._background.start("free_answer", _free(self._db, self._clock, self._replica_id, admitted.settlement_id, admitted.epoch))

    # --- out ---

    async def run(self) -> None:
        """Dispatch what arrives; look at the queue in Postgres when told and every `queue_poll_s`."""
        while True:
            try:
                async with asyncio.timeout(self._settings.queue_poll_s):
                    await self._wake.wait()
            except TimeoutError:
                self._claim_due = True
            self._wake.clear()
            while self._queue and not self.stopping:
                if not await self._dispatch_group():
                    break
            if self._claim_due and not self.stopping:
                self._claim_due = False
                await self._dispatch_queued()

    async def wake_when_freed(self) -> None:
        """A loop of its own: room in a relayer is a reason to look again."""
        while True:
            await self._watcher.slot_freed.wait()
            self._watcher.slot_freed.clear()
            self._wake.set()

    def _room(self, account: Account) -> int:
        """Slots this account may open now; 0 when its lease is not to be trusted any more."""
        if not account.ready or self._clock.monotonic() - account.renewed_at > self._settings.lease_trust_s:
            return 0
        return self._settings.slots_max - self._watcher.open_slots(account.address)

    def _choose(self) -> tuple[Account | None, int]:
        """The account with the most room. (None, 0) when no relayer is ours: then settlements are queued for others."""
        ready = [account for account in self.accounts if account.ready]
        if not ready:
            return None, 0
        best = max(ready, key=self._room)
        return best, self._room(best)

    async def _dispatch_group(self) -> bool:
        """Record and send one group. False: no room, or nothing to do."""
        account, room = self._choose()
        if account is not None and room <= 0:
            return False
        if account is not None and self._chain.head.newest is None:
            return False
        size = min(self._settings.group_max, room if account else self._settings.group_max)
        group: list[_Waiting] = []
        while self._queue and len(group) < size:
            waiting = self._queue.popleft()
            if not waiting.abandoned:
                group.append(waiting)
        QUEUE_DEPTH.labels(self._chain.network).set(len(self._queue))
        if group:
            await self._record(account, group)
        return True

    async def _record(self, account: Account | None, group: Sequence[_Waiting]) -> None:
        """Sign and write ahead. A group that breaks a constraint is taken one by one, so that only the guilty one hears it."""
        started = self._clock.monotonic()
        admissions = [waiting.admission for waiting in group]
        slots = await self._sign(account, [(admission.settlement_id, admission.authorization) for admission in admissions])
        try:
            opened = await settlements.write_ahead(
                self._db, account.lease if account else None, self._replica_id, self._chain.network, admissions, slots
            )
        except ConstraintViolated as violated:
            if len(group) == 1:
                _fail(group[0], violated)
            else:
                await self._record_singly(group)
            return
        except StoreFault as fault:
            if account is not None:
                account.lose()  # it is unknown whether its tx_nonces were taken: adopt it afresh
            for waiting in group:
                _fail(waiting, fault)
            return
        STAGE_SECONDS.labels("record").observe(self._clock.monotonic() - started)
        if account is not None and opened:
            account.next_tx_nonce += len(slots)
            self._launch(account, slots, opened, {admission.settlement_id: _item_of(admission) for admission in admissions})
        else:
            if account is not None:
                self._lease_lost(account)
            self._background.start("notify_queue", settlements.notify_queue(self._db, self._chain.network))
        self._tell(group, slots if opened else [])

    async def _record_singly(self, group: Sequence[_Waiting]) -> None:
        """One write-ahead each; what finds no room goes back to the head of the queue."""
        for waiting in group:
            account, room = self._choose()
            if account is not None and room <= 0:
                self._queue.appendleft(waiting)
            else:
                await self._record(account, [waiting])

    def _tell(self, group: Sequence[_Waiting], slots: Sequence[SignedSlot]) -> None:
        """Tell the callers that they are on record; a caller who is gone gives its answer slot back."""
        hash_of = {settlement_id: slot.tx_hash for slot in slots for settlement_id in slot.settlement_ids}
        for waiting in group:
            settlement_id = waiting.admission.settlement_id
            admitted = Admitted(settlement_id=settlement_id, epoch=1, tx_hash=hash_of.get(settlement_id))
            STAGE_SECONDS.labels("admission").observe(self._clock.monotonic() - waiting.entered_at)
            if waiting.abandoned:
                self._free(admitted)
            elif not waiting.done.done():
                waiting.done.set_result(admitted)

    def _lease_lost(self, account: Account) -> None:
        log.warning("relayer.lease_lost", relayer=account.address, network=self._chain.network)
        account.lose()

    async def _sign(self, account: Account | None, payments: Sequence[tuple[UUID, Authorization]]) -> list[SignedSlot]:
        """One transaction per settlement, with consecutive tx_nonces; nothing without an account."""
        if account is None:
            return []
        head = self._chain.head.newest
        assert head is not None
        fees = max_fee(next_base_fee(head), self._fees)
        slots = []
        for index, (settlement_id, authorization) in enumerate(payments):
            scheme = self._registry.find(authorization.scheme)
            assert scheme is not None
            call = scheme.call(authorization)
            transaction = Transaction(
                chain_id=chain_id_of(self._chain.network),
                tx_nonce=account.next_tx_nonce + index,
                to=call.to,
                data=call.data,
                gas=SINGLE_GAS,
                max_fee_wei=fees.max_fee_wei,
                max_priority_fee_wei=fees.max_priority_fee_wei,
            )
            signed = await account.signer.sign(transaction)
            slots.append(
                SignedSlot(
                    tx_nonce=transaction.tx_nonce,
                    kind="single",
                    tx_hash=signed.tx_hash,
                    raw=signed.raw,
                    gas=transaction.gas,
                    max_fee_wei=transaction.max_fee_wei,
                    max_priority_fee_wei=transaction.max_priority_fee_wei,
                    settlement_ids=(settlement_id,),
                )
            )
        return slots

    def _launch(self, account: Account, slots: Sequence[SignedSlot], opened: Sequence[OpenedSlot], items: dict[UUID, Item]) -> None:
        """What is on record may be watched and sent."""
        id_of = {slot.tx_nonce: slot.slot_id for slot in opened}
        for slot in slots:
            watched = OpenSlot(
                slot_id=id_of[slot.tx_nonce],
                relayer=account.address,
                tx_nonce=slot.tx_nonce,
                attempts=[Attempt(tx_hash=slot.tx_hash, raw=slot.raw)],
                items=tuple(items[settlement_id] for settlement_id in slot.settlement_ids),
                opened_at=self._clock.monotonic(),
            )
            self._watcher.add(watched)
            self._background.start("send", self._watcher.send(watched))

    # --- the queue in Postgres ---

    async def _dispatch_queued(self) -> None:
        """Take what others queued: judge it afresh, then claim, sign and record in one transaction, then send."""
        account, room = self._choose()
        if account is None or room <= 0:
            return
        queued = await settlements.list_queued(self._db, self._chain.network, min(room, self._settings.group_max))
        if not queued:
            return
        payable = [record for record in queued if await self._still_payable(record)]
        if not payable or account.lease is None or self._room(account) < len(payable):
            return
        items = {
            record.settlement_id: Item(
                settlement_id=record.settlement_id, authorization=record.authorization, admitted_block=record.admitted_block
            )
            for record in payable
        }
        try:
            async with self._db.transaction() as session:
                claimed = await settlements.claim_queued(session, [record.settlement_id for record in payable])
                chosen = [record for record in payable if record.settlement_id in claimed]
                if not chosen:
                    return
                slots = await self._sign(account, [(record.settlement_id, record.authorization) for record in chosen])
                opened = await settlements.dispatch_claimed(session, account.lease, slots)
                if not opened:
                    raise _LeaseLostError  # noqa: TRY301 (rolls the claim back)
        except _LeaseLostError:
            self._lease_lost(account)
            return
        except StoreFault:
            account.lose()
            raise
        account.next_tx_nonce += len(slots)
        self._launch(account, slots, opened, items)
        self._claim_due = len(queued) >= min(room, self._settings.group_max)
        if self._claim_due:
            self._wake.set()

    async def _still_payable(self, record: Settlement) -> bool:
        """Ask the chain about a settlement that waited; what cannot be paid any more ends here, by chain facts."""
        scheme = self._registry.find(record.scheme)
        assert scheme is not None
        judged = Judged(authorization=record.authorization, scheme=scheme, chain=self._chain)
        refusal, _ = await self._verifier.judge_chain(judged, self._chain.evm.deadline_in(self._settings.verify_deadline_s))
        if refusal is None:
            return True
        item = Item(settlement_id=record.settlement_id, authorization=record.authorization, admitted_block=record.admitted_block)
        ruling = await self._watcher.rule(item, None)
        if ruling is None:
            return False
        if ruling.state is State.INCLUDED:
            return False  # ours after all: its slot is open somewhere and will say so
        await self._watcher.commit(
            [
                Outcome(
                    settlement_id=record.settlement_id,
                    from_state=State.QUEUED,
                    to_state=move(State.QUEUED, ruling.state),
                    answer=ruling.answer,
                    phase=resolution(ruling.state),
                    reason=ruling.reason.name if ruling.reason else None,
                    tx_hash=ruling.tx_hash,
                )
            ],
            [],
            [],
            {record.settlement_id: (item, ruling, self._clock.monotonic())},
        )
        return False


def _item_of(admission: Admission) -> Item:
    return Item(settlement_id=admission.settlement_id, authorization=admission.authorization, admitted_block=admission.admitted_block)


class _LeaseLostError(Exception):
    """Rolls the claim back."""


def _fail(waiting: _Waiting, error: Exception) -> None:
    if not waiting.done.done():
        waiting.done.set_exception(error)
        if waiting.abandoned:
            waiting.done.exception()  # marks it as heard: nobody is left


async def _free(db: Db, clock: Clock, replica_id: str, settlement_id: UUID, epoch: int) -> None:
    """Free an answer slot whose caller is gone; tried again until Postgres has it."""
    while True:
        try:
            await settlements.free_answer(db, settlement_id, replica_id, epoch)
            return
        except StoreFault:
            await clock.sleep(1.0)
