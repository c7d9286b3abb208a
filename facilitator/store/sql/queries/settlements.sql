-- Settlements: one row per authorization that was ever admitted.

-- The records of these authorizations, and the ones to which tenants bound these idempotency keys and payment identifiers.
-- Each is looked up by itself (`offset 0` keeps the planner from joining them): on a ledger that was never analysed, which is believed to be
-- small, it would read all of the table instead, and go on so while it grows.
-- name: own_records :many
select s.settlement_id, s.network, s.asset, s.payer, s.auth_nonce, s.scheme, s.pay_to, s.amount_atomic, s.valid_after,
       s.valid_before, s.signature, s.fingerprint, s.tenant_id, s.request_id, s.resource, s.state, s.moves, s.admissions,
       s.admitted_block, s.reason, s.tx_hash, s.log_index, s.block_number, s.block_hash, s.queued_at, s.resolved_at,
       s.answer_state, s.answer_holder, s.answer_epoch, s.answer_shared, s.idempotency_key, s.answer, s.alone, s.confirm_level, s.accept_external, s.closed, s.payment_identifier, s.traceparent, s.screening,
       coalesce(r.seen_at > now() - make_interval(secs => $7::double precision), false) as holder_alive,
       s.answer_state = 'spent' and coalesce(s.answer_due > now(), false) as answer_under_way
  from unnest($1::text[], $2::text[], $3::text[], $4::text[]) as a (network, asset, payer, auth_nonce)
 cross join lateral (select * from settlement s where s.network = a.network and s.asset = a.asset and s.payer = a.payer and s.auth_nonce = a.auth_nonce offset 0) s
  left join replica r on r.replica_id = s.answer_holder
union all
select s.settlement_id, s.network, s.asset, s.payer, s.auth_nonce, s.scheme, s.pay_to, s.amount_atomic, s.valid_after,
       s.valid_before, s.signature, s.fingerprint, s.tenant_id, s.request_id, s.resource, s.state, s.moves, s.admissions,
       s.admitted_block, s.reason, s.tx_hash, s.log_index, s.block_number, s.block_hash, s.queued_at, s.resolved_at,
       s.answer_state, s.answer_holder, s.answer_epoch, s.answer_shared, s.idempotency_key, s.answer, s.alone, s.confirm_level, s.accept_external, s.closed, s.payment_identifier, s.traceparent, s.screening,
       coalesce(r.seen_at > now() - make_interval(secs => $7::double precision), false) as holder_alive,
       s.answer_state = 'spent' and coalesce(s.answer_due > now(), false) as answer_under_way
  from unnest($5::text[], $6::text[]) as a (tenant_id, idempotency_key)
 cross join lateral (select * from settlement s where s.tenant_id = a.tenant_id and s.idempotency_key = a.idempotency_key offset 0) s
  left join replica r on r.replica_id = s.answer_holder
union all
select s.settlement_id, s.network, s.asset, s.payer, s.auth_nonce, s.scheme, s.pay_to, s.amount_atomic, s.valid_after,
       s.valid_before, s.signature, s.fingerprint, s.tenant_id, s.request_id, s.resource, s.state, s.moves, s.admissions,
       s.admitted_block, s.reason, s.tx_hash, s.log_index, s.block_number, s.block_hash, s.queued_at, s.resolved_at,
       s.answer_state, s.answer_holder, s.answer_epoch, s.answer_shared, s.idempotency_key, s.answer, s.alone, s.confirm_level, s.accept_external, s.closed, s.payment_identifier, s.traceparent, s.screening,
       coalesce(r.seen_at > now() - make_interval(secs => $7::double precision), false) as holder_alive,
       s.answer_state = 'spent' and coalesce(s.answer_due > now(), false) as answer_under_way
  from unnest($8::text[], $9::text[]) as a (tenant_id, payment_identifier)
 cross join lateral (select * from settlement s where s.tenant_id = a.tenant_id and s.payment_identifier = a.payment_identifier offset 0) s
  left join replica r on r.replica_id = s.answer_holder;

-- The same where no caller named a key or an identifier: a third of the planning, which PostgreSQL does for each execution anew, because for
-- an array as short as the one it got it finds a cheaper plan than one for all lengths; 0.12 ms of its processor time for one payment, not 0.37.
-- name: records_of_authorizations :many
select s.settlement_id, s.network, s.asset, s.payer, s.auth_nonce, s.scheme, s.pay_to, s.amount_atomic, s.valid_after,
       s.valid_before, s.signature, s.fingerprint, s.tenant_id, s.request_id, s.resource, s.state, s.moves, s.admissions,
       s.admitted_block, s.reason, s.tx_hash, s.log_index, s.block_number, s.block_hash, s.queued_at, s.resolved_at,
       s.answer_state, s.answer_holder, s.answer_epoch, s.answer_shared, s.idempotency_key, s.answer, s.alone, s.confirm_level, s.accept_external, s.closed, s.payment_identifier, s.traceparent, s.screening,
       coalesce(r.seen_at > now() - make_interval(secs => $5::double precision), false) as holder_alive,
       s.answer_state = 'spent' and coalesce(s.answer_due > now(), false) as answer_under_way
  from unnest($1::text[], $2::text[], $3::text[], $4::text[]) as a (network, asset, payer, auth_nonce)
 cross join lateral (select * from settlement s where s.network = a.network and s.asset = a.asset and s.payer = a.payer and s.auth_nonce = a.auth_nonce offset 0) s
  left join replica r on r.replica_id = s.answer_holder;

-- name: records :many
select s.settlement_id, s.network, s.asset, s.payer, s.auth_nonce, s.scheme, s.pay_to, s.amount_atomic, s.valid_after,
       s.valid_before, s.signature, s.fingerprint, s.tenant_id, s.request_id, s.resource, s.state, s.moves, s.admissions,
       s.admitted_block, s.reason, s.tx_hash, s.log_index, s.block_number, s.block_hash, s.queued_at, s.resolved_at,
       s.answer_state, s.answer_holder, s.answer_epoch, s.answer_shared, s.idempotency_key, s.answer, s.alone, s.confirm_level, s.accept_external, s.closed, s.payment_identifier, s.traceparent, s.screening,
       coalesce(r.seen_at > now() - make_interval(secs => $2::double precision), false) as holder_alive,
       s.answer_state = 'spent' and coalesce(s.answer_due > now(), false) as answer_under_way
  from settlement s left join replica r on r.replica_id = s.answer_holder
 where s.settlement_id = any($1::uuid[]);

