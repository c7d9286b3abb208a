"""Settings of the books."""

from dataclasses import dataclass

from facilitator.units import UTC_ZONE, Zone


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The `[finance]` table."""

    booking_zone: Zone = UTC_ZONE
    """IANA time zone whose midnights cut book days. Declare it once: closed days keep the zone that they were closed in."""
    seal_s: float = 10.0
    """How often what was booked is sealed."""
    seal_file: str | None = None
    """File that each seal's number and head are added to; keep it where the database's owner cannot write."""
    close_grace_s: float = 3600.0
    """How long after its end a book day may be closed at the earliest."""
    reconcile_s: float = 300.0
    """How often the ledger is held against what became final on chain."""
    rate_poll_s: float = 60.0
    """How often each network's dollar rate is read."""
    rate_stale_s: float = 3600.0
    """How old a dollar rate may be when it is used; a cost without a fresh one has no dollar figure."""
