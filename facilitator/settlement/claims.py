"""One network's queue in Postgres: payments that were recorded where no relayer was, judged afresh, claimed, signed and sent here.

What another replica took meanwhile is left to it; what cannot be made now lets the others go first.
"""

import asyncio
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import Final
from uuid import UUID

import structlog

from facilitator.clock import Clock
from facilitator.domain.backoff import Backoff
from facilitator.domain.batching import without
from facilitator.domain.screening import encode_screening
from facilitator.domain.states import State
from facilitator.domain.wallets import Wallet
from facilitator.errors import ChainFault, ScreeningFault, StoreFault
from facilitator.protocol.reasons import PASSING, Refusal
from facilitator.schemes.scheme import Registry
from facilitator.settlement.network import ServedNetwork
from facilitator.settlement.pool import RelayerPool
from facilitator.settlement.queue import Queue, put_off
from facilitator.settlement.relayer import Account
from facilitator.settlement.resolver import Resolver
from facilitator.settlement.screening import SCREENED_OUT
from facilitator.settlement.settings import Settings
from facilitator.settlement.slots import NoRuling, Ruling, item_of
from facilitator.settlement.tasks import beat, set_within
from facilitator.settlement.verification import Judged, Verdict, Verifier
from facilitator.settlement.watcher import Watcher
from facilitator.store import settlements
from facilitator.store.db import NOT_REACHED, ROLLED_BACK, ConstraintViolated, Db
from facilitator.store.restraints import GAS_BUDGET
from facilitator.store.settlements import Answer, Lease, OpenedSlot, Settlement, SignedSlot
from facilitator.units import Address

_PUT_OFF_KEPT_S: Final = 60.0
"""How long it is remembered afterwards that a settlement was put off."""
log = structlog.get_logger(__name__)


class Claims:
    """See the module."""

    def __init__(
        self,
        chain: ServedNetwork,
        registry: Registry,
        verifier: Verifier,
        resolver: Resolver,
        watcher: Watcher,
        pool: RelayerPool,
        queue: Queue,
        db: Db,
        clock: Clock,
        settings: Settings,
    ) -> None:
        self._chain = chain
        self._registry = registry
        self._verifier = verifier
        self._resolver = resolver
        self._watcher = watcher
        self._pool = pool
        self._queue = queue
        self._db = db
        self._clock = clock
        self._settings = settings
        self._due = asyncio.Event()
        self._due.set()
        self._put_off: dict[UUID, tuple[float, Backoff]] = {}
        self.waiting = False
        """Something was left there for want of room: the next slot is for it."""

    def soon(self) -> None:
        """Look there: something was put there, or there is room again."""
        self._due.set()

    async def run(self) -> None:
        """Look when told, and every `queue_poll_s`.

        A loop of its own, for it asks the chain: what arrives at this replica does not wait for that.
        """
        while True:
            beat("queue", self._chain.network)
            await set_within(self._due, self._settings.queue_poll_s)
            if not self._pool.stopping:
                await self._take()

    async def _take(self) -> None:
        """Take what others queued: judge it afresh, then claim, sign and record in one transaction, then send."""
        now = self._clock.monotonic()
        self._put_off = {
            identity: (until, backoff) for identity, (until, backoff) in self._put_off.items() if until + _PUT_OFF_KEPT_S > now
        }
        others = [identity for identity, (until, _) in self._put_off.items() if until > now]
        self._queue.stored(await settlements.queue_ages(self._db, self._chain.network, list(self._put_off)))
        account, room = self._pool.choose()
        self.waiting = account is not None and room <= 0
        if account is None or room <= 0:
            return
        size = min(room * self._pool.limits().items_max, self._settings.group_max)
        queued = await settlements.list_queued(self._db, self._chain.network, size, others, self._settings.queue_wait_max_s)
        verdicts = await asyncio.gather(*(self._still_payable(record) for record in queued))
        payable = [record for record, verdict in zip(queued, verdicts, strict=True) if verdict]
        wallets = {
            record.settlement_id: verdict.wallet for record, verdict in zip(queued, verdicts, strict=True) if verdict and verdict.wallet
        }
        if payable:
            async with self._pool.writing:
                await self._claim(payable, wallets)
        if len(queued) >= size:
            self._due.set()

    async def _claim(self, payable: Sequence[Settlement], wallets: Mapping[UUID, Wallet]) -> None:
        """Sign, then claim and record in one transaction, then send. What another replica took meanwhile is left to it."""
        account, room = self._pool.choose(wallets.values())
        lease = account.lease if account is not None else None
        if account is None or lease is None or room <= 0:
            self.waiting = account is not None
            return
        by_id = {record.settlement_id: record for record in self._in_turn(payable, wallets)}
        authorizations = {identity: record.authorization for identity, record in by_id.items()}
        payments = [(identity, authorizations[identity], record.alone or identity in wallets) for identity, record in by_id.items()]
        batches, failing = await self._pool.payable_together(self._pool.plan(payments, wallets, account, room), authorizations)
        planned = [by_id[identity] for batch in batches for identity in batch.ids]
        stamps, doubtful = self._screened_again(planned)
        for identity in (*failing, *doubtful):
            self._let_others_go_first(by_id[identity])
        batches = without(batches, doubtful)
        planned = [record for record in planned if record.settlement_id not in doubtful]
        if not planned:
            return
        slots = await self._pool.sign(account, batches, authorizations, wallets)  # before a row is locked: a key service takes its time
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
            self._pool.lease_lost(account)
            return
        account.next_tx_nonce += len(slots)
        self._pool.launch(account, slots, opened, {record.settlement_id: item_of(record) for record in planned})

    def _in_turn(self, payable: Sequence[Settlement], wallets: Mapping[UUID, Wallet]) -> list[Settlement]:
        """Those that may go now: of each smart wallet one payment at a time; the others of it let others go first."""
        turn: list[Settlement] = []
        paying: set[Address] = set()
        for record in payable:
            if record.settlement_id not in wallets:
                turn.append(record)
            elif record.payer in paying or self._pool.held_up(record.payer, wallets[record.settlement_id]):
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
        _, backoff = self._put_off.get(record.settlement_id, (0.0, put_off()))
        self._put_off[record.settlement_id] = (self._clock.monotonic() + backoff.next_s(), backoff)

    async def _still_payable(self, record: Settlement) -> Verdict | None:
        """Ask the chain about a settlement that waited; what cannot be paid any more ends here, by chain facts.

        One that the chain does not tell about keeps nobody else from being paid. None: not now.
        """
        scheme = self._registry.find(record.scheme)
        assert scheme is not None
        judged = Judged(authorization=record.authorization, scheme=scheme, chain=self._chain, tenant_id=record.tenant_id)
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
