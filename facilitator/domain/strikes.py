"""Whose doing was it that a transaction of ours was mined and did not pay, although its simulation had? Pure.

| how the settlement ended | payer | tenant |
|---|---|---|
| the money moved away; cancelled; used with other terms; the account became another one; it reverts by itself | struck | struck |
| executed by another sender, who may be anybody that saw the signature | | struck |
| the issuer paused the token or froze an account; its time was over before it was mined; our gas limit was too low; undecided | | |
"""

from typing import Final, Literal

from facilitator.protocol.reasons import Reason

Struck = Literal["payer", "tenant"]
"""The payer and with it the tenant whose caller brought it, or the tenant alone."""

_OF_PAYER: Final = frozenset(
    {
        Reason.INSUFFICIENT_BALANCE,
        Reason.AUTHORIZATION_CANCELED,
        Reason.AUTHORIZATION_CONFLICT,
        Reason.NONCE_USED,
        Reason.SIGNATURE,
        Reason.SMART_WALLET_UNSUPPORTED,
    }
)
_OF_PAYER_UNLESS_SHORT_OF_GAS: Final = frozenset({Reason.TRANSACTION_FAILED, Reason.SIMULATION_FAILED})


def struck(reason: Reason | None, *, short_of_gas: bool) -> Struck | None:
    """Who earns a strike for a settlement that ended for this reason after our transaction was mined.

    `short_of_gas`: that transaction used up a limit that we set for plain transfers.
    """
    if reason in _OF_PAYER or (reason in _OF_PAYER_UNLESS_SHORT_OF_GAS and not short_of_gas):
        return "payer"
    return "tenant" if reason is Reason.SETTLEMENT_EXTERNAL else None
