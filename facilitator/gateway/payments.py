"""Reads the payment in a request's headers, and finds the terms that it was made for.

It must never judge a payment: that is the facilitator's. It only makes sure that what is asked about is a payment at all,
that it was made for terms of ours, and under which identity it would be made.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from multidict import CIMultiDictProxy

from facilitator.gateway.prices import Resource, Terms
from facilitator.protocol.codec import Malformed, decode_header
from facilitator.protocol.messages import Version
from facilitator.protocol.reasons import Reason
from facilitator.protocol.strict_json import HostileError, load

REQUEST_HEADERS: Final[Mapping[Version, str]] = {2: "PAYMENT-SIGNATURE", 1: "X-PAYMENT"}
"""Where a buyer of each version puts the payment; one who sends both is taken for version 2."""
RESPONSE_HEADERS: Final[Mapping[Version, str]] = {2: "PAYMENT-RESPONSE", 1: "X-PAYMENT-RESPONSE"}
DEMAND_HEADER: Final = "PAYMENT-REQUIRED"

Json = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """One payment as the buyer sent it, and the terms of ours that it was made for."""

    version: Version
    payload: Json
    """The decoded header: `paymentPayload`."""
    requirements: Json
    """Our terms as that version says them: `paymentRequirements`."""
    terms: Terms
    identity: tuple[str, ...]
    """(network, asset, payer, auth nonce): under it a payment is made once. Unproven until the facilitator has judged the signature."""
    digest: bytes
    """SHA-256 of the header: who has it again is whom we served, or was told by him."""
    challenge_id: str | None = None
    """Of the MPP challenge that it answers; None when it came as x402."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotPayment:
    """There is a header, and nothing in it that a facilitator could be asked about."""

    version: Version
    reason: Reason
    message: str


def read_payment(headers: CIMultiDictProxy[str], terms: Sequence[Terms], resource: Resource) -> Payment | NotPayment | None:
    """Find the payment that comes with a request; None when there is none."""
    for version, name in REQUEST_HEADERS.items():
        values = headers.getall(name, [])
        if values:
            return _read(version, name, values, terms, resource)
    return None


def _read(version: Version, name: str, values: Sequence[str], terms: Sequence[Terms], resource: Resource) -> Payment | NotPayment:
    try:
        content = _content(values)
        payload, chosen, inner = _open(version, load(content))
    except HostileError as hostile:
        return NotPayment(version=version, reason=Reason.INVALID_PAYLOAD, message=f"{name}: {hostile.message}")
    for each in terms:
        asked = each.render(version, resource)
        if asked is not None and _agrees(version, chosen, asked):
            return Payment(
                version=version,
                payload=payload,
                requirements=asked,
                terms=each,
                identity=identify(each, inner),
                digest=hashlib.sha256(content).digest(),
            )
    message = f"{name}: made for other terms than are asked here"
    return NotPayment(version=version, reason=Reason.INVALID_REQUIREMENTS, message=message)


def _content(values: Sequence[str]) -> bytes:
    """What the one header holds. Raises HostileError."""
    if len(values) > 1:
        raise HostileError(f"expected one, got {len(values)}")
    content = decode_header(values[0])
    if isinstance(content, Malformed):
        raise HostileError(content.message)
    return content


def _open(version: Version, payload: object) -> tuple[Json, Json, Json]:
    """The payment payload, the terms that it names, and the scheme's part. Raises HostileError."""
    if not isinstance(payload, dict):
        raise HostileError("expected a JSON object")
    if type(payload.get("x402Version")) is not int or payload["x402Version"] != version:
        raise HostileError(f"expected x402Version {version}")
    chosen = payload.get("accepted") if version == 2 else payload
    inner = payload.get("payload")
    if not isinstance(chosen, dict) or not isinstance(inner, dict):
        raise HostileError("expected objects in payload and, in version 2, accepted")
    return payload, chosen, inner


def _agrees(version: Version, chosen: Json, asked: Json) -> bool:
    """Did the buyer mean these terms? Version 1 names scheme and network only; version 2 all, addresses in any case."""
    if any(chosen.get(name) != asked[name] for name in ("scheme", "network")):
        return False
    if version == 1:
        return True
    if chosen.get("amount") != asked["amount"]:
        return False
    if any(str(chosen.get(name)).lower() != str(asked[name]).lower() for name in ("asset", "payTo")):
        return False
    extra, ours = chosen.get("extra"), asked["extra"]
    return isinstance(extra, dict) and isinstance(ours, dict) and all(extra.get(key) == value for key, value in ours.items())


def identify(terms: Terms, payload: Json) -> tuple[str, ...]:
    """The identity of a payload: of an EIP-3009 authorization; of any other, its own content."""
    authorization = payload.get("authorization")
    payer, auth_nonce = (authorization.get("from"), authorization.get("nonce")) if isinstance(authorization, dict) else (None, None)
    if isinstance(payer, str) and isinstance(auth_nonce, str):
        return terms.token.network, terms.token.address, payer.lower(), auth_nonce.lower()
    return terms.token.network, terms.token.address, hashlib.sha256(msgspec.json.encode(payload, order="deterministic")).hexdigest()
