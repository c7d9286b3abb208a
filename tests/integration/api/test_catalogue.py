"""The catalogue: what gets in, what stays out, how much there may be, and that no payment is any the worse for it."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import aiohttp
import msgspec
import pytest
import pytest_asyncio

from facilitator.api.access import Access
from facilitator.api.catalogue import HEADER, Catalogue
from facilitator.api.delivery import Deliveries
from facilitator.api.desk import Desk
from facilitator.api.server import Server, routes_for
from facilitator.api.settings import AccessSettings, DiscoverySettings, Settings
from facilitator.clock import SystemClock
from facilitator.errors import StoreFault
from facilitator.protocol.codec import decode_request
from facilitator.protocol.messages import Payment, Supported
from facilitator.store import listings, tenants
from facilitator.store.db import Db
from facilitator.store.tenants import Tenant
from facilitator.units import Listen
from tests.fixtures.vectors import v1_request, v2_request

ACME, GLOBEX, SHY = Tenant(tenant_id="acme"), Tenant(tenant_id="globex"), Tenant(tenant_id="shy", discoverable=False)
BAZAAR = {"info": {"input": {"type": "http", "method": "GET"}}, "schema": {}}


def offered(path: str = "x", *, version: int = 2, **changes: Any) -> Payment:
    """A payment for https://api.example/PATH; `changes` of the requirements or of the resource."""
    tree = v2_request() if version == 2 else v1_request()
    url = f"https://api.example/{path}"
    terms = {name: changes.pop(name) for name in ("amount", "payTo", "maxAmountRequired") if name in changes}
    tree["paymentRequirements"] |= terms
    if version == 2:
        tree["paymentPayload"] |= {"extensions": {"bazaar": BAZAAR}, "resource": {"url": url, **changes}}
    else:
        tree["paymentRequirements"] |= {"resource": url, "outputSchema": BAZAAR["info"]}
    payment = decode_request(json.dumps(tree).encode())
    assert isinstance(payment, Payment), payment
    return payment


def told(headers: Any) -> dict[str, str]:
    found: dict[str, str] = json.loads(base64.b64decode(headers[HEADER]))["bazaar"]
    return found


class Market:
    """A catalogue on a real database, and a port that anybody may read."""

    def __init__(self, db: Db, **changes: Any) -> None:
        clock = SystemClock()
        self.db = db
        self.catalogue = Catalogue(DiscoverySettings(**changes), clock)
        desk = Desk(
            settings=Settings(listen=Listen("127.0.0.1", 0)),
            clock=clock,
            deliveries=Deliveries(clock, 1.0),
            supported=lambda: Supported(kinds=(), extensions=(), signers={}),
            gates=dict,
            catalogue=self.catalogue,
            db=db,
        )
        self.server = Server(desk, Access(AccessSettings(), clock), desk.settings.listen, routes_for(desk.settings.listen))

    async def settled(self, *payments: Payment, tenant: Tenant = ACME) -> None:
        for payment in payments:
            assert told(self.catalogue.note(tenant, payment, settled=True)) == {"status": "processing"}
        await self.catalogue.flush(self.db)

    async def get(self, path: str, **query: str) -> tuple[int, Any]:
        url = f"http://127.0.0.1:{self.server.port}/discovery/{path}"
        async with aiohttp.ClientSession() as session, session.get(url, params=query) as answer:
            return answer.status, await answer.json()

    async def paths(self, **query: str) -> list[str]:
        """Paths of what is listed, in order."""
        status, page = await self.get("resources", **query)
        assert status == 200, page
        return [item["resource"].removeprefix("https://api.example/") for item in page["items"]]

    async def execute(self, sql: str) -> None:
        async with self.db.session() as session:
            await session._connection.execute(sql)


@pytest_asyncio.fixture
async def db(database_url: str) -> AsyncIterator[Db]:
    db = await Db.connect(database_url)
    for tenant in (ACME, GLOBEX, SHY):
        await tenants.create_tenant(db, tenant)
    yield db
    await db.close()


@pytest_asyncio.fixture
async def market(db: Db) -> AsyncIterator[Market]:
    market = Market(db, entries_per_tenant_max=3, entries_max=5, pending_max=10, rate_burst=10_000)
    await market.server.start()
    yield market
    await market.server.stop()


async def test_a_listing_appears_with_a_settled_payment_and_not_before(market: Market) -> None:
    assert told(market.catalogue.note(ACME, offered("a"), settled=False)) == {"status": "processing"}
    await market.catalogue.flush(market.db)
    assert await market.paths() == []
    await market.settled(offered("a"))
    assert await market.paths() == ["a"]


