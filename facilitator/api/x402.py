"""The protocol's three routes: bytes in, bytes out; versions end in the codec and payments are judged by the engine.

An outcome of the protocol is HTTP 200 whatever it says. A `/settle` answer that holds the payment's answer slot is
written here, so that its delivery can be watched.
"""

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, TypeVar, cast

import msgspec
from aiohttp import StreamReader, hdrs, web

from facilitator import tracing
from facilitator.api.answers import REQUEST_ID, Answer
from facilitator.api.desk import Desk, Grant, HttpProblem, limited
from facilitator.api.overload import Place
from facilitator.domain.limits import judge_terms
from facilitator.metrics import SETTLE_ANSWERS
from facilitator.protocol import codec
from facilitator.protocol.codec import Malformed, Refused
from facilitator.protocol.messages import Payment, SettleResult, VerifyResult
from facilitator.protocol.reasons import Refusal
from facilitator.protocol.strict_json import HostileError, load
from facilitator.settlement.admission import Caller, IdempotencyConflict
from facilitator.settlement.dispatcher import InDoubtFault
from facilitator.settlement.restraints import LimitReached
from facilitator.telemetry import annotate

if TYPE_CHECKING:
    from facilitator.api.connections import Connection

_Body = TypeVar("_Body", bound=msgspec.Struct)
_IDEMPOTENCY_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}", re.ASCII)
_STATUS: Final = {"body": 400, "too_large": 413, "media_type": 415}
_ERROR: Final = {"body": "invalid_request", "too_large": "body_too_large", "media_type": "unsupported_media_type"}


async def verify(desk: Desk, request: web.Request, grant: Grant) -> web.StreamResponse:
    """POST /verify: would this payment settle now?"""
    place = cast("Connection", request.protocol).enter(grant.tenant.tenant_id)
    try:
        decoded = await _decode(desk, request, _malformed_verify)
        if isinstance(decoded, Refused):
            _annotate_refusal(decoded.refusal)
            return Answer(codec.encode_verify(VerifyResult(payer=decoded.payer, refusal=decoded.refusal), decoded.version))
        _annotate_payment(decoded)
        _hold_to_limits(grant, decoded, _malformed_verify)
        try:
            result = await desk.need_engine().verify(Caller(tenant=grant.tenant, request_id=request[REQUEST_ID]), decoded)
        except LimitReached as reached:
            raise limited(reached.breach) from None
        annotate(payer=result.payer, outcome="valid")
        if result.refusal is not None:
            _annotate_refusal(result.refusal)
            return Answer(codec.encode_verify(result, decoded.version))
        return Answer(codec.encode_verify(result, decoded.version), headers=_listed(desk, grant, decoded, settled=False))
    finally:
        place.leave()


async def settle(desk: Desk, request: web.Request, grant: Grant) -> web.StreamResponse:
    """POST /settle: get this payment onto the chain once, and say how it ended."""
    place = cast("Connection", request.protocol).enter(grant.tenant.tenant_id)
    try:
        return await _settle(desk, request, grant, place)
    finally:
        place.leave()


async def _settle(desk: Desk, request: web.Request, grant: Grant, place: Place) -> web.StreamResponse:
    idempotency_key = _idempotency_key(request)
    decoded = await _decode(desk, request, _malformed_settle)
    if isinstance(decoded, Refused):
        _annotate_refusal(decoded.refusal)
        SETTLE_ANSWERS.labels(decoded.refusal.reason.name.lower()).inc()
        refused = SettleResult(payer=decoded.payer, refusal=decoded.refusal)
        return Answer(codec.encode_settle(refused, decoded.version, decoded.wire_network))
    _annotate_payment(decoded)
    _hold_to_limits(grant, decoded, _malformed_settle)
    engine = desk.need_engine()
    try:
        answer = await engine.settle(
            Caller(tenant=grant.tenant, request_id=request[REQUEST_ID], judged=place.leave), decoded, idempotency_key
        )
    except InDoubtFault:
        message = "it is not known whether the payment was recorded; if it was, it is carried out: the same request again gets the truth"
        raise HttpProblem(503, "in_doubt", message, {"Retry-After": str(desk.settings.retry_after_s)}) from None
    except LimitReached as reached:
        raise limited(reached.breach) from None
    except IdempotencyConflict:
        message = "this Idempotency-Key was used for another payment: use a key of its own for each payment"
        raise HttpProblem(409, "idempotency_conflict", message) from None
    result = answer.result
    # From here to the first write nothing may be awaited: the slot of this answer is spent for this very connection.
    SETTLE_ANSWERS.labels("success" if result.refusal is None else result.refusal.reason.name.lower()).inc()
    annotate(payer=result.payer, tx_hash=result.tx_hash, settlement_id=result.settlement_id, outcome="success")
    if result.refusal is not None:
        _annotate_refusal(result.refusal)
    response = Answer()
    ticket = answer.ticket
    if ticket is None:
        response.body = codec.encode_settle(result, decoded.version, decoded.wire_network)
        return response
    response.headers.update(_listed(desk, grant, decoded, settled=True))

    async def write() -> int:
        response.body = codec.encode_settle(result, decoded.version, decoded.wire_network)
        await response.prepare(request)
        await response.write_eof()
        return request.writer.output_size

    with tracing.span("answer"):
        await desk.deliveries.send(request.transport, write, lambda: engine.delivered(ticket), lambda: engine.undelivered(ticket))
    return response


