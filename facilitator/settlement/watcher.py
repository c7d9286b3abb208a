"""Finds out what became of sent transactions, and commits it: state, entries, answer and cost together.

It believes chain facts only (design.md decisions 3 and 4): the log pair in a sealed block proves a payment; a receipt's
status does not, an error is never an absence, and without proof a settlement stays where it is.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final
from uuid import UUID

import structlog

from facilitator.chain.evm import Receipt
from facilitator.chain.rpc import NodeError
from facilitator.clock import Clock
from facilitator.domain import abi
from facilitator.domain.abi import Canceled, Log, PaymentProof, UsedOtherwise
from facilitator.domain.facts import Call, Facts, Head
from facilitator.domain.postings import resolution
from facilitator.domain.states import State, move
from facilitator.errors import ChainFault, Fault
from facilitator.metrics import INCIDENTS, OPEN_SLOTS, SETTLEMENTS, STAGE_SECONDS
from facilitator.protocol.messages import Authorization
from facilitator.protocol.reasons import Reason, Refusal
from facilitator.schemes.scheme import Registry
from facilitator.settlement.answers import AnswerBoard
from facilitator.settlement.network import ServedNetwork
from facilitator.settlement.settings import Settings
from facilitator.store import relayers, settlements
from facilitator.store.db import Db
from facilitator.store.settlements import Answer, Block, ClosedSlot, Cost, Outcome, decode_answer
from facilitator.units import Address, BlockHash, TxHash

_RPC_S: Final = 5.0
"""Deadline of one look at the chain."""
_LOG_RANGE: Final = 2000
"""Blocks asked for in one `eth_getLogs`."""
_LOOK_BACK: Final = 10
"""Blocks before admission that are searched too: our head may have been ahead of another node's."""
_MISSES_MAX: Final = 3
"""Looks at a used tx_nonce without a receipt of ours before we say that somebody else used it."""

_FAULTS_MAX: Final = 3
"""Blocks that could not be read before the comparison with the canonical chain is left for the next time."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A settlement in a transaction."""

    settlement_id: UUID
    authorization: Authorization
    admitted_block: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One signed transaction of a slot; recorded before it was ever sent."""

    tx_hash: TxHash
    raw: bytes = field(repr=False)


@dataclass(eq=False, slots=True, kw_only=True)
class OpenSlot:
    """A tx_nonce whose end nobody knows yet."""

    slot_id: int
    relayer: Address
    tx_nonce: int
    attempts: list[Attempt]
    items: tuple[Item, ...]
    opened_at: float
    """Monotonic."""
    sent_at: float = float("-inf")
    misses: int = 0
    refused: str | None = None
    """How the network last refused it; said once, however often it is sent again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """How a settlement ended, by chain facts."""

    state: State
    answer: Answer
    reason: Reason | None = None
    log: Log | None = None
    tx_hash: TxHash | None = None


@dataclass(frozen=True, slots=True)
class _Mined:
    """A slot whose transaction was mined, and what it did for every settlement in it."""

    slot: OpenSlot
    receipt: Receipt
    rulings: list[tuple[Item, Ruling]]


class NoRuling(Enum):
    """Why the resolver cannot say how a settlement ended."""

    UNUSED = "unused"
    """By the chain's own word the authorization is unused and would be paid now."""
    UNTOLD = "untold"
    """The chain does not tell yet."""


