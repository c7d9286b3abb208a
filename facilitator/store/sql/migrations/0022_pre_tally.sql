-- Sums of settlements by UTC day, for filters over many: a day is counted once, when nothing of it can change any more.
-- compatible from 0013

create table settlement_day (
    day        date primary key,
    counted_at timestamptz not null default now()
);

-- Each settlement stands in three rows: among all of its tenant, among those of one amount, and among those of it to one recipient.
create table settlement_tally (
    day           date not null references settlement_day,
    tenant_id     text collate "C" not null,
    network       text collate "C" not null,
    asset         text collate "C" not null,
    state         text collate "C" not null,
    pay_to        text collate "C",
    each_atomic   numeric(78, 0),
    settlements   bigint not null check (settlements > 0),
    amount_atomic numeric not null -- of all of them
);
create index settlement_tally_tenants on settlement_tally (day) where pay_to is null and each_atomic is null;
create index settlement_tally_amounts on settlement_tally (day) where pay_to is null and each_atomic is not null;
create index settlement_tally_recipients on settlement_tally (pay_to, day) where pay_to is not null;
