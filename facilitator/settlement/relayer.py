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
from facilitator.domain.identity import key_of
from facilitator.domain.states import State
from facilitator.domain.transactions import Transaction
from facilitator.errors import ChainFault, OverloadFault, StoreFault
from facilitator.metrics import QUEUE_DEPTH, QUEUE_LIMIT, STAGE_SECONDS
from facilitator.protocol.messages import Authorization
from facilitator.schemes.scheme import Registry
from facilitator.settlement.network import ServedNetwork
from facilitator.settlement.settings import Settings
from facilitator.settlement.tasks import Background
from facilitator.settlement.verification import Judged, Verifier
from facilitator.settlement.watcher import Attempt, Item, NoRuling, OpenSlot, Ruling, Watcher
from facilitator.store import settlements
from facilitator.store.db import NOT_REACHED, ROLLED_BACK, ConstraintViolated, Db
from facilitator.store.settlements import Admission, Lease, OpenedSlot, Settlement, SignedSlot
from facilitator.units import Address, Gas, TxHash, Wei, chain_id_of

_RECORD_S: Final = 2.0
"""How much longer than its deadline a caller waits for a write-ahead that is under way."""
_PUT_OFF_S: Final = 5.0
"""How long a queued settlement that cannot be judged or claimed now lets others go first."""
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
    adopted: bool = False
    """The lease is held and everything left open by an earlier owner was taken up."""
    ready: bool = False
    """Adopted, and it may sign."""

    @property
    def address(self) -> Address:
        """The account that pays for gas."""
        return self.signer.address

    def lose(self) -> None:
        """Stop signing: the lease, or the knowledge of the next tx_nonce, is gone."""
        self.adopted = self.ready = False
        self.lease = None


