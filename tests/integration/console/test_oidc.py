"""Signing in to the console with OpenID Connect, against a provider that checks its side and can do each thing wrong."""

import json
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import asyncpg
import pytest

from facilitator.clock import SystemClock
from tests.fixtures.console import Answered, Browser, Room, open_room
from tests.fixtures.openid import OpenId, open_provider


class _Ahead(SystemClock):
    """A clock that can be put forward."""

    ahead_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_s


@pytest.fixture
async def provider() -> AsyncIterator[OpenId]:
    async with open_provider() as provider:
        yield provider


@pytest.fixture
async def clock() -> _Ahead:
    return _Ahead()


@pytest.fixture
async def room(database_url: str, provider: OpenId, clock: _Ahead) -> AsyncIterator[Room]:
    async with open_room(database_url, client=provider.client, clock=clock) as room:
        yield room


async def come_back(browser: Browser, provider: OpenId) -> Answered:
    """To the provider and back."""
    sent = await browser.get("/sign-in/oidc")
    assert sent.status == 303
    return await browser.get(provider.consent(sent.location))


async def signed_in(room: Room) -> tuple[str, str, str]:
    """Who, as what, and how: the only session there is."""
    connection = await asyncpg.connect(room.db.url)
    try:
        (row,) = await connection.fetch("select person, role, method from console_session")
    finally:
        await connection.close()
    return row["person"], row["role"], row["method"]


async def test_a_person_signs_in_with_the_role_of_the_claim(room: Room, provider: OpenId) -> None:
    browser = room.browser()
    assert "/sign-in/oidc" in (await browser.get("/sign-in?next=%2F%3Fx%3D1")).text
    answer = await come_back(browser, provider)
    assert (answer.status, answer.location) == (303, "/?x=1")
    assert (await browser.get("/")).status == 200
    assert await signed_in(room) == ("ada@example.com", "finance", "oidc")
    assert set(browser.cookies()) == {"facilitator-session"}


@pytest.mark.parametrize(
    ("said", "role"),
    [("viewer", "viewer"), (["accountants"], "finance"), (["auditor", "viewer"], "auditor"), (["viewer", "finance", "admin"], "admin")],
    ids=str,
)
async def test_of_several_roles_the_first_in_order_counts(room: Room, provider: OpenId, said: Any, role: str) -> None:
    provider.claims["roles"] = said
    browser = room.browser()
    assert (await come_back(browser, provider)).status == 303
    assert await signed_in(room) == ("ada@example.com", role, "oidc")


@pytest.mark.parametrize(("algorithm", "secret"), [("ES256", None), ("ES256", "a/b+c d"), ("RS256", None)])
async def test_other_keys_and_public_clients(database_url: str, algorithm: str, secret: str | None) -> None:
    async with open_provider(algorithm, secret) as provider, open_room(database_url, client=provider.client) as room:
        assert (await come_back(room.browser(), provider)).status == 303


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"aud": "others"}, "InvalidAudienceError"),
    ({"iss": "https://evil.example"}, "InvalidIssuerError"),
    ({"nonce": "another"}, "belongs to another attempt"),
    ({"nonce": None}, "belongs to another attempt"),
    ({"exp": 1_000_000_000}, "ExpiredSignatureError"),
    ({"exp": None}, "MissingRequiredClaimError"),
    ({"iat": int(time.time()) + 3600}, "ImmatureSignatureError"),
    ({"azp": "others"}, "another client"),
    ({"key": True}, "InvalidSignatureError"),
    ({"alg_none": True}, "InvalidAlgorithmError"),
    ({"no_token": True}, "no ID token"),
    ({"status": 500}, "status 500"),
    ({"email": None}, "does not say who you are"),
    ({"email": "ada\n@example.com"}, "does not say who you are"),
    ({"email_verified": False}, "has not verified"),
    ({"roles": ["guest"]}, "has no role"),
    ({"roles": {"finance": True}}, "has no role"),
    ({"roles": None}, "has no role"),
]


