"""Which replicas are there. This one says so, and finds out soon when another is gone.

Heartbeat and leases outlast a process that is stalled: for seconds nobody can tell it from a dead one. But most that die leave their
connections to the kernel, which closes them at once. So each replica holds a lock on the connection on which it listens, and one
whose lock is free at two looks, and that says nothing in between, is buried: its heartbeat and its leases are over, its relayers
are taken by whoever lives, and its callers' answers with them. Should it live all the same, the epoch of its leases fences it out,
as after any lease that ran out, and it takes them anew.

Others look every `settlement.lease_renew_s`, and at once when a caller asks for what a replica holds that does not answer it.
"""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import structlog

from facilitator.clock import Clock
from facilitator.settlement.network import ServedNetwork
from facilitator.settlement.settings import Settings
from facilitator.settlement.tasks import beat, set_within
from facilitator.store import replicas
from facilitator.store.db import Db

GONE_S: Final = 0.5
"""How long a replica must be missed for: one that lost its connection, and not its life, has it again sooner."""
_SETTLED_S: Final = 3.0
"""How long this replica's own presence must have lasted before it misses others: a database that restarts cuts off all at once."""
log = structlog.get_logger(__name__)


class Presence:
    """Of one replica."""

    def __init__(self, networks: Sequence[ServedNetwork], db: Db, clock: Clock, settings: Settings, replica_id: str) -> None:
        self._networks = [network for network in networks if network.signers]
        self._db = db
        self._clock = clock
        self._settings = settings
        self.replica_id: Final = replica_id
        self._since: float | None = None
        """Since when this replica's lock is held."""
        self._missing: dict[str, tuple[datetime, float]] = {}
        """When each last spoke, and since when it is missed."""
        self._look = asyncio.Event()
        self._changed = asyncio.Event()

    def held(self, held: bool) -> None:  # noqa: FBT001 - one word of the connection that listens
        """This replica's lock is held, or not: a change is said at once, for who says that it holds none is not missed."""
        if held != (self._since is not None):
            self._since = self._clock.monotonic() if held else None
            self._missing.clear()
            self._changed.set()

    def look_soon(self) -> None:
        """A caller waits for another replica's work."""
        self._look.set()

    async def say_alive(self) -> None:
        """Heartbeat: this replica lives, and it has these keys."""
        relayers = [f"{chain.network}:{address}" for chain in self._networks for address in chain.relayers]
        networks = [chain.network for chain in self._networks]
        await replicas.heartbeat(self._db, self.replica_id, networks, relayers, present=self._since is not None)

    async def speak(self) -> None:
        """Say so for ever."""
        while True:
            beat("heartbeat")
            await self.say_alive()
            await set_within(self._changed, self._settings.lease_renew_s)

    async def run(self) -> None:
        """Look for others that are gone, for ever."""
        while True:
            beat("presence")
            await self.look()
            await self._clock.sleep(GONE_S)
            if not self._missing:
                await set_within(self._look, self._settings.lease_renew_s)

    async def look(self) -> None:
        """Miss whose lock is free; bury whom this replica has missed for `GONE_S`."""
        now = self._clock.monotonic()
        if self._since is None or now - self._since < _SETTLED_S:
            return
        found = {one.replica_id: one.seen_at for one in await replicas.missing(self._db, self.replica_id, self._settings.lease_ttl_s)}
        known = self._missing
        self._missing = {
            replica_id: known[replica_id] if replica_id in known and known[replica_id][0] == seen_at else (seen_at, now)
            for replica_id, seen_at in found.items()
        }
        gone = {replica_id: seen_at for replica_id, (seen_at, since) in self._missing.items() if now - since >= GONE_S}
        if not gone:
            return
        for one in await replicas.bury(self._db, gone):
            log.warning("replica.gone", replica_id=one.replica_id, leases=one.leases)
        self._missing = {replica_id: missed for replica_id, missed in self._missing.items() if replica_id not in gone}
