-- Sessions of the finance console, and the links that open one. Times are the database's.

-- name: make_link :execute
insert into console_link (secret_sha256, person, role, made_by, expires_at)
values ($1::bytea, $2::text, $3::text, $4::text, now() + make_interval(secs => $5::double precision));

-- Once: of two who come at the same time, one finds it.
-- name: use_link :optional
update console_link set used_at = now()
 where secret_sha256 = $1::bytea and used_at is null and expires_at > now()
returning person, role;

-- name: start_session :execute
insert into console_session (secret_sha256, person, role, method, expires_at)
values ($1::bytea, $2::text, $3::text, $4::text, now() + make_interval(secs => $5::double precision));

-- An open session that was idle for less than so many seconds.
-- name: find_session :optional
select person, role, method, started_at, extract(epoch from now() - seen_at)::double precision as idle_s
  from console_session
 where secret_sha256 = $1::bytea and ended_at is null and expires_at > now()
   and seen_at > now() - make_interval(secs => $2::double precision);

-- name: touch_session :execute
update console_session set seen_at = now() where secret_sha256 = $1::bytea and ended_at is null;

-- name: end_session :execute
update console_session set ended_at = now() where secret_sha256 = $1::bytea and ended_at is null;

-- name: end_sessions_of :execute
update console_session set ended_at = now() where person = $1::text and ended_at is null;
