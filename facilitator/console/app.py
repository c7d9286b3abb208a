"""The finance console's own listener: its pages, and what happens around each.

**A page** is one line of `table.PAGES`: `Page(method="GET", path="/settlements", handler=show_settlements, needs="view")`. Its
handler is a coroutine from `(desk, visit)` to a response:

- `visit` says who asks: `visit.person`, `visit.role`, `visit.may("export")`; `visit.request.query` has the filters,
  `visit.request.match_info` the parts of the path. Whoever lacks `needs` has been answered 403 already.
- `desk` has the rest: `desk.need_db()` (the pool), `desk.finance` (booking zone and the like), `desk.decimals` (places of each
  token), `desk.clock`. Figures come from `facilitator.finance.views`, never from a query of the page's own.
- `return desk.render(visit, "settlements.html", rows=…)` renders `templates/settlements.html`, autoescaped, a missing fact being an
  error. Templates know `visit`, `zone`, `asset("console.css")` (the address of a file in `static/`) and `integrity("console.css")`.
  No style, script or handler may stand in a page: the Content-Security-Policy forbids it. `raise Refused(404, "words")` shows
  `error.html`.

**A form** that changes something is a POST to a page of its own with the hidden field `csrf` = `visit.csrf` (htmx: the header
`X-CSRF-Token`). Origin, `Sec-Fetch-Site` and token are checked before the handler runs, and the fields are in `visit.form`. Answer
with `see(location)`. What it did is recorded by the function that did it, under `visit.person`.

**In tests**: `tests/fixtures/console.py` has a console without an engine, and browsers that are signed in as any role.
"""

import asyncio
import hmac
import re
import secrets
from asyncio import Semaphore
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final

from aiohttp import web

from facilitator.console.auth import Door, sign_in_address
from facilitator.console.desk import Desk, Page, Refused, Visit, see
from facilitator.console.oidc import Provider
from facilitator.console.table import PAGES, entries_for
from facilitator.errors import Fault
from facilitator.metrics import REQUEST_SECONDS, REQUESTS
from facilitator.settlement.tasks import keep_running
from facilitator.store.db import Db
from facilitator.telemetry import bind, canonical, get_logger

_log = get_logger()

