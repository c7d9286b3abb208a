"""Keys on a real Postgres: made, shown once, found, refused, revoked, remembered for a while without the store."""

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from secrets import token_hex
from typing import NamedTuple

import asyncpg
import jwt
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from facilitator.api.access import Access
from facilitator.api.desk import Grant, HttpProblem
from facilitator.api.settings import AccessSettings
from facilitator.api.tokens import parse_public_key
from facilitator.domain.limits import Limits, Rate, encode_limits
from facilitator.errors import StoreFault
from facilitator.store import administration, tenants
from facilitator.store.administration import NotPossible, Rules
from facilitator.store.db import ConstraintViolated, Db, Query
from facilitator.store.tenants import NewKey, Scope, Tenant
from facilitator.units import UnixSeconds

SETTINGS = AccessSettings()


class ManualClock:
    """Time moves when a test says so."""

    def __init__(self) -> None:
        self.offset_s = 0.0

    def now(self) -> UnixSeconds:
        return UnixSeconds(int(datetime.now(UTC).timestamp() + self.offset_s))

    def monotonic(self) -> float:
        return 1000.0 + self.offset_s

    async def sleep(self, delay_s: float) -> None:
        self.offset_s += delay_s
        await asyncio.sleep(0)


@pytest_asyncio.fixture
async def db(database_url: str) -> AsyncIterator[Db]:
    db = await Db.connect(database_url, connections_max=4)
    yield db
    await db.close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def access(db: Db, clock: ManualClock) -> Access:
    access = Access(SETTINGS, clock)
    access.connect(db)
    return access


async def make_key(
    db: Db, *, tenant: str = "shop", scopes: tuple[Scope, ...] = ("verify", "settle"), expires: datetime | None = None
) -> NewKey:
    new = tenants.generate_key()
    await tenants.create_tenant(db, Tenant(tenant_id=tenant))
    await tenants.create_api_key(db, new, tenant, scopes, expires)
    return new


def request(*headers: tuple[str, str]) -> web.Request:
    from multidict import CIMultiDict  # noqa: PLC0415

    return make_mocked_request("POST", "/verify", headers=CIMultiDict(headers))


async def admit(access: Access, key: str, scopes: tuple[Scope, ...] = ("verify",), header: str = "X-API-Key") -> Grant:
    return await access.admit(request((header, key)), "/verify", scopes)


async def refused(access: Access, *headers: tuple[str, str], scopes: tuple[Scope, ...] = ("verify",)) -> int:
    with pytest.raises(HttpProblem) as raised:
        await access.admit(request(*headers), "/verify", scopes)
    return raised.value.status


# ---- the rows


async def test_a_tenant_is_made_once_and_left_as_it_is(db: Db) -> None:
    first = Tenant(tenant_id="shop", shared_transactions=False, accept_external=True, trust_payment_identifier=True)
    assert await tenants.create_tenant(db, first)
    assert not await tenants.create_tenant(db, Tenant(tenant_id="shop"))
    assert await tenants.find_tenant(db, "shop") == first
    assert await tenants.find_tenant(db, "nobody") is None


async def test_a_tenant_s_rules_are_changed_one_by_one_and_its_keys_carry_them(db: Db) -> None:
    new = await make_key(db, tenant="shop")
    limits = Limits(rates={"/settle": Rate(per_second=5, burst=10)}, pay_to=("0x" + "ab" * 20,))
    await administration.change_tenant(db, "cli me", "shop", {"confirm_level": "safe"})
    await administration.change_tenant(db, "cli me", "shop", {"accept_external": True, "shared_transactions": False})
    await administration.change_tenant(db, "cli me", "shop", {}, limits=json.loads(encode_limits(limits)))
    [key] = await tenants.find_api_keys(db, [new.key_id])
    assert key.tenant == Tenant(tenant_id="shop", confirm_level="safe", accept_external=True, shared_transactions=False, limits=limits)
    assert await tenants.find_tenant(db, "shop") == key.tenant
    back: Rules = {"confirm_level": None, "accept_external": False, "shared_transactions": True}
    await administration.change_tenant(db, "cli me", "shop", back, limits={"rates": None, "payTo": None})
    assert await tenants.find_tenant(db, "shop") == Tenant(tenant_id="shop")
    assert await administration.change_tenant(db, "cli me", "nobody", {"confirm_level": "safe"}) is None


