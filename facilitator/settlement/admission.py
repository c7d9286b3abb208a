"""The way in for /settle: each authorization is admitted once, and its one success is told once.

A caller either admits the payment and holds its answer slot, or waits behind the holder (docs/architecture.md decision 5).
Nothing here signs or sends; the dispatcher records and sends, the watcher finds out. A caller's disconnect frees its
slot and changes nothing about the payment.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import msgspec

from facilitator import tracing
from facilitator.clock import Clock
from facilitator.domain.confirmation import level_of
from facilitator.domain.identity import AuthKey, fingerprint, key_of
from facilitator.domain.limits import InFlight
from facilitator.domain.states import READMITTABLE, State
from facilitator.domain.wallets import Wallet
from facilitator.errors import Fault, OverloadFault, StoreFault
from facilitator.metrics import UNDELIVERED_ANSWERS
from facilitator.protocol.messages import Authorization, Payment, SettleResult
from facilitator.protocol.reasons import Reason, Refusal
from facilitator.settlement.answers import AnswerBoard, Seat
from facilitator.settlement.dispatcher import Dispatcher, InDoubtFault, RefusedLateError
from facilitator.settlement.presence import Presence
from facilitator.settlement.queue import Admitted
from facilitator.settlement.records import RecordReader
from facilitator.settlement.restraints import LimitReached, Restraints
from facilitator.settlement.settings import Settings
from facilitator.settlement.tasks import Background
from facilitator.settlement.verification import Judged, Verifier, duplicate, identifier_conflict
from facilitator.store import settlements
from facilitator.store.db import ConstraintViolated, Db
from facilitator.store.restraints import GAS_BUDGET
from facilitator.store.settlements import (
    AUTHORIZATION_TAKEN,
    IDEMPOTENCY_TAKEN,
    IDENTIFIER_TAKEN,
    Admission,
    Answer,
    Asked,
    Settlement,
    decode_answer,
)
from facilitator.store.tenants import Tenant
from facilitator.units import AuthNonce, Network, TxHash

_LOCAL_POLL_S: Final = 1.0
"""How often a caller reads the record itself while this process watches the settlement anyway."""
_FOREIGN_POLL_S: Final = 0.25
"""How often it does when another replica watches, should a notification be lost."""
_BEGUN_MAX: Final = 32_768
"""How many of the payments that were begun here are remembered."""

_FREE_S: Final = 5.0
"""How long a delivery that failed waits for its slot to be freed; it goes on without being waited for."""


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks."""

    tenant: Tenant
    request_id: str
    judged: Callable[[], None] = lambda: None
    """Called when from now on the caller waits for something else than our judgement; perhaps more than once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """The holder's claim: its success is marked spent, and must be given back when it does not arrive."""

    settlement_id: UUID
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleAnswer:
    """What to tell the caller. With a `ticket`, say afterwards whether it was delivered."""

    result: SettleResult
    ticket: Ticket | None = None


class IdempotencyConflict(Exception):
    """The tenant used this Idempotency-Key for another payment before."""


class _RefusedByRecordError(Exception):
    """Another payment of this tenant bears this payment's identifier."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """One /settle call on its way through."""

    caller: Caller
    authorization: Authorization
    fingerprint: bytes
    resource: str | None
    idempotency_key: str | None
    payment_identifier: str | None
    deadline: float

    @property
    def tenant_id(self) -> str:
        return self.caller.tenant.tenant_id

    def asks_for(self, record: Settlement) -> bool:
        """The same tenant, the same terms."""
        return record.tenant_id == self.tenant_id and record.fingerprint == self.fingerprint

    def shares_key(self, record: Settlement) -> bool:
        """And the same idempotency key as the slot's holder."""
        return self.idempotency_key is not None and record.idempotency_key == self.idempotency_key and self.asks_for(record)


