"""Every way in which ledger and chain can differ, planted one at a time, is found under its own name."""

from typing import Any
from uuid import UUID

import pytest

from facilitator.domain.abi import Log
from facilitator.domain.postings import pending_entry
from facilitator.finance.reconciliation import Difference, Kind, compare
from facilitator.protocol.messages import Authorization
from facilitator.store.reconciliation import LedgerRow
from facilitator.units import Address, Atomic, AuthNonce, BlockHash, TxHash
from tests.fixtures.payments import authorization, canceled_log, transfer_log, used_log

OURS = TxHash("0x" + "cd" * 32)
FOREIGN = TxHash("0x" + "ee" * 32)
BLOCK = BlockHash("0x" + "b1" * 32)
OTHER_NONCE = AuthNonce("0x" + "cd" * 32)
STRANGER = Address("0x" + "99" * 20)


def row(terms: Authorization | None = None, *, number: int = 1, **changes: Any) -> LedgerRow:
    """An included settlement of these terms with the proof that `paid_logs` make, and right books."""
    terms = terms or authorization()
    entry = pending_entry(terms)
    fields: dict[str, Any] = {
        "settlement_id": UUID(int=number),
        "network": terms.network,
        "asset": terms.asset,
        "payer": terms.payer,
        "auth_nonce": terms.auth_nonce,
        "pay_to": terms.pay_to,
        "amount_atomic": terms.amount_atomic,
        "state": "included",
        "tx_hash": OURS,
        "log_index": 7,
        "block_number": 1_000,
        "block_hash": BLOCK,
        "told_success": True,
        "booked_debit": entry.debit,
        "booked_credit": entry.credit,
        "booked_asset": entry.asset,
        "booked_amount_atomic": entry.amount_atomic,
        "booked_phase": None,
    }
    return LedgerRow(**fields | changes)


def unproved(state: str, **changes: Any) -> LedgerRow:
    """A settlement in a state that names no log."""
    phase = None if state in {"queued", "submitted"} else "voided"
    nothing = {"tx_hash": None, "log_index": None, "block_number": None, "block_hash": None, "told_success": False}
    return row(**{"state": state, "booked_phase": phase} | nothing | changes)


def proved(state: str, **changes: Any) -> LedgerRow:
    """A settlement that names its log and was not paid by us."""
    return row(**{"state": state, "booked_phase": "voided", "told_success": False, "tx_hash": FOREIGN} | changes)


def paid_logs(terms: Authorization | None = None, at: int = 7, **changes: Any) -> list[Log]:
    """What the payment of these terms leaves on the chain."""
    terms = terms or authorization()
    return [used_log(terms, at, **changes), transfer_log(terms, at + 1, **changes)]


def kinds(rows: list[LedgerRow], logs: list[Log], ours: frozenset[TxHash] = frozenset({OURS})) -> list[Kind]:
    return [difference.kind for difference in compare(rows, logs, ours)]


def only(rows: list[LedgerRow], logs: list[Log]) -> Difference:
    (difference,) = compare(rows, logs, frozenset({OURS}))
    return difference


def test_nothing_is_no_difference() -> None:
    assert compare([], [], frozenset()) == ()


@pytest.mark.parametrize(("state", "phase"), [("preconfirmed", None), ("included", None), ("safe", None), ("finalized", "posted")])
def test_a_paid_settlement_with_its_log_pair_is_no_difference(state: str, phase: str | None) -> None:
    assert kinds([row(state=state, booked_phase=phase)], paid_logs()) == []


def test_payments_of_others_are_none_of_our_business() -> None:
    assert kinds([], paid_logs(tx_hash=FOREIGN)) == []


def test_transfers_without_an_authorization_are_none_of_our_business() -> None:
    assert kinds([row()], [*paid_logs(), transfer_log(authorization(), 20)]) == []


@pytest.mark.parametrize("state", ["queued", "submitted", "withdrawn", "failed", "expired"])
def test_what_was_not_paid_and_is_not_used_is_no_difference(state: str) -> None:
    assert kinds([unproved(state)], []) == []


