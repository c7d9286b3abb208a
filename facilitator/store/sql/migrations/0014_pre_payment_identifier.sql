-- What the buyer named a payment (extension `payment-identifier`): one payment of a tenant bears it, for good.
-- compatible from 0013

alter table settlement add column payment_identifier text collate "C";
alter table settlement
    add constraint settlement_payment_identifier_check check (payment_identifier ~ '^[A-Za-z0-9_-]{16,128}$') not valid;
