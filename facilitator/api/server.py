"""The HTTP face: THE route table, and what happens around every route.

Every request gets an id, one canonical line and one count; every exception becomes one form of answer, here and nowhere
else. It must never show a traceback, and never answer 503 to a `/settle` whose transaction is on record: the engine
answers by its own deadline.
"""

import asyncio
import logging
import os
import re
from collections.abc import Awaitable, Callable
from typing import Final, cast

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from multidict import istr
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from facilitator import tracing
from facilitator.api import admin, catalogue, fees, finance, openapi, settlements, x402
from facilitator.api.access import Access
from facilitator.api.answers import ALWAYS, REQUEST_ID
from facilitator.api.connections import LINGER_S, Connection, Connections
from facilitator.api.desk import Desk, Grant, HttpProblem, Route, json_response
from facilitator.errors import Fault, OverloadFault
from facilitator.metrics import (
    BLOCKING_SECONDS,
    LOOP_HEARTBEAT,
    REQUEST_SECONDS,
    REQUESTS,
    REQUESTS_IN_FLIGHT,
    TASKS,
    series,
)
from facilitator.store.tenants import Tenant
from facilitator.telemetry import annotate, bind, bind_too, canonical, get_logger
from facilitator.units import Listen

_log = get_logger()

HEARTBEAT_S: Final = 1.0
HEARTBEAT_LATE_S: Final = 10.0
"""A heartbeat older than this and the process counts as stuck."""
_ID_HEADER: Final = istr("X-Request-Id")
_TRACE_HEADER: Final = istr("traceparent")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}", re.ASCII)
_NOBODY: Final = Grant(tenant=Tenant(tenant_id="nobody"), scopes=frozenset(), key_id=None)
"""The grant of a route that asks for no key."""


async def healthz(desk: Desk, _request: web.Request, _grant: Grant) -> web.StreamResponse:
    """GET /healthz: is this process alive? Its event loop's heartbeat is looked at, nothing outside."""
    late_s = desk.clock.monotonic() - desk.heartbeat_at - HEARTBEAT_S
    alive = late_s < HEARTBEAT_LATE_S
    return json_response({"status": "ok" if alive else "stuck", "lagSeconds": round(max(0.0, late_s), 3)}, 200 if alive else 503)


async def readyz(desk: Desk, _request: web.Request, _grant: Grant) -> web.StreamResponse:
    """GET /readyz: may traffic be sent here? Names each gate."""
    gates = dict(desk.gates())
    ready = all(gates.values())
    return json_response({"ready": ready, "gates": gates}, 200 if ready else 503)


async def metrics(_desk: Desk, _request: web.Request, _grant: Grant) -> web.StreamResponse:
    """GET /metrics: everything of `facilitator.metrics` in Prometheus' text format."""
    return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def describe(_desk: Desk, _request: web.Request, _grant: Grant) -> web.StreamResponse:
    """GET /openapi.json: all of this as OpenAPI 3.1."""
    return json_response(openapi.DOCUMENT)


