"""What a tenant is charged for a settlement: versioned fee schedules, in integer micro-dollars. Pure.

Rounding: a charge in basis points, and a margin on gas, is rounded half up to the micro-dollar, each settlement by itself;
every sum is a sum of whole micro-dollars. Amounts of a dollar coin count at par.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

import msgspec

from facilitator.domain.rates import MICROS

BASIS_POINTS: Final = 10_000
"""Of the whole."""
USD: Final = "USD"
"""The journal's name of micro-dollars."""
USD_DECIMALS: Final = 6
"""Of a micro-dollar amount."""
_MICROS_MAX: Final = 10**12
_COUNT_MAX: Final = 10**12


class Tier(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The price of the settlements of a month from the one after `above` on."""

    above: int = 0
    flat_micros: int = 0
    """Per settlement."""
    basis_points: int = 0
    """Of the amount settled."""


class GasTerms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Gas passed through."""

    margin_basis_points: int = 0
    """On top of what the gas cost."""


class Terms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One version of what a tenant pays."""

    tiers: tuple[Tier, ...] = (Tier(),)
    """By rising `above`, the first from 0; each settlement is priced by the tier that it falls into."""
    free_settlements: int = 0
    """The first so many of a month pay neither flat fee nor basis points; they count for the tiers."""
    gas: GasTerms | None = None
    """None: gas is ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Terms that hold from a book day on, until a later version does."""

    version: int
    effective_from: date
    terms: Terms


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What one settlement is charged."""

    version: int
    tier: int | None
    """Index of its tier; None while it is free."""
    fee_micros: int
    gas_micros: int | None
    """Gas passed through, margin included; None when it is to be passed through and its cost in dollars is not known."""


def decode_terms(text: str | bytes) -> Terms:
    """Read terms from JSON. Raises ValueError that says what is wrong with them."""
    try:
        terms = msgspec.json.decode(text, type=Terms)
    except msgspec.DecodeError as error:
        raise ValueError(f"fee terms: {error}") from None
    if not terms.tiers or terms.tiers[0].above != 0:
        raise ValueError("fee terms: the first tier begins above 0")
    if any(later.above <= earlier.above for earlier, later in zip(terms.tiers, terms.tiers[1:], strict=False)):
        raise ValueError("fee terms: tiers must rise")
    bounded = [
        (terms.free_settlements, _COUNT_MAX),
        (terms.gas.margin_basis_points if terms.gas else 0, BASIS_POINTS * 10),
        *((tier.above, _COUNT_MAX) for tier in terms.tiers),
        *((tier.flat_micros, _MICROS_MAX) for tier in terms.tiers),
        *((tier.basis_points, BASIS_POINTS) for tier in terms.tiers),
    ]
    for value, most in bounded:
        if not 0 <= value <= most:
            raise ValueError(f"fee terms: {value} does not lie between 0 and {most}")
    return terms


def encode_terms(terms: Terms) -> str:
    """Terms as JSON, every field written."""
    plain: Mapping[str, Any] = msgspec.to_builtins(terms)
    return msgspec.json.encode(plain, order="sorted").decode()


def in_force(schedules: Sequence[Schedule], day: date) -> Schedule | None:
    """The version that holds on a day; None before the first."""
    begun = [schedule for schedule in schedules if schedule.effective_from <= day]
    return max(begun, key=lambda schedule: schedule.effective_from, default=None)


def charge(schedule: Schedule, number: int, amount_micros: int, gas_micros: int | None) -> Charge:
    """Price the month's settlement of that number, counted from 1."""
    terms = schedule.terms
    gas = _with_margin(gas_micros, terms.gas)
    if number <= terms.free_settlements:
        return Charge(version=schedule.version, tier=None, fee_micros=0, gas_micros=gas)
    index = max(index for index, tier in enumerate(terms.tiers) if tier.above < number)
    tier = terms.tiers[index]
    fee = tier.flat_micros + _part(amount_micros, tier.basis_points)
    return Charge(version=schedule.version, tier=index, fee_micros=fee, gas_micros=gas)


def at_par(amount_atomic: int, decimals: int) -> int:
    """An amount of a dollar coin in micro-dollars, rounded half up where the coin has more than six decimals."""
    unit = 10**decimals
    return int((2 * amount_atomic * MICROS + unit) // (2 * unit))


def _with_margin(gas_micros: int | None, terms: GasTerms | None) -> int | None:
    if terms is None:
        return 0
    return None if gas_micros is None else gas_micros + _part(gas_micros, terms.margin_basis_points)


def _part(micros: int, basis_points: int) -> int:
    """So many basis points of it, rounded half up."""
    return (2 * micros * basis_points + BASIS_POINTS) // (2 * BASIS_POINTS)
