-- What payer and payee were held against before a payment was signed, and whether a tenant's payments wait for a list that is away.
-- compatible from 0013

alter table settlement add column screening jsonb; -- JSON, see domain/screening.py
alter table settlement add constraint settlement_screening_check check (screening ->> 'decision' in ('clear', 'unscreened')) not valid;
alter table tenant add column accept_unscreened boolean not null default false;
