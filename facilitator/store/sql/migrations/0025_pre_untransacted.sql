-- What tenants owe and paid stands in entries that no transaction moved: few, among millions. Statements find them here.
-- compatible from 0013
-- outside a transaction

drop index concurrently if exists journal_entry_untransacted;
create index concurrently journal_entry_untransacted on journal_entry (happened_at, entry_id)
    where book = 'own' and phase = 'posted' and tx_hash is null;