ROUTES: Final = (
    Route(method="POST", path="/verify", handler=x402.verify, scopes=("verify",)),
    Route(method="POST", path="/settle", handler=x402.settle, scopes=("settle",), own_deadline=True),
    Route(method="GET", path="/supported", handler=x402.supported),
    Route(method="GET", path="/discovery/resources", handler=catalogue.resources),
    Route(method="GET", path="/discovery/search", handler=catalogue.search),
    Route(method="GET", path="/settlements", handler=settlements.page, scopes=("read", "finance")),
    Route(method="GET", path="/settlements/lookup", handler=settlements.lookup, scopes=("read", "finance")),
    Route(method="GET", path="/settlements/{id}", handler=settlements.get, scopes=("read", "finance")),
    *(
        Route(
            method=method,
            path=path,
            handler=handler,
            scopes=("finance",),
            own_deadline=path in {"/finance/settlements/file", "/finance/report", "/finance/gas/file"},
        )
        for method, path, handler in (
            ("GET", "/finance/overview", finance.overview),
            ("GET", "/finance/settlements", finance.list_settlements),
            ("GET", "/finance/settlements/totals", finance.settlement_totals),
            ("GET", "/finance/settlements/file", finance.download_settlements),
            ("GET", "/finance/settlements/{id}", finance.get_settlement),
            ("GET", "/finance/report", finance.download_report),
            ("GET", "/finance/discrepancies", finance.list_discrepancies),
            ("GET", "/finance/discrepancies/{id}", finance.get_discrepancy),
            ("POST", "/finance/discrepancies/{id}/explain", finance.explain_discrepancy),
            ("GET", "/finance/days", finance.list_days),
            ("POST", "/finance/days/{day}/close", finance.close_day),
            ("POST", "/finance/days/{day}/reopen", finance.ask_reopening),
            ("POST", "/finance/days/{day}/reopen/confirm", finance.confirm_reopening),
            ("GET", "/finance/relayers", finance.list_relayers),
            ("GET", "/finance/gas", finance.list_gas),
            ("GET", "/finance/gas/file", finance.download_gas),
            ("GET", "/finance/tenants", finance.list_tenants),
            ("GET", "/finance/invoices", finance.list_invoices),
            ("GET", "/finance/invoices/{id}", finance.get_invoice),
            ("GET", "/finance/balances", finance.list_balances),
            ("GET", "/finance/statement", finance.get_statement),
        )
    ),
    Route(method="GET", path="/finance/audit", handler=finance.list_events, scopes=("admin",)),
    Route(method="GET", path="/admin/tenants", handler=admin.list_tenants, scopes=("admin",)),
    Route(method="POST", path="/admin/tenants", handler=admin.create_tenant, scopes=("admin",)),
    Route(method="PATCH", path="/admin/tenants/{id}", handler=admin.change_tenant, scopes=("admin",)),
    Route(method="GET", path="/admin/fees", handler=fees.list_fees, scopes=("admin",)),
    Route(method="POST", path="/admin/fees", handler=fees.add_fees, scopes=("admin",)),
    Route(method="POST", path="/admin/fees/payment", handler=fees.book_payment, scopes=("admin",)),
    Route(method="POST", path="/admin/fees/credit", handler=fees.book_credit, scopes=("admin",)),
    Route(method="GET", path="/admin/keys", handler=admin.list_keys, scopes=("admin",)),
    Route(method="POST", path="/admin/keys", handler=admin.create_key, scopes=("admin",)),
    Route(method="POST", path="/admin/keys/{id}/rotate", handler=admin.rotate_key, scopes=("admin",)),
    Route(method="DELETE", path="/admin/keys/{id}", handler=admin.revoke_key, scopes=("admin",)),
    Route(method="GET", path="/healthz", handler=healthz),
    Route(method="GET", path="/readyz", handler=readyz),
    Route(method="GET", path="/openapi.json", handler=describe),
)
_TRACED: Final = {route.path for route in ROUTES if route.scopes}
_DIRECT: Final = {"/verify", "/settle"}
"""Their answers are all of the kind that needs nothing of the library's router, which takes 4 µs to find a handler."""
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_BareHandler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
METRICS_ROUTE: Final = Route(method="GET", path="/metrics", handler=metrics)
"""On the main port only while that is loopback."""


