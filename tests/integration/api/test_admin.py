"""Administration over a real port and a real database: who may, what changes, what the trail says; and every route by every scope."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import pytest_asyncio

from facilitator.api.openapi import DOCUMENT
from facilitator.domain.limits import RATED_ROUTES
from facilitator.store import administration, tenants
from facilitator.store.tenants import SCOPES
from tests.fixtures.office import Office, open_office

OPERATIONS: dict[str, dict[str, Any]] = cast("Any", DOCUMENT["paths"])
TABLE = [
    (method.upper(), path, tuple(operation.get("x-scopes", ()))) for path, item in OPERATIONS.items() for method, operation in item.items()
]
ID = "00000000-0000-4000-8000-000000000000"


@pytest_asyncio.fixture
async def office(database_url: str) -> AsyncIterator[Office]:
    async with open_office(database_url) as office:
        yield office


async def test_every_route_opens_to_its_scopes_and_to_no_other(office: Office) -> None:
    """From the API's own description: 401 without a key, 403 without the scope; what opens fails later for want of a body."""
    for method, path, scopes in TABLE:
        where = path.replace("{id}", ID).replace("{day}", "2025-11-01")
        status, _ = await office.ask(method, where, scope=None)
        assert (status == 401) == bool(scopes), (method, path, status)
        for scope in SCOPES:
            status, told = await office.ask(method, where, scope=scope)
            opens = not scopes or scope in scopes or scope == "admin"
            assert status != 401, (method, path, scope)
            assert (status == 403) == (not opens), (method, path, scope, status, told)


def test_every_route_of_tenants_may_have_a_rate_and_administration_and_finance_have_none() -> None:
    scoped = {path for _, path, scopes in TABLE if scopes}
    assert set(RATED_ROUTES) == {path for path in scoped if not path.startswith(("/admin/", "/finance/"))}


async def test_a_tenant_is_made_changed_and_disabled_and_the_trail_names_the_key(office: Office) -> None:
    asked = {"id": "shop", "confirmLevel": "safe", "limits": {"settlementsMax": 5, "payTo": ["0x" + "AB" * 20]}}
    status, made = await office.ask("POST", "/admin/tenants", asked)
    assert (status, made["confirmLevel"], made["disabled"]) == (201, "safe", None)
    assert made["limits"] == {"settlementsMax": 5, "payTo": ["0x" + "ab" * 20]}
    assert (await office.ask("POST", "/admin/tenants", asked))[0] == 409
    change = {"confirmLevel": None, "sharedTransactions": False, "limits": {"payTo": None, "amountMin": "10"}}
    status, changed = await office.ask("PATCH", "/admin/tenants/shop", change)
    assert (status, changed["confirmLevel"], changed["sharedTransactions"]) == (200, None, False)
    assert changed["limits"] == {"settlementsMax": 5, "amountMin": "10"}
    assert (await office.ask("PATCH", "/admin/tenants/shop", {"disabled": True}))[1]["disabled"] is not None
    assert (await office.ask("PATCH", "/admin/tenants/shop", {}))[1]["disabled"] is not None, "what is absent stays"
    assert (await office.ask("PATCH", "/admin/tenants/shop", {"disabled": False}))[1] == changed
    listed = (await office.ask("GET", "/admin/tenants"))[1]["tenants"]
    assert [row["id"] for row in listed] == ["house", "shop"]
    assert listed[1] == changed
    mine = [(kind, detail["subject"]) for kind, actor, detail in await office.trail() if actor == f"key {office.keys['admin'].key_id}"]
    assert mine == [("tenant_created", "shop")] + [("tenant_changed", "shop")] * 3


async def test_a_key_is_made_shown_once_used_and_revoked(office: Office) -> None:
    status, made = await office.ask(
        "POST", "/admin/keys", {"tenant": "house", "scopes": ["read", "admin"], "expires": "2999-01-01T00:00:00Z"}
    )
    assert (status, made["tenant"], made["scopes"], made["expires"]) == (201, "house", ["read", "admin"], "2999-01-01T00:00:00Z")
    office.keys["admin"] = tenants.NewKey(key_id=made["id"], sha256=b"", text=made["key"])
    status, listed = await office.ask("GET", "/admin/keys?tenant=house")
    assert status == 200
    assert made["id"] in [row["id"] for row in listed["keys"]]
    assert made["key"][16:] not in json.dumps(listed)
    assert (await office.ask("GET", "/admin/keys?tenant=nobody"))[1] == {"keys": []}
    gone = tenants.generate_key()
    await administration.create_key(office.db, "cli me", gone, "house", ("verify",), None)
    status, revoked = await office.ask("DELETE", f"/admin/keys/{gone.key_id}")
    assert (status, revoked["id"], revoked["revoked"] is not None) == (200, gone.key_id, True)
    assert (await office.ask("DELETE", f"/admin/keys/{gone.key_id}"))[1] == revoked, "again is the same"
    trail = await office.trail()
    assert made["key"][16:] not in json.dumps(trail)
    assert [(kind, detail["subject"]) for kind, actor, detail in trail if actor == f"key {made['id']}"] == [("key_revoked", gone.key_id)]