async def test_an_id_token_that_is_not_right_signs_nobody_in(room: Room, provider: OpenId) -> None:
    """Each wrong by one thing; the trail says why, and holds no token."""
    for wrong, why in WRONG:
        provider.wrong = wrong
        browser = room.browser()
        answer = await come_back(browser, provider)
        assert (answer.status, why in answer.text) == (403, True), (wrong, answer.text)
        assert (await browser.get("/")).status == 303
    connection = await asyncpg.connect(room.db.url)
    try:
        rows = await connection.fetch("select detail from audit_event where kind = 'console_sign_in_failed' order by event_id")
        assert await connection.fetchval("select count(*) from console_session") == 0
    finally:
        await connection.close()
    assert [why in json.loads(row["detail"])["why"] for row, (_, why) in zip(rows, WRONG, strict=True)] == [True] * len(WRONG)
    assert not any("eyJ" in row["detail"] for row in rows)


async def test_an_answer_counts_in_the_browser_that_asked_and_once(room: Room, provider: OpenId) -> None:
    ada, eve = room.browser(), room.browser()
    back = provider.consent((await ada.get("/sign-in/oidc")).location)
    assert (await eve.get(back)).status == 403, "no cookie of an attempt"
    await eve.get("/sign-in/oidc")
    assert (await eve.get(back)).status == 403, "a cookie of another attempt"
    assert (await ada.get(back)).status == 303
    assert (await ada.get(back)).status == 403, "used"


async def test_what_comes_back_wrong_is_refused(room: Room, provider: OpenId) -> None:
    for change, why in (
        ({"state": "x"}, "another attempt"),
        ({"state": ""}, "another attempt"),
        ({"iss": "https://evil.example"}, "another provider"),
        ({"error": "access_denied"}, "access_denied"),
        ({"code": "never"}, "status 400"),
    ):
        browser = room.browser()
        back = urlsplit(provider.consent((await browser.get("/sign-in/oidc")).location))
        query = {name: values[0] for name, values in parse_qs(back.query).items()} | change
        answer = await browser.get(f"{back.path}?{urlencode(query)}")
        assert (answer.status, why in answer.text) == (403, True), (change, answer.text)


async def test_every_attempt_has_a_challenge_a_state_and_a_nonce_of_its_own(room: Room) -> None:
    browser = room.browser()
    queries = [parse_qs(urlsplit((await browser.get("/sign-in/oidc")).location).query) for _ in range(2)]
    for name in ("state", "nonce", "code_challenge"):
        assert queries[0][name] != queries[1][name]
        assert len(queries[0][name][0]) >= 43
    assert queries[0]["tenant"] == ["1"], "the endpoint's own query stays"


async def test_keys_are_kept_and_read_again_when_they_change(room: Room, provider: OpenId, clock: _Ahead) -> None:
    for _ in range(3):
        assert (await come_back(room.browser(), provider)).status == 303
    assert provider.fetched == ["/.well-known/openid-configuration", "/keys"]
    provider.rotate()
    assert (await come_back(room.browser(), provider)).status == 403, "looked for again at most every half minute"
    clock.ahead_s = 31.0
    assert (await come_back(room.browser(), provider)).status == 303
    assert provider.fetched == ["/.well-known/openid-configuration", "/keys"] * 2


async def test_a_provider_that_calls_itself_otherwise_is_none(room: Room, provider: OpenId) -> None:
    provider.wrong = {"issuer": "https://evil.example"}
    answer = await room.browser().get("/sign-in/oidc")
    assert (answer.status, "calls itself otherwise" in answer.text) == (503, True)


async def test_without_a_provider_there_is_no_way_there(database_url: str) -> None:
    async with open_room(database_url) as room:
        assert "/sign-in/oidc" not in (await room.browser().get("/sign-in")).text
        assert (await room.browser().get("/sign-in/oidc")).status == 404
        assert (await room.browser().get("/sign-in/callback?code=x&state=y")).status == 404