-- Keyset page, newest first; every filter may be null.
-- name: page :many
select s.settlement_id, s.network, s.asset, s.payer, s.auth_nonce, s.scheme, s.pay_to, s.amount_atomic, s.valid_after,
       s.valid_before, s.signature, s.fingerprint, s.tenant_id, s.request_id, s.resource, s.state, s.moves, s.admissions,
       s.admitted_block, s.reason, s.tx_hash, s.log_index, s.block_number, s.block_hash, s.queued_at, s.resolved_at,
       s.answer_state, s.answer_holder, s.answer_epoch, s.answer_shared, s.idempotency_key, s.answer, s.alone, s.confirm_level, s.accept_external, s.closed, s.payment_identifier, s.traceparent, s.screening,
       true as holder_alive, false as answer_under_way
  from settlement s
 where ($1::text is null or s.tenant_id = $1::text)
   and ($2::timestamptz is null or s.queued_at >= $2::timestamptz)
   and ($3::timestamptz is null or s.queued_at < $3::timestamptz)
   and ($4::text is null or s.state = $4::text)
   and ($5::text is null or s.payer = $5::text)
   and ($6::text is null or s.pay_to = $6::text)
   and ($7::text is null or s.network = $7::text)
   and ($8::text is null or s.asset = $8::text)
   and ($9::text is null or s.tx_hash = $9::text)
   and ($10::uuid is null or s.settlement_id < $10::uuid)
 order by s.settlement_id desc
 limit $11::integer;

-- name: history :many
select settlement_id, move, from_state, to_state, tx_hash, reason, moved_at
  from settlement_move where settlement_id = any($1::uuid[]) order by settlement_id, move;

-- What the mined transactions that carried a settlement cost, in wei, and its share of each.
-- name: costs :many
select i.settlement_id, t.tx_hash, t.gas_used, t.effective_gas_price_wei, t.l1_fee_wei, t.operator_fee_wei,
       i.cost_wei as share_wei, (select count(*) from slot_item o where o.slot_id = i.slot_id)::integer as items
  from slot_item i join relayer_slot s using (slot_id) join relayer_transaction t on t.tx_hash = s.mined_tx_hash
 where i.settlement_id = any($1::uuid[]) and i.cost_wei is not null and t.gas_used is not null
 order by i.settlement_id, t.slot_id;

