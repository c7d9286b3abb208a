"""Holds what was written beside what is known: trees of TOML and environment against dataclasses, with places and origins.

Knows nothing of our settings. A message names key, place, what was expected and the nearest known key; it quotes little
of what came, for that may be a secret in the wrong place.
"""

import difflib
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, Literal

from facilitator.protocol.address import checksum_address
from facilitator.references import KeyReference, Secret, Url, looks_secret
from facilitator.units import Address, Listen

Parsers = Mapping[Any, Callable[[str], object]]
"""Types that are written as text, and how each is read; a parser raises ValueError that says what was expected."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from."""

    kind: Literal["file", "env", "default"]
    place: str
    """`facilitator.toml:12`, the variable's name, or "" for a default."""

    def __str__(self) -> str:
        """For the right-hand column of `config print`."""
        return f"{self.kind} {self.place}".rstrip()


def flatten(path: str, value: object) -> Iterator[tuple[str, str]]:
    """Path and spelling of every setting within."""
    if is_dataclass(value) and not isinstance(value, KeyReference | Url | Secret | Listen | type):
        for entry in fields(value):
            yield from flatten(f"{path}.{entry.name}".lstrip("."), getattr(value, entry.name))
    elif isinstance(value, tuple) and value and is_dataclass(value[0]) and not isinstance(value[0], KeyReference | Secret | Url):
        for index, item in enumerate(value):
            yield from flatten(f"{path}.{index}", item)
    else:
        yield path, spell(value)


