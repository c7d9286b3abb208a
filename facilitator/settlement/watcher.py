"""Finds out what became of sent transactions, and commits it: state, entries, answer and cost together.

It believes chain facts only (docs/architecture.md decision 3 and 4): the log pair in a sealed block proves a payment; a receipt's
status does not, an error is never an absence, and without proof a settlement stays where it is.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

import structlog

from facilitator import tracing
from facilitator.chain.evm import Receipt, SendOutcome
from facilitator.chain.rpc import NodeError
from facilitator.chain.strays import mined as mined_stray
from facilitator.clock import Clock
from facilitator.domain import abi
from facilitator.domain.abi import Log, PaymentProof
from facilitator.domain.batching import ran_out
from facilitator.domain.confirmation import deep_enough
from facilitator.domain.facts import Head
from facilitator.domain.fees import Fees, split_evenly
from facilitator.domain.postings import Cause, gas_entries, resolution
from facilitator.domain.resubmission import Bump, BumpPolicy, Rebroadcast, Replace, Sent, Wait, rule
from facilitator.domain.states import PAID, State, move
from facilitator.domain.strikes import struck
from facilitator.errors import ChainFault, Fault
from facilitator.metrics import GAS_SPENT, INCIDENTS, OPEN_SLOTS, RPC_DISAGREEMENTS, SETTLED_VALUE, SETTLEMENTS, STAGE_SECONDS, series
from facilitator.settlement.answers import AnswerBoard
from facilitator.settlement.flashblocks import Flashblocks
from facilitator.settlement.found import record_payments
from facilitator.settlement.lookout import Lookout
from facilitator.settlement.network import ServedNetwork
from facilitator.settlement.pricing import Pricing
from facilitator.settlement.resolver import Resolver
from facilitator.settlement.settings import Settings
from facilitator.settlement.slots import Item, NoRuling, OpenSlot, Ruling, included, item_of
from facilitator.settlement.tasks import Background, beat
from facilitator.store import relayers, settlements
from facilitator.store.db import Db
from facilitator.store.settlements import ClosedSlot, Cost, Outcome, decode_answer
from facilitator.units import Address, BlockHash, Network, TxHash, Wei

_RPC_S: Final = 5.0
"""Deadline of one look at the chain."""
_IDLE_S: Final = 15.0
"""With nothing open, how often it says that it is alive."""
_KEPT_MAX: Final = 8
"""Sends that a node may keep at once."""
_MISSES_MAX: Final = 3
"""Looks at a used tx_nonce without a receipt of ours before we say that somebody else used it."""
_FLASHBLOCK_POLL_S: Final = 0.1
"""How often flashblocks are looked at while a payment may be told from one."""
_FIRST_LOOKS_S: Final = (0.005, 0.01, 0.02)
"""Pauses after the first look at a transaction that is sent while nothing else is open: a chain that mines at once has it by then."""
_HALT_FACTOR: Final = 5
"""Without a new block a transaction is sent again this many times more rarely: it has missed nothing yet."""
_STRAINED: Final = {
    kind.value
    for kind in (
        NodeError.TXPOOL_FULL,
        NodeError.UNDERPRICED,
        NodeError.INSUFFICIENT_FUNDS,
        NodeError.RATE_LIMITED,
    )
}
"""Refusals of a transaction that pass by themselves, or with money: its relayer rests, and the bytes are sent again."""
_STOPPED: Final = "screened_out"
"""Why a transaction is not sent although it is on record."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Mined:
    """A slot whose transaction was mined, and what it did for every settlement in it."""

    slot: OpenSlot
    receipt: Receipt
    rulings: list[tuple[Item, Ruling]]
    unpaid: list[Item]
    """Failed among others, or for want of gas, and would be paid now: each is tried again alone."""

    @property
    def failed(self) -> bool:
        """Did a payment in it end otherwise than by being paid?"""
        return any(ruling.state is not State.INCLUDED for _, ruling in self.rulings)

    @property
    def bought(self) -> str:
        """What its gas money bought, as the metric says it: `settled` when a payment in it was made, else `wasted`."""
        return "settled" if any(ruling.state is State.INCLUDED for _, ruling in self.rulings) else "wasted"


