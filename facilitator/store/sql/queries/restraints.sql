-- What tenants and payers may not do now: gas budgets with what is left of them, and strikes that are not forgotten yet.

-- Every budget of today, UTC.
-- name: gas_budgets :many
select t.tenant_id, u.unit, u.most, coalesce(g.held, 0) as held, coalesce(g.spent, 0) as spent,
       ceil(extract(epoch from date_trunc('day', now() at time zone 'utc') + interval '1 day' - (now() at time zone 'utc')))::integer as ends_in_s
  from tenant t
 cross join lateral (select network as unit, t.gas_wei_per_day as most from unnest($1::text[]) as n (network)
                     union all
                     select 'usd', t.gas_usd_micros_per_day) u
  left join gas_day g on g.tenant_id = t.tenant_id and g.day = (now() at time zone 'utc')::date and g.unit = u.unit
 where u.most is not null and t.disabled_at is null;

-- The newest rate of each network's coin, if it is fresh.
-- name: fresh_rates :many
select n.network, r.usd_e8
  from unnest($1::text[]) as n (network)
  join lateral (select usd_e8 from rate
                 where network = n.network and quoted_at > now() - make_interval(secs => $2::double precision)
                 order by quoted_at desc limit 1) r on true;

-- Who was struck within the cool-down, how often in the window that ended with the last strike, and for how long the cool-down of
-- that one lasts yet. The latest come first. A tenant may have a bound of its own. Of a tenant, what was paid since the window
-- began is counted too, no further than to as many as it has strikes: settlements are found by the time in their ids (UUIDv7).
-- name: struck :many
with recent as (
    select 'payer' as who, payer as name, struck_at from strike
     where not voided and of_payer and struck_at > now() - make_interval(secs => $1::double precision + $2::double precision)
    union all
    select 'tenant', tenant_id, struck_at from strike
     where not voided and struck_at > now() - make_interval(secs => $1::double precision + $2::double precision)
), dated as (
    select who, name, struck_at, max(struck_at) over (partition by who, name) as last from recent
), counted as (
    select who, name, (min(t.limits)::jsonb ->> 'strikesMax')::integer as most, count(*)::integer as strikes, max(last) as last
      from dated
      left join tenant t on who = 'tenant' and t.tenant_id = name
     where struck_at > last - make_interval(secs => $1::double precision)
     group by who, name
    having max(last) > now() - make_interval(secs => $2::double precision)
     order by max(last) desc
     limit $3::integer
)
select who, name, most, strikes,
       (select count(*)
          from (select from settlement
                 where tenant_id = name and who = 'tenant' and state in ('included', 'safe', 'finalized') and settlement_id > since
                 limit strikes) paid)::integer as paid,
       extract(epoch from last + make_interval(secs => $2::double precision) - now())::double precision as frees_s
  from counted,
       lateral (select rpad(lpad(to_hex((extract(epoch from last - make_interval(secs => $1::double precision)) * 1000)::bigint), 12, '0'), 32, '0')::uuid
                       as since) opened;
