-- Relayers: who may send, which tx_nonce comes next, and which transactions are open.

-- name: register_relayer :execute
insert into relayer (network, address, next_tx_nonce) values ($1::text, $2::text, $3::bigint)
    on conflict (network, address) do nothing;

-- Take the lease when nobody holds it; each taking is a new epoch, which fences the last owner out. A relayer that may not
-- sign any more is taken too, for somebody has to find out what became of its open slots.
-- name: take_lease :optional
update relayer
   set owner = $3::text, epoch = epoch + 1, lease_until = now() + make_interval(secs => $4::double precision)
 where network = $1::text and address = $2::text
   and (status <> 'removed'
        or exists (select from relayer_slot s where s.network = relayer.network and s.relayer = relayer.address and s.state = 'open'))
   and (owner is null or owner = $3::text or lease_until is null or lease_until < now())
returning network, address, next_tx_nonce, status, owner, epoch;

-- name: renew_lease :optional
update relayer set lease_until = now() + make_interval(secs => $5::double precision)
 where network = $1::text and address = $2::text and owner = $3::text and epoch = $4::bigint
returning network, address, next_tx_nonce, status, owner, epoch;

-- The same for many at once. One whose row is being written is left out: it is renewed alone.
-- name: renew_leases :many
with held as (
    select r.network, r.address from relayer r join unnest($3::text[], $4::bigint[]) as h (address, epoch) using (address, epoch)
     where r.network = $1::text and r.owner = $2::text
     order by r.address
       for update of r skip locked
)
update relayer r set lease_until = now() + make_interval(secs => $5::double precision)
  from held where r.network = held.network and r.address = held.address
returning r.network, r.address, r.next_tx_nonce, r.status, r.owner, r.epoch;

-- name: release_lease :execute
update relayer set owner = null, lease_until = null
 where network = $1::text and address = $2::text and owner = $3::text and epoch = $4::bigint;

-- Nonces only ever rise: what the chain or a pool has seen is used.
-- name: raise_tx_nonce :optional
update relayer set next_tx_nonce = greatest(next_tx_nonce, $5::bigint)
 where network = $1::text and address = $2::text and owner = $3::text and epoch = $4::bigint
returning network, address, next_tx_nonce, status, owner, epoch;

-- name: set_status :execute
update relayer set status = $3::text where network = $1::text and address = $2::text;

-- name: quarantine :execute
update relayer set status = 'quarantined' where network = $1::text and address = $2::text;

-- name: open_transactions :many
select s.slot_id, s.tx_nonce, s.kind, s.opened_at, t.tx_hash, t.attempt, t.purpose, t.raw, t.gas, t.max_fee_wei,
       t.max_priority_fee_wei
  from relayer_slot s join relayer_transaction t using (slot_id)
 where s.network = $1::text and s.relayer = $2::text and s.state = 'open'
 order by s.tx_nonce, t.attempt;

-- name: open_slots :many
select slot_id, relayer from relayer_slot where network = $1::text and relayer = any($2::text[]) and state = 'open' order by tx_nonce;

-- name: open_items :many
select i.slot_id, i.item_index, i.settlement_id
  from relayer_slot s join slot_item i using (slot_id)
 where s.network = $1::text and s.relayer = $2::text and s.state = 'open'
 order by i.slot_id, i.item_index;

