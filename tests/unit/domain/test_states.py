"""The table of moves is the law: the schema and the documentation say the same, and nothing else is possible."""

import re
from pathlib import Path

import pytest

from facilitator.domain.states import PAID, READMITTABLE, TRANSITIONS, UNRESOLVED, State, move

ROOT = Path(__file__).parents[3]
SCHEMA = "\n".join(path.read_text("utf-8") for path in sorted((ROOT / "facilitator/store/sql/migrations").glob("*.sql")))
DOCUMENT = (ROOT / "docs/states.md").read_text("utf-8")
ALL = frozenset(State)
MOVES = [(current, target) for current, targets in TRANSITIONS.items() for target in sorted(targets)]


def quoted(sql: str) -> frozenset[str]:
    return frozenset(re.findall(r"'([a-z]+)'", sql))


def constraint(name: str) -> str:
    found = re.search(rf"constraint {name} check \((.+?)\)[,\n]*(?=\n?\s*(?:constraint|\)))", SCHEMA, re.DOTALL)
    assert found is not None, name
    return found[1]


def test_the_table_names_every_state_and_no_state_leads_to_itself() -> None:
    assert set(TRANSITIONS) == ALL
    assert all(current not in targets for current, targets in TRANSITIONS.items())


def test_every_state_can_be_reached_from_queued() -> None:
    reached, waiting = {State.QUEUED}, [State.QUEUED]
    while waiting:
        for target in TRANSITIONS[waiting.pop()] - reached:
            reached.add(target)
            waiting.append(target)
    assert reached == ALL


def test_only_finalized_is_the_end() -> None:
    assert {state for state in State if not TRANSITIONS[state]} == {State.FINALIZED}


@pytest.mark.parametrize(("current", "target"), MOVES)
def test_a_move_in_the_table_is_allowed(current: State, target: State) -> None:
    assert move(current, target) is target


@pytest.mark.parametrize(("current", "target"), [(a, b) for a in State for b in State if b not in TRANSITIONS[a]])
def test_every_other_move_is_a_bug_that_raises(current: State, target: State) -> None:
    with pytest.raises(ValueError, match=f"never moves from {current} to {target}"):
        move(current, target)


def test_a_payment_that_was_made_can_only_be_undone_by_a_reorganisation() -> None:
    for state in PAID:
        assert TRANSITIONS[state] <= PAID | {State.SUBMITTED}


def test_what_may_be_admitted_again_is_what_may_be_queued_again() -> None:
    disproved = {State.EXTERNAL, State.CANCELLED, State.CONFLICT}
    assert {state for state in State if State.QUEUED in TRANSITIONS[state]} == READMITTABLE | {State.SUBMITTED} | disproved


def test_a_later_use_of_an_authorization_is_told_of_all_that_may_be_admitted_again() -> None:
    for state in READMITTABLE:
        assert TRANSITIONS[state] >= {State.INCLUDED, State.EXTERNAL, State.CANCELLED, State.CONFLICT}


def test_the_schema_knows_the_same_states() -> None:
    found = re.search(r"state\s+text[^,]*?check \(state in \((.+?)\)\)", SCHEMA.partition("create table settlement (")[2], re.DOTALL)
    assert found is not None
    assert quoted(found[1]) == ALL


def test_the_schema_calls_the_same_states_unresolved() -> None:
    assert quoted(constraint("settlement_resolved")) == UNRESOLVED


def test_the_schema_asks_the_paid_states_for_their_proof() -> None:
    assert quoted(constraint("settlement_proof")) == PAID


def test_the_schema_asks_for_a_hash_from_submitted_on() -> None:
    assert quoted(constraint("settlement_hash")) == PAID | {State.SUBMITTED}


def test_the_schema_asks_every_other_end_for_a_reason() -> None:
    assert quoted(constraint("settlement_reason")) == ALL - PAID - UNRESOLVED


def test_the_diagram_in_the_documentation_draws_the_table() -> None:
    drawn = set(re.findall(r"^    ([a-z]+) --> ([a-z]+)$", DOCUMENT, re.MULTILINE))
    assert drawn == {(str(current), str(target)) for current, target in MOVES}


def test_the_table_in_the_documentation_has_a_row_for_each_state() -> None:
    rows = dict(re.findall(r"^\| `([a-z]+)` \|.*\| ([^|]+) \|$", DOCUMENT, re.MULTILINE))
    assert {state: set(re.findall(r"`([a-z]+)`", targets)) for state, targets in rows.items()} == {
        str(state): {str(target) for target in targets} for state, targets in TRANSITIONS.items()
    }
