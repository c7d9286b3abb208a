-- The ledger as the reconciliation reads it: each settlement with its proof and with what is booked for it.

-- Settlements that claim a log in these blocks, as keyset pages.
-- name: claims_in_blocks :many
select s.settlement_id, s.network, s.asset, s.payer, s.auth_nonce, s.pay_to, s.amount_atomic, s.state, s.tx_hash, s.log_index,
       s.block_number, s.block_hash, coalesce((s.answer ->> 'success')::boolean, false) as told_success,
       p.debit as booked_debit, p.credit as booked_credit, p.asset as booked_asset, p.amount_atomic as booked_amount_atomic,
       r.phase as booked_phase
  from settlement s
  left join journal_entry p on p.settlement_id = s.settlement_id and p.admission = s.admissions and p.phase = 'pending'
  left join journal_entry r on r.resolves = p.entry_id
 where s.network = $1::text and s.block_number between $2::bigint and $3::bigint
   and s.state in ('preconfirmed', 'included', 'safe', 'finalized', 'external', 'cancelled', 'conflict')
   and ($4::uuid is null or s.settlement_id > $4::uuid)
 order by s.settlement_id
 limit $5::integer;

-- The settlements of authorizations that the chain has seen used or cancelled.
-- name: rows_of_authorizations :many
select s.settlement_id, s.network, s.asset, s.payer, s.auth_nonce, s.pay_to, s.amount_atomic, s.state, s.tx_hash, s.log_index,
       s.block_number, s.block_hash, coalesce((s.answer ->> 'success')::boolean, false) as told_success,
       p.debit as booked_debit, p.credit as booked_credit, p.asset as booked_asset, p.amount_atomic as booked_amount_atomic,
       r.phase as booked_phase
  from unnest($2::text[], $3::text[], $4::text[]) as a (asset, payer, auth_nonce)
  join settlement s on s.network = $1::text and s.asset = a.asset and s.payer = a.payer and s.auth_nonce = a.auth_nonce
  left join journal_entry p on p.settlement_id = s.settlement_id and p.admission = s.admissions and p.phase = 'pending'
  left join journal_entry r on r.resolves = p.entry_id
 order by s.settlement_id;

-- Settlements admitted in these blocks that claim no log: none of them may have been answered with success.
-- name: claimless_in_blocks :many
select s.settlement_id, s.network, s.asset, s.payer, s.auth_nonce, s.pay_to, s.amount_atomic, s.state, s.tx_hash, s.log_index,
       s.block_number, s.block_hash, coalesce((s.answer ->> 'success')::boolean, false) as told_success,
       p.debit as booked_debit, p.credit as booked_credit, p.asset as booked_asset, p.amount_atomic as booked_amount_atomic,
       r.phase as booked_phase
  from settlement s
  left join journal_entry p on p.settlement_id = s.settlement_id and p.admission = s.admissions and p.phase = 'pending'
  left join journal_entry r on r.resolves = p.entry_id
 where s.network = $1::text and s.admitted_block between $2::bigint and $3::bigint
   and s.state in ('queued', 'submitted', 'withdrawn', 'failed', 'expired')
   and ($4::uuid is null or s.settlement_id > $4::uuid)
 order by s.settlement_id
 limit $5::integer;
