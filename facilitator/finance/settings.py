"""Settings of the books."""

from dataclasses import dataclass

from facilitator.units import UTC_ZONE, Zone


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The `[finance]` table."""

    booking_zone: Zone = UTC_ZONE
    """IANA time zone whose midnights cut book days. Declare it once: closed days keep the zone that they were closed in."""
