-- What would otherwise be looked for in all that ever was. None of these costs a payment more than an entry for its transaction.
-- compatible from 0013
-- outside a transaction

-- What mined transactions cost, by block: reconciliation. One entry a transaction, whatever it carried.
drop index concurrently if exists relayer_slot_mined;
create index concurrently relayer_slot_mined on relayer_slot (network, block_number, relayer) where state in ('included', 'finalized');
-- Today's budgets among those of all days.
drop index concurrently if exists gas_day_day;
create index concurrently gas_day_day on gas_day (day);
-- Settlements by when they ended. They end about in the order in which they came, so that ranges of blocks say where.
drop index concurrently if exists settlement_resolved_at;
create index concurrently settlement_resolved_at on settlement using brin (resolved_at timestamptz_minmax_multi_ops) with (autosummarize = on);
