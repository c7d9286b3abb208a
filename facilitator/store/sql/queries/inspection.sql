-- What `facilitator doctor` asks of the database itself.

-- name: inspect :one
select
    current_setting('server_version') as version,
    clock_timestamp() as now,
    coalesce(
        (select array_agg(t || ': ' || p order by t, p)
         from unnest(array['tenant', 'api_key', 'replica', 'settlement', 'settlement_move', 'relayer', 'relayer_slot', 'slot_item',
                           'relayer_transaction', 'journal_entry', 'incident', 'reconciliation_run', 'discrepancy', 'rate',
                           'audit_event', 'seal', 'sealed_leaf', 'day_event', 'fee_schedule', 'invoice']) t,
              unnest(array['select', 'insert', 'update']) p
         where not (t in ('journal_entry', 'settlement_move', 'audit_event', 'seal', 'sealed_leaf', 'day_event', 'fee_schedule', 'invoice')
                    and p = 'update')
           and not has_table_privilege(t, p)),
        '{}'::text[]) as missing,
    coalesce(
        (select array_agg(t || ': ' || p order by t, p)
         from unnest(array['journal_entry', 'settlement_move', 'audit_event', 'seal', 'sealed_leaf', 'day_event', 'fee_schedule',
                           'invoice']) t,
              unnest(array['update', 'delete']) p
         where has_table_privilege(t, p)),
        '{}'::text[]) as excessive,
    current_setting('synchronous_commit') as synchronous_commit,
    coalesce((select ssl from pg_stat_ssl where pid = pg_backend_pid()), false) as encrypted,
    coalesce(inet_client_addr() = inet_server_addr() or inet_client_addr() << '127.0.0.0/8', true) as local;

-- Gas money that relayers spent in the last week, as it was booked.
-- name: gas_spent :many
select split_part(credit, ':', 4) as relayer, sum(amount_atomic) as wei,
       (extract(epoch from now() - min(happened_at)) / 86400)::double precision as days
  from journal_entry
 where book = 'own' and phase = 'pending' and debit like 'gas\_expense:%' and credit like 'gas:' || $1::text || ':%'
   and happened_at > now() - interval '7 days'
 group by 1;

-- Tenants whose keys may settle and who have no gas budget.
-- name: unbudgeted :many
select tenant_id from tenant t
 where disabled_at is null and gas_wei_per_day is null and gas_usd_micros_per_day is null
   and exists (select from api_key k where k.tenant_id = t.tenant_id and k.revoked_at is null and coalesce(k.expires_at > now(), true)
                  and k.scopes && array['settle', 'admin'])
 order by tenant_id;
