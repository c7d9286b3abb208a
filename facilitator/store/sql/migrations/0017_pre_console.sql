-- The finance console: who is signed in, and links that sign somebody in once. Secrets are random and only their hashes are here.
-- compatible from 0013

create table console_link (
    secret_sha256 bytea primary key check (octet_length(secret_sha256) = 32),
    person        text not null check (person <> ''),
    role          text collate "C" not null check (role in ('viewer', 'finance', 'auditor', 'admin')),
    made_by       text not null,
    made_at       timestamptz not null default now(),
    expires_at    timestamptz not null,
    used_at       timestamptz,
    constraint console_link_in_time check (used_at is null or used_at < expires_at)
);

create table console_session (
    secret_sha256 bytea primary key check (octet_length(secret_sha256) = 32),
    person        text not null check (person <> ''),
    role          text collate "C" not null check (role in ('viewer', 'finance', 'auditor', 'admin')),
    method        text collate "C" not null check (method in ('link', 'oidc')),
    started_at    timestamptz not null default now(),
    seen_at       timestamptz not null default now(),
    expires_at    timestamptz not null, -- however busy it is
    ended_at      timestamptz,
    constraint console_session_ends check (expires_at > started_at)
);
create index console_session_open on console_session (person) where ended_at is null;
