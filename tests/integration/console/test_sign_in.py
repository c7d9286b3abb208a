"""Signing in to the console by a one-time link, what a session is good for, and what a form must carry."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from facilitator.console.app import HEADERS
from facilitator.console.desk import Page
from facilitator.console.roles import PERMISSIONS, ROLES, Role
from facilitator.console.secrets import hash_of
from facilitator.console.settings import Settings
from facilitator.console.table import PAGES
from tests.fixtures.console import ANYWHERE, Browser, Room, open_room


@pytest.fixture
async def room(database_url: str) -> AsyncIterator[Room]:
    async with open_room(database_url) as room:
        yield room


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def trail(connection: Any) -> list[tuple[str, str, Any]]:
    rows = await connection.fetch("select kind, actor, detail from audit_event order by event_id")
    return [(row["kind"], row["actor"], json.loads(row["detail"])) for row in rows]


async def test_a_link_signs_in_once_and_looking_at_it_does_not_use_it_up(room: Room, connection: Any) -> None:
    token = await room.link("finance", "ada")
    browser, late = room.browser(), room.browser()
    for _ in range(2):
        assert token in (await browser.get(f"/sign-in?token={token}")).text
    signed_in = await browser.post("/sign-in", {"token": token})
    assert (signed_in.status, signed_in.location) == (303, "/")
    assert 'ada <span class="soft">· finance' in (await browser.get("/")).text
    assert (await late.post("/sign-in", {"token": token})).status == 403
    assert (await late.get("/")).location == "/sign-in"
    assert [(kind, detail.get("role")) for kind, _, detail in await trail(connection)] == [
        ("console_signed_in", "finance"),
        ("console_sign_in_failed", None),
    ]


async def test_of_two_who_use_a_link_at_the_same_time_one_is_signed_in(room: Room) -> None:
    token = await room.link("viewer")
    answers = await asyncio.gather(*(room.browser().post("/sign-in", {"token": token}) for _ in range(4)))
    assert sorted(answer.status for answer in answers) == [303, 403, 403, 403]


async def test_a_link_that_is_too_old_or_was_never_made_opens_nothing(room: Room, connection: Any) -> None:
    token = await room.link("admin")
    await connection.execute("update console_link set expires_at = now()")
    for wrong in (token, "x" * 43, ""):
        assert (await room.browser().post("/sign-in", {"token": wrong})).status == 403


async def test_the_database_knows_hashes_only(room: Room, connection: Any) -> None:
    token = await room.link("viewer")
    browser = room.browser()
    await browser.post("/sign-in", {"token": token})
    (secret,) = browser.cookies().values()
    assert await connection.fetchval("select secret_sha256 from console_session") == hash_of(secret)
    for table in ("console_session", "console_link", "audit_event"):
        text = await connection.fetchval(f"select string_agg(t::text, ' ') from {table} t")  # noqa: S608
        assert secret not in text
        assert token not in text


async def test_a_session_ends_when_idle_and_in_any_case(room: Room, connection: Any) -> None:
    browser = await room.sign_in("viewer")
    await connection.execute("update console_session set seen_at = now() - interval '29 minutes'")
    assert (await browser.get("/")).status == 200
    assert await connection.fetchval("select seen_at > now() - interval '1 minute' from console_session")
    await connection.execute("update console_session set seen_at = now() - interval '31 minutes'")
    assert (await browser.get("/")).status == 303
    await connection.execute("update console_session set seen_at = now(), started_at = now() - interval '9 hours', expires_at = now()")
    assert (await browser.get("/")).status == 303


async def test_signing_in_again_makes_a_new_session_and_ends_the_old_one(room: Room, connection: Any) -> None:
    browser = await room.sign_in("viewer")
    before = browser.cookies()
    await browser.post("/sign-in", {"token": await room.link("admin", "bob")})
    assert before.keys() == browser.cookies().keys()
    assert before != browser.cookies()
    assert 'bob <span class="soft">· admin' in (await browser.get("/")).text
    stolen = room.browser()
    stolen.session.cookie_jar.update_cookies(before, URL_OF(stolen))
    assert (await stolen.get("/")).status == 303
    assert await connection.fetchval("select count(*) from console_session where ended_at is null") == 1


async def test_signing_out_ends_the_session_here_or_everywhere(room: Room, connection: Any) -> None:
    one, other, bob = await room.sign_in("viewer"), await room.sign_in("finance"), await room.sign_in("viewer", "bob")
    kept = one.cookies()
    assert (await one.post("/sign-out")).location == "/sign-in"
    assert one.cookies() == {}
    one.session.cookie_jar.update_cookies(kept, URL_OF(one))
    assert [(await browser.get("/")).status for browser in (one, other, bob)] == [303, 200, 200]
    third = await room.sign_in("auditor")
    await third.post("/sign-out", {"everywhere": "1"})
    assert [(await browser.get("/")).status for browser in (other, third, bob)] == [303, 303, 200]
    assert [(actor, detail) for kind, actor, detail in await trail(connection) if kind == "console_signed_out"] == [
        ("ada", {"everywhere": False}),
        ("ada", {"everywhere": True}),
    ]


def URL_OF(browser: Browser) -> Any:  # noqa: N802 - reads as a constant
    from yarl import URL  # noqa: PLC0415

    return URL(browser.base)


@pytest.mark.parametrize(
    ("asked", "led"),
    [
        ("/settlements?state=failed", "/settlements?state=failed"),
        ("//evil.example/x", "/"),
        ("/\\evil.example", "/"),
        ("https://evil.example/", "/"),
        ("javascript:alert(1)", "/"),
    ],
)
async def test_who_signs_in_comes_back_to_the_page_that_was_asked_for_and_to_no_other_host(room: Room, asked: str, led: str) -> None:
    from urllib.parse import quote  # noqa: PLC0415

    browser = room.browser()
    token = await room.link("viewer")
    await browser.get(f"/sign-in?token={token}&next={quote(asked, safe='')}")
    assert (await browser.post("/sign-in", {"token": token})).location == led


async def test_a_page_asked_for_without_a_session_is_named_in_the_way_to_the_sign_in(room: Room) -> None:
    browser = room.browser()
    assert (await browser.get("/")).location == "/sign-in"
    part = await browser.get("/", HX_Request="true", **{"HX-Request": "true"})
    assert (part.status, part.headers["HX-Redirect"]) == (401, "/sign-in")


# --- who may see what


@pytest.mark.parametrize("role", ROLES)
async def test_every_page_opens_to_the_roles_that_may_and_to_no_other(room: Room, connection: Any, role: Role) -> None:
    browser = await room.sign_in(role)
    refused = []
    for page in PAGES:
        path = page.path.replace("{id}", "0").replace("{day}", "2025-11-01")
        answer = await (browser.get(path) if page.method == "GET" else browser.post(path))
        allowed = page.needs in PERMISSIONS[role]
        assert (answer.status != 403) == allowed, (page, answer.status, answer.text)
        if not allowed:
            assert f"Your role ({role})" in answer.text
            refused.append({"page": f"{page.method} {page.path}", "role": role})
    assert [detail for kind, _, detail in await trail(connection) if kind == "console_refused"] == refused


def test_only_admin_may_everything_and_auditors_change_nothing() -> None:
    assert PERMISSIONS["viewer"] == {"view"}
    assert PERMISSIONS["auditor"] & {"resolve", "close"} == set()
    assert PERMISSIONS["finance"] - {"audit"} == PERMISSIONS["admin"] - {"audit"}
    assert all(held <= PERMISSIONS["admin"] for held in PERMISSIONS.values())


# --- what a form must carry


@pytest.mark.parametrize(
    "how",
    [
        {"csrf": ""},
        {"csrf": "0" * 64},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
async def test_a_form_that_no_page_of_ours_sent_changes_nothing(room: Room, how: dict[str, str]) -> None:
    browser = await room.sign_in("viewer")
    assert (await browser.post("/sign-out", **how)).status == 403
    assert (await browser.get("/")).status == 200


async def test_the_token_of_another_session_is_none(room: Room) -> None:
    ada, bob = await room.sign_in("viewer"), await room.sign_in("viewer", "bob")
    assert (await ada.post("/sign-out", csrf=bob.csrf)).status == 403


async def test_another_origin_signs_nobody_in(room: Room) -> None:
    token = await room.link("viewer")
    assert (await room.browser().post("/sign-in", {"token": token}, Origin="https://evil.example")).status == 403
    assert (await room.browser().post("/sign-in", {"token": token})).status == 303


async def test_the_token_may_come_in_a_header(room: Room) -> None:
    browser = await room.sign_in("viewer")
    assert (await browser.post("/sign-out", csrf="", **{"X-CSRF-Token": browser.csrf})).status == 303


# --- around every answer


async def test_every_answer_has_the_headers_that_hold_a_browser(room: Room) -> None:
    browser = await room.sign_in("viewer")
    for path in ("/", "/sign-in", "/nowhere", "/static/console.css"):
        answer = await browser.get(path)
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
        assert answer.headers["Cache-Control"] == "no-store"
        assert "Strict-Transport-Security" not in answer.headers
    assert "'unsafe" not in HEADERS["Content-Security-Policy"]
    style = room.desk.assets["console.css"]
    kept = await browser.get(f"/static/console.css?v={style.version}")
    assert kept.headers["Cache-Control"] == "public, max-age=31536000, immutable"


async def test_pages_hold_no_style_script_or_handler_that_the_policy_forbids(room: Room) -> None:
    browser = await room.sign_in("admin")
    for path in ("/", "/sign-in", "/nowhere"):
        text = (await browser.get(path)).text.lower()
        assert not any(word in text for word in ("<style", "style=", "<script>", "onclick", "javascript:"))


async def test_behind_https_cookies_are_bound_to_the_host(database_url: str) -> None:
    settings = Settings(listen=ANYWHERE, url="https://books.example")
    async with open_room(database_url, settings) as room:
        browser = room.browser()
        browser.sent["Host"] = "books.example"
        answer = await browser.post("/sign-in", {"token": await room.link("viewer")}, Origin="https://books.example")
        assert answer.status == 303
        cookie = answer.headers["Set-Cookie"]
        assert cookie.startswith("__Host-session=")
        assert {part.strip() for part in cookie.split(";")[1:]} == {"HttpOnly", "Path=/", "SameSite=Lax", "Secure"}
        assert answer.headers["Strict-Transport-Security"].startswith("max-age=31536000")
        browser.sent["Host"] = "evil.example"
        assert (await browser.get("/sign-in")).status == 421


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:4023", "localhost.evil.example"])
async def test_on_this_machine_no_other_name_is_served(room: Room, host: str) -> None:
    browser = room.browser()
    browser.sent["Host"] = host
    assert (await browser.get("/sign-in")).status == 421


async def test_whoever_tries_too_often_waits(database_url: str) -> None:
    async with open_room(database_url, Settings(listen=ANYWHERE, sign_ins_per_s=0.01, sign_ins_burst=3)) as room:
        browser = room.browser()
        answers = [await browser.post("/sign-in", {"token": "x"}) for _ in range(4)]
        assert [answer.status for answer in answers] == [403, 403, 403, 429]
        assert int(answers[-1].headers["Retry-After"]) >= 1


async def test_without_the_database_a_page_says_so(database_url: str) -> None:
    async with open_room(database_url) as room:
        browser = await room.sign_in("viewer")
        room.desk.db = None
        answer = await browser.get("/")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
        assert "cannot be read" in answer.text


def test_no_two_pages_have_one_address() -> None:
    addresses = [(page.method, page.path) for page in PAGES]
    assert len(set(addresses)) == len(addresses)
    assert all(isinstance(page, Page) for page in PAGES)
