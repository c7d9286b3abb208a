"""The "Payment" HTTP authentication scheme (draft-httpauth-payment-02, known as MPP): challenges, credentials, receipts, problems.

One method and one kind of credential: an `evm` charge that is paid by an EIP-3009 authorization (draft-evm-charge-01). That is
the signature that x402 carries too, so a credential becomes an x402 payment of version 2, under the same identity: however it
is sent, it is made once. Nothing is stored: the id of a challenge is an HMAC over all that it says, what request it is for
included, and the payer signs a hash of that id as his auth nonce. It must never judge a payment: that is the facilitator's.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from facilitator.gateway.payments import Json, Payment, identify
from facilitator.gateway.prices import Resource, Terms
from facilitator.protocol.address import checksum_address, keccak256
from facilitator.protocol.codec import HEADER_CHARS_MAX
from facilitator.protocol.reasons import Reason
from facilitator.protocol.strict_json import HostileError, load
from facilitator.units import UnixSeconds

RECEIPT_HEADER: Final = "Payment-Receipt"
SECRET_CHARS_MIN: Final = 32
"""Shortest secret that challenges are bound with."""

_METHOD, _INTENT = "evm", "charge"
_CREDENTIAL: Final = re.compile(r"payment +([A-Za-z0-9_-]+)", re.ASCII | re.IGNORECASE)
_USED: Final = frozenset(
    reason.v2
    for reason in (
        Reason.DUPLICATE_SETTLEMENT,
        Reason.SETTLEMENT_EXTERNAL,
        Reason.AUTHORIZATION_CANCELED,
        Reason.AUTHORIZATION_CONFLICT,
        Reason.NONCE_USED,
    )
)
"""A facilitator's words for an authorization that is spent, and so for the challenge that it was signed for."""

_Kind = Literal["malformed-credential", "invalid-challenge", "payment-expired", "verification-failed"]
_TITLES: Final[dict[_Kind, str]] = {
    "malformed-credential": "Malformed Credential",
    "invalid-challenge": "Invalid Challenge",
    "payment-expired": "Payment Expired",
    "verification-failed": "Verification Failed",
}

