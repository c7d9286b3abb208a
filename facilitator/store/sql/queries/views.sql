-- What the finance API and the console show. Reads only.

-- Newest first, after the last one of the page before. Read are the days that hold the page, by the tally, and those that are not
-- counted. What is settled for good and what still moves stand apart, each in an index that has all that filters ask for (0021).
-- name: view_settlements :many
with whole as (
    select day, day::timestamp at time zone 'UTC' as starts, (day + 1)::timestamp at time zone 'UTC' as ends
      from settlement_day
     where $7::text is null and $9::text is null
       and ($1::timestamptz is null or day::timestamp at time zone 'UTC' >= $1::timestamptz)
       and ($2::timestamptz is null or (day + 1)::timestamp at time zone 'UTC' <= $2::timestamptz)
), gap as (
    select coalesce(lag(ends) over (order by day), $1::timestamptz, '-infinity') as starts, starts as ends from whole
    union all
    select coalesce(max(ends), $1::timestamptz, '-infinity'), coalesce($2::timestamptz, 'infinity') from whole
), day_hits as (
    select w.starts, w.ends, sum(t.settlements) as settlements
      from whole w join settlement_tally t using (day)
     where ($12::timestamptz is null or w.starts <= $12::timestamptz)
       and (t.pay_to is null) = ($8::text is null)
       and (t.each_atomic is null) = ($8::text is null and $10::text is null and $11::text is null)
       and ($3::text is null or t.state = $3::text)
       and ($4::text is null or t.tenant_id = $4::text)
       and ($5::text is null or t.network = $5::text)
       and ($6::text is null or t.asset = $6::text)
       and ($8::text is null or t.pay_to = $8::text)
       and ($10::text is null or t.each_atomic >= $10::text::numeric)
       and ($11::text is null or t.each_atomic <= $11::text::numeric)
     group by w.starts, w.ends
), range as (
    select starts, ends from gap where starts < ends
    union all
    select starts, ends
      from (select starts, ends, coalesce(sum(settlements) over (order by starts desc rows between unbounded preceding and 1 preceding), 0)
                   - case when first_value(starts) over (order by starts desc) = starts then 0
                          else first_value(settlements) over (order by starts desc) end as later
              from day_hits) d
     where later < $14::integer
), hits as (
    select found.settlement_id
      from range g
     cross join lateral (
        (
            select s.queued_at, s.settlement_id
              from settlement s
             where (s.state = 'finalized' or s.closed)
               and ($3::text is null or s.state = $3::text)
               and ($4::text is null or s.tenant_id = $4::text)
               and ($5::text is null or s.network = $5::text)
               and ($6::text is null or s.asset = $6::text)
               and ($8::text is null or s.pay_to = $8::text)
               and ($10::text is null or s.amount_atomic >= $10::text::numeric)
               and ($11::text is null or s.amount_atomic <= $11::text::numeric)
               and s.queued_at >= g.starts and s.queued_at < g.ends
               and ($12::timestamptz is null or (s.queued_at, s.settlement_id) < ($12::timestamptz, $13::uuid))
             order by s.queued_at desc, s.settlement_id desc
             limit $14::integer
        )
        union all
        (
            select s.queued_at, s.settlement_id
              from settlement s
             where not (s.state = 'finalized' or s.closed)
               and ($3::text is null or s.state = $3::text)
               and ($4::text is null or s.tenant_id = $4::text)
               and ($5::text is null or s.network = $5::text)
               and ($6::text is null or s.asset = $6::text)
               and ($8::text is null or s.pay_to = $8::text)
               and ($10::text is null or s.amount_atomic >= $10::text::numeric)
               and ($11::text is null or s.amount_atomic <= $11::text::numeric)
               and s.queued_at >= g.starts and s.queued_at < g.ends
               and ($12::timestamptz is null or (s.queued_at, s.settlement_id) < ($12::timestamptz, $13::uuid))
             order by s.queued_at desc, s.settlement_id desc
             limit $14::integer
        )
     ) found
     order by found.queued_at desc, found.settlement_id desc
     limit $14::integer
)
select s.settlement_id, s.queued_at, s.resolved_at, s.tenant_id, s.state, s.reason, s.scheme, s.network, s.asset, s.payer, s.pay_to,
       s.amount_atomic, s.auth_nonce, s.tx_hash, s.log_index, s.block_number, s.block_hash, s.resource, s.request_id,
       (select sum(i.cost_wei) from slot_item i where i.settlement_id = s.settlement_id) as cost_wei
  from hits join settlement s using (settlement_id)
 order by s.queued_at desc, s.settlement_id desc;

