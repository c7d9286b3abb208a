-- The ledger: who may ask (tenant, api_key), what was asked (settlement), what we did about it (relayer,
-- relayer_slot, slot_item, relayer_transaction), and what it means in money (journal_entry).
-- Addresses and hashes are lower-case 0x text, so that a person can read a row; "C" collation makes them memcmp.

create table tenant (
    tenant_id           text collate "C" primary key check (tenant_id ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
    shared_transactions boolean not null default true,
    accept_external     boolean not null default false,
    trust_payment_identifier boolean not null default false,
    created_at          timestamptz not null default now(),
    disabled_at         timestamptz
);

create table api_key (
    key_id        text collate "C" primary key check (key_id ~ '^[a-z0-9]{12}$'),
    tenant_id     text collate "C" not null references tenant,
    secret_sha256 bytea not null check (octet_length(secret_sha256) = 32),
    scopes        text[] not null check (scopes <@ array['verify', 'settle', 'read', 'finance', 'admin'] and cardinality(scopes) > 0),
    created_at    timestamptz not null default now(),
    expires_at    timestamptz,
    revoked_at    timestamptz,
    last_used_at  timestamptz
);
create index api_key_tenant on api_key (tenant_id);

-- A running process. Its death, judged by database time, frees the answer slots it held.
create table replica (
    replica_id text collate "C" primary key,
    networks   text[] not null default '{}', -- where it has relayer keys
    started_at timestamptz not null default now(),
    seen_at    timestamptz not null default now()
);

create table settlement (
    settlement_id  uuid primary key,
    network        text collate "C" not null,
    asset          text collate "C" not null check (asset ~ '^0x[0-9a-f]{40}$'),
    payer          text collate "C" not null check (payer ~ '^0x[0-9a-f]{40}$'),
    auth_nonce     text collate "C" not null check (auth_nonce ~ '^0x[0-9a-f]{64}$'),
    scheme         text collate "C" not null,
    pay_to         text collate "C" not null check (pay_to ~ '^0x[0-9a-f]{40}$'),
    amount_atomic  numeric(78, 0) not null check (amount_atomic >= 0),
    valid_after    numeric(78, 0) not null,
    valid_before   numeric(78, 0) not null,
    signature      bytea not null,
    fingerprint    bytea not null check (octet_length(fingerprint) = 32),
    tenant_id      text collate "C" not null references tenant,
    request_id     text not null,
    alone          boolean not null default false, -- never shares a transaction: its tenant's rule, or a batch failed it
    resource       text,

    state          text collate "C" not null check (state in (
        'queued', 'submitted', 'preconfirmed', 'included', 'safe', 'finalized',
        'withdrawn', 'failed', 'expired', 'external', 'cancelled', 'conflict')),
    moves          integer not null default 0 check (moves >= 0),
    admissions     integer not null default 1 check (admissions >= 1),
    admitted_block bigint not null,
    reason         text collate "C",
    tx_hash        text collate "C" check (tx_hash ~ '^0x[0-9a-f]{64}$'),
    log_index      integer check (log_index >= 0),
    block_number   bigint,
    block_hash     text collate "C" check (block_hash ~ '^0x[0-9a-f]{64}$'),
    queued_at      timestamptz not null default now(),
    resolved_at    timestamptz,

    -- The answer slot: who may hear the one success (ADR: one payment, one delivered success).
    answer_state   text collate "C" not null default 'held' check (answer_state in ('held', 'free', 'spent')),
    answer_holder  text collate "C" not null,
    answer_epoch   integer not null default 1,
    answer_shared  boolean not null default false,
    answer_due     timestamptz, -- by when the replica that spent it has given it back, should the answer be lost
    idempotency_key text collate "C" check (octet_length(idempotency_key) between 1 and 256),
    answer         jsonb,

    constraint settlement_authorization unique (network, asset, payer, auth_nonce),
    constraint settlement_resolved check ((state in ('queued', 'submitted')) = (resolved_at is null)),
    constraint settlement_hash check (state not in ('submitted', 'preconfirmed', 'included', 'safe', 'finalized') or tx_hash is not null),
    constraint settlement_proof check (
        state not in ('preconfirmed', 'included', 'safe', 'finalized')
        or (log_index is not null and block_number is not null and block_hash is not null)),
    constraint settlement_reason check (
        state not in ('withdrawn', 'failed', 'expired', 'external', 'cancelled', 'conflict') or reason is not null)
) with (fillfactor = 80);
create unique index settlement_idempotency on settlement (tenant_id, idempotency_key) where idempotency_key is not null;
create index settlement_queued on settlement (network, queued_at) where state = 'queued';
create index settlement_open on settlement (network, valid_before) where state in ('queued', 'submitted');
create index settlement_unfinal on settlement (network, block_number) where state in ('preconfirmed', 'included', 'safe');
create index settlement_page on settlement (tenant_id, settlement_id);
create index settlement_tx on settlement (tx_hash) where tx_hash is not null;

-- Every move after `queued`, append-only. `settlement.queued_at` is the first line of the history.
create table settlement_move (
    settlement_id uuid not null references settlement,
    move          integer not null check (move >= 1),
    from_state    text collate "C" not null,
    to_state      text collate "C" not null,
    tx_hash       text collate "C",
    reason        text collate "C",
    moved_at      timestamptz not null default now(),
    primary key (settlement_id, move)
);

-- A gas-paying account. Owned by at most one replica at a time; `epoch` fences a late owner out.
create table relayer (
    network       text collate "C" not null,
    address       text collate "C" not null check (address ~ '^0x[0-9a-f]{40}$'),
    next_tx_nonce bigint not null check (next_tx_nonce >= 0),
    status        text collate "C" not null default 'active' check (status in ('active', 'draining', 'quarantined', 'removed')),
    owner         text collate "C",
    epoch         bigint not null default 0,
    lease_until   timestamptz,
    created_at    timestamptz not null default now(),
    primary key (network, address)
);

-- One tx_nonce of one relayer, and what became of it.
create table relayer_slot (
    slot_id       bigint generated always as identity primary key,
    network       text collate "C" not null,
    relayer       text collate "C" not null,
    tx_nonce      bigint not null check (tx_nonce >= 0),
    epoch         bigint not null,
    kind          text collate "C" not null check (kind in ('single', 'batch', 'contract_payer', 'noop')),
    state         text collate "C" not null check (state in ('open', 'included', 'finalized', 'consumed_externally')),
    mined_tx_hash text collate "C",
    block_number  bigint,
    block_hash    text collate "C",
    opened_at     timestamptz not null default now(),
    constraint relayer_slot_nonce unique (network, relayer, tx_nonce),
    constraint relayer_slot_mined check ((state in ('included', 'finalized')) = (mined_tx_hash is not null)),
    foreign key (network, relayer) references relayer (network, address)
) with (fillfactor = 80);
create index relayer_slot_open on relayer_slot (network, relayer, tx_nonce) where state = 'open';
create index relayer_slot_unfinal on relayer_slot (network, block_number) where state = 'included';

-- What a slot carries. `unresolved` holds while nobody knows how the slot ended.
create table slot_item (
    slot_id       bigint not null references relayer_slot,
    item_index    integer not null check (item_index >= 0),
    settlement_id uuid not null references settlement,
    unresolved    boolean not null default true,
    primary key (slot_id, item_index)
) with (fillfactor = 80);
create unique index slot_item_one_open_slot on slot_item (settlement_id) where unresolved;
create index slot_item_settlement on slot_item (settlement_id);

-- Every transaction we ever signed, recorded before the network saw it.
create table relayer_transaction (
    tx_hash                  text collate "C" primary key check (tx_hash ~ '^0x[0-9a-f]{64}$'),
    slot_id                  bigint not null references relayer_slot,
    attempt                  integer not null check (attempt >= 0),
    purpose                  text collate "C" not null check (purpose in ('payment', 'bump', 'noop')),
    raw                      bytea not null,
    gas                      bigint not null,
    max_fee_wei              numeric(78, 0) not null,
    max_priority_fee_wei     numeric(78, 0) not null,
    recorded_at              timestamptz not null default now(),
    gas_used                 bigint,
    effective_gas_price_wei  numeric(78, 0),
    l1_fee_wei               numeric(78, 0),
    constraint relayer_transaction_attempt unique (slot_id, attempt)
) with (fillfactor = 80);

-- Two-phase, append-only: one balanced transfer per entry. A pending entry is resolved by at most one later entry.
create table journal_entry (
    entry_id      bigint generated always as identity primary key,
    phase         text collate "C" not null check (phase in ('pending', 'posted', 'voided')),
    debit         text collate "C" not null,
    credit        text collate "C" not null,
    asset         text collate "C" not null,
    amount_atomic numeric(78, 0) not null check (amount_atomic >= 0),
    settlement_id uuid references settlement,
    admission     integer,
    tx_hash       text collate "C",
    resolves      bigint references journal_entry,
    happened_at   timestamptz not null default now(),
    booked_at     timestamptz not null default now(),
    constraint journal_entry_two_accounts check (debit <> credit),
    constraint journal_entry_resolved_once unique (resolves),
    constraint journal_entry_phase check ((phase = 'pending') = (resolves is null))
);
create unique index journal_entry_pending on journal_entry (settlement_id, admission) where phase = 'pending';

-- Something ended otherwise than an answer of ours said, or a relayer was used by somebody else.
create table incident (
    incident_id   bigint generated always as identity primary key,
    network       text collate "C" not null,
    kind          text collate "C" not null,
    settlement_id uuid references settlement,
    relayer       text collate "C",
    tx_hash       text collate "C",
    detail        text not null,
    opened_at     timestamptz not null default now(),
    closed_at     timestamptz
);
create index incident_settlement on incident (settlement_id);