def spell(value: object) -> str:
    """A value for people, nearly as TOML has it."""
    match value:
        case None:
            return "(none)"
        case bool():
            return str(value).lower()
        case int() | float():
            return str(value)
        case tuple():
            return f"[{', '.join(map(spell, value))}]"
        case str() if re.fullmatch(r"0x[0-9a-f]{40}", value):
            return f'"{checksum_address(Address(value))}"'
        case _:
            return f'"{value}"'


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A value as it was written."""

    value: object
    origin: Origin


_Node = Any  # dict[str, _Node] | list[dict[str, _Node]] | _Leaf


class Reader:
    """Walks what was written beside what is known, and collects what does not fit."""

    def __init__(self, place: str, prefix: str, parsers: Parsers) -> None:
        """`place` names the file, `prefix` begins our variables, `parsers` read the types that are written as text."""
        self.place = place
        self._prefix = prefix
        self._parsers = parsers
        self.problems: list[str] = []
        self.origins: dict[str, Origin] = {}

    def plant(self, table: Mapping[str, object], path: str, lines: Mapping[str, int]) -> dict[str, _Node]:
        """A parsed TOML table with the origin of each value."""
        planted: dict[str, _Node] = {}
        for key, value in table.items():
            here = f"{path}.{key}".lstrip(".")
            if isinstance(value, dict):
                planted[key] = self.plant(value, here, lines)
            elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
                planted[key] = [self.plant(item, f"{here}.{index}", lines) for index, item in enumerate(value)]
            else:
                line = f":{lines[here]}" if here in lines else ""
                planted[key] = _Leaf(value, Origin("file", f"{self.place}{line}"))
        return planted

    def graft(self, tree: dict[str, _Node], name: str, text: str) -> None:
        """One environment variable, over whatever the file says."""
        *parents, last = name.removeprefix(self._prefix).lower().split("__")
        node: _Node = tree
        for position, key in enumerate(parents):
            following = [*parents, last][position + 1]
            if isinstance(node, list):
                if not key.isdigit() or int(key) > len(node):
                    self.problems.append(f"environment {name}: expected a number from 0 to {len(node)} where it says {key.upper()}")
                    return
                if int(key) == len(node):
                    node.append({})
                node = node[int(key)]
            elif isinstance(node, dict):
                node = node.setdefault(key, [] if following.isdigit() else {})
        if not isinstance(node, dict):
            self.problems.append(f"environment {name}: this is no table, so nothing in it can be set")
            return
        node[last] = _Leaf(text, Origin("env", name))

    def table(self, kind: type[Any], node: _Node, path: str) -> Any:  # noqa: ANN401 (whatever dataclass is asked for)
        """An instance of a settings dataclass, or None with problems noted."""
        if not isinstance(node, dict):
            self._note(path, f"expected a table, got {_kind(node)}", _first_origin(node))
            return None
        known: dict[str, Field[Any]] = {entry.name: entry for entry in fields(kind)}
        hints = typing.get_type_hints(kind)
        for key in node:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
                did_you_mean = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
                self._note(f"{path}.{key}".lstrip("."), f"unknown key; {did_you_mean}", _first_origin(node[key]))
        values: dict[str, object] = {}
        before = len(self.problems)
        for name, entry in known.items():
            here = f"{path}.{name}".lstrip(".")
            if name in node:
                try:
                    values[name] = self._value(hints[name], node[name], here, may_be_empty=entry.default == ())
                except _WrongValueError as wrong:
                    self._note(here, str(wrong), wrong.origin)
            elif entry.default_factory is not MISSING:
                self._note_defaults(here, entry.default_factory())
            elif entry.default is MISSING and is_dataclass(hints[name]) and hints[name] not in self._parsers:
                self.table(hints[name], {}, here)
            elif entry.default is MISSING:
                variable = self._prefix + here.upper().replace(".", "__")
                remedy = f"add [[{here}]]" if name == "networks" else f"set it, or the variable {variable}"
                self._note(here, f"is required; {remedy}", Origin("file", self.place))
            else:
                self._note_defaults(here, entry.default)
        return None if len(self.problems) > before else kind(**values)

    def _note_defaults(self, path: str, value: object) -> None:
        for leaf, _ in flatten(path, value):
            self.origins[leaf] = Origin("default", "")

    def _note(self, path: str, what: str, origin: Origin) -> None:
        self.problems.append(f"{origin.place or self.place}: {path}: {what}")

    def _value(self, kind: Any, node: _Node, path: str, *, may_be_empty: bool) -> object:  # noqa: ANN401 (a type hint)
        if typing.get_origin(kind) in {types.UnionType, typing.Union}:  # X | None; of a NewType it is the latter
            kind = next(arm for arm in typing.get_args(kind) if arm is not type(None))
        if is_dataclass(kind) and isinstance(kind, type) and kind not in self._parsers:
            return self.table(kind, node, path)
        if typing.get_origin(kind) is tuple:
            item = typing.get_args(kind)[0]
            if is_dataclass(item) and item not in self._parsers:
                return self._rows(item, node, path)
            return self._list(item, node, path, may_be_empty=may_be_empty)
        if not isinstance(node, _Leaf):
            raise _WrongValueError(f"expected {_expected(kind)}, got {_kind(node)}", _first_origin(node))
        self.origins[path] = node.origin
        return _scalar(self._parsers, kind, node.value, node.origin)

    def _rows(self, kind: Any, node: _Node, path: str) -> object:  # noqa: ANN401 (a type hint)
        if not isinstance(node, list) or not node:
            raise _WrongValueError(f"expected tables, each under [[{path}]], got {_kind(node)}", _first_origin(node))
        return tuple(self.table(kind, row, f"{path}.{index}") for index, row in enumerate(node))

    def _list(self, kind: Any, node: _Node, path: str, *, may_be_empty: bool) -> object:  # noqa: ANN401 (a type hint)
        if not isinstance(node, _Leaf):
            raise _WrongValueError(f"expected a list, got {_kind(node)}", _first_origin(node))
        items = node.value
        if isinstance(items, str) and node.origin.kind == "env":
            items = [part.strip() for part in items.split(",") if part.strip()]
        if not isinstance(items, list):
            raise _WrongValueError(f"expected a list, got {_kind(node)}", node.origin)
        if not items and not may_be_empty:
            raise _WrongValueError("expected at least one entry", node.origin)
        self.origins[path] = node.origin
        return tuple(_scalar(self._parsers, kind, item, node.origin) for item in items)


class _WrongValueError(ValueError):
    """A value that does not fit, and where it was written."""

    def __init__(self, message: str, origin: Origin) -> None:
        super().__init__(message)
        self.origin = origin


def _scalar(parsers: Parsers, kind: Any, value: object, origin: Origin) -> object:  # noqa: ANN401 (a type hint)
    """One value of the wanted type; text from the environment is read as that type."""
    parse = parsers.get(kind)
    if parse is not None:
        if not isinstance(value, str):
            raise _WrongValueError(f"expected text, got {_kind(value)}", origin)
        try:
            return parse(value)
        except ValueError as error:
            raise _WrongValueError(str(error), origin) from None
    if typing.get_origin(kind) is Literal:
        if value not in typing.get_args(kind):
            near = difflib.get_close_matches(str(value), typing.get_args(kind), n=1)
            raise _WrongValueError(
                f"expected {_expected(kind)}, got {_kind(value)}" + (f"; did you mean {near[0]}?" if near else ""), origin
            )
        return value
    if isinstance(value, str) and origin.kind == "env" and kind is not str:
        value = _from_text(kind, value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or value != value:  # noqa: PLR0124 (NaN)
        raise _WrongValueError(f"expected {_expected(kind)}, got {_kind(value)}", origin)
    return value


def _from_text(kind: type[object], text: str) -> object:
    """Text of an environment variable as the wanted type; the text itself when it is none."""
    if kind is bool and text in {"true", "false"}:
        return text == "true"
    if kind is int and re.fullmatch(r"-?[0-9]{1,30}", text, re.ASCII):
        return int(text)
    if kind is float and re.fullmatch(r"-?[0-9]{1,15}(\.[0-9]{1,15})?", text, re.ASCII):
        return float(text)
    return text


def _expected(kind: Any) -> str:  # noqa: ANN401 (a type hint)
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(f'"{word}"' for word in typing.get_args(kind))
    return {int: "an integer", float: "a number", str: "text", bool: "true or false"}.get(kind, "a table")


def _kind(node: object) -> str:
    match node:
        case _Leaf():
            return _kind(node.value)
        case dict():
            return "a table"
        case list():
            return "a list"
        case bool():
            return str(node).lower()
        case int() | float():
            return str(node)
        case str():
            return f'text "{node}"' if len(node) <= 20 and not looks_secret(node) else "text"
        case _:
            return type(node).__name__


def _first_origin(node: _Node) -> Origin:
    """Where a part of the tree was written."""
    if isinstance(node, _Leaf):
        return node.origin
    inner = list(node.values()) if isinstance(node, dict) else list(node)
    return _first_origin(inner[0]) if inner else Origin("file", "")


_HEADER = re.compile(r"\s*(?P<open>\[\[?)\s*(?P<path>[A-Za-z0-9_.-]+)\s*\]")
_ENTRY = re.compile(r"\s*(?P<key>[A-Za-z0-9_-]+)\s*=")


def line_numbers(text: str) -> dict[str, int]:
    """The line of each plainly written key, by path. Best effort: it only serves messages."""
    lines: dict[str, int] = {}
    rows: dict[str, int] = {}
    prefix = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            *parents, last = header["path"].split(".")
            prefix = ""
            for parent in parents:
                prefix = f"{prefix}.{parent}".lstrip(".")
                prefix += f".{rows[prefix]}" if prefix in rows else ""
            prefix = f"{prefix}.{last}".lstrip(".")
            if header["open"] == "[[":
                rows[prefix] = rows.get(prefix, -1) + 1
                prefix += f".{rows[prefix]}"
        elif entry := _ENTRY.match(line):
            lines.setdefault(f"{prefix}.{entry['key']}".lstrip("."), number)
    return lines
