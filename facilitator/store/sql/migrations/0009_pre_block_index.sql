-- Reconciliation reads the ledger by block range, final settlements included. Rows come in the order of blocks, so a block-range
-- index finds them at next to no cost for whoever writes; several networks' numbers are apart, hence the multi-minmax ranges.
create index settlement_blocks on settlement
    using brin (block_number int8_minmax_multi_ops, admitted_block int8_minmax_multi_ops) with (autosummarize = on);
