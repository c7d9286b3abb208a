-- Billing: what tenants are charged, the invoices that said so, and what an entry refers to outside.

alter table journal_entry add column reference text; -- of a payment, a credit note or an invoice

create table fee_schedule (
    tenant_id      text collate "C" not null references tenant,
    version        integer not null check (version >= 1),
    effective_from date not null,
    terms          text not null, -- JSON, see domain/schedules.py
    created_at     timestamptz not null default now(),
    primary key (tenant_id, version),
    constraint fee_schedule_one_a_day unique (tenant_id, effective_from)
);

-- Numbers have no gap: each is the last one's successor, taken under a lock in the transaction that stores the invoice.
create table invoice (
    number    bigint primary key check (number >= 1),
    tenant_id text collate "C" not null references tenant,
    month     date not null check (extract(day from month) = 1),
    document  text not null,
    entry_id  bigint references journal_entry, -- none when nothing is charged
    issued_at timestamptz not null default now(),
    constraint invoice_one_a_month unique (tenant_id, month)
);

create function refuse_change() returns trigger language plpgsql as $$
begin
    raise exception '% on %: it is append-only', lower(tg_op), tg_table_name using errcode = 'restrict_violation';
end
$$;
create trigger fee_schedule_append_only before update or delete or truncate on fee_schedule
    for each statement execute function refuse_change();
create trigger invoice_append_only before update or delete or truncate on invoice
    for each statement execute function refuse_change();
select grant_roles();
