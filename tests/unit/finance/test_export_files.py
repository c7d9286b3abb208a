"""Names of the files that people take away."""

import re

import pytest

from facilitator.finance.export_files import Wanted
from facilitator.units import Zone


def wanted(start: str, tenant: str = "") -> Wanted:
    asked = {"from": start, "to": "2026-12-01", **({"tenant": tenant} if tenant else {})}
    return Wanted(kind="settlements", format="csv", asked=asked, tokens=(), booking_zone=Zone("UTC"), rate_stale_s=1.0)


def test_a_file_is_called_what_it_holds() -> None:
    assert wanted("2026-11-20").file_name == "settlements-2026-11-20-2026-12-01.csv"
    assert wanted("2026-11-20T08:30:00+01:00", "acme_1").file_name == "settlements-acme-1-2026-11-20T0830000100-2026-12-01.csv"


@pytest.mark.parametrize("between", ["/", "\\", '"', "\n", "\r", "\0", " ", "ü"])
def test_what_may_stand_in_a_time_or_a_tenant_leads_a_name_out_of_no_directory_and_no_header(between: str) -> None:
    asked = wanted(f"2026-11-20{between}08:30Z", f"..{between}" * 300)
    assert asked.period.start.hour == 8
    assert re.fullmatch(r"settlements-[A-Za-z0-9.-]{1,150}\.csv", asked.file_name)
