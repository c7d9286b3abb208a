-- Resources that sellers let be listed. Writers take turns, so that the bounds hold over all replicas.

-- name: lock_listings :execute
select pg_advisory_xact_lock(8608480567731124087);

-- A payment that was only verified says that a listing is alive; what is shown changes with settled ones.
-- name: note_listings :execute
with offered as (
    select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::integer[], $6::text[], $7::text[], $8::text[], $9::bigint[])
        as o (tenant_id, resource, kind, operation, version, entry, price, words, settled)
), known as (
    update listing l
       set last_seen_at = now(),
           last_settled_at = case when o.settled > 0 then now() else l.last_settled_at end,
           settled = l.settled + o.settled,
           version = case when o.settled > 0 then o.version else l.version end,
           entry = case when o.settled > 0 then o.entry::jsonb else l.entry end,
           words = case when o.settled > 0 then to_tsvector('english', o.words) else l.words end,
           prices = case when o.settled = 0 then l.prices else (
               select jsonb_agg(q.price order by q.place)
                 from (select o.price::jsonb as price, 0 as place
                       union all
                       select p.price, p.place from jsonb_array_elements(l.prices) with ordinality as p (price, place)
                        where (p.price ->> 'scheme', p.price ->> 'network', p.price ->> 'asset', p.price ->> 'payTo')
                              is distinct from (o.price::jsonb ->> 'scheme', o.price::jsonb ->> 'network',
                                                o.price::jsonb ->> 'asset', o.price::jsonb ->> 'payTo')
                        order by place limit $12::integer) q) end
      from offered o
     where l.tenant_id = o.tenant_id and l.resource = o.resource and l.kind = o.kind and l.operation = o.operation
    returning l.tenant_id, l.resource, l.kind, l.operation
), fresh as (
    select o.*, row_number() over (partition by o.tenant_id order by o.resource, o.operation) as of_tenant,
           row_number() over (order by o.tenant_id, o.resource, o.operation) as of_all
      from offered o
     where o.settled > 0 and not exists (
         select from listing l
          where l.tenant_id = o.tenant_id and l.resource = o.resource and l.kind = o.kind and l.operation = o.operation)
)
insert into listing (tenant_id, resource, kind, operation, version, entry, prices, words, settled)
select f.tenant_id, f.resource, f.kind, f.operation, f.version, f.entry::jsonb, jsonb_build_array(f.price::jsonb),
       to_tsvector('english', f.words), f.settled
  from fresh f
 where f.of_tenant + (select count(*) from listing l where l.tenant_id = f.tenant_id) <= $10::integer
   and f.of_all + (select count(*) from listing) <= $11::integer;

-- name: expire_listings :execute
delete from listing where last_seen_at < now() - make_interval(secs => $1::double precision);

-- Every filter may be null. `prices` are patterns of which one must be among the prices.
-- name: list_listings :many
select l.tenant_id, l.resource, l.kind, l.operation, l.version, l.entry, l.prices, l.settled, l.last_seen_at, l.last_settled_at
  from listing l join tenant t using (tenant_id)
 where t.discoverable and t.disabled_at is null
   and ($1::text is null or l.kind = $1::text)
   and ($2::text[] is null or exists (select from unnest($2::text[]) as p (pattern) where l.prices @> p.pattern::jsonb))
   and ($3::text is null or l.entry -> 'extensions' ? $3::text)
 order by l.settled desc, l.first_seen_at, l.tenant_id, l.resource, l.kind, l.operation
 limit $4::integer offset $5::integer;

-- name: count_listings :one
select count(*)::integer as total
  from listing l join tenant t using (tenant_id)
 where t.discoverable and t.disabled_at is null
   and ($1::text is null or l.kind = $1::text)
   and ($2::text[] is null or exists (select from unnest($2::text[]) as p (pattern) where l.prices @> p.pattern::jsonb))
   and ($3::text is null or l.entry -> 'extensions' ? $3::text);

-- Any of the words, those with more of them first.
-- name: search_listings :many
with asked as (select replace(plainto_tsquery('english', $6::text)::text, ' & ', ' | ')::tsquery as words)
select l.tenant_id, l.resource, l.kind, l.operation, l.version, l.entry, l.prices, l.settled, l.last_seen_at, l.last_settled_at
  from listing l join tenant t using (tenant_id) cross join asked
 where t.discoverable and t.disabled_at is null and l.words @@ asked.words
   and ($1::text is null or l.kind = $1::text)
   and ($2::text[] is null or exists (select from unnest($2::text[]) as p (pattern) where l.prices @> p.pattern::jsonb))
   and ($3::text is null or l.entry -> 'extensions' ? $3::text)
 order by ts_rank(l.words, asked.words) desc, l.settled desc, l.first_seen_at, l.tenant_id, l.resource, l.kind, l.operation
 limit $4::integer offset $5::integer;
