"""Tenants and API keys: who may ask, and what they may ask for.

A key reads `fk_<key_id>_<secret>`. The id finds the row; of the secret only its SHA-256 is stored. A slow hash would
gain nothing: the secret is 256 random bits, so there is no dictionary to try, and every request pays for the hash.
Whole keys must never be logged or stored; they exist in `NewKey.text` once, when they are made.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final, Literal

import msgspec

from facilitator.domain.confirmation import ConfirmLevel
from facilitator.domain.limits import Limits, decode_limits, encode_limits
from facilitator.errors import StoreFault
from facilitator.store.db import Db, Session, load_queries

_QUERIES: Final = load_queries("tenants")

Scope = Literal["verify", "settle", "read", "finance", "admin"]
SCOPES: Final[tuple[Scope, ...]] = ("verify", "settle", "read", "finance", "admin")

_ID_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz0123456789"
_KEY: Final = re.compile(r"fk_(?P<key_id>[a-z0-9]{12})_(?P<secret>[A-Za-z0-9_-]{43})", re.ASCII)
_KEY_ID: Final = re.compile(r"[a-z0-9]{12}", re.ASCII)
_TENANT_ID: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """Whose payments these are, and the tenant's own rules for them."""

    tenant_id: str
    shared_transactions: bool = True
    """Whether its payments may share a transaction with others'."""
    accept_external: bool = False
    """Whether a payment executed by another sender is answered as success (docs/architecture.md decision 6)."""
    trust_payment_identifier: bool = False
    """Whether the buyer's `payment-identifier` may stand for an Idempotency-Key (docs/architecture.md decision 5)."""
    confirm_level: ConfirmLevel | None = None
    """How deep its payments must be before success is told; None: `settlement.confirm_level`."""
    limits: Limits = field(default_factory=Limits)
    """What its callers may ask for, how often, and how much at the same time."""
    accept_unscreened: bool = False
    """Whether its payments are made while a sanctions list is stale or cannot be read; what is known to be listed never is."""
    discoverable: bool = True
    """Whether resources are listed whose sellers declare it."""