async def test_a_dump_of_the_database_holds_no_usable_key(db: Db, database_url: str) -> None:
    made = tenants.generate_key()
    await administration.create_key(db, "cli me", made, "shop", ("settle",), None, make_tenant=True)
    rotated = tenants.generate_key()
    await administration.rotate_key(db, "cli me", rotated, made.key_id, timedelta(hours=1))
    connection = await asyncpg.connect(database_url)
    try:
        tables = [row[0] for row in await connection.fetch("select tablename from pg_tables where schemaname = current_schema()")]
        assert {"api_key", "tenant", "audit_event"} <= set(tables)
        dump = "\n".join([str([tuple(row) for row in await connection.fetch(f"select t::text from {table} t")]) for table in tables])  # noqa: S608
    finally:
        await connection.close()
    assert made.key_id in dump
    for new in (made, rotated):
        secret = new.text[16:]
        assert len(secret) == 43
        assert secret not in dump
        for spelling in (secret.encode().hex(), b64encode(secret.encode()).decode().rstrip("=")):
            assert spelling not in dump
        assert secret not in repr(new)
        parsed = tenants.parse_key(new.text)
        assert parsed is not None
        assert (parsed.key_id, parsed.sha256) == (new.key_id, new.sha256)
        assert new.sha256.hex() in dump, "of the secret its hash is there"
    assert new.sha256.hex() not in await trail_text(db)


class _Detail(NamedTuple):
    kind: str
    actor: str
    detail: str


async def trail(db: Db) -> list[_Detail]:
    query = Query(name="trail", kind="many", sql="select kind, actor, detail from audit_event order by event_id")
    return await db.many(_Detail, query)


async def trail_text(db: Db) -> str:
    return str(await trail(db))


async def test_every_change_says_who_what_before_and_after(db: Db) -> None:
    new, next_one = tenants.generate_key(), tenants.generate_key()
    await administration.create_key(db, "cli me", new, "shop", ("settle",), None, make_tenant=True)
    await administration.change_tenant(db, "key abc", "shop", {"shared_transactions": False}, limits={"settlementsMax": 5})
    await administration.change_tenant(db, "key abc", "shop", {"shared_transactions": False}, limits={"settlementsMax": 5})
    await administration.rotate_key(db, "cli me", next_one, new.key_id, timedelta(hours=24))
    await administration.revoke_key(db, "cli me", new.key_id)
    await administration.revoke_key(db, "cli me", new.key_id)
    await administration.change_tenant(db, "cli me", "shop", {}, disabled=True)
    events = await trail(db)
    kinds = ["tenant_created", "key_created", "tenant_changed", "key_created", "key_rotated", "key_revoked", "tenant_changed"]
    assert [event.kind for event in events] == kinds, "what changed nothing left no trace"
    assert [event.actor for event in events] == ["cli me", "cli me", "key abc", "cli me", "cli me", "cli me", "cli me"]
    details = [json.loads(event.detail) for event in events]
    assert details[0]["before"] is None
    assert (details[2]["before"]["limits"], details[2]["after"]["limits"]) == ({}, {"settlementsMax": 5})
    assert (details[2]["before"]["shared_transactions"], details[2]["after"]["shared_transactions"]) == (True, False)
    assert (details[4]["subject"], details[4]["before"]["expires_at"]) == (new.key_id, None)
    assert details[4]["after"]["expires_at"] is not None
    assert details[5]["after"]["revoked_at"] is not None
    assert details[6]["after"]["disabled_at"] is not None


