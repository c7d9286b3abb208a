-- Gas budgets: what a tenant's payments may cost its day, held from before they are signed until the receipt tells. Strikes:
-- payments that cost gas and paid nobody, by whose doing. Tokens that were used, so that no replica takes one again.
-- compatible from 0013

-- The budgets as the tenant's limits spell them (domain/limits.py), where the write-ahead finds them. Tenants are few: they are
-- rewritten in no time.
alter table tenant
    -- squawk-ignore adding-field-with-default
    add column gas_wei_per_day numeric(78, 0) generated always as ((limits::jsonb ->> 'gasWeiPerDay')::numeric) stored, -- on each network
    add column gas_usd_micros_per_day numeric(78, 0)
        -- squawk-ignore adding-field-with-default
        generated always as ((limits::jsonb ->> 'gasUsdPerDay')::numeric * 1000000) stored; -- on all of them

-- A tenant's gas on a day of UTC. `held` is the most that its open transactions can cost, `spent` what its mined ones did.
create table gas_day (
    tenant_id text collate "C" not null references tenant,
    day       date not null,
    unit      text collate "C" not null, -- a network: wei of its coin; 'usd': micro-dollars of all networks
    most      numeric(78, 0), -- the budget when gas was last held; null: this unit has none
    held      numeric(78, 0) not null,
    spent     numeric(78, 0) not null default 0,
    primary key (tenant_id, day, unit),
    constraint gas_day_within check (held + spent <= most)
) with (fillfactor = 50);

-- What is held for a payment in a transaction, on which day; null where its tenant had no budget when it was signed.
alter table slot_item
    add column gas_day date,
    add column held_wei numeric(78, 0),
    add column held_usd_micros numeric(78, 0);

create table strike (
    settlement_id uuid not null references settlement,
    tx_hash       text collate "C" not null, -- ours, which was mined and did not pay it
    tenant_id     text collate "C" not null references tenant,
    payer         text collate "C" not null,
    reason        text collate "C" not null,
    of_payer      boolean not null, -- the payer's own doing; else the tenant alone is struck
    voided        boolean not null default false, -- the block that held the transaction was reorganised away
    struck_at     timestamptz not null default now(),
    primary key (settlement_id, tx_hash)
);
create index strike_recent on strike (struck_at) where not voided;

-- Not logged: after a crash of the server it is empty, and no token lives longer than two minutes.
create unlogged table token_use (
    key_id     text collate "C" not null,
    use_sha256 bytea not null check (octet_length(use_sha256) = 32),
    ends_at    timestamptz not null,
    primary key (key_id, use_sha256)
);
create index token_use_ends on token_use (ends_at);

create or replace function grant_roles() returns void language plpgsql as $$
declare
    here text := current_schema();
begin
    if exists (select from pg_roles where rolname = 'facilitator_app') then
        execute format('grant usage on schema %I to facilitator_app', here);
        execute format('grant select, insert, update on all tables in schema %I to facilitator_app', here);
        execute format('grant usage on all sequences in schema %I to facilitator_app', here);
        execute format('alter default privileges in schema %I grant select, insert, update on tables to facilitator_app', here);
        execute format('alter default privileges in schema %I grant usage on sequences to facilitator_app', here);
        grant delete on replica, token_use to facilitator_app;
        revoke update on journal_entry, settlement_move from facilitator_app;
        revoke insert, update on schema_migration from facilitator_app;
        revoke update on fee_schedule, invoice, seal, sealed_leaf, audit_event, day_event from facilitator_app;
    end if;
    if exists (select from pg_roles where rolname = 'facilitator_auditor') then
        execute format('grant usage on schema %I to facilitator_auditor', here);
        execute format('grant select on all tables in schema %I to facilitator_auditor', here);
        execute format('alter default privileges in schema %I grant select on tables to facilitator_auditor', here);
        revoke select on api_key from facilitator_auditor;
        grant insert on audit_event to facilitator_auditor;
    end if;
end
$$;
select grant_roles();
