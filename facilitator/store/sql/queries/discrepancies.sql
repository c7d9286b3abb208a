-- Discrepancies between ledger and chain, and what the looks at the chain need of the ledger.

-- Seen again: it keeps its age and its resolution.
-- name: record :execute
insert into discrepancy as d (network, class, subject, settlement_id, tx_hash, block_number, asset, value_atomic, expected, got)
select $1::text, f.class, f.subject, f.settlement_id, f.tx_hash, f.block_number, f.asset, f.value_atomic::numeric, f.expected, f.got
  from unnest($2::text[], $3::text[], $4::uuid[], $5::text[], $6::bigint[], $7::text[], $8::text[], $9::text[], $10::text[])
       as f (class, subject, settlement_id, tx_hash, block_number, asset, value_atomic, expected, got)
    on conflict (network, class, subject) do update
       set last_seen_at = now(), gone_at = null, expected = excluded.expected, got = excluded.got,
           value_atomic = excluded.value_atomic, block_number = excluded.block_number;

-- What these blocks held and hold no more. A relayer's balance was what it was.
-- name: let_go :execute
update discrepancy set gone_at = now()
 where network = $1::text and block_number between $2::bigint and $3::bigint and class <> 'R6'
   and gone_at is null and resolved_at is null and class || ' ' || subject <> all($4::text[]);

-- name: record_run :execute
insert into reconciliation_run (network, from_block, to_block, to_hash, found, background)
values ($1::text, $2::bigint, $3::bigint, $4::text, $5::integer, $6::boolean);

-- How far the ledger was held against the chain without a hole; before the first look, the block before its first settlement.
-- name: reconciled_through :one
select coalesce(
    (select max(to_block) from reconciliation_run where network = $1::text and background),
    (select greatest(admitted_block, 1) - 1 from settlement where network = $1::text order by settlement_id limit 1)) as block_number;

-- name: list_discrepancies :many
select discrepancy_id, network, class as class_, subject, settlement_id, tx_hash, block_number, asset, value_atomic, expected, got,
       first_seen_at, gone_at, resolved_at, resolved_by, note, resolution_entry,
       extract(epoch from now() - first_seen_at)::bigint as age_s
  from discrepancy
 where ($1::text is null or network = $1::text) and ($2::boolean or (resolved_at is null and gone_at is null))
 order by discrepancy_id;

-- name: lock_discrepancy :optional
select discrepancy_id, network, class as class_, subject, settlement_id, tx_hash, block_number, asset, value_atomic, expected, got,
       first_seen_at, gone_at, resolved_at, resolved_by, note, resolution_entry,
       extract(epoch from now() - first_seen_at)::bigint as age_s
  from discrepancy where discrepancy_id = $1::bigint for update;

-- name: resolve_discrepancy :execute
update discrepancy set resolved_at = now(), resolved_by = $2::text, note = $3::text, resolution_entry = $4::bigint
 where discrepancy_id = $1::bigint and resolved_at is null;

-- Transactions of ours that the ledger has as mined in these blocks, with what is booked for them.
-- name: mined_costs :many
select t.tx_hash, l.relayer, l.block_number, t.gas_used, t.effective_gas_price_wei, t.l1_fee_wei, t.operator_fee_wei,
       (select sum(p.amount_atomic) from journal_entry p
         where p.tx_hash = t.tx_hash and p.book = 'own' and p.phase = 'pending'
           and not exists (select from journal_entry v where v.resolves = p.entry_id and v.phase = 'voided')) as booked_wei,
       (select sum(i.cost_wei) from slot_item i where i.slot_id = l.slot_id) as shared_wei
  from relayer_slot l join relayer_transaction t on t.tx_hash = l.mined_tx_hash
 where l.network = $1::text and l.state in ('included', 'finalized') and l.block_number between $2::bigint and $3::bigint
   and t.tx_hash > $4::text
 order by t.tx_hash
 limit $5::integer;

-- Each relayer's last known balance, and what the ledger says happened to it from there to a block: costs of its transactions,
-- and entries that are no gas. An entry that explains a discrepancy explains what was seen before.
-- name: roll_forward :many
select r.address as relayer, b.block_number, b.wei, b.last_entry,
       (select coalesce(max(entry_id), 0) from journal_entry) as newest_entry,
       (select coalesce(sum(t.gas_used * t.effective_gas_price_wei + coalesce(t.l1_fee_wei, 0) + coalesce(t.operator_fee_wei, 0)), 0)
          from relayer_slot l join relayer_transaction t on t.tx_hash = l.mined_tx_hash
         where l.network = r.network and l.relayer = r.address and l.state in ('included', 'finalized')
           and l.block_number > b.block_number and l.block_number <= $2::bigint) as spent_wei,
       (select coalesce(sum(case when e.debit = 'gas:' || r.network || ':' || r.address then e.amount_atomic else -e.amount_atomic end), 0)
          from journal_entry e
         where e.book = 'own' and e.phase = 'posted' and e.entry_id > b.last_entry and e.tx_hash is null
           and 'gas:' || r.network || ':' || r.address in (e.debit, e.credit)
           and not exists (select from discrepancy d where d.resolution_entry = e.entry_id)) as moved_wei
  from relayer r
  left join lateral (select * from relayer_balance k where k.network = r.network and k.relayer = r.address
                      order by k.block_number desc limit 1) b on true
 where r.network = $1::text
 order by r.address;

