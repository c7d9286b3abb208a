-- Our own book: what relayers pay for gas, apart from the register of what payers pay to payees; the cost of each
-- transaction with the operator fee, shared out to what it carried; and a journal that nobody changes.

alter table relayer_transaction add column operator_fee_wei numeric(78, 0);
alter table slot_item add column cost_wei numeric(78, 0) constraint slot_item_cost_wei_check check (cost_wei >= 0);

-- Two books: third-party value (payer:… to payee:…), and ours (everything else). `admission` counts in both: admissions of a
-- settlement in the register, how often the cost of a transaction was booked in ours.
alter table journal_entry add column book text collate "C" not null default 'register';
alter table journal_entry add constraint journal_entry_book
    check (case book when 'register' then debit like 'payer:%' and credit like 'payee:%'
                     when 'own' then debit not like 'payer:%' and credit not like 'payee:%'
                     else false end);
alter table journal_entry add constraint journal_entry_gas_of_a_transaction
    check (debit not like 'gas\_expense:%' or (tx_hash is not null and admission is not null));
create unique index journal_entry_gas on journal_entry (tx_hash, debit, admission) where book = 'own' and phase = 'pending';

-- Append-only for everybody, the owner of the table and superusers included: they would have to disable this by name.
create function refuse_journal_change() returns trigger language plpgsql as $$
begin
    raise exception '% on journal_entry: the journal is append-only, a correction is a new entry', lower(tg_op)
        using errcode = 'restrict_violation', constraint = 'journal_entry_append_only';
end
$$;
create trigger journal_entry_append_only before update or delete or truncate on journal_entry
    for each statement execute function refuse_journal_change();

-- Roles: the owner is whoever migrates; `facilitator_app` is what the service's login is a member of, `facilitator_auditor`
-- reads. Roles belong to the cluster: where they may not be created they are left out (docs/operations.md says how to add them).
do $$
declare
    member text;
begin
    foreach member in array array['facilitator_app', 'facilitator_auditor'] loop
        begin
            if not exists (select from pg_roles where rolname = member) then
                execute format('create role %I nologin', member);
            end if;
        exception
            when duplicate_object or unique_violation then null; -- another database of the cluster was migrated at the same time
            when insufficient_privilege then
                raise notice 'role % may not be created here: nothing is granted to it', member;
        end;
    end loop;
end
$$;

-- Again after the roles were added by hand: `select grant_roles()`.
create function grant_roles() returns void language plpgsql as $$
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
    end if;
    if exists (select from pg_roles where rolname = 'facilitator_auditor') then
        execute format('grant usage on schema %I to facilitator_auditor', here);
        execute format('grant select on all tables in schema %I to facilitator_auditor', here);
        execute format('alter default privileges in schema %I grant select on tables to facilitator_auditor', here);
        revoke select on api_key from facilitator_auditor;
    end if;
end
$$;
revoke execute on function grant_roles() from public;
select grant_roles();