class Admitter:
    """Runs /settle for every caller of this process."""

    def __init__(
        self,
        verifier: Verifier,
        records: RecordReader,
        restraints: Restraints,
        dispatchers: Mapping[Network, Dispatcher],
        board: AnswerBoard,
        presence: Presence,
        db: Db,
        clock: Clock,
        settings: Settings,
        background: Background,
    ) -> None:
        self._verifier = verifier
        self._records = records
        self._restraints = restraints
        self._dispatchers = dispatchers
        self._board = board
        self._presence = presence
        self._db = db
        self._clock = clock
        self._settings = settings
        self._replica_id = presence.replica_id
        self._background = background
        self._admitting: dict[AuthKey, asyncio.Event] = {}
        self._begun: dict[AuthNonce, None] = {}
        """By the auth_nonces of the last payments that were let into a queue, the oldest first."""
        self._in_flight = InFlight()
        self._hurry = asyncio.Event()

    def began(self, auth_nonce: AuthNonce) -> bool:
        """Whether a payment with it was put on its way here, not long ago."""
        return auth_nonce in self._begun

    def _begin(self, auth_nonce: AuthNonce) -> None:
        self._begun[auth_nonce] = None
        if len(self._begun) > _BEGUN_MAX:
            del self._begun[next(iter(self._begun))]

    def hurry(self) -> None:
        """The process stops: callers are told how things stand instead of waiting on."""
        self._hurry.set()

    async def settle(self, caller: Caller, payment: Payment, idempotency_key: str | None) -> SettleAnswer:
        """Settle, or say truthfully how the settlement stands when the deadline comes.

        Durable on a success: the outcome and that this caller is told. Raises IdempotencyConflict and LimitReached;
        Faults only while nothing was signed for this payment on behalf of this caller.
        """
        deadline = self._clock.monotonic() + self._settings.deadline_s
        judged = await self._verifier.judge_signed(caller.tenant, payment, self._verify_deadline(deadline))
        if isinstance(judged, Refusal):
            return SettleAnswer(result=SettleResult(payer=None, refusal=judged))
        if idempotency_key is None and caller.tenant.trust_payment_identifier:
            idempotency_key = payment.payment_identifier
        request = _Request(
            caller=caller,
            authorization=judged.authorization,
            fingerprint=fingerprint(judged.authorization),
            resource=payment.resource,
            idempotency_key=idempotency_key,
            payment_identifier=payment.payment_identifier,
            deadline=deadline,
        )
        key = key_of(judged.authorization)
        breach = self._in_flight.enter(request.tenant_id, caller.tenant.limits, key, deadline, self._clock.monotonic())
        if breach is not None:
            raise LimitReached(breach)
        try:
            return await self._settle(request, judged)
        except _RefusedByRecordError as refused:
            return SettleAnswer(result=SettleResult(payer=request.authorization.payer, refusal=refused.refusal))
        finally:
            self._in_flight.leave(request.tenant_id, key)

    async def _settle(self, request: _Request, judged: Judged) -> SettleAnswer:
        """Look at the record, enter and wait, until there is an answer."""
        doubt: InDoubtFault | None = None
        while True:
            try:
                if (answer := await self._pass(request, judged)) is not None:
                    return answer
                doubt = None
            except InDoubtFault as fault:
                doubt = fault
            except (Fault, LimitReached):
                if doubt is None:
                    raise
            if doubt is not None:  # the record tells, once the database answers
                if self._time_is_up(request):
                    raise doubt
                await self._clock.sleep(_FOREIGN_POLL_S)

    async def _pass(self, request: _Request, judged: Judged) -> SettleAnswer | None:
        """Enter, then wait as holder or behind one. None: look at the record again."""
        async with self._turn(request):
            entered = await self._enter(request, judged)
        request.caller.judged()
        if isinstance(entered, Admitted):
            with self._board.seat(entered.settlement_id) as seat:
                seat.begin(entered.tx_hash)
                with tracing.span("outcome", settlement_id=str(entered.settlement_id)):
                    return await self._hold(request, seat, entered.epoch)
        if isinstance(entered, Settlement):
            with tracing.span("join", settlement_id=str(entered.settlement_id)):
                return await self._join(request, entered)
        return entered

    def _verify_deadline(self, deadline: float) -> float:
        return min(deadline, self._clock.monotonic() + self._settings.verify_deadline_s)

    @asynccontextmanager
    async def _turn(self, request: _Request) -> AsyncIterator[None]:
        """One caller of this process at a time reads the record of an authorization and admits it."""
        key = key_of(request.authorization)
        while (admitting := self._admitting.get(key)) is not None:
            request.caller.judged()
            try:
                async with asyncio.timeout(max(0.0, request.deadline - self._clock.monotonic())):
                    await admitting.wait()
            except TimeoutError:
                raise OverloadFault("busy", "another request for this payment is being judged; ask again") from None
        done = self._admitting[key] = asyncio.Event()
        try:
            yield
        finally:
            del self._admitting[key]
            done.set()

    @staticmethod
    def _may_readmit(record: Settlement) -> bool:
        return State(record.state) in READMITTABLE

    # --- the first caller ---

    async def _enter(self, request: _Request, judged: Judged) -> Admitted | Settlement | SettleAnswer | None:
        """Read the record; admit what is not on it and what may be tried again.

        A settlement on record is for `_join`. None: look again, somebody was faster.
        """
        record = await self._read_record(request)
        if record is not None and (not self._may_readmit(record) or (record.answer is not None and request.shares_key(record))):
            return record
        tenant, authorization, dispatcher = request.caller.tenant, request.authorization, self._dispatchers[request.authorization.network]
        self._restraints.judge_tenant(tenant, authorization.network, dispatcher.need_wei(), goes_on=False)
        if (resting := self._restraints.judge_payer(tenant, authorization.payer)) is not None:
            return SettleAnswer(result=SettleResult(payer=authorization.payer, refusal=resting))
        with dispatcher.place(authorization, request.deadline):
            refusal, head, wallet = await self._verifier.judge_chain(
                judged, self._verify_deadline(request.deadline), accept_unscreened=tenant.accept_unscreened
            )
            if refusal is not None:
                if refusal.reason is Reason.NONCE_USED:
                    again = await self._read_record(request)
                    if again is not None and (record is None or again.moves != record.moves):
                        return None  # another replica admitted and paid it between our two looks
                return SettleAnswer(result=SettleResult(payer=authorization.payer, refusal=refusal))
            assert head is not None
            if wallet is not None:
                dispatcher.refuse_dear_wallet(wallet)
            self._restraints.judge_tenant(tenant, authorization.network, dispatcher.need_wei(wallet), goes_on=True)
            return await self._admit(request, record, head.number, wallet)

    async def _read_record(self, request: _Request) -> Settlement | None:
        """Our record of this authorization. Raises when the tenant bound one of its names to another payment."""
        found = await self._records.read(
            Asked(
                key=key_of(request.authorization),
                tenant_id=request.tenant_id,
                idempotency_key=request.idempotency_key,
                payment_identifier=request.payment_identifier,
            )
        )
        if (conflict := identifier_conflict(found, request.fingerprint)) is not None:
            raise _RefusedByRecordError(conflict)
        bound = found.by_idempotency_key
        if bound is not None and bound.fingerprint != request.fingerprint:
            raise IdempotencyConflict
        return found.record

    async def _admit(
        self, request: _Request, record: Settlement | None, head: int, wallet: Wallet | None
    ) -> Admitted | SettleAnswer | None:
        """Admit for the first time, or again. None: look again, somebody was faster."""
        dispatcher = self._dispatchers[request.authorization.network]
        admission = Admission(
            settlement_id=record.settlement_id if record else settlements.new_id(self._clock.now_ms()),
            authorization=request.authorization,
            tenant_id=request.tenant_id,
            request_id=request.caller.request_id,
            resource=request.resource,
            idempotency_key=request.idempotency_key,
            admitted_block=head,
            alone=not request.caller.tenant.shared_transactions or wallet is not None,
            confirm_level=level_of(
                request.caller.tenant.confirm_level,
                self._settings.confirm_level,
                request.authorization.amount_atomic,
                self._settings.preconfirmed_payment_max_atomic,
            ),
            accept_external=request.caller.tenant.accept_external,
            payment_identifier=request.payment_identifier,
            traceparent=tracing.current(),
            accept_unscreened=request.caller.tenant.accept_unscreened,
            wallet=wallet,
        )
        self._begin(admission.authorization.auth_nonce)
        request.caller.judged()
        try:
            if record is None:
                with tracing.span("admission"):
                    return await dispatcher.admit(admission, request.deadline)
            stamped = dispatcher.screened(admission)
            epoch = await self._claim(record.settlement_id, settlements.readmit(self._db, record, stamped, self._replica_id))
        except RefusedLateError as late:
            return SettleAnswer(result=SettleResult(payer=request.authorization.payer, refusal=late.refusal))
        except ConstraintViolated as violated:
            if violated.constraint == IDEMPOTENCY_TAKEN:
                raise IdempotencyConflict from None
            if violated.constraint in {AUTHORIZATION_TAKEN, IDENTIFIER_TAKEN}:
                return None  # the record says whose it is
            if violated.constraint == GAS_BUDGET:
                await self._restraints.refused(request.caller.tenant, request.authorization.network, dispatcher.need_wei(wallet))
            raise
        if epoch is not None:
            dispatcher.claims.soon()
            return Admitted(settlement_id=record.settlement_id, epoch=epoch, tx_hash=None)
        again = (await settlements.records(self._db, [record.settlement_id], self._settings.lease_ttl_s))[0]
        if again.moves != record.moves:
            return None
        if again.answer is None or not request.asks_for(again):  # what another tenant was told is nobody else's business
            raise OverloadFault("not_final", "a transaction that carried this payment is not final yet; ask again")
        return SettleAnswer(result=_result(again, decode_answer(again.answer)))

    async def _hold(self, request: _Request, seat: Seat, epoch: int) -> SettleAnswer | None:
        """Wait as the holder of the answer slot. None: the slot was lost, look at the record again."""
        seat.holder_epoch = epoch
        try:
            while (answer := seat.answer) is None:
                if self._time_is_up(request):
                    return await self._pending(request, seat, epoch)
                await self._wait(request, seat)
            if not answer.success:
                return SettleAnswer(result=self._told(request, seat, answer))
            if seat.spent_epoch != epoch and not await settlements.spend_answer(
                self._db, seat.settlement_id, self._replica_id, epoch, self._settings.answer_doubt_s, seat.moves
            ):
                seat.answer = None  # the slot is lost, or it has moved since: a reorganisation may have taken the outcome back
                self._free_later(seat.settlement_id, epoch)
                return None
            self._board.delivery_began(seat.settlement_id, epoch)
            return SettleAnswer(result=self._told(request, seat, answer), ticket=Ticket(settlement_id=seat.settlement_id, epoch=epoch))
        except asyncio.CancelledError:
            UNDELIVERED_ANSWERS.inc()
            self._free_later(seat.settlement_id, epoch)
            raise
        except StoreFault as fault:
            if seat.tx_hash is None:
                self._background.start("withdraw", self._withdraw(seat.settlement_id, epoch))
                raise InDoubtFault("in_doubt", str(fault)) from fault
            self._free_later(seat.settlement_id, epoch)
            return SettleAnswer(result=self._unfinished(request, seat))
        except Exception:
            self._free_later(seat.settlement_id, epoch)  # what went wrong here must not keep the truth from the next caller
            raise
        finally:
            if seat.holder_epoch == epoch:
                seat.holder_epoch = None

    async def _pending(self, request: _Request, seat: Seat, epoch: int) -> SettleAnswer:
        """The deadline came first: withdraw if nothing was signed, else tell the hash and free the slot."""
        if seat.tx_hash is None and await settlements.withdraw(self._db, seat.settlement_id, self._replica_id, epoch):
            raise OverloadFault("not_sent", "the payment could not be sent in time and was withdrawn; ask again")
        record = await self._board.read(seat)
        await settlements.free_answer(self._db, seat.settlement_id, self._replica_id, epoch)
        seat.wake()
        if record.answer is not None and not decode_answer(record.answer).success:
            return SettleAnswer(result=_result(record, decode_answer(record.answer)))
        if seat.tx_hash is None:
            raise OverloadFault("not_sent", "the payment could not be sent in time; ask again")
        return SettleAnswer(result=self._unfinished(request, seat))

    # --- every later caller ---

    async def _join(self, request: _Request, record: Settlement) -> SettleAnswer | None:
        """Wait behind the holder. None: the settlement may be admitted again."""
        with self._board.seat(record.settlement_id) as seat:
            seat.tx_hash = record.tx_hash or seat.tx_hash
            try:
                if record.answer_state == "spent":
                    record = await self._board.read(seat)  # it was read without a seat: the slot may have been given back since
                while True:
                    seen = seat.version
                    if self._may_readmit(record) and not record.answer:
                        return None
                    if (answer := await self._answer_later(request, seat, record)) is not None:
                        return answer
                    if self._time_is_up(request):
                        return self._give_up(request, seat, record)
                    if record.answer_state == "held" and record.answer_holder != self._replica_id:
                        self._presence.look_soon()
                    if seat.version == seen:
                        await self._wait(request, seat)
                    record = await self._board.read(seat)
            except StoreFault:
                if seat.tx_hash is None or not request.asks_for(record):
                    raise
                return SettleAnswer(result=self._unfinished(request, seat))

    async def _answer_later(self, request: _Request, seat: Seat, record: Settlement) -> SettleAnswer | None:
        """What this record says to a later caller. None: nothing yet."""
        if request.shares_key(record):
            return await self._share(request, seat, record)
        if request.asks_for(record):
            return await self._queue_behind(request, seat, record)
        return self._foreign(seat, record)

    async def _share(self, request: _Request, seat: Seat, record: Settlement) -> SettleAnswer | None:
        """The holder's own key: the same answer, byte for byte, for the life of the ledger."""
        if record.answer is None:
            return await self._take(request, seat, record) if self._is_free(seat, record) else None
        answer = decode_answer(record.answer)
        if not answer.success or record.answer_shared:
            return SettleAnswer(result=_result(record, answer))
        if self._is_free(seat, record):  # free, or its holder died before it could be told
            return await self._take(request, seat, record)
        assert request.idempotency_key is not None
        if await settlements.share_answer(self._db, record.settlement_id, request.tenant_id, request.idempotency_key):
            return SettleAnswer(result=_result(record, answer))
        return None

    async def _queue_behind(self, request: _Request, seat: Seat, record: Settlement) -> SettleAnswer | None:
        """The same tenant and terms: the truth if the slot frees, else a duplicate."""
        if record.answer is not None and not (answer := decode_answer(record.answer)).success:
            return SettleAnswer(result=_result(record, answer))
        if self._is_free(seat, record):
            return await self._take(request, seat, record)
        if record.answer_state == "spent" and not self._may_be_given_back(record):
            return SettleAnswer(result=_refused(record, duplicate(record)))
        return None

    @staticmethod
    def _foreign(seat: Seat, record: Settlement) -> SettleAnswer | None:
        """Another tenant, or other terms: a duplicate, once a hash can be told."""
        if record.tx_hash is None and record.answer is None:
            return None
        del seat
        # our id of another tenant's settlement is not told; the hash is public
        return SettleAnswer(result=SettleResult(payer=record.payer, refusal=duplicate(record), tx_hash=record.tx_hash))

    def _is_free(self, seat: Seat, record: Settlement) -> bool:
        """Free, or held by nobody who lives: a dead replica, or a caller of this one whose claim was in doubt. Spent is never free."""
        if record.answer_state != "held":
            return record.answer_state == "free"
        if record.answer_holder != self._replica_id:
            return not record.holder_alive
        return not (seat.claims or self._board.delivering(record.settlement_id, record.answer_epoch))

    def _may_be_given_back(self, record: Settlement) -> bool:
        """Spent, but it is not known yet whether the answer arrived; another replica finds out until `answer_due`."""
        if record.answer_holder == self._replica_id:
            return self._board.delivering(record.settlement_id, record.answer_epoch)
        return record.holder_alive and record.answer_under_way

    async def _take(self, request: _Request, seat: Seat, record: Settlement) -> SettleAnswer | None:
        """Become the holder; None when somebody else was faster."""
        seat.claims += 1
        try:
            epoch = await self._claim(
                record.settlement_id,
                settlements.take_answer(
                    self._db,
                    record.settlement_id,
                    self._replica_id,
                    request.idempotency_key,
                    record.answer_epoch,
                    self._settings.lease_ttl_s,
                ),
            )
        except ConstraintViolated as violated:
            if violated.constraint == IDEMPOTENCY_TAKEN:
                raise IdempotencyConflict from None
            raise
        finally:
            seat.claims -= 1
        if epoch is None:
            seat.wake()
            return None
        return await self._hold(request, seat, epoch)

    def _give_up(self, request: _Request, seat: Seat, record: Settlement) -> SettleAnswer:
        """A later caller's deadline."""
        if request.shares_key(record) and seat.tx_hash is not None and record.answer_state != "spent":
            return SettleAnswer(result=self._unfinished(request, seat))
        if seat.tx_hash is None:
            raise OverloadFault("not_sent", "this payment waits to be sent for another request; ask again")
        return SettleAnswer(result=_refused(record, duplicate(record)))

    # --- waiting, and what became of answers ---

    def _time_is_up(self, request: _Request) -> bool:
        return self._hurry.is_set() or self._clock.monotonic() >= request.deadline

    async def _wait(self, request: _Request, seat: Seat) -> None:
        """Until something changes, the next poll is due, or the deadline; a poll reads the record."""
        local = self._dispatchers[request.authorization.network].watches(seat.settlement_id)
        left = request.deadline - self._clock.monotonic()
        seen = seat.version
        await seat.changed(seen, min(left, _LOCAL_POLL_S if local or seat.deepening else _FOREIGN_POLL_S))
        if seat.version == seen or not local:
            try:
                await self._board.read(seat)
            except StoreFault:
                if seat.tx_hash is None and self._time_is_up(request):
                    raise

    async def _claim(self, settlement_id: UUID, statement: Coroutine[None, None, int | None]) -> int | None:
        """Run a statement that takes an answer slot to its end, whatever becomes of the caller; gone, it frees the slot."""
        task = asyncio.create_task(statement)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._background.start("free_answer", self._free_claimed(settlement_id, task))
            raise

    async def _free_claimed(self, settlement_id: UUID, claim: asyncio.Task[int | None]) -> None:
        await asyncio.wait([claim])
        if not claim.cancelled() and claim.exception() is None and (epoch := claim.result()) is not None:
            await self._free(settlement_id, epoch)

    async def _withdraw(self, settlement_id: UUID, epoch: int) -> None:
        """Its caller was not told that it is on record: take it back if nothing was signed, once Postgres can be asked."""
        while True:
            try:
                await settlements.withdraw(self._db, settlement_id, self._replica_id, epoch)
                break
            except StoreFault:
                await self._clock.sleep(1.0)
        await self._free(settlement_id, epoch)

    def _free_later(self, settlement_id: UUID, epoch: int) -> asyncio.Task[None]:
        """Free the slot without keeping anybody; tried again until Postgres has it. Who waits behind it waits for that."""
        self._board.delivery_began(settlement_id, epoch)
        return self._background.start("free_answer", self._free(settlement_id, epoch))

    async def _free(self, settlement_id: UUID, epoch: int) -> None:
        while True:
            try:
                await settlements.free_answer(self._db, settlement_id, self._replica_id, epoch)
                break
            except StoreFault:
                await self._clock.sleep(1.0)
        self._board.delivery_ended(settlement_id, epoch)

    async def undelivered(self, ticket: Ticket) -> None:
        """The success did not reach its caller: the next one may hear it. Freed on return, unless Postgres is away."""
        UNDELIVERED_ANSWERS.inc()
        await asyncio.wait([self._free_later(ticket.settlement_id, ticket.epoch)], timeout=_FREE_S)

    def delivered(self, ticket: Ticket) -> None:
        """The success reached its caller: whoever waits behind it is a duplicate."""
        self._board.delivery_ended(ticket.settlement_id, ticket.epoch)

    def _told(self, request: _Request, seat: Seat, answer: Answer) -> SettleResult:
        return _rendered(request.authorization, seat.settlement_id, answer)

    def _unfinished(self, request: _Request, seat: Seat) -> SettleResult:
        """Sent, or about to be, and not decided."""
        assert seat.tx_hash is not None
        return SettleResult(
            payer=request.authorization.payer,
            tx_hash=seat.tx_hash,
            settlement_id=str(seat.settlement_id),
            refusal=Refusal(
                reason=Reason.SETTLEMENT_PENDING,
                message=f"transaction {seat.tx_hash} is on its way; the same request again gets its outcome",
            ),
        )


def _rendered(authorization: Authorization, settlement_id: UUID, answer: Answer) -> SettleResult:
    """A stored answer as a result."""
    refusal = None
    if not answer.success:
        refusal = Refusal(reason=Reason[answer.reason or "TRANSACTION_FAILED"], message=answer.message or "")
    return SettleResult(
        payer=authorization.payer,
        refusal=refusal,
        tx_hash=TxHash(answer.tx_hash) if answer.tx_hash else None,
        log_index=answer.log_index,
        settlement_id=str(settlement_id),
        shared_transaction=answer.shared,
    )


def _result(record: Settlement, answer: Answer) -> SettleResult:
    return _rendered(record.authorization, record.settlement_id, answer)


def _refused(record: Settlement, refusal: Refusal) -> SettleResult:
    return SettleResult(payer=record.payer, refusal=refusal, tx_hash=record.tx_hash, settlement_id=str(record.settlement_id))
