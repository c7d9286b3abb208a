"""Who asks, and may they? API keys to tenant and scope, from memory; the rates of one key's and one tenant's requests.

Known keys are read again in the background, so a request costs no query and a revoked key ends within `refresh_s`.
When the store is away they are believed for `stale_max_s` after the last contact, and not longer (docs/architecture.md decision 9).
A key must never be logged, not even a wrong one: its id may be.
"""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Self

from aiohttp import hdrs, web
from multidict import istr

from facilitator.api import tokens
from facilitator.api.desk import Grant, HttpProblem, limited
from facilitator.api.settings import AccessSettings
from facilitator.clock import Clock
from facilitator.domain.limits import Bucket, too_fast
from facilitator.errors import Fault, StoreFault
from facilitator.metrics import LOOP_HEARTBEAT, LOOP_RESTARTS
from facilitator.store import tenants
from facilitator.store.db import Db
from facilitator.store.tenants import SCOPES, LiveKey, Scope, Tenant
from facilitator.telemetry import get_logger

_log = get_logger()

OPEN_TENANT: Final = Tenant(tenant_id="open")
"""Everybody's tenant in mode `open`."""
_OPEN: Final = Grant(tenant=OPEN_TENANT, scopes=frozenset(SCOPES), key_id=None)
_KEY_HEADER: Final = istr("X-API-Key")
_TOUCH_S: Final = 60.0
_REFRESH_GROUP: Final = 1000
_CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="facilitator"'}


@dataclass(slots=True)
class _Known:
    """A live key in memory, and what it grants."""

    key: LiveKey
    grant: Grant
    used: bool = False
    """Since the last time that use was written down."""

    @classmethod
    def of(cls, key: LiveKey, *, used: bool) -> Self:
        """A request pays for neither."""
        return cls(key, Grant(tenant=key.tenant, scopes=frozenset(key.scopes), key_id=key.key_id), used)


