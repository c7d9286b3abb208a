"""The creation code in the tree is what the published compiler makes of the source beside it."""

import subprocess
from pathlib import Path

import pytest

from facilitator.devstack.install import node_program
from facilitator.domain import trials
from tests.fixtures import sanctions

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.mark.parametrize(
    ("source", "code"),
    [
        (ROOT / "contracts" / "Trials.yul", trials.CREATION_CODE),
        (ROOT / "tests" / "fixtures" / "contracts" / "SanctionsOracle.yul", sanctions.CREATION_CODE),
    ],
    ids=["trials", "sanctions_oracle"],
)
def test_the_code_is_the_compiled_source(source: Path, code: bytes) -> None:
    command = [node_program(), HERE / "compile.cjs", source]
    compiled = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert bytes.fromhex(compiled) == code