-- The same, of few settlements: of a payer, or a transaction.
-- name: view_few_settlements :many
select s.settlement_id, s.queued_at, s.resolved_at, s.tenant_id, s.state, s.reason, s.scheme, s.network, s.asset, s.payer, s.pay_to,
       s.amount_atomic, s.auth_nonce, s.tx_hash, s.log_index, s.block_number, s.block_hash, s.resource, s.request_id,
       (select sum(i.cost_wei) from slot_item i where i.settlement_id = s.settlement_id) as cost_wei
  from settlement s
 where true
   and ($1::timestamptz is null or s.queued_at >= $1::timestamptz)
   and ($2::timestamptz is null or s.queued_at < $2::timestamptz)
   and ($3::text is null or s.state = $3::text)
   and ($4::text is null or s.tenant_id = $4::text)
   and ($5::text is null or s.network = $5::text)
   and ($6::text is null or s.asset = $6::text)
   and ($7::text is null or s.payer = $7::text)
   and ($8::text is null or s.pay_to = $8::text)
   and ($9::text is null or s.tx_hash = $9::text)
   and ($10::text is null or s.amount_atomic >= $10::text::numeric)
   and ($11::text is null or s.amount_atomic <= $11::text::numeric)
   and ($12::timestamptz is null or (s.queued_at, s.settlement_id) < ($12::timestamptz, $13::uuid))
 order by s.queued_at desc, s.settlement_id desc
 limit $14::integer;

-- All of a filter, newest first.
-- name: stream_settlements :many
select s.settlement_id, s.queued_at, s.resolved_at, s.tenant_id, s.state, s.reason, s.scheme, s.network, s.asset, s.payer, s.pay_to,
       s.amount_atomic, s.auth_nonce, s.tx_hash, s.log_index, s.block_number, s.block_hash, s.resource, s.request_id,
       (select sum(i.cost_wei) from slot_item i where i.settlement_id = s.settlement_id) as cost_wei
  from settlement s
 where true
   and ($1::timestamptz is null or s.queued_at >= $1::timestamptz)
   and ($2::timestamptz is null or s.queued_at < $2::timestamptz)
   and ($3::text is null or s.state = $3::text)
   and ($4::text is null or s.tenant_id = $4::text)
   and ($5::text is null or s.network = $5::text)
   and ($6::text is null or s.asset = $6::text)
   and ($7::text is null or s.payer = $7::text)
   and ($8::text is null or s.pay_to = $8::text)
   and ($9::text is null or s.tx_hash = $9::text)
   and ($10::text is null or s.amount_atomic >= $10::text::numeric)
   and ($11::text is null or s.amount_atomic <= $11::text::numeric)
 order by s.queued_at desc, s.settlement_id desc;

