"""What a settlement means in money: the entry that admission makes, and what resolves it.

The register of third-party value: a pending entry payer → payTo when a settlement is admitted; posted when the block
that paid is final; voided when it ends without our paying. An entry is one transfer, so the books balance by construction.
"""

from dataclasses import dataclass

from facilitator.domain.states import State
from facilitator.protocol.messages import Authorization
from facilitator.units import Atomic


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One balanced transfer."""

    debit: str
    credit: str
    asset: str
    """`<network>/<token address>`."""
    amount_atomic: Atomic


def pending_entry(authorization: Authorization) -> Entry:
    """The entry that stands from admission until the settlement ends."""
    return Entry(
        debit=f"payer:{authorization.payer}",
        credit=f"payee:{authorization.pay_to}",
        asset=f"{authorization.network}/{authorization.asset}",
        amount_atomic=authorization.amount_atomic,
    )


def resolution(state: State) -> str | None:
    """The phase of the entry that resolves the pending one when a settlement reaches `state`; None while it stays open."""
    match state:
        case State.FINALIZED:
            return "posted"
        case State.WITHDRAWN | State.FAILED | State.EXPIRED | State.EXTERNAL | State.CANCELLED | State.CONFLICT:
            return "voided"
        case State.QUEUED | State.SUBMITTED | State.PRECONFIRMED | State.INCLUDED | State.SAFE:
            return None
