-- Resources that sellers let be listed (extension `bazaar`), and whether a tenant's are. Rows are bounded, and expire.
-- compatible from 0013

alter table tenant add column discoverable boolean not null default true;

create table listing (
    tenant_id       text collate "C" not null references tenant,
    resource        text collate "C" not null check (char_length(resource) <= 4096),
    kind            text collate "C" not null check (kind in ('http', 'mcp')),
    operation       text collate "C" not null check (char_length(operation) between 1 and 128),
    version         integer not null check (version in (1, 2)),
    entry           jsonb not null, -- what is said about it, as it is shown
    prices          jsonb not null, -- requirements that were paid, newest first
    words           tsvector not null, -- what a search finds it by
    settled         bigint not null check (settled > 0), -- payments
    first_seen_at   timestamptz not null default now(),
    last_seen_at    timestamptz not null default now(),
    last_settled_at timestamptz not null default now(),
    constraint listing_pkey primary key (tenant_id, resource, kind, operation)
);
create index listing_words on listing using gin (words);
create index listing_last_seen on listing (last_seen_at);

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
        grant delete on replica, token_use, listing to facilitator_app;
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
