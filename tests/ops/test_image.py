"""The image and the migrations: linted, built by its own steps, run as the user and under the root that it will have."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

import pytest
from packaging.markers import Marker
from packaging.utils import canonicalize_name

from tests.fixtures.waiting import PATIENCE_S
from tests.ops.chart import configurations, rendered
from tests.ops.image import DOCKERFILE, ROOT, build, run_confined, stages

MIGRATIONS: Final = sorted((ROOT / "facilitator" / "store" / "sql" / "migrations").glob("*.sql"))
FIRST_RELEASE: Final[int | None] = None
"""Last migration of the first release. None: nothing is released, and every table that is altered is empty."""
OUTSIDE: Final = "-- outside a transaction"
ON_EMPTY_TABLES_ONLY: Final = ("require-concurrent-index-creation", "constraint-missing-not-valid")
pytestmark = pytest.mark.timeout(1200)  # the first test waits for the build: 20 s of a processor, and the package index
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a read-only root, which takes root")


def tool(name: str, *arguments: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).parent / name, *arguments]
    return subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


# --- as written


def test_the_dockerfile_is_clean() -> None:
    done = tool("hadolint", DOCKERFILE)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("line", "rule"),
    [("FROM debian:latest", "DL3007"), ("FROM python", "DL3006"), ("FROM python:3.12\nRUN cd /opt && pip install aiohttp", "DL3013"),
     ("FROM python:3.12\nRUN sudo id", "DL3004"), ("FROM python:3.12\nRUN apt-get update && apt-get install -y gcc", "DL3008")],
)  # fmt: skip
def test_hadolint_objects(line: str, rule: str) -> None:
    done = tool("hadolint", "-", stdin=line + "\n")
    assert done.returncode != 0
    assert rule in done.stdout


def test_the_image_runs_as_nobody_special_and_holds_no_build_tool() -> None:
    build_stage, last = stages()
    shown = dict(last)
    assert shown["USER"] == "10001:10001"
    assert not any(instruction in {"RUN", "ADD"} for instruction, _ in last)
    assert [arguments for instruction, arguments in last if instruction == "COPY"] == ["--from=build /opt/facilitator /opt/facilitator"]
    assert json.loads(shown["ENTRYPOINT"]) == ["facilitator"]
    installs = [part for instruction, text in build_stage if instruction == "RUN" for part in text.split("&&") if " install " in part]
    assert installs
    assert all("--require-hashes" in part or "--no-index" in part for part in installs)


def test_the_image_is_given_nothing_but_what_is_built() -> None:
    """A secret or a state directory beside the sources never reaches the engine."""
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert ignored[0] == "*"
    needed = {name.split("/")[0] for instruction, text in stages()[0] if instruction == "COPY" for name in text.split()[:-1]}
    assert needed == {line[1:] for line in ignored if line.startswith("!")}


# --- built and run


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("image"))


def test_the_bill_of_materials_is_the_lock(prefix: Path) -> None:
    bill = json.loads((prefix / "sbom.cdx.json").read_text("utf-8"))
    listed = {(canonicalize_name(part["name"]), part["version"]) for part in bill["components"]}
    locked = {
        (canonicalize_name(match["name"]), match["version"])
        for match in re.finditer(
            r"^(?P<name>[\w.-]+)==(?P<version>[^\s;\\]+)(?: ; (?P<marker>[^\\\n]+?))? \\$",
            (ROOT / "requirements" / "runtime.txt").read_text(),
            re.MULTILINE,
        )
        if match["marker"] is None or Marker(match["marker"]).evaluate()
    }
    assert locked
    assert listed - {("facilitator", "0.1.0")} == locked
    assert ("facilitator", "0.1.0") in listed
    assert bill["bomFormat"] == "CycloneDX"


def test_the_prefix_stands_alone(prefix: Path) -> None:
    """No pip, no tests, no local stack's packages; the program is the wheel's, not this checkout's."""
    ask = "import facilitator, importlib.util as u; print(facilitator.__file__, [n for n in ('pip', 'pytest', 'psutil') if u.find_spec(n)])"
    done = subprocess.run([prefix / "bin" / "python", "-c", ask], cwd="/", capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert done.stdout.strip() == f"{next(prefix.glob('lib/python3.*'))}/site-packages/facilitator/__init__.py []"


@as_root
def test_the_program_runs_as_10001_under_a_read_only_root(prefix: Path, tmp_path: Path) -> None:
    helped = run_confined([prefix / "bin" / "facilitator", "--help"], kept=[prefix])
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "serve" in helped.stdout
    config = configurations(rendered({}))["pay-facilitator-api"]
    for name in set(re.findall(r'file:(/etc/facilitator/secrets/[^"]+)', config)):
        (tmp_path / name.rpartition("/")[2]).write_text("something")
        config = config.replace(name, str(tmp_path / name.rpartition("/")[2]))
    (tmp_path / "facilitator.toml").write_text(config)
    tmp_path.chmod(0o755)
    command = [prefix / "bin" / "facilitator", "config", "check", "--config", tmp_path / "facilitator.toml"]
    checked = run_confined(command, kept=[prefix, tmp_path])
    assert (checked.returncode, checked.stderr) == (0, "")
    assert checked.stdout.splitlines()[-1].startswith("ok ")


@as_root
def test_the_confinement_is_real(prefix: Path, tmp_path: Path) -> None:
    ask = (
        "import os\n"
        "def may(path):\n"
        "    try:\n"
        "        open(path, 'w').close()\n"
        "    except OSError:\n"
        "        return False\n"
        "    return True\n"
        f"print(os.getuid(), os.getgid(), [may(path) for path in ('/tmp/a', '/x', '/var/x', '{prefix}/x', '{ROOT}/x', '{tmp_path}/x')])\n"
        "print([line for line in open('/proc/self/status').read().split('\\n') if line.startswith(('CapEff', 'CapBnd', 'NoNewPrivs'))])\n"
    )
    tmp_path.chmod(0o777)
    done = run_confined([prefix / "bin" / "python", "-c", ask], kept=[prefix, tmp_path])
    who, power = done.stdout.splitlines()
    assert who == "10001 10001 [True, False, False, False, False, False]"
    assert power == "['CapEff:\\t0000000000000000', 'CapBnd:\\t0000000000000000', 'NoNewPrivs:\\t1']"


# --- migrations


def squawk(files: list[Path], *excluded: str) -> subprocess.CompletedProcess[str]:
    """With the rules of .squawk.toml, less `excluded`: the option replaces the list of the file.

    It knows of one setting for all files: to those outside a transaction the rule that keeps indexes out of one does not apply.
    """
    always = tomllib.loads((ROOT / ".squawk.toml").read_text("utf-8"))["excluded_rules"]
    done = subprocess.CompletedProcess([], 0, "", "")
    for outside in (False, True):
        taken = [path for path in files if (OUTSIDE in path.read_text("utf-8").splitlines()) == outside]
        if taken and not done.returncode:
            more = ["ban-concurrent-index-creation-in-transaction"] if outside else []
            done = tool("squawk", f"--exclude={','.join([*always, *excluded, *more])}", *taken)
    return done


def test_migrations_take_no_lock_that_lasts() -> None:
    first = [path for path in MIGRATIONS if FIRST_RELEASE is None or int(path.name[:4]) <= FIRST_RELEASE]
    done = squawk(first, *ON_EMPTY_TABLES_ONLY)
    assert done.returncode == 0, done.stdout
    if later := [path for path in MIGRATIONS if path not in first]:
        done = squawk(later)
        assert done.returncode == 0, done.stdout


def test_squawk_takes_an_index_that_is_built_outside_a_transaction(tmp_path: Path) -> None:
    file = tmp_path / "9999_pre_index.sql"
    file.write_text(f"{OUTSIDE}\ndrop index concurrently if exists i;\ncreate index concurrently i on settlement (tenant_id);\n")
    assert squawk([file]).returncode == 0


@pytest.mark.parametrize(
    ("statement", "rule"),
    [("create index settlement_tenant on settlement (tenant_id);", "require-concurrent-index-creation"),
     ("alter table settlement alter column amount_atomic type text;", "changing-column-type"),
     ("alter table settlement drop column resource;", "ban-drop-column"),
     ("alter table settlement add constraint x check (moves < 9);", "constraint-missing-not-valid"),
     ("alter table settlement rename column reason to why;", "renaming-column"),
     ("create table x (id bigint); create index concurrently i on settlement (tenant_id);",
      "ban-concurrent-index-creation-in-transaction"),
     ("-- outside a transaction\nalter table settlement rename column reason to why;", "renaming-column")],
)  # fmt: skip
def test_squawk_objects(statement: str, rule: str, tmp_path: Path) -> None:
    (tmp_path / "9999_pre_bad.sql").write_text(statement)
    done = squawk([tmp_path / "9999_pre_bad.sql"])
    assert done.returncode != 0
    assert rule in done.stdout + done.stderr