async def supported(desk: Desk, _request: web.Request, _grant: Grant) -> web.StreamResponse:
    """GET /supported: what is served, from configuration. Asks neither chain nor database."""
    return Answer(codec.encode_supported(desk.supported()))


def _listed(desk: Desk, grant: Grant, payment: Payment, *, settled: bool) -> Mapping[str, str]:
    """Headers that say what became of what the seller wants listed."""
    return {} if desk.catalogue is None else desk.catalogue.note(grant.tenant, payment, settled=settled)


def _hold_to_limits(grant: Grant, payment: Payment, malformed: Callable[[Malformed], dict[str, object]]) -> None:
    """The tenant's own rules, before anything else of a payment is judged. Raises HttpProblem 403, with what old clients look for."""
    asked = payment.requirements
    breach = judge_terms(grant.tenant.limits, payment.network, asked.asset.lower(), asked.pay_to.lower(), asked.amount_atomic)
    if breach is not None:
        told = Malformed(message=breach.message, path="$.paymentRequirements")
        raise limited(breach, malformed(told))


async def _decode(desk: Desk, request: web.Request, malformed: Callable[[Malformed], dict[str, object]]) -> Payment | Refused:
    """Read and decode the body. Raises HttpProblem 400, 408, 413 or 415."""
    wrong_type = codec.check_content_type(request.headers.get(hdrs.CONTENT_TYPE))
    decoded = wrong_type or codec.decode_request(await read_body(desk, request))
    if isinstance(decoded, Malformed):
        message = f"{decoded.path}: {decoded.message}" if decoded.path not in {None, "$"} else decoded.message
        raise HttpProblem(_STATUS[decoded.fault], _ERROR[decoded.fault], message, more=malformed(decoded))
    return decoded


async def read_body(desk: Desk, request: web.Request) -> bytes:
    """The body as sent, never more of it in memory than the limit. Raises HttpProblem 408, 413 or 415."""
    limit = desk.settings.body_bytes_max
    encoding = request.headers.get(hdrs.CONTENT_ENCODING)
    if encoding is not None and encoding.strip().lower() != "identity":
        raise HttpProblem(415, "unsupported_media_type", "expected a body without Content-Encoding")
    length = request.content_length
    if length is not None and length > limit:
        raise _too_large(limit)
    content = request.content
    try:
        if content.is_eof():  # as a rule it came with the head: there is nothing to wait for
            body = content.read_nowait()
        else:
            body = await _receive(desk, content, limit)
    except TimeoutError:
        message = f"the body did not arrive within {desk.settings.body_timeout_s:g} s"
        raise HttpProblem(408, "request_timeout", message, {"Connection": "close"}) from None
    except web.RequestPayloadError:
        raise HttpProblem(400, "invalid_request", "the body ended early or was not encoded as its headers say") from None
    if len(body) > limit:
        raise _too_large(limit)
    return body


async def _receive(desk: Desk, content: StreamReader, limit: int) -> bytes:
    """The body as it comes, as far as one piece beyond the limit."""
    body = bytearray()
    with desk.timeouts.after(desk.settings.body_timeout_s):
        while len(body) <= limit and (chunk := await content.readany()):
            body += chunk
    return bytes(body)


def _too_large(limit: int) -> HttpProblem:
    return HttpProblem(413, "body_too_large", f"expected a body of at most {limit} bytes", {"Connection": "close"})


async def read_json(desk: Desk, request: web.Request, form: type[_Body]) -> _Body:
    """The body as a struct. Raises HttpProblem 400, 408, 413 or 415."""
    if codec.check_content_type(request.headers.get(hdrs.CONTENT_TYPE)) is not None:
        raise HttpProblem(415, "unsupported_media_type", "expected Content-Type application/json")
    try:
        return msgspec.convert(load(await read_body(desk, request)), type=form)
    except (HostileError, msgspec.ValidationError) as error:
        raise HttpProblem(400, "invalid_request", str(error)) from None


def _idempotency_key(request: web.Request) -> str | None:
    keys = request.headers.getall("Idempotency-Key", [])
    if not keys:
        return None
    if len(keys) > 1 or not _IDEMPOTENCY_KEY.fullmatch(keys[0]):
        raise HttpProblem(400, "invalid_request", "Idempotency-Key: expected once, 1 to 255 printable ASCII characters without spaces")
    return keys[0]


def _malformed_verify(malformed: Malformed) -> dict[str, object]:
    """What an old client of `/verify` looks for in any answer."""
    return {"isValid": False, "invalidReason": malformed.reason.v2, "invalidMessage": malformed.message, "payer": ""}


def _malformed_settle(malformed: Malformed) -> dict[str, object]:
    """What an old client of `/settle` looks for in any answer."""
    word = malformed.reason.v2
    return {"success": False, "errorReason": word, "errorMessage": malformed.message, "transaction": "", "network": "", "payer": ""}


def _annotate_payment(payment: Payment) -> None:
    asked = payment.requirements
    annotate(
        version=payment.version,
        scheme=payment.scheme,
        network=payment.network,
        asset=asked.asset,
        pay_to=asked.pay_to,
        amount_atomic=str(asked.amount_atomic),
    )
    if payment.accepted_differs:
        annotate(accepted_differs=payment.accepted_differs)


def _annotate_refusal(refusal: Refusal) -> None:
    evidence = {f"refusal_{key}": value for key, value in refusal.evidence.items()}
    annotate(outcome="refused", reason=refusal.reason.name.lower(), refusal=refusal.message, **evidence)