async def test_a_change_and_its_line_in_the_trail_commit_together_or_not_at_all(db: Db, database_url: str) -> None:
    await administration.create_tenant(db, "cli me", Tenant(tenant_id="shop"))
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("alter table audit_event add constraint no_more check (kind <> 'tenant_changed') not valid")
        with pytest.raises(ConstraintViolated, match="no_more"):
            await administration.change_tenant(db, "cli me", "shop", {"accept_external": True})
    finally:
        await connection.close()
    assert await tenants.find_tenant(db, "shop") == Tenant(tenant_id="shop")


async def test_a_key_is_rotated_once_and_only_while_it_lives(db: Db, access: Access, clock: ManualClock) -> None:
    old, new = await make_key(db), tenants.generate_key()
    await admit(access, old.text)
    row = await administration.rotate_key(db, "cli me", new, old.key_id, timedelta(hours=1))
    assert (row.tenant_id, list(row.scopes), row.expires_at, row.replaces) == ("shop", ["verify", "settle"], None, old.key_id)
    await access._refresh()
    assert (await admit(access, old.text)).tenant == (await admit(access, new.text)).tenant, "both work"
    with pytest.raises(NotPossible, match="was replaced before"):
        await administration.rotate_key(db, "cli me", tenants.generate_key(), old.key_id, timedelta(hours=1))
    clock.offset_s = 3601.0
    access._contact_at = clock.monotonic()
    assert await refused(access, ("X-API-Key", old.text)) == 401
    assert (await admit(access, new.text)).key_id == new.key_id
    await administration.revoke_key(db, "cli me", new.key_id)
    with pytest.raises(NotPossible, match="expired or revoked"):
        await administration.rotate_key(db, "cli me", tenants.generate_key(), new.key_id, timedelta(hours=1))


async def test_two_rotations_of_one_key_at_once_make_one_key(db: Db) -> None:
    old = await make_key(db)
    rotations = [administration.rotate_key(db, "cli me", tenants.generate_key(), old.key_id, timedelta(hours=1)) for _ in range(3)]
    done = await asyncio.gather(*rotations, return_exceptions=True)
    assert sorted(type(each).__name__ for each in done) == ["ApiKey", "NotPossible", "NotPossible"]
    assert len(await tenants.list_api_keys(db)) == 2


async def test_a_rotated_key_lives_as_long_as_its_forerunner_was_made_to(db: Db) -> None:
    old = await make_key(db, expires=datetime.now(UTC) + timedelta(hours=3))
    row = await administration.rotate_key(db, "cli me", tenants.generate_key(), old.key_id, timedelta(days=9))
    assert row.expires_at is not None
    assert timedelta(hours=2, minutes=59) < row.expires_at - row.created_at <= timedelta(hours=3)
    [before, _] = await tenants.list_api_keys(db)
    assert before.expires_at is not None
    assert before.expires_at <= before.created_at + timedelta(hours=3), "the overlap makes no key live longer"


async def test_a_disabled_tenant_s_keys_end_and_work_again_when_it_is_enabled(db: Db, access: Access) -> None:
    new = await make_key(db)
    await admit(access, new.text)
    await administration.change_tenant(db, "cli me", "shop", {}, disabled=True)
    assert await tenants.find_tenant(db, "shop") is None
    await access._refresh()
    assert await refused(access, ("X-API-Key", new.text)) == 401
    await administration.change_tenant(db, "cli me", "shop", {}, disabled=False)
    access._unknown.clear()
    assert (await admit(access, new.text)).key_id == new.key_id


