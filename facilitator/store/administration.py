"""Changes of tenants and keys, each committed together with its line in the audit trail: who, what, before, after.

Whoever administers goes through here, the command line and the API alike. No secret of a key is ever in the trail, nor
its hash.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Final, TypedDict

from facilitator.domain.confirmation import ConfirmLevel
from facilitator.domain.limits import patched
from facilitator.store import tenants
from facilitator.store.db import ConstraintViolated, Db, Session
from facilitator.store.seals import record_event
from facilitator.store.tenants import ApiKey, NewKey, Scope, Tenant, TenantRecord

_REPLACED_ONCE: Final = "api_key_replaced_once"


class Rules(TypedDict, total=False):
    """Those of a tenant's rules that are to change."""

    shared_transactions: bool
    accept_external: bool
    trust_payment_identifier: bool
    confirm_level: ConfirmLevel | None
    accept_unscreened: bool
    discoverable: bool


class NotPossible(Exception):
    """The change cannot be made; the text says why."""


async def create_tenant(db: Db, actor: str, tenant: Tenant) -> TenantRecord | None:
    """Make a tenant. None when one of that id exists, which is left as it is."""
    async with db.transaction() as session:
        return await _create_tenant(session, actor, tenant)


async def _create_tenant(session: Session, actor: str, tenant: Tenant) -> TenantRecord | None:
    if not await tenants.create_tenant(session, tenant):
        return None
    row = await tenants.find_record(session, tenant.tenant_id)
    await _record(session, "tenant_created", actor, tenant.tenant_id, None, row)
    return row


async def change_tenant(
    db: Db,
    actor: str,
    tenant_id: str,
    rules: Rules,
    *,
    limits: Mapping[str, object] | None = None,
    disabled: bool | None = None,
) -> TenantRecord | None:
    """Replace some rules, patch limits (RFC 7396), disable or enable; what is not given stays. None: there is no such tenant.

    What changes nothing leaves no trace. Raises ValueError for limits that cannot be.
    """
    async with db.transaction() as session:
        before = await tenants.lock_tenant(session, tenant_id)
        if before is None:
            return None
        tenant = replace(before.tenant, **rules)
        if limits is not None:
            tenant = replace(tenant, limits=patched(tenant.limits, limits))
        after = await tenants.store_tenant(session, tenant, disabled=before.disabled_at is not None if disabled is None else disabled)
        if after != before:
            await _record(session, "tenant_changed", actor, tenant_id, before, after)
        return after


async def create_key(
    db: Db, actor: str, new: NewKey, tenant_id: str, scopes: Sequence[Scope], expires_at: datetime | None, *, make_tenant: bool = False
) -> ApiKey:
    """Put a key on record, and its tenant if it is new and `make_tenant`. Raises NotPossible without a tenant."""
    async with db.transaction() as session:
        if make_tenant:
            await _create_tenant(session, actor, Tenant(tenant_id=tenant_id))
        elif await tenants.find_record(session, tenant_id) is None:
            raise NotPossible(f"there is no tenant {tenant_id}")
        row = await tenants.create_api_key(session, new, tenant_id, scopes, expires_at)
        await _record(session, "key_created", actor, row.key_id, None, row)
        return row


async def rotate_key(db: Db, actor: str, new: NewKey, key_id: str, overlap: timedelta) -> ApiKey:
    """Put a key on record in the place of another, which lives for `overlap` yet. Raises NotPossible for one that is dead or replaced."""
    async with db.transaction() as session:
        before = await tenants.lock_api_key(session, key_id)
        if before is None:
            raise NotPossible(f"there is no key {key_id}")
        if before.public_key is not None:
            raise NotPossible(f"key {key_id} signs requests: make another with the next public key, then revoke this one")
        try:
            row = await tenants.replace_api_key(session, new, key_id)
        except ConstraintViolated as violated:
            if violated.constraint == _REPLACED_ONCE:
                raise NotPossible(f"key {key_id} was replaced before: rotate the key that took its place") from None
            raise
        if row is None:
            raise NotPossible(f"key {key_id} is expired or revoked: make a new one")
        after = await tenants.end_api_key(session, key_id, overlap)
        await _record(session, "key_created", actor, row.key_id, None, row)
        await _record(session, "key_rotated", actor, key_id, before, after)
        return row


async def revoke_key(db: Db, actor: str, key_id: str) -> ApiKey | None:
    """End a key now. None when there is no such key. Idempotent."""
    async with db.transaction() as session:
        before = await tenants.lock_api_key(session, key_id)
        after = await tenants.revoke_api_key(session, key_id)
        if after is not None and after != before:
            await _record(session, "key_revoked", actor, key_id, before, after)
        return after


async def _record(
    session: Session, kind: str, actor: str, subject: str, before: TenantRecord | ApiKey | None, after: TenantRecord | ApiKey | None
) -> None:
    detail = {"subject": subject, "before": before and _facts(before), "after": after and _facts(after)}
    await record_event(session, kind, actor, json.dumps(detail, sort_keys=True, separators=(",", ":")))


def _facts(row: TenantRecord | ApiKey) -> dict[str, object]:
    """A row for the trail. When a key was last used is nobody's change."""
    plain = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in asdict(row).items()}
    plain.pop("last_used_at", None)
    if isinstance(row, TenantRecord):
        plain["limits"] = json.loads(row.limits)
    return plain
