"""What a settlement means in money: the entry that admission makes, what resolves it, and what gas costs us.

Two books. The register of third-party value: a pending entry payer → payTo when a settlement is admitted; posted when the
block that paid is final; voided when it ends without our paying. Our own: a pending entry for the gas of each mined
transaction, posted when its block is final, voided when that block is reorganised away. An entry is one transfer, so the
books balance by construction.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from facilitator.domain.states import State
from facilitator.protocol.messages import Authorization
from facilitator.units import Address, Atomic, Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One balanced transfer."""

    debit: str
    credit: str
    asset: str
    """`<network>/<token address>`, or `<network>/native` for wei of the network's own coin."""
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


class Cause(StrEnum):
    """What gas was paid for. A transaction that was outbid and never mined costs nothing and is not booked."""

    PAYMENT = "payment"
    """It moved the money that it was signed for."""
    REVERT = "revert"
    """It was mined without moving it."""
    NOOP = "noop"
    """It only cleared the way: a self-transfer in place of dead payments."""
    DEPLOYMENT = "deployment"
    """It deployed a contract of ours."""


def gas_entries(network: Network, relayer: Address, costs_wei: Mapping[Cause, int]) -> tuple[Entry, ...]:
    """What one mined transaction cost its relayer, by cause; nothing for what cost nothing."""
    return tuple(
        Entry(
            debit=f"gas_expense:{network}:{cause}",
            credit=f"gas:{network}:{relayer}",
            asset=f"{network}/native",
            amount_atomic=Atomic(wei),
        )
        for cause, wei in costs_wei.items()
        if wei
    )
