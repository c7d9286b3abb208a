-- Replicas: which processes serve, and which of them live.

-- name: heartbeat :execute
with gone as (
    delete from replica r where r.seen_at < now() - interval '1 day' and r.replica_id <> $1::text
)
insert into replica (replica_id, networks, relayers, present)
values ($1::text, $2::text[], $3::text[], $4::boolean and not pg_try_advisory_xact_lock_shared(hashtextextended($1::text, 0)))
    on conflict (replica_id) do update
       set seen_at = now(), networks = excluded.networks, relayers = excluded.relayers, present = excluded.present;

-- name: retire_replica :execute
update replica set seen_at = '-infinity' where replica_id = $1::text;

-- Replicas with keys for this network that said lately that they live.
-- name: live_replicas :many
select replica_id, relayers from replica
 where $1::text = any(networks) and seen_at > now() - make_interval(secs => $2::double precision);

-- The lock of a replica's presence, until its connection ends: who asks again on that connection has it still. It is not to be had
-- while others look, nor while a connection of its own lasts whose end the server has not noticed.
-- name: hold_presence :one
select pg_try_advisory_lock(hashtextextended($1::text, 0)) as held;

-- Replicas that held the lock of their presence when they last spoke, and hold it no more.
-- name: missing_replicas :many
select replica_id, seen_at from replica
 where present and replica_id <> $1::text and seen_at > now() - make_interval(secs => $2::double precision)
   and pg_try_advisory_xact_lock_shared(hashtextextended(replica_id, 0));

-- Those are gone, unless they have spoken since: nobody waits for their answers, and their leases are over.
-- name: bury :many
with gone as (
    update replica r set seen_at = '-infinity', present = false
      from unnest($1::text[], $2::timestamptz[]) as missing (replica_id, seen_at)
     where r.replica_id = missing.replica_id and r.seen_at = missing.seen_at and r.present
       and pg_try_advisory_xact_lock_shared(hashtextextended(r.replica_id, 0))
    returning r.replica_id
), freed as (
    update relayer l set lease_until = now() from gone where l.owner = gone.replica_id and l.lease_until > now()
    returning l.network, l.owner
), told as (
    select count(pg_notify('facilitator_relayers', network)) from (select distinct network from freed) as networks
)
select g.replica_id, (select count(*) from freed f where f.owner = g.replica_id)::integer as leases, (select * from told)::integer as told
  from gone g;