def test_paid_in_the_ledger_but_not_on_chain() -> None:
    difference = only([row(told_success=False)], [])
    assert difference.kind is Kind.NOT_ON_CHAIN
    assert difference.settlement_id == UUID(int=1)
    assert (difference.tx_hash, difference.log_index) == (OURS, 7)
    assert "included" in difference.expected


def test_a_removed_log_is_no_log() -> None:
    assert kinds([row(told_success=False)], paid_logs(removed=True)) == [Kind.NOT_ON_CHAIN]


def test_success_was_answered_and_the_paid_row_has_no_log() -> None:
    assert kinds([row()], []) == [Kind.NOT_ON_CHAIN, Kind.ANSWERED_UNPAID]


def test_success_was_answered_and_the_payment_was_reorganised_away() -> None:
    difference = only([unproved("submitted", told_success=True)], [])
    assert difference.kind is Kind.ANSWERED_UNPAID
    assert difference.settlement_id == UUID(int=1)


def test_paid_by_our_transaction_without_a_settlement() -> None:
    difference = only([], paid_logs())
    assert difference.kind is Kind.NOT_IN_LEDGER
    assert difference.settlement_id is None
    assert (difference.tx_hash, difference.log_index) == (OURS, 7)


@pytest.mark.parametrize("state", ["failed", "expired", "withdrawn"])
def test_paid_by_our_transaction_while_the_ledger_says_it_ended_unpaid(state: str) -> None:
    difference = only([unproved(state)], paid_logs())
    assert difference.kind is Kind.NOT_IN_LEDGER
    assert difference.settlement_id == UUID(int=1)


def test_paid_by_our_transaction_while_the_ledger_calls_it_external() -> None:
    assert kinds([proved("external", tx_hash=OURS)], paid_logs()) == [Kind.NOT_IN_LEDGER]


def test_paid_by_another_sender_while_the_ledger_calls_it_ours() -> None:
    assert kinds([row(tx_hash=FOREIGN)], paid_logs(tx_hash=FOREIGN)) == [Kind.STATE_DIFFERS]


@pytest.mark.parametrize(
    "terms",
    [
        authorization(amount_atomic=Atomic(9_999)),
        authorization(pay_to=STRANGER),
    ],
    ids=["amount", "payTo"],
)
def test_the_chain_moved_other_money_than_the_ledger_says(terms: Authorization) -> None:
    difference = only([row()], paid_logs(terms))
    assert difference.kind is Kind.TERMS_DIFFER
    assert "10000" in difference.expected
    assert str(terms.amount_atomic) in difference.got
    assert terms.pay_to in difference.got


@pytest.mark.parametrize("terms", [authorization(payer=STRANGER), authorization(auth_nonce=OTHER_NONCE)], ids=["payer", "auth_nonce"])
def test_the_proof_in_the_ledger_is_of_another_authorization(terms: Authorization) -> None:
    difference = only([row()], paid_logs(terms))
    assert difference.kind is Kind.TERMS_DIFFER
    assert terms.payer in difference.got
    assert terms.auth_nonce in difference.got


def test_a_use_without_its_transfer_is_not_payment() -> None:
    assert kinds([row()], paid_logs()[:1]) == [Kind.TERMS_DIFFER]
    assert kinds([row()], [used_log(authorization(), 7), transfer_log(authorization(), 9)]) == [Kind.TERMS_DIFFER]


@pytest.mark.parametrize("change", [{"tx_hash": TxHash("0x" + "ab" * 32)}, {"log_index": 3}, {"block_hash": BlockHash("0x" + "b2" * 32)}])
def test_the_proof_stands_elsewhere_than_the_ledger_says(change: dict[str, Any]) -> None:
    assert kinds([row(**change)], paid_logs()) == [Kind.PROOF_DIFFERS]


def test_a_preconfirmed_proof_has_no_block_hash_yet() -> None:
    assert kinds([row(state="preconfirmed", block_hash=BlockHash("0x" + "00" * 32))], paid_logs()) == []


def test_one_authorization_used_twice_on_chain() -> None:
    again = paid_logs(at=20, block_hash=BlockHash("0x" + "b2" * 32), block_number=1_001)
    difference = only([row()], paid_logs() + again)
    assert difference.kind is Kind.PAID_TWICE
    assert difference.log_index == 20