async def test_payments_for_one_resource_are_counted_and_come_first(market: Market) -> None:
    await market.settled(offered("b"), offered("a"), offered("a?x=1"), offered("a?x=2"))
    await market.settled(offered("b"))
    await market.settled(offered("a"))
    _, page = await market.get("resources")
    assert [(item["resource"][-1], item["quality"]["settledPayments"]) for item in page["items"]] == [("a", 4), ("b", 2)]
    assert page["pagination"] == {"limit": 20, "offset": 0, "total": 2}


async def test_only_settled_payments_change_what_is_shown(market: Market) -> None:
    await market.settled(offered("a", description="true"))
    market.catalogue.note(ACME, offered("a", description="forged", amount="7"), settled=False)
    await market.catalogue.flush(market.db)
    _, page = await market.get("resources")
    [item] = page["items"]
    assert item["description"] == "true"
    assert len(item["accepts"]) == 1
    assert item["quality"]["settledPayments"] == 1


async def test_a_settled_payment_is_not_overwritten_by_a_verified_one_before_it_is_written(market: Market) -> None:
    market.catalogue.note(ACME, offered("a", description="true"), settled=True)
    market.catalogue.note(ACME, offered("a", description="forged"), settled=False)
    await market.catalogue.flush(market.db)
    _, page = await market.get("resources")
    assert [item["description"] for item in page["items"]] == ["true"]


async def test_each_way_to_pay_is_kept_with_its_newest_price(market: Market) -> None:
    other = "0x" + "3" * 40
    await market.settled(offered("a", amount="1"))
    await market.settled(offered("a", amount="2"))
    await market.settled(offered("a", amount="3", payTo=other))
    await market.settled(offered("a", version=1, maxAmountRequired="4"))
    _, page = await market.get("resources")
    [item] = page["items"]
    assert [price.get("amount", price.get("maxAmountRequired")) for price in item["accepts"]] == ["4", "3", "2"]
    assert item["x402Version"] == 1
    for number in range(20):
        await market.settled(offered("a", payTo=f"0x{number + 1:040x}"))
    _, page = await market.get("resources")
    assert len(page["items"][0]["accepts"]) == 8


async def test_a_tenant_has_so_much_room_and_all_together_have_so_much(market: Market) -> None:
    await market.settled(*(offered(f"a{number}") for number in range(5)))
    await market.settled(offered("a9"))
    assert await market.paths() == ["a0", "a1", "a2"], "what is listed is not pushed out"
    await market.settled(*(offered(f"g{number}") for number in range(5)), tenant=GLOBEX)
    assert sorted(await market.paths()) == ["a0", "a1", "a2", "g0", "g1"]
    await market.settled(offered("a0"))
    assert (await market.paths())[0] == "a0", "known ones go on"


async def test_two_writers_at_once_keep_the_bounds(market: Market, database_url: str) -> None:
    other_db = await Db.connect(database_url)
    other = Market(other_db, entries_per_tenant_max=3, entries_max=5)
    for number in range(4):
        market.catalogue.note(ACME, offered(f"a{number}"), settled=True)
        other.catalogue.note(ACME, offered(f"b{number}"), settled=True)
    await asyncio.gather(market.catalogue.flush(market.db), other.catalogue.flush(other_db))
    await other_db.close()
    assert len(await market.paths()) == 3


async def test_what_waits_to_be_written_has_a_bound(market: Market) -> None:
    said = [told(market.catalogue.note(ACME, offered(f"a{number}"), settled=True)) for number in range(12)]
    assert [each["status"] for each in said] == ["processing"] * 10 + ["rejected"] * 2
    assert told(market.catalogue.note(ACME, offered("a0"), settled=True)) == {"status": "processing"}, "known ones need no room"


async def test_what_the_database_did_not_take_is_written_later(market: Market, database_url: str) -> None:
    closed = await Db.connect(database_url)
    await closed.close()
    market.catalogue.note(ACME, offered("a"), settled=True)
    with pytest.raises(StoreFault):
        await market.catalogue.flush(closed)
    await market.settled(offered("a"))
    _, page = await market.get("resources")
    assert [item["quality"]["settledPayments"] for item in page["items"]] == [2]


async def test_listings_expire_and_make_room(market: Market) -> None:
    await market.settled(offered("a"), offered("b"))
    await market.execute("update listing set last_seen_at = now() - interval '31 days' where resource like '%a'")
    market.catalogue.note(ACME, offered("b"), settled=False)
    await market.catalogue.flush(market.db)
    assert await listings.expire(market.db, market.catalogue.settings.expire_s) == 1
    assert await market.paths() == ["b"]


