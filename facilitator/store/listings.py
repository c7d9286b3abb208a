"""Resources that sellers let be listed, in Postgres: noted in groups, read page by page, forgotten in time."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from facilitator.protocol.bazaar import Listing
from facilitator.store.db import Db, load_queries

QUERIES: Final = load_queries("listings")
PRICES_MAX: Final = 8
"""Prices kept of one resource: one for each way to pay it, the newest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """A resource that was paid for, or would have been, since it was last noted."""

    tenant_id: str
    listing: Listing
    settled: int
    """Payments that were made; 0: it was only verified."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of `listing`."""

    tenant_id: str
    resource: str
    kind: str
    operation: str
    version: int
    entry: str
    prices: str
    settled: int
    last_seen_at: datetime
    last_settled_at: datetime


@dataclass(frozen=True, slots=True)
class Total:
    """How many there are."""

    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What is looked for; None: not by this."""

    kind: str | None = None
    prices: Sequence[str] | None = None
    """JSON patterns of a price, of which one must fit."""
    extension: str | None = None


async def note(db: Db, noted: Sequence[Noted], *, per_tenant_max: int, total_max: int) -> int:
    """Put settled ones on record while there is room for them, and say of known ones that they live. Returns how many are new."""
    async with db.transaction() as session:
        await session.execute(QUERIES["lock_listings"])
        return await session.execute(
            QUERIES["note_listings"],
            [each.tenant_id for each in noted],
            [each.listing.resource for each in noted],
            [each.listing.kind for each in noted],
            [each.listing.operation for each in noted],
            [each.listing.version for each in noted],
            [each.listing.entry.decode() for each in noted],
            [each.listing.price.decode() for each in noted],
            [each.listing.words for each in noted],
            [each.settled for each in noted],
            per_tenant_max,
            total_max,
            PRICES_MAX,
        )


async def expire(db: Db, age_s: float) -> int:
    """Forget what nobody paid for or asked about for so long. Returns how many."""
    return await db.execute(QUERIES["expire_listings"], age_s)


async def page(db: Db, filters: Filters, limit: int, offset: int) -> list[Row]:
    """Those with the most payments first."""
    return await db.many(Row, QUERIES["list_listings"], filters.kind, filters.prices, filters.extension, limit, offset)


async def count(db: Db, filters: Filters) -> int:
    """Of all pages."""
    return (await db.one(Total, QUERIES["count_listings"], filters.kind, filters.prices, filters.extension)).total


async def search(db: Db, filters: Filters, query: str, limit: int, offset: int) -> list[Row]:
    """Those that say any of the words, the best first."""
    return await db.many(Row, QUERIES["search_listings"], filters.kind, filters.prices, filters.extension, limit, offset, query)