class Watcher:
    """One network's open slots."""

    def __init__(
        self,
        chain: ServedNetwork,
        resolver: Resolver,
        lookout: Lookout,
        pricing: Pricing,
        board: AnswerBoard,
        db: Db,
        clock: Clock,
        settings: Settings,
        replica_id: str,
        background: Background,
    ) -> None:
        self._chain = chain
        self._resolver = resolver
        self._lookout = lookout
        self.pricing = pricing
        """What this network's transactions bid and may use; the dispatcher's too."""
        self._board = board
        self._db = db
        self._clock = clock
        self._settings = settings
        self._replica_id = replica_id
        self._background = background
        self._open: dict[int, OpenSlot] = {}
        self._of_relayer: dict[Address, dict[int, OpenSlot]] = {}
        self._watched: set[UUID] = set()
        self._head: Head | None = None
        """The newest block by the last answer, which a node that lags may give."""
        self._looked_at: BlockHash | None = None
        self._bumps = BumpPolicy(resend_s=settings.resend_s, blocks=settings.bump_blocks, max_fee_cap_wei=Wei(settings.max_fee_cap_wei))
        self._flashblocks = Flashblocks(chain, board, db, settings, replica_id)
        for relayer in chain.relayers:
            for bought in ("settled", "wasted"):
                GAS_SPENT.labels(chain.network, relayer, bought)
        self._kept = 0
        self._first_looks: Iterator[float] = iter(())
        """Pauses that come before the regular ones."""
        self._look = asyncio.Event()
        self._opened = asyncio.Event()
        self.slot_freed = asyncio.Event()
        """Set whenever a slot closes, for the dispatcher that waits for room."""
        self.requeued = asyncio.Event()
        """Set when a settlement went back to the queue in Postgres."""
        self.outbid: Callable[..., Awaitable[bool]] | None = None
        """How to replace a transaction that is not mined: `RelayerPool.outbid`."""
        self.send_answered: Callable[..., None] | None = None
        """Whom to tell how the network took a relayer's transaction: `RelayerPool._send_answered`."""
        self.batch_burned: Callable[[], None] | None = None
        """Whom to tell that a batch ate its gas."""
        self.upgraded: Callable[[Sequence[Log]], None] | None = None
        """Whom to tell that a token has another implementation."""

    # --- what is watched ---

    def add(self, slot: OpenSlot) -> None:
        """Watch a slot that is on record."""
        self._open[slot.slot_id] = slot
        self._opened.set()
        self._of_relayer.setdefault(slot.relayer, {})[slot.slot_id] = slot
        self._watched.update(item.settlement_id for item in slot.items)
        for item in slot.items:
            if seat := self._board.find(item.settlement_id):
                seat.tx_hash = slot.attempts[-1].tx_hash
                seat.wake()
        self._count(slot.relayer)

    def look_soon(self) -> None:
        """Look now: slots were added that may be mined already, or never were sent."""
        self._look.set()

    def has(self, slot_id: int) -> bool:
        """Is this slot watched here?"""
        return slot_id in self._open

    def drop_relayer(self, relayer: Address) -> None:
        """Another replica owns the relayer now, and watches its slots."""
        for slot in [slot for slot in self._open.values() if slot.relayer == relayer]:
            self._close(slot)

    def watches(self, settlement_id: UUID) -> bool:
        """Does this process find out about this settlement by itself?"""
        return settlement_id in self._watched

    def stopped(self, slot: OpenSlot) -> bool:
        """Does it carry somebody who is on a sanctions list by now? Then its payments are neither sent nor signed for again."""
        screen = self._chain.screen
        return screen is not None and any(screen.listed(item.authorization) for item in slot.items)

    def halted(self) -> bool:
        """No block came for `max_head_age_s` while a transaction of ours waited as long: take no more work."""
        patience_s = self._settings.max_head_age_s
        if self._chain.head.silent_s <= patience_s:
            return False
        return any(self._clock.monotonic() - slot.opened_at > patience_s for slot in self._open.values())

    def open_slots(self, relayer: Address) -> int:
        """Transactions of this relayer in flight."""
        return len(self._of_relayer.get(relayer, ()))

    def pays_from_wallet(self, payer: Address) -> bool:
        """Is a transaction of this smart wallet in flight here?"""
        slots = [slot for slot in self._open.values() if slot.kind == "contract_payer"]
        return any(item.authorization.payer == payer for slot in slots for item in slot.items)

    def reserved_wei(self, relayer: Address) -> int:
        """The most that this relayer's transactions in flight can still cost."""
        return sum(slot.reserved_wei for slot in self._of_relayer.get(relayer, {}).values())

    def _close(self, slot: OpenSlot) -> None:
        if self._open.pop(slot.slot_id, None) is None:
            return
        del self._of_relayer[slot.relayer][slot.slot_id]
        self._watched.difference_update(item.settlement_id for item in slot.items)
        self._count(slot.relayer)
        self.slot_freed.set()

    def _count(self, relayer: Address) -> None:
        OPEN_SLOTS.labels(self._chain.network, relayer).set(self.open_slots(relayer))

    # --- sending ---

    async def send(self, slot: OpenSlot, *, fresh: bool = False) -> None:
        """Hand the slot's newest transaction to the network; any doubt is left to the next look.

        `fresh`: it is sent for the first time, so blocks that it misses count from here.
        """
        attempt = slot.attempts[-1]
        started = self._clock.monotonic()
        slot.sent_at, slot.sent_head = started, self._head_number()
        if fresh:
            slot.sent_block = self._head_number()
            slot.first_sent_block = slot.first_sent_block or slot.sent_block
            for item in slot.items:
                if seat := self._board.find(item.settlement_id):
                    seat.tx_hash = attempt.tx_hash
        if self._withheld(slot):
            return
        try:
            with tracing.shared("send", slot.traceparents, tx_hash=attempt.tx_hash, payments=len(slot.items), purpose=attempt.purpose):
                outcome = await self._hand_over(attempt.raw, fresh=fresh)
        except ChainFault as fault:
            log.warning("transaction.send_in_doubt", tx_hash=attempt.tx_hash, kind=fault.kind, fault=str(fault))
            self._say_how_it_was_taken(slot, fault.kind, fresh=fresh)
        else:
            kind = outcome.error.value if outcome.error else "unknown"
            self._say_how_it_was_taken(slot, None if outcome.in_pool else kind, fresh=fresh)
            if outcome.in_pool:
                STAGE_SECONDS.labels(self._chain.network, "broadcast").observe(self._clock.monotonic() - started)
                slot.refused = None
            elif kind != slot.refused:
                slot.refused = kind
                _tell_refused(attempt.tx_hash, kind, outcome)
        if fresh and len(self._open) == 1 and not self._chain.head.pushed:  # under load there is always more open
            self._first_looks = iter(_FIRST_LOOKS_S)
        self._look.set()

    def _withheld(self, slot: OpenSlot) -> bool:
        """Is it not to be sent? It waits until it has missed its blocks; then a no-op takes its place."""
        attempt = slot.attempts[-1]
        if attempt.purpose == "noop" or not self.stopped(slot):
            return False
        if slot.refused != _STOPPED:
            slot.refused = _STOPPED
            log.error("transaction.withheld", tx_hash=attempt.tx_hash, slot_id=slot.slot_id)
        return True

    def _say_how_it_was_taken(self, slot: OpenSlot, refused: str | None, *, fresh: bool) -> None:
        """Only what a pool takes anew, or did not take before, says that it takes more of this relayer."""
        if self.send_answered is None:
            return
        if refused in _STRAINED:
            self.send_answered(slot.relayer, welcome=False)
        elif refused is None and (fresh or slot.refused is not None):
            self.send_answered(slot.relayer, welcome=True)

    async def _hand_over(self, raw: bytes, *, fresh: bool) -> SendOutcome:
        """Send; first sends may wait at the node for their block, a few at a time, for each of them keeps a connection."""
        deadline, wait_ms = self._chain.evm.deadline_in(_RPC_S), self._settings.send_sync_ms
        if not (fresh and wait_ms) or self._kept >= _KEPT_MAX:
            return await self._chain.evm.send_raw(raw, deadline)
        self._kept += 1
        try:
            return await self._chain.evm.send_raw_sync(raw, wait_ms, deadline)
        finally:
            self._kept -= 1

    # --- looking ---

    async def run(self) -> None:
        """While anything is open: look at each new block, when something was sent, and at what is late."""
        while True:
            beat("watcher", self._chain.network)
            if not self._open:  # a send that never returns must not keep us asleep, so the slot itself wakes us
                self._opened.clear()
                try:
                    async with asyncio.timeout(_IDLE_S):
                        await self._opened.wait()
                except TimeoutError:
                    continue
            flashblocks = any(slot.wants_flashblock for slot in self._open.values())
            pause_s = _FLASHBLOCK_POLL_S if flashblocks else max(self._settings.poll_s, self._chain.head.next_block_in_s())
            if not self._look.is_set():
                pause_s = min(pause_s, next(self._first_looks, pause_s))
            try:
                async with asyncio.timeout(pause_s):
                    await self._look.wait()
            except TimeoutError:
                pass
            self._look.clear()
            if await self._new_block() or flashblocks or self._late():
                await self.look()

    async def _new_block(self) -> bool:
        """Has a block come since the last look? One small request."""
        head = await self._chain.evm.head(self._deadline())
        self._chain.head.observe(head)
        self._head = head
        return head.block_hash != self._looked_at

    def _late(self) -> list[OpenSlot]:
        """Slots that a block passed by since they were sent, or that were sent very long ago."""
        now, head, patience_s = self._clock.monotonic(), self._head_number(), self._settings.resend_s
        return [
            slot
            for slot in self._open.values()
            if now - slot.sent_at >= (patience_s if head > slot.sent_head else _HALT_FACTOR * patience_s)
        ]

    async def look(self) -> None:
        """One look at the chain for everything open, then outcomes in one commit."""
        slots, head = list(self._open.values()), self._head
        if not slots or head is None:
            return
        found = await self._lookout.look(slots, set(self._late()), head)
        self._looked_at = head.block_hash
        if found.upgraded and self.upgraded:
            self.upgraded(found.upgraded)
        await self._settle([(slot, found.mined[slot.slot_id]) for slot in slots if slot.slot_id in found.mined])
        await self._flashblocks.seen([(slot, found.unsealed[slot.slot_id]) for slot in slots if slot.slot_id in found.unsealed])
        await self._flashblocks.passed([slot for slot in slots if found.absent(slot.slot_id)], self._head_number())
        for slot_id, fault in found.unread.items():
            if slot_id not in found.mined:
                log.warning("slot.undecided", slot_id=slot_id, kind=fault.kind, fault=str(fault))
        if late := [slot for slot in self._late() if found.absent(slot.slot_id)]:
            await self._nudge(late)

    async def _settle(self, mined: Sequence[tuple[OpenSlot, Receipt]]) -> None:
        """Commit what mined transactions did: first what their receipts prove, then what has to be found out.

        A settlement whose fate is undecided keeps its slot open and is looked at again after `resend_s`.
        """
        if (witnesses := self._settings.receipt_witnesses) > 1 and mined:
            mined = await self._confirmed(mined, witnesses)
        mined = [(slot, receipt) for slot, receipt in mined if slot.items or await self._find_payments(slot, receipt)]
        proven: list[_Mined] = []
        doubtful: list[tuple[OpenSlot, Receipt]] = []
        for slot, receipt in mined:
            proofs = [(item, abi.find_payment(receipt.logs, item.authorization)) for item in slot.items]
            shared = slot.kind == "batch"
            rulings = [(item, included(proof.log, shared=shared)) for item, proof in proofs if isinstance(proof, PaymentProof)]
            if len(rulings) == len(proofs):
                proven.append(_Mined(slot, receipt, rulings, []))
            else:
                doubtful.append((slot, receipt))
        await self._close_mined(proven)
        await self._flashblocks.fallen([slot for slot, _ in doubtful])
        for slot, _ in doubtful:
            slot.sent_at = self._clock.monotonic()
        for found in await asyncio.gather(*(self._rule_slot(slot, receipt) for slot, receipt in doubtful)):
            if found is not None:
                await self._close_mined([found])

    async def _find_payments(self, slot: OpenSlot, receipt: Receipt) -> bool:
        """A transaction whose record was lost was found in a pool and is mined now: what it pays and nobody asked for is put on record.

        False while its block cannot be had: it stays open, and is looked at again.
        """
        if slot.is_noop(receipt.tx_hash):
            return True
        stray = await mined_stray(self._chain.evm, slot.relayer, slot.tx_nonce, receipt.block_number, self._deadline())
        if stray is None:
            log.warning("slot.undecided", slot_id=slot.slot_id, kind="state_unavailable", fault="its block cannot be had")
            slot.sent_at = self._clock.monotonic()
            return False
        async with self._db.transaction() as session:
            slot.items = tuple(map(item_of, await record_payments(session, self._clock, self._chain.network, stray)))
        return True

    async def _confirmed(self, mined: Sequence[tuple[OpenSlot, Receipt]], witnesses: int) -> list[tuple[OpenSlot, Receipt]]:
        """Those that other endpoints confirm; the others stay open and are asked for again."""
        known = await self._chain.evm.confirmed([receipt for _, receipt in mined], witnesses, self._deadline())
        if doubtful := [slot for slot, receipt in mined if receipt.tx_hash not in known]:
            RPC_DISAGREEMENTS.labels(self._chain.network, "receipt").inc(len(doubtful))
            log.warning("receipt.unconfirmed", slots=[slot.slot_id for slot in doubtful], witnesses=witnesses)
            for slot in doubtful:
                slot.sent_at = float("-inf")  # late: asked for again at once
        return [(slot, receipt) for slot, receipt in mined if receipt.tx_hash in known]

    async def _rule_slot(self, slot: OpenSlot, receipt: Receipt) -> "_Mined | None":
        """What a mined transaction did for each of its items; None while one of them is undecided."""
        rulings = await asyncio.gather(*(self._rule_mined(slot, item, receipt) for item in slot.items))
        if NoRuling.UNTOLD in rulings:
            return None
        found = list(zip(slot.items, rulings, strict=True))
        return _Mined(
            slot,
            receipt,
            [(item, ruling) for item, ruling in found if isinstance(ruling, Ruling)],
            [item for item, ruling in found if ruling is NoRuling.UNUSED],
        )

    async def _close_mined(self, mined: Sequence["_Mined"]) -> None:
        """Commit outcomes, slots and costs together."""
        if not mined:
            return
        requeued = [_requeued(item) for each in mined for item in each.unpaid]
        await self.commit(
            [
                *(
                    _struck(self.outcome(item, each.slot.state_of(item), ruling), ruling, each)
                    for each in mined
                    for item, ruling in each.rulings
                ),
                *requeued,
            ],
            [
                ClosedSlot(
                    slot_id=each.slot.slot_id,
                    state="included",
                    mined_tx_hash=each.receipt.tx_hash,
                    block_number=each.receipt.block_number,
                    block_hash=each.receipt.block_hash,
                )
                for each in mined
            ],
            [_cost(each, self._chain.network) for each in mined],
            {item.settlement_id: (item, ruling, each.slot.opened_at) for each in mined for item, ruling in each.rulings},
        )
        for each in mined:
            GAS_SPENT.labels(self._chain.network, each.slot.relayer, each.bought).inc(each.receipt.fee_wei)
            if each.slot.kind == "batch" and ran_out(each.receipt.gas_used, each.slot.gas) and self.batch_burned:
                self.batch_burned()
            # Somebody whose payment ended otherwise may have burned the gas of the others: then the limit was not too low.
            self.pricing.mined(each.slot, each.receipt, short_of_gas=bool(each.unpaid) and not each.failed)
            self._close(each.slot)
        if requeued:
            self.requeued.set()

    async def commit(
        self,
        outcomes: Sequence[Outcome],
        slots: Sequence[ClosedSlot],
        costs: Sequence[Cost],
        rulings: dict[UUID, tuple[Item, Ruling, float]],
    ) -> None:
        """Commit outcomes and tell everybody in this process who waits for them."""
        for resolved in await settlements.resolve(self._db, self._replica_id, outcomes, slots, costs, self._settings.answer_doubt_s):
            if resolved.settlement_id not in rulings:  # queued again: nobody knows more than before
                continue
            item, ruling, opened_at = rulings[resolved.settlement_id]
            if (
                resolved.state not in PAID
                and resolved.answer
                and decode_answer(resolved.answer).success
                and resolved.state != State.EXTERNAL
            ):
                INCIDENTS.labels("lost_after_success").inc()
                log.error("settlement.lost_after_success", settlement_id=str(resolved.settlement_id), state=resolved.state)
            authorization, took_s = item.authorization, self._clock.monotonic() - opened_at
            series(SETTLEMENTS, authorization.network, authorization.scheme, resolved.state).inc()
            series(STAGE_SECONDS, self._chain.network, "inclusion").observe(took_s)
            if resolved.state == State.INCLUDED:
                series(SETTLED_VALUE, authorization.network, authorization.asset).inc(authorization.amount_atomic)
            if ruling.state is State.INCLUDED:
                self._chain.head.included_after(took_s)
            log.info(
                "settlement.resolved",
                settlement_id=str(resolved.settlement_id),
                state=resolved.state,
                reason=ruling.reason.name if ruling.reason else None,
                network=authorization.network,
                payer=authorization.payer,
                pay_to=authorization.pay_to,
                amount_atomic=str(authorization.amount_atomic),
                tx_hash=ruling.tx_hash,
                log_index=ruling.log.log_index if ruling.log else None,
                inclusion_s=round(took_s, 3),
                trace_id=tracing.trace_id_of(item.traceparent),
            )
            tracing.record("inclusion", took_s, (item.traceparent,), tx_hash=ruling.tx_hash, state=resolved.state)
            self._board.heard(resolved, ruling.answer, ruling.tx_hash, self._replica_id, told=_may_be_told(item, ruling))

    def outcome(self, item: Item, from_state: State, ruling: Ruling, moves: int | None = None) -> Outcome:
        """The move that a ruling means; of the row with so many `moves` only, when they are given."""
        seat = self._board.find(item.settlement_id)
        return Outcome(
            settlement_id=item.settlement_id,
            from_state=from_state,
            to_state=move(from_state, ruling.state),
            answer=ruling.answer,
            phase=resolution(ruling.state),
            reason=ruling.reason.name if ruling.reason else None,
            tx_hash=ruling.tx_hash,
            log_index=ruling.log.log_index if ruling.log else None,
            block_number=ruling.log.block_number if ruling.log else None,
            block_hash=ruling.log.block_hash if ruling.log else None,
            spend_epoch=seat.holder_epoch if seat and _may_be_told(item, ruling) else None,
            moves=moves,
        )

    # --- judging ---

    async def _rule_mined(self, slot: OpenSlot, item: Item, receipt: Receipt) -> Ruling | NoRuling:
        """What a mined transaction of ours did for one of its items; one that only failed among others may try again alone."""
        found = abi.find_payment(receipt.logs, item.authorization)
        if isinstance(found, PaymentProof):
            return included(found.log, shared=slot.kind == "batch")
        try:
            again = slot.kind == "batch" or slot.is_noop(receipt.tx_hash) or self.pricing.may_grow(slot, receipt)
            return await self._resolver.rule(item, receipt, again=again)
        except Fault as fault:
            log.warning("settlement.undecided", settlement_id=str(item.settlement_id), kind=fault.kind, fault=str(fault))
            return NoRuling.UNTOLD

    def _deadline(self) -> float:
        return self._chain.evm.deadline_in(_RPC_S)

    # --- what does not get mined ---

    async def _nudge(self, late: Sequence[OpenSlot]) -> None:
        """Send again, byte for byte, or outbid the lowest; and notice a tx_nonce that somebody else used."""
        relayers_late = tuple({slot.relayer for slot in late})
        counts = (await self._chain.evm.see(None, (), relayers_late, self._deadline())).tx_counts
        for relayer, used in zip(relayers_late, counts, strict=True):
            if isinstance(used, ChainFault):
                log.warning("slot.undecided", relayer=relayer, kind=used.kind, fault=str(used))
                continue
            unsent = [slot for slot in late if slot.relayer == relayer and slot.tx_nonce >= used]
            await asyncio.gather(*(self._push_apart(slot) for slot in sorted(unsent, key=lambda slot: slot.tx_nonce)))
            for slot in [slot for slot in late if slot.relayer == relayer and slot.tx_nonce < used]:
                slot.misses += 1
                slot.sent_at = self._clock.monotonic()
                if slot.misses < _MISSES_MAX:
                    continue
                try:
                    await self._lost(slot)
                except ChainFault as fault:
                    log.warning("slot.undecided", slot_id=slot.slot_id, kind=fault.kind, fault=str(fault))

    async def _push_apart(self, slot: OpenSlot) -> None:
        """`_push`: who cannot be outbid, for its key or the database does not answer, is sent again as it is, and holds up nobody."""
        try:
            await self._push(slot)
        except Fault as fault:
            log.warning("transaction.not_outbid", slot_id=slot.slot_id, relayer=slot.relayer, kind=fault.kind, fault=str(fault))
            self._start_resend(slot)

    def _start_resend(self, slot: OpenSlot) -> None:
        if not slot.resending:
            slot.resending, slot.sent_at = True, self._clock.monotonic()
            self._background.start("resend", self._resend(slot))

    async def _push(self, slot: OpenSlot) -> None:
        """Do what the pure ruling says about one transaction that is not mined."""
        head, others = self._chain.head.newest, self._of_relayer.get(slot.relayer, {}).values()
        if head is None or self.outbid is None:
            return
        sent = Sent(
            attempts=[attempt.fees for attempt in slot.attempts],
            idle_s=self._clock.monotonic() - slot.sent_at,
            blocks_missed=head.number - slot.sent_block,
            lowest=all(other.tx_nonce >= slot.tx_nonce for other in others),
            blocks_others=any(other.tx_nonce > slot.tx_nonce for other in others),
            dead=all(item.authorization.valid_before <= head.timestamp or item.settlement_id in slot.used_elsewhere for item in slot.items),
        )
        ruling = rule(sent, self.pricing.quote(), self._bumps)
        if isinstance(ruling, Bump) and sent.blocks_others and await self._dead(slot):
            ruling = Replace(ruling.fees)
        match ruling:
            case Bump(fees):
                if not await self.outbid(slot, fees, noop=False):
                    await self._give_way(slot, fees, blocks_others=sent.blocks_others)
                elif len(slot.attempts) > len(sent.attempts):
                    self.pricing.missed(slot)
            case Replace(fees):
                if not await self.outbid(slot, fees, noop=True):
                    self._start_resend(slot)
            case Rebroadcast():
                self._start_resend(slot)
            case Wait():
                pass

    async def _give_way(self, slot: OpenSlot, fees: Fees, *, blocks_others: bool) -> None:
        """No gas budget pays for a higher bid: it waits as it is, or a no-op, which costs less than is held, lets others pass.

        What it carried is queued again then, and waits for its budget.
        """
        log.warning("transaction.unaffordable", slot_id=slot.slot_id, relayer=slot.relayer, max_fee_wei=fees.max_fee_wei)
        if not blocks_others or self.outbid is None or not await self.outbid(slot, fees, noop=True):
            self._start_resend(slot)

    async def _dead(self, slot: OpenSlot) -> bool:
        """Can nothing that it carries be paid any more, by chain facts? One payment that can, or a doubt, keeps it alive."""
        own = {attempt.tx_hash for attempt in slot.attempts}
        for item in slot.items:
            try:
                ruling = await self._resolver.rule(item, None)
            except Fault as fault:
                log.warning("settlement.undecided", settlement_id=str(item.settlement_id), kind=fault.kind, fault=str(fault))
                return False
            if not isinstance(ruling, Ruling) or ruling.tx_hash in own:
                return False
        return True

    async def _resend(self, slot: OpenSlot) -> None:
        """Send again beside the loop: a node that does not answer sends must not keep us from looking."""
        try:
            await self.send(slot)
        finally:
            slot.resending = False

    def _head_number(self) -> int:
        return self._chain.head.newest.number if self._chain.head.newest else 0

    async def _lost(self, slot: OpenSlot) -> None:
        """Its tx_nonce is used and no transaction of ours did it: somebody else has the key."""
        counts = [await evm.transaction_count(slot.relayer, "latest", self._deadline()) for evm in self._chain.evm.witnesses()]
        if min(counts) <= slot.tx_nonce:
            RPC_DISAGREEMENTS.labels(self._chain.network, "tx_count").inc()
            log.warning("slot.disputed", slot_id=slot.slot_id, tx_nonce=slot.tx_nonce, tx_counts=counts)
            return
        found = [(item, await self._resolver.rule(item, None)) for item in slot.items]
        own = {attempt.tx_hash for attempt in slot.attempts}
        if any(ruling is NoRuling.UNTOLD or (isinstance(ruling, Ruling) and ruling.tx_hash in own) for _, ruling in found):
            return  # mined after all, or used by nobody knows whom: not lost while the chain does not tell
        await self._flashblocks.fallen([slot])
        outcomes = [
            self.outcome(item, State.SUBMITTED, ruling) if isinstance(ruling, Ruling) else _requeued(item) for item, ruling in found
        ]
        log.error("relayer.used_elsewhere", relayer=slot.relayer, tx_nonce=slot.tx_nonce, slot_id=slot.slot_id)
        INCIDENTS.labels("relayer_used_elsewhere").inc()
        await relayers.quarantine(self._db, self._chain.network, slot.relayer)
        await settlements.open_incident(
            self._db,
            self._chain.network,
            "relayer_used_elsewhere",
            f"tx_nonce {slot.tx_nonce} was consumed by a transaction that is not ours",
            relayer=slot.relayer,
        )
        closed = ClosedSlot(slot_id=slot.slot_id, state="consumed_externally", mined_tx_hash=None, block_number=None, block_hash=None)
        rulings = {item.settlement_id: (item, ruling, slot.opened_at) for item, ruling in found if isinstance(ruling, Ruling)}
        await self.commit(outcomes, [closed], [], rulings)
        self._close(slot)
        self.requeued.set()


