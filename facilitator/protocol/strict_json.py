"""JSON that has one reading only: what RFC 8259 leaves open and I-JSON (RFC 7493) closes, with bounds on cost.

It must never be lenient for convenience: two parsers that read the same bytes differently are how a signed payment
comes to mean two things. Whatever comes in, `load` takes milliseconds, does not recurse deeply and raises `HostileError`
alone.

Two parsers: msgspec's reads what is plain (`_load_plain`, 2.7 µs for a request), the standard library's judges all else, for
its hooks see duplicate keys and the text of each number (`load_any`, 8 µs). Tests hold both equal.
"""

import json
import re
from itertools import accumulate
from typing import Final, Never

import msgspec

DEPTH_MAX: Final = 32
"""Deepest nesting of arrays and objects, the outermost included."""
NUMBER_CHARS_MAX: Final = 78
"""Longest number, as many digits as a uint256 has: longer ones cost time and mean nothing to us."""
SHOWN_CHARS_MAX: Final = 64
"""Most characters of a stranger's text that a message quotes."""


class HostileError(ValueError):
    """Bytes or values that are refused as malformed. `path` is a JSON path when the fault is in one field."""

    def __init__(self, message: str, path: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.path = path


def load(body: bytes) -> object:
    """Parse strict UTF-8 JSON. The caller bounds the size. Raises HostileError alone.

    Refused besides bad syntax: a duplicate key at any level, NaN and infinities, numbers beyond a double or longer
    than NUMBER_CHARS_MAX, NUL and lone surrogates in keys and strings, a byte order mark, nesting beyond DEPTH_MAX.
    """
    tree = _load_plain(body)
    return load_any(body) if tree is None else tree


def _load_plain(body: bytes) -> object:
    """The tree of a body in which nothing can be hostile; None for any other, be it good or bad.

    Without a backslash every two quotes are one string. A parser that drops the second of two equal keys drops at least that
    string: as many quotes in what it read, written out again, as in the body means that it dropped nothing.
    """
    if b"\\" in body or body.count(b"{") + body.count(b"[") > DEPTH_MAX:
        return None
    try:
        tree: object = _PLAIN.decode(body)
        again = _ENCODER.encode(tree)
        _BINARY.encode(tree)  # only to see that it can: MessagePack has no number beyond 64 bits
    except (msgspec.MsgspecError, ValueError, OverflowError):  # no JSON, no UTF-8, a fraction; such a number
        return None
    return tree if again == body or again.count(b'"') == body.count(b'"') else None


def load_any(body: bytes) -> object:
    """`load` without its short cut, which is held against this."""
    if body.count(b"{") + body.count(b"[") > DEPTH_MAX and _depth(body) > DEPTH_MAX:  # before anything recurses
        raise HostileError(f"expected at most {DEPTH_MAX} levels of nesting")
    try:
        text = body.decode()
        tree: object = _DECODER.decode(text)
    except UnicodeDecodeError as error:
        raise HostileError(f"expected UTF-8, got another byte at {error.start}") from None
    except json.JSONDecodeError as error:
        raise HostileError(f"expected JSON: {error}") from None
    if "\\u" in text:  # only an escape can bring in what UTF-8 and the parser keep out
        _check_text(tree)
    return tree


def shown(text: str) -> str:
    """Make a stranger's text fit for a message: quoted, escaped and short."""
    return ascii(text if len(text) <= SHOWN_CHARS_MAX else text[:SHOWN_CHARS_MAX] + "…")


def json_type(value: object) -> str:
    """Name a parsed value as JSON does."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"


_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
"""A JSON string, or the rest of the body when it does not end. Possessive throughout: linear for any input."""
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_HOSTILE_TEXT: Final = re.compile("[\0\ud800-\udfff]")


def _depth(body: bytes) -> int:
    """Deepest nesting of brackets outside strings, without recursion and without parsing."""
    brackets = _STRING.sub(b"", body).translate(None, _NOT_BRACKETS)
    return max(accumulate(1 if bracket in b"[{" else -1 for bracket in brackets), default=0)


def _check_text(tree: object) -> None:
    """Refuse NUL and lone surrogates in keys and strings: Postgres and UTF-8 cannot hold them."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, str):
            if _HOSTILE_TEXT.search(node):
                raise HostileError("expected text without NUL and lone surrogates")
        elif isinstance(node, dict):
            waiting.extend(node)
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        again = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise HostileError(f"expected each key once, got {shown(again)} again")
    return members


def _integer(text: str) -> int:
    if len(text) > NUMBER_CHARS_MAX:
        raise HostileError(f"expected numbers of at most {NUMBER_CHARS_MAX} characters, got {len(text)}")
    return int(text)


def _float(text: str) -> float:
    number = float(text) if len(text) <= NUMBER_CHARS_MAX else float("inf")
    if number in {float("inf"), float("-inf")}:
        raise HostileError(f"expected numbers that a double can hold, of at most {NUMBER_CHARS_MAX} characters")
    return number


def _constant(text: str) -> Never:
    raise HostileError(f"expected JSON, got {text}")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)


def _leave(text: str) -> Never:
    raise ValueError(text)


_PLAIN: Final = msgspec.json.Decoder(float_hook=_leave)
_ENCODER: Final = msgspec.json.Encoder()
_BINARY: Final = msgspec.msgpack.Encoder()
