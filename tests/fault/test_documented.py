"""docs/faults.md has a row for every failure mode, SECURITY.md one for every abuse, and every test that they name exists."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODES = range(1, 54)


def test_every_failure_mode_has_a_row_and_every_test_named_there_exists() -> None:
    page = (ROOT / "docs" / "faults.md").read_text("utf-8")
    assert sorted(int(number) for number in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)) == list(MODES)
    named = set(re.findall(r"`(test_\w+)`", page))
    assert sorted(named - written().keys()) == []
    assert sorted({name for name in written() if re.match(r"test_modes?_\d", name)} - named) == [], "not in the table"


def test_every_abuse_has_its_test_and_every_staged_abuse_its_row() -> None:
    page = (ROOT / "SECURITY.md").read_text("utf-8")
    assert sorted(set(re.findall(r"`(test_\w+)`", page)) - written().keys()) == []
    abuses = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.partition("## Abuse")[2].splitlines() if line[:1] == "|"
    ]
    assert len(abuses[2:]) >= 15
    for row in abuses[2:]:
        assert len(row) == 6
        assert all(row), f"{row[0]}: a cell is empty"
        assert re.search(r"`test_\w+`", row[-1]), f"{row[0]}: no test"
    staged = {name for name, path in written().items() if path.name in {"test_abuse.py", "prove_abuse.py"} and name.startswith("test_")}
    assert sorted(name for name in staged if f"`{name}`" not in page) == [], "not in the table"


@cache
def written() -> dict[str, Path]:
    """Every function of the tests, and where it stands."""
    return {
        node.name: path
        for path in (ROOT / "tests").rglob("*.py")
        if "node_modules" not in path.parts
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
