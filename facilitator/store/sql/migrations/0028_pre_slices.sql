-- What was settled, and of it what was held against the chain within an hour, by five minutes: the share that was matched in a day is
-- read from these, save for the ends of the day.
-- compatible from 0013

create table settled_slice (
    starts_at timestamptz primary key,
    undecided uuid[] not null, -- ended in it, and may end otherwise yet: not among the sums
    constraint settled_slice_five_minutes check (date_bin('5 minutes', starts_at, 'epoch') = starts_at)
);

create table settled_sum (
    starts_at      timestamptz not null references settled_slice,
    network        text collate "C" not null,
    asset          text collate "C" not null,
    settled_atomic numeric not null,
    held_atomic    numeric not null,
    primary key (starts_at, network, asset),
    constraint settled_sum_held check (held_atomic between 0 and settled_atomic)
);
