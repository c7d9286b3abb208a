-- What `facilitator doctor` asks of the database itself.

-- name: inspect :one
select
    current_setting('server_version') as version,
    clock_timestamp() as now,
    coalesce(
        (select array_agg(t || ': ' || p order by t, p)
         from unnest(array['tenant', 'api_key', 'replica', 'settlement', 'settlement_move', 'relayer', 'relayer_slot', 'slot_item',
                           'relayer_transaction', 'journal_entry', 'incident']) t,
              unnest(array['select', 'insert', 'update']) p
         where not (t in ('journal_entry', 'settlement_move') and p = 'update')
           and not has_table_privilege(t, p)),
        '{}'::text[]) as missing,
    coalesce(
        (select array_agg(t || ': ' || p order by t, p)
         from unnest(array['journal_entry', 'settlement_move']) t, unnest(array['update', 'delete']) p
         where has_table_privilege(t, p)),
        '{}'::text[]) as excessive,
    current_setting('synchronous_commit') as synchronous_commit;
