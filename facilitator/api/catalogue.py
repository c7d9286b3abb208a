"""The catalogue of what sellers let be listed (extension `bazaar`): noted beside the payments, written in groups, read by anybody.

Nothing here holds a payment up or changes its answer: what cannot be listed is told in `EXTENSION-RESPONSES`, and what there
is no room for is dropped. A listing appears with the first payment that was made for it; verified ones keep it alive.
"""

import base64
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

import structlog
from aiohttp import web

from facilitator.api.desk import Desk, Grant, HttpProblem, json_response, limited
from facilitator.api.settings import DiscoverySettings
from facilitator.clock import Clock
from facilitator.domain.limits import Bucket, too_fast
from facilitator.errors import StoreFault
from facilitator.metrics import LISTINGS_DROPPED, LISTINGS_NOTED
from facilitator.protocol import v1
from facilitator.protocol.address import checksum_address
from facilitator.protocol.bazaar import UnlistedError, read_listing
from facilitator.protocol.messages import BAZAAR, Payment
from facilitator.settlement.tasks import beat
from facilitator.store import listings
from facilitator.store.db import Db
from facilitator.store.listings import Filters, Noted, Row
from facilitator.store.tenants import Tenant
from facilitator.units import Network, parse_address, parse_network

FILTERS: Final = ("type", "payTo", "scheme", "network", "extensions")
LIST_PARAMETERS: Final = (*FILTERS, "limit", "offset")
SEARCH_PARAMETERS: Final = ("query", *FILTERS, "limit", "cursor")
HEADER: Final = "EXTENSION-RESPONSES"
_PAGE: Final = 20
_QUERY_CHARS_MAX: Final = 200
_NUMBER_MAX: Final = 1_000_000
"""Largest limit, offset or cursor that is read."""
_EXPIRE_S: Final = 3600.0
"""How often listings are looked at that nobody paid for any more."""
_Key = tuple[str, str, str, str]

log = structlog.get_logger(__name__)


class Catalogue:
    """What one process has seen and not written yet, and who reads how fast. `run` writes."""

    def __init__(self, settings: DiscoverySettings, clock: Clock) -> None:
        self.settings: Final = settings
        self._clock = clock
        self._pending: dict[_Key, Noted] = {}
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def note(self, tenant: Tenant, payment: Payment, *, settled: bool) -> Mapping[str, str]:
        """Take note of what a good payment offers to be listed. Returns the headers that say what became of it."""
        if payment.offer is None or not self.settings.enabled:
            return {}
        if not tenant.discoverable:
            return _told("rejected", "this seller's account is not listed")
        try:
            return self._note(tenant, payment, settled=settled)
        except UnlistedError as why:
            return _told("rejected", str(why))
        except Exception:  # whatever a stranger wrote: the money has moved, and its answer is due
            log.exception("listing.crashed")
            return {}

    def _note(self, tenant: Tenant, payment: Payment, *, settled: bool) -> Mapping[str, str]:
        """`note`, of what is for listing. Raises UnlistedError."""
        listing = read_listing(payment, entry_bytes_max=self.settings.entry_bytes_max, private_hosts=self.settings.private_hosts)
        if listing is None:
            return {}
        key = (tenant.tenant_id, listing.resource, listing.kind, listing.operation)
        before = self._pending.get(key)
        if before is None and len(self._pending) >= self.settings.pending_max:
            LISTINGS_DROPPED.inc()
            return _told("rejected", "too much is being listed; it is listed with a later payment")
        if before is not None and before.settled and not settled:
            return _told("processing")  # what a settled payment said counts more
        self._pending[key] = Noted(tenant_id=tenant.tenant_id, listing=listing, settled=(before.settled if before else 0) + settled)
        return _told("processing")

    async def run(self, db: Db) -> None:
        """Write what was noted every `flush_s`, and forget what is old, until cancelled. What a fault keeps is tried again."""
        expired_at = float("-inf")
        while True:
            beat("catalogue")
            await self._clock.sleep(self.settings.flush_s)
            await self.flush(db)
            if self._clock.monotonic() - expired_at >= _EXPIRE_S:
                await listings.expire(db, self.settings.expire_s)
                expired_at = self._clock.monotonic()

    async def flush(self, db: Db) -> None:
        """Write what was noted. Raises StoreFault; then it is still noted."""
        noted, self._pending = self._pending, {}
        if not noted:
            return
        try:
            settings = self.settings
            new = await listings.note(
                db, list(noted.values()), per_tenant_max=settings.entries_per_tenant_max, total_max=settings.entries_max
            )
        except StoreFault:
            for key, late in self._pending.items():
                before = noted.get(key)
                noted[key] = replace(late, settled=late.settled + (before.settled if before else 0))
            self._pending = noted
            raise
        LISTINGS_NOTED.inc(len(noted))
        if new:
            log.info("listings.added", listings=new)

    def meter(self, request: web.Request) -> None:
        """One more request from this address. Raises HttpProblem 429."""
        settings, now, who = self.settings, self._clock.monotonic(), request.remote or ""
        bucket = self._buckets.setdefault(who, Bucket(settings.rate_burst, now))
        self._buckets.move_to_end(who)
        if len(self._buckets) > settings.addresses_max:
            self._buckets.popitem(last=False)
        wait_s = bucket.take(settings.rate_per_s, settings.rate_burst, now)
        if wait_s is not None:
            raise limited(too_fast("discovery.rate_per_s", "one address", "/discovery", settings.rate_per_s, settings.rate_burst, wait_s))


