"""Days, months and zones: every instant has one day, and days add up, whatever the clocks of a zone do."""

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facilitator.domain.periods import Period, day_of, day_start, days_of, local_date, month_of, next_month, parse_period
from facilitator.units import Zone, parse_zone

ZONES = sorted(zone for zone in available_timezones() if "/" in zone)
zones = st.sampled_from([Zone(zone) for zone in ZONES])
dates = st.dates(date(2000, 1, 1), date(2037, 12, 1))
instants = st.datetimes(datetime(2000, 1, 2), datetime(2037, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001 - the zone is added


@given(instants, zones)
def test_an_instant_belongs_to_the_day_of_its_local_date_and_to_no_other(instant: datetime, zone: Zone) -> None:
    day = local_date(instant, zone)
    assert day_start(day, zone) <= instant < day_start(day + timedelta(days=1), zone)


@given(dates, zones)
def test_the_days_of_a_month_cover_it_without_gap_or_overlap(day: date, zone: Zone) -> None:
    month = month_of(day.replace(day=1), zone)
    days = [day_of(each, zone) for each in days_of(month, zone)]
    assert days[0].start == month.start
    assert days[-1].end == month.end
    assert all(before.end == after.start for before, after in pairwise(days))


@given(st.lists(instants, max_size=40), dates, zones)
def test_the_sum_of_the_days_is_the_sum_of_the_month(moments: list[datetime], day: date, zone: Zone) -> None:
    first = day.replace(day=1)
    month = month_of(first, zone)
    own = [*moments, month.start, month.end - timedelta(microseconds=1), month.end]

    def count(period: Period) -> int:
        return sum(period.start <= moment < period.end for moment in own)

    assert sum(count(day_of(each, zone)) for each in days_of(month, zone)) == count(month) >= 2


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("America/New_York", date(2026, 11, 1), 25),
        ("America/New_York", date(2026, 3, 8), 23),
        ("Africa/Cairo", date(2026, 4, 24), 23),  # its midnight does not exist
        ("America/Havana", date(2026, 11, 1), 25),  # its midnight comes twice
        ("Australia/Lord_Howe", date(2026, 4, 5), 24.5),
        ("Pacific/Apia", date(2011, 12, 30), 0),  # the day that was left out
        ("UTC", date(2026, 11, 1), 24),
    ],
)
def test_days_last_as_long_as_the_zone_says(zone: str, day: date, hours: float) -> None:
    period = day_of(day, parse_zone(zone))
    assert (period.end - period.start) == timedelta(hours=hours)


def test_bounds_are_dates_and_months_of_the_zone_or_times_with_an_offset() -> None:
    berlin = parse_zone("Europe/Berlin")
    whole = Period(datetime(2026, 10, 31, 23, tzinfo=UTC), datetime(2026, 11, 30, 23, tzinfo=UTC))
    assert parse_period("2026-11", "2026-12", berlin) == whole
    assert parse_period("2026-11-01", "2026-12-01", berlin) == whole
    assert parse_period("2026-11-01T00:00:00+01:00", "2026-11-30T23:00:00Z", berlin) == whole
    assert next_month(date(2026, 12, 1)) == date(2027, 1, 1)


@pytest.mark.parametrize(
    ("start", "end", "words"),
    [
        ("2026-11-01", "2026-11-01", "empty"),
        ("2026-11-02", "2026-11-01", "empty"),
        ("2026-11-01T00:00:00", "2026-11-02", "needs an offset"),
        ("2026-13", "2026-11-01", "month must be in"),
        ("yesterday", "2026-11-01", "expected a date"),
        ("٢٠٢٦-11-01", "2026-12", "expected a date"),
    ],
)
def test_wrong_bounds_say_what_was_expected(start: str, end: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_period(start, end, parse_zone("UTC"))


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "../etc/passwd", "Europe", "/etc/localtime"])
def test_a_zone_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="IANA"):
        parse_zone(name)
