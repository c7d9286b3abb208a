"""The wheel holds everything the code reads at run time: ABIs, SQL, the npm lock of the local stack."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.fixtures.waiting import PATIENCE_S

REPOSITORY = Path(__file__).parents[2]
READS_ITS_DATA = """
import sys
sys.path.insert(0, sys.argv[1])
import facilitator
assert facilitator.__path__ == [sys.argv[1] + "/facilitator"], facilitator.__path__
from facilitator.devstack import install
from facilitator.domain import abi
from facilitator.store import migrate
assert all((install._SOURCE / name).is_file() for name in install._FILES)
print(len(migrate.load_migrations()))
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a wheel built from this checkout, where an installation would put them."""
    built = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(built), str(REPOSITORY)], check=True, timeout=PATIENCE_S)
    (wheel,) = built.glob("facilitator-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(built / "installed")
    return built / "installed"


def test_the_wheel_holds_the_data_of_the_checkout(unpacked: Path) -> None:
    for inside, outside in (
        ("facilitator/_abi", "contracts/abi"),
        ("facilitator/store/sql", "facilitator/store/sql"),
        ("facilitator/devstack/npm", "facilitator/devstack/npm"),
    ):
        wanted = {file.relative_to(REPOSITORY / outside) for file in (REPOSITORY / outside).rglob("*") if file.is_file()}
        packed = {file.relative_to(unpacked / inside) for file in (unpacked / inside).rglob("*") if file.is_file()}
        assert packed == wanted
        assert wanted
    assert (unpacked / "facilitator" / "py.typed").is_file()


def test_the_installed_package_reads_its_data(unpacked: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", READS_ITS_DATA, str(unpacked)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
