"""The house rules that no other tool holds: names, sizes, and documentation that is true to the code."""

import ast
import importlib.util
import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest
from prometheus_client import Counter
from prometheus_client.metrics import MetricWrapperBase

from facilitator import cli, metrics
from facilitator.api.server import METRICS_ROUTE, ROUTES
from facilitator.protocol.reasons import Reason
from facilitator.store.migrate import load_migrations

ROOT: Final = Path(__file__).parents[1]
PACKAGE: Final = ROOT / "facilitator"
OPERATIONS: Final = ROOT / "docs" / "operations.md"
PROTOCOL: Final = ROOT / "docs" / "protocol.md"

MODULE_LINES_MAX: Final = 400
FUNCTION_LINES_MAX: Final = 80
LONG_MODULES: Final = {
    "api/openapi.py": "one document: its schemas and the operations that refer to them",
    "books.py": "one short function for each command of finance, beside the arguments that it takes",
    "chain/evm.py": "one client of one chain: its wire structs stand beside the calls that read them",
    "chain/rpc.py": "transport, endpoint health and the table of node messages are read together when a node misbehaves",
    "cli.py": "one short function a command, and the doctor's checks in the order in which they are printed",
    "config.py": "every setting that is not a package's own, the tokens that are known, and all relations between settings",
    "devstack/demo.py": "a play in one act: what is staged and what is printed of it, in order",
    "doctor.py": "every check, in the order in which findings are printed",
    "domain/abi.py": "calls, returns and events of two contracts, each a few lines beside its twin",
    "settlement/admission.py": "the duties of holders and of later callers are one protocol, wrong when read in halves",
    "settlement/dispatcher.py": "whom a payment waits for, what is recorded and what its caller hears are one order of steps",
    "settlement/recovery.py": "leases, and what is found and taken up with one, are one order of steps",
    "settlement/watcher.py": "rulings on a settlement and what is committed for them change together",
    "store/settlements.py": "one function and one row type for each of some twenty-five statements",
}
"""Modules above the limit, each with the reason why two would be worse than one."""
LONG_FUNCTIONS: Final[dict[str, str]] = {}
"""Functions above the limit, as `module.function`, with the reason."""
BANNED_NAMES: Final = frozenset({"utils", "util", "helpers", "helper", "common", "manager", "service", "base", "misc"})
LIBRARY_EVENTS: Final = frozenset({"library.logged"})
"""Events that are not written by a call: `telemetry` gives this one to lines of libraries."""
NEVER_RETURNED: Final[dict[str, str]] = {}
"""Reasons that no code gives, and why they are kept."""


@cache
def sources(directory: Path) -> tuple[tuple[Path, ast.Module], ...]:
    """Every Python file below, parsed."""
    return tuple((path, ast.parse(path.read_text("utf-8"))) for path in sorted(directory.rglob("*.py")) if "node_modules" not in path.parts)


def walk(directory: Path) -> Iterator[tuple[Path, ast.AST]]:
    return ((path, node) for path, tree in sources(directory) for node in ast.walk(tree))


