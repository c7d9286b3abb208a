"""One seed for all proofs, and for all processes that run them."""

import os
import secrets
from collections.abc import Callable
from typing import Any

import pytest

os.environ.setdefault("FACILITATOR_SEED", str(secrets.randbelow(2**31)))


Tell = Callable[[str], None]


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Tell:
    """Say something that stands at the end of the run, from whatever process."""
    return lambda line: record_property("figures", line)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What was told, and what each proof took."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call":
                for _, line in report.user_properties or [("", "")]:
                    terminalreporter.write_line(f"{report.nodeid} {report.duration:.0f} s: {line}")


def pytest_report_header(config: pytest.Config) -> str:
    """Say how to repeat the run."""
    del config
    return f"FACILITATOR_SEED={os.environ['FACILITATOR_SEED']}"