async def test_a_key_is_rotated_both_work_until_the_overlap_ends_and_the_trail_has_it(office: Office) -> None:
    old = tenants.generate_key()
    await administration.create_key(office.db, "cli me", old, "house", ("read", "admin"), None)
    status, made = await office.ask("POST", f"/admin/keys/{old.key_id}/rotate", {"overlapSeconds": 3600})
    assert (status, made["replaces"], made["scopes"], made["tenant"]) == (201, old.key_id, ["read", "admin"], "house")
    for text in (old.text, made["key"]):
        office.keys["admin"] = tenants.NewKey(key_id="", sha256=b"", text=text)
        assert (await office.ask("GET", "/admin/keys"))[0] == 200, "two are valid during rotation"
    status, told = await office.ask("POST", f"/admin/keys/{old.key_id}/rotate", {})
    assert (status, told["error"]) == (409, "not_possible")
    assert "replaced before" in told["message"]
    status, again = await office.ask("POST", f"/admin/keys/{made['id']}/rotate", {"overlapSeconds": 0})
    assert status == 201
    await office.access._refresh()
    assert (await office.ask("GET", "/admin/keys"))[0] == 401, "an overlap of nothing ends the old one at once"
    office.keys["admin"] = tenants.NewKey(key_id="", sha256=b"", text=again["key"])
    assert (await office.ask("POST", "/admin/keys/nokeyatallno/rotate", {}))[0] == 409
    trail = await office.trail()
    assert [(kind, detail["subject"]) for kind, _, detail in trail if kind == "key_rotated"] == [
        ("key_rotated", old.key_id),
        ("key_rotated", made["id"]),
    ]
    for key in (old.text, made["key"], again["key"]):
        assert key[16:] not in json.dumps(trail)


