"""Who in this process waits for which settlement, and who of them holds its answer slot.

The truth about answer slots is in Postgres; a seat is this process's window on one of them: it wakes the callers, and
tells the watcher whether the holder is still connected when the outcome is committed.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import UUID

from facilitator.domain.states import PAID, State
from facilitator.store import settlements
from facilitator.store.db import Db
from facilitator.store.settlements import Answer, Resolved, Settlement, decode_answer
from facilitator.units import TxHash


@dataclass(eq=False, slots=True)
class Seat:
    """One settlement that at least one caller here waits for."""

    settlement_id: UUID
    tx_hash: TxHash | None = None
    answer: Answer | None = None
    """How it ended, once that may be told."""
    moves: int = -1
    """Moves of the record that `answer` was read from."""
    deepening: bool = False
    """It is paid, only not as deep yet as its tenant wants it."""
    holder_epoch: int | None = None
    """Epoch of the answer slot, when a connected caller of this process holds it."""
    spent_epoch: int | None = None
    """Epoch at which the outcome's commit marked the slot spent for that caller."""
    claims: int = 0
    """Callers of this process that are about to hold it."""
    callers: int = 0
    version: int = 0
    """Grows whenever something about the settlement may have changed."""
    _woken: asyncio.Event = field(default_factory=asyncio.Event)
    _reading: asyncio.Task[Settlement] | None = None

    def begin(self, tx_hash: TxHash | None) -> None:
        """It was admitted, perhaps again: what an earlier admission came to is not its answer."""
        self.answer = self.spent_epoch = None
        self.tx_hash = tx_hash

    def wake(self) -> None:
        """Let every caller look again, at what is on record from now on."""
        self.version += 1
        self._reading = None
        woken, self._woken = self._woken, asyncio.Event()
        woken.set()

    async def changed(self, seen: int, timeout_s: float) -> None:
        """Return when the version differs from `seen`, or after the timeout."""
        if self.version != seen or timeout_s <= 0:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._woken.wait()
        except TimeoutError:
            return


class AnswerBoard:
    """The seats of this process."""

    def __init__(self, db: Db, holder_ttl_s: float) -> None:
        self._db = db
        self._holder_ttl_s = holder_ttl_s
        self._seats: dict[UUID, Seat] = {}
        self._delivering: set[tuple[UUID, int]] = set()

    @contextmanager
    def seat(self, settlement_id: UUID) -> Iterator[Seat]:
        """Take part in the wait for a settlement; the seat is gone when its last caller leaves."""
        seat = self._seats.get(settlement_id)
        if seat is None:
            seat = self._seats[settlement_id] = Seat(settlement_id)
        seat.callers += 1
        try:
            yield seat
        finally:
            seat.callers -= 1
            if seat.callers == 0:
                del self._seats[settlement_id]

    def find(self, settlement_id: UUID) -> Seat | None:
        """The seat, when anybody here waits."""
        return self._seats.get(settlement_id)

    def delivering(self, settlement_id: UUID, epoch: int) -> bool:
        """Has a caller in this process the slot of this epoch, without news yet whether its answer arrived or was lost?"""
        seat = self._seats.get(settlement_id)
        return (settlement_id, epoch) in self._delivering or (seat is not None and seat.holder_epoch == epoch)

    def delivery_began(self, settlement_id: UUID, epoch: int) -> None:
        """The holder is about to be told, or about to give the slot back: whoever is behind it waits for the news of that."""
        self._delivering.add((settlement_id, epoch))

    def delivery_ended(self, settlement_id: UUID, epoch: int) -> None:
        """The success arrived, or the slot was freed in Postgres because it did not."""
        self._delivering.discard((settlement_id, epoch))
        if seat := self._seats.get(settlement_id):
            seat.wake()

    def wake_all(self) -> None:
        """Let every caller of this process look again."""
        for seat in list(self._seats.values()):
            seat.wake()

    def poke(self, settlement_id: UUID) -> None:
        """Something happened to this settlement elsewhere: let its callers read the record again."""
        if seat := self._seats.get(settlement_id):
            seat.wake()

    def heard(self, resolved: Resolved, answer: Answer, tx_hash: TxHash | None, replica_id: str, *, told: bool) -> None:
        """An outcome was committed here; `told` when it may be told at this depth."""
        if (seat := self._seats.get(resolved.settlement_id)) is None:
            return
        seat.tx_hash = tx_hash or seat.tx_hash
        if told:
            seat.answer = decode_answer(resolved.answer) if resolved.answer else answer  # what was told once stays
            seat.moves = resolved.moves
        if resolved.answer_state == "spent" and resolved.answer_holder == replica_id:
            seat.spent_epoch = resolved.answer_epoch
        seat.wake()

    async def read(self, seat: Seat) -> Settlement:
        """The row as it stands with everything this process knows; callers share a query. Raises StoreFault.

        What was read before the seat was woken is read again: a slot that looks spent may have been given back meanwhile.
        """
        while True:
            version = seat.version
            if seat._reading is None:  # noqa: SLF001
                seat._reading = asyncio.create_task(self._read(seat))  # noqa: SLF001
            record = await asyncio.shield(seat._reading)  # noqa: SLF001
            if seat.version == version:
                return record

    async def _read(self, seat: Seat) -> Settlement:
        try:
            (record,) = await settlements.records(self._db, [seat.settlement_id], self._holder_ttl_s)
        finally:
            if seat._reading is asyncio.current_task():  # noqa: SLF001
                seat._reading = None  # noqa: SLF001
        seat.tx_hash = record.tx_hash or seat.tx_hash
        seat.deepening = State(record.state) in PAID and not record.may_be_told
        if record.may_be_told and record.answer is not None and seat.answer is None:
            seat.answer, seat.moves = decode_answer(record.answer), record.moves
        return record