@cache
def tracked() -> tuple[Path, ...]:
    """Every file under version control, and those about to be."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    names = listed.stdout.splitlines()
    if listed.returncode != 0:  # an unpacked archive: everything in it was shipped
        names = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if not {".venv", "node_modules", "var"} & {*path.parts}]
    return tuple(path for name in names if (path := ROOT / name).is_file())


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def section(page: Path, title: str) -> str:
    """The text under a heading, up to the next one of its level."""
    text = page.read_text("utf-8")
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^\1 |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found is not None, f"{page.name} has no section {title!r}"
    return found[2]


def rows(page: Path, title: str) -> list[list[str]]:
    """Cells of the tables in a section, heads and rules left out."""
    lines = re.findall(r"^\|(.+)\|$", section(page, title), re.MULTILINE)
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines]
    heads = {index - 1 for index, row in enumerate(cells) if set(row[0]) <= set("-:")}
    return [row for index, row in enumerate(cells) if index not in heads and not set(row[0]) <= set("-:")]


def code(cell: str) -> str:
    """The text of a cell that is one piece of code."""
    found = re.fullmatch(r"`([^`]+)`", cell)
    assert found is not None, f"expected one piece of code, got {cell!r}"
    return found[1]


# --- names ---


def test_nothing_is_called_a_bare_nonce() -> None:
    """`auth_nonce` is the payer's, `tx_nonce` the relayer's. On the wire it is a string, and strings are not looked at."""
    bare = []
    for path, node in walk(PACKAGE):
        names = {
            ast.Name: lambda node: [node.id],
            ast.Attribute: lambda node: [node.attr],
            ast.arg: lambda node: [node.arg],
            ast.keyword: lambda node: [node.arg],
            ast.FunctionDef: lambda node: [node.name],
            ast.AsyncFunctionDef: lambda node: [node.name],
            ast.ClassDef: lambda node: [node.name],
            ast.alias: lambda node: [node.asname],
        }.get(type(node), lambda _: [])(node)
        bare += [f"{where(path, node)}: {name}" for name in names if name and re.fullmatch(r"_*nonces?", name, re.IGNORECASE)]
    assert bare == []


def test_no_column_is_called_a_bare_nonce() -> None:
    for path in sorted(PACKAGE.rglob("*.sql")):
        statements = re.sub(r"--.*", "", path.read_text("utf-8"))
        assert re.findall(r"\bnonces?\b", statements, re.IGNORECASE) == [], path.name


def test_no_two_migrations_have_one_number() -> None:
    versions = [path.name[:4] for path in sorted(PACKAGE.rglob("migrations/*.sql"))]
    assert versions == [f"{number:04}" for number in range(1, len(versions) + 1)]


def test_every_later_migration_says_which_releases_serve_on_its_schema() -> None:
    """`-- compatible from NNNN`: so that replicas can be rolled (docs/operations.md, Migrations)."""
    for migration in load_migrations()[13:]:
        assert migration.compatible_from is not None, f"{migration.name} lacks the line `-- compatible from NNNN`"
        assert migration.compatible_from < migration.version, migration.name


def test_no_module_has_a_name_that_says_nothing() -> None:
    named = [path for path, _ in sources(PACKAGE) if BANNED_NAMES & {*path.stem.lower().split("_"), path.parent.name}]
    assert named == []


def test_packages_re_export_nothing() -> None:
    assert [path for path in PACKAGE.rglob("__init__.py") if path.read_text("utf-8").strip()] == []


# --- sizes ---


def test_long_modules_have_a_reason() -> None:
    lines = {str(path.relative_to(PACKAGE)): len(path.read_text("utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {name for name, count in lines.items() if count > MODULE_LINES_MAX} <= set(LONG_MODULES)
    assert set(LONG_MODULES) <= set(lines)


def test_long_functions_have_a_reason() -> None:
    long = {
        f"{path.relative_to(PACKAGE)}:{node.name}"
        for path, node in walk(PACKAGE)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES_MAX
    }
    assert long == set(LONG_FUNCTIONS)


# --- reasons ---


def reasons_named(directory: Path) -> set[str]:
    return {
        node.attr
        for path, node in walk(directory)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Reason" and path.name != "reasons.py"
    }


def test_every_reason_is_given_by_some_code() -> None:
    assert {reason.name for reason in Reason} - reasons_named(PACKAGE) == set(NEVER_RETURNED)


def test_every_reason_is_tested() -> None:
    """By its name, or by a word on the wire that no other reason has."""
    words = [word for reason in Reason for word in {reason.v1, reason.v2}]
    texts = "\n".join(path.read_text("utf-8") for path, _ in sources(ROOT / "tests") if path != Path(__file__))
    named = reasons_named(ROOT / "tests")
    untested = {
        reason.name
        for reason in Reason
        if reason.name not in named and not any(words.count(word) == 1 and f'"{word}"' in texts for word in {reason.v1, reason.v2})
    }
    assert untested == set(NEVER_RETURNED)


def test_every_reason_stands_in_the_documentation_with_its_words_in_order_of_judgement() -> None:
    documented = [(code(row[0]), code(row[1]), code(row[2]), row[3]) for row in rows(PROTOCOL, "Reason words")]
    assert documented == [(reason.name, reason.v2, reason.v1, "yes" if reason.retryable else "no") for reason in Reason]
    assert all(len(row) == 5 and row[4] for row in rows(PROTOCOL, "Reason words"))


# --- events ---


LEVELS: Final = frozenset({"debug", "info", "warning", "error", "exception", "critical"})


def level_of(node: ast.expr) -> str | None:
    """The level of `log.info` and the like; None when it is something else."""
    if not isinstance(node, ast.Attribute) or node.attr not in LEVELS:
        return None
    logger = node.value.func if isinstance(node.value, ast.Call) else node.value
    name = logger.id if isinstance(logger, ast.Name) else getattr(logger, "attr", "")
    if name not in {"log", "_log", "get_logger"}:
        return None
    return "error" if node.attr == "exception" else node.attr


def events() -> dict[str, list[tuple[str, str]]]:
    """Event to (level, place) of each line that may be written."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path, tree in sources(PACKAGE):
        if path.name == "telemetry.py":  # writes what it is given
            continue
        chosen = {  # tell = log.info if … else log.error
            node.targets[0].id: {level_of(node.value.body), level_of(node.value.orelse)} - {None}
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.IfExp)
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            levels = {level_of(node.func)} - {None}
            if isinstance(node.func, ast.Name):
                levels = {"info"} if node.func.id == "canonical" else chosen.get(node.func.id, set())
            if levels:
                event = node.args[0] if node.args else None
                assert isinstance(event, ast.Constant), f"{where(path, node)}: an event is a constant, and the first argument"
                found.setdefault(str(event.value), []).extend((str(level), where(path, node)) for level in levels)
    return found