-- The sums of a filter, whatever the page. Whole UTC days that were counted are taken from the tally, what lies between them from the
-- settlements themselves.
-- name: view_totals :many
with whole as (
    select day, day::timestamp at time zone 'UTC' as starts, (day + 1)::timestamp at time zone 'UTC' as ends
      from settlement_day
     where $7::text is null and $9::text is null
       and ($1::timestamptz is null or day::timestamp at time zone 'UTC' >= $1::timestamptz)
       and ($2::timestamptz is null or (day + 1)::timestamp at time zone 'UTC' <= $2::timestamptz)
), gap as (
    select coalesce(lag(ends) over (order by day), $1::timestamptz, '-infinity') as starts, starts as ends from whole
    union all
    select coalesce(max(ends), $1::timestamptz, '-infinity'), coalesce($2::timestamptz, 'infinity') from whole
)
select network, asset, state, sum(settlements)::bigint as settlements, sum(amount_atomic) as amount_atomic
  from (
    select t.network, t.asset, t.state, t.settlements, t.amount_atomic
      from whole w join settlement_tally t using (day)
     where true
       and (t.pay_to is null) = ($8::text is null)
       and (t.each_atomic is null) = ($8::text is null and $10::text is null and $11::text is null)
       and ($3::text is null or t.state = $3::text)
       and ($4::text is null or t.tenant_id = $4::text)
       and ($5::text is null or t.network = $5::text)
       and ($6::text is null or t.asset = $6::text)
       and ($8::text is null or t.pay_to = $8::text)
       and ($10::text is null or t.each_atomic >= $10::text::numeric)
       and ($11::text is null or t.each_atomic <= $11::text::numeric)
    union all
    select l.network, l.asset, l.state, 1, l.amount_atomic
      from gap g
     cross join lateral (
        select s.network, s.asset, s.state, s.amount_atomic
          from settlement s
         where (s.state = 'finalized' or s.closed)
           and ($3::text is null or s.state = $3::text)
           and ($4::text is null or s.tenant_id = $4::text)
           and ($5::text is null or s.network = $5::text)
           and ($6::text is null or s.asset = $6::text)
           and ($8::text is null or s.pay_to = $8::text)
           and ($10::text is null or s.amount_atomic >= $10::text::numeric)
           and ($11::text is null or s.amount_atomic <= $11::text::numeric)
           and s.queued_at >= g.starts and s.queued_at < g.ends
        union all
        select s.network, s.asset, s.state, s.amount_atomic
          from settlement s
         where not (s.state = 'finalized' or s.closed)
           and ($3::text is null or s.state = $3::text)
           and ($4::text is null or s.tenant_id = $4::text)
           and ($5::text is null or s.network = $5::text)
           and ($6::text is null or s.asset = $6::text)
           and ($8::text is null or s.pay_to = $8::text)
           and ($10::text is null or s.amount_atomic >= $10::text::numeric)
           and ($11::text is null or s.amount_atomic <= $11::text::numeric)
           and s.queued_at >= g.starts and s.queued_at < g.ends
     ) l
     where g.starts < g.ends
  ) counted
 group by network, asset, state
 order by network, asset, state;

-- The same, of few settlements.
-- name: view_few_totals :many
select s.network, s.asset, s.state, count(*) as settlements, sum(s.amount_atomic) as amount_atomic
  from settlement s
 where true
   and ($1::timestamptz is null or s.queued_at >= $1::timestamptz)
   and ($2::timestamptz is null or s.queued_at < $2::timestamptz)
   and ($3::text is null or s.state = $3::text)
   and ($4::text is null or s.tenant_id = $4::text)
   and ($5::text is null or s.network = $5::text)
   and ($6::text is null or s.asset = $6::text)
   and ($7::text is null or s.payer = $7::text)
   and ($8::text is null or s.pay_to = $8::text)
   and ($9::text is null or s.tx_hash = $9::text)
   and ($10::text is null or s.amount_atomic >= $10::text::numeric)
   and ($11::text is null or s.amount_atomic <= $11::text::numeric)
 group by s.network, s.asset, s.state
 order by s.network, s.asset, s.state;

-- UTC days that have ended and hold nothing that can still change, oldest first.
-- name: uncounted_days :many
with day as (
    select generate_series(
        date_trunc('day', (select min(queued_at) from settlement where state = 'finalized' or closed) at time zone 'UTC'),
        (now() - interval '25 hours') at time zone 'UTC', interval '1 day')::date as day
)
select d.day from day d
 where not exists (select from settlement_day c where c.day = d.day)
   and not exists (select from settlement s
                    where not (s.state = 'finalized' or s.closed)
                      and s.queued_at >= d.day::timestamp at time zone 'UTC' and s.queued_at < (d.day + 1)::timestamp at time zone 'UTC')
 order by d.day;

