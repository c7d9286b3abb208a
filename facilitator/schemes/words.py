"""How a refusal is worded: which field, what was expected, what came."""

from collections.abc import Mapping
from typing import Final

from facilitator.protocol.reasons import Reason, Refusal
from facilitator.schemes.scheme import Token

_GOT_MAX: Final = 80
"""Longest piece of a request that a message repeats."""


def money(amount_atomic: int, token: Token | None) -> str:
    """An amount as it stands on the wire, and what it is: `10000 (0.01 USDC)`. Which decimals were meant is the usual mistake."""
    if token is None:
        return str(amount_atomic)
    whole, part = divmod(amount_atomic, 10**token.decimals)
    text = f"{whole}.{part:0{token.decimals}d}".rstrip("0").rstrip(".") if token.decimals else str(whole)
    return f"{amount_atomic} ({text} {token.name})"


def distance(seconds: int) -> str:
    """How far from now."""
    return f"{seconds} s from now" if seconds >= 0 else f"{-seconds} s ago"


def refuse(reason: Reason, where: str, expected: str, got: str) -> Refusal:
    """A refusal that says field, expected and got, for people and as evidence."""
    message = f"{where}: expected {expected}, got {got}"
    return Refusal(reason=reason, message=message, evidence={"field": where, "expected": expected, "got": got})


def show(value: object) -> str:
    """A piece of a request as a message may repeat it: short, ASCII, its JSON type plain."""
    match value:
        case None:
            shown = "nothing"
        case str():
            shown = ascii(value[:_GOT_MAX]) + (f"… ({len(value)} characters)" if len(value) > _GOT_MAX else "")
        case bool():
            shown = f"the JSON word {str(value).lower()}"
        case int() if abs(value) < 10**_GOT_MAX:
            shown = f"the JSON number {value}"
        case int() | float():
            shown = "a JSON number"
        case Mapping():
            shown = "an object"
        case _:
            shown = "an array"
    return shown