async def test_a_tenant_keeps_out_and_takes_itself_out(market: Market) -> None:
    assert told(market.catalogue.note(SHY, offered("a"), settled=True))["status"] == "rejected"
    await market.settled(offered("a"))
    await market.settled(offered("g"), tenant=GLOBEX)
    await market.execute("update tenant set discoverable = false where tenant_id = 'acme'")
    assert await market.paths() == ["g"]
    assert (await market.get("search", query="api"))[1]["resources"][0]["resource"].endswith("/g")
    await market.execute("update tenant set disabled_at = now() where tenant_id = 'globex'")
    assert await market.paths() == []


async def test_what_cannot_be_listed_is_told_and_not_noted(market: Market) -> None:
    bad = offered("a")
    assert bad.offer is not None
    local = msgspec.structs.replace(bad, offer=replace(bad.offer, url="http://169.254.169.254/latest"))
    said = told(market.catalogue.note(ACME, local, settled=True))
    assert said == {"status": "rejected", "rejectedReason": "resource.url: expected a public host"}
    await market.catalogue.flush(market.db)
    assert await market.paths() == []


async def test_a_catalogue_that_is_off_notes_nothing_and_shows_nothing(db: Db) -> None:
    market = Market(db, enabled=False)
    assert market.catalogue.note(ACME, offered("a"), settled=True) == {}
    await market.server.start()
    try:
        status, answer = await market.get("resources")
    finally:
        await market.server.stop()
    assert (status, answer["error"]) == (404, "not_found")


async def test_a_payment_that_offers_nothing_has_no_header(market: Market) -> None:
    assert market.catalogue.note(ACME, msgspec.structs.replace(offered("a"), offer=None), settled=True) == {}


async def test_pages_follow_each_other(market: Market) -> None:
    await market.settled(*(offered(f"a{number}") for number in range(3)))
    assert [await market.paths(limit="1", offset=str(offset)) for offset in range(4)] == [["a0"], ["a1"], ["a2"], []]
    _, first = await market.get("search", query="api", limit="2")
    assert (len(first["resources"]), first["partialResults"], first["pagination"]) == (2, True, {"limit": 2, "cursor": "2"})
    _, second = await market.get("search", query="api", limit="2", cursor=first["pagination"]["cursor"])
    assert (len(second["resources"]), second["partialResults"], second["pagination"]) == (1, False, {"limit": 2, "cursor": None})
    assert await market.paths(limit="1000", unknown="x") == ["a0", "a1", "a2"]
    assert await market.paths(limit="0") == ["a0"]


@pytest.mark.parametrize("network", ["eip155:84532", "base-sepolia"])
async def test_both_spellings_of_a_network_find_both_versions(market: Market, network: str) -> None:
    await market.settled(offered("one", version=1), offered("two"))
    assert sorted(await market.paths(network=network)) == ["one", "two"]
    assert await market.paths(network="base") == []


async def test_the_best_matches_come_first(market: Market) -> None:
    await market.settled(
        offered("a", description="maps of weather"),
        offered("b", description="weather and weather forecasts"),
        offered("c", description="poems"),
    )
    _, found = await market.get("search", query="weather forecasting API for sailors")
    assert [item["resource"][-1] for item in found["resources"]][:2] == ["b", "a"]
    for strange in ("'; drop table listing; --", "!&|():*", "the", "\\", "%", "🙈"):
        status, _ = await market.get("search", query=strange)
        assert status == 200, strange
    assert len(await market.paths()) == 3


@pytest.mark.parametrize(
    ("route", "query"),
    [
        ("resources", {"limit": "-1"}),
        ("resources", {"limit": "many"}),
        ("resources", {"offset": "1000001"}),
        ("resources", {"payTo": "0x12"}),
        ("resources", {"payTo": ""}),
        ("resources", {"limit": ""}),
        ("resources", {"type": "x" * 65}),
        ("resources", {"extensions": "a\x00b"}),
        ("search", {}),
        ("search", {"query": "   "}),
        ("search", {"query": "x" * 201}),
        ("search", {"query": "a\x00b"}),
        ("search", {"query": "a", "cursor": "next"}),
    ],
)
async def test_what_is_asked_wrongly_is_400(market: Market, route: str, query: dict[str, str]) -> None:
    status, answer = await market.get(route, **query)
    assert (status, answer["error"]) == (400, "invalid_request")


async def test_one_address_reads_only_so_fast(db: Db) -> None:
    market = Market(db, rate_per_s=0.001, rate_burst=2)
    await market.server.start()
    try:
        answers = [await market.get("resources"), await market.get("search", query="x"), await market.get("resources")]
    finally:
        await market.server.stop()
    assert [status for status, _ in answers] == [200, 200, 429]
    assert answers[2][1]["limit"]["freesInSeconds"] > 0