async def test_keys_are_listed_revoked_and_marked_as_used(db: Db) -> None:
    first, second = await make_key(db), await make_key(db, tenant="other")
    assert {row.key_id for row in await tenants.list_api_keys(db)} == {first.key_id, second.key_id}
    assert [row.key_id for row in await tenants.list_api_keys(db, "other")] == [second.key_id]
    assert await tenants.touch_api_keys(db, [first.key_id, second.key_id]) == 2
    assert await tenants.touch_api_keys(db, [first.key_id]) == 0, "at most once a minute"
    revoked = await tenants.revoke_api_key(db, first.key_id)
    assert revoked is not None
    assert revoked.revoked_at is not None
    again = await tenants.revoke_api_key(db, first.key_id)
    assert again is not None
    assert again.revoked_at == revoked.revoked_at
    assert await tenants.revoke_api_key(db, "zzzzzzzzzzzz") is None
    assert [key.key_id for key in await tenants.find_api_keys(db, [first.key_id, second.key_id])] == [second.key_id]


async def test_a_key_needs_its_tenant(db: Db) -> None:
    with pytest.raises(ConstraintViolated, match="api_key_tenant_id_fkey"):
        await tenants.create_api_key(db, tenants.generate_key(), "nobody", ("verify",), None)


@pytest.mark.parametrize(
    "text", ["", "fk_", "fk_ABCDEFGHIJKL_" + "s" * 43, "fk_abcdefghijkl_" + "s" * 42, "fk_abcdefghijkl_" + "s" * 44, "x" * 10_000]
)
def test_what_has_not_the_shape_of_a_key_is_none(text: str) -> None:
    assert tenants.parse_key(text) is None


# ---- who asks


@pytest.mark.parametrize("header", ["X-API-Key", "Authorization"])
async def test_a_key_opens_its_scopes_and_no_others(db: Db, access: Access, header: str) -> None:
    new = await make_key(db)
    text = f"Bearer {new.text}" if header == "Authorization" else new.text
    grant = await admit(access, text, header=header)
    assert (grant.tenant.tenant_id, grant.scopes, grant.key_id) == ("shop", {"verify", "settle"}, new.key_id)
    assert await refused(access, (header, text), scopes=("read", "finance")) == 403


async def test_scope_admin_opens_everything(db: Db, access: Access) -> None:
    new = await make_key(db, scopes=("admin",))
    for scope in tenants.SCOPES:
        assert (await admit(access, new.text, (scope,))).sees_all


async def test_anything_but_one_right_key_is_401(db: Db, access: Access) -> None:
    new = await make_key(db)
    other = tenants.generate_key().text
    wrong_secret = new.text[:-1] + ("A" if new.text[-1] != "A" else "B")
    for headers in (
        [],
        [("X-API-Key", "")],
        [("X-API-Key", "no key")],
        [("X-API-Key", other)],
        [("X-API-Key", wrong_secret)],
        [("X-API-Key", new.text.upper())],
        [("Authorization", new.text)],
        [("Authorization", f"Basic {new.text}")],
        [("Authorization", f"Bearer {new.text}"), ("X-API-Key", other)],
        [("X-API-Key", new.text), ("X-API-Key", other)],
    ):
        assert await refused(access, *headers) == 401, headers
    assert (await admit(access, f"bearer  {new.text}", header="Authorization")).key_id == new.key_id


async def test_two_keys_of_a_tenant_work_side_by_side(db: Db, access: Access) -> None:
    old, new = await make_key(db), await make_key(db)
    assert (await admit(access, old.text)).tenant == (await admit(access, new.text)).tenant


async def test_an_expired_key_is_refused_also_from_memory(db: Db, access: Access, clock: ManualClock) -> None:
    new = await make_key(db, expires=datetime.now(UTC) + timedelta(seconds=30))
    await admit(access, new.text)
    clock.offset_s = 31.0
    assert await refused(access, ("X-API-Key", new.text)) == 401


async def test_a_revoked_key_ends_with_the_next_refresh(db: Db, access: Access) -> None:
    new = await make_key(db)
    await admit(access, new.text)
    await tenants.revoke_api_key(db, new.key_id)
    await admit(access, new.text)
    await access._refresh()
    assert await refused(access, ("X-API-Key", new.text)) == 401