-- Once, whoever comes first.
-- name: count_day :execute
with counted as (
    insert into settlement_day (day) values ($1::date) on conflict do nothing returning day
)
insert into settlement_tally (day, tenant_id, network, asset, state, pay_to, each_atomic, settlements, amount_atomic)
select c.day, s.tenant_id, s.network, s.asset, s.state, s.pay_to, s.amount_atomic, count(*), sum(s.amount_atomic)
  from counted c
  join settlement s on s.queued_at >= $1::date::timestamp at time zone 'UTC' and s.queued_at < ($1::date + 1)::timestamp at time zone 'UTC'
 where s.state = 'finalized' or s.closed
 group by c.day, s.tenant_id, s.network, s.asset, s.state, grouping sets ((), (s.amount_atomic), (s.pay_to, s.amount_atomic));

-- name: view_settlement :optional
select s.settlement_id, s.queued_at, s.resolved_at, s.tenant_id, s.state, s.reason, s.scheme, s.network, s.asset, s.payer, s.pay_to,
       s.amount_atomic, s.auth_nonce, s.tx_hash, s.log_index, s.block_number, s.block_hash, s.resource, s.request_id,
       (select sum(i.cost_wei) from slot_item i where i.settlement_id = s.settlement_id) as cost_wei
  from settlement s where s.settlement_id = $1::uuid;

-- Its entries, with the seal that holds each.
-- name: entries_of :many
select e.entry_id, e.phase, e.debit, e.credit, e.asset, e.amount_atomic, e.tx_hash, e.resolves, e.happened_at, e.booked_at,
       l.book_day, l.seal_no
  from (select entry_id from journal_entry where settlement_id = $1::uuid and phase = 'pending'
        union all
        select r.entry_id from journal_entry p join journal_entry r on r.resolves = p.entry_id
         where p.settlement_id = $1::uuid and p.phase = 'pending') its
  join journal_entry e using (entry_id)
  left join sealed_leaf l on l.source = 'journal' and l.row_id = e.entry_id
 order by e.entry_id;

-- Every transaction that was signed to carry it, also those that were replaced.
-- name: attempts_of :many
select t.tx_hash, s.relayer, s.tx_nonce, t.attempt, t.purpose, t.recorded_at, t.max_fee_wei, t.max_priority_fee_wei,
       t.tx_hash = s.mined_tx_hash as mined
  from slot_item i join relayer_slot s using (slot_id) join relayer_transaction t using (slot_id)
 where i.settlement_id = $1::uuid
 order by t.recorded_at, t.attempt;

-- What transactions cost, by day of a zone and by what they were for.
-- name: view_gas :many
select (e.happened_at at time zone $3::text)::date as day, split_part(e.asset, '/', 1) as network,
       split_part(e.credit, ':', 4) as relayer, split_part(e.debit, ':', 4) as cause,
       count(distinct e.tx_hash) as transactions, sum(e.amount_atomic) as amount_wei
  from journal_entry e
 where e.book = 'own' and e.phase = 'posted' and e.debit like 'gas\_expense:%'
   and e.happened_at >= $1::timestamptz and e.happened_at < $2::timestamptz
 group by 1, 2, 3, 4 order by 1, 2, 3, 4;

-- Every relayer on record with the last balance that a reconciliation read.
-- name: view_relayers :many
select r.network, r.address, r.status, r.next_tx_nonce,
       (select count(*) from relayer_slot s where s.network = r.network and s.relayer = r.address and s.state = 'open')::integer as open_slots,
       b.wei as balance_wei, b.block_number as balance_block, b.read_at as balance_at
  from relayer r
  left join lateral (select * from relayer_balance k where k.network = r.network and k.relayer = r.address
                      order by k.block_number desc limit 1) b on true
 order by r.network, r.address;

