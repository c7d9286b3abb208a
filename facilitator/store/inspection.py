"""What a database says about itself: for `facilitator doctor`, and for nothing on the way of a payment."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from facilitator.store.db import Db, load_queries
from facilitator.units import Address, Network, Wei

_QUERIES: Final = load_queries("inspection")


@dataclass(frozen=True, slots=True)
class Inspection:
    """One look."""

    version: str
    now: datetime
    """Database time; leases and answer slots are judged by it."""
    missing: Sequence[str]
    """Privileges that the service needs and lacks, as `table: privilege`."""
    excessive: Sequence[str]
    """Privileges on append-only tables that it should not have."""
    synchronous_commit: str
    """Anything but `off` keeps what was committed through a crash."""
    encrypted: bool
    """Is this connection?"""
    local: bool
    """Does it stay on this machine?"""


@dataclass(frozen=True, slots=True)
class GasSpent:
    """What a relayer spent in the last week, and since how many days it has spent."""

    relayer: Address
    wei: Wei
    days: float


async def inspect(db: Db) -> Inspection:
    """Look once. The schema must be there."""
    return await db.one(Inspection, _QUERIES["inspect"])


@dataclass(frozen=True, slots=True)
class Unbudgeted:
    """A tenant without a gas budget."""

    tenant_id: str


async def unbudgeted(db: Db) -> list[str]:
    """Tenants whose keys may settle and who have no gas budget."""
    return [row.tenant_id for row in await db.many(Unbudgeted, _QUERIES["unbudgeted"])]


async def gas_spent(db: Db, network: Network) -> dict[Address, GasSpent]:
    """By relayer; those that spent nothing are left out."""
    return {row.relayer: row for row in await db.many(GasSpent, _QUERIES["gas_spent"], network)}
