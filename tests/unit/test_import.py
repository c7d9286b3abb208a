"""What starts with every command, and what only those pay for who use it."""

import subprocess
import sys

import pytest

from facilitator import cli

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


def test_the_service_and_the_books_are_loaded_by_the_commands_that_run_them() -> None:
    heavy = (
        "facilitator.app",
        "facilitator.books",
        "facilitator.doctor",
        "facilitator.explain",
        "facilitator.operate",
        "facilitator.tenancy",
    )
    source = f"import facilitator.cli as cli, sys; cli._parser('config'); print(*sorted(set({heavy!r}) & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


@pytest.mark.parametrize("word", cli._LIGHT)
def test_a_light_command_is_parsed_alike_without_the_others(word: str) -> None:
    given = ["config", "check"] if word == "config" else [word]
    assert vars(cli._parser(word).parse_args(given)) == vars(cli._parser().parse_args(given))
