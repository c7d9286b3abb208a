-- A replica that holds the lock of its presence says so: whoever finds that lock free finds it gone. One that does not know of the
-- lock, as those of an earlier release, is gone when it has said nothing for `settlement.lease_ttl_s`, as ever.
-- compatible from 0013

alter table replica add column present boolean not null default false;
