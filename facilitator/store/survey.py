"""How much is open in the ledger, and since when: for the gauges that operators watch. Reads only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from facilitator.store.db import Db, load_queries
from facilitator.units import Network

_QUERIES: Final = load_queries("survey")


@dataclass(frozen=True, slots=True)
class OpenSettlements:
    """One network's settlements in one state that must not last."""

    network: Network
    state: str
    """`queued` or `submitted`."""
    settlements: int
    oldest_at: float
    """Unix time at which the oldest was queued."""
    past_deadline: int
    """Those whose validBefore is past, by database time."""


@dataclass(frozen=True, slots=True)
class Unfinal:
    """One network with payments that are included, but not finalized."""

    network: Network
    oldest_at: float
    """Unix time at which one in the oldest such block was resolved."""


@dataclass(frozen=True, slots=True)
class OpenIncidents:
    """Incidents of one kind that nobody closed yet."""

    network: Network
    kind: str
    incidents: int


async def open_settlements(db: Db, networks: Sequence[Network]) -> list[OpenSettlements]:
    """What is neither decided nor withdrawn; states without any are left out."""
    return await db.many(OpenSettlements, _QUERIES["open_settlements"], list(networks))


async def oldest_unfinal(db: Db, networks: Sequence[Network]) -> list[Unfinal]:
    """Networks that have payments to finalize."""
    return await db.many(Unfinal, _QUERIES["oldest_unfinal"], list(networks))


async def open_incidents(db: Db) -> list[OpenIncidents]:
    """Incidents by network and kind."""
    return await db.many(OpenIncidents, _QUERIES["open_incidents"])
