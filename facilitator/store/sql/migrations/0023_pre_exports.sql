-- Files that people of the finance console ask for: made in the background, one at a time in each place, kept for a while. The
-- bytes are here, so that whichever replica is asked can hand a file out.
-- compatible from 0013

create table export_job (
    export_id     uuid primary key default gen_random_uuid(),
    kind          text collate "C" not null check (kind in ('settlements', 'gas', 'journal', 'hledger', 'audit_bundle')),
    format        text collate "C" not null check (format in ('csv', 'jsonl', 'xlsx', 'parquet', 'text', 'zip')),
    asked         text not null, -- JSON: period, zone, tenant
    person        text not null check (person <> ''),
    state         text collate "C" not null default 'waiting' check (state in ('waiting', 'running', 'done', 'failed', 'cancelled')),
    place         integer, -- of those that run at the same time
    rows_expected bigint,
    rows_done     bigint not null default 0,
    problem       text, -- why it failed, in words
    manifest      text, -- JSON, once it is done
    bytes         bigint,
    asked_at      timestamptz not null default now(),
    started_at    timestamptz,
    seen_at       timestamptz, -- when its process last said that it lives
    ended_at      timestamptz,
    expires_at    timestamptz, -- the file goes then
    constraint export_job_place check ((state = 'running') = (place is not null)),
    constraint export_job_started check ((started_at is null) = (seen_at is null) and (state <> 'running' or started_at is not null)),
    constraint export_job_ended check ((state in ('done', 'failed', 'cancelled')) = (ended_at is not null)),
    constraint export_job_done check ((state = 'done') = (manifest is not null and bytes is not null and expires_at is not null)),
    constraint export_job_failed check ((state = 'failed') = (problem is not null))
);
create unique index export_job_one_a_place on export_job (place) where state = 'running';
create index export_job_waiting on export_job (asked_at) where state = 'waiting';
create index export_job_asked on export_job (asked_at);

create table export_chunk (
    export_id uuid not null references export_job,
    chunk_no  integer not null check (chunk_no >= 0),
    content   bytea not null check (octet_length(content) > 0),
    primary key (export_id, chunk_no)
);

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
        grant delete on replica, token_use, listing, export_chunk to facilitator_app;
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