-- name: record_balance :execute
insert into relayer_balance (network, relayer, block_number, wei, last_entry)
values ($1::text, $2::text, $3::bigint, $4::numeric, $5::bigint)
    on conflict do nothing;

-- Five minutes of the last day of which nothing is booked any more: they ended ten minutes before an hour ago, and a write lasts seconds.
-- name: uncounted_slices :many
select g.starts_at
  from generate_series(date_bin('5 minutes', now() - interval '1495 minutes', 'epoch'), now() - interval '75 minutes', interval '5 minutes')
       as g (starts_at)
 where not exists (select from settled_slice c where c.starts_at = g.starts_at)
 order by g.starts_at;

-- Once, whoever comes first. What is not settled for good is named instead; where that is much, the five minutes wait for it.
-- name: count_slice :execute
with ended as materialized (
    select s.settlement_id, s.network, s.asset, s.amount_atomic, s.state, s.state = 'finalized' or s.closed as decided,
           exists (select from (select r.from_block, r.ran_at from reconciliation_run r
                                 where r.network = s.network and r.background and r.to_block >= s.block_number order by r.to_block limit 1) held
                    where held.from_block <= s.block_number and held.ran_at <= s.resolved_at + interval '1 hour') as held
      from settlement s
     where s.resolved_at >= $1::timestamptz and s.resolved_at < $1::timestamptz + interval '5 minutes'
       and not exists (select from settled_slice where starts_at = $1::timestamptz)
), counted as (
    insert into settled_slice (starts_at, undecided)
    select $1::timestamptz, coalesce(array_agg(settlement_id) filter (where not decided), '{}')
      from ended having count(*) filter (where not decided) <= 100
        on conflict do nothing
    returning starts_at
)
insert into settled_sum (starts_at, network, asset, settled_atomic, held_atomic)
select c.starts_at, e.network, e.asset, sum(e.amount_atomic), coalesce(sum(e.amount_atomic) filter (where e.held), 0)
  from counted c cross join ended e
 where e.state = 'finalized'
 group by c.starts_at, e.network, e.asset;

-- Of what was settled in the day that ended an hour ago: how much was held against the chain within an hour, without a discrepancy. The
-- background goes through the blocks without a hole and once: the first of its runs that reaches a block is the one that holds it.
-- Five minutes that were counted are not read again but for what was undecided then; what a discrepancy is open of is taken off.
-- name: matched :many
with whole as (
    select starts_at, starts_at + interval '5 minutes' as ends_at, undecided from settled_slice
     where starts_at > now() - interval '25 hours'
), day as ( -- after its start and up to its end, in whole microseconds
    select now() - interval '25 hours' + interval '1 microsecond' as starts_at, now() - interval '1 hour' + interval '1 microsecond' as ends_at
), gap as (
    select coalesce(lag(w.ends_at) over (order by w.starts_at), d.starts_at) as starts_at, w.starts_at as ends_at from whole w cross join day d
    union all
    select coalesce((select max(ends_at) from whole), starts_at), ends_at from day
), one as (
    select s.network, s.asset, s.amount_atomic, s.state, s.block_number, s.resolved_at, 1 as times
      from gap g
     cross join lateral ( -- offset: each by itself, so that an index says where it is
        select * from settlement where resolved_at >= g.starts_at and resolved_at < g.ends_at offset 0) s
     where g.starts_at < g.ends_at
    union all
    select s.network, s.asset, s.amount_atomic, s.state, s.block_number, s.resolved_at, 1
      from whole w cross join unnest(w.undecided) u (settlement_id) join settlement s using (settlement_id)
     where s.resolved_at >= w.starts_at and s.resolved_at < w.ends_at
    union all
    select s.network, s.asset, s.amount_atomic, s.state, s.block_number, s.resolved_at, -1
      from (select distinct settlement_id from discrepancy where resolved_at is null and gone_at is null) d
      join settlement s using (settlement_id) join day on s.resolved_at >= day.starts_at and s.resolved_at < day.ends_at
)
select asset, sum(settled_atomic) as settled_atomic, sum(matched_atomic) as matched_atomic
  from (
    select c.asset, c.settled_atomic, c.held_atomic as matched_atomic from whole join settled_sum c using (starts_at) where c.network = $1::text
    union all
    select o.asset, case when o.times > 0 then o.amount_atomic else 0 end,
           case when exists (
               select from (select r.from_block, r.ran_at from reconciliation_run r
                             where r.network = o.network and r.background and r.to_block >= o.block_number order by r.to_block limit 1) held
                where held.from_block <= o.block_number and held.ran_at <= o.resolved_at + interval '1 hour')
           then o.times * o.amount_atomic else 0 end
      from one o
     where o.network = $1::text and o.state in ('included', 'safe', 'finalized')
  ) part
 group by asset order by asset;

-- name: lock_reconciling :one
select pg_try_advisory_xact_lock(hashtextextended($1::text, 402)) as mine;