async def test_terms_payments_and_credits_are_booked_once_and_the_trail_names_the_key(office: Office) -> None:
    terms = {"tiers": [{"flat_micros": 2000}, {"above": 100, "basis_points": 15}], "gas": {"margin_basis_points": 500}}
    asked = {"tenant": "house", "from": "2025-11-01", "terms": terms}
    status, first = await office.ask("POST", "/admin/fees", asked)
    assert (status, first["version"], first["from"], first["terms"]["tiers"][1]["basis_points"]) == (201, 1, "2025-11-01", 15), first
    status, told = await office.ask("POST", "/admin/fees", asked)
    assert (status, told["error"], "choose a later one" in told["message"]) == (409, "reaches_back", True)
    second = (await office.ask("POST", "/admin/fees", asked | {"from": "2025-12-01", "terms": {}}))[1]
    assert (await office.ask("GET", "/admin/fees?tenant=house"))[1] == {"fees": [first, second]}
    assert (await office.ask("GET", "/admin/fees?tenant=nobody"))[1] == {"fees": []}

    paid = {"tenant": "house", "usd": "12.5", "reference": "bank 77"}
    answers = await asyncio.gather(*(office.ask("POST", "/admin/fees/payment", paid) for _ in range(4)))
    assert sorted(status for status, _ in answers) == [200, 200, 200, 201], "an answer that was lost is asked for again"
    ((_, booked), *others) = answers
    assert all(told == booked for _, told in others)
    assert booked["amount"] == "12500000"
    status, told = await office.ask("POST", "/admin/fees/payment", paid | {"usd": "12.6"})
    assert (status, told["error"], "12.500000 USD" in told["message"]) == (409, "reference_taken", True)
    status, credit = await office.ask("POST", "/admin/fees/credit", paid | {"usd": "0.5"})
    assert (status, credit["amount"]) == (201, "500000"), "a credit is another thing than a payment"
    query = "account=receivable:house&from=2025-01-01&to=2999-01-01"
    statement = (await office.ask("GET", f"/finance/statement?{query}", scope="finance"))[1]
    assert [(row["id"], row["amount"], row["against"], row["reference"]) for row in statement["movements"]] == [
        (booked["entry"], "-12500000", "cash:usd", "bank 77"),
        (credit["entry"], "-500000", "fee_income:house", "bank 77"),
    ]
    assert (statement["opening"], statement["closing"]) == ({}, {"USD": "-13000000"})

    wrong = [
        ("", asked | {"tenant": "nobody"}, 404, "there is no tenant nobody"),
        ("", asked | {"from": "soon"}, 400, "from"),
        ("", asked | {"terms": {"tiers": [{"above": 1}]}}, 400, "the first tier begins above 0"),
        ("", asked | {"terms": {"free": 1}}, 400, "unknown field"),
        ("", asked | {"until": "2026-01-01"}, 400, "unknown field"),
        ("/payment", paid | {"tenant": "nobody"}, 404, "there is no tenant nobody"),
        ("/payment", paid | {"usd": "-1"}, 400, "usd: expected dollars"),
        ("/payment", paid | {"usd": 1}, 400, "usd"),
        ("/payment", paid | {"usd": "0.0"}, 400, "nothing"),
        ("/credit", paid | {"reference": "  "}, 400, "reference"),
        ("/credit", paid | {"reference": "a\nb"}, 400, "reference"),
    ]
    for path, body, expected, said in wrong:
        status, told = await office.ask("POST", f"/admin/fees{path}", body)
        assert (status, said in told["message"]) == (expected, True), (body, told)
    assert (await office.ask("GET", "/admin/fees?tenants=house"))[0] == 400
    events = (await office.ask("GET", f"/finance/audit?actor=key%20{office.keys['admin'].key_id}"))[1]["events"]
    assert [(event["kind"], event["detail"]) for event in reversed(events)] == [
        ("terms_added", "house, version 1 from 2025-11-01"),
        ("terms_added", "house, version 2 from 2025-12-01"),
        ("payment_booked", f"entry {booked['entry']}, house: bank 77"),
        ("credit_booked", f"entry {credit['entry']}, house: bank 77"),
    ]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "/admin/tenants", {"id": "No!"}, 400, "expected a tenant id"),
        ("POST", "/admin/tenants", {"id": "shop", "limit": {}}, 400, "unknown field"),
        ("POST", "/admin/tenants", {"id": "shop", "disabled": True}, 400, "not disabled"),
        ("POST", "/admin/tenants", [], 400, "object"),
        ("PATCH", "/admin/tenants/nobody", {}, 404, "no such tenant"),
        ("PATCH", "/admin/tenants/house", {"limits": {"rates": {"/settle": {"perSecond": -1, "burst": 1}}}}, 400, "perSecond"),
        ("PATCH", "/admin/tenants/house", {"limits": {"networks": ["base"]}}, 400, "CAIP-2"),
        ("PATCH", "/admin/tenants/house", {"confirmLevel": "deep"}, 400, "enum"),
        ("POST", "/admin/keys/nokeyatallno/rotate", {"overlapSeconds": -1}, 400, "overlapSeconds"),
        ("POST", "/admin/keys/nokeyatallno/rotate", {"overlap": "1h"}, 400, "unknown field"),
        ("POST", "/admin/keys", {"tenant": "nobody", "scopes": ["read"]}, 404, "there is no tenant nobody"),
        ("POST", "/admin/keys", {"tenant": "house", "scopes": []}, 400, "scopes"),
        ("POST", "/admin/keys", {"tenant": "house", "scopes": ["all"]}, 400, "scopes"),
        ("POST", "/admin/keys", {"tenant": "house", "scopes": ["read"], "expires": "2020-01-01T00:00:00Z"}, 400, "past"),
        ("POST", "/admin/keys", {"tenant": "house", "scopes": ["read"], "expires": "2999-01-01T00:00:00"}, 400, "timezone"),
        ("POST", "/admin/keys", {"tenant": "house", "scopes": ["read"], "publicKey": "no key"}, 400, "publicKey: expected a public key"),
        ("GET", "/admin/keys?tenants=house", None, 400, "expected no query parameter but tenant"),
        ("DELETE", "/admin/keys/zzzzzzzzzzzz", None, 404, "no such key"),
    ],
)
async def test_what_is_wrong_is_told_and_changes_nothing(
    office: Office, method: str, path: str, body: object, status: int, said: str
) -> None:
    before = await office.trail()
    got, told = await office.ask(method, path, body)
    assert (got, said in told["message"]) == (status, True), told
    assert await office.trail() == before