-- The write-ahead: admits settlements, reserves tx_nonces and stores every signed transaction, or stores nothing.
-- Without a reservation (no relayer, stale epoch, other nonce) the settlements are admitted as `queued`.
-- What the transactions may cost is held of the budgets of tenants who have one, each payment an even share (ADR 25): one that
-- does not suffice, or is in dollars while no rate is fresh, breaks `gas_day_within`, and nothing is stored.
-- name: write_ahead :many
with offered as (
    select * from unnest(
        $7::uuid[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[],
        $16::bytea[], $17::bytea[], $18::text[], $19::text[], $20::text[], $21::bigint[], $22::text[], $23::text[],
        $24::bigint[], $25::integer[], $26::text[], $27::text[], $28::text[], $36::boolean[], $37::text[], $38::boolean[], $39::text[],
        $40::text[], $41::text[]
    ) as o (settlement_id, asset, payer, auth_nonce, scheme, pay_to, amount_atomic, valid_after, valid_before,
            signature, fingerprint, tenant_id, request_id, resource, admitted_block, idempotency_key, tx_hash,
            tx_nonce, item_index, debit, credit, entry_asset, alone, confirm_level, accept_external, payment_identifier,
            traceparent, screening)
), reserved as (
    update relayer set next_tx_nonce = next_tx_nonce + $6::integer
     where network = $1::text and address = $2::text and owner = $3::text and epoch = $4::bigint
       and next_tx_nonce = $5::bigint and status = 'active' and lease_until > now()
    returning epoch
), admitted as (
    insert into settlement (settlement_id, network, asset, payer, auth_nonce, scheme, pay_to, amount_atomic, valid_after,
                            valid_before, signature, fingerprint, tenant_id, request_id, resource, state, moves,
                            admitted_block, tx_hash, answer_holder, idempotency_key, alone, confirm_level, accept_external,
                            payment_identifier, traceparent, screening)
    select o.settlement_id, $1::text, o.asset, o.payer, o.auth_nonce, o.scheme, o.pay_to, o.amount_atomic::numeric,
           o.valid_after::numeric, o.valid_before::numeric, o.signature, o.fingerprint, o.tenant_id, o.request_id,
           o.resource, case when exists (select from reserved) then 'submitted' else 'queued' end,
           case when exists (select from reserved) then 1 else 0 end, o.admitted_block,
           case when exists (select from reserved) then o.tx_hash end, $3::text, o.idempotency_key, o.alone,
           o.confirm_level, o.accept_external, o.payment_identifier, o.traceparent, o.screening::jsonb
      from offered o
    returning settlement_id
), moved as (
    insert into settlement_move (settlement_id, move, from_state, to_state, tx_hash)
    select o.settlement_id, 1, 'queued', 'submitted', o.tx_hash from offered o where exists (select from reserved)
), entries as (
    insert into journal_entry (phase, debit, credit, asset, amount_atomic, settlement_id, admission)
    select 'pending', o.debit, o.credit, o.entry_asset, o.amount_atomic::numeric, o.settlement_id, 1 from offered o
), slots as (
    insert into relayer_slot (network, relayer, tx_nonce, epoch, kind, state)
    select $1::text, $2::text, s.tx_nonce, $4::bigint, s.kind, 'open'
      from unnest($29::bigint[], $30::text[]) as s (tx_nonce, kind) where exists (select from reserved)
    returning slot_id, tx_nonce
), budgeted as (
    select t.tenant_id, t.gas_wei_per_day, t.gas_usd_micros_per_day,
           (select r.usd_e8 from rate r
             where t.gas_usd_micros_per_day is not null and r.network = $1::text
               and r.quoted_at > now() - make_interval(secs => $43::double precision)
             order by r.quoted_at desc limit 1) as usd_e8
      from tenant t
     where t.tenant_id in (select tenant_id from offered) and coalesce(t.gas_wei_per_day, t.gas_usd_micros_per_day) is not null
       and exists (select from reserved)
), held as (
    select c.settlement_id, b.tenant_id, c.wei,
           case when b.gas_usd_micros_per_day is not null
                then div(c.wei * coalesce(b.usd_e8, 0) + 99999999999999999999, 100000000000000000000) end as usd_micros
      from (select o.settlement_id, o.tenant_id,
                   div(m.wei::numeric + count(*) over slot - 1, count(*) over slot) as wei
              from offered o join unnest($29::bigint[], $42::text[]) as m (tx_nonce, wei) on m.tx_nonce = o.tx_nonce
            window slot as (partition by o.tx_nonce)) c
      join budgeted b using (tenant_id)
), budget as (
    insert into gas_day (tenant_id, day, unit, most, held)
    select n.tenant_id, (now() at time zone 'utc')::date, n.unit, min(n.most), sum(n.held)
      from (select h.tenant_id, $1::text as unit, b.gas_wei_per_day as most, h.wei as held from held h join budgeted b using (tenant_id)
            union all
            select h.tenant_id, 'usd', case when b.usd_e8 is null then -1 else b.gas_usd_micros_per_day end, h.usd_micros
              from held h join budgeted b using (tenant_id) where h.usd_micros is not null) n
     group by n.tenant_id, n.unit order by n.tenant_id, n.unit
        on conflict (tenant_id, day, unit) do update set most = excluded.most, held = gas_day.held + excluded.held
), items as (
    insert into slot_item (slot_id, item_index, settlement_id, gas_day, held_wei, held_usd_micros)
    select s.slot_id, o.item_index, o.settlement_id, case when h.wei is not null then (now() at time zone 'utc')::date end, h.wei, h.usd_micros
      from offered o join slots s on s.tx_nonce = o.tx_nonce left join held h using (settlement_id)
), transactions as (
    insert into relayer_transaction (tx_hash, slot_id, attempt, purpose, raw, gas, max_fee_wei, max_priority_fee_wei)
    select t.tx_hash, s.slot_id, 0, 'payment', t.raw, t.gas, t.max_fee_wei::numeric, t.max_priority_fee_wei::numeric
      from unnest($29::bigint[], $31::text[], $32::bytea[], $33::bigint[], $34::text[], $35::text[])
           as t (tx_nonce, tx_hash, raw, gas, max_fee_wei, max_priority_fee_wei)
      join slots s on s.tx_nonce = t.tx_nonce
)
select slot_id, tx_nonce from slots;

-- Admit again what was withdrawn or failed, once every slot that carried it is final. Other terms are welcome: the
-- authorization was never paid.
-- name: readmit :optional
with readmitted as (
    update settlement s
       set state = 'queued', moves = s.moves + 1, admissions = s.admissions + 1, scheme = $3::text, pay_to = $4::text,
           amount_atomic = $5::text::numeric, valid_after = $6::text::numeric, valid_before = $7::text::numeric,
           signature = $8::bytea, fingerprint = $9::bytea, tenant_id = $10::text, request_id = $11::text,
           resource = $12::text, admitted_block = $13::bigint, idempotency_key = $14::text, reason = null, tx_hash = null,
           log_index = null, block_number = null, block_hash = null, resolved_at = null, answer = null,
           answer_state = 'held', answer_holder = $2::text, answer_epoch = s.answer_epoch + 1, answer_shared = false,
           queued_at = now(), alone = true, confirm_level = $19::text, accept_external = $20::boolean, closed = false,
           nonce_checked_at = null, payment_identifier = $21::text, traceparent = $22::text, screening = $23::text::jsonb
     where s.settlement_id = $1::uuid and s.state in ('withdrawn', 'failed')
       and not exists (select from slot_item i join relayer_slot r using (slot_id)
                        where i.settlement_id = s.settlement_id and r.state <> 'finalized' and not r.closed)
    returning s.settlement_id, s.moves, s.admissions, s.answer_epoch, s.network
), moved as (
    insert into settlement_move (settlement_id, move, from_state, to_state)
    select settlement_id, moves, $18::text, 'queued' from readmitted
), entries as (
    insert into journal_entry (phase, debit, credit, asset, amount_atomic, settlement_id, admission)
    select 'pending', $15::text, $16::text, $17::text, $5::text::numeric, settlement_id, admissions from readmitted
)
select answer_epoch, pg_notify('facilitator_queue', network)::text as notified from readmitted;

-- Payments of a transaction of ours that was found on chain and whose record was lost; those on record stay as they are.
-- name: record_found :execute
with offered as (
    select * from unnest(
        $5::uuid[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::text[],
        $14::bytea[], $15::bytea[], $16::integer[], $17::text[], $18::text[], $19::text[]
    ) as o (settlement_id, asset, payer, auth_nonce, scheme, pay_to, amount_atomic, valid_after, valid_before,
            signature, fingerprint, item_index, debit, credit, entry_asset)
), admitted as (
    insert into settlement (settlement_id, network, asset, payer, auth_nonce, scheme, pay_to, amount_atomic, valid_after,
                            valid_before, signature, fingerprint, tenant_id, request_id, state, moves, admitted_block,
                            tx_hash, answer_holder, answer_state)
    select o.settlement_id, $1::text, o.asset, o.payer, o.auth_nonce, o.scheme, o.pay_to, o.amount_atomic::numeric,
           o.valid_after::numeric, o.valid_before::numeric, o.signature, o.fingerprint, $2::text, 'found', 'submitted', 1,
           $4::bigint, $3::text, 'nobody', 'held'
      from offered o
        on conflict (network, asset, payer, auth_nonce) do nothing
    returning settlement_id
), moved as (
    insert into settlement_move (settlement_id, move, from_state, to_state, tx_hash)
    select settlement_id, 1, 'queued', 'submitted', $3::text from admitted
), entries as (
    insert into journal_entry (phase, debit, credit, asset, amount_atomic, settlement_id, admission)
    select 'pending', o.debit, o.credit, o.entry_asset, o.amount_atomic::numeric, o.settlement_id, 1
      from offered o join admitted using (settlement_id)
)
insert into slot_item (slot_id, item_index, settlement_id)
select t.slot_id, o.item_index, o.settlement_id
  from offered o join admitted using (settlement_id) join relayer_transaction t on t.tx_hash = $3::text;

-- name: notify_queue :execute
select pg_notify('facilitator_queue', $1::text);

-- How long the oldest of each asset has waited; those that are put off are no sign of load.
-- name: queue_ages :many
select asset, extract(epoch from now() - min(queued_at))::double precision as oldest_s
  from settlement where network = $1::text and state = 'queued' and settlement_id <> all($2::uuid[])
 group by asset;

-- Oldest first, but for those that would expire before their turn (as domain/pressure.py has it); judged against the chain
-- before they are claimed.
-- name: list_queued :many
select s.settlement_id, s.network, s.asset, s.payer, s.auth_nonce, s.scheme, s.pay_to, s.amount_atomic, s.valid_after,
       s.valid_before, s.signature, s.fingerprint, s.tenant_id, s.request_id, s.resource, s.state, s.moves, s.admissions,
       s.admitted_block, s.reason, s.tx_hash, s.log_index, s.block_number, s.block_hash, s.queued_at, s.resolved_at,
       s.answer_state, s.answer_holder, s.answer_epoch, s.answer_shared, s.idempotency_key, s.answer, s.alone, s.confirm_level, s.accept_external, s.closed, s.payment_identifier, s.traceparent, s.screening,
       true as holder_alive, false as answer_under_way
  from settlement s
 where s.network = $1::text and s.state = 'queued' and s.settlement_id <> all($3::uuid[])
 order by least(extract(epoch from s.queued_at) + $4::double precision, s.valid_before - 6)
 limit $2::integer;

-- As they were judged: what was withdrawn and admitted again meanwhile, perhaps with other terms, is another admission.
-- name: claim_queued :many
select s.settlement_id from settlement s join unnest($1::uuid[], $2::integer[]) as j (settlement_id, moves) using (settlement_id)
 where s.state = 'queued' and s.moves = j.moves
   for update of s skip locked;

-- What settlements that were claimed in this transaction were held against right before they were signed.
-- name: restamp :execute
update settlement s set screening = j.screening::jsonb
  from unnest($1::uuid[], $2::text[]) as j (settlement_id, screening) where s.settlement_id = j.settlement_id;

-- The write-ahead for settlements that were claimed in this transaction.
-- name: dispatch_claimed :many
with offered as (
    select o.*, s.tenant_id
      from unnest($7::uuid[], $8::text[], $9::bigint[], $10::integer[]) as o (settlement_id, tx_hash, tx_nonce, item_index)
      join settlement s using (settlement_id)
), reserved as (
    update relayer set next_tx_nonce = next_tx_nonce + $6::integer
     where network = $1::text and address = $2::text and owner = $3::text and epoch = $4::bigint
       and next_tx_nonce = $5::bigint and status = 'active' and lease_until > now()
    returning epoch
), submitted as (
    update settlement s set state = 'submitted', moves = s.moves + 1, tx_hash = o.tx_hash
      from offered o where s.settlement_id = o.settlement_id and s.state = 'queued' and exists (select from reserved)
    returning s.settlement_id, s.moves, s.tx_hash, s.answer_holder
), moved as (
    insert into settlement_move (settlement_id, move, from_state, to_state, tx_hash)
    select settlement_id, moves, 'queued', 'submitted', tx_hash from submitted
), slots as (
    insert into relayer_slot (network, relayer, tx_nonce, epoch, kind, state)
    select $1::text, $2::text, s.tx_nonce, $4::bigint, s.kind, 'open'
      from unnest($11::bigint[], $12::text[]) as s (tx_nonce, kind) where exists (select from reserved)
    returning slot_id, tx_nonce
), budgeted as (
    select t.tenant_id, t.gas_wei_per_day, t.gas_usd_micros_per_day,
           (select r.usd_e8 from rate r
             where t.gas_usd_micros_per_day is not null and r.network = $1::text
               and r.quoted_at > now() - make_interval(secs => $19::double precision)
             order by r.quoted_at desc limit 1) as usd_e8
      from tenant t
     where t.tenant_id in (select tenant_id from offered) and coalesce(t.gas_wei_per_day, t.gas_usd_micros_per_day) is not null
       and exists (select from reserved)
), held as (
    select c.settlement_id, b.tenant_id, c.wei,
           case when b.gas_usd_micros_per_day is not null
                then div(c.wei * coalesce(b.usd_e8, 0) + 99999999999999999999, 100000000000000000000) end as usd_micros
      from (select o.settlement_id, o.tenant_id,
                   div(m.wei::numeric + count(*) over slot - 1, count(*) over slot) as wei
              from offered o join unnest($11::bigint[], $18::text[]) as m (tx_nonce, wei) on m.tx_nonce = o.tx_nonce
            window slot as (partition by o.tx_nonce)) c
      join budgeted b using (tenant_id)
), budget as (
    insert into gas_day (tenant_id, day, unit, most, held)
    select n.tenant_id, (now() at time zone 'utc')::date, n.unit, min(n.most), sum(n.held)
      from (select h.tenant_id, $1::text as unit, b.gas_wei_per_day as most, h.wei as held from held h join budgeted b using (tenant_id)
            union all
            select h.tenant_id, 'usd', case when b.usd_e8 is null then -1 else b.gas_usd_micros_per_day end, h.usd_micros
              from held h join budgeted b using (tenant_id) where h.usd_micros is not null) n
     group by n.tenant_id, n.unit order by n.tenant_id, n.unit
        on conflict (tenant_id, day, unit) do update set most = excluded.most, held = gas_day.held + excluded.held
), items as (
    insert into slot_item (slot_id, item_index, settlement_id, gas_day, held_wei, held_usd_micros)
    select s.slot_id, o.item_index, o.settlement_id, case when h.wei is not null then (now() at time zone 'utc')::date end, h.wei, h.usd_micros
      from offered o join slots s on s.tx_nonce = o.tx_nonce left join held h using (settlement_id)
), transactions as (
    insert into relayer_transaction (tx_hash, slot_id, attempt, purpose, raw, gas, max_fee_wei, max_priority_fee_wei)
    select t.tx_hash, s.slot_id, 0, 'payment', t.raw, t.gas, t.max_fee_wei::numeric, t.max_priority_fee_wei::numeric
      from unnest($11::bigint[], $13::text[], $14::bytea[], $15::bigint[], $16::text[], $17::text[])
           as t (tx_nonce, tx_hash, raw, gas, max_fee_wei, max_priority_fee_wei)
      join slots s on s.tx_nonce = t.tx_nonce
)
select slot_id, tx_nonce from slots;

-- Outcomes of one look at the chain: state moves, their entries, answers, slots and costs commit together.
-- A row is touched only in the state it was judged in; an answer that may have been told is never rewritten.
-- A slot closes only with everything that it carries: what was judged in another state than it is in keeps its slot open, for
-- whoever owns the relayer takes it up again as it is on record. What was held of gas budgets for it becomes what it cost, in
-- dollars at the rate that it was held at.
-- name: resolve :many
with judged as (
    select * from unnest(
        $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::integer[], $8::bigint[], $9::text[], $10::text[],
        $11::integer[], $12::text[], $23::integer[], $33::text[], $34::boolean[]
    ) as o (settlement_id, from_state, to_state, reason, tx_hash, log_index, block_number, block_hash, answer,
            spend_epoch, phase, moves, struck_by, of_payer)
), resolved as (
    update settlement s
       set state = o.to_state, moves = s.moves + 1, alone = s.alone or o.to_state = 'queued', reason = o.reason,
           tx_hash = coalesce(o.tx_hash, s.tx_hash),
           log_index = o.log_index, block_number = o.block_number, block_hash = o.block_hash,
           resolved_at = case when o.to_state in ('queued', 'submitted') then null else coalesce(s.resolved_at, now()) end,
           answer = case when s.answer ->> 'success' = 'true' and s.answer_state <> 'spent' then o.answer::jsonb
                         else coalesce(s.answer, o.answer::jsonb) end,
           answer_state = case when s.answer_state <> 'held' or o.to_state in ('queued', 'submitted') then s.answer_state
                               when o.answer::jsonb ->> 'success' = 'false' or s.answer ->> 'success' = 'false' then 'free'
                               when s.answer_holder = $1::text and s.answer_epoch = o.spend_epoch then 'spent'
                               else 'held' end,
           answer_due = case when s.answer_state = 'held' and s.answer_holder = $1::text and s.answer_epoch = o.spend_epoch
                             then now() + make_interval(secs => $22::double precision) else s.answer_due end
      from judged o
     where s.settlement_id = o.settlement_id and s.state = o.from_state and s.moves = coalesce(o.moves, s.moves)
    returning s.settlement_id, s.network, s.state, s.moves, s.admissions, s.tx_hash, s.reason, s.answer_state, s.answer_holder,
              s.answer_epoch, s.answer, s.confirm_level, s.tenant_id, s.payer, o.from_state, o.phase, o.struck_by, o.of_payer
), struck as (
    insert into strike (settlement_id, tx_hash, tenant_id, payer, reason, of_payer)
    select settlement_id, struck_by, tenant_id, payer, reason, of_payer from resolved where struck_by is not null
        on conflict (settlement_id, tx_hash) do update
           set reason = excluded.reason, of_payer = excluded.of_payer, voided = false, struck_at = now()
), lost as (
    insert into incident (network, kind, settlement_id, tx_hash, detail)
    select network, 'lost_after_success', settlement_id, tx_hash,
           'success was told at confirm level ' || confirm_level || ', and the payment ended as ' || state
      from resolved
     where answer ->> 'success' = 'true' and state in ('failed', 'expired', 'cancelled', 'conflict')
), moved as (
    insert into settlement_move (settlement_id, move, from_state, to_state, tx_hash, reason)
    select settlement_id, moves, from_state, state, tx_hash, reason from resolved
), entries as (
    insert into journal_entry (phase, debit, credit, asset, amount_atomic, settlement_id, admission, tx_hash, resolves)
    select r.phase, e.debit, e.credit, e.asset, e.amount_atomic, e.settlement_id, e.admission, r.tx_hash, e.entry_id
      from resolved r join journal_entry e
        on e.settlement_id = r.settlement_id and e.admission = r.admissions and e.phase = 'pending'
     where r.phase is not null
), closed as (
    update relayer_slot s set state = o.state, mined_tx_hash = o.mined_tx_hash, block_number = o.block_number, block_hash = o.block_hash
      from unnest($13::bigint[], $14::text[], $15::text[], $16::bigint[], $17::text[])
           as o (slot_id, state, mined_tx_hash, block_number, block_hash)
     where s.slot_id = o.slot_id and s.state = 'open'
       and not exists (select from slot_item i join settlement t using (settlement_id)
                        where i.slot_id = s.slot_id and i.unresolved and t.state in ('submitted', 'preconfirmed')
                          and t.settlement_id not in (select settlement_id from resolved))
    returning s.slot_id, s.mined_tx_hash
), freed as (
    update slot_item i set unresolved = false, cost_wei = coalesce(o.wei, i.cost_wei)
      from (select e.slot_id, e.settlement_id, h.wei::numeric as wei
              from slot_item e
              left join unnest($25::bigint[], $26::uuid[], $27::text[]) as h (slot_id, settlement_id, wei)
                     on (h.slot_id, h.settlement_id) = (e.slot_id, e.settlement_id)
             where e.slot_id in (select slot_id from closed) and (e.unresolved or h.wei is not null or e.held_wei is not null)) o
     where (i.slot_id, i.settlement_id) = (o.slot_id, o.settlement_id)
    returning i.settlement_id, i.gas_day, i.held_wei, i.held_usd_micros, coalesce(o.wei, 0) as cost_wei
), due as (
    select s.tenant_id, f.gas_day as day, u.unit, sum(u.held) as held, sum(u.spent) as spent
      from freed f join settlement s using (settlement_id)
     cross join lateral (values (s.network, f.held_wei, f.cost_wei),
                                ('usd', f.held_usd_micros, div(f.cost_wei * f.held_usd_micros + f.held_wei - 1, f.held_wei))) as u (unit, held, spent)
     where f.held_wei is not null and u.held is not null
     group by s.tenant_id, f.gas_day, u.unit
), locked as (
    select g.tenant_id, g.day, g.unit from gas_day g join due using (tenant_id, day, unit) order by 1, 2, 3 for update of g
), released as (
    update gas_day g
       set held = g.held - d.held, spent = g.spent + d.spent,
           most = case when g.most is not null then greatest(g.most, g.held - d.held + g.spent + d.spent) end
      from due d join locked using (tenant_id, day, unit)
     where (g.tenant_id, g.day, g.unit) = (d.tenant_id, d.day, d.unit)
), costs as (
    update relayer_transaction t
       set gas_used = o.gas_used, effective_gas_price_wei = o.price::numeric, l1_fee_wei = o.l1_fee::numeric,
           operator_fee_wei = o.operator_fee::numeric
      from unnest($18::text[], $19::bigint[], $20::text[], $21::text[], $24::text[])
           as o (tx_hash, gas_used, price, l1_fee, operator_fee)
      join closed c on c.mined_tx_hash = o.tx_hash
     where t.tx_hash = o.tx_hash
), gas as (
    insert into journal_entry (book, phase, debit, credit, asset, amount_atomic, admission, tx_hash)
    select 'own', 'pending', o.debit, o.credit, o.asset, o.amount::numeric,
           1 + (select count(*) from journal_entry e
                 where e.book = 'own' and e.phase = 'pending' and e.tx_hash = o.tx_hash and e.debit = o.debit),
           o.tx_hash
      from unnest($28::text[], $29::text[], $30::text[], $31::text[], $32::text[]) as o (tx_hash, debit, credit, asset, amount)
      join closed c on c.mined_tx_hash = o.tx_hash
)
select settlement_id, state, moves, answer_state, answer_holder, answer_epoch, answer,
       case when answer_holder <> $1::text then pg_notify('facilitator_answer', settlement_id::text)::text end as notified
  from resolved;

-- Whoever preconfirms for these tenants goes one after the other: none sees a total without the other's part.
-- name: lock_tenants :execute
select from tenant where tenant_id in (select tenant_id from settlement where settlement_id = any($1::uuid[]))
 order by tenant_id for no key update;

-- Their log pairs were seen in a flashblock. What would exceed its tenant's total of unsealed value stays `submitted`.
-- name: preconfirm :many
with seen as (
    select o.*, s.amount_atomic, s.tenant_id, s.network, s.asset
      from unnest($2::uuid[], $3::text[], $4::integer[], $5::bigint[], $6::text[], $7::integer[]) with ordinality
           as o (settlement_id, tx_hash, log_index, block_number, answer, spend_epoch, place)
      join settlement s using (settlement_id)
     where s.state = 'submitted' and s.confirm_level = 'preconfirmed'
), weighed as (
    select n.*, sum(n.amount_atomic) over (partition by n.tenant_id, n.network, n.asset order by n.place)
                + coalesce((select sum(u.amount_atomic) from settlement u
                             where u.state = 'preconfirmed' and u.tenant_id = n.tenant_id and u.network = n.network
                               and u.asset = n.asset), 0) as unsealed_atomic
      from seen n
), preconfirmed as (
    update settlement s
       set state = 'preconfirmed', moves = s.moves + 1, tx_hash = w.tx_hash, log_index = w.log_index,
           block_number = w.block_number, block_hash = '0x' || repeat('0', 64), resolved_at = now(),
           answer = coalesce(s.answer, w.answer::jsonb),
           answer_state = case when s.answer_state = 'held' and s.answer_holder = $1::text and s.answer_epoch = w.spend_epoch
                               then 'spent' else s.answer_state end,
           answer_due = case when s.answer_state = 'held' and s.answer_holder = $1::text and s.answer_epoch = w.spend_epoch
                             then now() + make_interval(secs => $9::double precision) else s.answer_due end
      from weighed w
     where s.settlement_id = w.settlement_id and s.state = 'submitted' and w.unsealed_atomic <= $8::text::numeric
    returning s.settlement_id, s.state, s.moves, s.tx_hash, s.answer_state, s.answer_holder, s.answer_epoch, s.answer
), moved as (
    insert into settlement_move (settlement_id, move, from_state, to_state, tx_hash)
    select settlement_id, moves, 'submitted', 'preconfirmed', tx_hash from preconfirmed
)
select settlement_id, state, moves, answer_state, answer_holder, answer_epoch, answer,
       case when answer_holder <> $1::text then pg_notify('facilitator_answer', settlement_id::text)::text end as notified
  from preconfirmed;

-- Their flashblock was not sealed as it was seen: open again. An answer that nobody was told is forgotten.
-- name: unseal :many
with unsealed as (
    update settlement s
       set state = 'submitted', moves = s.moves + 1, resolved_at = null, log_index = null, block_number = null, block_hash = null,
           answer = case when s.answer_state = 'spent' then s.answer end
     where s.settlement_id = any($1::uuid[]) and s.state = 'preconfirmed'
    returning s.settlement_id, s.network, s.moves, s.tx_hash
), moved as (
    insert into settlement_move (settlement_id, move, from_state, to_state, tx_hash, reason)
    select settlement_id, moves, 'preconfirmed', 'submitted', tx_hash, 'UNSEALED' from unsealed
), incidents as (
    insert into incident (network, kind, settlement_id, tx_hash, detail)
    select network, 'unsealed', settlement_id, tx_hash, 'the flashblock that showed this payment was not sealed as it was seen'
      from unsealed
)
select settlement_id from unsealed;

-- Nothing was signed and the caller's time is up. Only final outcomes are kept under an idempotency key.
-- name: withdraw :optional
with withdrawn as (
    update settlement s
       set state = 'withdrawn', moves = s.moves + 1, reason = 'WITHDRAWN', resolved_at = now(), answer_state = 'free',
           idempotency_key = null
     where s.settlement_id = $1::uuid and s.state = 'queued' and s.answer_holder = $2::text and s.answer_epoch = $3::integer
    returning s.settlement_id, s.moves, s.admissions
), moved as (
    insert into settlement_move (settlement_id, move, from_state, to_state, reason)
    select settlement_id, moves, 'queued', 'withdrawn', 'WITHDRAWN' from withdrawn
), entries as (
    insert into journal_entry (phase, debit, credit, asset, amount_atomic, settlement_id, admission, resolves)
    select 'voided', e.debit, e.credit, e.asset, e.amount_atomic, e.settlement_id, e.admission, e.entry_id
      from withdrawn w join journal_entry e
        on e.settlement_id = w.settlement_id and e.admission = w.admissions and e.phase = 'pending'
)
select settlement_id from withdrawn;

-- Take the answer slot: it is free, or its holder's replica is dead by database time, or is the taker's own, which knows that
-- nobody of it holds this epoch.
-- name: take_answer :optional
update settlement s
   set answer_state = 'held', answer_holder = $2::text,
       answer_epoch = s.answer_epoch + 1, answer_shared = false, idempotency_key = $3::text
 where s.settlement_id = $1::uuid and s.answer_epoch = $4::integer
   and (s.answer_state = 'free'
        or (s.answer_state = 'held' and s.answer_holder = $2::text)
        or (s.answer_state = 'held'
            and not exists (select from replica r
                             where r.replica_id = s.answer_holder
                               and r.seen_at > now() - make_interval(secs => $5::double precision))))
returning s.answer_epoch, s.answer_state;

-- The holder is connected and about to be told: from here on nobody else hears the success.
-- name: spend_answer :optional
update settlement set answer_state = 'spent', answer_due = now() + make_interval(secs => $4::double precision)
 where settlement_id = $1::uuid and answer_holder = $2::text and answer_epoch = $3::integer
   and moves = $5::integer and answer_state in ('held', 'spent')
returning answer_epoch, answer_state;

-- The holder went away, or was told `settlement_pending`: the next caller may take the slot.
-- name: free_answer :execute
update settlement set answer_state = 'free'
 where settlement_id = $1::uuid and answer_holder = $2::text and answer_epoch = $3::integer
   and answer_state in ('held', 'spent') and not answer_shared;

-- A caller who shares the holder's idempotency key is about to be told the same answer.
-- name: share_answer :optional
update settlement set answer_shared = true
 where settlement_id = $1::uuid and tenant_id = $2::text and idempotency_key = $3::text and answer_state = 'spent'
returning answer_epoch, answer_state;

-- Blocks that hold included work or prove that somebody else used an authorization, for the comparison with the canonical chain.
-- name: unfinal_blocks :many
select distinct block_number, block_hash from settlement
 where network = $1::text and state in ('included', 'safe') and block_number <= $2::bigint
union
select distinct block_number, block_hash from settlement
 where network = $1::text and state in ('external', 'cancelled', 'conflict') and not closed and block_number <= $2::bigint
union
select distinct block_number, block_hash from relayer_slot
 where network = $1::text and state = 'included' and block_number <= $2::bigint;

-- Derived from data on L1. Whoever waits for that is woken.
-- name: make_safe :many
with safe as (
    update settlement s set state = 'safe', moves = s.moves + 1
      from unnest($2::bigint[], $3::text[]) as b (block_number, block_hash)
     where s.network = $1::text and s.state = 'included'
       and s.block_number = b.block_number and s.block_hash = b.block_hash
    returning s.settlement_id, s.moves, s.tx_hash, s.answer_state, s.confirm_level
), moved as (
    insert into settlement_move (settlement_id, move, from_state, to_state, tx_hash)
    select settlement_id, moves, 'included', 'safe', tx_hash from safe
)
select settlement_id,
       case when answer_state = 'held' and confirm_level = 'safe'
            then pg_notify('facilitator_answer', settlement_id::text)::text end as notified
  from safe;

-- name: finalize :many
with final as (
    update settlement s set state = 'finalized', moves = s.moves + 1
      from unnest($2::bigint[], $3::text[]) as b (block_number, block_hash)
     where s.network = $1::text and s.state in ('included', 'safe')
       and s.block_number = b.block_number and s.block_hash = b.block_hash
    returning s.settlement_id, s.moves, s.admissions, s.tx_hash, s.answer_state, s.confirm_level
), proven as (
    update settlement s set closed = true
      from unnest($2::bigint[], $3::text[]) as b (block_number, block_hash)
     where s.network = $1::text and s.state in ('external', 'cancelled', 'conflict') and not s.closed
       and s.block_number = b.block_number and s.block_hash = b.block_hash
    returning s.settlement_id, s.answer_state, s.confirm_level
), moved as (
    insert into settlement_move (settlement_id, move, from_state, to_state, tx_hash)
    select f.settlement_id, f.moves, o.state, 'finalized', f.tx_hash
      from final f join settlement o on o.settlement_id = f.settlement_id
), entries as (
    insert into journal_entry (phase, debit, credit, asset, amount_atomic, settlement_id, admission, tx_hash, resolves)
    select 'posted', e.debit, e.credit, e.asset, e.amount_atomic, e.settlement_id, e.admission, f.tx_hash, e.entry_id
      from final f join journal_entry e
        on e.settlement_id = f.settlement_id and e.admission = f.admissions and e.phase = 'pending'
), slots as (
    update relayer_slot s set state = 'finalized'
      from unnest($2::bigint[], $3::text[]) as b (block_number, block_hash)
     where s.network = $1::text and s.state = 'included' and s.block_number = b.block_number and s.block_hash = b.block_hash
    returning s.mined_tx_hash
), gas as (
    insert into journal_entry (book, phase, debit, credit, asset, amount_atomic, admission, tx_hash, resolves)
    select 'own', 'posted', e.debit, e.credit, e.asset, e.amount_atomic, e.admission, e.tx_hash, e.entry_id
      from slots s join journal_entry e on e.tx_hash = s.mined_tx_hash and e.book = 'own' and e.phase = 'pending'
     where not exists (select from journal_entry r where r.resolves = e.entry_id)
), deeper as (
    select settlement_id, answer_state, confirm_level from final
    union all
    select settlement_id, answer_state, confirm_level from proven
)
select settlement_id,
       case when answer_state = 'held' and confirm_level in ('safe', 'finalized')
            then pg_notify('facilitator_answer', settlement_id::text)::text end as notified
  from deeper;

-- These blocks were reorganised away: their slots are open again and their transactions are sent again. A settlement that one
-- of the blocks proved is `submitted` when such a slot carries it, else what it was before: `failed` or `withdrawn` when the
-- proof came later than that, `queued` otherwise. An answer is forgotten only when it was a success that nobody was told.
-- What the transactions cost there was never paid: it is voided, and booked afresh once they are mined again; gas budgets hold
-- for them again, and strikes are no more.
-- name: reopen :many
with gone as (
    select * from unnest($2::bigint[], $3::text[]) as b (block_number, block_hash)
), slots as (
    update relayer_slot s set state = 'open', mined_tx_hash = null, block_number = null, block_hash = null
      from gone b, relayer_slot o
     where s.network = $1::text and s.state = 'included' and s.block_number = b.block_number and s.block_hash = b.block_hash
       and o.slot_id = s.slot_id
    returning s.slot_id, o.mined_tx_hash
), uncosted as (
    update relayer_transaction t set gas_used = null, effective_gas_price_wei = null, l1_fee_wei = null, operator_fee_wei = null
      from slots s where t.tx_hash = s.mined_tx_hash
), gas as (
    insert into journal_entry (book, phase, debit, credit, asset, amount_atomic, admission, tx_hash, resolves)
    select 'own', 'voided', e.debit, e.credit, e.asset, e.amount_atomic, e.admission, e.tx_hash, e.entry_id
      from slots s join journal_entry e on e.tx_hash = s.mined_tx_hash and e.book = 'own' and e.phase = 'pending'
     where not exists (select from journal_entry r where r.resolves = e.entry_id)
), unstruck as (
    update strike t set voided = true from slots s join slot_item i using (slot_id)
     where t.settlement_id = i.settlement_id and t.tx_hash = s.mined_tx_hash
), due as (
    select t.tenant_id, i.gas_day as day, u.unit, sum(u.held) as held, sum(u.spent) as spent
      from slots join slot_item i using (slot_id) join settlement t using (settlement_id)
     cross join lateral (values (t.network, i.held_wei, i.cost_wei),
                                ('usd', i.held_usd_micros, div(i.cost_wei * i.held_usd_micros + i.held_wei - 1, i.held_wei))) as u (unit, held, spent)
     where i.held_wei is not null and i.cost_wei is not null and u.held is not null
     group by t.tenant_id, i.gas_day, u.unit
), locked as (
    select g.tenant_id, g.day, g.unit from gas_day g join due using (tenant_id, day, unit) order by 1, 2, 3 for update of g
), held_again as (
    update gas_day g
       set held = g.held + d.held, spent = g.spent - d.spent,
           most = case when g.most is not null then greatest(g.most, g.held + d.held + g.spent - d.spent) end
      from due d join locked using (tenant_id, day, unit)
     where (g.tenant_id, g.day, g.unit) = (d.tenant_id, d.day, d.unit)
), carried as (
    select distinct on (i.settlement_id) i.settlement_id, i.slot_id from slot_item i join slots using (slot_id)
     order by i.settlement_id, i.slot_id desc
), touched as ( -- an index for each part: together they would be looked for in the whole ledger
    select s.settlement_id from gone b join settlement s on (s.block_number, s.block_hash) = (b.block_number, b.block_hash)
     where s.network = $1::text and s.state in ('included', 'safe') and not s.closed
    union all
    select s.settlement_id from gone b join settlement s on (s.block_number, s.block_hash) = (b.block_number, b.block_hash)
     where s.network = $1::text and s.state in ('external', 'cancelled', 'conflict') and not s.closed
    union all
    select s.settlement_id from carried join settlement s using (settlement_id) where s.state in ('failed', 'expired')
), disproved as (
    select s.settlement_id, c.slot_id, s.state as before, s.admissions as admissions_before,
           case when c.slot_id is not null then 'submitted'
                when m.from_state in ('failed', 'withdrawn') then m.from_state
                else 'queued' end as back_to,
           p.reason, p.tx_hash
      from touched join settlement s using (settlement_id)
      left join carried c using (settlement_id)
      left join settlement_move m on m.settlement_id = s.settlement_id and m.move = s.moves
      left join settlement_move p on p.settlement_id = s.settlement_id and p.move = s.moves - 1
), reopened as (
    update settlement s
       set state = d.back_to, moves = s.moves + 1, log_index = null, block_number = null, block_hash = null,
           resolved_at = case when d.back_to in ('failed', 'withdrawn') then s.resolved_at end,
           reason = case when d.back_to in ('failed', 'withdrawn') then coalesce(d.reason, 'REORGANISED') end,
           tx_hash = case d.back_to
                          when 'submitted' then (select t.tx_hash from relayer_transaction t
                                                  where t.slot_id = d.slot_id and t.purpose <> 'noop'
                                                  order by t.tx_hash = s.tx_hash desc, t.attempt desc limit 1)
                          when 'queued' then null else d.tx_hash end,
           answer = case when s.answer ->> 'success' = 'true' and s.answer_state <> 'spent' then null else s.answer end,
           admissions = s.admissions + case when d.back_to in ('failed', 'withdrawn') then 0 else
                        (select count(*) from journal_entry v join journal_entry p on p.entry_id = v.resolves
                          where p.settlement_id = s.settlement_id and p.admission = s.admissions and p.phase = 'pending')::integer end
      from disproved d
     where s.settlement_id = d.settlement_id and s.state = d.before
    returning s.settlement_id, s.state, s.moves, s.admissions, s.tx_hash, d.slot_id, d.before, d.admissions_before
), items as (
    update slot_item i
       set cost_wei = null,
           unresolved = i.unresolved
                        or (exists (select from reopened r where r.slot_id = i.slot_id and r.settlement_id = i.settlement_id)
                            and not exists (select from slot_item u
                                             where u.settlement_id = i.settlement_id and u.unresolved and u.slot_id <> i.slot_id))
      from slots s where i.slot_id = s.slot_id
), moved as (
    insert into settlement_move (settlement_id, move, from_state, to_state, tx_hash, reason)
    select settlement_id, moves, before, state, tx_hash, 'REORGANISED' from reopened
), entries as (
    insert into journal_entry (phase, debit, credit, asset, amount_atomic, settlement_id, admission)
    select 'pending', e.debit, e.credit, e.asset, e.amount_atomic, e.settlement_id, r.admissions
      from reopened r join journal_entry e
        on e.settlement_id = r.settlement_id and e.admission = r.admissions_before and e.phase = 'pending'
     where r.admissions <> r.admissions_before
), incidents as (
    insert into incident (network, kind, settlement_id, tx_hash, detail)
    select $1::text, 'reorganised', settlement_id, tx_hash, 'the block that proved this settlement left the canonical chain'
      from reopened
)
select settlement_id, case when state = 'queued' then pg_notify('facilitator_queue', $1::text)::text end as notified from reopened;

-- Failed and withdrawn settlements whose authorization may yet be used, those looked at longest ago first; replicas share them.
-- name: take_watched :many
with due as (
    select settlement_id from settlement
     where network = $1::text and state in ('failed', 'withdrawn') and not closed
       and (nonce_checked_at is null or nonce_checked_at < now() - make_interval(secs => $2::double precision))
     order by nonce_checked_at nulls first
     limit $3::integer
       for update skip locked
)
update settlement s set nonce_checked_at = now() from due d where s.settlement_id = d.settlement_id
returning s.settlement_id, s.network, s.asset, s.payer, s.auth_nonce, s.scheme, s.pay_to, s.amount_atomic, s.valid_after,
       s.valid_before, s.signature, s.fingerprint, s.tenant_id, s.request_id, s.resource, s.state, s.moves, s.admissions,
       s.admitted_block, s.reason, s.tx_hash, s.log_index, s.block_number, s.block_hash, s.queued_at, s.resolved_at,
       s.answer_state, s.answer_holder, s.answer_epoch, s.answer_shared, s.idempotency_key, s.answer, s.alone, s.confirm_level,
       s.accept_external, s.closed, s.payment_identifier, s.traceparent, s.screening, true as holder_alive, false as answer_under_way;

-- name: count_watched :one
select count(*)::integer as watched
  from (select from settlement where network = $1::text and state in ('failed', 'withdrawn') and not closed limit 100000) w;

-- Used although it had failed or was withdrawn. Its entry is voided already; when it was we who paid it, it counts after all.
-- name: resolve_late :optional
with late as (
    update settlement s
       set state = $4::text, moves = s.moves + 1, reason = $5::text, tx_hash = $6::text, log_index = $7::integer,
           block_number = $8::bigint, block_hash = $9::text, answer = coalesce(s.answer, $10::jsonb),
           admissions = s.admissions + case when $4::text = 'included' then 1 else 0 end
     where s.settlement_id = $1::uuid and s.state = $2::text and s.moves = $3::integer
    returning s.settlement_id, s.network, s.state, s.moves, s.admissions, s.tx_hash, s.reason
), moved as (
    insert into settlement_move (settlement_id, move, from_state, to_state, tx_hash, reason)
    select settlement_id, moves, $2::text, state, tx_hash, reason from late
), entries as (
    insert into journal_entry (phase, debit, credit, asset, amount_atomic, settlement_id, admission)
    select 'pending', e.debit, e.credit, e.asset, e.amount_atomic, e.settlement_id, l.admissions
      from late l join journal_entry e
        on e.settlement_id = l.settlement_id and e.admission = l.admissions - 1 and e.phase = 'pending'
     where l.state = 'included'
), incidents as (
    insert into incident (network, kind, settlement_id, tx_hash, detail)
    select network, 'used_late', settlement_id, tx_hash, 'this authorization was used after the settlement ended as ' || $2::text
      from late
)
select settlement_id from late;

-- Past validBefore by final chain time, and unused: nothing can change these any more.
-- name: close_watched :execute
with closed as (
    update settlement s
       set closed = true,
           state = case when s.state = 'failed' and s.reason = 'EXPIRED' then 'expired' else s.state end,
           moves = s.moves + case when s.state = 'failed' and s.reason = 'EXPIRED' then 1 else 0 end
      from unnest($1::uuid[], $2::integer[]) as j (settlement_id, moves)
     where s.settlement_id = j.settlement_id and s.moves = j.moves and s.state in ('failed', 'withdrawn')
    returning s.settlement_id, s.state, s.moves, s.tx_hash, s.reason
)
insert into settlement_move (settlement_id, move, from_state, to_state, tx_hash, reason)
select settlement_id, moves, 'failed', 'expired', tx_hash, reason from closed where state = 'expired';

-- name: incidents :many
select settlement_id, kind, tx_hash, detail, opened_at from incident
 where settlement_id = any($1::uuid[]) order by settlement_id, incident_id;

-- name: open_incident :execute
insert into incident (network, kind, settlement_id, relayer, tx_hash, detail)
values ($1::text, $2::text, $3::uuid, $4::text, $5::text, $6::text);
