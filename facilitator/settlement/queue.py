"""Payments of one network that wait in this process to be recorded: who is next, and when no more are taken."""

import asyncio
import heapq
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Final
from uuid import UUID

from facilitator.clock import Clock
from facilitator.domain.backoff import Backoff
from facilitator.domain.pressure import DrainRate, Pressure, due_s, retry_after_s
from facilitator.domain.wallets import Wallet
from facilitator.errors import OverloadFault
from facilitator.metrics import QUEUE_AGE_SECONDS, QUEUE_DEPTH, QUEUE_LIMIT, series
from facilitator.settlement.settings import Settings
from facilitator.store.settlements import Admission
from facilitator.units import Address, Network, TxHash

_PUT_OFF_S: Final = 0.5
"""How long a payment that cannot be judged, claimed or paid now lets others go first; doubles each time."""
_PUT_OFF_MAX_S: Final = 5.0
"""Longest such time."""


def put_off() -> Backoff:
    """For one payment that cannot be judged, claimed or paid now: how long it lets others go first."""
    return Backoff(_PUT_OFF_S, _PUT_OFF_MAX_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A settlement is on record, and its admitter holds the answer slot."""

    settlement_id: UUID
    epoch: int
    tx_hash: TxHash | None
    """None while it is queued."""


@dataclass(eq=False, slots=True)
class Waiting:
    """A settlement on its way into the write-ahead."""

    admission: Admission
    done: "asyncio.Future[Admitted]"
    entered_at: float
    due_at: float
    """When it should be sent: the earliest goes first."""
    judged_at: float = field(init=False)
    """When it was last found to be payable. Since then it has waited for its turn, and for nothing else."""
    taken: bool = False
    """It is in a write-ahead: from here on nobody can say that nothing was recorded."""
    abandoned: bool = False

    def __post_init__(self) -> None:
        """Whoever enters was just judged."""
        self.judged_at = self.entered_at


class Queue:
    """See the module."""

    def __init__(self, network: Network, clock: Clock, settings: Settings) -> None:
        self._network = network
        self._clock = clock
        self._settings = settings
        self._heap: list[tuple[float, int, Waiting]] = []
        self._numbers = count()
        self._all: dict[Waiting, None] = {}
        self._aside: dict[Waiting, None] = {}
        self._places = 0
        self._rate = DrainRate()
        self._stored: Mapping[Address, float] = {}
        QUEUE_LIMIT.labels(network).set(settings.queue_max)
        QUEUE_AGE_SECONDS.labels(network).set_function(self._oldest_s)

    def __len__(self) -> int:
        """Those that nobody has taken."""
        return len(self._heap)

    # --- how it stands ---

    @contextmanager
    def place(self, asset: Address, life_s: float, deadline: float) -> Iterator[None]:
        """A place for one more payment, from before the chain is asked about it until it is on record.

        Raises OverloadFault, with the time to come again, when there is none or the payment would wait for too long.
        """
        now = self._clock.monotonic()
        if (fault := self._fault(now, self._places, self._oldest_s(asset), min(life_s, deadline - now))) is not None:
            raise fault
        self._places += 1
        self._rate.waits(now)
        try:
            yield
        finally:
            self._places -= 1
            if not self._places:
                self._rate.empty()

    def full(self, coming: int) -> OverloadFault | None:
        """Why there is no place for one more payment, behind those on their way to theirs, whatever it is and as long as it lives."""
        if not self._places:
            return None
        now, oldest = self._clock.monotonic(), next(iter(self._all), None)
        oldest_s = 0.0 if oldest is None else now - oldest.judged_at
        return self._fault(now, self._places + coming, oldest_s, self._settings.deadline_s)

    def _fault(self, now: float, ahead: int, oldest_s: float, time_left_s: float) -> OverloadFault | None:
        pressure = Pressure(ahead=ahead, oldest_s=oldest_s, per_s=self._rate.per_s(now))
        later_s = retry_after_s(pressure, self._settings.queue_wait_max_s, time_left_s)
        if ahead >= self._settings.queue_max:
            return OverloadFault("queue_full", "too many payments are waiting to be sent; ask again", retry_after_s=later_s)
        if later_s is not None:
            return OverloadFault("queue_slow", "payments wait for too long before they are sent; ask again", retry_after_s=later_s)
        return None

    def _oldest_s(self, asset: Address | None = None) -> float:
        """How long the oldest payment has waited, here or in Postgres; there, those of one asset may count alone."""
        since = [waiting.judged_at for waiting in islice(self._all, 1)]
        since += [at for of, at in self._stored.items() if asset in {None, of}]
        return max(0.0, self._clock.monotonic() - min(since)) if since else 0.0

    def stored(self, oldest_s: Mapping[Address, float]) -> None:
        """How long the oldest payment of each asset has waited in Postgres, as of now."""
        now = self._clock.monotonic()
        self._stored = {asset: now - age_s for asset, age_s in oldest_s.items()}

    # --- in and out ---

    def enter(self, admission: Admission, life_s: float) -> Waiting:
        """To its place by when it is due."""
        now = self._clock.monotonic()
        due_at = due_s(now, life_s, self._settings.queue_wait_max_s)
        waiting = Waiting(admission, asyncio.get_running_loop().create_future(), entered_at=now, due_at=due_at)
        self._all[waiting] = None
        self._push(waiting)
        return waiting

    def wallets(self) -> Iterator[Wallet]:
        """The smart wallets that pay among those that nobody has taken."""
        return (waiting.admission.wallet for _, _, waiting in self._heap if waiting.admission.wallet is not None)

    def take(self, most: int) -> list[Waiting]:
        """The next ones, at most so many. Whoever has had its answer is not paid behind its back."""
        group: list[Waiting] = []
        while self._heap and len(group) < most:
            _, _, waiting = heapq.heappop(self._heap)
            if not waiting.abandoned and not waiting.done.done():
                waiting.taken = True
                group.append(waiting)
        series(QUEUE_DEPTH, self._network).set(len(self._heap))
        return group

    def put_back(self, left: Sequence[Waiting]) -> None:
        """They found no room: to where they were."""
        for waiting in left:
            waiting.taken = False
            self._push(waiting)

    def set_aside(self, waiting: Waiting) -> None:
        """It waits for something else than its turn: it neither is taken nor speaks of load."""
        waiting.taken = False
        self._all.pop(waiting, None)
        self._aside[waiting] = None

    def come_back(self, waiting: Waiting) -> None:
        """It waits for its turn again."""
        waiting.judged_at = self._clock.monotonic()
        del self._aside[waiting]
        self._all[waiting] = None
        self._push(waiting)

    def leave(self, waiting: Waiting) -> None:
        """Its caller waits no more."""
        self._all.pop(waiting, None)
        self._aside.pop(waiting, None)

    def clear(self) -> list[Waiting]:
        """All that nobody has taken: nothing of them is recorded, and nothing will be."""
        untaken = [*(waiting for _, _, waiting in self._heap), *self._aside]
        self._heap.clear()
        series(QUEUE_DEPTH, self._network).set(0)
        return untaken

    def left(self, payments: int) -> None:
        """So many are on record now."""
        self._rate.left(payments, self._clock.monotonic())

    def _push(self, waiting: Waiting) -> None:
        heapq.heappush(self._heap, (waiting.due_at, next(self._numbers), waiting))
        series(QUEUE_DEPTH, self._network).set(len(self._heap))
