"""How many transactions should carry these payments? Alone when idle, shared under load (Multicall3 `aggregate3`).

Sharing saves 31 % of the gas at 5 payments, 40 % at 50, and costs 8 % at 1: so a lone payment is never wrapped, and a
load is cut into as few transactions as the limits allow instead of being spread over idle relayers.
"""

from collections.abc import Hashable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Final, Generic, TypeVar

from facilitator.units import Address, Gas

Id = TypeVar("Id", bound=Hashable)

SINGLE_GAS: Final = Gas(120_000)
"""Gas limit of one transferWithAuthorization from a plain account: needs 86k, or 104k for a first-time recipient."""
BATCH_BASE_GAS: Final = Gas(60_000)
"""Gas that a batch needs beside its items."""
BATCH_ITEM_GAS: Final = Gas(75_000)
"""Gas that an item of a batch may need: a first-time recipient."""
TRANSACTION_GAS_MAX: Final = Gas(2**24)
"""EIP-7825: no transaction may have a higher gas limit."""
_ITEM_BYTES: Final = 512
"""Calldata of one item in `aggregate3`: 481 bytes measured, rounded up to words."""
_FACTOR_MAX: Final = 4
"""How far a gas limit may be raised: a contract that burns gas must not be fed without end."""
_RAN_OUT_PERCENT: Final = 95
"""Gas used, of the limit, at which a transaction ran out: each frame above the one that did keeps 1/64 of what it had."""
_CALM: Final = 200
"""Transactions in a row that would have had room in half the limit, before it is halved again."""


