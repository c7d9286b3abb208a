"""Relayers are shared out: every one that can be held is held, nobody has two more than another, and nothing moves for nothing."""

from hypothesis import given
from hypothesis import strategies as st

from facilitator.domain.pool import share_out
from facilitator.units import Address

REPLICAS = st.sampled_from(["a", "b", "c", "d"])
ADDRESSES = st.integers(0, 11).map(lambda number: Address(f"0x{number:040x}"))


def keys(*numbers: int) -> set[Address]:
    return {Address(f"0x{number:040x}") for number in numbers}


def loads(given_to: dict[Address, str], replicas: set[str]) -> list[int]:
    return sorted(list(given_to.values()).count(replica) for replica in replicas)


@given(st.dictionaries(REPLICAS, st.sets(ADDRESSES), min_size=1), st.dictionaries(ADDRESSES, REPLICAS))
def test_whatever_somebody_can_sign_for_is_held_by_one_who_can(keys_of: dict[str, set[Address]], owners: dict[Address, str]) -> None:
    shared = share_out(keys_of, owners)
    assert set(shared) == set().union(*keys_of.values())
    assert all(address in keys_of[replica] for address, replica in shared.items())


@given(st.sets(ADDRESSES, min_size=1), st.sets(REPLICAS, min_size=1), st.dictionaries(ADDRESSES, REPLICAS))
def test_with_the_same_keys_everywhere_nobody_has_two_more_than_another(
    every: set[Address], replicas: set[str], owners: dict[Address, str]
) -> None:
    least, *_, most = [*loads(share_out(dict.fromkeys(replicas, every), owners), replicas)] * 2
    assert most - least <= 1


@given(st.dictionaries(REPLICAS, st.sets(ADDRESSES), min_size=1), st.dictionaries(ADDRESSES, REPLICAS))
def test_what_was_shared_out_stays_where_it_is(keys_of: dict[str, set[Address]], owners: dict[Address, str]) -> None:
    shared = share_out(keys_of, owners)
    for _ in range(4):
        settled = share_out(keys_of, shared)
        if settled == shared:
            return
        shared = settled
    raise AssertionError("it never settles")


def test_replicas_with_keys_of_their_own_hold_all_of_them() -> None:
    assert share_out({"a": keys(1, 2), "b": keys(3, 4)}, {}) == {
        **dict.fromkeys(keys(1, 2), "a"),
        **dict.fromkeys(keys(3, 4), "b"),
    }


def test_a_newcomer_gets_its_part_and_the_others_keep_theirs() -> None:
    every = keys(1, 2, 3, 4)
    owners = {address: ("a" if address in keys(1, 2) else "b") for address in every}
    shared = share_out({"a": every, "b": every, "c": every}, owners)
    assert loads(shared, {"a", "b", "c"}) == [1, 1, 2]
    assert sum(shared[address] != owners[address] for address in every) == 1


def test_the_owner_s_word_counts_for_nothing_when_it_is_gone() -> None:
    assert share_out({"b": keys(1)}, dict.fromkeys(keys(1), "a")) == dict.fromkeys(keys(1), "b")
