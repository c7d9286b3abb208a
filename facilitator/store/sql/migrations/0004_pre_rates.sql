-- What a network's own coin was worth in US dollars, as a source said it. Rows are only added.

create table rate (
    network   text collate "C" not null,
    quoted_at timestamptz not null,
    source    text collate "C" not null,
    round     text collate "C" not null,
    usd_e8    numeric(78, 0) not null check (usd_e8 > 0), -- dollars per coin, times 10^8
    read_at   timestamptz not null default now(),
    primary key (network, quoted_at, source)
);
