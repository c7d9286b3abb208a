"""What starts with every command, and what only those pay for who use it."""

import subprocess
import sys

LAZY = (
    "boto3",
    "eth_account",
    "eth_keyfile",
    "eth_utils",
    "google",
    "jinja2",
    "openpyxl",
    "opentelemetry",
    "pyarrow",
    "pydantic",
    "rlp",
    "web3",
)


def test_the_command_line_loads_nothing_that_few_commands_need() -> None:
    source = f"import facilitator.cli, sys; print(*sorted(set({LAZY!r}) & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == [], "imported at the start: import it where it is used"
