"""Puts the figures of `baseline.json` into the tables of docs/benchmarks.md, between their marks. The words there are a person's."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
PAGE: Final = HERE.parent / "docs" / "benchmarks.md"

Point = dict[str, Any]
Column = tuple[str, Callable[[Point], str]]


def shown(value: object) -> str:
    """A figure as a person reads it."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 10 else f"{value:.4g}"
    return str(value)


def column(head: str, key: str) -> Column:
    return head, lambda point: shown(point.get(key))


def percentiles(point: Point) -> str:
    return f"{shown(point['p50_ms'])} / {shown(point['p99_ms'])}"


SETTLE: Final[tuple[Column, ...]] = (
    column("who", "who"),
    ("load", lambda point: f"{point['load']} {point['n']}"),
    column("RPC ms", "rpc_ms"),
    column("settled/s", "ok_s"),
    ("p50 / p99 ms", percentiles),
    column("after block", "after_block_p50_ms"),
    column("no answer", "unanswered"),
    column("CPU ms", "cpu_ms"),
    column("PG ms", "postgres_cpu_ms"),
    column("anvil ms", "anvil_cpu_ms"),
    column("RPC req", "rpc_requests"),
    column("RPC calls", "rpc_calls"),
    column("SQL", "db_statements"),
    column("commits", "db_commits"),
    column("gas", "gas"),
    column("tx", "tx"),
    column("strangers", "strangers"),
)
VERIFY: Final[tuple[Column, ...]] = (
    column("who", "who"),
    column("n", "n"),
    column("RPC ms", "rpc_ms"),
    column("verified/s", "ok_s"),
    column("x python", "times_python"),
    column("x python-bare", "times_python_bare"),
    column("x ts", "times_ts"),
    ("p50 / p99 ms", percentiles),
    column("CPU ms", "cpu_ms"),
    column("python CPU", "cpu_python"),
    column("ts CPU", "cpu_ts"),
    column("RPC req", "rpc_requests"),
    column("RPC calls", "rpc_calls"),
    column("SQL", "db_statements"),
    column("MiB", "rss_mib"),
    column("strangers", "strangers"),
)
BESIDE: Final[tuple[Column, ...]] = (
    column("who", "who"),
    column("verified/s", "ok_s"),
    ("p50 / p99 ms", percentiles),
    column("settled meanwhile", "settled"),
)
MICRO: Final[tuple[Column, ...]] = (
    column("who", "who"),
    column("step", "what"),
    column("items", "n"),
    column("us", "us"),
    column("us an item", "us_item"),
    column("x library", "times_library"),
)


def table(points: Sequence[Point], columns: Sequence[Column]) -> str:
    rows = [[head for head, _ in columns], ["---"] * len(columns), *([cell(point) for _, cell in columns] for point in points)]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def main() -> None:
    """Rewrite the tables in place."""
    baseline: dict[str, dict[str, Any]] = json.loads((HERE / "baseline.json").read_bytes())
    settle, verify = baseline["settle"]["points"], baseline["verify"]["points"]
    tables = {f"settle {blocks}": table([p for p in settle if p["blocks"] == blocks], SETTLE) for blocks in ("auto", "0.2s", "2s")}
    tables["verify"] = table([point for point in verify if point["what"] == "verify"], VERIFY)
    tables["beside"] = table([point for point in verify if point["what"] != "verify"], BESIDE)
    tables["micro"] = table(baseline["micro"]["points"], MICRO)
    page = PAGE.read_text("utf-8")
    for name, text in tables.items():
        mark = re.compile(rf"(<!-- figures: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        page, found = mark.subn(lambda match, text=text: match[1] + text + match[2], page)  # type: ignore[misc]
        assert found == 1, name
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
