-- Relayers added at run time: where their key lies, never the key; and which relayers each replica can sign for, so that
-- replicas with different keys share them out.

alter table relayer add column key_reference text collate "C" -- null: the key is named in the configuration
    constraint relayer_key_by_reference check (key_reference ~ '^[a-z][a-z0-9-]*:.');
alter table replica add column relayers text[] not null default '{}'; -- accounts (CAIP-10) whose keys it has
