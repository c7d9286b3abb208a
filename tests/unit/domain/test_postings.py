"""What a settlement means in money: one balanced entry when it is admitted, one that resolves it when it ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facilitator.domain.postings import pending_entry, resolution
from facilitator.domain.states import PAID, TRANSITIONS, UNRESOLVED, State
from facilitator.protocol.messages import Authorization
from facilitator.units import UINT256_MAX, Address, Atomic, AuthNonce, Network, UnixSeconds

ASSET = Address("0x036cbd53842c5426634e7929541ec2318f3dcf7e")
addresses = st.integers(0, 2**160 - 1).map(lambda number: Address(f"0x{number:040x}"))


def authorization(payer: Address, pay_to: Address, amount_atomic: int) -> Authorization:
    return Authorization(
        scheme="exact",
        network=Network("eip155:84532"),
        asset=ASSET,
        payer=payer,
        pay_to=pay_to,
        amount_atomic=Atomic(amount_atomic),
        valid_after=UnixSeconds(0),
        valid_before=UnixSeconds(1),
        auth_nonce=AuthNonce("0x" + "00" * 32),
        signature=b"",
    )


@given(payer=addresses, pay_to=addresses, amount_atomic=st.integers(0, UINT256_MAX))
def test_the_pending_entry_moves_the_whole_amount_from_payer_to_payee(payer: Address, pay_to: Address, amount_atomic: int) -> None:
    entry = pending_entry(authorization(payer, pay_to, amount_atomic))
    assert (entry.debit, entry.credit) == (f"payer:{payer}", f"payee:{pay_to}")
    assert entry.amount_atomic == amount_atomic
    assert entry.asset == f"eip155:84532/{ASSET}"


@given(account=addresses)
def test_a_payer_who_pays_himself_has_two_accounts(account: Address) -> None:
    entry = pending_entry(authorization(account, account, 1))
    assert entry.debit != entry.credit


@pytest.mark.parametrize("state", State)
def test_an_entry_is_posted_at_finality_voided_at_any_other_end_and_open_until_then(state: State) -> None:
    ends = {State.FINALIZED: "posted"} | dict.fromkeys(set(State) - PAID - UNRESOLVED, "voided")
    assert resolution(state) == ends.get(state)


def test_an_entry_that_was_posted_is_never_resolved_again() -> None:
    assert all(not TRANSITIONS[state] for state in State if resolution(state) == "posted")


@pytest.mark.parametrize("state", [state for state in State if resolution(state) == "voided"])
def test_a_voided_settlement_goes_on_only_where_a_new_entry_can_be_made(state: State) -> None:
    """`queued`, `submitted` and `included` (paid after all) make a new pending entry; `failed → external` stays void."""
    assert {target for target in TRANSITIONS[state] if resolution(target) != "voided"} <= {State.QUEUED, State.SUBMITTED, State.INCLUDED}
