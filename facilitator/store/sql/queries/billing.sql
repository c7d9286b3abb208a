-- Fee schedules, invoices, and the entries of what tenants owe.

-- Versions of a tenant rise by one; a version must begin after the one before it and after what was invoiced.
-- name: add_schedule :optional
insert into fee_schedule (tenant_id, version, effective_from, terms)
select $1::text, 1 + (select count(*) from fee_schedule where tenant_id = $1::text), $2::date, $3::text
 where not exists (select from fee_schedule where tenant_id = $1::text and effective_from >= $2::date)
   and not exists (select from invoice where tenant_id = $1::text and month + interval '1 month' > $2::date)
returning tenant_id, version, effective_from, terms;

-- name: list_schedules :many
select tenant_id, version, effective_from, terms from fee_schedule
 where $1::text is null or tenant_id = $1::text
 order by tenant_id, version;

-- Settlements that each tenant had in a time, as the tiers of its schedule count them.
-- name: counted :many
select s.tenant_id, count(*) as settlements
  from journal_entry r join settlement s on s.settlement_id = r.settlement_id
 where r.phase = 'posted' and r.happened_at >= $1::timestamptz and r.happened_at < $2::timestamptz
 group by s.tenant_id;

-- Of one tenant: by its settlements, whose entries are found by those that they resolve.
-- name: counted_of :one
select $3::text as tenant_id, count(*) as settlements
  from settlement s
  join journal_entry p on p.settlement_id = s.settlement_id and p.phase = 'pending'
  join journal_entry r on r.resolves = p.entry_id
 where s.tenant_id = $3::text and r.phase = 'posted' and r.happened_at >= $1::timestamptz and r.happened_at < $2::timestamptz;

-- name: find_invoice :optional
select number, tenant_id, month, document, issued_at from invoice where tenant_id = $1::text and month = $2::date;

-- name: invoiced_after :optional
select number, tenant_id, month, document, issued_at from invoice where tenant_id = $1::text and month > $2::date limit 1;

-- Held until the transaction ends: one invoice is issued at a time.
-- name: lock_invoices :execute
select pg_advisory_xact_lock(8674665223082153551);

-- name: next_number :one
select coalesce(max(number), 0) + 1 as number, now() as issued_at from invoice;

-- name: store_invoice :execute
insert into invoice (number, tenant_id, month, document, entry_id)
values ($1::bigint, $2::text, $3::date, $4::text, $5::bigint);

-- What needs no second phase is pending and posted in one statement.
-- name: post_entry :one
with p as (
    insert into journal_entry (book, phase, debit, credit, asset, amount_atomic, happened_at, reference)
    values ('own', 'pending', $1::text, $2::text, $3::text, $4::numeric, $5::timestamptz, $6::text)
    returning *
)
insert into journal_entry (book, phase, debit, credit, asset, amount_atomic, happened_at, reference, resolves)
select 'own', 'posted', debit, credit, asset, amount_atomic, happened_at, reference, entry_id from p
returning entry_id;

-- What was booked of that reference; entries without a transaction stand together in journal_entry_gas.
-- name: find_entry :optional
select r.entry_id, r.amount_atomic
  from journal_entry p join journal_entry r on r.resolves = p.entry_id
 where p.book = 'own' and p.phase = 'pending' and p.tx_hash is null and p.debit = $1::text and p.credit = $2::text and p.reference = $3::text
 order by r.entry_id limit 1;

-- What an account had before a time, by asset. What tenants owe has no transaction: such entries are few, and have an index (0025).
-- name: opening :many
select asset, sum(case when debit = $1::text then amount_atomic else -amount_atomic end) as balance_atomic
  from journal_entry
 where phase = 'posted' and $1::text in (debit, credit) and happened_at < $2::timestamptz
   and ($1::text not like 'receivable:%' or (book = 'own' and tx_hash is null))
 group by asset order by asset;

-- What moved an account in a time.
-- name: movements :many
select entry_id, asset, case when debit = $1::text then amount_atomic else -amount_atomic end as amount_atomic,
       case when debit = $1::text then credit else debit end as against, settlement_id, tx_hash, reference, happened_at, booked_at
  from journal_entry
 where phase = 'posted' and $1::text in (debit, credit) and happened_at >= $2::timestamptz and happened_at < $3::timestamptz
   and ($1::text not like 'receivable:%' or (book = 'own' and tx_hash is null))
 order by happened_at, entry_id;

-- The same of accounts that no transaction moves, found by an index of their own.
-- name: opening_of_ours :many
select asset, sum(case when debit = $1::text then amount_atomic else -amount_atomic end) as balance_atomic
  from journal_entry
 where book = 'own' and phase = 'posted' and tx_hash is null and $1::text in (debit, credit) and happened_at < $2::timestamptz
 group by asset order by asset;

-- name: movements_of_ours :many
select entry_id, asset, case when debit = $1::text then amount_atomic else -amount_atomic end as amount_atomic,
       case when debit = $1::text then credit else debit end as against, settlement_id, tx_hash, reference, happened_at, booked_at
  from journal_entry
 where book = 'own' and phase = 'posted' and tx_hash is null and $1::text in (debit, credit) and happened_at >= $2::timestamptz and happened_at < $3::timestamptz
 order by happened_at, entry_id;
