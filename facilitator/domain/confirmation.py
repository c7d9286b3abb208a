"""How deep a payment must be before success is told (docs/architecture.md decision 11)."""

from collections.abc import Mapping
from typing import Final, Literal, get_args

from facilitator.domain.states import PAID, State
from facilitator.units import Atomic

ConfirmLevel = Literal["preconfirmed", "latest", "safe", "finalized"]
LEVELS: Final[tuple[ConfirmLevel, ...]] = get_args(ConfirmLevel)
"""From the quickest to the surest."""

_DEEP_ENOUGH: Final[Mapping[ConfirmLevel, frozenset[State]]] = {
    "preconfirmed": PAID,
    "latest": PAID - {State.PRECONFIRMED},
    "safe": frozenset({State.SAFE, State.FINALIZED}),
    "finalized": frozenset({State.FINALIZED}),
}


def level_of(asked: ConfirmLevel | None, default: ConfirmLevel, amount_atomic: Atomic, preconfirmed_max_atomic: int) -> ConfirmLevel:
    """The level of one payment: its tenant's, else the default; above the cap nothing is told from a flashblock."""
    level = asked or default
    return "latest" if level == "preconfirmed" and amount_atomic > preconfirmed_max_atomic else level


def deep_enough(state: State, level: ConfirmLevel, *, closed: bool = False) -> bool:
    """May success be told at this state? What another sender executed is in a sealed block, and `closed` once that is final."""
    if state is State.EXTERNAL:
        return closed or level in {"preconfirmed", "latest"}
    return state in _DEEP_ENOUGH[level]
