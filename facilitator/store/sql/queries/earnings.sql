-- What book days came to in gas and fees: counted once, read by the day.

-- Days that are over and complete and not counted, or counted before terms or rates came that reach back to them, oldest first.
-- name: days_to_count :many
select d.day::date as day
  from generate_series($2::date, $3::date, interval '1 day') d (day)
  left join earnings_day e on e.zone = $1::text and e.day = d.day::date
 where e.day is null
    or e.terms <> (select count(*) from fee_schedule f where f.effective_from <= d.day::date)
    or ((e.unpriced > 0 or exists (select from earnings_gas g where g.zone = e.zone and g.day = e.day and g.unrated > 0))
        and exists (select from rate r where r.read_at > e.counted_at and r.quoted_at < ((d.day::date + 1)::timestamp at time zone $1::text)))
 order by 1;

-- The local date of the first entry that was posted or voided.
-- name: first_ended_day :optional
select (happened_at at time zone $1::text)::date as day from journal_entry where phase in ('posted', 'voided') order by happened_at limit 1;

-- One counts at a time.
-- name: try_lock_earnings :one
select pg_try_advisory_xact_lock(8674665223082153552) as mine;

-- name: known :one
select count(*) as terms, now() as read_at from fee_schedule f where f.effective_from <= $1::date;

-- name: store_day :execute
insert into earnings_day (zone, day, fees_micros, unpriced, terms, counted_at)
values ($1::text, $2::date, $3::numeric, $4::bigint, $5::bigint, $6::timestamptz)
    on conflict (zone, day) do update
   set fees_micros = excluded.fees_micros, unpriced = excluded.unpriced, terms = excluded.terms, counted_at = excluded.counted_at;

-- As the gas report prices each entry; half a micro-dollar is rounded up.
-- name: store_gas :execute
insert into earnings_gas (zone, day, network, relayer, cause, transactions, amount_wei, usd_micros, unrated)
select $1::text, $2::date, network, relayer, cause, count(distinct tx_hash), sum(amount_wei),
       case when count(*) = count(usd_micros) then sum(usd_micros) end, count(*) - count(usd_micros)
  from (
    select split_part(e.asset, '/', 1) as network, split_part(e.credit, ':', 4) as relayer, split_part(e.debit, ':', 4) as cause,
           e.tx_hash, e.amount_atomic as amount_wei,
           div(e.amount_atomic * q.usd_e8 + 50000000000000000000, 100000000000000000000) as usd_micros
      from journal_entry e
      join journal_entry p on p.entry_id = e.resolves
      left join lateral (
          select a.usd_e8, a.quoted_at from rate a
           where a.network = split_part(e.asset, '/', 1) and a.quoted_at <= p.happened_at
           order by a.quoted_at desc limit 1) q on q.quoted_at > p.happened_at - make_interval(secs => $5::double precision)
     where e.book = 'own' and e.phase = 'posted' and e.debit like 'gas\_expense:%'
       and e.happened_at >= $3::timestamptz and e.happened_at < $4::timestamptz
  ) spent
 group by network, relayer, cause
    on conflict (zone, day, network, relayer, cause) do update
   set transactions = excluded.transactions, amount_wei = excluded.amount_wei, usd_micros = excluded.usd_micros, unrated = excluded.unrated;

-- What is counted, and still as terms would have it.
-- name: earnings :many
select e.day, e.fees_micros, e.unpriced, g.usd_micros as gas_micros, g.unrated
  from earnings_day e,
       lateral (select case when coalesce(sum(x.unrated), 0) = 0 then coalesce(sum(x.usd_micros), 0) end as usd_micros,
                       coalesce(sum(x.unrated), 0)::bigint as unrated
                  from earnings_gas x where x.zone = e.zone and x.day = e.day) g
 where e.zone = $1::text and e.day between $2::date and $3::date
   and e.terms = (select count(*) from fee_schedule f where f.effective_from <= e.day)
 order by e.day;

-- name: counted_gas :many
select day, network, relayer, cause, transactions, amount_wei from earnings_gas
 where zone = $1::text and day between $2::date and $3::date order by day, network, relayer, cause;

-- name: counted_days :many
select day from earnings_day where zone = $1::text and day between $2::date and $3::date order by day;
