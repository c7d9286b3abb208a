"""At which state success may be told."""

import pytest

from facilitator.domain.confirmation import LEVELS, ConfirmLevel, deep_enough, level_of
from facilitator.domain.states import PAID, State
from facilitator.units import Atomic

DEPTH = [State.PRECONFIRMED, State.INCLUDED, State.SAFE, State.FINALIZED]


@pytest.mark.parametrize(("place", "level"), list(enumerate(LEVELS)))
def test_success_is_told_from_the_level_s_own_state_on(place: int, level: ConfirmLevel) -> None:
    assert [deep_enough(state, level) for state in DEPTH] == [False] * place + [True] * (4 - place)


@pytest.mark.parametrize("level", LEVELS)
def test_what_did_not_pay_is_never_deep_enough(level: ConfirmLevel) -> None:
    assert not [state for state in set(State) - PAID - {State.EXTERNAL} if deep_enough(state, level, closed=True)]


@pytest.mark.parametrize("level", LEVELS)
def test_what_another_sender_executed_is_deep_enough_once_final(level: ConfirmLevel) -> None:
    assert deep_enough(State.EXTERNAL, level, closed=True)
    assert deep_enough(State.EXTERNAL, level) == (level in {"preconfirmed", "latest"})


@pytest.mark.parametrize(
    ("asked", "default", "amount", "level"),
    [
        (None, "latest", 5, "latest"),
        (None, "safe", 5, "safe"),
        ("finalized", "latest", 5, "finalized"),
        ("latest", "safe", 5, "latest"),
        ("preconfirmed", "latest", 100, "preconfirmed"),
        ("preconfirmed", "latest", 101, "latest"),
        ("preconfirmed", "finalized", 101, "latest"),
    ],
)
def test_a_tenant_s_level_is_its_own_else_the_default_and_flashblocks_are_for_small_payments(
    asked: ConfirmLevel | None, default: ConfirmLevel, amount: int, level: ConfirmLevel
) -> None:
    assert level_of(asked, default, Atomic(amount), 100) == level
