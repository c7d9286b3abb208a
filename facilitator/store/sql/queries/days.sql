-- Book days: what still keeps one open, what it came to, and what was done to it.

-- Whatever is older than the first entry of the last closed day but one was resolved when those were closed: a day lies between.
-- name: resolved_before :one
select coalesce((select (d.document::jsonb ->> 'first_entry')::bigint from day_event d
                  where d.kind = 'closed' and d.document::jsonb ->> 'first_entry' is not null
                    and not exists (select from day_event r where r.day <= d.day and r.event_id > d.event_id)
                  order by d.event_id desc offset 1 limit 1), 0) as entry_id;

-- Asked with that entry, and not with the query for it: so the index is taken that says where it is.
-- name: pending_before :one
select count(*) as entries from journal_entry e
 where e.phase = 'pending' and e.happened_at < $1::timestamptz and e.entry_id >= $2::bigint
   and not exists (select from journal_entry r where r.resolves = e.entry_id and r.resolves >= $2::bigint);

-- What took longer than a day to settle is left to the reconciliation itself, which goes through all blocks.
-- name: unreconciled_before :one
with held as (
    select network, range_agg(int8range(from_block, to_block, '[]')) as blocks from reconciliation_run group by network
)
select count(*) as entries from settlement s left join held h using (network)
 where s.state = 'finalized' and s.resolved_at < $1::timestamptz
   and s.resolved_at >= $1::timestamptz - interval '2 days'
   and s.queued_at < $1::timestamptz and s.queued_at >= $1::timestamptz - interval '3 days'
   and not coalesce(s.block_number <@ h.blocks, false);

-- name: unsealed_before :one
select count(*) as entries from journal_entry e
 where e.happened_at < $1::timestamptz and e.entry_id > $2::bigint
   and not exists (select from sealed_leaf l where l.source = 'journal' and l.row_id = e.entry_id);

-- What a book day came to, by the kinds of its accounts. Its entries lie close together.
-- name: day_totals :many
with leaf as materialized (
    select row_id from sealed_leaf where source = 'journal' and book_day = $1::date
)
select e.book, e.phase, split_part(e.debit, ':', 1) as debit, split_part(e.credit, ':', 1) as credit, e.asset,
       count(*) as entries, sum(e.amount_atomic) as amount_atomic, min(e.entry_id) as first_entry, max(e.entry_id) as last_entry
  from leaf l join journal_entry e on e.entry_id = l.row_id
 where e.entry_id between (select min(row_id) from leaf) and (select max(row_id) from leaf)
 group by e.book, e.phase, split_part(e.debit, ':', 1), split_part(e.credit, ':', 1), e.asset
 order by e.book, e.phase, 3, 4, e.asset;

-- Entries that this book day took over from earlier ones, which were closed when they came.
-- name: day_adjusts :many
select (e.happened_at at time zone $2::text)::date as day, count(*) as entries
  from sealed_leaf l join journal_entry e on e.entry_id = l.row_id
 where l.source = 'journal' and l.book_day = $1::date and (e.happened_at at time zone $2::text)::date <> $1::date
 group by 1 order by 1;

-- name: day_events :many
select event_id, day, kind, actor, second, document, head, at from day_event order by event_id;

-- name: last_day_event :optional
select event_id, day, kind, actor, second, document, head, at from day_event order by event_id desc limit 1;

-- name: store_day_event :execute
insert into day_event (day, kind, actor, second, document, head)
values ($1::date, $2::text, $3::text, $4::text, $5::text, $6::bytea);

-- Who asked within a day, and after the day's last close, that it be reopened.
-- name: reopen_asked :many
select event_id, actor, detail from audit_event a
 where a.kind = 'reopen_asked' and a.detail like $1::text || ' %' and a.happened_at > now() - interval '1 day'
   and a.happened_at > (select max(at) from day_event where day = $2::date and kind = 'closed')
 order by event_id desc;
