-- See 0014.
-- compatible from 0013
-- outside a transaction

drop index concurrently if exists settlement_payment_identifier;
create unique index concurrently settlement_payment_identifier on settlement (tenant_id, payment_identifier) where payment_identifier is not null;
