"""Administration over HTTP: tenants with their rules and limits, and keys. Scope `admin` alone opens it.

Every change is made in `store/administration.py`, which writes it into the audit trail under the id of the key that asked.
A new key is in the answer that made it, once, and nowhere else.
"""

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, cast

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from facilitator.api.desk import Desk, Grant, HttpProblem, json_response
from facilitator.api.tokens import parse_public_key
from facilitator.api.x402 import read_json
from facilitator.domain.confirmation import ConfirmLevel
from facilitator.domain.limits import Limits, patched
from facilitator.store import administration, tenants
from facilitator.store.administration import NotPossible, Rules
from facilitator.store.tenants import ApiKey, Scope, Tenant, TenantRecord

_RULES: Final = ("shared_transactions", "accept_external", "trust_payment_identifier", "confirm_level", "accept_unscreened", "discoverable")

_OVERLAP_MAX_S: Final = 90 * 24 * 3600


class TenantChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Body of PATCH /admin/tenants/{id}: what is absent stays."""

    shared_transactions: bool | UnsetType = UNSET
    accept_external: bool | UnsetType = UNSET
    trust_payment_identifier: bool | UnsetType = UNSET
    confirm_level: ConfirmLevel | UnsetType | None = UNSET
    """Null: `settlement.confirm_level`."""
    accept_unscreened: bool | UnsetType = UNSET
    discoverable: bool | UnsetType = UNSET
    limits: dict[str, Any] | UnsetType = UNSET
    """A merge patch (RFC 7396): null ends a limit."""
    disabled: bool | UnsetType = UNSET


class NewTenant(TenantChange, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Body of POST /admin/tenants."""

    id: str


class NewApiKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Body of POST /admin/keys."""

    tenant: str
    scopes: Annotated[list[Scope], msgspec.Meta(min_length=1, max_length=len(tenants.SCOPES))]
    expires: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    public_key: str | None = None
    """PEM: requests are signed (JWT) instead of carrying a secret."""


class Rotation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """Body of POST /admin/keys/{id}/rotate."""

    overlap_seconds: Annotated[int, msgspec.Meta(ge=0, le=_OVERLAP_MAX_S)] = 24 * 3600
    """How long the old key works yet."""


async def list_tenants(desk: Desk, _request: web.Request, _grant: Grant) -> web.StreamResponse:
    """GET /admin/tenants: all, disabled ones too."""
    return json_response({"tenants": [tenant_facts(row) for row in await tenants.list_tenants(desk.need_db())]})


async def create_tenant(desk: Desk, request: web.Request, grant: Grant) -> web.StreamResponse:
    """POST /admin/tenants: one more, without keys yet."""
    asked = await read_json(desk, request, NewTenant)
    if asked.disabled is True:
        raise _invalid("disabled: a new tenant is not disabled")
    try:
        limits = patched(Limits(), {} if asked.limits is UNSET else asked.limits)
        tenant = Tenant(tenant_id=tenants.parse_tenant_id(asked.id), limits=limits, **_rules(asked))
    except ValueError as error:
        raise _invalid(str(error)) from None
    row = await administration.create_tenant(desk.need_db(), grant.actor, tenant)
    if row is None:
        raise HttpProblem(
            409, "exists", f"there is a tenant {tenant.tenant_id} already: PATCH /admin/tenants/{tenant.tenant_id} changes it"
        )
    return json_response(tenant_facts(row), 201)


async def change_tenant(desk: Desk, request: web.Request, grant: Grant) -> web.StreamResponse:
    """PATCH /admin/tenants/{id}: rules, limits, disabled or not; other processes notice within `access.refresh_s`."""
    asked = await read_json(desk, request, TenantChange)
    try:
        row = await administration.change_tenant(
            desk.need_db(),
            grant.actor,
            request.match_info["id"],
            _rules(asked),
            limits=None if asked.limits is UNSET else asked.limits,
            disabled=None if asked.disabled is UNSET else asked.disabled,
        )
    except ValueError as error:
        raise _invalid(str(error)) from None
    if row is None:
        raise HttpProblem(404, "not_found", "there is no such tenant")
    return json_response(tenant_facts(row))


async def list_keys(desk: Desk, request: web.Request, _grant: Grant) -> web.StreamResponse:
    """GET /admin/keys: all, dead ones too, or those of one tenant."""
    if wrong := set(request.query) - {"tenant"}:
        raise _invalid(f"expected no query parameter but tenant, got {min(wrong)[:64]!r}")
    rows = await tenants.list_api_keys(desk.need_db(), request.query.get("tenant"))
    return json_response({"keys": [key_facts(row) for row in rows]})


async def create_key(desk: Desk, request: web.Request, grant: Grant) -> web.StreamResponse:
    """POST /admin/keys: the answer is the only copy of the key."""
    asked = await read_json(desk, request, NewApiKey)
    if asked.expires is not None and asked.expires.timestamp() <= desk.clock.now():
        raise _invalid("expires: this time is past")
    try:
        new = tenants.generate_key() if asked.public_key is None else tenants.signing_key(parse_public_key(asked.public_key))
    except ValueError as error:
        raise _invalid(f"publicKey: {error}") from None
    scopes = list(dict.fromkeys(asked.scopes))
    try:
        row = await administration.create_key(desk.need_db(), grant.actor, new, asked.tenant, scopes, asked.expires)
    except NotPossible as reason:
        raise HttpProblem(404, "not_found", str(reason)) from None
    return json_response({"key": new.text, **key_facts(row)}, 201)


async def rotate_key(desk: Desk, request: web.Request, grant: Grant) -> web.StreamResponse:
    """POST /admin/keys/{id}/rotate: a key in the place of another, both valid for a while; the answer is the only copy of it."""
    asked, new = await read_json(desk, request, Rotation), tenants.generate_key()
    overlap = timedelta(seconds=asked.overlap_seconds)
    try:
        row = await administration.rotate_key(desk.need_db(), grant.actor, new, request.match_info["id"], overlap)
    except NotPossible as reason:
        raise HttpProblem(409, "not_possible", str(reason)) from None
    return json_response({"key": new.text, **key_facts(row)}, 201)


async def revoke_key(desk: Desk, request: web.Request, grant: Grant) -> web.StreamResponse:
    """DELETE /admin/keys/{id}: ends it; it stays on record. Idempotent."""
    row = await administration.revoke_key(desk.need_db(), grant.actor, request.match_info["id"])
    if row is None:
        raise HttpProblem(404, "not_found", "there is no such key")
    return json_response(key_facts(row))


def tenant_facts(row: TenantRecord) -> dict[str, object]:
    """A tenant as it is shown."""
    return {
        "id": row.tenant_id,
        "created": _time(row.created_at),
        "disabled": _time(row.disabled_at),
        "confirmLevel": row.confirm_level,
        "sharedTransactions": row.shared_transactions,
        "acceptExternal": row.accept_external,
        "trustPaymentIdentifier": row.trust_payment_identifier,
        "acceptUnscreened": row.accept_unscreened,
        "discoverable": row.discoverable,
        "limits": json.loads(row.limits),
    }


def key_facts(row: ApiKey) -> dict[str, object]:
    """A key as it is shown."""
    return {
        "id": row.key_id,
        "tenant": row.tenant_id,
        "scopes": list(row.scopes),
        "created": _time(row.created_at),
        "expires": _time(row.expires_at),
        "revoked": _time(row.revoked_at),
        "lastUsed": _time(row.last_used_at),
        "replaces": row.replaces,
        "publicKey": row.public_key,
    }


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _rules(asked: TenantChange) -> Rules:
    return cast("Rules", {name: getattr(asked, name) for name in _RULES if getattr(asked, name) is not UNSET})


def _invalid(message: str) -> HttpProblem:
    return HttpProblem(400, "invalid_request", message)
