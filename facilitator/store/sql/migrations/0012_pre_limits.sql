-- A tenant's own limits, and keys that take another one's place.

alter table tenant add column limits text not null default '{}'; -- JSON, see domain/limits.py
alter table api_key add column replaces text collate "C" constraint api_key_replaces references api_key (key_id);
create unique index api_key_replaced_once on api_key (replaces);
