"""Rates of coins in US dollars, as their sources said them."""

from typing import Final

from facilitator.domain.rates import Rate
from facilitator.store.db import Db, load_queries
from facilitator.units import Network

QUERIES: Final = load_queries("rates")


async def record(db: Db, network: Network, rate: Rate) -> bool:
    """Store what a source said; False when it stands there already."""
    return await db.execute(QUERIES["record_rate"], network, rate.quoted_at, rate.source, rate.round, rate.usd_e8) == 1