_FILES_MAX: Final = 2
"""Files that are sent at the same time, beside the pages: each may hold a connection to the database while it is read."""
_FORM_BYTES_MAX: Final = 65_536
_LINGER_S: Final = 2.0
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none';"
    " frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "same-origin",
    "Server": "facilitator",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Of every answer; `Cache-Control` and, behind https, `Strict-Transport-Security` besides."""
_HTTPS_ONLY: Final = "max-age=31536000; includeSubDomains"
_ASSET_KEPT: Final = "public, max-age=31536000, immutable"
_VERSION: Final = re.compile(r"[0-9a-f]{12}", re.ASCII)


class Console:
    """The listener. `start` returns when it accepts; until `connect` every page answers 503; `stop` may be called twice."""

    def __init__(self, desk: Desk, provider: Provider | None = None) -> None:
        self._desk = desk
        desk.templates.globals["entries_for"] = entries_for
        self._door = Door(desk, provider)
        self._pages = Semaphore(desk.settings.pages_max)
        self._files = Semaphore(_FILES_MAX)
        self._runner: web.AppRunner | None = None
        self._exports: asyncio.Task[None] | None = None
        self.port = desk.settings.listen.port
        """The port really taken, once started."""

    def connect(self, db: Db) -> None:
        """The database is there."""
        desk = self._desk
        desk.db = db
        self._exports = asyncio.create_task(keep_running("exports", partial(desk.exporter.run, db), desk.clock), name="exports")

    async def start(self) -> None:
        """Accept connections. Raises Fault when the address cannot be taken."""
        listen, door = self._desk.settings.listen, self._door
        app = web.Application(middlewares=[self._observe], client_max_size=_FORM_BYTES_MAX)
        app.on_response_prepare.append(self._add_headers)
        app.router.add_get("/static/{name}", self._static)
        app.router.add_get("/sign-in", door.sign_in)
        app.router.add_post("/sign-in", self._open_link)
        app.router.add_get("/sign-in/oidc", door.go_to_provider)
        app.router.add_get("/sign-in/callback", door.come_back)
        for page in (*PAGES, Page(method="POST", path="/sign-out", handler=door.sign_out)):
            app.router.add_route(page.method, page.path, self._bind(page))
        runner = web.AppRunner(app, access_log=None, handle_signals=False, handler_cancellation=True, shutdown_timeout=_LINGER_S)
        await runner.setup()
        site = web.TCPSite(runner, listen.host, listen.port)
        try:
            await site.start()
        except OSError as error:
            await runner.cleanup()
            raise Fault(
                "cannot_listen", f"cannot listen on {listen}: {error.strerror}: end whoever uses it, or change [console] listen"
            ) from error
        self._runner = runner
        self.port = runner.addresses[0][1]
        _log.info("console.started", listen=f"{listen.host}:{self.port}")

    async def stop(self) -> None:
        """Close the listener and every connection; files that are being made are given up."""
        if self._exports is not None:
            self._exports.cancel()
            await asyncio.gather(self._exports, return_exceptions=True)
            self._exports = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    # ---- around every page

    def _bind(self, page: Page) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            visit = await self._door.visit(request)
            if visit is None:
                return _to_sign_in(request)
            if not visit.may(page.needs):
                await self._door.refuse(visit, f"{page.method} {page.path}")
                raise Refused(403, f"Your role ({visit.role}) does not include this.")
            if request.method != "GET":
                visit = await self._checked(request, visit)
            async with self._files if page.streams else self._pages:
                return await page.handler(self._desk, visit)

        return handle

    async def _checked(self, request: web.Request, visit: Visit) -> Visit:
        """The visit with its form, when this page of ours was what sent it."""
        form = await self._form(request)
        token = form.pop("csrf", "") or request.headers.get("X-CSRF-Token", "")
        if not hmac.compare_digest(token.encode(), visit.csrf.encode()):
            raise Refused(403, "This form is too old, or was not sent from this console. Go back, load the page again and repeat.")
        return Visit(request=request, person=visit.person, role=visit.role, secret=visit.secret, form=form)

    async def _form(self, request: web.Request) -> dict[str, str]:
        """Fields of a form that a page of ours sent. Raises Refused for anybody else's."""
        site = request.headers.get("Sec-Fetch-Site", "same-origin")
        if site not in {"same-origin", "none"} or request.headers.get("Origin") != self._door.origin(request):
            raise Refused(403, "This form was not sent from this console.")
        if request.content_type != "application/x-www-form-urlencoded":
            raise Refused(415, "Expected a form.")
        fields = await request.post()
        form = {name: value for name, value in fields.items() if isinstance(value, str)}
        if len(form) != len(fields):
            raise Refused(400, "A field of this form was sent twice.")
        return form

    async def _open_link(self, request: web.Request) -> web.StreamResponse:
        return await self._door.open_link(request, await self._form(request))

    async def _static(self, request: web.Request) -> web.StreamResponse:
        found = self._desk.assets.get(request.match_info["name"])
        if found is None:
            raise web.HTTPNotFound
        answer = web.Response(body=found.body, content_type=found.content_type, charset="utf-8")
        if request.query.get("v") == found.version:
            answer.headers["Cache-Control"] = _ASSET_KEPT
        return answer

    @web.middleware
    async def _observe(self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        """Id, canonical line, metrics, and the one mapping of exceptions to pages."""
        resource = request.match_info.route.resource
        path = f"console {resource.canonical if resource is not None else 'unmatched'}"
        started = self._desk.clock.monotonic()
        with bind(request_id=secrets.token_hex(16)), canonical("page.answered", method=request.method[:16], route=path) as line:
            status = 499  # the reader went away
            try:
                response = await self._answer(request, handler, line)
                status = response.status
            finally:
                elapsed_s = self._desk.clock.monotonic() - started
                line["status"], line["duration_ms"] = status, round(elapsed_s * 1000, 1)
                REQUESTS.labels(path, str(status)).inc()
                REQUEST_SECONDS.labels(path).observe(elapsed_s)
        return response

    async def _answer(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]], line: dict[str, object]
    ) -> web.StreamResponse:
        try:
            self._door.origin(request)
            return await handler(request)
        except Refused as refused:
            return self._error(refused.status, refused.message, refused.headers)
        except Fault as fault:
            line["error"], line["fault"] = fault.kind, str(fault)
            if fault.retryable:
                return self._error(503, "The books cannot be read at this moment. Nothing is lost; try again.", {"Retry-After": "5"})
            return self._error(500, "The console is misconfigured; its operator finds the reason in the log.")
        except web.HTTPException as answer:
            headers = {"Allow": answer.headers["Allow"]} if "Allow" in answer.headers else None
            words = {404: "There is no such page.", 413: "This form is too large."}
            return self._error(answer.status, words.get(answer.status, f"{answer.reason}."), headers)
        except Exception:  # noqa: BLE001 (the top of a request)
            _log.exception("page.crashed")
            line["error"] = "bug"
            return self._error(500, "This is a bug of ours; the log has it.")

    def _error(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
        answer = self._desk.render(None, "error.html", status=status, code=status, message=message)
        answer.headers.update(headers or {})
        return answer

    async def _add_headers(self, _request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(HEADERS)
        response.headers.setdefault("Cache-Control", "no-store")
        if self._door.secure:
            response.headers["Strict-Transport-Security"] = _HTTPS_ONLY


def _to_sign_in(request: web.Request) -> web.Response:
    address = sign_in_address(request)
    if "HX-Request" in request.headers:  # a part of a page: the whole one goes
        return web.Response(status=401, headers={"HX-Redirect": address})
    return see(address)
