"""The creation code in the tree is what the published compiler makes of the source beside it."""

import subprocess
from pathlib import Path

from facilitator.devstack.install import node_program
from facilitator.domain import trials

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "contracts" / "Trials.yul"


def test_the_code_of_trials_is_the_compiled_source() -> None:
    command = [node_program(), HERE / "compile.cjs", SOURCE]
    compiled = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert bytes.fromhex(compiled) == trials.CREATION_CODE
