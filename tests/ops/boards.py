"""What the dashboards ask, as Prometheus is asked it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tests.ops.watched import Watched

DASHBOARDS: Final = Path(__file__).parents[2] / "helm" / "facilitator" / "dashboards"


NO_DATA_YET: Final = {"money: Share of value matched to the chain within an hour": "a day of payments must have ended an hour ago"}
"""Panels that a short load cannot fill, and why."""


def boards() -> dict[str, dict[str, Any]]:
    """Every dashboard of the chart by file name."""
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(DASHBOARDS.glob("*.json"))}


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    """(Board, panel)."""
    return ((name, panel) for name, board in boards().items() for panel in board["panels"])


def asked(expression: str) -> str:
    """Grafana's variables as a person who just opened the board would have them."""
    return expression.replace("$__rate_interval", "5m").replace("$__range", "5m").replace("$network", ".*")


async def unanswered(load: Watched) -> dict[str, list[str]]:
    """Expressions and variables that Prometheus has no data for, by panel."""
    silent: dict[str, list[str]] = {}
    for name, board in boards().items():
        for variable in (variable for variable in board["templating"]["list"] if variable["type"] == "query"):
            found = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
            assert found is not None, variable
            if not any(found[2] in row["metric"] for row in await load.query(found[1])):
                silent.setdefault(f"{name}: variable {variable['name']}", []).append(variable["query"]["query"])
        for panel in board["panels"]:
            for target in panel["targets"]:
                rows = await load.query(asked(target["expr"]))
                if not any(float(row["value"][1]) == float(row["value"][1]) for row in rows):  # NaN is no data
                    silent.setdefault(f"{name}: {panel['title']}", []).append(target["expr"])
    assert NO_DATA_YET.keys() <= {f"{name}: {panel['title']}" for name, panel in panels()}
    return {where: expressions for where, expressions in silent.items() if where not in NO_DATA_YET}
