"""What a facilitator says to a gateway, and what it means for the buyer's money when it says nothing.

A refusal is a value: `Verified` and `Settled` carry it. What kept us from an answer is raised, as a `FacilitatorFault`
that says whether the payment may still happen. A gateway must never take a fault for a refusal: a buyer who hears
"failed" signs afresh and pays twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from facilitator.errors import Fault

Operation = Literal["verify", "settle", "supported", "lookup"]
Json = Mapping[str, object]
"""A JSON object of the wire."""

PENDING = "settlement_pending"
"""The one reason of a failed settlement that is not an end."""


class FacilitatorFault(Fault):
    """No answer that can be believed. `kind` is a constant word; `evidence` holds operation, status and the like."""

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        payment_may_happen: bool,
        retryable: bool = True,
        retry_after_s: float | None = None,
        status: int = 0,
        **evidence: object,
    ) -> None:
        super().__init__(kind, message, **evidence)
        self.payment_may_happen = payment_may_happen
        """False: this request moves no money, now or later. True: it may, and only the facilitator's record or the chain tells."""
        self.retryable = retryable
        """May the same request be answered later?"""
        self.retry_after_s = retry_after_s
        """When the facilitator asked to be asked again, if it said so."""
        self.status = status
        """The HTTP status that came, 0 when none did."""


class Unreachable(FacilitatorFault):
    """No connection: the request never left."""


class NoAnswer(FacilitatorFault):
    """The request was sent and its answer did not come: lost connection or deadline."""


class BadAnswer(FacilitatorFault):
    """Something came that is no answer of this protocol."""


class Unavailable(FacilitatorFault):
    """The facilitator cannot serve now (429, 5xx)."""


class Denied(FacilitatorFault):
    """The facilitator will not serve this caller or this request (other 4xx): wrong key, scope or body. The operator must act."""


class Verified(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Answer of `/verify`: would this payment settle now?"""

    is_valid: bool
    payer: str | None = None
    invalid_reason: str | None = None
    invalid_message: str | None = None


class Proof(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """`extra` of a settle answer, as our facilitator fills it."""

    log_index: int | None = None
    settlement_id: str | None = None


class _SettleAnswer(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    success: bool
    transaction: str
    network: str
    payer: str | None = None
    error_reason: str | None = None
    error_message: str | None = None
    extra: object = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """Answer of `/settle`. Hand the resource over when `success`, and only then."""

    success: bool
    transaction: str
    """Its hash, "" when nothing was sent."""
    network: str
    payer: str | None
    reason: str | None
    """Why not, in the protocol's words; None on success."""
    message: str | None
    proof: Proof
    raw: Json = field(repr=False)
    """As it came: what the buyer gets in `PAYMENT-RESPONSE`."""

    @property
    def pending(self) -> bool:
        """Sent and not decided: nothing failed, and the same request again gets the outcome."""
        return not self.success and self.reason == PENDING


class Kind(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """One (version, scheme, network) that a facilitator serves."""

    x402_version: int
    scheme: str
    network: str
    extra: dict[str, object] | None = None


class Supported(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `/supported`."""

    kinds: list[Kind]
    extensions: list[str] = []
    signers: dict[str, list[str]] = {}


class Settlement(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Answer of `/settlements/lookup`: the end of a settlement whose answer was lost. More members are in the JSON."""

    id: str
    state: str
    network: str
    asset: str
    payer: str
    pay_to: str
    amount: str
    transaction: str | None = None
    log_index: int | None = None
    reason: str | None = None
    answered: bool | None = None
    """Whether a caller was told the success."""


def read_settled(raw: Json) -> Settled:
    """Read the JSON of a settle answer. Raises msgspec.ValidationError when it is none."""
    answer = msgspec.convert(raw, _SettleAnswer)
    try:
        proof = msgspec.convert(answer.extra or {}, Proof)
    except msgspec.ValidationError:  # another facilitator's data
        proof = Proof()
    return Settled(
        success=answer.success,
        transaction=answer.transaction,
        network=answer.network,
        payer=answer.payer,
        reason=None if answer.success else answer.error_reason or "unexpected_settle_error",
        message=answer.error_message,
        proof=proof,
        raw=raw,
    )
