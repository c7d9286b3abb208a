-- How deep a payment must be before success is told, and what late facts may still change.

alter table tenant add column confirm_level text collate "C" check (confirm_level in ('preconfirmed', 'latest', 'safe', 'finalized'));

alter table settlement
    add column confirm_level text collate "C" not null default 'latest'
        check (confirm_level in ('preconfirmed', 'latest', 'safe', 'finalized')),
    add column accept_external boolean not null default false, -- executed by another sender, it is answered as success
    add column closed boolean not null default false, -- ended otherwise than paid, and nothing on chain can change that any more
    add column nonce_checked_at timestamptz; -- when the auth nonce of what failed or was withdrawn was last looked at
create index settlement_watched on settlement (network, nonce_checked_at nulls first)
    where state in ('failed', 'withdrawn') and not closed;
create index settlement_unproven on settlement (network, block_number)
    where state in ('external', 'cancelled', 'conflict') and not closed;
create index settlement_unsealed on settlement (tenant_id, asset) where state = 'preconfirmed';

-- A slot that a stranger's transaction consumed: closed once that is final, so that what it carried may be admitted again.
alter table relayer_slot add column closed boolean not null default false;
create index relayer_slot_consumed on relayer_slot (network) where state = 'consumed_externally' and not closed;
