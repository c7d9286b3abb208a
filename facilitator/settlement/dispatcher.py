"""Gets admitted payments onto the chain: choose a relayer, share transactions under load, sign, record, then send.

Nothing is sent that the write-ahead did not return. One write-ahead per network is in flight at a time; whatever
arrived meanwhile forms the next group, so that commits are shared under load and immediate when idle.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final
from uuid import UUID

import structlog

from facilitator import tracing
from facilitator.clock import Clock
from facilitator.domain.batching import Batch, without
from facilitator.domain.identity import key_of
from facilitator.domain.screening import encode_screening
from facilitator.domain.wallets import Wallet
from facilitator.errors import ChainFault, OverloadFault, ScreeningFault, SignerFault, StoreFault
from facilitator.metrics import STAGE_SECONDS, series
from facilitator.protocol.messages import Authorization
from facilitator.protocol.reasons import PASSING, Refusal
from facilitator.schemes.scheme import Registry
from facilitator.settlement.claims import Claims
from facilitator.settlement.network import ServedNetwork
from facilitator.settlement.pool import RelayerPool
from facilitator.settlement.queue import Admitted, Queue, Waiting, put_off
from facilitator.settlement.relayer import Account
from facilitator.settlement.resolver import Resolver
from facilitator.settlement.settings import Settings
from facilitator.settlement.slots import item_of
from facilitator.settlement.tasks import Background, beat, set_within
from facilitator.settlement.verification import Judged, Verifier
from facilitator.settlement.watcher import Watcher
from facilitator.store import settlements
from facilitator.store.db import NOT_REACHED, ROLLED_BACK, ConstraintViolated, Db
from facilitator.store.settlements import Admission, SignedSlot
from facilitator.units import Address

_RECORD_S: Final = 2.0
"""How much longer than its deadline a caller waits for a write-ahead that is under way."""
_TURN_S: Final = 0.1
"""How often a payment looks whether its wallet's transaction is still in flight."""
_STALE_S: Final = 2.0
"""A payment that has waited longer is simulated once more before it is signed."""
log = structlog.get_logger(__name__)


