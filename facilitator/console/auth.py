"""Signing in and out: by a one-time link, or by OpenID Connect; each leaves its line in the audit trail.

A session is a random secret in a cookie; Postgres holds its hash. Signing in always makes a new one and ends the one that
the browser had. It must never log or store a secret, nor send somebody to another host after a sign-in.
"""

import json
from collections import OrderedDict
from typing import Final
from urllib.parse import urlencode

from aiohttp import web

from facilitator.console.desk import Desk, Refused, Visit, local_path, see
from facilitator.console.oidc import Provider, SignInFault
from facilitator.console.roles import Role, parse_role
from facilitator.console.secrets import hash_of, is_secret, new_secret
from facilitator.domain.limits import Bucket
from facilitator.store import console
from facilitator.store.seals import record_event
from facilitator.telemetry import annotate

_FLOW: Final = "sign-in"
"""Name of the cookie that ties an answer of the provider to the browser that asked."""
_FLOW_LIFE_S: Final = 600
_TOUCH_S: Final = 60.0
"""How precisely it is known when a session was last seen."""
_ADDRESSES_MAX: Final = 10_000


class Door:
    """Who is signed in; the routes that need no session."""

    def __init__(self, desk: Desk, provider: Provider | None) -> None:
        self._desk = desk
        self._provider = provider
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    @property
    def secure(self) -> bool:
        """Whether browsers reach us by https."""
        return self._desk.settings.url is not None

    # ---- sessions

    async def visit(self, request: web.Request) -> Visit | None:
        """The visit of this request's session; None: nobody is signed in."""
        secret = request.cookies.get(self._cookie("session"), "")
        if not is_secret(secret):
            return None
        settings, db = self._desk.settings, self._desk.need_db()
        session = await console.find_session(db, hash_of(secret), settings.session_idle_s)
        if session is None:
            return None
        if session.idle_s > min(_TOUCH_S, settings.session_idle_s / 2):
            await console.touch_session(db, hash_of(secret))
        annotate(person=session.person, role=session.role)
        return Visit(request=request, person=session.person, role=parse_role(session.role), secret=secret)

    async def refuse(self, visit: Visit, path: str) -> None:
        """Put on record that somebody's role did not allow a page."""
        detail = json.dumps({"page": path, "role": visit.role})
        await record_event(self._desk.need_db(), "console_refused", visit.person, detail)

    async def _admit(self, request: web.Request, person: str, role: Role, method: str, link_sha256: bytes | None = None) -> web.Response:
        """A new session in place of the one that the browser had. With a link, the caller's transaction has used it up."""
        settings = self._desk.settings
        secret, old = new_secret(), request.cookies.get(self._cookie("session"), "")
        async with self._desk.need_db().transaction() as session:
            if link_sha256 is not None:
                invited = await console.use_link(session, link_sha256)
                if invited is None:
                    raise Refused(403, "This link is unknown, used or too old. Ask for another one.")
                person, role = invited.person, parse_role(invited.role)
            await console.end_session(session, hash_of(old))
            await console.start_session(session, hash_of(secret), person, role, method, settings.session_life_s)
            await record_event(session, "console_signed_in", person, json.dumps({"role": role, "method": method}))
        answer = see(local_path(request.cookies.get(self._cookie("next"), "/")))
        self._set(answer, "session", secret, None)
        if self._cookie("next") in request.cookies:
            self._clear(answer, "next")
        return answer

    # ---- routes

    async def sign_in(self, request: web.Request) -> web.StreamResponse:
        """GET /sign-in: how to. With `token` of a one-time link it asks for a click, so that a preview of the link does not use it up."""
        answer = self._desk.render(None, "sign_in.html", token=request.query.get("token", ""), oidc=self._provider is not None)
        if "next" in request.query:
            self._set(answer, "next", local_path(request.query["next"]), _FLOW_LIFE_S)
        return answer

    async def open_link(self, request: web.Request, form: dict[str, str]) -> web.StreamResponse:
        """POST /sign-in: use a one-time link up."""
        self._meter(request)
        token = form.get("token", "")
        try:
            return await self._admit(request, "", "viewer", "link", hash_of(token))
        except Refused:
            await record_event(self._desk.need_db(), "console_sign_in_failed", _peer(request), json.dumps({"method": "link"}))
            raise

    async def go_to_provider(self, request: web.Request) -> web.StreamResponse:
        """GET /sign-in/oidc: to the provider."""
        self._meter(request)
        provider, flow = self._need_provider(), new_secret()
        try:
            answer = see(await provider.authorization_url(flow, self._callback(request)))
        except SignInFault as fault:
            raise Refused(503, f"Nobody can sign in this way now: {fault}.") from None
        self._set(answer, _FLOW, flow, _FLOW_LIFE_S)
        return answer

    async def come_back(self, request: web.Request) -> web.StreamResponse:
        """GET /sign-in/callback: from the provider."""
        self._meter(request)
        provider, flow = self._need_provider(), request.cookies.get(self._cookie(_FLOW), "")
        try:
            found = await provider.redeem(flow if is_secret(flow) else None, self._callback(request), request.query)
        except SignInFault as fault:
            await record_event(
                self._desk.need_db(), "console_sign_in_failed", _peer(request), json.dumps({"method": "oidc", "why": str(fault)})
            )
            raise Refused(403, f"You are not signed in: {fault}.") from None
        answer = await self._admit(request, found.person, found.role, "oidc")
        self._clear(answer, _FLOW)
        return answer

    async def sign_out(self, _desk: Desk, visit: Visit) -> web.StreamResponse:
        """POST /sign-out: here, or with `everywhere` in every browser of this person."""
        everywhere = "everywhere" in visit.form
        async with self._desk.need_db().transaction() as session:
            if everywhere:
                await console.end_sessions_of(session, visit.person)
            else:
                await console.end_session(session, hash_of(visit.secret))
            await record_event(session, "console_signed_out", visit.person, json.dumps({"everywhere": everywhere}))
        answer = see("/sign-in")
        self._clear(answer, "session")
        return answer

    # ---- how

    def _need_provider(self) -> Provider:
        if self._provider is None:
            raise Refused(404, "There is no such page: OpenID Connect is not configured.")
        return self._provider

    def _callback(self, request: web.Request) -> str:
        return f"{self.origin(request)}/sign-in/callback"

    def origin(self, request: web.Request) -> str:
        """Where browsers reach us. Raises Refused for a request that came by another name (DNS rebinding)."""
        if self._desk.settings.url is not None:
            origin = self._desk.settings.url.rstrip("/")
            if request.host.lower() != origin.partition("://")[2]:
                raise Refused(421, "The console is not served under this name.")
            return origin
        name = request.host.rpartition(":")[0] or request.host
        if name not in {"127.0.0.1", "localhost", "[::1]"}:
            raise Refused(421, "The console is not served under this name.")
        return f"http://{request.host}"

    def _meter(self, request: web.Request) -> None:
        """Raises Refused when one address tries too often."""
        settings, now = self._desk.settings, self._desk.clock.monotonic()
        bucket = self._buckets.setdefault(_peer(request), Bucket(settings.sign_ins_burst, now))
        self._buckets.move_to_end(_peer(request))
        while len(self._buckets) > _ADDRESSES_MAX:
            self._buckets.popitem(last=False)
        wait_s = bucket.take(settings.sign_ins_per_s, settings.sign_ins_burst, now)
        if wait_s is not None:
            raise Refused(429, "Too many attempts to sign in. Try again in a moment.", {"Retry-After": str(int(wait_s) + 1)})

    def _cookie(self, name: str) -> str:
        return f"__Host-{name}" if self.secure else f"facilitator-{name}"

    def _set(self, answer: web.StreamResponse, name: str, value: str, max_age_s: int | None) -> None:
        answer.set_cookie(self._cookie(name), value, max_age=max_age_s, path="/", secure=self.secure, httponly=True, samesite="Lax")

    def _clear(self, answer: web.StreamResponse, name: str) -> None:
        answer.del_cookie(self._cookie(name), path="/", secure=self.secure, httponly=True, samesite="Lax")


def sign_in_address(request: web.Request) -> str:
    """Where somebody signs in to come back to this page."""
    return "/sign-in?" + urlencode({"next": request.path_qs}) if request.method == "GET" and request.path != "/" else "/sign-in"


def _peer(request: web.Request) -> str:
    return request.remote or "unknown"
