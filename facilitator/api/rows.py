"""Rows of the ledger as JSON, and the JSON Schema of each kind of row: both made from the row's own fields.

Names become camelCase and lose their unit where the interface has none (`amount_atomic` is `amount`); amounts are text,
times RFC 3339, addresses EIP-55.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, date, datetime
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin, get_type_hints
from uuid import UUID

from facilitator.protocol.address import checksum_address
from facilitator.store.views import SettlementRow
from facilitator.units import Address

Json = dict[str, object]

_NAMES: Final = {
    "tenant_id": "tenant",
    "auth_nonce": "nonce",
    "tx_hash": "transaction",
    "class_": "class",
    "to_state": "state",
    "moved_at": "time",
}
"""Where the interface has a word of its own."""
_BIG: Final = ("_atomic", "_wei", "_micros")
"""Integers of any size: text."""


def word(row: type[Any], name: str) -> str:
    """A field's name in JSON. A row's own id comes first and is `id`; that of the settlement it belongs to is not."""
    if name == fields(row)[0].name and name.endswith("_id") and (row is SettlementRow or name != "settlement_id"):
        return "id"
    name = _NAMES.get(name, name.removesuffix("_atomic"))
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def render(row: object, *, leave_out: Sequence[str] = ()) -> Json:
    """One row."""
    hints = get_type_hints(type(row))
    return {
        word(type(row), entry.name): _value(entry.name, hints[entry.name], getattr(row, entry.name))
        for entry in fields(row)  # type: ignore[arg-type]
        if entry.name not in leave_out
    }


def _value(name: str, kind: Any, value: object) -> object:  # noqa: ANN401 (a type hint)
    match value:
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        case date():
            return value.isoformat()
        case UUID():
            return str(value)
        case bytes():
            return value.hex()
        case int() if name.endswith(_BIG) and not isinstance(value, bool):
            return str(value)
        case str() if _bare(kind) is Address:
            return checksum_address(Address(value))
        case Mapping():
            return {str(key): _value(name, None, entry) for key, entry in value.items()}
        case list() | tuple():
            return [_value(name, None, entry) for entry in value]
        case _:
            return render(value) if is_dataclass(value) else value


def schema(row: type[Any], *, leave_out: Sequence[str] = (), **more: object) -> Json:
    """JSON Schema of what `render` makes of such a row, and of what is put beside it."""
    hints = get_type_hints(row)
    properties = {
        word(row, entry.name): _shape(entry.name, hints[entry.name]) for entry in fields(row) if entry.name not in leave_out
    } | more
    return {"type": "object", "properties": properties, "required": list(properties)}


def _shape(name: str, kind: Any) -> Json:  # noqa: ANN401 (a type hint)
    if kind is not (plain := _bare(kind)):
        return {"anyOf": [_shape(name, plain), {"type": "null"}]}
    plain = getattr(plain, "__supertype__", plain)
    if get_origin(plain) in {Sequence, list, tuple}:
        return {"type": "array", "items": _shape(name, get_args(plain)[0])}
    if get_origin(plain) is Mapping:
        return {"type": "object", "additionalProperties": _shape(name, get_args(plain)[1])}
    if is_dataclass(plain) and isinstance(plain, type):
        return schema(plain)
    if plain is int and name.endswith(_BIG):
        return {"type": "string", "pattern": "^-?(0|[1-9][0-9]*)$"}
    formats: dict[Any, Json] = {
        bool: {"type": "boolean"},
        int: {"type": "integer"},
        float: {"type": "number"},
        datetime: {"type": "string", "format": "date-time"},
        date: {"type": "string", "format": "date"},
        UUID: {"type": "string", "format": "uuid"},
    }
    return formats.get(plain, {"type": "string"})


def _bare(kind: Any) -> Any:  # noqa: ANN401 (a type hint)
    """The type without its `| None`."""
    return next(arm for arm in get_args(kind) if arm is not type(None)) if get_origin(kind) in {Union, UnionType} else kind
