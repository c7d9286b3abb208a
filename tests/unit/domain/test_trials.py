"""Trials as bytes: what goes into the shared call, and what is believed of its return."""

import pytest

from facilitator.domain import trials
from facilitator.domain.facts import Call, Reply, Trial
from facilitator.units import Address

PAYER, TOKEN = Address("0x" + "11" * 20), Address("0x" + "22" * 20)


def trial(data: bytes) -> Trial:
    return Trial(payer=PAYER, call=Call(to=TOKEN, data=data))


def test_each_trial_is_payer_length_token_and_data_behind_the_code() -> None:
    packed = trials.pack([trial(b"\xaa\xbb"), trial(b"")])
    entries = b"\x11" * 20 + b"\x00\x02" + b"\x22" * 20 + b"\xaa\xbb" + b"\x11" * 20 + b"\x00\x00" + b"\x22" * 20
    assert packed == trials.CREATION_CODE + entries


def test_a_full_call_stays_within_what_creation_code_may_be() -> None:
    packed = trials.pack([trial(bytes(trials.DATA_MAX))] * trials.TRIALS_MAX)
    assert len(packed) <= 49_152  # EIP-3860


def test_only_short_calls_fit() -> None:
    assert trials.fits(trial(bytes(trials.DATA_MAX)))
    assert not trials.fits(trial(bytes(trials.DATA_MAX + 1)))


@pytest.mark.parametrize("too_much", [[trial(b"")] * (trials.TRIALS_MAX + 1), [trial(bytes(trials.DATA_MAX + 1))]])
def test_what_does_not_fit_is_a_bug(too_much: list[Trial]) -> None:
    with pytest.raises(AssertionError):
        trials.pack(too_much)


def test_only_a_call_that_succeeded_for_a_payer_without_code_is_a_yes() -> None:
    replies = trials.read(b"\x00\x01\x02", 3)
    assert replies == (Reply(ok=False, data=b""), Reply(ok=True, data=b""), Reply(ok=False, data=b""))


@pytest.mark.parametrize("returned", [b"", b"\x01", b"\x01\x01\x01", b"\x01\x03", bytes(64)])
def test_another_return_than_a_verdict_for_each_is_not_believed(returned: bytes) -> None:
    assert trials.read(returned, 2) is None
