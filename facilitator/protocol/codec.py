"""Bytes to messages and back, for whichever protocol version the caller speaks. Versions end here.

A request becomes a `Payment`, a `Malformed` (the bytes are no request: HTTP 400, 413 or 415) or a `Refused` (a
well-formed request that we cannot serve: HTTP 200 with a code). Nothing here raises for what a stranger sent, and
nothing lets a value through in two readings: duplicate keys, NaN, lone surrogates, NUL, other digits than ASCII's and
lenient numbers are refused (docs/architecture.md decision 12). It must never judge a payment: that is the scheme's.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeVar, assert_never

import msgspec

from facilitator.protocol import v1, v2
from facilitator.protocol.address import checksum_address
from facilitator.protocol.messages import (
    PAYMENT_IDENTIFIER,
    Payment,
    Requirements,
    SettleResult,
    Supported,
    SupportedKind,
    VerifyResult,
    Version,
)
from facilitator.protocol.reasons import Reason, Refusal
from facilitator.protocol.strict_json import HostileError, json_type, load, shown
from facilitator.units import Address, Atomic, parse_address, parse_uint256

BODY_BYTES_MAX: Final = 64 * 1024
"""Largest request body, and largest content of a payment header."""
NAME_CHARS_MAX: Final = 64
"""Longest scheme or network name; a CAIP-2 id has at most 41 characters."""
TIMEOUT_S_MAX: Final = 2**31 - 1
"""Largest `maxTimeoutSeconds`, 68 years."""
MESSAGE_CHARS_MAX: Final = 500
"""Longest text for people in an answer."""
HEADER_CHARS_MAX: Final = (BODY_BYTES_MAX + 2) // 3 * 4
"""Longest base64 text of a payment header."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Malformed:
    """The bytes are not a request. `fault` tells the HTTP status: `body` 400, `too_large` 413, `media_type` 415."""

    message: str
    """For people: what was expected and what came. Quotes at most a key or a few characters of the body."""
    path: str | None = None
    """JSON path of the fault, such as `$.paymentRequirements.payTo`; None when it is not in one field."""
    fault: Literal["body", "too_large", "media_type"] = "body"

    @property
    def reason(self) -> Reason:
        """The protocol's word for it, for an answer that also carries `invalidReason` for old clients."""
        in_requirements = self.path is not None and self.path.startswith("$.paymentRequirements")
        return Reason.INVALID_REQUIREMENTS if in_requirements else Reason.INVALID_PAYLOAD


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A well-formed request in a version or for a network that we do not know: answered 200 in the caller's version."""

    refusal: Refusal
    version: Version
    """The version to answer in: the caller's, or 2 when we do not know the caller's."""
    wire_network: str
    """The network as the caller spelled it, "" when none was found."""
    payer: Address | None = None
    """The payer, if the payload names one in a shape we know."""


# ---- requests


def decode_request(body: bytes) -> Payment | Refused | Malformed:
    """Read the body of `/verify` or `/settle`; never raises, and takes some milliseconds for the worst of bodies.

    The version is `paymentPayload.x402Version`. `payload` is the scheme's own part and is passed on unread, but for the
    rules that hold in any JSON. Unknown keys are tolerated at every level, null stands for an absent optional.
    """
    if len(body) > BODY_BYTES_MAX:
        return Malformed(message=f"expected at most {BODY_BYTES_MAX} bytes, got {len(body)}", fault="too_large")
    try:
        return _read(load(body))
    except HostileError as hostile:
        return Malformed(message=hostile.message, path=hostile.path)


def decode_header(value: str) -> bytes | Malformed:
    """Read a `PAYMENT-SIGNATURE` or `X-PAYMENT` header, standard base64 with its padding, into bytes."""
    text = value.strip(" \t")
    if len(text) > HEADER_CHARS_MAX:
        return Malformed(message=f"expected a header of at most {HEADER_CHARS_MAX} characters, got {len(text)}", fault="too_large")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:  # binascii.Error, or a character beyond ASCII
        what = "base64 with its padding" if isinstance(error, binascii.Error) else "ASCII characters"
        return Malformed(message=f"expected standard base64: {what}")


def check_content_type(value: str | None) -> Malformed | None:
    """Is this `Content-Type` one that `decode_request` reads? JSON in UTF-8 is; an absent header is taken for it."""
    if value is None or value == "application/json":
        return None
    media_type, *parameters = (part.strip().lower() for part in value.split(";"))
    charsets = [text.removeprefix("charset=").strip('"') for text in parameters if text.startswith("charset=")]
    if media_type == "application/json" and all(charset in {"utf-8", "utf8"} for charset in charsets):
        return None
    return Malformed(message=f"expected Content-Type application/json in UTF-8, got {shown(value)}", fault="media_type")


