-- What lists and sums of settlements read. One that is settled for good is put here once, with all that filters ask for; what
-- still moves has an index of its own, and few rows.
-- compatible from 0013
-- outside a transaction

drop index concurrently if exists settlement_settled;
create index concurrently settlement_settled on settlement (queued_at, settlement_id)
    include (state, tenant_id, network, asset, pay_to, amount_atomic) where state = 'finalized' or closed;
drop index concurrently if exists settlement_moving;
create index concurrently settlement_moving on settlement (queued_at, settlement_id) where not (state = 'finalized' or closed);
