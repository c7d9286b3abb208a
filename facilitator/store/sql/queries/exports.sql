-- Files that are made in the background. A job runs in one of a few places; times are the database's.

-- Unless too many wait.
-- name: ask_export :optional
insert into export_job (kind, format, asked, person)
select $1::text, $2::text, $3::text, $4::text where (select count(*) from export_job where state = 'waiting') < $5::integer
returning export_id;

-- The one that has waited longest, when a place is free.
-- name: claim_export :optional
update export_job set state = 'running', place = free.place, started_at = now(), seen_at = now()
  from (select n as place from generate_series(1, $1::integer) n
         where not exists (select from export_job r where r.state = 'running' and r.place = n) order by n limit 1) free
 where export_id = (select export_id from export_job where state = 'waiting' order by asked_at limit 1 for update skip locked)
returning export_id, kind, format, asked, person;

-- name: touch_export :execute
update export_job set seen_at = now() where export_id = $1::uuid and state = 'running';

-- name: expect_rows :execute
update export_job set rows_expected = $2::bigint where export_id = $1::uuid and state = 'running';

-- name: count_rows :execute
update export_job set rows_done = $2::bigint where export_id = $1::uuid and state = 'running';

-- name: add_chunk :execute
insert into export_chunk (export_id, chunk_no, content)
select export_id, $2::integer, $3::bytea from export_job where export_id = $1::uuid and state = 'running';

-- name: finish_export :execute
update export_job set state = 'done', place = null, rows_done = $2::bigint, manifest = $3::text, bytes = $4::bigint, ended_at = now(),
       expires_at = now() + make_interval(secs => $5::double precision)
 where export_id = $1::uuid and state = 'running';

-- name: fail_export :execute
update export_job set state = 'failed', place = null, problem = $2::text, ended_at = now() where export_id = $1::uuid and state = 'running';

-- name: cancel_export :execute
update export_job set state = 'cancelled', place = null, ended_at = now()
 where export_id = $1::uuid and state in ('waiting', 'running');

-- Jobs whose process was not heard of for so long.
-- name: fail_silent_exports :execute
update export_job set state = 'failed', place = null, problem = $2::text, ended_at = now()
 where state = 'running' and seen_at < now() - make_interval(secs => $1::double precision);

-- Some of the files whose time is over, and of what jobs left that came to nothing.
-- name: drop_chunks :execute
delete from export_chunk d using (
    select c.export_id, c.chunk_no from export_chunk c join export_job j using (export_id)
     where j.state in ('failed', 'cancelled') or j.expires_at < now() limit $1::integer) over
 where d.export_id = over.export_id and d.chunk_no = over.chunk_no;

-- name: get_export :optional
select export_id, kind, format, asked, person, state, rows_expected, rows_done, problem, manifest, bytes, asked_at, started_at, ended_at,
       expires_at, coalesce(expires_at < now(), false) as expired
  from export_job where export_id = $1::uuid;

-- Newest first.
-- name: list_exports :many
select export_id, kind, format, asked, person, state, rows_expected, rows_done, problem, manifest, bytes, asked_at, started_at, ended_at,
       expires_at, coalesce(expires_at < now(), false) as expired
  from export_job order by asked_at desc limit $1::integer;

-- name: read_chunk :optional
select c.content from export_chunk c join export_job j using (export_id)
 where c.export_id = $1::uuid and c.chunk_no = $2::integer and j.expires_at > now();

-- How many rows a report will have, as far as it is known before it is read.
-- name: expected_settlements :one
select count(*) as rows
  from journal_entry r join settlement s on s.settlement_id = r.settlement_id
 where r.phase in ('posted', 'voided') and r.happened_at >= $1::timestamptz and r.happened_at < $2::timestamptz
   and ($3::text is null or s.tenant_id = $3::text);

-- name: expected_gas :one
select count(*) as rows from journal_entry e
 where e.book = 'own' and e.phase = 'posted' and e.asset like '%/native'
   and e.happened_at >= $1::timestamptz and e.happened_at < $2::timestamptz;

-- name: expected_journal :one
select count(*) as rows from journal_entry where happened_at >= $1::timestamptz and happened_at < $2::timestamptz;

-- name: expected_sealed :one
select count(*) as rows from sealed_leaf;
