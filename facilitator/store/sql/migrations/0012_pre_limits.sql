-- A tenant's own limits, and keys that take another one's place.

alter table tenant add column limits text not null default '{}'; -- JSON, see domain/limits.py
alter table api_key add column replaces text collate "C"; -- a key_id; keys are never deleted
create unique index api_key_replaced_once on api_key (replaces);
