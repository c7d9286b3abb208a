"""Writes what can be taken from the code itself: `docs/states.md`, the settings in `docs/operations.md` and in the chart's schema.

Run it after a change of states or settings: `python docs/generate.py`. A test holds the files equal to what this makes.
"""

# ruff: noqa: INP001 - a script beside the pages that it writes

import ast
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from facilitator.config import Config
from facilitator.domain.postings import resolution
from facilitator.domain.states import TRANSITIONS, State
from facilitator.reading import spell
from facilitator.references import DatabaseUrl, KeyReference, RpcUrl, Secret, WebSocketUrl
from facilitator.units import Address, Listen, Network, Zone

DOCS: Final = Path(__file__).parent
CHART_SCHEMA: Final = DOCS.parent / "helm" / "facilitator" / "values.schema.json"
_CHARTS_OWN: Final = {"server.listen", "database.url", "metrics.listen", "console.listen", "console.export_directory", "access.mode"}
"""Keys that the chart sets, or that make no sense in it."""
_CHARTS_OWN_OF_A_NETWORK: Final = {"id", "rpc_urls", "relayers", "ws_url"}
_SCALARS: Final = {
    KeyReference: "reference",
    Secret: "reference",
    RpcUrl: "URL or reference",
    WebSocketUrl: "URL or reference",
    DatabaseUrl: "URL or reference",
    Address: "address",
    Network: "CAIP-2",
    Zone: "IANA zone",
    Listen: "host:port",
    bool: "true or false",
    str: "text",
}
_UNITS: Final = (("_per_s", "per second"), ("_ms", "milliseconds"), ("_s", "seconds"), ("_wei", "wei"), ("bytes_max", "bytes"))

_MEANINGS: Final = {
    "log.level": "Least important lines that are written.",
    "networks[].assets[].address": "The token's contract. Mixed case must be its EIP-55 spelling.",
    "networks[].assets[].decimals": "Decimal places of the token's unit; the chain is asked whether that is so.",
}
"""Of keys whose names say it in the code."""


def states() -> str:
    """The whole of `docs/states.md`."""
    meaning = _field_docs(State)
    lines = [
        "# The states of a settlement",
        "",
        "Made by `python docs/generate.py` from `facilitator/domain/states.py`, which is the law: the `CHECK` constraints of the schema",
        "and this page are tested against it. Only chain facts end a settlement ([ADR 2](adr/0002-record-before-send.md)).",
        "",
        "```mermaid",
        "stateDiagram-v2",
        f"    [*] --> {State.QUEUED}",
        *(f"    {current} --> {target}" for current in State for target in State if target in TRANSITIONS[current]),
        f"    {State.FINALIZED} --> [*]",
        "```",
        "",
        "| state | meaning | ledger entry | may become |",
        "|---|---|---|---|",
        *(
            f"| `{state}` | {meaning[state.name]} | {resolution(state) or 'pending'} | "
            f"{', '.join(f'`{target}`' for target in State if target in TRANSITIONS[state]) or 'nothing: the end'} |"
            for state in State
        ),
        "",
        "`submitted → queued`: its relayer slot was resolved without it, and there is time left; `queued → included`: that slot had paid",
        "it all the same. `… → submitted`: a block that proved the state left the canonical chain. `withdrawn → queued` and",
        "`failed → queued`: a later `/settle` admits it again. `failed → expired`: by final chain time it can never be paid.",
        "Other moves from `failed` and `withdrawn`: somebody used the authorization later. `external`, `cancelled` and `conflict` go",
        "back to what they were before when the block that proved them left the canonical chain and no transaction of ours is open.",
        "",
    ]
    return "\n".join(lines)


def settings() -> str:
    """The table of every configuration key."""
    rows = [f"| `{path}` | {kind} | {default} | {meaning} |" for path, kind, default, meaning in setting_rows()]
    return "\n".join(["| key | value | default | meaning |", "|---|---|---|---|", *rows])


def setting_rows() -> Iterator[tuple[str, str, str, str]]:
    """Path, kind, default and meaning of every key, in the order of the configuration's own definition."""
    yield from _rows(Config, "", optional=False)


def _rows(table: type[Any], path: str, *, optional: bool) -> Iterator[tuple[str, str, str, str]]:
    hints, meaning = get_type_hints(table), _field_docs(table)
    for entry in fields(table):
        here = f"{path}.{entry.name}".lstrip(".")
        kind = _bare(hints[entry.name])
        item = get_args(kind)[0] if get_origin(kind) is tuple else kind
        if is_dataclass(item) and isinstance(item, type) and item not in _SCALARS:
            inner = f"{here}[]" if get_origin(kind) is tuple else here
            yield from _rows(item, inner, optional=entry.default is None or optional)
            continue
        required = "required within its table" if optional or "[]" in path else "required"
        text = _plain(meaning.get(entry.name) or _MEANINGS.get(here) or inspect.getdoc(item) or "")
        default = required if entry.default is MISSING else "none" if entry.default in {None, ()} else f"`{spell(entry.default)}`"
        yield here, _kind(kind, entry.name), default, text


