-- Replicas: which processes serve, and which of them live.

-- name: heartbeat :execute
with gone as (
    delete from replica r where r.seen_at < now() - interval '1 day' and r.replica_id <> $1::text
)
insert into replica (replica_id, networks, relayers) values ($1::text, $2::text[], $3::text[])
    on conflict (replica_id) do update set seen_at = now(), networks = excluded.networks, relayers = excluded.relayers;

-- name: retire_replica :execute
update replica set seen_at = '-infinity' where replica_id = $1::text;

-- Replicas with keys for this network that said lately that they live.
-- name: live_replicas :many
select replica_id, relayers from replica
 where $1::text = any(networks) and seen_at > now() - make_interval(secs => $2::double precision);