class Server:
    """One listening port with some of the routes. `start` returns when it accepts; `stop` may be called twice."""

    def __init__(self, desk: Desk, access: Access, listen: Listen, routes: tuple[Route, ...]) -> None:
        self._desk = desk
        self._listen = listen
        self._routes = routes
        self._access = access
        self._connections: Connections | None = None
        self._listener: asyncio.Server | None = None
        self._runner: web.AppRunner | None = None
        self._library: _BareHandler | None = None
        self._direct: dict[tuple[str, str], _Handler] = {}
        self.port = listen.port
        """The port really taken, once started."""

    async def start(self) -> None:
        """Accept connections. Raises Fault when the address cannot be taken."""
        app = web.Application(middlewares=[self._routed])
        for route in self._routes:
            handler = self._bind(route)
            app.router.add_route(route.method, route.path, handler)
            if route.path in _DIRECT:
                self._direct[route.method, route.path] = handler
        app.on_response_prepare.append(_add_headers)
        runner = web.AppRunner(app, handle_signals=False, handler_cancellation=True, shutdown_timeout=LINGER_S)
        logging.getLogger("aiohttp.server").addFilter(_readable)
        await runner.setup()
        assert runner.server is not None
        self._library, runner.server.request_handler = runner.server.request_handler, self._serve
        self._runner = runner
        self._connections = Connections(self._desk.settings, runner.server, self._desk.gate)
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                self._connections.open, self._listen.host, self._listen.port, backlog=1024, reuse_address=True
            )
        except OSError as error:
            raise Fault(
                "cannot_listen", f"cannot listen on {self._listen}: {error.strerror}: end whoever uses it, or change [server] listen"
            ) from error
        taken = self._listener.sockets[0].getsockname()
        self.port = taken[1]

    async def close_listener(self) -> None:
        """Accept no further connection; those open go on."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            await asyncio.sleep(0)

    async def stop(self) -> None:
        """Close the listener, then every connection; handlers that still run get `LINGER_S`, then they are cancelled."""
        await self.close_listener()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._connections is not None:
            self._connections.close()

    # ---- around every route

    def _serve(self, request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        """Straight to its handler what asks for one of `_DIRECT` in so many words; through the library's router the rest."""
        handler = self._direct.get((request.method, request.raw_path))
        if handler is None or hdrs.EXPECT in request.headers:
            assert self._library is not None
            return self._library(request)
        return self._observe(cast("web.Request", request), request.raw_path, handler)

    def _bind(self, route: Route) -> _Handler:
        desk, access = self._desk, self._access

        async def handle(request: web.Request) -> web.StreamResponse:
            try:
                with desk.timeouts.after(desk.settings.request_timeout_s) as timeout:
                    grant = _NOBODY
                    if route.scopes:
                        grant = await access.admit(request, route.path, route.scopes)
                        cast("Connection", request.protocol).admitted(grant.tenant.tenant_id, (grant.key_id or "").encode())
                        annotate(tenant=grant.tenant.tenant_id, key_id=grant.key_id)
                        bind_too(tenant=grant.tenant.tenant_id)
                    if route.own_deadline:
                        timeout.lift()
                    return await route.handler(desk, request, grant)
            except TimeoutError:
                raise Fault("deadline", f"no answer within {desk.settings.request_timeout_s:g} s") from None

        return handle

    @web.middleware
    async def _routed(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        return await self._observe(request, resource.canonical if resource is not None else "unmatched", handler)

    async def _observe(self, request: web.Request, path: str, handler: _Handler) -> web.StreamResponse:
        """Id, canonical line, metrics, and the one mapping of exceptions to answers."""
        assert self._connections is not None
        self._connections.asked(cast("Connection", request.protocol))
        started = self._desk.clock.monotonic()
        offered = request.headers.get(_ID_HEADER)
        request_id = offered if offered and _REQUEST_ID.fullmatch(offered) else os.urandom(16).hex()
        request[REQUEST_ID] = request_id
        in_flight = series(REQUESTS_IN_FLIGHT, path)
        in_flight.inc()
        trace = tracing.request(f"{request.method[:16]} {path}", request.headers.get(_TRACE_HEADER)) if path in _TRACED else tracing.NOTHING
        event = canonical("request.answered", method=request.method[:16], route=path)
        with trace as tell, bind(request_id=request_id, **_trace_id()), event as line:
            status = 499  # the caller went away: nothing was answered
            try:
                try:
                    response = await handler(request)
                except ConnectionError:
                    raise asyncio.CancelledError from None  # the caller is gone while we wrote: nobody to answer
                except Exception as error:  # noqa: BLE001 (the top of a request)
                    response = self._problem(error, request, line)
                status = response.status
            finally:
                elapsed_s = self._desk.clock.monotonic() - started
                line["status"] = status
                line["duration_ms"] = round(elapsed_s * 1000, 1)
                tell({"request_id": request_id, "status": status})
                in_flight.dec()
                series(REQUESTS, path, str(status)).inc()
                series(REQUEST_SECONDS, path).observe(elapsed_s)
        return response

    def _problem(self, error: Exception, request: web.Request, line: dict[str, object]) -> web.Response:
        """The answer to a request whose handling ended so."""
        match error:
            case HttpProblem():
                line["error"] = error.code
                problem = error
            case Fault():
                line["error"], line["fault"] = error.kind, str(error)
                problem = self._fault_problem(error)
            case web.HTTPException():
                line["error"] = f"http_{error.status}"
                problem = _library_problem(error, request)
            case _:
                _log.error("request.crashed", exc_info=error)
                line["error"] = "bug"
                problem = HttpProblem(500, "internal_error", "a bug of ours; the log has it under this requestId")
        return problem.response(request[REQUEST_ID])

    def _fault_problem(self, fault: Fault) -> HttpProblem:
        """A Fault's words name hosts and queries of ours, so callers hear its kind only."""
        if not fault.retryable:
            return HttpProblem(500, fault.kind, "the service is misconfigured; its operator finds the reason in the log")
        message = "cannot serve this now; send the same payment again later, never a fresh one: it is made once at most"
        told_s = fault.retry_after_s if isinstance(fault, OverloadFault) else None
        return HttpProblem(503, fault.kind, message, {"Retry-After": str(told_s or self._desk.settings.retry_after_s)})


def _trace_id() -> dict[str, str]:
    """The fact that lines of a traced request have."""
    trace_id = tracing.trace_id_of(tracing.current())
    return {} if trace_id is None else {"trace_id": trace_id}


def _readable(record: logging.LogRecord) -> bool:
    """What is no HTTP is its sender's fault: the library answers 400 and hangs up; a line and a count stand for its traceback."""
    error = record.exc_info[1] if record.exc_info else None
    if not isinstance(error, HttpProcessingError):
        return True
    REQUESTS.labels("unreadable", str(error.code)).inc()
    _log.info("request.unreadable", status=error.code, error=type(error).__name__)
    return False


def _library_problem(answer: web.HTTPException, request: web.Request) -> HttpProblem:
    """What aiohttp itself raises: no such route, wrong method, unreadable expectation."""
    if answer.status == 404:
        return HttpProblem(404, "not_found", "there is no such route; see /openapi.json")
    if answer.status == 405:
        allow = answer.headers.get("Allow", "")
        return HttpProblem(405, "method_not_allowed", f"{request.method[:16]} is not allowed here; allowed: {allow}", {"Allow": allow})
    return HttpProblem(answer.status, f"http_{answer.status}", answer.reason)


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Headers of every answer that the library writes; a handler may say other ones itself."""
    if (request_id := request.get(REQUEST_ID)) is not None:
        response.headers["X-Request-Id"] = request_id
    response.headers.pop("Server", None)  # the library's
    for name, value in ALWAYS.items():
        response.headers.setdefault(name, value)


async def beat(desk: Desk) -> None:
    """The event loop's heartbeat, until cancelled. Sets the metrics of the loop."""
    while True:
        due = desk.clock.monotonic() + HEARTBEAT_S
        desk.heartbeat_at = desk.clock.monotonic()
        LOOP_HEARTBEAT.labels("event_loop", "").set_to_current_time()
        await desk.clock.sleep(HEARTBEAT_S)
        BLOCKING_SECONDS.set(max(0.0, desk.clock.monotonic() - due))
        TASKS.set(len(asyncio.all_tasks()))


def routes_for(listen: Listen) -> tuple[Route, ...]:
    """The main port's routes: `/metrics` is among them while only this machine can reach it."""
    return (*ROUTES, METRICS_ROUTE) if listen.loopback else ROUTES
