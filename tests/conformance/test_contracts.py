"""The creation code in the tree is what the published compiler makes of the source beside it."""

import subprocess
from pathlib import Path

import pytest

from facilitator.devstack.install import node_program
from facilitator.domain import probes, trials
from tests.fixtures import sanctions, wallets
from tests.fixtures.waiting import PATIENCE_S

HERE = Path(__file__).parent
OURS, TESTS = HERE.parents[1] / "contracts", HERE.parent / "fixtures" / "contracts"


@pytest.mark.parametrize(
    ("source", "code"),
    [
        (OURS / "Trials.yul", trials.CREATION_CODE),
        (OURS / "Probe.yul", probes.CREATION_CODE),
        (TESTS / "SanctionsOracle.yul", sanctions.CREATION_CODE),
        (TESTS / "Wallet.yul", wallets.WALLET_CREATION),
        (TESTS / "Factory.yul", wallets.FACTORY_CREATION),
    ],
    ids=lambda value: value.stem if isinstance(value, Path) else "",
)
def test_the_code_is_the_compiled_source(source: Path, code: bytes) -> None:
    command = [node_program(), HERE / "compile.cjs", source]
    compiled = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout
    assert bytes.fromhex(compiled) == code
