"""Replicas in Postgres: which processes serve, and which of them live."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from facilitator.store.db import Db, load_queries
from facilitator.units import Network

QUERIES: Final = load_queries("replicas")


@dataclass(frozen=True, slots=True)
class LiveReplica:
    """A replica that lives, and the accounts (CAIP-10) that it can sign for."""

    replica_id: str
    relayers: list[str]


async def heartbeat(db: Db, replica_id: str, networks: Sequence[Network], relayers: Sequence[str] = ()) -> None:
    """Say that this replica lives, for which networks it has relayer keys, and of which accounts (CAIP-10).

    Forgets replicas that are long gone.
    """
    await db.execute(QUERIES["heartbeat"], replica_id, list(networks), list(relayers))


async def retire(db: Db, replica_id: str) -> None:
    """Say that this replica stops, so that nobody waits for its answers."""
    await db.execute(QUERIES["retire_replica"], replica_id)


async def live(db: Db, network: Network, ttl_s: float) -> list[LiveReplica]:
    """The replicas with relayer keys for this network that live."""
    return await db.many(LiveReplica, QUERIES["live_replicas"], network, ttl_s)
