-- What the gauges of the ledger show. Every replica asks every few seconds: each statement reads a partial index.

-- name: open_settlements :many
select network, state, count(*) as settlements, extract(epoch from min(queued_at))::double precision as oldest_at,
       count(*) filter (where valid_before < extract(epoch from now())) as past_deadline
  from settlement
 where network = any($1::text[]) and state in ('queued', 'submitted')
 group by network, state;

-- Its oldest block stands for all of a network's: counting what a busy chain has not finalized yet would be dear.
-- name: oldest_unfinal :many
select n.network, extract(epoch from s.resolved_at)::double precision as oldest_at
  from unnest($1::text[]) as n (network)
 cross join lateral (
    select resolved_at from settlement
     where network = n.network and state in ('preconfirmed', 'included', 'safe')
     order by block_number limit 1) s;

-- name: open_incidents :many
select network, kind, count(*) as incidents from incident where closed_at is null group by network, kind;