def _told(status: str, reason: str | None = None) -> Mapping[str, str]:
    said = {BAZAAR: {"status": status, **({} if reason is None else {"rejectedReason": reason})}}
    return {HEADER: base64.b64encode(json.dumps(said, separators=(",", ":")).encode()).decode()}


# ---- routes


async def resources(desk: Desk, request: web.Request, _grant: Grant) -> web.StreamResponse:
    """GET /discovery/resources: what is listed, page by page."""
    catalogue, query = _open(desk, request, LIST_PARAMETERS)
    filters, limit = _filters(query), _limit(query, catalogue.settings)
    offset = _number(query, "offset", 0)
    db = desk.need_db()
    rows, total = await listings.page(db, filters, limit, offset), await listings.count(db, filters)
    pagination = {"limit": limit, "offset": offset, "total": total}
    return json_response({"x402Version": 2, "items": [_item(row) for row in rows], "pagination": pagination})


async def search(desk: Desk, request: web.Request, _grant: Grant) -> web.StreamResponse:
    """GET /discovery/search: what says any of the words."""
    catalogue, query = _open(desk, request, SEARCH_PARAMETERS)
    words = query.get("query", "").strip()
    if not 1 <= len(words) <= _QUERY_CHARS_MAX or "\x00" in words:
        raise _wrong("query", f"expected 1 to {_QUERY_CHARS_MAX} characters")
    limit, offset = _limit(query, catalogue.settings), _number(query, "cursor", 0)
    rows = await listings.search(desk.need_db(), _filters(query), words, limit + 1, offset)
    more = len(rows) > limit
    pagination = {"limit": limit, "cursor": str(offset + limit) if more else None}
    return json_response(
        {"x402Version": 2, "resources": [_item(row) for row in rows[:limit]], "partialResults": more, "pagination": pagination}
    )


def _open(desk: Desk, request: web.Request, known: tuple[str, ...]) -> tuple[Catalogue, Mapping[str, str]]:
    """The catalogue and the parameters that we know; others are another facilitator's, and narrow nothing here."""
    catalogue = desk.catalogue
    if catalogue is None or not catalogue.settings.enabled:
        raise HttpProblem(404, "not_found", "this facilitator keeps no catalogue")
    catalogue.meter(request)
    for name in known:
        if len(request.query.getall(name, [])) > 1:
            raise _wrong(name, "expected once")
    return catalogue, {name: request.query[name] for name in known if name in request.query}


def _item(row: Row) -> dict[str, object]:
    """A listing as the official clients read it; `quality` is ours."""
    return {
        "resource": row.resource,
        "type": row.kind,
        "x402Version": row.version,
        "accepts": json.loads(row.prices),
        "lastUpdated": _rfc3339(row.last_seen_at),
        **json.loads(row.entry),
        "quality": {"settledPayments": row.settled, "lastSettled": _rfc3339(row.last_settled_at)},
    }


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _filters(query: Mapping[str, str]) -> Filters:
    price: dict[str, str] = {}
    if "payTo" in query:
        try:
            price["payTo"] = checksum_address(parse_address(query["payTo"]))
        except ValueError as error:
            raise _wrong("payTo", str(error)) from None
    if "scheme" in query:
        price["scheme"] = _short(query, "scheme")
    spelled = [price]
    if "network" in query:
        spelled = [{**price, "network": name} for name in _spellings(_short(query, "network"))]
    return Filters(
        kind=_short(query, "type") if "type" in query else None,
        prices=[json.dumps([each]) for each in spelled] if any(spelled) else None,
        extension=_short(query, "extensions") if "extensions" in query else None,
    )


def _spellings(network: str) -> list[str]:
    """CAIP-2 and the nickname of version 1 mean the same network."""
    try:
        found = v1.parse_network(network) or parse_network(network)
    except ValueError:
        return [network]
    nickname = v1.render_network(Network(found))
    return [found] if nickname is None else [found, nickname]


def _short(query: Mapping[str, str], name: str) -> str:
    if len(query[name]) > 64 or not query[name].isprintable():
        raise _wrong(name, "expected at most 64 characters")
    return query[name]


def _limit(query: Mapping[str, str], settings: DiscoverySettings) -> int:
    """Clients ask for more than anybody gives: they get what we give."""
    return max(1, min(_number(query, "limit", _PAGE), settings.page_max))


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 7 and int(text) <= _NUMBER_MAX):
        raise _wrong(name, f"expected an integer from 0 to {_NUMBER_MAX}")
    return int(text)


def _wrong(name: str, expected: str) -> HttpProblem:
    return HttpProblem(400, "invalid_request", f"query parameter {name}: {expected}")
