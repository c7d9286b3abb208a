"""What every route stands on: the services of this process, and the one form of an answer outside the protocol."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from facilitator.api.answers import Answer
from facilitator.api.delivery import Deliveries
from facilitator.api.overload import Gate
from facilitator.api.settings import Settings
from facilitator.clock import Clock, Timeouts
from facilitator.domain.limits import Breach
from facilitator.errors import StoreFault
from facilitator.finance.settings import Settings as FinanceSettings
from facilitator.metrics import LIMIT_REFUSALS
from facilitator.protocol.messages import Supported
from facilitator.settlement.engine import Engine
from facilitator.store.db import Db
from facilitator.store.tenants import Scope, Tenant
from facilitator.units import Address, Network

if TYPE_CHECKING:
    from facilitator.api.catalogue import Catalogue


class HttpProblem(Exception):
    """A request that is answered outside the protocol: `{"error": code, "message": …, "requestId": …}`."""

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None, more: Mapping[str, object] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}
        self.more = more or {}
        """Further keys of the body, for old clients."""

    def response(self, request_id: str) -> web.Response:
        """The answer."""
        body = {"error": self.code, "message": self.message, "requestId": request_id, **self.more}
        return json_response(body, self.status, self.headers)


def limited(breach: Breach, more: Mapping[str, object] | None = None) -> HttpProblem:
    """A limit's answer: 429 when it frees by itself, 403 when only another request or its operator helps."""
    facts = {"name": breach.limit, **breach.facts, "freesInSeconds": breach.frees_s}
    LIMIT_REFUSALS.labels(breach.limit).inc()
    if breach.frees_s is None:
        return HttpProblem(403, "limit_exceeded", breach.message, more={"limit": facts, **(more or {})})
    return HttpProblem(429, "too_many_requests", breach.message, {"Retry-After": str(breach.frees_s)}, {"limit": facts})


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Who asks, and what they may ask for."""

    tenant: Tenant
    scopes: frozenset[str]
    key_id: str | None
    """None in mode `open`."""

    @property
    def actor(self) -> str:
        """Who asks, as the audit trail has it."""
        return "open" if self.key_id is None else f"key {self.key_id}"

    @property
    def sees_all(self) -> bool:
        """Whether other tenants' settlements are visible."""
        return not self.scopes.isdisjoint({"finance", "admin"})


@dataclass(slots=True, kw_only=True)
class Desk:
    """What routes use. `engine` and `db` are None until the database was reached for the first time."""

    settings: Settings
    clock: Clock
    deliveries: Deliveries
    supported: Callable[[], Supported]
    """What is served, from configuration; needs neither database nor chain."""
    gates: Callable[[], Mapping[str, bool]]
    """Readiness, gate by gate."""
    finance: FinanceSettings = field(default_factory=FinanceSettings)
    decimals: Mapping[tuple[Network, Address], int] = field(default_factory=dict)
    """Of every token that is served."""
    catalogue: "Catalogue | None" = None
    engine: Engine | None = None
    db: Db | None = None
    timeouts: Timeouts = field(default_factory=Timeouts)
    gate: Gate = field(init=False)
    heartbeat_at: float = field(default=float("-inf"))
    """Monotonic time of the event loop's last heartbeat."""

    def __post_init__(self) -> None:
        self.gate = Gate(self.settings.judged_max, self.settings.retry_after_s)

    def need_engine(self) -> Engine:
        """The engine. Raises StoreFault while it cannot run."""
        if self.engine is None:
            raise StoreFault("starting", "the database was not reached yet")
        return self.engine

    def need_db(self) -> Db:
        """The database. Raises StoreFault until it was reached once."""
        if self.db is None:
            raise StoreFault("starting", "the database was not reached yet")
        return self.db


Handler = Callable[[Desk, web.Request, Grant], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One line of the route table."""

    method: str
    path: str
    handler: Handler
    scopes: tuple[Scope, ...] = ()
    """Any one of these opens it; empty: no key is asked for."""
    own_deadline: bool = False
    """Whether the handler ends by a deadline of its own rather than by `request_timeout_s`."""


_ENCODER = msgspec.json.Encoder(order="deterministic")


def json_response(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """A JSON answer."""
    return Answer(_ENCODER.encode(body), status, headers)
