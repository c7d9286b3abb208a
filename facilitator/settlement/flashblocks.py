"""Payments told from a flashblock, for tenants who opted in: preconfirmed when seen there, open again when it is not sealed.

What is preconfirmed stays in its open slot, watched and sent like any other, until a sealed block decides. The risk is
bounded per payment at admission and per tenant in the commit that preconfirms (docs/architecture.md decision 11).
"""

from collections.abc import Sequence

import structlog

from facilitator.chain.evm import Receipt
from facilitator.domain import abi
from facilitator.domain.abi import PaymentProof
from facilitator.metrics import INCIDENTS
from facilitator.settlement.answers import AnswerBoard
from facilitator.settlement.network import ServedNetwork
from facilitator.settlement.settings import Settings
from facilitator.settlement.slots import OpenSlot
from facilitator.store import settlements
from facilitator.store.db import Db
from facilitator.store.settlements import Answer, Preconfirmation

log = structlog.get_logger(__name__)


class Flashblocks:
    """What one network's flashblocks say of open slots."""

    def __init__(self, chain: ServedNetwork, board: AnswerBoard, db: Db, settings: Settings, replica_id: str) -> None:
        self._chain = chain
        self._board = board
        self._db = db
        self._settings = settings
        self._replica_id = replica_id

    async def seen(self, found: Sequence[tuple[OpenSlot, Receipt]]) -> None:
        """Commit what unsealed receipts prove, for those who may be told of it, as far as their caps allow."""
        fresh = {
            item.settlement_id: (slot, proof.log)
            for slot, receipt in found
            for item in slot.items
            if slot.wants_flashblock
            and item.confirm_level == "preconfirmed"
            and item.settlement_id not in slot.preconfirmed
            and isinstance(proof := abi.find_payment(receipt.logs, item.authorization), PaymentProof)
        }
        if fresh:
            seats = {settlement_id: self._board.find(settlement_id) for settlement_id in fresh}
            asked = [
                Preconfirmation(
                    settlement_id=settlement_id,
                    tx_hash=proof.tx_hash,
                    log_index=proof.log_index,
                    block_number=proof.block_number,
                    answer=Answer(success=True, tx_hash=proof.tx_hash, log_index=proof.log_index, shared=slot.kind == "batch"),
                    spend_epoch=seat.holder_epoch if (seat := seats[settlement_id]) else None,
                )
                for settlement_id, (slot, proof) in fresh.items()
            ]
            committed = await settlements.preconfirm(
                self._db, self._replica_id, asked, self._settings.preconfirmed_total_max_atomic, self._settings.answer_doubt_s
            )
            answers = {each.settlement_id: each for each in asked}
            for resolved in committed:
                slot, log_pair = fresh[resolved.settlement_id]
                slot.preconfirmed[resolved.settlement_id] = log_pair.block_number
                answer = answers[resolved.settlement_id].answer
                self._board.heard(resolved, answer, log_pair.tx_hash, self._replica_id, told=True)
            log.info("flashblock.seen", network=self._chain.network, preconfirmed=len(committed), above_cap=len(fresh) - len(committed))
        for slot, _ in found:
            slot.flashblock_seen = True

    async def passed(self, unseen: Sequence[OpenSlot], head: int) -> None:
        """No receipt any more, of none of their attempts, although blocks above the flashblock are sealed: it was not."""
        await self.fallen([slot for slot in unseen if slot.preconfirmed and head > max(slot.preconfirmed.values())])

    async def fallen(self, slots: Sequence[OpenSlot]) -> None:
        """What these slots had preconfirmed is open again: a sealed block says otherwise than the flashblock did."""
        doubtful = [settlement_id for slot in slots for settlement_id in slot.preconfirmed]
        if not doubtful:
            return
        opened = await settlements.unseal(self._db, doubtful)
        INCIDENTS.labels("unsealed").inc(len(opened))
        log.error("flashblock.unsealed", network=self._chain.network, settlements=len(opened))
        for slot in slots:
            slot.preconfirmed.clear()
            slot.flashblock_seen = False
        for settlement_id in doubtful:
            if seat := self._board.find(settlement_id):
                seat.answer = None
                seat.wake()