class Watcher:
    """One network's open slots."""

    def __init__(
        self,
        chain: ServedNetwork,
        registry: Registry,
        board: AnswerBoard,
        db: Db,
        clock: Clock,
        settings: Settings,
        replica_id: str,
    ) -> None:
        self._chain = chain
        self._registry = registry
        self._board = board
        self._db = db
        self._clock = clock
        self._settings = settings
        self._replica_id = replica_id
        self._open: dict[int, OpenSlot] = {}
        self._watched: set[UUID] = set()
        self._looked_at: BlockHash | None = None
        self._look = asyncio.Event()
        self.slot_freed = asyncio.Event()
        """Set whenever a slot closes, for the dispatcher that waits for room."""

    # --- what is watched ---

    def add(self, slot: OpenSlot) -> None:
        """Watch a slot that is on record."""
        self._open[slot.slot_id] = slot
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

    def open_slots(self, relayer: Address) -> int:
        """Transactions of this relayer in flight."""
        return sum(slot.relayer == relayer for slot in self._open.values())

    def _close(self, slot: OpenSlot) -> None:
        self._open.pop(slot.slot_id, None)
        self._watched.difference_update(item.settlement_id for item in slot.items)
        self._count(slot.relayer)
        self.slot_freed.set()

    def _count(self, relayer: Address) -> None:
        OPEN_SLOTS.labels(self._chain.network, relayer).set(self.open_slots(relayer))

    # --- sending ---

    async def send(self, slot: OpenSlot) -> None:
        """Hand the slot's newest transaction to the network; any doubt is left to the next look."""
        attempt = slot.attempts[-1]
        started = self._clock.monotonic()
        slot.sent_at = started
        try:
            outcome = await self._chain.evm.send_raw(attempt.raw, self._chain.evm.deadline_in(_RPC_S))
        except ChainFault as fault:
            log.warning("transaction.send_in_doubt", tx_hash=attempt.tx_hash, kind=fault.kind, fault=str(fault))
        else:
            if outcome.in_pool:
                STAGE_SECONDS.labels("send").observe(self._clock.monotonic() - started)
            else:
                kind = outcome.error.value if outcome.error else "unknown"
                if kind != slot.refused:
                    slot.refused = kind
                    mined_already = outcome.error is NodeError.NONCE_TOO_LOW  # as a rule by this very transaction
                    tell = log.info if mined_already else log.error
                    tell("transaction.send_refused", tx_hash=attempt.tx_hash, kind=kind, answer=outcome.message)
        self._look.set()

    # --- looking ---

    async def run(self) -> None:
        """While anything is open: look at each new block, when something was sent, and at what is late."""
        while True:
            if not self._open:
                await self._look.wait()
            else:
                try:
                    async with asyncio.timeout(max(self._settings.poll_s, self._chain.head.next_block_in_s())):
                        await self._look.wait()
                except TimeoutError:
                    pass
            self._look.clear()
            if await self._new_block() or self._late():
                await self.look()

    async def _new_block(self) -> bool:
        """Has a block come since the last look? One small request."""
        head = await self._chain.evm.head(self._deadline())
        self._chain.head.observe(head)
        return head.block_hash != self._looked_at

    def _late(self) -> list[OpenSlot]:
        """Slots that were sent long enough ago to be sent again."""
        now = self._clock.monotonic()
        return [slot for slot in self._open.values() if now - slot.sent_at >= self._settings.resend_s]

    async def look(self) -> None:
        """One look at the chain: receipts of everything open, in one request; then outcomes, in one commit."""
        slots = list(self._open.values())
        if not slots:
            return
        newest = self._chain.head.newest
        self._looked_at = newest.block_hash if newest else None
        hashes = [(slot, attempt.tx_hash) for slot in slots for attempt in slot.attempts]
        receipts = await self._chain.evm.receipts([tx_hash for _, tx_hash in hashes], self._deadline())
        mined: dict[int, Receipt] = {}
        for (slot, _), receipt in zip(hashes, receipts, strict=True):
            if receipt is not None and receipt.sealed:
                mined[slot.slot_id] = receipt
        await self._settle([(slot, mined[slot.slot_id]) for slot in slots if slot.slot_id in mined])
        if late := [slot for slot in self._late() if slot.slot_id not in mined]:
            await self._nudge(late)

    async def _settle(self, mined: Sequence[tuple[OpenSlot, Receipt]]) -> None:
        """Commit what mined transactions did: first what their receipts prove, then what has to be found out.

        A settlement whose fate is undecided keeps its slot open and is looked at again after `resend_s`.
        """
        proven: list[_Mined] = []
        doubtful: list[tuple[OpenSlot, Receipt]] = []
        for slot, receipt in mined:
            proofs = [(item, abi.find_payment(receipt.logs, item.authorization)) for item in slot.items]
            rulings = [(item, included(proof.log)) for item, proof in proofs if isinstance(proof, PaymentProof)]
            if len(rulings) == len(proofs):
                proven.append(_Mined(slot, receipt, rulings))
            else:
                doubtful.append((slot, receipt))
        await self._close_mined(proven)
        for slot, _ in doubtful:
            slot.sent_at = self._clock.monotonic()
        for found in await asyncio.gather(*(self._rule_slot(slot, receipt) for slot, receipt in doubtful)):
            if found is not None:
                await self._close_mined([found])

    async def _rule_slot(self, slot: OpenSlot, receipt: Receipt) -> "_Mined | None":
        """What a mined transaction did for each of its items; None while one of them is undecided."""
        rulings = [(item, await self._rule_mined(item, receipt)) for item in slot.items]
        decided = [(item, ruling) for item, ruling in rulings if ruling is not None]
        return _Mined(slot, receipt, decided) if len(decided) == len(rulings) else None

    async def _close_mined(self, mined: Sequence["_Mined"]) -> None:
        """Commit outcomes, slots and costs together."""
        if not mined:
            return
        await self.commit(
            [self.outcome(item, State.SUBMITTED, ruling) for each in mined for item, ruling in each.rulings],
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
            [
                Cost(
                    tx_hash=each.receipt.tx_hash,
                    gas_used=each.receipt.gas_used,
                    effective_gas_price_wei=each.receipt.effective_gas_price_wei,
                    l1_fee_wei=each.receipt.l1_fee_wei,
                )
                for each in mined
            ],
            {item.settlement_id: (item, ruling, each.slot.opened_at) for each in mined for item, ruling in each.rulings},
        )
        for each in mined:
            self._close(each.slot)

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
            authorization, took_s = item.authorization, self._clock.monotonic() - opened_at
            SETTLEMENTS.labels(authorization.network, authorization.scheme, resolved.state).inc()
            STAGE_SECONDS.labels("inclusion").observe(took_s)
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
            )
            if seat := self._board.find(resolved.settlement_id):
                seat.answer = decode_answer(resolved.answer) if resolved.answer else ruling.answer  # what was told once stays
                seat.tx_hash = ruling.tx_hash or seat.tx_hash
                if resolved.answer_state == "spent" and resolved.answer_holder == self._replica_id:
                    seat.spent_epoch = resolved.answer_epoch
                seat.wake()

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
            spend_epoch=seat.holder_epoch if seat else None,
            moves=moves,
        )

    # --- judging ---

    async def _rule_mined(self, item: Item, receipt: Receipt) -> Ruling | None:
        """What a mined transaction of ours did for one of its items; None while it cannot be told."""
        found = abi.find_payment(receipt.logs, item.authorization)
        if isinstance(found, PaymentProof):
            return included(found.log)
        try:
            ruling = await self.rule(item, receipt)
        except Fault as fault:
            log.warning("settlement.undecided", settlement_id=str(item.settlement_id), kind=fault.kind, fault=str(fault))
            return None
        return ruling if isinstance(ruling, Ruling) else None

    async def rule(self, item: Item, mined: Receipt | None) -> Ruling | NoRuling:
        """The resolver: who used this authorization, if anybody?

        `mined` is a transaction of ours that was mined without paying it; then an unused authorization means *failed*.
        """
        authorization = item.authorization
        found = await self._search(item)
        if isinstance(found, PaymentProof):
            if await relayers.our_transactions(self._db, [found.log.tx_hash]):
                return included(found.log)
            return _refused(State.EXTERNAL, Reason.SETTLEMENT_EXTERNAL, "another sender executed this authorization", found.log)
        if isinstance(found, Canceled):
            return _refused(State.CANCELLED, Reason.AUTHORIZATION_CANCELED, "the payer cancelled this authorization", found.log)
        if isinstance(found, UsedOtherwise):
            return _refused(State.CONFLICT, Reason.AUTHORIZATION_CONFLICT, "this nonce was used with other terms", found.log)
        used, refusal, head = await self._ask(authorization)
        if used is not False or (mined is not None and head.number < mined.block_number):
            return NoRuling.UNTOLD  # used, but its log is not to be seen yet; or this node has not come to that block
        if mined is None and refusal is None:
            return NoRuling.UNUSED
        tx_hash = mined.tx_hash if mined else None
        reason = refusal.reason if refusal else Reason.TRANSACTION_FAILED
        message = refusal.message if refusal else f"transaction {tx_hash} was mined but did not move the money"
        return Ruling(
            state=State.FAILED,
            reason=reason,
            tx_hash=tx_hash,
            answer=Answer(success=False, reason=reason.name, message=message, tx_hash=tx_hash),
        )

    async def _ask(self, authorization: Authorization) -> tuple[bool | None, Refusal | None, Head]:
        """Is it used, and would it be paid now? Time alone answers neither here: what has expired may have been used before."""
        scheme = self._registry.find(authorization.scheme)
        assert scheme is not None
        state = Call(to=authorization.asset, data=abi.authorization_state(authorization.payer, authorization.auth_nonce))
        facts = await self._chain.evm.answer((state, *scheme.ask(authorization)), self._deadline())
        self._chain.head.observe(facts.head)
        now = self._chain.head.now()
        assert now is not None
        used = abi.read_bool(facts.replies[0].data) if facts.replies[0].ok else None
        judged = scheme.judge(authorization, Facts(head=facts.head, replies=facts.replies[1:]))
        return used, scheme.check_time(authorization, now) or judged, facts.head

    async def _search(self, item: Item) -> PaymentProof | UsedOtherwise | Canceled | None:
        """Look for the authorization's own log since it was admitted; the receipt around it tells what it did.

        Asked by auth nonce: one log at most, however much else the payer moves.
        """
        authorization = item.authorization
        head = await self._chain.evm.head(self._deadline())
        self._chain.head.observe(head)
        start = max(0, item.admitted_block - _LOOK_BACK)
        while start <= head.number:
            end = min(start + _LOG_RANGE - 1, head.number)
            logs = await self._chain.evm.logs(
                self._deadline(),
                addresses=[authorization.asset],
                topics=(
                    (abi.AUTHORIZATION_USED_TOPIC, abi.AUTHORIZATION_CANCELED_TOPIC),
                    abi.topic_of(authorization.payer),
                    authorization.auth_nonce,
                ),
                from_block=start,
                to_block=end,
            )
            for found in logs:
                [receipt] = await self._chain.evm.receipts([found.tx_hash], self._deadline())
                if receipt is None or not receipt.sealed:
                    raise ChainFault(
                        "no_receipt", "the node has a log of a transaction whose receipt it does not have", tx_hash=found.tx_hash
                    )
                if (proof := abi.find_payment(receipt.logs, authorization)) is not None:
                    return proof
            start = end + 1
        return None

    def _deadline(self) -> float:
        return self._chain.evm.deadline_in(_RPC_S)

    # --- what does not get mined ---

    async def _nudge(self, late: Sequence[OpenSlot]) -> None:
        """Send again, byte for byte; and notice a tx_nonce that somebody else used."""
        for relayer in {slot.relayer for slot in late}:
            used = await self._chain.evm.transaction_count(relayer, "latest", self._deadline())
            unsent = [slot for slot in late if slot.relayer == relayer and slot.tx_nonce >= used]
            await asyncio.gather(*(self.send(slot) for slot in sorted(unsent, key=lambda slot: slot.tx_nonce)))
            for slot in [slot for slot in late if slot.relayer == relayer and slot.tx_nonce < used]:
                slot.misses += 1
                slot.sent_at = self._clock.monotonic()
                if slot.misses < _MISSES_MAX:
                    continue
                try:
                    await self._lost(slot)
                except ChainFault as fault:
                    log.warning("slot.undecided", slot_id=slot.slot_id, kind=fault.kind, fault=str(fault))

    async def _lost(self, slot: OpenSlot) -> None:
        """Its tx_nonce is used and no transaction of ours did it: somebody else has the key."""
        found = [(item, await self.rule(item, None)) for item in slot.items]
        own = {attempt.tx_hash for attempt in slot.attempts}
        if any(ruling is NoRuling.UNTOLD or (isinstance(ruling, Ruling) and ruling.tx_hash in own) for _, ruling in found):
            return  # mined after all, or used by nobody knows whom: not lost while the chain does not tell
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

    # --- finality ---

    async def run_finality(self) -> None:
        """Hold included blocks against the chain's safe and finalized ones, every `finality_poll_s`."""
        while True:
            await self.check_finality()
            await self._clock.sleep(self._settings.finality_poll_s)

    async def check_finality(self) -> None:
        """Finalize what is final; open again what a reorganisation took away."""
        head = await self._chain.evm.head(self._deadline())
        self._chain.head.observe(head)
        blocks = await settlements.unfinal_blocks(self._db, self._chain.network, head.number)
        if not blocks:
            return
        try:
            finalized = (await self._chain.evm.block_at("finalized", self._deadline())).number
        except ChainFault as fault:
            if fault.kind != "no_block":
                raise
            finalized = -1
        final, gone = await self._compare(blocks, finalized)
        if final:
            await settlements.finalize(self._db, self._chain.network, final)
        if gone:
            reopened = await settlements.reopen(self._db, self._chain.network, gone)
            INCIDENTS.labels("reorganised").inc(len(reopened))
            log.error("block.reorganised", blocks=[block.block_number for block in gone], settlements=len(reopened))

    async def _compare(self, blocks: Sequence[Block], finalized: int) -> tuple[list[Block], list[Block]]:
        """Which of the blocks are final, and which left the canonical chain. What is known of some does not wait for others."""
        final: list[Block] = []
        gone: list[Block] = []
        faults = 0
        for block in sorted(blocks, key=lambda block: block.block_number):
            try:
                canonical = await self._chain.evm.block(block.block_number, self._deadline())
            except ChainFault as fault:
                log.warning("block.unknown", block_number=block.block_number, kind=fault.kind, fault=str(fault))
                faults += 1
                if faults >= _FAULTS_MAX:
                    break
                continue
            if canonical is not None and canonical.block_hash != block.block_hash:
                gone.append(block)
            elif canonical is not None and block.block_number <= finalized:
                final.append(block)
        return final, gone


def included(proof: Log) -> Ruling:
    """Our transaction paid: the log is the proof."""
    return Ruling(
        state=State.INCLUDED,
        log=proof,
        tx_hash=proof.tx_hash,
        answer=Answer(success=True, tx_hash=proof.tx_hash, log_index=proof.log_index),
    )


def _refused(state: State, reason: Reason, message: str, proof: Log) -> Ruling:
    return Ruling(
        state=state,
        reason=reason,
        log=proof,
        tx_hash=proof.tx_hash,
        answer=Answer(success=False, reason=reason.name, message=f"{message} (transaction {proof.tx_hash})", tx_hash=proof.tx_hash),
    )


def _requeued(item: Item) -> Outcome:
    """Its slot was resolved without it, and there is time left."""
    return Outcome(
        settlement_id=item.settlement_id, from_state=State.SUBMITTED, to_state=move(State.SUBMITTED, State.QUEUED), answer=None, phase=None
    )
