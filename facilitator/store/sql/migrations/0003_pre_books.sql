-- Reports read the ends of settlements by when they happened.

create index journal_entry_ended on journal_entry (happened_at, entry_id) where phase in ('posted', 'voided');
