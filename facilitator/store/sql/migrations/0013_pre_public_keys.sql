-- Keys whose secret never comes here: requests are signed with it (JWT), and the public half is on record. `secret_sha256` is
-- that of the public half then, which no secret of a key's form has: nothing opens such a key as if it had one.

alter table api_key add column public_key text; -- PEM, SubjectPublicKeyInfo
