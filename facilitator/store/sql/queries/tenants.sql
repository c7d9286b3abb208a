-- Tenants and their API keys. Of a key only the SHA-256 of its secret is here: a dump of the database opens nothing.

-- name: create_tenant :execute
insert into tenant (tenant_id, shared_transactions, accept_external, trust_payment_identifier, confirm_level)
values ($1::text, $2::boolean, $3::boolean, $4::boolean, $5::text)
on conflict (tenant_id) do nothing;

-- name: find_tenant :optional
select tenant_id, shared_transactions, accept_external, trust_payment_identifier, confirm_level
from tenant
where tenant_id = $1::text and disabled_at is null;

-- What is null stays as it is.
-- name: change_tenant :execute
update tenant
set shared_transactions = coalesce($2::boolean, shared_transactions),
    accept_external = coalesce($3::boolean, accept_external),
    trust_payment_identifier = coalesce($4::boolean, trust_payment_identifier),
    confirm_level = case when $5::text = 'default' then null else coalesce($5::text, confirm_level) end
where tenant_id = $1::text;

-- name: create_api_key :one
insert into api_key (key_id, tenant_id, secret_sha256, scopes, expires_at)
values ($1::text, $2::text, $3::bytea, $4::text[], $5::timestamptz)
returning key_id, tenant_id, scopes, created_at, expires_at, revoked_at, last_used_at;

-- name: list_api_keys :many
select key_id, tenant_id, scopes, created_at, expires_at, revoked_at, last_used_at
from api_key
where $1::text is null or tenant_id = $1::text
order by tenant_id, created_at, key_id;

-- name: revoke_api_key :optional
update api_key
set revoked_at = coalesce(revoked_at, now())
where key_id = $1::text
returning key_id, tenant_id, scopes, created_at, expires_at, revoked_at, last_used_at;

-- name: find_api_keys :many
select
    k.key_id, k.secret_sha256, k.scopes, k.expires_at,
    t.tenant_id, t.shared_transactions, t.accept_external, t.trust_payment_identifier, t.confirm_level
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