def test_events_are_constants_of_the_form_noun_past_verb() -> None:
    assert [event for event in events() if not re.fullmatch(r"[a-z]+(_[a-z]+)*\.[a-z]+(_[a-z]+)*", event)] == []


def test_every_event_stands_in_the_documentation_with_its_level_and_what_to_do() -> None:
    documented = {code(row[0]): row[1:] for row in rows(OPERATIONS, "Log events")}
    written = events()
    known = set(written) | LIBRARY_EVENTS
    assert sorted(known - set(documented)) == [], "not documented"
    assert sorted(set(documented) - known) == [], "documented, but written nowhere"
    for event, places in written.items():
        levels = {level for level, _ in places}
        assert documented[event][0] == " or ".join(sorted(levels)), f"{event}: {places}"
        assert all(documented[event]), f"{event}: a cell is empty"


# --- series ---


def test_every_series_stands_in_the_documentation_with_its_labels() -> None:
    declared = {
        series._name + ("_total" if isinstance(series, Counter) else ""): ", ".join(series._labelnames)
        for series in vars(metrics).values()
        if isinstance(series, MetricWrapperBase)
    }
    documented = {code(row[0]): row[1].replace("`", "").replace("none", "") for row in rows(OPERATIONS, "Metrics")}
    assert documented == declared
    assert all(len(row) == 3 and row[2] for row in rows(OPERATIONS, "Metrics"))


def test_every_series_is_written_somewhere() -> None:
    used = {node.id for path, node in walk(PACKAGE) if isinstance(node, ast.Name) and path.name != "metrics.py"}
    used |= {node.attr for path, node in walk(PACKAGE) if isinstance(node, ast.Attribute) and path.name != "metrics.py"}
    assert [name for name, series in vars(metrics).items() if isinstance(series, MetricWrapperBase) and name not in used] == []


def test_series_are_named_after_the_service() -> None:
    for series in vars(metrics).values():
        if isinstance(series, MetricWrapperBase):
            assert series._name.startswith("facilitator_")


# --- routes, settings, commands, states ---


