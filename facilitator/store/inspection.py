"""What a database says about itself: for `facilitator doctor`, and for nothing on the way of a payment."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from facilitator.store.db import Db, load_queries

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


async def inspect(db: Db) -> Inspection:
    """Look once. The schema must be there."""
    return await db.one(Inspection, _QUERIES["inspect"])
