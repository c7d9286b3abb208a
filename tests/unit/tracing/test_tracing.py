"""Without `[tracing]` there is no span and no import of OpenTelemetry, and yet the caller's trace is known."""

import subprocess
import sys

import pytest

from facilitator import tracing
from facilitator.tracing import Settings
from tests.fixtures.waiting import PATIENCE_S

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_what_is_not_traced_imports_nothing() -> None:
    program = (
        "import sys, facilitator.app\n"
        "from facilitator import tracing\n"
        f"with tracing.request('POST /settle', '{CALLER}') as tell, tracing.span('record'), tracing.shared('send', [None]):\n"
        "    tell({'status': 200}); tracing.record('rpc', 0.1, ()); print(tracing.current())\n"
        "tracing.stop()\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    assert done.stdout.splitlines() == [CALLER, "[]"]


def test_the_callers_trace_is_known_within_the_request_only() -> None:
    with tracing.request("GET /", CALLER + "-more"):
        assert tracing.current() == CALLER
    assert tracing.current() is None
    with tracing.request("GET /", "00-" + "0" * 32 + "-00f067aa0ba902b7-01"):
        assert tracing.current() is None


def test_without_opentelemetry_the_start_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ImportError, match=r"opentelemetry\.sdk\.trace"):
        tracing.start(Settings(endpoint="http://127.0.0.1:1"), "0")
    assert tracing.current() is None
