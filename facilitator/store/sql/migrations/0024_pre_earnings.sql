-- What book days came to: gas by relayer and cause, with its worth in dollars, and the fees that payments of the day earned. A day is
-- counted when nothing of it can be booked any more, and anew when later terms or rates reach back to it.
-- compatible from 0013

create table earnings_day (
    zone        text collate "C" not null, -- whose day it is
    day         date not null,
    fees_micros numeric(78, 0), -- null: of some payment the charge is not known
    unpriced    bigint not null check (unpriced >= 0), -- such payments
    terms       bigint not null, -- versions of terms that had begun by then
    counted_at  timestamptz not null default now(),
    primary key (zone, day),
    constraint earnings_day_known check ((fees_micros is null) = (unpriced > 0))
);

create table earnings_gas (
    zone         text collate "C" not null,
    day          date not null,
    network      text collate "C" not null,
    relayer      text collate "C" not null,
    cause        text collate "C" not null,
    transactions bigint not null check (transactions > 0),
    amount_wei   numeric(78, 0) not null,
    usd_micros   numeric(78, 0), -- null: some of them had no fresh rate
    unrated      bigint not null check (unrated >= 0), -- how many
    primary key (zone, day, network, relayer, cause),
    foreign key (zone, day) references earnings_day,
    constraint earnings_gas_known check ((usd_micros is null) = (unrated > 0))
);