class RefusedLateError(Exception):
    """Nothing was recorded: the chain would refuse the payment by now."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class InDoubtFault(StoreFault):
    """It is unknown whether a settlement was recorded: if it was, it will be sent."""


class Dispatcher:
    """One network's way out."""

    def __init__(
        self,
        chain: ServedNetwork,
        registry: Registry,
        verifier: Verifier,
        resolver: Resolver,
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
        self._queue = Queue(chain.network, clock, settings)
        self._wake = asyncio.Event()
        self._wallets_waiting: Counter[Address] = Counter()
        self._pricing = watcher.pricing
        self.pool = RelayerPool(chain, registry, watcher, db, clock, settings, background)
        self.claims = Claims(chain, registry, verifier, resolver, watcher, self.pool, self._queue, db, clock, settings)

    # --- in ---

    @contextmanager
    def place(self, authorization: Authorization, deadline: float) -> Iterator[None]:
        """A place for a payment that is about to be judged and admitted: load that would not be served in time ends here.

        Raises OverloadFault.
        """
        if self.pool.stopping:
            raise _draining()
        if self._watcher.halted():
            raise OverloadFault("chain_halted", "no block came for a while although transactions wait; ask again")
        self._refuse_when_dear()
        with self._queue.place(authorization.asset, self._life_s(authorization), deadline):
            yield

    def full(self, coming: int) -> OverloadFault | None:
        """What `place` would raise by the queue alone for one more payment, behind `coming` others on their way; None: let it come."""
        if self.pool.stopping or self._watcher.halted() or self._pricing.too_dear():
            return None  # whoever asks for its place hears which
        return self._queue.full(coming)

    async def admit(self, admission: Admission, deadline: float) -> Admitted:
        """Put a settlement that has its `place` on record, signed if a relayer is ours, else queued for whoever owns one.

        Raises ConstraintViolated when the authorization or the idempotency key is taken, OverloadFault when the deadline
        comes first, StoreFault when nothing was recorded, InDoubtFault when that is unknown. A caller that goes away
        takes its settlement along if it is not recorded yet, else its answer slot is freed.
        """
        if self.pool.stopping:
            raise _draining()
        payer = admission.authorization.payer
        if admission.wallet is not None and self._wallets_waiting[payer] >= self._settings.wallet_waiting_max:
            raise OverloadFault("wallet_busy", "other payments of this smart wallet wait for their turn; ask again")
        waiting = self._queue.enter(admission, self._life_s(admission.authorization))
        self._wake.set()
        if admission.wallet is not None:
            self._wallets_waiting[payer] += 1
        try:
            if await self._done_by(waiting, deadline) or (waiting.taken and await self._done_by(waiting, deadline + _RECORD_S)):
                return waiting.done.result()
        except asyncio.CancelledError:
            waiting.abandoned = True
            if waiting.done.done() and not waiting.done.cancelled() and waiting.done.exception() is None:
                self._free(waiting.done.result())
            raise
        finally:
            self._queue.leave(waiting)
            if admission.wallet is not None:
                self._wallets_waiting -= Counter({payer: 1})  # a count of none is forgotten
        waiting.abandoned = True
        if waiting.taken:
            raise InDoubtFault("in_doubt", "the database has not said in time whether the payment was recorded")
        raise OverloadFault("not_sent", "no relayer was free in time; nothing was signed; ask again")

    def screened(self, admission: Admission) -> Admission:
        """The same with what it was screened against: the last look before it is signed, or queued for whoever signs.

        Raises RefusedLateError and ScreeningFault.
        """
        if self._chain.screen is None:
            return admission
        found = self._chain.screen.judge(admission.authorization, accept_unscreened=admission.accept_unscreened)
        if isinstance(found, Refusal):
            raise RefusedLateError(found)
        return replace(admission, screening=encode_screening(found))

    def _refuse_when_dear(self) -> None:
        """Take no new work while a payment costs more than `payment_cost_cap_wei`. Raises OverloadFault."""
        if self._pricing.too_dear():
            raise OverloadFault("gas_price_too_high", "a payment would cost more than this facilitator pays; ask again later")

    def need_wei(self, wallet: Wallet | None = None) -> int:
        """The most that a fresh payment can cost that goes alone, a smart wallet's perhaps."""
        return self._pricing.need_wei(wallet)

    def refuse_dear_wallet(self, wallet: Wallet) -> None:
        """A smart wallet's payment may cost more than others. Raises OverloadFault."""
        if self._pricing.wallet_too_dear(wallet):
            raise OverloadFault("gas_price_too_high", "this wallet's payment would cost more than this facilitator pays; ask again later")

    def _life_s(self, authorization: Authorization) -> float:
        """Seconds until its validBefore, by chain time."""
        head = self._chain.head.newest
        return authorization.valid_before - head.timestamp if head is not None else float("inf")

    async def _done_by(self, waiting: Waiting, deadline: float) -> bool:
        """Wait for the write-ahead until the deadline."""
        await asyncio.wait([waiting.done], timeout=max(0.0, deadline - self._clock.monotonic()))
        return waiting.done.done()

    def stop(self) -> None:
        """No new slots; whoever waits for one is told so: nothing was signed for it."""
        self.pool.stopping = True
        for waiting in self._queue.clear():
            _fail(waiting, _draining())

    def watches(self, settlement_id: UUID) -> bool:
        """Does this process find out about this settlement by itself?"""
        return self._watcher.watches(settlement_id)

    def _free(self, admitted: Admitted) -> None:
        self._background.start("free_answer", _free(self._db, self._clock, self._replica_id, admitted.settlement_id, admitted.epoch))

    # --- out ---

    async def run(self) -> None:
        """Dispatch what arrives."""
        while True:
            beat("dispatcher", self._chain.network)
            await set_within(self._wake, self._settings.queue_poll_s)
            if self._queue and self._settings.linger_ms:
                await self._clock.sleep(self._settings.linger_ms / 1000)
            while self._queue and not self.pool.stopping:
                async with self.pool.writing:
                    if not await self._dispatch_group():
                        break

    async def wake_when_freed(self) -> None:
        """A loop of its own: room in a relayer is a reason to look again."""
        while True:
            await self._watcher.slot_freed.wait()
            self._watcher.slot_freed.clear()
            self._wake.set()
            if self.claims.waiting or self._watcher.requeued.is_set():
                self._watcher.requeued.clear()
                self.claims.soon()

    async def _dispatch_group(self) -> bool:
        """Record and send one group. False: no room, or nothing to do."""
        account, room = self.pool.choose(self._queue.wallets() if self._wallets_waiting else ())
        if account is not None and self.claims.waiting:
            room -= 1  # for those who wait in Postgres
        if account is not None and room <= 0:
            return False
        size = min(self._settings.group_max, room * self.pool.limits().items_max) if account else self._settings.group_max
        group = self._queue.take(size)
        try:
            if account is not None and group:
                return await self._dispatch_planned(account, room, group)
            if group:
                await self._record(None, group, [])
        except BaseException as error:
            for waiting in group:
                _fail(waiting, error if isinstance(error, Exception) else InDoubtFault("in_doubt", "stopped while recording"))
            raise
        return True

    async def _dispatch_planned(self, account: Account, room: int, group: Sequence[Waiting]) -> bool:
        """Plan, simulate what is shared, record. What found no room goes back to its place in the queue."""
        stale_at = self._clock.monotonic() - _STALE_S
        taken = len(group)
        group = self._wallets_in_turn(group, stale_at)
        by_id = {waiting.admission.settlement_id: waiting for waiting in group}
        authorizations = {identity: waiting.admission.authorization for identity, waiting in by_id.items()}
        payments = [(identity, authorizations[identity], waiting.admission.alone) for identity, waiting in by_id.items()]
        batches: Sequence[Batch[UUID]] = self.pool.plan(payments, _wallets_of(group), account, room)
        planned = {identity for batch in batches for identity in batch.ids}
        self._queue.put_back([waiting for identity, waiting in by_id.items() if identity not in planned])
        stale = {identity for identity in planned if by_id[identity].judged_at < stale_at}
        try:
            batches, failing = await self.pool.payable_together(batches, authorizations, stale)
        except ChainFault as fault:
            for identity in planned:
                _fail(by_id[identity], fault)
            return True
        for identity in failing:
            self._background.start("judge_alone", self._judge_alone(by_id[identity]))
        if batches:
            await self._record(account, [by_id[identity] for batch in batches for identity in batch.ids], batches)
        return bool(planned) or len(group) < taken

    def _wallets_in_turn(self, group: Sequence[Waiting], stale_at: float) -> list[Waiting]:
        """Those that may go now: of each smart wallet one payment at a time, and none that was judged a while ago.

        What the others' code says may have changed; they are judged afresh, each in a call of its own.
        """
        turn: list[Waiting] = []
        paying: set[Address] = set()
        for waiting in group:
            payer = waiting.admission.authorization.payer
            if waiting.admission.wallet is None:
                turn.append(waiting)
            elif payer in paying or self.pool.held_up(payer, waiting.admission.wallet) or waiting.judged_at < stale_at:
                self._background.start("judge_alone", self._judge_alone(waiting))
            else:
                paying.add(payer)
                turn.append(waiting)
        return turn

    async def _judge_alone(self, waiting: Waiting) -> None:
        """It would fail by now, or among others, or its wallet is held up: judge it afresh, and let it go alone if it would pay.

        While what refuses it ends by itself, or its wallet is held up, it waits, as long as its caller does.
        """
        self._queue.set_aside(waiting)
        authorization = waiting.admission.authorization
        scheme = self._registry.find(authorization.scheme)
        assert scheme is not None
        judged = Judged(authorization=authorization, scheme=scheme, chain=self._chain, tenant_id=waiting.admission.tenant_id)
        backoff = put_off()
        while True:
            while waiting.admission.wallet is not None and self.pool.held_up(authorization.payer, waiting.admission.wallet):
                await self._clock.sleep(_TURN_S)
                if waiting.abandoned or waiting.done.done():
                    return
            try:
                deadline = self._chain.evm.deadline_in(self._settings.verify_deadline_s)
                refusal, _, wallet = await self._verifier.judge_chain(
                    judged, deadline, accept_unscreened=waiting.admission.accept_unscreened
                )
            except (ChainFault, ScreeningFault) as fault:
                _fail(waiting, fault)
                return
            if waiting.abandoned or waiting.done.done():
                return
            if refusal is None or refusal.reason not in PASSING:
                break
            await self._clock.sleep(backoff.next_s())
        if refusal is not None:
            _fail(waiting, RefusedLateError(refusal))
        elif self.pool.stopping:
            _fail(waiting, _draining())
        elif waiting.admission.alone and wallet is None:
            _fail(waiting, OverloadFault("not_sent", "the simulations disagree; ask again"))
        else:
            waiting.admission = replace(waiting.admission, alone=True, wallet=wallet)
            self._queue.come_back(waiting)
            self._wake.set()

    async def _record(self, account: Account | None, group: Sequence[Waiting], batches: Sequence[Batch[UUID]]) -> None:
        """Sign and write ahead. A group that cannot be stored is taken one by one, so that only the guilty one hears it."""
        traceparents = [waiting.admission.traceparent for waiting in group]
        with tracing.shared("write-ahead", traceparents, payments=len(group), transactions=len(batches)):
            await self._write_ahead(account, group, batches)

    async def _write_ahead(self, account: Account | None, group: Sequence[Waiting], batches: Sequence[Batch[UUID]]) -> None:
        started = self._clock.monotonic()
        group = [waiting for waiting in group if self._clears(waiting)]
        batches = without(
            batches, {identity for batch in batches for identity in batch.ids} - {each.admission.settlement_id for each in group}
        )
        if not group:
            return
        group = sorted(group, key=lambda waiting: key_of(waiting.admission.authorization))  # replicas that wait for each other: one order
        admissions = [waiting.admission for waiting in group]
        authorizations = {admission.settlement_id: admission.authorization for admission in admissions}
        try:
            with tracing.span("sign"):
                slots = await self.pool.sign(account, batches, authorizations, _wallets_of(group)) if account else []
        except SignerFault as fault:
            self._not_signed(group, fault)
            return
        STAGE_SECONDS.labels(self._chain.network, "sign").observe(self._clock.monotonic() - started)
        try:
            with tracing.span("commit"):
                opened = await settlements.write_ahead(
                    self._db,
                    account.lease if account else None,
                    self._replica_id,
                    self._chain.network,
                    admissions,
                    slots,
                    self._settings.gas_rate_max_age_s,
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
        STAGE_SECONDS.labels(self._chain.network, "record").observe(self._clock.monotonic() - started)
        if account is not None and opened:
            account.next_tx_nonce += len(slots)
            self.pool.launch(account, slots, opened, {admission.settlement_id: item_of(admission) for admission in admissions})
        else:
            if account is not None:
                self.pool.lease_lost(account)
            self._background.start("notify_queue", settlements.notify_queue(self._db, self._chain.network))
        self._tell(group, slots if opened else [])

    def _clears(self, waiting: Waiting) -> bool:
        """Screen it for the last time; who is refused hears why."""
        try:
            waiting.admission = self.screened(waiting.admission)
        except (RefusedLateError, ScreeningFault) as told:
            _fail(waiting, told)
            return False
        return True

    def _not_signed(self, group: Sequence[Waiting], fault: SignerFault) -> None:
        """Another relayer signs them, if there is one; else they hear why."""
        if self.pool.choose()[1] > 0 and not self.pool.stopping:  # then nobody would come for them
            self._queue.put_back(group)
            return
        for waiting in group:
            _fail(waiting, fault)

    async def _record_singly(self, group: Sequence[Waiting], error: Exception) -> None:
        """Nothing was stored: one write-ahead each; the only one hears why. What finds no room goes back to its place in the queue."""
        if len(group) == 1:
            _fail(group[0], error)
            return
        for waiting in group:
            identity, wallets = waiting.admission.settlement_id, _wallets_of([waiting])
            account, room = self.pool.choose(wallets.values())
            batches: Sequence[Batch[UUID]] = [Batch((identity,))]
            if account is not None and room > 0:
                batches = self.pool.plan([(identity, waiting.admission.authorization, True)], wallets, account, room)
            if self.pool.stopping:
                _fail(waiting, _draining())
            elif not batches or (account is not None and room <= 0):
                self._queue.put_back([waiting])
            else:
                await self._record(account, [waiting], batches)

    def _tell(self, group: Sequence[Waiting], slots: Sequence[SignedSlot]) -> None:
        """Tell the callers that they are on record; a caller who is gone gives its answer slot back."""
        self._queue.left(len(group))
        hash_of = {settlement_id: slot.tx_hash for slot in slots for settlement_id in slot.settlement_ids}
        for waiting in group:
            settlement_id = waiting.admission.settlement_id
            admitted = Admitted(settlement_id=settlement_id, epoch=1, tx_hash=hash_of.get(settlement_id))
            series(STAGE_SECONDS, self._chain.network, "queue").observe(self._clock.monotonic() - waiting.entered_at)
            if waiting.abandoned:
                self._free(admitted)
            elif not waiting.done.done():
                waiting.done.set_result(admitted)


def _wallets_of(group: Sequence[Waiting]) -> dict[UUID, Wallet]:
    """The smart wallets that pay among these, by settlement."""
    return {waiting.admission.settlement_id: waiting.admission.wallet for waiting in group if waiting.admission.wallet}


def _draining() -> OverloadFault:
    return OverloadFault("draining", "this replica is stopping and has signed nothing for this payment; ask again")


def _fail(waiting: Waiting, error: Exception) -> None:
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
