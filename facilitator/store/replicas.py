"""Replicas in Postgres: which processes serve, and which of them live."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from facilitator.store.db import Db, Session, load_queries
from facilitator.units import Network

QUERIES: Final = load_queries("replicas")


@dataclass(frozen=True, slots=True)
class LiveReplica:
    """A replica that lives, and the accounts (CAIP-10) that it can sign for."""

    replica_id: str
    relayers: list[str]


@dataclass(frozen=True, slots=True)
class MissingReplica:
    """A replica whose presence ended without a word."""

    replica_id: str
    seen_at: datetime
    """When it last spoke."""


@dataclass(frozen=True, slots=True)
class GoneReplica:
    """A replica that was buried."""

    replica_id: str
    leases: int
    """How many relayers it held."""
    told: int
    """On how many networks the others heard of it."""


@dataclass(frozen=True, slots=True)
class Held:
    """Was the presence to be had?"""

    held: bool


async def heartbeat(db: Db, replica_id: str, networks: Sequence[Network], relayers: Sequence[str] = (), *, present: bool = False) -> None:
    """Say that this replica lives, for which networks it has relayer keys, of which accounts (CAIP-10), and whether it holds its presence.

    That is believed if the database sees it held: a connection may have died without our knowing. Forgets replicas that are long gone.
    """
    await db.execute(QUERIES["heartbeat"], replica_id, list(networks), list(relayers), present)


async def retire(db: Db, replica_id: str) -> None:
    """Say that this replica stops, so that nobody waits for its answers."""
    await db.execute(QUERIES["retire_replica"], replica_id)


async def live(db: Db, network: Network, ttl_s: float) -> list[LiveReplica]:
    """The replicas with relayer keys for this network that live."""
    return await db.many(LiveReplica, QUERIES["live_replicas"], network, ttl_s)


async def hold_presence(session: Session, replica_id: str) -> bool:
    """Hold this replica's presence for as long as the connection lasts. False: another connection has it, or somebody looks just now."""
    return (await session.one(Held, QUERIES["hold_presence"], replica_id)).held


async def missing(db: Db, replica_id: str, ttl_s: float) -> list[MissingReplica]:
    """Replicas that spoke within `ttl_s` and whose presence has ended; never the one that asks."""
    return await db.many(MissingReplica, QUERIES["missing_replicas"], replica_id, ttl_s)


async def bury(db: Db, missing: Mapping[str, datetime]) -> list[GoneReplica]:
    """End heartbeat and leases of those that have not spoken since, and tell the others that there are relayers to be had."""
    return await db.many(GoneReplica, QUERIES["bury"], list(missing), list(missing.values()))
