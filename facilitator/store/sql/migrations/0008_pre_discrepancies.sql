-- What a reconciliation found and what became of it; which blocks were held against the ledger; what relayers had.

create table reconciliation_run (
    run_id     bigint generated always as identity primary key,
    network    text collate "C" not null,
    from_block bigint not null,
    to_block   bigint not null,
    to_hash    text collate "C" not null,
    found      integer not null,
    background boolean not null, -- of the continuous look, which leaves no block out
    ran_at     timestamptz not null default now(),
    constraint reconciliation_run_range check (0 <= from_block and from_block <= to_block)
);
create index reconciliation_run_through on reconciliation_run (network, to_block);

create table discrepancy (
    discrepancy_id   bigint generated always as identity primary key,
    network          text collate "C" not null,
    class            text collate "C" not null check (class in ('R1', 'R2', 'R3', 'R4', 'R5', 'R6', 'R7', 'R8', 'R9')),
    subject          text collate "C" not null, -- settlement, log, transaction, or relayer at a block
    settlement_id    uuid references settlement,
    tx_hash          text collate "C",
    block_number     bigint,
    asset            text collate "C",
    value_atomic     numeric(78, 0),
    expected         text not null,
    got              text not null,
    first_seen_at    timestamptz not null default now(),
    last_seen_at     timestamptz not null default now(),
    gone_at          timestamptz, -- a later look at the same blocks did not find it any more
    resolved_at      timestamptz,
    resolved_by      text,
    note             text,
    resolution_entry bigint references journal_entry,
    constraint discrepancy_subject unique (network, class, subject),
    constraint discrepancy_resolved check ((resolved_at is null) = (resolved_by is null) and (resolved_at is null) = (note is null))
);
create index discrepancy_open on discrepancy (network, class) where resolved_at is null and gone_at is null;
create unique index discrepancy_entry on discrepancy (resolution_entry);

create table relayer_balance (
    network    text collate "C" not null,
    relayer    text collate "C" not null,
    block_number bigint not null,
    wei        numeric(78, 0) not null check (wei >= 0),
    last_entry bigint not null, -- the journal as far as it was taken into account
    read_at    timestamptz not null default now(),
    primary key (network, relayer, block_number)
);
select grant_roles();
