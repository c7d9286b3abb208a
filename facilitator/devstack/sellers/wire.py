"""What the sample sellers share on the wire: strict JSON in, their own errors out, and answers that any script may read.

What a request must look like is a type; a wrong one is refused while its price is computed, and so before any demand.
"""

import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol, TypeVar

import msgspec
from aiohttp import hdrs, web

from facilitator.devstack.sellers.models.model import ModelFault
from facilitator.gateway.cors import expose, preflight

BODY_BYTES_MAX: Final = 256 * 1024
"""Largest request body."""

_T = TypeVar("_T")
_ANYBODY: Final = ("*",)
_FIELD: Final = re.compile(r"`\$\.([A-Za-z_]\w*)|required field `(\w+)`")
_journal = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Refused(web.HTTPException):
    """An error answer in JSON. A handler that raises it charges nobody."""

    def __init__(self, status: int, told: Mapping[str, object], headers: Mapping[str, str] | None = None) -> None:
        self.status_code = status
        text = msgspec.json.encode(told).decode()
        super().__init__(text=text, content_type="application/json", headers={hdrs.CACHE_CONTROL: "no-store", **(headers or {})})


class Refuse(Protocol):
    """Puts an error into the words of one seller. `field`: of the request, when one is to blame."""

    def __call__(self, status: int, message: str, field: str | None = None) -> Refused: ...  # noqa: D102 - said above


async def read(request: web.Request, shape: type[_T], refuse: Refuse) -> _T:
    """The body of a request. Raises Refused for what has another shape, naming the first member that is wrong."""
    try:
        raw = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise refuse(413, f"the body is longer than {BODY_BYTES_MAX:,} bytes") from None
    try:
        return msgspec.json.decode(raw, type=shape)
    except msgspec.ValidationError as error:
        found = _FIELD.search(str(error))
        raise refuse(400, str(error), (found[1] or found[2]) if found else None) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise refuse(400, "expected a JSON object in the body") from None


def open_shop(refuse: Refuse, *, fault_status: int) -> web.Application:
    """An application whose errors are JSON in the words of `refuse`, and whose answers scripts of every origin may read.

    `fault_status` is what a buyer hears when a model fails. Routes and prices are the caller's to add, prices last.
    """

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers:
            return preflight(request, _ANYBODY)
        try:
            return await handler(request)
        except Refused:
            raise
        except web.HTTPMethodNotAllowed as error:
            refused = refuse(405, f"{request.method} is not allowed here")
            refused.headers[hdrs.ALLOW] = ", ".join(sorted(error.allowed_methods))
            raise refused from None
        except web.HTTPException as error:
            if error.status < 400:
                raise
            raise refuse(error.status, error.reason) from None
        except ModelFault as fault:
            raise refuse(fault_status, f"this request made nothing and charged nothing: {fault}") from None
        except Exception:  # noqa: BLE001 - what a bug did is no business of the buyer's, beyond that he was not charged
            _journal.exception("a handler failed")
            raise refuse(500, "internal error; this request charged nothing") from None

    async def open_to_scripts(request: web.Request, response: web.StreamResponse) -> None:
        expose(response.headers, request.headers.get(hdrs.ORIGIN), _ANYBODY)

    application = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[answer])
    application.on_response_prepare.append(open_to_scripts)
    return application