class KeySecret(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it was presented, in parts."""

    key_id: str
    sha256: bytes
    """Of the secret's ASCII text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key that was just made. `text` is the only copy of it."""

    key_id: str
    sha256: bytes
    """Of the secret; of the public key where there is one, for no secret is here."""
    text: str = field(repr=False)
    public_key: str | None = None
    """PEM, instead of a secret."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as lists show it."""

    key_id: str
    tenant_id: str
    scopes: Sequence[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    """At most a minute and one flush older than the truth."""
    replaces: str | None
    """The key whose place it took."""
    public_key: str | None
    """PEM of a key that signs requests instead of being sent with them."""


@dataclass(frozen=True, slots=True)
class LiveKey:
    """A key that was neither revoked nor expired nor its tenant disabled when it was read, with its tenant."""

    key_id: str
    secret_sha256: bytes = field(repr=False)
    public_key: str | None
    scopes: Sequence[str]
    expires_at: datetime | None
    tenant_id: str
    shared_transactions: bool
    accept_external: bool
    trust_payment_identifier: bool
    confirm_level: ConfirmLevel | None
    limits: str
    accept_unscreened: bool
    discoverable: bool

    @property
    def tenant(self) -> Tenant:
        """The tenant that this key speaks for."""
        return _tenant_of(self)

    def opens_with(self, presented: KeySecret) -> bool:
        """Is this the secret? Constant time, so that an answer's delay tells nothing about the stored hash."""
        return self.public_key is None and hmac.compare_digest(self.secret_sha256, presented.sha256)


@dataclass(frozen=True, slots=True)
class TenantRecord:
    """A tenant as it is on record, disabled or not."""

    tenant_id: str
    shared_transactions: bool
    accept_external: bool
    trust_payment_identifier: bool
    confirm_level: ConfirmLevel | None
    limits: str
    """JSON, see domain/limits.py."""
    accept_unscreened: bool
    discoverable: bool
    created_at: datetime
    disabled_at: datetime | None

    @property
    def tenant(self) -> Tenant:
        """With its rules."""
        return _tenant_of(self)


@lru_cache(maxsize=1024)
def _limits_of(text: str) -> Limits:
    """Every request asks; texts are as few as tenants with limits. Raises StoreFault for what a newer release wrote."""
    try:
        return decode_limits(text)
    except ValueError as error:
        raise StoreFault("limits_unread", f"this release does not know what limits the tenant: {error}") from None


def _tenant_of(row: LiveKey | TenantRecord) -> Tenant:
    return Tenant(
        tenant_id=row.tenant_id,
        shared_transactions=row.shared_transactions,
        accept_external=row.accept_external,
        trust_payment_identifier=row.trust_payment_identifier,
        confirm_level=row.confirm_level,
        limits=_limits_of(row.limits),
        accept_unscreened=row.accept_unscreened,
        discoverable=row.discoverable,
    )


def generate_key() -> NewKey:
    """A new key with a 256-bit secret from the system's random source. Nothing is stored yet."""
    key_id = _new_id()
    secret = secrets.token_urlsafe(32)
    return NewKey(key_id=key_id, sha256=_digest(secret), text=f"fk_{key_id}_{secret}")


def signing_key(public_key: str) -> NewKey:
    """A new key that signs requests. Nothing is stored yet, and there is nothing to keep secret."""
    key_id = _new_id()
    return NewKey(key_id=key_id, sha256=_digest(public_key), text=key_id, public_key=public_key)


def _new_id() -> str:
    return "".join(secrets.choice(_ID_ALPHABET) for _ in range(12))


def parse_key(text: str) -> KeySecret | None:
    """The parts of a presented key, or None when it has not the shape of one. Looks nothing up."""
    match = _KEY.fullmatch(text) if len(text) <= 64 else None
    return None if match is None else KeySecret(key_id=match["key_id"], sha256=_digest(match["secret"]))


def is_key_id(text: str) -> bool:
    """Whether a key could have this id."""
    return _KEY_ID.fullmatch(text) is not None


def parse_tenant_id(text: str) -> str:
    """Check a tenant's name. Raises ValueError that says what was expected."""
    if not _TENANT_ID.fullmatch(text):
        raise ValueError("expected a tenant id: 1 to 63 of a-z, 0-9, _ and -, the first a letter or digit")
    return text


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("ascii")).digest()


async def create_tenant(db: Db | Session, tenant: Tenant) -> bool:
    """Put a tenant on record. False when one of that id exists, which is left as it is."""
    created = await db.execute(
        _QUERIES["create_tenant"],
        tenant.tenant_id,
        tenant.shared_transactions,
        tenant.accept_external,
        tenant.trust_payment_identifier,
        tenant.confirm_level,
        encode_limits(tenant.limits),
        tenant.accept_unscreened,
        tenant.discoverable,
    )
    return created == 1


async def find_tenant(db: Db | Session, tenant_id: str) -> Tenant | None:
    """A tenant that is not disabled, or None."""
    row = await db.optional(TenantRecord, _QUERIES["find_tenant"], tenant_id)
    return None if row is None or row.disabled_at is not None else row.tenant


async def list_tenants(db: Db | Session) -> list[TenantRecord]:
    """All tenants by id, disabled ones too."""
    return await db.many(TenantRecord, _QUERIES["list_tenants"])


async def find_record(db: Db | Session, tenant_id: str) -> TenantRecord | None:
    """A tenant, disabled or not."""
    return await db.optional(TenantRecord, _QUERIES["find_tenant"], tenant_id)


async def lock_tenant(session: Session, tenant_id: str) -> TenantRecord | None:
    """`find_record`, and nobody else changes it until the transaction ends."""
    return await session.optional(TenantRecord, _QUERIES["lock_tenant"], tenant_id)


async def store_tenant(session: Session, tenant: Tenant, *, disabled: bool) -> TenantRecord:
    """Write a tenant's rules. Running processes notice when they next refresh the key; what is admitted keeps the rules that it had."""
    return await session.one(
        TenantRecord,
        _QUERIES["store_tenant"],
        tenant.tenant_id,
        tenant.shared_transactions,
        tenant.accept_external,
        tenant.trust_payment_identifier,
        tenant.confirm_level,
        encode_limits(tenant.limits),
        disabled,
        tenant.accept_unscreened,
        tenant.discoverable,
    )


async def create_api_key(db: Db | Session, new: NewKey, tenant_id: str, scopes: Sequence[Scope], expires_at: datetime | None) -> ApiKey:
    """Put a key on record. The tenant must exist (ConstraintViolated `api_key_tenant_id_fkey` otherwise)."""
    return await db.one(ApiKey, _QUERIES["create_api_key"], new.key_id, tenant_id, new.sha256, list(scopes), expires_at, new.public_key)


async def replace_api_key(session: Session, new: NewKey, key_id: str) -> ApiKey | None:
    """Put a key on record in the place of a live one: same tenant, scopes and length of life.

    None when that one is dead. ConstraintViolated `api_key_replaced_once` when it was replaced before.
    """
    return await session.optional(ApiKey, _QUERIES["replace_api_key"], new.key_id, new.sha256, key_id)


async def end_api_key(session: Session, key_id: str, overlap: timedelta) -> ApiKey:
    """Let a key live that much longer at most."""
    return await session.one(ApiKey, _QUERIES["end_api_key"], key_id, overlap)


async def list_api_keys(db: Db | Session, tenant_id: str | None = None) -> list[ApiKey]:
    """All keys, dead ones too, of one tenant or of all."""
    return await db.many(ApiKey, _QUERIES["list_api_keys"], tenant_id)


async def lock_api_key(session: Session, key_id: str) -> ApiKey | None:
    """A key, dead or alive; nobody else changes it until the transaction ends."""
    return await session.optional(ApiKey, _QUERIES["lock_api_key"], key_id)


async def revoke_api_key(db: Db | Session, key_id: str) -> ApiKey | None:
    """End a key now; running processes notice within their refresh time. None when there is no such key. Idempotent."""
    return await db.optional(ApiKey, _QUERIES["revoke_api_key"], key_id)


async def find_api_keys(db: Db, key_ids: Sequence[str]) -> list[LiveKey]:
    """Those of the keys that are alive by the database's clock."""
    return await db.many(LiveKey, _QUERIES["find_api_keys"], list(key_ids))


@dataclass(frozen=True, slots=True)
class UsedToken:
    """A signed token whose use was written down."""

    key_id: str


async def use_token(db: Db, key_id: str, use: str, kept_s: float) -> bool:
    """Write down the one use of a signed token; False when it was used before, at whatever replica."""
    digest = hashlib.sha256(use.encode()).digest()
    return await db.optional(UsedToken, _QUERIES["use_token"], key_id, digest, kept_s) is not None


async def forget_tokens(db: Db) -> None:
    """Forget tokens that nobody can use any more."""
    await db.execute(_QUERIES["forget_tokens"])


async def touch_api_keys(db: Db, key_ids: Sequence[str]) -> int:
    """Note that these keys were used; a key noted within the last minute is left alone. Returns how many were written."""
    return await db.execute(_QUERIES["touch_api_keys"], list(key_ids))