-- Another transaction for an open slot, recorded before it is sent; the payments in it are told its hash from here on. Where
-- it may cost more than is held of gas budgets, that is held too, in dollars at the rate of the first; from a budget that is
-- overdrawn already nothing more is held, and nothing is recorded.
-- name: record_attempt :one
with fenced as (
    select s.slot_id from relayer_slot s join relayer r on (r.network, r.address) = (s.network, s.relayer)
     where r.network = $1::text and r.address = $2::text and r.owner = $3::text and r.epoch = $4::bigint
       and r.lease_until > now() and s.slot_id = $5::bigint and s.state = 'open'
       for update of s
), shares as (
    select i.slot_id, i.item_index, t.tenant_id, i.gas_day as day, i.held_wei, i.held_usd_micros,
           div($13::text::numeric + count(*) over () - 1, count(*) over ()) as wei
      from slot_item i join fenced using (slot_id) join settlement t using (settlement_id)
), dearer as (
    select slot_id, item_index, tenant_id, day, held_wei, held_usd_micros, wei,
           div(wei * held_usd_micros + held_wei - 1, held_wei) as usd_micros
      from shares where held_wei is not null and wei > held_wei
), due as (
    select d.tenant_id, d.day, u.unit, sum(u.more) as more
      from dearer d
     cross join lateral (values ($1::text, d.wei - d.held_wei), ('usd', d.usd_micros - d.held_usd_micros)) as u (unit, more)
     where u.more is not null
     group by d.tenant_id, d.day, u.unit
), locked as (
    select g.tenant_id, g.day, g.unit, g.held + g.spent as used, d.more,
           case g.unit when 'usd' then t.gas_usd_micros_per_day else t.gas_wei_per_day end as budget
      from gas_day g join due d using (tenant_id, day, unit) join tenant t using (tenant_id)
     order by g.tenant_id, g.day, g.unit
       for update of g
), may as (
    select slot_id from fenced where not exists (select from locked where used > budget)
), budget as (
    update gas_day g
       set held = g.held + l.more, most = case when g.most is not null then greatest(g.most, g.held + l.more + g.spent) end
      from locked l, may
     where (g.tenant_id, g.day, g.unit) = (l.tenant_id, l.day, l.unit)
), items as (
    update slot_item i set held_wei = d.wei, held_usd_micros = d.usd_micros
      from dearer d join may using (slot_id)
     where (i.slot_id, i.item_index) = (d.slot_id, d.item_index)
), told as (
    update settlement t set tx_hash = $8::text
      from slot_item i join may using (slot_id)
     where t.settlement_id = i.settlement_id and i.unresolved and t.state = 'submitted' and $7::text <> 'noop'
), recorded as (
    insert into relayer_transaction (tx_hash, slot_id, attempt, purpose, raw, gas, max_fee_wei, max_priority_fee_wei)
    select $8::text, m.slot_id, $6::integer, $7::text, $9::bytea, $10::bigint, $11::text::numeric, $12::text::numeric from may m
    returning tx_hash
)
select exists (select from recorded) as recorded, exists (select from locked where used > budget) as unaffordable;

-- A transaction that the relayer's key signed and whose record was lost: it is on record from here on, and its tx_nonce is used.
-- name: record_stray :many
with fenced as (
    update relayer set next_tx_nonce = greatest(next_tx_nonce, $5::bigint + 1)
     where network = $1::text and address = $2::text and owner = $3::text and epoch = $4::bigint
       and not exists (select from relayer_transaction where tx_hash = $6::text)
       and not exists (select from relayer_slot where network = $1::text and relayer = $2::text and tx_nonce = $5::bigint)
    returning epoch
), slot as (
    insert into relayer_slot (network, relayer, tx_nonce, epoch, kind, state)
    select $1::text, $2::text, $5::bigint, $4::bigint, 'single', 'open' from fenced
    returning slot_id
), recorded as (
    insert into relayer_transaction (tx_hash, slot_id, attempt, purpose, raw, gas, max_fee_wei, max_priority_fee_wei)
    select $6::text, slot_id, 0, 'payment', $7::bytea, $8::bigint, $9::text::numeric, $10::text::numeric from slot
    returning tx_hash
), incidents as (
    insert into incident (network, kind, relayer, tx_hash, detail)
    select $1::text, 'transaction_found', $2::text, tx_hash, $11::text from recorded
)
select tx_hash from recorded;

-- A transaction of ours paid a settlement that its record does not name, for that was lost.
-- name: carry :execute
insert into slot_item (slot_id, item_index, settlement_id, unresolved)
select t.slot_id, coalesce((select max(o.item_index) + 1 from slot_item o where o.slot_id = t.slot_id), 0), $2::uuid, false
  from relayer_transaction t
 where t.tx_hash = $1::text and not exists (select from slot_item i where i.slot_id = t.slot_id and i.settlement_id = $2::uuid)
    on conflict do nothing;

-- name: our_transactions :many
select t.tx_hash from relayer_transaction t where t.tx_hash = any($1::text[]);

-- name: list_relayers :many
select r.network, r.address, r.next_tx_nonce, r.status, r.owner, coalesce(r.lease_until > now(), false) as leased, r.key_reference,
       (select count(*) from relayer_slot s
         where s.network = r.network and s.relayer = r.address and s.state = 'open')::integer as open_slots
  from relayer r where r.network = $1::text order by r.address;

-- Whoever was removed may come back; whoever is drained or quarantined stays so.
-- name: add_relayer :execute
insert into relayer (network, address, next_tx_nonce, key_reference) values ($1::text, $2::text, $3::bigint, $4::text)
    on conflict (network, address) do update
       set key_reference = excluded.key_reference,
           status = case when relayer.status = 'removed' then 'active' else relayer.status end;

-- name: notify_relayers :execute
select pg_notify('facilitator_relayers', $1::text);

-- Slots that a stranger's transaction consumed, until that is final.
-- name: consumed_slots :many
select slot_id, relayer, tx_nonce from relayer_slot
 where network = $1::text and state = 'consumed_externally' and not closed order by slot_id limit $2::integer;

-- name: close_consumed :execute
update relayer_slot set closed = true where slot_id = any($1::bigint[]) and state = 'consumed_externally';
