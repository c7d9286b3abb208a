-- Rates of coins in US dollars.

-- name: record_rate :execute
insert into rate (network, quoted_at, source, round, usd_e8)
values ($1::text, $2::timestamptz, $3::text, $4::text, $5::numeric)
    on conflict do nothing;
