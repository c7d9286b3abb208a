"""What a seller answers: the demand, the truth about a payment that bought nothing yet, and the paid response.

Every answer says what became of the payment: a 402 with an offer means pay; one without an offer, a 502 and a 503, mean that the
same payment may be sent again and that a fresh one could pay twice. It must never offer while a payment is open. In MPP every
402 is an offer, which its clients pay unasked, so a payment that came that way and is open is answered with 503.
"""

import base64
from collections.abc import Mapping

import msgspec
from aiohttp import hdrs, web

from facilitator.gateway.answers import FacilitatorFault, Settled
from facilitator.gateway.mpp import RECEIPT_HEADER, Problem, render_receipt
from facilitator.gateway.payments import DEMAND_HEADER, RESPONSE_HEADERS, Payment
from facilitator.gateway.paywall import Paywall, Unpaid, is_browser
from facilitator.gateway.prices import offer
from facilitator.gateway.purchases import Whole
from facilitator.protocol.messages import Version
from facilitator.units import UnixSeconds

SAME_PAYMENT = "Send this same payment again; do not sign another one for it."


def encode(message: Mapping[str, object]) -> str:
    """A JSON object as a header carries it (x402-protocol §5.1)."""
    return base64.b64encode(msgspec.json.encode(message)).decode("ascii")


def demand(request: web.Request, unpaid: Unpaid, version: Version, message: str | None, paywall: Paywall | None) -> web.Response:
    """402 for clients of both versions: v2 reads the header, v1 the body, a browser the page, MPP the challenges."""
    offers = {each: offer(unpaid.terms, unpaid.resource, each, unpaid.error) for each in (1, 2)}
    if message:
        for each, made in offers.items():
            if made is not None and each in {1, version}:
                made["message"] = message
    headers = {DEMAND_HEADER: encode(offers[2] or {}), hdrs.CACHE_CONTROL: "no-store"}
    if paywall is not None and is_browser(request):
        page = paywall(unpaid)
        headers |= {"Content-Security-Policy": page.policy} if page.policy else {}
        return _challenged(web.Response(text=page.html, content_type="text/html", charset="utf-8", status=402, headers=headers), unpaid)
    return _challenged(json_response(402, offers[1] or offers[2] or {}, headers), unpaid)


def problem(wrong: Problem, unpaid: Unpaid) -> web.Response:
    """402 for what is wrong with an MPP credential, and the offer again (RFC 9457)."""
    answer = json_response(402, wrong.render(), {DEMAND_HEADER: encode(offer(unpaid.terms, unpaid.resource, 2, wrong.kind) or {})})
    answer.content_type = "application/problem+json"
    return _challenged(answer, unpaid)


def pending(payment: Payment, settled: Settled, retry_after_s: int) -> web.Response:
    """402 without an offer, by MPP 503: the payment was sent and may yet be made."""
    told: dict[str, object] = {
        "x402Version": payment.version,
        "error": settled.reason,
        "message": f"The payment was sent as {settled.transaction} and is not decided yet. {SAME_PAYMENT}",
        "accepts": [],
        "payment": "open",
        "transaction": settled.transaction,
    }
    headers: dict[str, str] = {hdrs.RETRY_AFTER: str(retry_after_s)}
    if payment.challenge_id is not None:
        return json_response(503, told, headers)
    return json_response(402, told, headers | {RESPONSE_HEADERS[payment.version]: encode(settled.raw)})


def unavailable(fault: FacilitatorFault, *, settling: bool, retry_after_s: int) -> web.Response:
    """502: the facilitator cannot be asked. Says whether this request may have made the payment all the same."""
    if settling and fault.payment_may_happen:
        error, payment, message = "settlement_unknown", "open", f"It is not known whether the payment was made. {SAME_PAYMENT}"
    else:
        error, payment, message = "facilitator_unavailable", "untouched", f"This request did nothing with the payment. {SAME_PAYMENT}"
    return json_response(502, {"error": error, "message": message, "payment": payment}, {hdrs.RETRY_AFTER: str(retry_after_s)})


def busy(retry_after_s: int) -> web.Response:
    """503: another request with the same payment is being served."""
    told = {"error": "payment_in_use", "message": f"Another request with this payment is being served. {SAME_PAYMENT}", "payment": "open"}
    return json_response(503, told, {hdrs.RETRY_AFTER: str(retry_after_s)})


def buyer_gone() -> web.Response:
    """For the access log: nobody reads it, and nothing was charged."""
    return json_response(503, {"error": "buyer_gone", "payment": "untouched"}, {})


def paid(whole: Whole, payment: Payment, settled: Settled, now: UnixSeconds) -> None:
    """Put the receipt into a response that is paid, and keep caches of others from holding it (x402-protocol §5.2)."""
    if payment.challenge_id is None:
        whole.headers[RESPONSE_HEADERS[payment.version]] = encode(settled.raw)
    else:
        whole.headers[RECEIPT_HEADER] = render_receipt(payment, settled.transaction, now)
    directives = {part.strip().lower() for value in whole.headers.getall(hdrs.CACHE_CONTROL, []) for part in value.split(",")}
    if not directives & {"private", "no-store"}:
        whole.headers[hdrs.CACHE_CONTROL] = "private"


def json_response(status: int, told: Mapping[str, object], headers: Mapping[str, str]) -> web.Response:
    """A JSON object that no cache keeps."""
    body = msgspec.json.encode(told)
    return web.Response(body=body, content_type="application/json", status=status, headers={hdrs.CACHE_CONTROL: "no-store", **headers})


def _challenged(answer: web.Response, unpaid: Unpaid) -> web.Response:
    """Ask in MPP too."""
    for value in unpaid.challenges:
        answer.headers.add(hdrs.WWW_AUTHENTICATE, value)
    return answer