_Address = Annotated[str, Meta(pattern=r"^0x[0-9a-fA-F]{40}\Z")]
_Number = Annotated[str, Meta(pattern=r"^(0|[1-9][0-9]{0,77})\Z")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Where challenges hold: one seller, however many processes serve it."""

    realm: str
    """Host and port that buyers see."""
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The request that is for sale: a challenge is good for it alone."""

    method: str
    target: str
    body: bytes

    @property
    def digest(self) -> str | None:
        """Of the body, as RFC 9530 writes it; None when there is none."""
        if not self.body:
            return None
        return f"sha-256=:{base64.b64encode(hashlib.sha256(self.body).digest()).decode('ascii')}:"

    @property
    def name(self) -> str:
        """Of the request line, short."""
        return _base64url(hashlib.sha256(f"{self.method} {self.target}".encode("utf-8", "surrogateescape")).digest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is wrong with a credential (RFC 9457); the answer is 402, with fresh challenges."""

    kind: _Kind
    detail: str
    reason: str | None = None
    """The facilitator's word, where it was asked."""

    def render(self) -> Json:
        """The problem details."""
        told = {"type": f"https://paymentauth.org/problems/{self.kind}", "title": _TITLES[self.kind], "status": 402, "detail": self.detail}
        return told | ({"reason": self.reason} if self.reason else {})


class _Challenge(msgspec.Struct, frozen=True, kw_only=True):
    """As a credential echoes it. `description`, never sent and not bound, is left unread."""

    id: str
    realm: str
    method: str
    intent: str
    request: str
    expires: str = ""
    digest: str = ""
    opaque: str = ""
    header: str | None = None

    def bound_id(self, secret: bytes) -> str:
        """HMAC-SHA256 over the slots of draft-httpauth-payment-02, "Challenge Binding"."""
        slots = [self.realm, self.method, self.intent, self.request, self.expires, self.digest, self.opaque]
        slots += [] if self.header is None else [self.header]
        return _base64url(hmac.digest(secret, "|".join(slots).encode(), "sha256"))


class _Authorization(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Payload of the type `authorization` (draft-evm-charge-01)."""

    type: Literal["authorization"]
    payer: _Address = msgspec.field(name="from")
    to: _Address
    value: _Number
    valid_after: _Number
    valid_before: _Number
    auth_nonce: Annotated[str, Meta(pattern=r"^0x[0-9a-fA-F]{64}\Z")] = msgspec.field(name="nonce")
    signature: Annotated[str, Meta(pattern=r"^0x(?:[0-9a-fA-F]{2})+\Z")]


class _Credential(msgspec.Struct, frozen=True, kw_only=True):
    challenge: _Challenge
    payload: _Authorization
    source: str | None = None


def challenge(scope: Scope, asked: Asked, terms: Terms, resource: Resource, now: UnixSeconds) -> str:
    """A `WWW-Authenticate` value that asks for these terms, and is not like any other: each can be paid once."""
    made = _Challenge(
        id="",
        realm=scope.realm,
        method=_METHOD,
        intent=_INTENT,
        request=_request(terms, resource),
        expires=datetime.fromtimestamp(now + terms.max_timeout_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        digest=asked.digest or "",
        opaque=_canonical({"for": asked.name, "nonce": secrets.token_urlsafe(16)}),
    )
    parameters = {"id": made.bound_id(scope.secret)}
    parameters |= {name: getattr(made, name) for name in ("realm", "method", "intent", "request", "expires", "digest", "opaque")}
    return "Payment " + ", ".join(f'{name}="{value}"' for name, value in parameters.items() if value)


def read_credential(
    scope: Scope, asked: Asked, sent: Sequence[str], terms: Sequence[Terms], resource: Resource, now: UnixSeconds
) -> Payment | Problem | None:
    """Find the payment in the `Authorization` values of a request; None when none of them is of this scheme."""
    values = [value.strip(" \t") for value in sent]
    if not any(value[:8].lower() in {"payment", "payment "} for value in values):
        return None
    try:
        content, credential = _open(values)
    except HostileError as hostile:
        return Problem(kind="malformed-credential", detail=f"Authorization: {hostile.message}")
    echoed, payload = credential.challenge, credential.payload
    if not hmac.compare_digest(echoed.id.encode(), echoed.bound_id(scope.secret).encode()) or echoed.realm != scope.realm:
        return Problem(kind="invalid-challenge", detail="The challenge is none of this server's, or was changed.")
    if echoed.digest != (asked.digest or "") or _decoded(echoed.opaque).get("for") != asked.name:
        return Problem(kind="invalid-challenge", detail="The challenge was issued for another request.")
    chosen = next((each for each in terms if _request(each, resource) == echoed.request), None)
    if chosen is None:
        return Problem(kind="invalid-challenge", detail="The challenge was issued for other terms than are asked now.")
    expires_at = int(datetime.fromisoformat(echoed.expires).timestamp())
    if expires_at <= now and int(payload.valid_before) > expires_at:  # else it ends with the challenge, and the record may know it
        return Problem(kind="payment-expired", detail=f"The challenge expired at {echoed.expires}.")
    if wrong := _mismatch(credential, chosen):
        return Problem(kind="verification-failed", detail=wrong)
    return _payment(content, credential, chosen, resource)


def problem_of(reason: str, message: str | None) -> Problem:
    """What a facilitator's refusal is in this scheme."""
    if reason in _USED:
        return Problem(kind="invalid-challenge", detail=message or "The challenge was used already.", reason=reason)
    if reason == Reason.EXPIRED.v2:
        return Problem(kind="payment-expired", detail=message or "The authorization expired.", reason=reason)
    return Problem(kind="verification-failed", detail=message or f"The payment was refused: {reason}.", reason=reason)


def render_receipt(payment: Payment, transaction: str, now: UnixSeconds) -> str:
    """A `Payment-Receipt` value (draft-evm-charge-01, "Receipt Generation")."""
    return _canonical(
        {
            "method": _METHOD,
            "challengeId": payment.challenge_id,
            "reference": transaction,
            "status": "success",
            "timestamp": datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "chainId": _chain_id(payment.terms),
        }
    )


def _open(values: Sequence[str]) -> tuple[bytes, _Credential]:
    """The JSON of the one credential, and what it says. Raises HostileError."""
    if len(values) > 1:
        raise HostileError(f"expected one, got {len(values)}")
    found = _CREDENTIAL.fullmatch(values[0])
    if found is None or len(found[1]) > HEADER_CHARS_MAX:
        raise HostileError(f"expected Payment and base64url without padding, at most {HEADER_CHARS_MAX} characters")
    try:
        content = base64.urlsafe_b64decode(found[1] + "=" * (-len(found[1]) % 4))
    except binascii.Error:
        raise HostileError("expected base64url without padding") from None
    tree = load(content)
    try:
        return content, msgspec.convert(tree, _Credential)
    except msgspec.ValidationError as error:
        raise HostileError(str(error)) from None


def _mismatch(credential: _Credential, terms: Terms) -> str | None:
    """Where the authorization is not what the challenge asks; None when it is (draft-evm-charge-01, "Authorization Verification")."""
    echoed, payload = credential.challenge, credential.payload
    if payload.to.lower() != terms.pay_to.lower():
        return "The authorization pays another recipient than the challenge names."
    if int(payload.value) != terms.amount_atomic:
        return f"The authorization is over {payload.value}, the challenge asks {terms.amount_atomic}."
    if payload.auth_nonce.lower() != "0x" + keccak256((echoed.id + echoed.realm).encode()).hex():
        return "The nonce is not the hash of this challenge."
    if credential.source is not None and credential.source.lower() != f"did:pkh:{terms.token.network}:{payload.payer}".lower():
        return "The source is another account than the one that signed."
    return None


def _payment(content: bytes, credential: _Credential, terms: Terms, resource: Resource) -> Payment:
    payload = credential.payload
    inner: Json = {
        "signature": payload.signature,
        "authorization": {
            "from": payload.payer,
            "to": payload.to,
            "value": payload.value,
            "validAfter": payload.valid_after,
            "validBefore": payload.valid_before,
            "nonce": payload.auth_nonce,
        },
    }
    asked = terms.render(2, resource) or {}
    return Payment(
        version=2,
        payload={"x402Version": 2, "accepted": asked, "payload": inner},
        requirements=asked,
        terms=terms,
        identity=identify(terms, inner),
        digest=hashlib.sha256(content).digest(),
        challenge_id=credential.challenge.id,
    )


def _request(terms: Terms, resource: Resource) -> str:
    """`request` of a challenge: the shared members of a charge, and the method's own."""
    told: dict[str, object] = {
        "amount": str(terms.amount_atomic),
        "currency": checksum_address(terms.token.address),
        "recipient": checksum_address(terms.pay_to),
        "methodDetails": {"chainId": _chain_id(terms), "credentialTypes": ["authorization"], "decimals": terms.token.decimals},
    }
    return _canonical(told | ({"description": resource.description} if resource.description else {}))


def _chain_id(terms: Terms) -> int:
    return int(terms.token.network.removeprefix("eip155:"))


def _canonical(told: Json) -> str:
    """JSON as RFC 8785 writes it, in base64url; for objects of ASCII names, text and small integers."""
    return _base64url(msgspec.json.encode(told, order="deterministic"))


def _decoded(text: str) -> dict[str, object]:
    """What `_canonical` made, out of a challenge whose id proved it ours."""
    return msgspec.json.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=dict[str, object])


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode("ascii")
