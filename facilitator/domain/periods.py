"""Accounting periods: half-open intervals of instants, cut at midnights of a time zone.

An instant belongs to exactly one local date, and the days of a month cover it without gap or overlap, whatever the zone
does to its clocks: a day may last 23, 24 or 25 hours, or not exist at all. Instants are aware and in UTC.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from facilitator.units import Zone

_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_MONTH: Final = re.compile(r"\d{4}-\d{2}", re.ASCII)
_ONE_DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Period:
    """From `start`, included, to `end`, excluded."""

    start: datetime
    end: datetime


def day_start(day: date, zone: Zone) -> datetime:
    """The first instant of a local date."""
    return datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)).astimezone(UTC)


def local_date(instant: datetime, zone: Zone) -> date:
    """The date on a calendar of that zone."""
    return instant.astimezone(ZoneInfo(zone)).date()


def day_of(day: date, zone: Zone) -> Period:
    """One local date."""
    return Period(day_start(day, zone), day_start(day + _ONE_DAY, zone))


def month_of(first: date, zone: Zone) -> Period:
    """The calendar month that begins with `first`."""
    return Period(day_start(first, zone), day_start(next_month(first), zone))


def next_month(first: date) -> date:
    """The first of the month after the one that begins with `first`."""
    return (first.replace(day=1) + 31 * _ONE_DAY).replace(day=1)


def days_of(period: Period, zone: Zone) -> Iterator[date]:
    """Every local date that has an instant in the period."""
    day = local_date(period.start, zone)
    while day_start(day, zone) < period.end:
        yield day
        day += _ONE_DAY


def parse_month(text: str) -> date:
    """Read `2026-11` as the first of that month. Raises ValueError that says what was expected."""
    if not _MONTH.fullmatch(text):
        raise ValueError(f"expected a month such as 2026-11, got {text!r}")
    return date.fromisoformat(f"{text}-01")


def parse_day(text: str) -> date:
    """Read `2026-11-30`. Raises ValueError that says what was expected."""
    if not _DATE.fullmatch(text):
        raise ValueError(f"expected a date such as 2026-11-30, got {text!r}")
    return date.fromisoformat(text)


def parse_period(start: str, end: str, zone: Zone) -> Period:
    """Read two bounds, each a date or a month of that zone, or a time with its own offset; the end is excluded.

    Raises ValueError that says what was expected.
    """
    period = Period(parse_instant(start, zone), parse_instant(end, zone))
    if period.start >= period.end:
        raise ValueError(f"the period is empty: {start} does not lie before {end}")
    return period


def parse_instant(text: str, zone: Zone) -> datetime:
    """Read the start of a date or month of that zone, or a time with its own offset. Raises ValueError that says what was expected."""
    if _MONTH.fullmatch(text):
        return day_start(parse_month(text), zone)
    if _DATE.fullmatch(text):
        return day_start(parse_day(text), zone)
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"expected a date, a month, or a time with its offset such as 2026-11-30T08:00:00Z, got {text!r}") from None
    if instant.tzinfo is None:
        raise ValueError(f"the time {text} needs an offset: write {text}Z for UTC")
    return instant.astimezone(UTC)