class Access:
    """The keys of this process. `run` keeps them fresh."""

    def __init__(self, settings: AccessSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._db: Db | None = None
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._unknown: OrderedDict[str, float] = OrderedDict()
        self._lookups: dict[str, asyncio.Task[_Known | None]] = {}
        self._looking = asyncio.Semaphore(settings.lookups_max)
        self._refreshing: asyncio.Task[None] | None = None
        self._contact_at = float("-inf")
        self._touched_at = clock.monotonic()
        self._token_uses = tokens.Uses()
        self._buckets: OrderedDict[tuple[str, str], Bucket] = OrderedDict()

    def connect(self, db: Db) -> None:
        """The store is there; until now every key is answered 503."""
        self._db = db

    async def admit(self, request: web.Request, path: str, scopes: tuple[Scope, ...]) -> Grant:
        """The caller's grant. Raises HttpProblem 401, 403 or 429, or StoreFault when nobody can tell who it is."""
        grant = await self._identify(request, path)
        if grant.scopes.isdisjoint(scopes) and "admin" not in grant.scopes:
            raise HttpProblem(403, "forbidden", f"this key has no scope for {path}: it needs {' or '.join(scopes)}")
        if self._settings.rate_per_s is not None:
            who = f"key {grant.key_id}" if grant.key_id else "everybody together"
            self._meter("access.rate_per_s", who, path, self._settings.rate_per_s, self._settings.rate_burst)
        if (rate := grant.tenant.limits.rates.get(path)) is not None:
            self._meter(f"rates.{path}", f"tenant {grant.tenant.tenant_id}", path, rate.per_second, rate.burst)
        return grant

    async def _identify(self, request: web.Request, path: str) -> Grant:
        if self._settings.mode == "open":
            return _OPEN
        text = _presented(request)
        if text is None:
            raise HttpProblem(401, "unauthorized", "send an API key as `Authorization: Bearer KEY` or `X-API-Key: KEY`", _CHALLENGE)
        presented = tenants.parse_key(text)
        key_id = _key_of_token(text) if presented is None else presented.key_id
        known = None if key_id is None else await self._find(key_id)
        if (
            known is None
            or self._expired(known.key)
            or not (await self._signed(request, path, text, known.key) if presented is None else known.key.opens_with(presented))
        ):
            raise HttpProblem(401, "unauthorized", "this API key or token is unknown, expired, used, revoked or not for this", _CHALLENGE)
        return known.grant

    async def _signed(self, request: web.Request, path: str, token: str, key: LiveKey) -> bool:
        """Whether this token was signed with that key for this very request, and is used for the first time at any replica.

        Without the store only `/verify` goes by this process's own memory, for it changes nothing. Raises StoreFault.
        """
        if key.public_key is None:
            return False
        now = self._clock.now()
        uris = [f"{request.method} {base}{request.path}" for base in self._settings.jwt_bases]
        use = tokens.single_use(token, key.key_id, key.public_key, uris, now)
        if use is None or not self._token_uses.first(key.key_id, use, now):
            return False
        try:
            return await tenants.use_token(self._need_db(), key.key_id, use, tokens.KEPT_S)
        except StoreFault:
            if path == "/verify":
                return True
            raise

    def _expired(self, key: LiveKey) -> bool:
        return key.expires_at is not None and key.expires_at.timestamp() <= self._clock.now()

    async def _find(self, key_id: str) -> _Known | None:
        """From memory while that may be believed, else from the store."""
        now = self._clock.monotonic()
        if now - self._contact_at > self._settings.stale_max_s and (self._known or self._unknown):
            await self._refresh_once()  # raises StoreFault: what we remember is too old to be believed
        known = self._known.get(key_id)
        if known is not None:
            known.used = True
            self._known.move_to_end(key_id)
            return known
        if self._unknown.get(key_id, float("-inf")) > now:
            return None
        lookup = self._lookups.get(key_id)
        if lookup is None:
            lookup = self._lookups[key_id] = asyncio.create_task(self._look_up(key_id))
            lookup.add_done_callback(lambda task: self._looked_up(key_id, task))
        return await asyncio.shield(lookup)

    def _looked_up(self, key_id: str, task: asyncio.Task[_Known | None]) -> None:
        self._lookups.pop(key_id, None)
        if not task.cancelled():
            task.exception()  # seen, also when every caller has gone

    async def _look_up(self, key_id: str) -> _Known | None:
        async with self._looking:
            found = await tenants.find_api_keys(self._need_db(), [key_id])
        self._contact_at = max(self._contact_at, self._clock.monotonic())
        if not found:
            self._unknown[key_id] = self._clock.monotonic() + self._settings.unknown_ttl_s
            _trim(self._unknown, self._settings.unknown_max)
            return None
        known = self._known[key_id] = _Known.of(found[0], used=True)
        _trim(self._known, self._settings.keys_max)
        return known

    def _need_db(self) -> Db:
        if self._db is None:
            raise StoreFault("starting", "the database was not reached yet")
        return self._db

    # ---- in the background

    async def run(self) -> None:
        """Keep known keys fresh and write down which were used, until cancelled. Store faults are waited out."""
        while True:
            LOOP_HEARTBEAT.labels("access", "").set_to_current_time()
            await self._clock.sleep(self._settings.refresh_s)
            try:
                await self._refresh_once()
                await self._touch()
            except Fault as fault:
                _log.warning("access.refresh_failed", fault=fault.kind)
            except Exception:  # noqa: BLE001 (a loop's top)
                _log.exception("loop.crashed", loop="access")
                LOOP_RESTARTS.labels("access").inc()

    async def stop(self) -> None:
        """Write down the last uses."""
        try:
            self._touched_at = float("-inf")
            await self._touch()
        except Fault as fault:
            _log.warning("access.touch_failed", fault=fault.kind)

    async def _refresh_once(self) -> None:
        """Refresh; callers that want it at the same moment share one."""
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._refresh())
            self._refreshing.add_done_callback(self._refreshed)
        await asyncio.shield(self._refreshing)

    def _refreshed(self, task: asyncio.Task[None]) -> None:
        self._refreshing = None
        if not task.cancelled():
            task.exception()  # seen, also when every caller has gone

    async def _refresh(self) -> None:
        """Read all known keys again. What is dead by now is forgotten."""
        key_ids = list(self._known)
        for start in range(0, max(len(key_ids), 1), _REFRESH_GROUP):
            group = key_ids[start : start + _REFRESH_GROUP]
            asked_at = self._clock.monotonic()
            alive = {key.key_id: key for key in await tenants.find_api_keys(self._need_db(), group)}
            for key_id in group:
                try:
                    if key_id in alive and key_id in self._known:
                        self._known[key_id] = _Known.of(alive[key_id], used=self._known[key_id].used)
                        continue
                except StoreFault as fault:  # of this tenant alone
                    _log.warning("access.limits_unread", key_id=key_id, tenant=alive[key_id].tenant_id, fault=str(fault))
                self._known.pop(key_id, None)
            self._contact_at = asked_at

    async def _touch(self) -> None:
        if self._clock.monotonic() - self._touched_at < _TOUCH_S:
            return
        used = [known for known in self._known.values() if known.used]
        if used:
            await tenants.touch_api_keys(self._need_db(), [known.key.key_id for known in used])
            for known in used:
                known.used = False
        await tenants.forget_tokens(self._need_db())
        self._touched_at = self._clock.monotonic()

    # ---- rate

    def _meter(self, limit: str, who: str, path: str, per_second: float, burst: int) -> None:
        now = self._clock.monotonic()
        bucket = self._buckets.setdefault((who, path), Bucket(burst, now))
        self._buckets.move_to_end((who, path))
        _trim(self._buckets, self._settings.keys_max)
        wait_s = bucket.take(per_second, burst, now)
        if wait_s is not None:
            raise limited(too_fast(limit, who, path, per_second, burst, wait_s))


def _key_of_token(text: str) -> str | None:
    """The key that a signed token names, if that can be one."""
    key_id = tokens.key_id_of(text)
    return key_id if key_id is not None and tenants.is_key_id(key_id) else None


def _presented(request: web.Request) -> str | None:
    """The key as it was sent. Two different keys in one request are one too many: then neither counts."""
    keys, credentials = request.headers.getall(_KEY_HEADER, ()), request.headers.getall(hdrs.AUTHORIZATION, ())
    if not keys and len(credentials) == 1:
        return _bearer(credentials[0])
    given = {key.strip() for key in keys} | {_bearer(value) for value in credentials}
    return given.pop() if len(given) == 1 else None


def _bearer(credentials: str) -> str:
    """The key of an `Authorization` header, empty for another kind."""
    kind, _, key = credentials.strip().partition(" ")
    return key.strip() if kind.lower() == "bearer" else ""


def _trim(entries: "OrderedDict[str, _Known] | OrderedDict[str, float] | OrderedDict[tuple[str, str], Bucket]", most: int) -> None:
    while len(entries) > most:
        entries.popitem(last=False)