def test_every_route_stands_in_the_documentation_with_its_scopes() -> None:
    documented = {code(row[0]): row[1].replace("`", "") for row in rows(PROTOCOL, "Routes")}
    assert documented == {
        f"{route.method} {route.path}": " or ".join(route.scopes) if route.scopes else "none" for route in (*ROUTES, METRICS_ROUTE)
    }


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_the_documentation_takes_from_the_code_is_up_to_date() -> None:
    """States and settings: run `python docs/generate.py` after a change of either."""
    for path, text in generator().generated().items():
        assert path.read_text("utf-8") == text, f"run python docs/generate.py: {path.name} is behind the code"


def test_every_setting_has_a_meaning() -> None:
    settings = list(generator().setting_rows())
    assert [path for path, _, _, meaning in settings if not meaning] == []
    table = OPERATIONS.read_text("utf-8")
    assert [path for path, *_ in settings if f"| `{path}` |" not in table] == []


def commands() -> set[str]:
    """Every command of the command line, subcommands with their parent."""
    found = set()
    waiting = [("", cli._parser())]
    while waiting:
        prefix, parser = waiting.pop()
        inner = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
        if not inner:
            found.add(prefix.strip())
        waiting += [(f"{prefix} {name}", child) for choices in inner for name, child in choices.items()]
    return found


def test_every_command_stands_in_the_documentation() -> None:
    documented = {code(row[0]).removeprefix("facilitator ").partition(" [")[0].partition(" --")[0] for row in rows(OPERATIONS, "Commands")}
    assert {re.sub(r"( [A-Z]+)+$", "", command) for command in documented} == commands()


def test_the_layers_in_the_documentation_are_those_that_are_enforced() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    found = re.search(r"```\n(cli > .+?)```", (ROOT / "docs" / "architecture.md").read_text("utf-8"), re.DOTALL)
    assert found is not None
    assert [layer.strip() for layer in found[1].split(">")] == layers


def test_every_part_of_the_package_stands_in_the_layers() -> None:
    """A module that no layer names could import what it likes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    named = {part.strip() for layer in layers for part in layer.split("|")}
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts - {"__init__", "__main__"} == named


# --- what must not be in the tree ---

_MACHINE: Final = re.compile(r"(?<![\w.])/(?:root|home/\w+|work|Users/\w+|mnt|workspace)/[\w.]")
_REGISTRY: Final = re.compile(
    r"https?://[^\s\"'/]*(?:registry|artifact|nexus|mirror|proxy|pypi|npmjs|yarnpkg|verdaccio|devpi)[^\s\"'/]*", re.IGNORECASE
)
_INTERNAL: Final = re.compile(r"\bissues (?:show|list|note)\b|\.\./shared/|\bshared/[a-z0-9-]+\.md\b")


@pytest.mark.parametrize("forbidden", [_MACHINE, _REGISTRY, _INTERNAL], ids=["machine", "registry", "internal"])
def test_no_text_in_the_tree_names_a_machine_a_registry_or_an_internal_tool(forbidden: re.Pattern[str]) -> None:
    found = []
    for path in tracked():
        if path == Path(__file__):
            continue
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in forbidden.finditer(text)]
    assert found == []


def test_the_documentation_links_to_what_is_there() -> None:
    broken = []
    for page in (ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
            path, _, anchor = target.partition("#")
            if path.startswith(("http://", "https://", "mailto:")):
                continue
            linked = (page.parent / path).resolve() if path else page
            if not linked.exists() or (anchor and anchor not in anchors(linked)):
                broken.append(f"{page.name}: {target}")
    assert broken == []


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_decision_records_are_numbered_without_gap_or_repeat() -> None:
    titles = {path.name[:4]: path.read_text("utf-8").splitlines()[0] for path in sorted((ROOT / "docs" / "adr").glob("*.md"))}
    assert len(titles) == len(list((ROOT / "docs" / "adr").glob("*.md"))), "two records of one number"
    assert list(titles) == [f"{number:04}" for number in range(1, len(titles) + 1)]
    assert all(title.startswith(f"# {int(number)}. ") for number, title in titles.items()), titles
