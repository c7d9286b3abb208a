"""docs/faults.md has a row for every failure mode, and every test that it names exists."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODES = range(1, 54)


def test_every_failure_mode_has_a_row_and_every_test_named_there_exists() -> None:
    page = (ROOT / "docs" / "faults.md").read_text("utf-8")
    assert sorted(int(number) for number in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)) == list(MODES)
    named = set(re.findall(r"`(test_\w+)`", page))
    written = {
        node.name
        for path in (ROOT / "tests").rglob("*.py")
        if "node_modules" not in path.parts
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert sorted(named - written) == []
    assert sorted({name for name in written if re.match(r"test_modes?_\d", name)} - named) == [], "not in the table"
