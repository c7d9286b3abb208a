-- Sealing, and what is read to verify it.

-- Held until the transaction ends: one at a time seals, or closes a day.
-- name: lock_seals :execute
select pg_advisory_xact_lock(8674665223082153553);

-- name: try_lock_seals :one
select pg_try_advisory_xact_lock(8674665223082153553) as mine;

-- name: last_seal :optional
select seal_no, leaves, root, head, journal_through, audit_through, sealed_at from seal order by seal_no desc limit 1;

-- Entries that no seal holds, whose transaction had ended when the oldest one still running began: no slow transaction can slip
-- under what is sealed. Looked for from where the seals stood a quarter of an hour ago, longer than any writer's transaction lasts.
-- name: unsealed_entries :many
with horizon as (
    select pg_snapshot_xmin(pg_current_snapshot())::text::bigint % 4294967296 as xid,
           coalesce((select journal_through from seal where sealed_at < now() - interval '15 minutes'
                      order by seal_no desc limit 1), 0) as low
)
select e.entry_id, e.book, e.phase, e.debit, e.credit, e.asset, e.amount_atomic, e.settlement_id, e.admission, e.tx_hash, e.resolves,
       e.reference, e.happened_at, e.booked_at
  from horizon h join journal_entry e on e.entry_id > h.low
 where not exists (select from sealed_leaf l where l.source = 'journal' and l.row_id = e.entry_id)
   and mod(h.xid - e.xmin::text::bigint + 4294967296, 4294967296) between 1 and 2147483647
 order by e.entry_id
 limit $1::integer;

-- name: unsealed_events :many
with horizon as (
    select pg_snapshot_xmin(pg_current_snapshot())::text::bigint % 4294967296 as xid,
           coalesce((select audit_through from seal where sealed_at < now() - interval '15 minutes'
                      order by seal_no desc limit 1), 0) as low
)
select e.event_id, e.kind, e.actor, e.detail, e.happened_at
  from horizon h join audit_event e on e.event_id > h.low
 where not exists (select from sealed_leaf l where l.source = 'audit' and l.row_id = e.event_id)
   and mod(h.xid - e.xmin::text::bigint + 4294967296, 4294967296) between 1 and 2147483647
 order by e.event_id
 limit $1::integer;

-- name: store_seal :execute
with sealed as (
    insert into seal (seal_no, leaves, root, head, journal_through, audit_through)
    values ($1::bigint, $2::integer, $3::bytea, $4::bytea, $5::bigint, $6::bigint)
    returning seal_no
)
insert into sealed_leaf (source, row_id, seal_no, position, book_day, leaf)
select l.source, l.row_id, s.seal_no, l.position - 1, l.book_day, l.leaf
  from sealed s, unnest($7::text[], $8::bigint[], $9::date[], $10::bytea[]) with ordinality as l (source, row_id, book_day, leaf, position);

-- name: seals :many
select seal_no, leaves, root, head, journal_through, audit_through, sealed_at from seal order by seal_no;

-- Every sealed place in order, with the row that stands there now.
-- name: sealed_rows :many
select l.seal_no, l.position, l.source, l.row_id, l.book_day, l.leaf,
       e.entry_id, e.book, e.phase, e.debit, e.credit, e.asset, e.amount_atomic, e.settlement_id, e.admission, e.tx_hash, e.resolves,
       e.reference, e.happened_at, e.booked_at,
       a.event_id, a.kind, a.actor, a.detail, a.happened_at as event_at
  from sealed_leaf l
  left join journal_entry e on l.source = 'journal' and e.entry_id = l.row_id
  left join audit_event a on l.source = 'audit' and a.event_id = l.row_id
 order by l.seal_no, l.position;

-- Rows that should have been sealed long ago, or are older than what was sealed before them.
-- name: overdue :many
select 'journal' as source, e.entry_id as row_id, e.booked_at as at from journal_entry e
 where not exists (select from sealed_leaf l where l.source = 'journal' and l.row_id = e.entry_id)
   and e.booked_at < (select max(sealed_at) from seal where leaves < $1::integer) - interval '15 minutes'
union all
select 'audit', a.event_id, a.happened_at from audit_event a
 where not exists (select from sealed_leaf l where l.source = 'audit' and l.row_id = a.event_id)
   and a.happened_at < (select max(sealed_at) from seal where leaves < $1::integer) - interval '15 minutes'
order by source, row_id;

-- Below this entry everything was sealed, save what `overdue` names.
-- name: low_water :one
select coalesce((select journal_through from seal where sealed_at < now() - interval '15 minutes' order by seal_no desc limit 1), 0)
       as entry_id;

-- name: record_event :execute
insert into audit_event (kind, actor, detail) values ($1::text, $2::text, $3::text);

-- name: first_day :one
select min(book_day) as day from sealed_leaf where book_day is not null;

-- name: last_closed :one
select max(day) as day from (select distinct on (day) day, kind from day_event order by day, event_id desc) d where kind = 'closed';
