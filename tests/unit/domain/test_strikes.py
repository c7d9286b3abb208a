"""Whose doing a wasted transaction was: every reason there is, by one table."""

import pytest

from facilitator.domain.strikes import struck
from facilitator.protocol.reasons import Reason

OF_PAYER = {
    Reason.INSUFFICIENT_BALANCE,
    Reason.AUTHORIZATION_CANCELED,
    Reason.AUTHORIZATION_CONFLICT,
    Reason.NONCE_USED,
    Reason.SIGNATURE,
    Reason.SMART_WALLET_UNSUPPORTED,
}
UNLESS_SHORT_OF_GAS = {Reason.TRANSACTION_FAILED, Reason.SIMULATION_FAILED}


@pytest.mark.parametrize("short_of_gas", [False, True])
@pytest.mark.parametrize("reason", list(Reason))
def test_a_payer_is_struck_for_what_it_did_a_tenant_for_that_and_for_another_sender_and_nobody_for_the_rest(
    reason: Reason,
    short_of_gas: bool,  # noqa: FBT001
) -> None:
    found = struck(reason, short_of_gas=short_of_gas)
    if reason in OF_PAYER or (reason in UNLESS_SHORT_OF_GAS and not short_of_gas):
        assert found == "payer"
    elif reason is Reason.SETTLEMENT_EXTERNAL:
        assert found == "tenant"
    else:
        assert found is None


def test_a_settlement_that_ended_without_a_reason_is_nobody_s_doing() -> None:
    assert struck(None, short_of_gas=False) is None
