"""Gas budgets and strikes as Postgres has them. Holding, spending and striking is done where settlements are recorded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from facilitator.store.db import Db, load_queries
from facilitator.units import Network

QUERIES: Final = load_queries("restraints")
GAS_BUDGET: Final = "gas_day_within"
"""Constraint: a tenant's gas budget does not suffice for what was to be signed, or no rate is fresh for one in dollars."""
USD: Final = "usd"
"""The unit of a budget in micro-dollars; that of one in wei is its network."""


@dataclass(frozen=True, slots=True)
class GasBudget:
    """One budget of one tenant, and what is gone of it today."""

    tenant_id: str
    unit: str
    most: int
    held: int
    """The most that open transactions can cost."""
    spent: int
    ends_in_s: int
    """Until midnight, UTC."""


@dataclass(frozen=True, slots=True)
class FreshRate:
    """Dollars for a network's coin, times 10**8."""

    network: Network
    usd_e8: int


@dataclass(frozen=True, slots=True)
class Struck:
    """A payer or tenant with strikes."""

    who: str
    """`payer` or `tenant`."""
    name: str
    """Address or id."""
    most: int | None
    """A tenant's own `strikesMax`."""
    strikes: int
    paid: int
    """Payments of a tenant that were made in the same time; no more are counted than it has strikes."""
    frees_s: float


async def gas_budgets(db: Db, networks: Sequence[Network]) -> list[GasBudget]:
    """Every budget of every tenant that is not disabled."""
    return await db.many(GasBudget, QUERIES["gas_budgets"], list(networks))


async def fresh_rates(db: Db, networks: Sequence[Network], age_max_s: float) -> dict[Network, int]:
    """`usd_e8` of the networks that have a rate of that age at most."""
    return {row.network: row.usd_e8 for row in await db.many(FreshRate, QUERIES["fresh_rates"], list(networks), age_max_s)}


async def struck(db: Db, window_s: float, cool_down_s: float, limit: int) -> list[Struck]:
    """Payers and tenants whose last strike is not older than the cool-down, with their strikes in the window before it."""
    return await db.many(Struck, QUERIES["struck"], window_s, cool_down_s, limit)