-- Every tenant with the terms that hold on a day and what it owes.
-- name: view_tenants :many
with owed as (
    select case when debit like 'receivable:%' then debit else credit end as account,
           sum(case when debit like 'receivable:%' then amount_atomic else -amount_atomic end) as micros
      from journal_entry
     where book = 'own' and phase = 'posted' and tx_hash is null and (debit like 'receivable:%' or credit like 'receivable:%')
     group by 1
)
select t.tenant_id, t.created_at, t.disabled_at, t.confirm_level, t.limits, f.version as terms_version, f.effective_from as terms_from, f.terms,
       coalesce((select micros from owed where account = 'receivable:' || t.tenant_id), 0) as receivable_micros,
       (select count(*) from invoice i where i.tenant_id = t.tenant_id) as invoices
  from tenant t
  left join lateral (select * from fee_schedule s where s.tenant_id = t.tenant_id and s.effective_from <= $1::date
                      order by s.version desc limit 1) f on true
 order by t.tenant_id;

-- name: list_invoices :many
select number, tenant_id, month, document, issued_at from invoice where $1::text is null or tenant_id = $1::text order by number desc;

-- name: invoice_numbered :optional
select number, tenant_id, month, document, issued_at from invoice where number = $1::bigint;

-- The audit trail, newest first.
-- name: view_events :many
select a.event_id, a.kind, a.actor, a.detail, a.happened_at, l.seal_no
  from audit_event a left join sealed_leaf l on l.source = 'audit' and l.row_id = a.event_id
 where ($1::timestamptz is null or a.happened_at >= $1::timestamptz)
   and ($2::timestamptz is null or a.happened_at < $2::timestamptz)
   and ($3::text is null or a.kind = $3::text)
   and ($4::text is null or a.actor = $4::text)
   and ($5::bigint is null or a.event_id < $5::bigint)
 order by a.event_id desc
 limit $6::integer;

-- Discrepancies, newest first: `open`, `explained`, `gone`, or all.
-- name: view_discrepancies :many
select discrepancy_id, network, class as class_, subject, settlement_id, tx_hash, block_number, asset, value_atomic, expected, got,
       first_seen_at, gone_at, resolved_at, resolved_by, note, resolution_entry,
       extract(epoch from now() - first_seen_at)::bigint as age_s
  from discrepancy
 where case $1::text when 'open' then resolved_at is null and gone_at is null
                     when 'explained' then resolved_at is not null
                     when 'gone' then gone_at is not null and resolved_at is null
                     else true end
   and ($2::text is null or network = $2::text)
   and ($3::text is null or class = $3::text)
   and ($4::bigint is null or discrepancy_id < $4::bigint)
 order by discrepancy_id desc
 limit $5::integer;

-- name: view_discrepancy :optional
select discrepancy_id, network, class as class_, subject, settlement_id, tx_hash, block_number, asset, value_atomic, expected, got,
       first_seen_at, gone_at, resolved_at, resolved_by, note, resolution_entry,
       extract(epoch from now() - first_seen_at)::bigint as age_s
  from discrepancy where discrepancy_id = $1::bigint;

-- name: discrepancies_of :many
select discrepancy_id, network, class as class_, subject, settlement_id, tx_hash, block_number, asset, value_atomic, expected, got,
       first_seen_at, gone_at, resolved_at, resolved_by, note, resolution_entry,
       extract(epoch from now() - first_seen_at)::bigint as age_s
  from discrepancy where settlement_id = $1::uuid order by discrepancy_id;

-- Networks that were ever served, with how far their ledger was held against the chain.
-- name: view_networks :many
select n.network,
       (select r.to_block from reconciliation_run r where r.network = n.network and r.background order by r.to_block desc limit 1) as reconciled_block,
       (select max(r.ran_at) from reconciliation_run r where r.network = n.network) as reconciled_at,
       (select count(*) from discrepancy d where d.network = n.network and d.resolved_at is null and d.gone_at is null) as discrepancies
  from (select distinct network from relayer) n order by n.network;
