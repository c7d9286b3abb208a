"""Lets scripts of other origins pay: which headers they may read and send, and the preflight that browsers ask first.

Whoever answers for CORS already leaves `origins` empty: then only the payment headers are exposed, which is needed either way.
"""

from collections.abc import Collection
from typing import Final

from aiohttp import hdrs, web
from multidict import CIMultiDict

EXPOSED: Final = ("PAYMENT-REQUIRED", "PAYMENT-RESPONSE", "X-PAYMENT-RESPONSE", "WWW-Authenticate", "Payment-Receipt")
"""What a paying script must be able to read."""
ALLOWED: Final = (
    "Content-Type",
    "PAYMENT-SIGNATURE",
    "X-PAYMENT",
    "Authorization",
    "Accept-Payment",
    "SIGN-IN-WITH-X",
    "Access-Control-Expose-Headers",
)
"""What a paying script sends; the last is sent by the official fetch client, as a request header."""
_PREFLIGHT_MAX_AGE_S: Final = "600"


def expose(headers: CIMultiDict[str], origin: str | None, origins: Collection[str]) -> None:
    """Add to an answer of a priced route what its reader needs; what stands there already stays."""
    present = [name.strip() for value in headers.getall(hdrs.ACCESS_CONTROL_EXPOSE_HEADERS, []) for name in value.split(",")]
    known = {name.lower() for name in present}
    if "*" not in known:
        headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = ", ".join([*filter(None, present), *(n for n in EXPOSED if n.lower() not in known)])
    if not origins or hdrs.ACCESS_CONTROL_ALLOW_ORIGIN in headers:
        return
    if "*" in origins:
        headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = "*"
        return
    headers.add(hdrs.VARY, "Origin")
    if origin in origins:
        headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = str(origin)


def preflight(request: web.Request, origins: Collection[str]) -> web.Response:
    """Answer a browser's question whether a script may send this request with a payment."""
    headers = CIMultiDict[str]()
    expose(headers, request.headers.get(hdrs.ORIGIN), origins)
    del headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS]
    headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_METHOD, "GET")
    asked = [name.strip() for name in request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "").split(",")]
    known = {name.lower() for name in ALLOWED}
    headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = ", ".join([*ALLOWED, *(name for name in asked if name and name.lower() not in known)])
    headers[hdrs.ACCESS_CONTROL_MAX_AGE] = _PREFLIGHT_MAX_AGE_S
    return web.Response(status=204, headers=headers)
