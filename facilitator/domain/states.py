"""The life of a settlement: which states there are, and which moves are allowed.

The table is the law. The SQL `CHECK` on `settlement.state` and the diagram in `docs/states.md` are tested against it.
Only chain facts end a settlement; a state never changes because an RPC call failed (docs/architecture.md decision 3 and 4).
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class State(StrEnum):
    """Where a settlement stands."""

    QUEUED = "queued"
    """Admitted; no signed transaction carries it."""
    SUBMITTED = "submitted"
    """A signed transaction that carries it is on record, sent or not."""
    PRECONFIRMED = "preconfirmed"
    """Its log pair was seen in a block that is not sealed yet."""
    INCLUDED = "included"
    """Its log pair is in a sealed block."""
    SAFE = "safe"
    """That block is derived from data on L1."""
    FINALIZED = "finalized"
    """That block can no longer be reorganised away."""
    WITHDRAWN = "withdrawn"
    """Its caller's deadline came while nothing was signed."""
    FAILED = "failed"
    """Its transaction was mined and did not pay, with the auth nonce unused; or it was refused late. The reason says which."""
    EXPIRED = "expired"
    """Canonical chain time is past validBefore and the auth nonce is unused."""
    EXTERNAL = "external"
    """Another sender used the authorization, and the Transfer matches."""
    CANCELLED = "cancelled"
    """The payer cancelled the authorization on chain."""
    CONFLICT = "conflict"
    """The auth nonce was used with other terms."""


_REORGANISED: Final = frozenset({State.SUBMITTED})
_LATE: Final = frozenset({State.INCLUDED, State.EXTERNAL, State.CANCELLED, State.CONFLICT})
_DISPROVED: Final = frozenset({State.QUEUED, State.WITHDRAWN, State.FAILED}) | _REORGANISED
TRANSITIONS: Final[Mapping[State, frozenset[State]]] = {
    State.QUEUED: frozenset(
        {
            State.SUBMITTED,
            State.INCLUDED,
            State.WITHDRAWN,
            State.FAILED,
            State.EXPIRED,
            State.EXTERNAL,
            State.CANCELLED,
            State.CONFLICT,
        }
    ),
    State.SUBMITTED: frozenset(
        {
            State.PRECONFIRMED,
            State.INCLUDED,
            State.FAILED,
            State.EXPIRED,
            State.EXTERNAL,
            State.CANCELLED,
            State.CONFLICT,
            State.QUEUED,
        }
    ),
    State.PRECONFIRMED: frozenset({State.INCLUDED}) | _REORGANISED,
    State.INCLUDED: frozenset({State.SAFE, State.FINALIZED}) | _REORGANISED,
    State.SAFE: frozenset({State.FINALIZED}) | _REORGANISED,
    State.FINALIZED: frozenset(),
    State.WITHDRAWN: frozenset({State.QUEUED}) | _LATE,
    State.FAILED: frozenset({State.QUEUED, State.EXPIRED}) | _LATE | _REORGANISED,
    State.EXPIRED: _REORGANISED,
    State.EXTERNAL: _DISPROVED,
    State.CANCELLED: _DISPROVED,
    State.CONFLICT: _DISPROVED,
}
"""Allowed moves. `submitted → queued` when its relayer slot was resolved without it, and `queued → included` when that
slot's transaction turns out to have paid it all the same; `… → submitted` when a block that proved the state was
reorganised away, or to what it was before when no transaction of ours is open again; from `withdrawn` and `failed` to
what a later use of the authorization says, and `failed → expired` once it can never be used."""

UNRESOLVED: Final = frozenset({State.QUEUED, State.SUBMITTED})
"""States in which nobody may say how the payment ended."""
PAID: Final = frozenset({State.PRECONFIRMED, State.INCLUDED, State.SAFE, State.FINALIZED})
"""States in which our transaction paid."""
READMITTABLE: Final = frozenset({State.WITHDRAWN, State.FAILED})
"""States from which a later `/settle` may start again while the auth nonce is unused and in time."""


def move(current: State, target: State) -> State:
    """Check one move and return `target`. Raises ValueError when the table does not allow it: that is a bug of ours."""
    if target not in TRANSITIONS[current]:
        raise ValueError(f"a settlement never moves from {current} to {target}")
    return target