def _tell_refused(tx_hash: TxHash, kind: str, outcome: SendOutcome) -> None:
    if outcome.error is NodeError.NONCE_TOO_LOW:  # as a rule used by this very transaction
        log.info("transaction.send_refused", tx_hash=tx_hash, kind=kind, answer=outcome.message)
    elif kind in _STRAINED:
        log.warning("transaction.send_refused", tx_hash=tx_hash, kind=kind, answer=outcome.message)
    else:
        log.error("transaction.send_refused", tx_hash=tx_hash, kind=kind, answer=outcome.message)


def _struck(outcome: Outcome, ruling: Ruling, mined: _Mined) -> Outcome:
    """With its strike, if our transaction burned gas on it by its payer's or tenant's doing."""
    slot, receipt = mined.slot, mined.receipt
    if ruling.state is State.INCLUDED or slot.is_noop(receipt.tx_hash):
        return outcome
    short_of_gas = slot.kind != "contract_payer" and ran_out(receipt.gas_used, slot.gas)
    who = struck(ruling.reason, short_of_gas=short_of_gas)
    return outcome if who is None else replace(outcome, struck_by=receipt.tx_hash, of_payer=who == "payer")


def _cost(mined: _Mined, network: Network) -> Cost:
    """What it cost, by whom it is borne, and for what it is booked. Who was not paid by it bears a share all the same."""
    slot, receipt = mined.slot, mined.receipt
    shares = dict(zip([item.settlement_id for item in slot.items], split_evenly(receipt.fee_wei, len(slot.items)), strict=True))
    paid = {item.settlement_id for item, ruling in mined.rulings if ruling.state is State.INCLUDED and ruling.tx_hash == receipt.tx_hash}
    for_payment = sum(wei for settlement_id, wei in shares.items() if settlement_id in paid)
    otherwise = Cause.NOOP if slot.is_noop(receipt.tx_hash) else Cause.REVERT
    return Cost(
        slot_id=slot.slot_id,
        tx_hash=receipt.tx_hash,
        gas_used=receipt.gas_used,
        effective_gas_price_wei=receipt.effective_gas_price_wei,
        l1_fee_wei=receipt.l1_fee_wei,
        operator_fee_wei=receipt.operator_fee_wei,
        shares_wei=shares,
        entries=gas_entries(network, slot.relayer, {Cause.PAYMENT: for_payment, otherwise: receipt.fee_wei - for_payment}),
    )


def _may_be_told(item: Item, ruling: Ruling) -> bool:
    """Is it a failure, or a success as deep as its tenant wants it?"""
    return not ruling.answer.success or deep_enough(ruling.state, item.confirm_level)


def _requeued(item: Item) -> Outcome:
    """Its slot was resolved without it, and there is time left."""
    return Outcome(
        settlement_id=item.settlement_id, from_state=State.SUBMITTED, to_state=move(State.SUBMITTED, State.QUEUED), answer=None, phase=None
    )
