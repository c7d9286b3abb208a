-- Sealed history: every entry and audit event gets a place in a chain of seals whose heads leave the database; book days and
-- their closes. Nothing here is ever changed.

create table audit_event (
    event_id    bigint generated always as identity primary key,
    kind        text collate "C" not null,
    actor       text not null,
    detail      text not null,
    happened_at timestamptz not null default now()
);

create table seal (
    seal_no         bigint primary key check (seal_no >= 1),
    leaves          integer not null check (leaves >= 1),
    root            bytea not null check (octet_length(root) = 32),
    head            bytea not null check (octet_length(head) = 32), -- over the head before it
    journal_through bigint not null,
    audit_through   bigint not null,
    sealed_at       timestamptz not null default now()
);

create table sealed_leaf (
    source    text collate "C" not null check (source in ('journal', 'audit')),
    row_id    bigint not null,
    seal_no   bigint not null references seal,
    position  integer not null check (position >= 0),
    book_day  date, -- of a journal entry
    leaf      bytea not null check (octet_length(leaf) = 32),
    primary key (source, row_id),
    constraint sealed_leaf_place unique (seal_no, position),
    constraint sealed_leaf_day check ((source = 'journal') = (book_day is not null))
);
create index sealed_leaf_book_day on sealed_leaf (book_day) where book_day is not null;

create table day_event (
    event_id bigint generated always as identity primary key,
    day      date not null,
    kind     text collate "C" not null check (kind in ('closed', 'reopened')),
    actor    text not null,
    second   text,
    document text not null,
    head     bytea not null check (octet_length(head) = 32), -- over the head of the event before it
    at       timestamptz not null default now(),
    constraint day_event_two_people check (kind = 'closed' or (second is not null and second <> actor))
);

create trigger audit_event_append_only before update or delete or truncate on audit_event
    for each statement execute function refuse_change();
create trigger seal_append_only before update or delete or truncate on seal for each statement execute function refuse_change();
create trigger sealed_leaf_append_only before update or delete or truncate on sealed_leaf
    for each statement execute function refuse_change();
create trigger day_event_append_only before update or delete or truncate on day_event
    for each statement execute function refuse_change();
select grant_roles();