def test_two_settlements_with_one_proof() -> None:
    second = row(authorization(auth_nonce=OTHER_NONCE), number=2)
    difference = only([row(), second], paid_logs())
    assert difference.kind is Kind.PAID_TWICE
    assert difference.settlement_id == UUID(int=2)
    assert str(UUID(int=1)) in difference.got


def test_two_paid_settlements_of_one_authorization() -> None:
    assert kinds([row(), row(number=2)], paid_logs()) == [Kind.PAID_TWICE]


@pytest.mark.parametrize("state", ["queued", "submitted"])
@pytest.mark.parametrize("tx_hash", [OURS, FOREIGN], ids=["ours", "foreign"])
def test_an_open_settlement_whose_authorization_is_used(state: str, tx_hash: TxHash) -> None:
    difference = only([unproved(state)], paid_logs(tx_hash=tx_hash))
    assert difference.kind is Kind.OPEN_BUT_USED
    assert difference.tx_hash == tx_hash


def test_an_open_settlement_whose_authorization_is_cancelled() -> None:
    assert kinds([unproved("submitted")], [canceled_log(authorization())]) == [Kind.OPEN_BUT_USED]


def test_another_sender_may_execute_what_we_gave_up() -> None:
    for state in ("withdrawn", "failed"):
        assert kinds([unproved(state)], paid_logs(tx_hash=FOREIGN)) == []


def test_an_expired_authorization_cannot_have_been_used() -> None:
    assert kinds([unproved("expired")], paid_logs(tx_hash=FOREIGN)) == [Kind.STATE_DIFFERS]


def test_external_cancelled_and_conflict_are_proved_by_their_logs() -> None:
    assert kinds([proved("external")], paid_logs(tx_hash=FOREIGN)) == []
    assert kinds([proved("cancelled")], [canceled_log(authorization(), tx_hash=FOREIGN)]) == []
    assert kinds([proved("conflict")], paid_logs(authorization(pay_to=STRANGER), tx_hash=FOREIGN)) == []


def test_external_cancelled_and_conflict_with_the_wrong_log() -> None:
    assert kinds([proved("external")], paid_logs(authorization(pay_to=STRANGER), tx_hash=FOREIGN)) == [Kind.TERMS_DIFFER]
    assert kinds([proved("external")], [canceled_log(authorization(), tx_hash=FOREIGN)]) == [Kind.STATE_DIFFERS]
    assert kinds([proved("cancelled")], paid_logs(tx_hash=FOREIGN)) == [Kind.STATE_DIFFERS]
    assert kinds([proved("conflict")], paid_logs(tx_hash=FOREIGN)) == [Kind.STATE_DIFFERS]
    for state in ("external", "cancelled", "conflict"):
        assert kinds([proved(state)], []) == [Kind.NOT_ON_CHAIN]


@pytest.mark.parametrize(
    "change",
    [
        {"booked_debit": None, "booked_credit": None, "booked_asset": None, "booked_amount_atomic": None},
        {"booked_amount_atomic": Atomic(9_999)},
        {"booked_credit": f"payee:{STRANGER}"},
        {"booked_debit": f"payer:{STRANGER}"},
        {"booked_asset": "eip155:1/0x"},
        {"booked_phase": "voided"},
        {"booked_phase": "posted"},
        {"state": "finalized"},
    ],
    ids=str,
)
def test_the_journal_says_something_else_than_the_settlement(change: dict[str, Any]) -> None:
    assert kinds([row(**change)], paid_logs()) == [Kind.BOOKED_OTHERWISE]


def test_many_right_payments_hide_no_wrong_one() -> None:
    many = [authorization(auth_nonce=AuthNonce(f"0x{number:064x}")) for number in range(200)]
    logs = [log for number, terms in enumerate(many) for log in paid_logs(terms, at=2 * number)]
    rows = [row(terms, number=number + 1, log_index=2 * number) for number, terms in enumerate(many)]
    assert compare(rows, logs, frozenset({OURS})) == ()
    assert [difference.settlement_id for difference in compare(rows[:150] + rows[151:], logs, frozenset({OURS}))] == [None]


def test_a_difference_reads_as_one_line() -> None:
    text = str(only([row(told_success=False)], []))
    assert text.startswith("not_on_chain: settlement 00000000-")
    assert "\n" not in text