async def test_limits_of_a_newer_release_keep_out_their_own_tenant_only(db: Db, access: Access, clock: ManualClock) -> None:
    ours, theirs = await make_key(db), await make_key(db, tenant="early")
    await admit(access, ours.text)
    await admit(access, theirs.text)
    async with db.session() as session:
        await session._connection.execute("""update tenant set limits = '{"yetToCome": 5}' where tenant_id = 'early'""")
    clock.offset_s = 2 * SETTINGS.stale_max_s
    await admit(access, ours.text)
    for _ in range(2):
        with pytest.raises(StoreFault, match="yetToCome"):
            await admit(access, theirs.text)
    clock.offset_s *= 2
    await admit(access, ours.text)
    async with db.session() as session:
        await session._connection.execute("update tenant set limits = '{}' where tenant_id = 'early'")
    await admit(access, theirs.text)


async def test_a_known_key_costs_no_query_and_a_wrong_one_at_most_one_in_a_while(db: Db, access: Access, clock: ManualClock) -> None:
    new, unknown = await make_key(db), tenants.generate_key().text
    await admit(access, new.text)
    await refused(access, ("X-API-Key", unknown))
    await db.close()
    for _ in range(3):
        await admit(access, new.text)
        assert await refused(access, ("X-API-Key", unknown)) == 401
    clock.offset_s = SETTINGS.unknown_ttl_s + 0.1
    with pytest.raises(StoreFault):
        await admit(access, unknown)


async def test_without_the_store_known_keys_live_a_minute_from_the_last_contact(db: Db, access: Access, clock: ManualClock) -> None:
    new = await make_key(db)
    await admit(access, new.text)
    clock.offset_s = 100.0
    await access._refresh()  # the last contact
    await db.close()
    clock.offset_s = 100.0 + SETTINGS.stale_max_s
    await admit(access, new.text)
    clock.offset_s += 0.1
    with pytest.raises(StoreFault):
        await admit(access, new.text)


async def test_many_callers_with_one_new_key_share_one_lookup(db: Db, clock: ManualClock) -> None:
    new = await make_key(db)
    access = Access(replace(SETTINGS, lookups_max=1), clock)
    access.connect(db)
    grants = await asyncio.gather(*(admit(access, new.text) for _ in range(50)))
    assert {grant.key_id for grant in grants} == {new.key_id}
    assert not access._lookups


async def test_memory_is_bounded(db: Db, clock: ManualClock) -> None:
    access = Access(replace(SETTINGS, keys_max=2, unknown_max=3), clock)
    access.connect(db)
    for _ in range(5):
        await admit(access, (await make_key(db)).text)
        await refused(access, ("X-API-Key", tenants.generate_key().text))
    assert (len(access._known), len(access._unknown)) == (2, 3)


async def test_use_is_written_down_in_batches_at_most_once_a_minute(db: Db, access: Access, clock: ManualClock) -> None:
    new, idle = await make_key(db), await make_key(db)
    await admit(access, new.text)
    await access._touch()
    assert all(row.last_used_at is None for row in await tenants.list_api_keys(db))
    clock.offset_s = 61.0
    await access._touch()
    used = {row.key_id for row in await tenants.list_api_keys(db) if row.last_used_at is not None}
    assert used == {new.key_id}
    assert idle.key_id not in used


async def test_until_the_store_was_reached_nobody_can_tell_who_asks(clock: ManualClock) -> None:
    with pytest.raises(StoreFault):
        await admit(Access(SETTINGS, clock), tenants.generate_key().text)


async def test_mode_open_takes_everybody_for_the_tenant_open(clock: ManualClock) -> None:
    grant = await Access(replace(SETTINGS, mode="open"), clock).admit(request(), "/settle", ("settle",))
    assert (grant.tenant.tenant_id, grant.scopes) == ("open", set(tenants.SCOPES))


async def test_a_key_over_its_rate_is_told_when_to_come_back(db: Db, clock: ManualClock) -> None:
    access = Access(replace(SETTINGS, rate_per_s=2.0, rate_burst=3), clock)
    access.connect(db)
    noisy, quiet = await make_key(db), await make_key(db)
    for _ in range(3):
        await admit(access, noisy.text)
    with pytest.raises(HttpProblem) as raised:
        await admit(access, noisy.text)
    assert (raised.value.status, raised.value.headers["Retry-After"]) == (429, "1")
    await admit(access, quiet.text)
    clock.offset_s += 0.5
    await admit(access, noisy.text)