def _read(tree: object) -> Payment | Refused:
    """Find the version, then let that version say where things stand."""
    if not isinstance(tree, dict):
        raise HostileError(f"expected a JSON object, got {json_type(tree)}", "$")
    payload, requirements = tree.get("paymentPayload"), tree.get("paymentRequirements")
    if payload is None or requirements is None:
        raise HostileError("Missing paymentPayload or paymentRequirements", "$")
    if not isinstance(payload, dict):
        raise HostileError(f"expected an object, got {json_type(payload)}", "$.paymentPayload")
    version = payload.get("x402Version")
    if type(version) is not int:
        raise HostileError(f"expected an integer, got {json_type(version)}", "$.paymentPayload.x402Version")
    if version == 1:
        return _payment(1, _convert(tree, v1.Request))
    if version == 2:
        return _payment(2, _convert(tree, v2.Request))
    network = requirements.get("network") if isinstance(requirements, dict) else None
    return Refused(
        refusal=Refusal(reason=Reason.INVALID_VERSION, message=f"expected x402Version 1 or 2, got {version}"),
        version=2,
        wire_network=network if isinstance(network, str) and len(network) <= NAME_CHARS_MAX else "",
        payer=_payer(payload.get("payload")),
    )


def _payment(version: Version, request: v1.Request | v2.Request) -> Payment | Refused:
    """Check every value of a request whose shape is right. Precedence as in `Reason`."""
    asked = request.payment_requirements
    _check_name(request.buyer_scheme, f"{request.buyer_path}.scheme")
    _check_name(request.buyer_network, f"{request.buyer_path}.network")
    _check_name(asked.scheme, "$.paymentRequirements.scheme")
    _check_name(asked.network, "$.paymentRequirements.network")
    amount_atomic = _parse_amount(request.amount, request.amount_path)
    max_timeout_s = _parse_timeout(asked.max_timeout_seconds)
    extra = _parse_extra(asked.extra)

    if request.x402_version not in {None, version}:
        message = f"expected x402Version {version} as in paymentPayload, got {request.x402_version}"
        return _refused(Reason.INVALID_VERSION, message, version, request)
    parse_network = v1.parse_network if version == 1 else v2.parse_network
    network = parse_network(request.buyer_network)
    asked_network = network if asked.network == request.buyer_network else parse_network(asked.network)
    if network is None or asked_network is None:
        return _refuse_network(version, request)

    return Payment(
        version=version,
        wire_network=request.buyer_network,
        scheme=request.buyer_scheme,
        network=network,
        payload=request.payment_payload.payload,
        requirements=Requirements(
            scheme=asked.scheme,
            network=asked_network,
            asset=_parse_address(asked.asset, "$.paymentRequirements.asset"),
            pay_to=_parse_address(asked.pay_to, "$.paymentRequirements.payTo"),
            amount_atomic=amount_atomic,
            max_timeout_s=max_timeout_s,
            extra=extra,
        ),
        accepted_differs=request.accepted_differs,
        payment_identifier=_payment_identifier(request.extensions),
        resource=request.resource_url,
        offer=request.offer,
    )


def _refuse_network(version: Version, request: v1.Request | v2.Request) -> Refused:
    """One of the two networks is none of ours. Other networks have other addresses, so those are not looked at."""
    asked = request.payment_requirements
    if request.buyer_scheme != asked.scheme:
        message = f"expected scheme {shown(asked.scheme)} as in paymentRequirements, got {shown(request.buyer_scheme)}"
        return _refused(Reason.SCHEME_MISMATCH, message, version, request)
    if request.buyer_network != asked.network:
        message = f"expected network {shown(asked.network)} as in paymentRequirements, got {shown(request.buyer_network)}"
        return _refused(Reason.NETWORK_MISMATCH, message, version, request)
    expected = "a v1 network name such as base-sepolia" if version == 1 else "a CAIP-2 id such as eip155:84532"
    return _refused(Reason.UNSUPPORTED_NETWORK, f"expected {expected}, got {shown(asked.network)}", version, request)


def _refused(reason: Reason, message: str, version: Version, request: v1.Request | v2.Request) -> Refused:
    return Refused(
        refusal=Refusal(reason=reason, message=message),
        version=version,
        wire_network=request.buyer_network,
        payer=_payer(request.payment_payload.payload),
    )


# ---- answers


_ENCODER: Final = msgspec.json.Encoder(order="deterministic")


def encode_verify(result: VerifyResult, version: Version) -> bytes:
    """Render the answer of `/verify`, the same bytes for the same result."""
    refusal = result.refusal
    return _ENCODER.encode(
        v2.VerifyResponse(
            is_valid=refusal is None,
            payer=_render_address(result.payer),
            invalid_reason=_word(refusal, version),
            invalid_message=_message(refusal),
        )
    )


