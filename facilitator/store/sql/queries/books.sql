-- The books as reports and exports read them. Long reads, each in one snapshot; see `Db.snapshot`.

-- One line for each admission of a settlement that has ended, in the order in which the endings were booked. The move that
-- ended it was written in the same transaction as its entry, so both carry the same time. Of one tenant they are found by its settlements
-- and their pending entries, of all by when they ended.
-- name: settlement_lines :many
select p.entry_id as pending_entry_id, r.entry_id, r.phase, s.settlement_id, s.tenant_id, 
       coalesce(s.payment_identifier, s.idempotency_key) as payment_identifier, s.request_id, s.scheme,
       s.network, s.asset, s.payer, s.pay_to, p.amount_atomic, s.auth_nonce, s.valid_after, s.valid_before, s.resource,
       coalesce(e.to_state, s.state) as state, e.reason, p.happened_at as requested_at, m.submitted_at, m.included_at,
       m.finalized_at, r.happened_at, r.booked_at, r.tx_hash,
       case when s.admissions = r.admission then s.screening end as screening,
       case when s.admissions = r.admission then s.log_index end as log_index,
       case when s.admissions = r.admission then s.block_number end as block_number,
       case when s.admissions = r.admission then s.block_hash end as block_hash,
       l.relayer, l.tx_nonce, t.gas_used, t.effective_gas_price_wei, t.l1_fee_wei, t.operator_fee_wei, i.cost_wei,
       q.usd_e8, q.source as rate_source, q.round as rate_round,
       q.quoted_at as rate_at, f.seal_no, q.quoted_at > q.used_at - make_interval(secs => $4::double precision) as rate_fresh
  from journal_entry r
  join journal_entry p on p.entry_id = r.resolves and p.phase = 'pending'
  join settlement s on s.settlement_id = p.settlement_id
  left join settlement_move e
    on e.settlement_id = r.settlement_id and e.moved_at = r.booked_at
   and e.to_state not in ('queued', 'submitted', 'preconfirmed', 'included', 'safe')
  left join lateral (
      select max(moved_at) filter (where to_state = 'submitted') as submitted_at,
             max(moved_at) filter (where to_state = 'included') as included_at,
             max(moved_at) filter (where to_state = 'finalized') as finalized_at
        from settlement_move where settlement_id = r.settlement_id and moved_at between p.booked_at and r.booked_at) m on true
  left join relayer_transaction t on t.tx_hash = r.tx_hash
  left join relayer_slot l on l.slot_id = t.slot_id
  left join sealed_leaf f on f.source = 'journal' and f.row_id = r.entry_id
  left join slot_item i on i.slot_id = t.slot_id and i.settlement_id = r.settlement_id
  left join lateral (
      select a.usd_e8, a.source, a.round, a.quoted_at, coalesce(m.included_at, r.happened_at) as used_at from rate a
       where a.network = s.network and a.quoted_at <= coalesce(m.included_at, r.happened_at)
       order by a.quoted_at desc limit 1) q on t.gas_used is not null
 where r.phase in ('posted', 'voided') and r.happened_at >= $1::timestamptz and r.happened_at < $2::timestamptz
   and ($3::text is null or s.tenant_id = $3::text)
 order by r.happened_at, r.entry_id;

-- How far the books are complete: what is not final yet may still end in any period that is not over.
-- name: completeness :many
select n.network, now() as read_at,
       (select min(queued_at) from settlement s where s.network = n.network and s.state in ('queued', 'submitted')) as open_since,
       (select min(queued_at) from settlement s
         where s.network = n.network and s.state in ('preconfirmed', 'included', 'safe')) as unfinal_since,
       (select s.block_number from settlement s
         where s.network = n.network and s.state = 'finalized' order by s.settlement_id desc limit 1) as final_block
  from (select distinct network from relayer) n
 order by n.network;

-- Entries in the order in which they were booked. A voided entry and the pending one that it ends say together that nothing came of it.
-- name: journal_lines :many
select e.entry_id, e.book, e.phase, e.debit, e.credit, e.asset, e.amount_atomic, e.settlement_id, e.tx_hash, e.reference, e.resolves,
       r.entry_id as resolved_by, e.happened_at, e.booked_at
  from journal_entry e left join journal_entry r on r.resolves = e.entry_id
 where e.happened_at >= $1::timestamptz and e.happened_at < $2::timestamptz
 order by e.entry_id;

-- Pending entries from before this moment that nothing has resolved.
-- name: open_lines :many
select e.entry_id, e.book, e.phase, e.debit, e.credit, e.asset, e.amount_atomic, e.settlement_id, e.tx_hash, e.reference, e.resolves,
       null::bigint as resolved_by, e.happened_at, e.booked_at
  from journal_entry e
 where e.phase = 'pending' and e.happened_at < $1::timestamptz
   and not exists (select from journal_entry r where r.resolves = e.entry_id)
 order by e.entry_id;

-- Each account's turnover before this moment: what is posted, and what is pending still.
-- name: balances :many
select account, asset, sum(debit) filter (where posted) as debits_atomic, sum(credit) filter (where posted) as credits_atomic,
       sum(debit - credit) filter (where not posted) as pending_atomic
  from (select e.entry_id, e.phase = 'posted' as posted, e.debit as account, e.asset, e.amount_atomic as debit, 0::numeric as credit
          from journal_entry e where e.happened_at < $1::timestamptz and e.phase <> 'voided'
        union all
        select e.entry_id, e.phase = 'posted', e.credit, e.asset, 0::numeric, e.amount_atomic
          from journal_entry e where e.happened_at < $1::timestamptz and e.phase <> 'voided') legs
 where posted or not exists (select from journal_entry r where r.resolves = legs.entry_id)
 group by account, asset
 order by account, asset;

-- Own entries in the coin of a network that are posted: what each transaction cost by cause, whomever it paid, and what relayers were
-- sent and sent away. The pending entry was booked when the transaction was included, as the move of what it carried.
-- name: gas_lines :many
select e.entry_id, e.resolves as pending_entry_id, split_part(e.asset, '/', 1) as network, e.debit, e.credit, e.amount_atomic as amount_wei,
       e.reference, p.happened_at as included_at, e.happened_at, e.booked_at, e.tx_hash, l.tx_nonce, l.block_number, l.block_hash,
       (select count(*) from slot_item i where i.slot_id = l.slot_id) as settlements,
       t.gas_used, t.effective_gas_price_wei, t.l1_fee_wei, t.operator_fee_wei,
       q.usd_e8, q.source as rate_source, q.round as rate_round, q.quoted_at as rate_at, f.seal_no,
       q.quoted_at > p.happened_at - make_interval(secs => $3::double precision) as rate_fresh
  from journal_entry e
  join journal_entry p on p.entry_id = e.resolves
  left join relayer_transaction t on t.tx_hash = e.tx_hash
  left join relayer_slot l on l.slot_id = t.slot_id
  left join sealed_leaf f on f.source = 'journal' and f.row_id = e.entry_id
  left join lateral (
      select a.usd_e8, a.source, a.round, a.quoted_at from rate a
       where a.network = split_part(e.asset, '/', 1) and a.quoted_at <= p.happened_at
       order by a.quoted_at desc limit 1) q on t.gas_used is not null
 where e.book = 'own' and e.phase = 'posted' and e.asset like '%/native'
   and e.happened_at >= $1::timestamptz and e.happened_at < $2::timestamptz
 order by e.happened_at, e.entry_id;