@dataclass(frozen=True, slots=True)
class GasTable:
    """Gas limits: constants, doubled for a kind whose transactions ran out of gas, and halved once that is not needed any more.

    No estimates: those cost a request each, and are wrong as soon as somebody else's transfer comes first.
    """

    single_factor: int = 1
    batch_factor: int = 1
    single_calm: int = 0
    """Transactions in a row that half the limit would have done for."""
    batch_calm: int = 0

    def limit(self, items: int) -> Gas:
        """The limit of a transaction of so many payments; a lone one is sent as it is, several through Multicall3."""
        return _limit(items, self.single_factor if items == 1 else self.batch_factor)

    def most(self, items: int) -> Gas:
        """The highest that this limit may be raised to."""
        return _limit(items, _FACTOR_MAX)

    @property
    def item(self) -> Gas:
        """What each payment adds to a batch."""
        return Gas(BATCH_ITEM_GAS * self.batch_factor)

    @property
    def items_max(self) -> int:
        """The most payments whose limit stays within that of a transaction (EIP-7825)."""
        return (TRANSACTION_GAS_MAX // self.batch_factor - BATCH_BASE_GAS) // BATCH_ITEM_GAS

    def raised(self, items: int, gas: int) -> "GasTable":
        """The table after a transaction of this limit ran out; the same if the limit was raised since it was signed."""
        if gas < self.limit(items):
            return self
        if items == 1:
            return replace(self, single_factor=min(self.single_factor * 2, _FACTOR_MAX), single_calm=0)
        return replace(self, batch_factor=min(self.batch_factor * 2, _FACTOR_MAX), batch_calm=0)

    def used(self, items: int, gas_used: int) -> "GasTable":
        """The table after a transaction that had enough: back by half once `_CALM` in a row fit with 15 % to spare."""
        factor, calm = (self.single_factor, self.single_calm) if items == 1 else (self.batch_factor, self.batch_calm)
        if factor == 1:
            return self
        calm = calm + 1 if gas_used * 115 <= _limit(items, factor // 2) * 100 else 0
        factor, calm = (factor // 2, 0) if calm >= _CALM else (factor, calm)
        if items == 1:
            return replace(self, single_factor=factor, single_calm=calm)
        return replace(self, batch_factor=factor, batch_calm=calm)


def ran_out(gas_used: int, limit: int) -> bool:
    """Did a failed transaction, or the calls of a batch that failed, run out of gas?"""
    return gas_used * 100 >= limit * _RAN_OUT_PERCENT


def _limit(items: int, factor: int) -> Gas:
    return Gas(min(TRANSACTION_GAS_MAX, factor * (SINGLE_GAS if items == 1 else BATCH_BASE_GAS + BATCH_ITEM_GAS * items)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What bounds a batch."""

    batch_min: int = 5
    """Up to this many payments go alone, if there is room for them."""
    batch_max: int = 50
    """Most payments in one transaction."""
    life_min_s: int = 10
    """A payment with less life left than this goes alone."""
    calldata_bytes_max: int = 120_000
    """Most calldata of one transaction; pools take 128 KiB of a transaction, the rest is head-room."""
    gas: GasTable = field(default_factory=GasTable)
    """What its payments may need."""

    @property
    def items_max(self) -> int:
        """`batch_max`, kept below what gas and calldata allow."""
        return max(1, min(self.batch_max, self.gas.items_max, self.calldata_bytes_max // _ITEM_BYTES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate(Generic[Id]):
    """A payment that is about to be sent."""

    id: Id
    payer: Address
    alone: bool
    """Its tenant does not share transactions, or it was in a batch that failed it."""
    life_s: int
    """Seconds until its validBefore, by chain time."""


@dataclass(frozen=True, slots=True)
class Batch(Generic[Id]):
    """What one transaction carries, in order. One payment is sent as it is, several through Multicall3."""

    ids: tuple[Id, ...]

    @property
    def kind(self) -> str:
        """`single` or `batch`."""
        return "single" if len(self.ids) == 1 else "batch"


def plan(candidates: Sequence[Candidate[Id]], room: int, limits: Limits) -> tuple[Batch[Id], ...]:
    """Cut candidates, oldest first, into at most `room` transactions. What finds no room is left out, newest first.

    Payments that go alone keep their turn; the others share when they are more than `batch_min` or more than the room.
    """
    if room <= 0:
        return ()
    lone = [candidate for candidate in candidates if candidate.alone or candidate.life_s < limits.life_min_s]
    shared = [candidate for candidate in candidates if not (candidate.alone or candidate.life_s < limits.life_min_s)]
    lone = lone[: max(0, room - 1)] if shared else lone[:room]
    left = room - len(lone)
    singles = [Batch((candidate.id,)) for candidate in lone]
    if len(shared) <= min(limits.batch_min, left):
        return (*singles, *(Batch((candidate.id,)) for candidate in shared))
    return (*singles, *_cut([candidate.id for candidate in shared], min(left, ceil(len(shared) / limits.items_max)), limits.items_max))


def _cut(ids: Sequence[Id], parts: int, size_max: int) -> list[Batch[Id]]:
    """Near-equal parts, none above `size_max`; what does not fit is left out."""
    if parts <= 0:
        return []
    ids = ids[: parts * size_max]
    size, longer = divmod(len(ids), parts)
    batches, start = [], 0
    for index in range(parts):
        end = start + size + (1 if index < longer else 0)
        batches.append(Batch(tuple(ids[start:end])))
        start = end
    return batches


def without(batches: Sequence[Batch[Id]], gone: AbstractSet[Id]) -> list[Batch[Id]]:
    """The same batches less some payments; one that is left empty is dropped."""
    kept = [Batch(tuple(identity for identity in batch.ids if identity not in gone)) for batch in batches]
    return [batch for batch in kept if batch.ids]


class BurnGuard:
    """Halves the batch size when batches burn their gas: a payer may turn into a contract on the way and eat it all.

    The second burned batch within `window_s` halves; a window without one restores the configured size.
    """

    def __init__(self, batch_max: int, window_s: float = 600.0) -> None:
        self._configured = batch_max
        self._window_s = window_s
        self._burned_at: float | None = None
        self._limit = batch_max

    def burned(self, now_s: float) -> None:
        """A batch ran out of gas or reverted as a whole."""
        if self._burned_at is not None and now_s - self._burned_at <= self._window_s:
            self._limit = max(1, self._limit // 2)
        self._burned_at = now_s

    def limit(self, now_s: float) -> int:
        """How many payments may share a transaction now."""
        if self._burned_at is not None and now_s - self._burned_at > self._window_s:
            self._limit, self._burned_at = self._configured, None
        return self._limit