def chart_schema() -> str:
    """The whole of the chart's schema, with the tables of the configuration as they are now."""
    schema = json.loads(CHART_SCHEMA.read_text("utf-8"))
    hints = get_type_hints(Config)
    tables = {name: _table_schema(_bare(hints[name]), f"{name}.", _CHARTS_OWN) for name in hints if name != "networks"}
    used = {name: table for name, table in tables.items() if table["properties"]}
    server = used["server"] | {"required": ["drain_delay_s", "stop_grace_s", "delivery_timeout_s"]}  # the grace period is made of them
    schema["definitions"]["config"] = _object(used | {"server": server}) | {"required": ["server"]}
    schema["definitions"]["networkSettings"] = _table_schema(get_args(hints["networks"])[0], "", _CHARTS_OWN_OF_A_NETWORK)
    return json.dumps(schema, indent=2) + "\n"


def _table_schema(table: type[Any], prefix: str, left_out: set[str]) -> dict[str, Any]:
    hints = get_type_hints(table)
    wanted = {entry.name: hints[entry.name] for entry in fields(table) if prefix + entry.name not in left_out}
    shown = _object({name: _value_schema(_bare(kind)) for name, kind in wanted.items()})
    required = [entry.name for entry in fields(table) if entry.name in wanted and entry.default is MISSING]
    return shown | ({"required": required} if required else {})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _value_schema(kind: Any) -> dict[str, Any]:  # noqa: ANN401 - a type hint
    if get_origin(kind) is tuple:
        return {"type": "array", "items": _value_schema(get_args(kind)[0])}
    if get_origin(kind) is Literal:
        return {"enum": list(get_args(kind))}
    if kind is Address:
        return {"type": "string", "pattern": "^0x[0-9a-fA-F]{40}$"}
    if kind in {bool, int, float}:
        return {"type": {bool: "boolean", int: "integer", float: "number"}[kind]} | ({} if kind is bool else {"minimum": 0})
    if is_dataclass(kind) and isinstance(kind, type) and kind not in _SCALARS:
        return _table_schema(kind, "", set())
    return {"type": "string", "minLength": 1}


def _bare(kind: Any) -> Any:  # noqa: ANN401 - a type hint
    """The type without its `| None`."""
    return next(arm for arm in get_args(kind) if arm is not type(None)) if get_origin(kind) in {Union, UnionType} else kind


def _kind(kind: Any, name: str) -> str:  # noqa: ANN401 - a type hint
    if get_origin(kind) is tuple:
        return f"list of {_kind(get_args(kind)[0], name)}s".replace("references", "references").replace(
            "URL or references", "URLs or references"
        )
    if kind in _SCALARS:
        return _SCALARS[kind]
    if kind in {int, float}:
        return next((unit for suffix, unit in _UNITS if name.endswith(suffix)), "count" if kind is int else "number")
    return " or ".join(f"`{word}`" for word in get_args(kind))


def _plain(text: str) -> str:
    """A docstring as a cell of a table; what refers to the plan of the house refers to the architecture page."""
    text = re.sub(
        r"\((?:design\.md|docs/architecture\.md|architecture) decisions? ([0-9, and]+)\)",
        r"([decision \1](architecture.md#decisions))",
        text,
    )
    return " ".join(text.split()).replace("|", "\\|")


def _field_docs(kind: type[Any]) -> dict[str, str]:
    """The docstring under each field of a class, on one line; those of its bases too."""
    found: dict[str, str] = {}
    for base in kind.__bases__:
        found |= _field_docs(base) if is_dataclass(base) else {}
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    for before, after in zip(body.body, body.body[1:], strict=False):
        targets = before.targets if isinstance(before, ast.Assign) else [before.target] if isinstance(before, ast.AnnAssign) else []
        if targets and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            assert isinstance(targets[0], ast.Name)
            found[targets[0].id] = " ".join(after.value.value.split())
    return found


def generated() -> dict[Path, str]:
    """Every file that this makes, or makes a part of, with its text."""
    operations = DOCS / "operations.md"
    marked = re.compile(r"(?<=<!-- settings: docs/generate.py -->\n).*?(?=\n<!-- end -->)", re.DOTALL)
    table = settings()
    page = marked.sub(lambda _: table, operations.read_text("utf-8"))
    return {DOCS / "states.md": states(), operations: page, CHART_SCHEMA: chart_schema()}


if __name__ == "__main__":
    for path, text in generated().items():
        path.write_text(text, "utf-8")
        sys.stderr.write(f"wrote {path.name}\n")