def encode_settle(result: SettleResult, version: Version, wire_network: str) -> bytes:
    """Render the answer of `/settle`, the same bytes for the same result.

    A success and a `settlement_pending` carry the hash: without one they would be a claim that nobody can check, so
    that is a bug (AssertionError).
    """
    refusal = result.refusal
    if refusal is None or refusal.reason is Reason.SETTLEMENT_PENDING:
        assert result.tx_hash is not None, "a success or settlement_pending without a transaction hash"
    has_proof = result.log_index is not None or result.settlement_id is not None
    return _ENCODER.encode(
        v2.SettleResponse(
            success=refusal is None,
            transaction=result.tx_hash or "",
            network=wire_network,
            payer=_render_address(result.payer),
            error_reason=_word(refusal, version),
            error_message=_message(refusal),
            extra=v2.Proof(log_index=result.log_index, settlement_id=result.settlement_id, shared_transaction=result.shared_transaction)
            if has_proof
            else None,
        )
    )


def encode_supported(supported: Supported) -> bytes:
    """Render the answer of `/supported`: each kind for v2, then again for v1 where v1 can name its network."""
    kinds = [_kind_of(kind, 2, v2.render_network(kind.network)) for kind in supported.kinds]
    for kind in supported.kinds:
        nickname = v1.render_network(kind.network)
        if nickname is not None:
            kinds.append(_kind_of(kind, 1, nickname))
    return _ENCODER.encode(
        v2.SupportedResponse(
            kinds=kinds,
            extensions=supported.extensions,
            signers={family: [checksum_address(signer) for signer in signers] for family, signers in supported.signers.items()},
        )
    )


def _kind_of(kind: SupportedKind, version: Version, network: str) -> v2.Kind:
    return v2.Kind(x402_version=version, scheme=kind.scheme, network=network, extra=kind.extra)


def _word(refusal: Refusal | None, version: Version) -> str | None:
    if refusal is None:
        return None
    match version:
        case 1:
            return refusal.reason.v1
        case 2:
            return refusal.reason.v2
        case _:
            assert_never(version)


def _message(refusal: Refusal | None) -> str | None:
    return None if refusal is None else refusal.message[:MESSAGE_CHARS_MAX]


def _render_address(address: Address | None) -> str:
    return "" if address is None else checksum_address(address)


# ---- values


_T = TypeVar("_T")


def _convert(tree: object, shape: type[_T]) -> _T:
    try:
        return msgspec.convert(tree, shape)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at ")
        raise HostileError(message[:1].lower() + message[1:], path.strip("`") or "$") from None


def _check_name(text: str, path: str) -> None:
    if len(text) > NAME_CHARS_MAX:
        raise HostileError(f"expected at most {NAME_CHARS_MAX} characters, got {len(text)}", path)


def _parse_address(text: str, path: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        raise HostileError(f"{error}, got {shown(text)}", path) from None


def _parse_amount(text: str, path: str) -> Atomic:
    try:
        return Atomic(parse_uint256(text))
    except ValueError as error:
        raise HostileError(f"{error}, got {shown(text)}", path) from None


def _parse_timeout(number: float) -> int:
    """Read an integer, or a number that happens to be one: JSON itself does not tell 300 from 300.0."""
    if number != int(number) or not 0 < number <= TIMEOUT_S_MAX:
        raise HostileError(f"expected an integer from 1 to {TIMEOUT_S_MAX}", "$.paymentRequirements.maxTimeoutSeconds")
    return int(number)


def _parse_extra(extra: Mapping[str, object] | str | None) -> Mapping[str, object]:
    """Scheme data; v1 clients may send it as JSON within a string, which is held to the same rules as the body."""
    if isinstance(extra, str):
        try:
            tree = load(extra.encode())
        except HostileError as hostile:
            raise HostileError(f"in the JSON string: {hostile.message}", "$.paymentRequirements.extra") from None
        if not isinstance(tree, dict | None):
            raise HostileError(f"expected an object in the JSON string, got {json_type(tree)}", "$.paymentRequirements.extra")
        return tree or {}
    return extra or {}


_PAYMENT_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9_-]{16,128}", re.ASCII)


def _payment_identifier(extensions: Mapping[str, object] | None) -> str | None:
    """Find the id of the `payment-identifier` extension. One that is none is refused: its buyer relies on it to pay once.

    Only version 2 has extensions. Other extensions are nobody's business here, and refuse no payment.
    """
    extension = (extensions or {}).get(PAYMENT_IDENTIFIER)
    info = extension.get("info") if isinstance(extension, dict) else None
    if not isinstance(info, dict):
        return None
    identifier, path = info.get("id"), f"$.paymentPayload.extensions.{PAYMENT_IDENTIFIER}.info.id"
    if identifier is None:
        if info.get("required") is True:
            raise HostileError("the seller requires a payment identifier, and there is none", path)
        return None
    if not isinstance(identifier, str) or not _PAYMENT_IDENTIFIER.fullmatch(identifier):
        raise HostileError("expected 16 to 128 letters, digits, _ and -", path)
    return identifier


def _payer(payload: object) -> Address | None:
    """Find the payer for an answer to a payment that no scheme will read."""
    if not isinstance(payload, dict):
        return None
    for key in ("authorization", "permit2Authorization"):
        authorization = payload.get(key)
        payer = authorization.get("from") if isinstance(authorization, dict) else None
        if isinstance(payer, str):
            try:
                return parse_address(payer)
            except ValueError:
                return None
    return None