# ---- signed tokens, at several replicas


def token_request(token: str, path: str = "/settle") -> web.Request:
    from multidict import CIMultiDict  # noqa: PLC0415

    return make_mocked_request("POST", path, headers=CIMultiDict([("Authorization", f"Bearer {token}")]))


async def signing(db: Db) -> tuple[str, Ed25519PrivateKey]:
    """A key that signs, of a tenant that may settle."""
    private = Ed25519PrivateKey.generate()
    pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    new = tenants.signing_key(parse_public_key(pem))
    await administration.create_key(db, "cli me", new, "shop", ("verify", "settle"), None, make_tenant=True)
    return new.key_id, private


def token_of(key_id: str, private: Ed25519PrivateKey, path: str = "/settle") -> str:
    now = int(datetime.now(UTC).timestamp())
    claims = {"sub": key_id, "uris": [f"POST pay.example{path}"], "nbf": now, "exp": now + 120}
    return jwt.encode(claims, private, algorithm="EdDSA", headers={"kid": key_id, "nonce": token_hex(16)})


def replica(db: Db, clock: ManualClock) -> Access:
    access = Access(AccessSettings(jwt_bases=("pay.example",)), clock)
    access.connect(db)
    return access


async def test_a_token_opens_once_whichever_replica_it_is_sent_to(db: Db, clock: ManualClock) -> None:
    key_id, private = await signing(db)
    replicas = [replica(db, clock) for _ in range(3)]
    for _ in range(5):
        token = token_of(key_id, private)
        asked = [each.admit(token_request(token), "/settle", ("settle",)) for each in replicas * 2]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(each) for each in found].count(Grant) == 1
        assert [each.status for each in found if isinstance(each, HttpProblem)] == [401] * 5
    await tenants.forget_tokens(db)
    with pytest.raises(HttpProblem):
        await replica(db, clock).admit(token_request(token), "/settle", ("settle",))
    async with db.session() as session:
        await session._connection.execute("update token_use set ends_at = now()")
        await tenants.forget_tokens(db)
        assert await session._connection.fetchval("select count(*) from token_use") == 0


async def test_without_the_store_a_token_opens_verify_once_in_each_process_and_nothing_else(
    db: Db, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_id, private = await signing(db)
    access = replica(db, clock)
    await access.admit(token_request(token_of(key_id, private)), "/settle", ("settle",))

    async def away(*_: object) -> bool:
        raise StoreFault("store_unavailable", "away")

    monkeypatch.setattr(tenants, "use_token", away)
    verify = token_of(key_id, private, "/verify")
    assert (await access.admit(token_request(verify, "/verify"), "/verify", ("verify",))).key_id == key_id
    with pytest.raises(HttpProblem):
        await access.admit(token_request(verify, "/verify"), "/verify", ("verify",))
    with pytest.raises(StoreFault):
        await access.admit(token_request(token_of(key_id, private)), "/settle", ("settle",))


async def test_a_dump_holds_no_token_that_could_be_used_again(db: Db, clock: ManualClock) -> None:
    key_id, private = await signing(db)
    token = token_of(key_id, private)
    await replica(db, clock).admit(token_request(token), "/settle", ("settle",))
    async with db.session() as session:
        tables = [row[0] for row in await session._connection.fetch("select tablename from pg_tables where schemaname = current_schema()")]
        assert "token_use" in tables
        dump = "\n".join(
            [str([tuple(row) for row in await session._connection.fetch(f"select t::text from {table} t")]) for table in tables]  # noqa: S608
        )
    assert key_id in dump
    assert token not in dump
    assert jwt.get_unverified_header(token)["nonce"] not in dump, "only its hash"