class InDoubtFault(StoreFault):
    """It is unknown whether a settlement was recorded: if it was, it will be sent."""


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
    taken: bool = False
    """It is in a write-ahead: from here on nobody can say that nothing was recorded."""
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
        self._claim_due = asyncio.Event()
        self._claim_due.set()
        self._left_queued = False
        self._put_off: dict[UUID, float] = {}
        self._writing = asyncio.Lock()
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
        is full or the deadline comes first, StoreFault when nothing was recorded, InDoubtFault when that is unknown. A
        caller that goes away takes its settlement along if it is not recorded yet, else its answer slot is freed.
        """
        if self.stopping:
            raise _draining()
        if len(self._queue) >= self._settings.queue_max:
            raise OverloadFault("queue_full", "too many payments are waiting to be sent; ask again")
        waiting = _Waiting(admission, asyncio.get_running_loop().create_future(), entered_at=self._clock.monotonic())
        self._queue.append(waiting)
        QUEUE_DEPTH.labels(self._chain.network).set(len(self._queue))
        self._wake.set()
        try:
            if await self._done_by(waiting, deadline) or (waiting.taken and await self._done_by(waiting, deadline + _RECORD_S)):
                return waiting.done.result()
        except asyncio.CancelledError:
            waiting.abandoned = True
            if waiting.done.done() and not waiting.done.cancelled() and waiting.done.exception() is None:
                self._free(waiting.done.result())
            raise
        waiting.abandoned = True
        if waiting.taken:
            raise InDoubtFault("in_doubt", "the database has not said in time whether the payment was recorded")
        raise OverloadFault("not_sent", "no relayer was free in time; nothing was signed; ask again")

    async def _done_by(self, waiting: _Waiting, deadline: float) -> bool:
        """Wait for the write-ahead until the deadline."""
        await asyncio.wait([waiting.done], timeout=max(0.0, deadline - self._clock.monotonic()))
        return waiting.done.done()

    def stop(self) -> None:
        """No new slots; whoever waits for one is told so: nothing was signed for it."""
        self.stopping = True
        while self._queue:
            _fail(self._queue.popleft(), _draining())

    def claim_soon(self) -> None:
        """Look at the queue in Postgres: something was put there."""
        self._claim_due.set()

    def watches(self, settlement_id: UUID) -> bool:
        """Does this process find out about this settlement by itself?"""
        return self._watcher.watches(settlement_id)

    def _free(self, admitted: Admitted) -> None:
        self._background.start("free_answer", _free(self._db, self._clock, self._replica_id, admitted.settlement_id, admitted.epoch))

    # --- out ---

    async def run(self) -> None:
        """Dispatch what arrives."""
        while True:
            await _set_within(self._wake, self._settings.queue_poll_s)
            while self._queue and not self.stopping:
                async with self._writing:
                    if not await self._dispatch_group():
                        break

    async def run_queue(self) -> None:
        """Look at the queue in Postgres when told, when there is room again, and every `queue_poll_s`.

        A loop of its own, for it asks the chain: what arrives here does not wait for that.
        """
        while True:
            await _set_within(self._claim_due, self._settings.queue_poll_s)
            if not self.stopping:
                await self._dispatch_queued()

    async def wake_when_freed(self) -> None:
        """A loop of its own: room in a relayer is a reason to look again."""
        while True:
            await self._watcher.slot_freed.wait()
            self._watcher.slot_freed.clear()
            self._wake.set()
            if self._left_queued:
                self._claim_due.set()

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
        if account is not None and self._left_queued:
            room -= 1  # for those who wait in Postgres
        if account is not None and (room <= 0 or self._chain.head.newest is None):
            return False
        size = min(self._settings.group_max, room if account else self._settings.group_max)
        group: list[_Waiting] = []
        while self._queue and len(group) < size:
            waiting = self._queue.popleft()
            if not waiting.abandoned:
                waiting.taken = True
                group.append(waiting)
        QUEUE_DEPTH.labels(self._chain.network).set(len(self._queue))
        group.sort(key=lambda waiting: key_of(waiting.admission.authorization))  # replicas that wait for each other do so in one order
        try:
            if group:
                await self._record(account, group)
        except BaseException as error:
            for waiting in group:
                _fail(waiting, error if isinstance(error, Exception) else InDoubtFault("in_doubt", "stopped while recording"))
            raise
        return True

    async def _record(self, account: Account | None, group: Sequence[_Waiting]) -> None:
        """Sign and write ahead. A group that cannot be stored is taken one by one, so that only the guilty one hears it."""
        started = self._clock.monotonic()
        admissions = [waiting.admission for waiting in group]
        slots = await self._sign(account, [(admission.settlement_id, admission.authorization) for admission in admissions])
        try:
            opened = await settlements.write_ahead(
                self._db, account.lease if account else None, self._replica_id, self._chain.network, admissions, slots
            )
        except ConstraintViolated as violated:
            await self._record_singly(group, violated)
            return
        except StoreFault as fault:
            if fault.kind == ROLLED_BACK:
                await self._record_singly(group, fault)
                return
            if fault.kind != NOT_REACHED and account is not None:
                account.lose()  # it is unknown whether its tx_nonces were taken: adopt it afresh
            told = fault if fault.kind == NOT_REACHED else InDoubtFault("in_doubt", str(fault))
            for waiting in group:
                _fail(waiting, told)
                self._free(Admitted(settlement_id=waiting.admission.settlement_id, epoch=1, tx_hash=None))  # should it be on record
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

    async def _record_singly(self, group: Sequence[_Waiting], error: Exception) -> None:
        """Nothing was stored: one write-ahead each; the only one hears why. What finds no room goes back to the head of the queue."""
        if len(group) == 1:
            _fail(group[0], error)
            return
        for waiting in group:
            account, room = self._choose()
            if self.stopping:
                _fail(waiting, _draining())
            elif account is not None and room <= 0:
                waiting.taken = False
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
        self._left_queued = account is not None and room <= 0
        if account is None or room <= 0:
            return
        now = self._clock.monotonic()
        self._put_off = {settlement_id: until for settlement_id, until in self._put_off.items() if until > now}
        size = min(room, self._settings.group_max)
        queued = await settlements.list_queued(self._db, self._chain.network, size, list(self._put_off))
        verdicts = await asyncio.gather(*(self._still_payable(record) for record in queued))
        payable = [record for record, verdict in zip(queued, verdicts, strict=True) if verdict]
        if payable:
            async with self._writing:
                await self._claim(payable)
        if len(queued) >= size:
            self._claim_due.set()

    async def _claim(self, payable: Sequence[Settlement]) -> None:
        """Claim, sign, record, send. Settlements that cannot be stored together are taken one by one."""
        account, room = self._choose()
        if account is None or account.lease is None or room <= 0:
            self._left_queued = account is not None
            return
        payable = payable[:room]
        try:
            async with self._db.transaction() as session:
                claimed = await settlements.claim_queued(session, payable)
                chosen = [record for record in payable if record.settlement_id in claimed]
                if not chosen:
                    return
                slots = await self._sign(account, [(record.settlement_id, record.authorization) for record in chosen])
                opened = await settlements.dispatch_claimed(session, account.lease, slots)
                if not opened:
                    raise _LeaseLostError  # noqa: TRY301 (rolls the claim back)
        except _LeaseLostError:
            self._lease_lost(account)
        except ConstraintViolated as violated:
            await self._claim_singly(payable, violated)
        except StoreFault as fault:
            if fault.kind not in {NOT_REACHED, ROLLED_BACK}:
                account.lose()
            raise
        else:
            account.next_tx_nonce += len(slots)
            self._launch(account, slots, opened, {record.settlement_id: _item_of(record) for record in chosen})

    async def _claim_singly(self, payable: Sequence[Settlement], violated: ConstraintViolated) -> None:
        """Nothing was stored: each alone; the guilty one lets the others go first."""
        if len(payable) == 1:
            log.error("settlement.claim_refused", settlement_id=str(payable[0].settlement_id), constraint=violated.constraint)
            self._let_others_go_first(payable[0])
            return
        for record in payable:
            await self._claim([record])

    def _let_others_go_first(self, record: Settlement) -> None:
        self._put_off[record.settlement_id] = self._clock.monotonic() + _PUT_OFF_S

    async def _still_payable(self, record: Settlement) -> bool:
        """Ask the chain about a settlement that waited; what cannot be paid any more ends here, by chain facts.

        One that the chain does not tell about keeps nobody else from being paid.
        """
        scheme = self._registry.find(record.scheme)
        assert scheme is not None
        judged = Judged(authorization=record.authorization, scheme=scheme, chain=self._chain)
        item = _item_of(record)
        try:
            refusal, _ = await self._verifier.judge_chain(judged, self._chain.evm.deadline_in(self._settings.verify_deadline_s))
            if refusal is None:
                return True
            ruling = await self._watcher.rule(item, None)
        except ChainFault as fault:
            log.warning("settlement.undecided", settlement_id=str(record.settlement_id), kind=fault.kind, fault=str(fault))
            ruling = NoRuling.UNTOLD
        if not isinstance(ruling, Ruling):
            self._let_others_go_first(record)
            return False
        outcome = self._watcher.outcome(item, State.QUEUED, ruling, record.moves)
        await self._watcher.commit([outcome], [], [], {record.settlement_id: (item, ruling, self._clock.monotonic())})
        return False


def _item_of(payment: Admission | Settlement) -> Item:
    return Item(settlement_id=payment.settlement_id, authorization=payment.authorization, admitted_block=payment.admitted_block)


async def _set_within(event: asyncio.Event, timeout_s: float) -> None:
    """Wait for the event, that long at most, and clear it."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass
    event.clear()


class _LeaseLostError(Exception):
    """Rolls the claim back."""


def _draining() -> OverloadFault:
    return OverloadFault("draining", "this replica is stopping and has signed nothing for this payment; ask again")


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
