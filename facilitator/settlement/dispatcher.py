"""Gets admitted payments onto the chain: choose a relayer, share transactions under load, sign, record, then send.

Nothing is sent that the write-ahead did not return. One write-ahead per network is in flight at a time; whatever
arrived meanwhile forms the next group, so that commits are shared under load and immediate when idle.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Final
from uuid import UUID

import structlog

from facilitator import tracing
from facilitator.chain.signer import Signer
from facilitator.clock import Clock
from facilitator.domain.backoff import Backoff
from facilitator.domain.batching import Batch, BurnGuard, Candidate, Limits, plan, without
from facilitator.domain.fees import Fees
from facilitator.domain.identity import key_of
from facilitator.domain.screening import encode_screening
from facilitator.domain.states import State
from facilitator.domain.wallets import Wallet
from facilitator.errors import ChainFault, OverloadFault, ScreeningFault, SignerFault, StoreFault
from facilitator.metrics import STAGE_SECONDS, series
from facilitator.protocol.messages import Authorization
from facilitator.protocol.reasons import PASSING, Refusal
from facilitator.schemes.scheme import Registry
from facilitator.settlement.network import ServedNetwork
from facilitator.settlement.queue import Admitted, Queue, Waiting
from facilitator.settlement.relayer import Account, Composer
from facilitator.settlement.resolver import Resolver
from facilitator.settlement.screening import SCREENED_OUT
from facilitator.settlement.settings import Settings
from facilitator.settlement.slots import Attempt, Item, NoRuling, OpenSlot, Ruling, item_of
from facilitator.settlement.tasks import Background, beat, set_within
from facilitator.settlement.verification import Judged, Verdict, Verifier
from facilitator.settlement.watcher import Watcher
from facilitator.store import relayers, settlements
from facilitator.store.db import NOT_REACHED, ROLLED_BACK, ConstraintViolated, Db
from facilitator.store.restraints import GAS_BUDGET
from facilitator.store.settlements import Admission, Answer, Lease, OpenedSlot, Settlement, SignedSlot
from facilitator.units import Address, Gas, Wei

_RECORD_S: Final = 2.0
"""How much longer than its deadline a caller waits for a write-ahead that is under way."""
_PUT_OFF_S: Final = 0.5
"""How long a settlement that cannot be judged, claimed or paid now lets others go first; doubles each time."""
_PUT_OFF_MAX_S: Final = 5.0
"""Longest such time."""
_PUT_OFF_KEPT_S: Final = 60.0
"""How long it is remembered afterwards that a settlement was put off."""
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
        self._resolver = resolver
        self._watcher = watcher
        self._db = db
        self._clock = clock
        self._settings = settings
        self._replica_id = replica_id
        self._background = background
        self._queue = Queue(chain.network, clock, settings)
        self._wake = asyncio.Event()
        self._claim_due = asyncio.Event()
        self._claim_due.set()
        self._left_queued = False
        self._wallets_waiting: Counter[Address] = Counter()
        self._put_off: dict[UUID, tuple[float, Backoff]] = {}
        self._writing = asyncio.Lock()
        self._pricing = watcher.pricing
        self._composer = Composer(chain, registry, watcher.pricing)
        self._guard = BurnGuard(settings.batch_max)
        self.accounts: tuple[Account, ...] = tuple(map(self._account, chain.signers))
        self.stopping = False
        """Set on shutdown: no new slots."""
        watcher.outbid, watcher.batch_burned = self.outbid, self._burned
        watcher.send_answered = self._send_answered

    # --- in ---

    @contextmanager
    def place(self, authorization: Authorization, deadline: float) -> Iterator[None]:
        """A place for a payment that is about to be judged and admitted: load that would not be served in time ends here.

        Raises OverloadFault.
        """
        if self.stopping:
            raise _draining()
        if self._watcher.halted():
            raise OverloadFault("chain_halted", "no block came for a while although transactions wait; ask again")
        self._refuse_when_dear()
        with self._queue.place(authorization.asset, self._life_s(authorization), deadline):
            yield

    async def admit(self, admission: Admission, deadline: float) -> Admitted:
        """Put a settlement that has its `place` on record, signed if a relayer is ours, else queued for whoever owns one.

        Raises ConstraintViolated when the authorization or the idempotency key is taken, OverloadFault when the deadline
        comes first, StoreFault when nothing was recorded, InDoubtFault when that is unknown. A caller that goes away
        takes its settlement along if it is not recorded yet, else its answer slot is freed.
        """
        if self.stopping:
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
        self.stopping = True
        for waiting in self._queue.clear():
            _fail(waiting, _draining())

    def claim_soon(self) -> None:
        """Look at the queue in Postgres: something was put there."""
        self._claim_due.set()

    def take_in(self, signer: Signer) -> None:
        """One more relayer, whose lease is still to be had."""
        self._chain.signers = (*self._chain.signers, signer)
        self.accounts = (*self.accounts, self._account(signer))

    def _account(self, signer: Signer) -> Account:
        return Account(signer, backoff=Backoff(self._settings.relayer_rest_s, self._settings.relayer_rest_max_s))

    def let_go(self, relayer: Address) -> None:
        """Forget a relayer's key. Its lease was given back."""
        self._chain.signers = tuple(signer for signer in self._chain.signers if signer.address != relayer)
        self.accounts = tuple(account for account in self.accounts if account.address != relayer)

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
            while self._queue and not self.stopping:
                async with self._writing:
                    if not await self._dispatch_group():
                        break

    async def run_queue(self) -> None:
        """Look at the queue in Postgres when told, when there is room again, and every `queue_poll_s`.

        A loop of its own, for it asks the chain: what arrives here does not wait for that.
        """
        while True:
            beat("queue", self._chain.network)
            await set_within(self._claim_due, self._settings.queue_poll_s)
            if not self.stopping:
                await self._dispatch_queued()

    async def wake_when_freed(self) -> None:
        """A loop of its own: room in a relayer is a reason to look again."""
        while True:
            await self._watcher.slot_freed.wait()
            self._watcher.slot_freed.clear()
            self._wake.set()
            if self._left_queued or self._watcher.requeued.is_set():
                self._watcher.requeued.clear()
                self._claim_due.set()

    def _room(self, account: Account) -> int:
        """Slots this account may open now; 0 when its lease is not to be trusted any more, or its money would not do.

        Up to `slots_soft` the builder takes them in the next block; from there to `slots_max` is room for a burst.
        """
        now = self._clock.monotonic()
        if not account.ready or now < account.rest_until or now - account.renewed_at > self._settings.lease_trust_s:
            return 0
        if self._chain.head.newest is None or self._spare_wei(account) < self._most_wei(1):
            return 0
        taken = self._watcher.open_slots(account.address)
        return (self._settings.slots_soft if taken < self._settings.slots_soft else self._settings.slots_max) - taken

    def _most_wei(self, items: int) -> int:
        """The most that a fresh transaction of so many payments can cost."""
        return self._pricing.gas.limit(items) * self._pricing.quote().max_fee_wei + self._pricing.surcharge_wei(items)

    def _spare_wei(self, account: Account) -> int:
        """Gas money that no open slot may need, above the reserve."""
        if account.balance_wei is None:
            return 0
        return account.balance_wei - self._watcher.reserved_wei(account.address) - self._settings.relayer_reserve_wei

    def _choose(self) -> tuple[Account | None, int]:
        """The account with the most room. (None, 0) when no relayer is ours: then settlements are queued for others."""
        ready = [account for account in self.accounts if account.ready]
        if not ready:
            return None, 0
        rooms = [(self._watcher.open_slots(account.address) < self._settings.slots_soft, self._room(account)) for account in ready]
        best = max(range(len(ready)), key=lambda index: (rooms[index][1] > 0, *rooms[index]))
        return ready[best], rooms[best][1]

    def _limits(self) -> Limits:
        """What bounds a batch now."""
        together = self._settings.batching == "adaptive" and self._chain.evm.multicall
        batch_max = self._guard.limit(self._clock.monotonic()) if together else 1
        return Limits(
            batch_min=self._settings.batch_min,
            batch_max=batch_max,
            life_min_s=self._settings.batch_life_min_s,
            calldata_bytes_max=self._settings.batch_calldata_bytes_max,
            gas=self._pricing.gas,
        )

    def _plan(
        self, payments: Sequence[tuple[UUID, Authorization, bool]], wallets: Mapping[UUID, Wallet], account: Account, room: int
    ) -> tuple[Batch[UUID], ...]:
        """Cut payments into transactions that the account has room and money for."""
        head = self._chain.head.newest
        assert head is not None
        spare_wei, limits = self._spare_wei(account), self._limits()
        cost_wei = {identity: self._pricing.wallet_cost_wei(wallet) for identity, wallet in wallets.items()}
        candidates = [
            Candidate(id=identity, payer=authorization.payer, alone=alone, life_s=authorization.valid_before - head.timestamp)
            for identity, authorization, alone in payments
            if cost_wei.get(identity, 0) <= spare_wei  # one that there is no money for stands in nobody's way
        ]

        def most_wei(batch: Batch[UUID]) -> int:
            return cost_wei.get(batch.ids[0]) or self._most_wei(len(batch.ids))

        while (batches := plan(candidates, room, limits)) and sum(map(most_wei, batches)) > spare_wei:
            candidates = candidates[: len(candidates) // 2]  # fewer, down to the one that there is money for, or none is ever sent
        return batches

    async def _payable_together(
        self, batches: Sequence[Batch[UUID]], authorizations: Mapping[UUID, Authorization], stale: AbstractSet[UUID] = frozenset()
    ) -> tuple[list[Batch[UUID]], list[UUID]]:
        """Simulate what shares a transaction, all in one call and in order, so that a payer's running balance counts.

        So it goes with what is `stale`, for it was judged a while ago. Returns the batches without the payments that would
        fail, and those payments. Raises ChainFault.
        """
        shared = [identity for batch in batches for identity in batch.ids if batch.kind == "batch" or identity in stale]
        if not shared:
            return list(batches), []
        calls = [self._composer.payment(authorizations[identity]) for identity in shared]
        facts = await self._chain.evm.answer(calls, self._chain.evm.deadline_in(self._settings.verify_deadline_s))
        self._chain.head.observe(facts.head)
        failing = {identity for identity, reply in zip(shared, facts.replies, strict=True) if not reply.ok}
        return without(batches, failing), [identity for identity in shared if identity in failing]

    async def _dispatch_group(self) -> bool:
        """Record and send one group. False: no room, or nothing to do."""
        account, room = self._choose()
        if account is not None and self._left_queued:
            room -= 1  # for those who wait in Postgres
        if account is not None and room <= 0:
            return False
        size = min(self._settings.group_max, room * self._limits().items_max) if account else self._settings.group_max
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
        batches: Sequence[Batch[UUID]] = self._plan(payments, _wallets_of(group), account, room)
        planned = {identity for batch in batches for identity in batch.ids}
        self._queue.put_back([waiting for identity, waiting in by_id.items() if identity not in planned])
        stale = {identity for identity in planned if by_id[identity].judged_at < stale_at}
        try:
            batches, failing = await self._payable_together(batches, authorizations, stale)
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
            elif payer in paying or self._held_up(payer, waiting.admission.wallet) or waiting.judged_at < stale_at:
                self._background.start("judge_alone", self._judge_alone(waiting))
            else:
                paying.add(payer)
                turn.append(waiting)
        return turn

    def _held_up(self, payer: Address, wallet: Wallet) -> bool:
        """Is a transaction of this smart wallet in flight, or has no relayer the money for one? It takes nobody's place meanwhile."""
        ready = [account for account in self.accounts if account.ready]
        cost_wei = self._pricing.wallet_cost_wei(wallet)
        poor = bool(ready) and all(self._spare_wei(account) < cost_wei for account in ready)
        return poor or self._watcher.pays_from_wallet(payer)

    async def _judge_alone(self, waiting: Waiting) -> None:
        """It would fail by now, or among others, or its wallet is held up: judge it afresh, and let it go alone if it would pay.

        While what refuses it ends by itself, or its wallet is held up, it waits, as long as its caller does.
        """
        self._queue.set_aside(waiting)
        authorization = waiting.admission.authorization
        scheme = self._registry.find(authorization.scheme)
        assert scheme is not None
        judged = Judged(authorization=authorization, scheme=scheme, chain=self._chain)
        backoff = Backoff(_PUT_OFF_S, _PUT_OFF_MAX_S)
        while True:
            while waiting.admission.wallet is not None and self._held_up(authorization.payer, waiting.admission.wallet):
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
        elif self.stopping:
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
                slots = await self._sign(account, batches, authorizations, _wallets_of(group)) if account else []
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
            self._launch(account, slots, opened, {admission.settlement_id: item_of(admission) for admission in admissions})
        else:
            if account is not None:
                self._lease_lost(account)
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

    async def _sign(
        self,
        account: Account,
        batches: Sequence[Batch[UUID]],
        authorizations: Mapping[UUID, Authorization],
        wallets: Mapping[UUID, Wallet],
    ) -> list[SignedSlot]:
        """Sign; a relayer whose key service does not rests. Raises SignerFault: nothing was signed that anybody could send."""
        try:
            return await self._composer.sign(account, batches, authorizations, wallets)
        except SignerFault as fault:
            log.warning("relayer.not_signed", relayer=account.address, kind=fault.kind, fault=str(fault))
            self._send_answered(account.address, welcome=False)
            raise

    def _not_signed(self, group: Sequence[Waiting], fault: SignerFault) -> None:
        """Another relayer signs them, if there is one; else they hear why."""
        if self._choose()[1] > 0 and not self.stopping:  # then nobody would come for them
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
            account, room = self._choose()
            if self.stopping:
                _fail(waiting, _draining())
            elif account is not None and room <= 0:
                self._queue.put_back([waiting])
            else:
                await self._record(account, [waiting], [Batch((waiting.admission.settlement_id,))])

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

    def _lease_lost(self, account: Account) -> None:
        log.warning("relayer.lease_lost", relayer=account.address, network=self._chain.network)
        account.lose()

    def _launch(self, account: Account, slots: Sequence[SignedSlot], opened: Sequence[OpenedSlot], items: dict[UUID, Item]) -> None:
        """What is on record may be watched and sent."""
        id_of = {slot.tx_nonce: slot.slot_id for slot in opened}
        for slot in slots:
            watched = OpenSlot(
                slot_id=id_of[slot.tx_nonce],
                relayer=account.address,
                tx_nonce=slot.tx_nonce,
                attempts=[Attempt(tx_hash=slot.tx_hash, raw=slot.raw, fees=Fees(Wei(slot.max_fee_wei), Wei(slot.max_priority_fee_wei)))],
                kind=slot.kind,
                gas=Gas(slot.gas),
                items=tuple(items[settlement_id] for settlement_id in slot.settlement_ids),
                opened_at=self._clock.monotonic(),
                wallet_code=slot.wallet_code,
            )
            self._watcher.add(watched)
            self._background.start("send", self._watcher.send(watched, fresh=True))

    def _send_answered(self, relayer: Address, *, welcome: bool) -> None:
        """How the network took a transaction: a relayer that is refused, or does not sign, rests, longer each time; the others go on."""
        account = next((account for account in self.accounts if account.address == relayer), None)
        now = self._clock.monotonic()
        if account is None or (not welcome and now < account.rest_until):
            return
        if welcome:
            account.backoff.reset()
            return
        rest_s = account.backoff.next_s()
        account.rest_until = now + rest_s
        log.warning("relayer.resting", relayer=relayer, network=self._chain.network, rest_s=round(rest_s, 2))
        asyncio.get_running_loop().call_later(rest_s, self._watcher.slot_freed.set)

    # --- what is not mined ---

    async def outbid(self, slot: OpenSlot, fees: Fees, *, noop: bool) -> bool:
        """Record the slot's payload at higher fees, or a no-op in its place, then send it. Fenced like every signature.

        What carries somebody who is on a sanctions list by now is not signed for again: a no-op takes its place.
        False when a gas budget that it would be held of is overdrawn already: then nothing was recorded.
        """
        noop = noop or self._watcher.stopped(slot)
        account = next((account for account in self.accounts if account.address == slot.relayer), None)
        lease = account.lease if account is not None else None
        if account is None or lease is None or self._clock.monotonic() - account.renewed_at > self._settings.lease_trust_s:
            return True
        signed, gas, most_wei = await self._composer.sign_again(account, slot, fees, noop=noop)
        number, purpose = len(slot.attempts), "noop" if noop else "bump"
        attempt = Attempt(tx_hash=signed.tx_hash, raw=signed.raw, fees=fees, purpose=purpose)
        try:
            found = await relayers.record_attempt(
                self._db, lease, slot.slot_id, number, purpose, attempt.tx_hash, attempt.raw, gas, fees, most_wei
            )
        except StoreFault as fault:
            if fault.kind not in {NOT_REACHED, ROLLED_BACK} and account.lease is lease:
                account.lose()  # it is unknown whether it is on record, and with it the slot's next bid: taken up afresh
            raise
        if not found.recorded:
            return not found.unaffordable
        slot.attempts.append(attempt)
        log.warning("transaction.outbid", tx_hash=attempt.tx_hash, slot_id=slot.slot_id, purpose=purpose, max_fee_wei=fees.max_fee_wei)
        self._background.start("send", self._watcher.send(slot, fresh=True))
        return True

    def _burned(self) -> None:
        """A batch ate its gas: the next ones are smaller, should it happen again soon."""
        self._guard.burned(self._clock.monotonic())

    # --- the queue in Postgres ---

    async def _dispatch_queued(self) -> None:
        """Take what others queued: judge it afresh, then claim, sign and record in one transaction, then send."""
        now = self._clock.monotonic()
        self._put_off = {
            identity: (until, backoff) for identity, (until, backoff) in self._put_off.items() if until + _PUT_OFF_KEPT_S > now
        }
        put_off = [identity for identity, (until, _) in self._put_off.items() if until > now]
        self._queue.stored(await settlements.queue_ages(self._db, self._chain.network, list(self._put_off)))
        account, room = self._choose()
        self._left_queued = account is not None and room <= 0
        if account is None or room <= 0:
            return
        size = min(room * self._limits().items_max, self._settings.group_max)
        queued = await settlements.list_queued(self._db, self._chain.network, size, put_off, self._settings.queue_wait_max_s)
        verdicts = await asyncio.gather(*(self._still_payable(record) for record in queued))
        payable = [record for record, verdict in zip(queued, verdicts, strict=True) if verdict]
        wallets = {
            record.settlement_id: verdict.wallet for record, verdict in zip(queued, verdicts, strict=True) if verdict and verdict.wallet
        }
        if payable:
            async with self._writing:
                await self._claim(payable, wallets)
        if len(queued) >= size:
            self._claim_due.set()

    async def _claim(self, payable: Sequence[Settlement], wallets: Mapping[UUID, Wallet]) -> None:
        """Sign, then claim and record in one transaction, then send. What another replica took meanwhile is left to it."""
        account, room = self._choose()
        lease = account.lease if account is not None else None
        if account is None or lease is None or room <= 0:
            self._left_queued = account is not None
            return
        by_id = {record.settlement_id: record for record in self._in_turn(payable, wallets)}
        authorizations = {identity: record.authorization for identity, record in by_id.items()}
        payments = [(identity, authorizations[identity], record.alone or identity in wallets) for identity, record in by_id.items()]
        batches, failing = await self._payable_together(self._plan(payments, wallets, account, room), authorizations)
        planned = [by_id[identity] for batch in batches for identity in batch.ids]
        stamps, doubtful = self._screened_again(planned)
        for identity in (*failing, *doubtful):
            self._let_others_go_first(by_id[identity])
        batches = without(batches, doubtful)
        planned = [record for record in planned if record.settlement_id not in doubtful]
        if not planned:
            return
        slots = await self._sign(account, batches, authorizations, wallets)  # before a row is locked: a key service takes its time
        try:
            opened = await self._record_claimed(lease, planned, slots, stamps)
        except _TakenElsewhereError as taken:
            await self._claim([record for record in planned if record.settlement_id in taken.left], wallets)
        except ConstraintViolated as violated:
            await self._claim_singly(planned, wallets, violated)
        except StoreFault as fault:
            if fault.kind not in {NOT_REACHED, ROLLED_BACK}:
                account.lose()
            raise
        else:
            self._claimed(account, slots, opened, planned)

    def _screened_again(self, planned: Sequence[Settlement]) -> tuple[dict[UUID, str], set[UUID]]:
        """What queued payments were screened against right before they are signed, and those that are not to be signed now."""
        stamps: dict[UUID, str] = {}
        doubtful: set[UUID] = set()
        for record in planned if self._chain.screen is not None else ():
            assert self._chain.screen is not None
            try:
                found = self._chain.screen.judge(record.authorization, accept_unscreened=record.accept_unscreened)
            except ScreeningFault:
                doubtful.add(record.settlement_id)
                continue
            if isinstance(found, Refusal):
                doubtful.add(record.settlement_id)
            else:
                stamps[record.settlement_id] = encode_screening(found)
        return stamps, doubtful

    async def _record_claimed(
        self, lease: Lease, planned: Sequence[Settlement], slots: Sequence[SignedSlot], stamps: Mapping[UUID, str]
    ) -> list[OpenedSlot]:
        """Empty when the lease is lost. Raises _TakenElsewhereError when not all of them are still there; both undo the claim."""
        opened: list[OpenedSlot] = []
        with suppress(_LeaseLostError):
            async with self._db.transaction() as session:
                claimed = await settlements.claim_queued(session, planned)
                if len(claimed) < len(planned):
                    raise _TakenElsewhereError(claimed)
                opened = await settlements.dispatch_claimed(session, lease, slots, self._settings.gas_rate_max_age_s)
                if not opened:
                    raise _LeaseLostError
                if stamps:
                    await settlements.restamp(session, stamps)
        return opened

    def _claimed(self, account: Account, slots: Sequence[SignedSlot], opened: Sequence[OpenedSlot], planned: Sequence[Settlement]) -> None:
        """They are on record, or the relayer is not ours any more."""
        if not opened:
            self._lease_lost(account)
            return
        account.next_tx_nonce += len(slots)
        self._launch(account, slots, opened, {record.settlement_id: item_of(record) for record in planned})

    def _in_turn(self, payable: Sequence[Settlement], wallets: Mapping[UUID, Wallet]) -> list[Settlement]:
        """Those that may go now: of each smart wallet one payment at a time; the others of it let others go first."""
        turn: list[Settlement] = []
        paying: set[Address] = set()
        for record in payable:
            if record.settlement_id not in wallets:
                turn.append(record)
            elif record.payer in paying or self._held_up(record.payer, wallets[record.settlement_id]):
                self._let_others_go_first(record)
            else:
                paying.add(record.payer)
                turn.append(record)
        return turn

    async def _claim_singly(self, payable: Sequence[Settlement], wallets: Mapping[UUID, Wallet], violated: ConstraintViolated) -> None:
        """Nothing was stored: each alone; the guilty one lets the others go first."""
        if len(payable) == 1:
            tell = log.info if violated.constraint == GAS_BUDGET else log.error  # a budget is its tenant's matter
            tell("settlement.claim_refused", settlement_id=str(payable[0].settlement_id), constraint=violated.constraint)
            self._let_others_go_first(payable[0])
            return
        for record in payable:
            await self._claim([record], wallets)

    def _let_others_go_first(self, record: Settlement) -> None:
        _, backoff = self._put_off.get(record.settlement_id, (0.0, Backoff(_PUT_OFF_S, _PUT_OFF_MAX_S)))
        self._put_off[record.settlement_id] = (self._clock.monotonic() + backoff.next_s(), backoff)

    async def _still_payable(self, record: Settlement) -> Verdict | None:
        """Ask the chain about a settlement that waited; what cannot be paid any more ends here, by chain facts.

        One that the chain does not tell about keeps nobody else from being paid. None: not now.
        """
        scheme = self._registry.find(record.scheme)
        assert scheme is not None
        judged = Judged(authorization=record.authorization, scheme=scheme, chain=self._chain)
        item = item_of(record)
        try:
            deadline = self._chain.evm.deadline_in(self._settings.verify_deadline_s)
            verdict = await self._verifier.judge_chain(judged, deadline, accept_unscreened=record.accept_unscreened)
            if (refusal := verdict.refusal) is None:
                return verdict
            ruling = NoRuling.UNUSED if refusal.reason in PASSING else await self._resolver.rule(item, None)
            if ruling is NoRuling.UNUSED and refusal.reason in SCREENED_OUT:
                ruling = _screened_out(refusal)
        except (ChainFault, ScreeningFault) as fault:
            log.warning("settlement.undecided", settlement_id=str(record.settlement_id), kind=fault.kind, fault=str(fault))
            ruling = NoRuling.UNTOLD
        if not isinstance(ruling, Ruling):
            self._let_others_go_first(record)
            return None
        outcome = self._watcher.outcome(item, State.QUEUED, ruling, record.moves)
        await self._watcher.commit([outcome], [], [], {record.settlement_id: (item, ruling, self._clock.monotonic())})
        return None


class _LeaseLostError(Exception):
    """Rolls the claim back."""


class _TakenElsewhereError(Exception):
    """Rolls the claim back: another replica took some of what was signed together, and the rest is signed afresh."""

    def __init__(self, left: AbstractSet[UUID]) -> None:
        super().__init__()
        self.left = left


def _screened_out(refusal: Refusal) -> Ruling:
    """The end of a queued payment of somebody who is on a sanctions list by now: the chain says that nobody used it."""
    answer = Answer(success=False, reason=refusal.reason.name, message=refusal.message)
    return Ruling(state=State.FAILED, reason=refusal.reason, answer=answer)


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
