-- Auditors leave their trail too: they add to it, and to nothing else. What is append-only may not be updated by grant either.

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
        grant delete on replica to facilitator_app;
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
