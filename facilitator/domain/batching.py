"""How many transactions should carry these payments? Alone when idle, shared under load (Multicall3 `aggregate3`).

Sharing saves 31 % of the gas at 5 payments, 40 % at 50, and costs 8 % at 1: so a lone payment is never wrapped, and a
load is cut into as few transactions as the limits allow instead of being spread over idle relayers.
"""

from collections.abc import Hashable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
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
_CALLDATA_BYTES_MAX: Final = 120_000
"""Pools take 128 KiB of a transaction; the rest is head-room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What bounds a batch."""

    batch_min: int = 5
    """Up to this many payments go alone, if there is room for them."""
    batch_max: int = 50
    """Most payments in one transaction."""
    life_min_s: int = 10
    """A payment with less life left than this goes alone."""

    @property
    def items_max(self) -> int:
        """`batch_max`, kept below what gas and calldata allow."""
        by_gas = (TRANSACTION_GAS_MAX - BATCH_BASE_GAS) // BATCH_ITEM_GAS
        return max(1, min(self.batch_max, by_gas, _CALLDATA_BYTES_MAX // _ITEM_BYTES))


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

    @property
    def gas(self) -> Gas:
        """Its gas limit."""
        return SINGLE_GAS if len(self.ids) == 1 else Gas(BATCH_BASE_GAS + BATCH_ITEM_GAS * len(self.ids))


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
