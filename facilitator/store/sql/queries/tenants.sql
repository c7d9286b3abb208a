-- Tenants and their API keys. Of a key only the SHA-256 of its secret is here: a dump of the database opens nothing.

-- name: create_tenant :execute
insert into tenant (tenant_id, shared_transactions, accept_external, trust_payment_identifier, confirm_level, limits, accept_unscreened, discoverable)
values ($1::text, $2::boolean, $3::boolean, $4::boolean, $5::text, $6::text, $7::boolean, $8::boolean)
on conflict (tenant_id) do nothing;

-- name: find_tenant :optional
select tenant_id, shared_transactions, accept_external, trust_payment_identifier, confirm_level, limits, accept_unscreened, discoverable, created_at, disabled_at
from tenant
where tenant_id = $1::text;

-- name: lock_tenant :optional
select tenant_id, shared_transactions, accept_external, trust_payment_identifier, confirm_level, limits, accept_unscreened, discoverable, created_at, disabled_at
from tenant
where tenant_id = $1::text
for no key update;

-- name: list_tenants :many
select tenant_id, shared_transactions, accept_external, trust_payment_identifier, confirm_level, limits, accept_unscreened, discoverable, created_at, disabled_at
from tenant
order by tenant_id;

-- name: store_tenant :one
update tenant
set shared_transactions = $2::boolean,
    accept_external = $3::boolean,
    trust_payment_identifier = $4::boolean,
    confirm_level = $5::text,
    limits = $6::text,
    disabled_at = case when $7::boolean then coalesce(disabled_at, now()) end,
    accept_unscreened = $8::boolean,
    discoverable = $9::boolean
where tenant_id = $1::text
returning tenant_id, shared_transactions, accept_external, trust_payment_identifier, confirm_level, limits, accept_unscreened, discoverable, created_at, disabled_at;

-- name: create_api_key :one
insert into api_key (key_id, tenant_id, secret_sha256, scopes, expires_at, public_key)
values ($1::text, $2::text, $3::bytea, $4::text[], $5::timestamptz, $6::text)
returning key_id, tenant_id, scopes, created_at, expires_at, revoked_at, last_used_at, replaces, public_key;

-- Lives as long as the one that it replaces was made to live.
-- name: replace_api_key :optional
insert into api_key (key_id, tenant_id, secret_sha256, scopes, expires_at, replaces)
select $1::text, tenant_id, $2::bytea, scopes, now() + (expires_at - created_at), key_id
from api_key
where key_id = $3::text and revoked_at is null and (expires_at is null or expires_at > now())
returning key_id, tenant_id, scopes, created_at, expires_at, revoked_at, last_used_at, replaces, public_key;

-- name: end_api_key :one
update api_key
set expires_at = least(expires_at, now() + $2::interval)
where key_id = $1::text
returning key_id, tenant_id, scopes, created_at, expires_at, revoked_at, last_used_at, replaces, public_key;

-- name: list_api_keys :many
select key_id, tenant_id, scopes, created_at, expires_at, revoked_at, last_used_at, replaces, public_key
from api_key
where $1::text is null or tenant_id = $1::text
order by tenant_id, created_at, key_id;

-- name: lock_api_key :optional
select key_id, tenant_id, scopes, created_at, expires_at, revoked_at, last_used_at, replaces, public_key
from api_key
where key_id = $1::text
for no key update;

-- name: revoke_api_key :optional
update api_key
set revoked_at = coalesce(revoked_at, now())
where key_id = $1::text
returning key_id, tenant_id, scopes, created_at, expires_at, revoked_at, last_used_at, replaces, public_key;

-- name: find_api_keys :many
select
    k.key_id, k.secret_sha256, k.public_key, k.scopes, k.expires_at,
    t.tenant_id, t.shared_transactions, t.accept_external, t.trust_payment_identifier, t.confirm_level, t.limits, t.accept_unscreened, t.discoverable
from api_key k
join tenant t using (tenant_id)
where k.key_id = any ($1::text[])
  and k.revoked_at is null
  and (k.expires_at is null or k.expires_at > now())
  and t.disabled_at is null;

-- name: touch_api_keys :execute
update api_key
set last_used_at = now()
where key_id = any ($1::text[])
  and (last_used_at is null or last_used_at < now() - interval '1 minute');

-- A signed token opens once, at one replica. The table is not logged: that costs no flush.
-- name: use_token :optional
insert into token_use (key_id, use_sha256, ends_at)
values ($1::text, $2::bytea, now() + make_interval(secs => $3::double precision))
on conflict do nothing
returning key_id;

-- name: forget_tokens :execute
delete from token_use where ends_at < now();
