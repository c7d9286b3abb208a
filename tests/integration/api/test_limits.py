"""A tenant's limits over a real port: which one, how much is left, when it frees; the engine behind is never asked."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import aiohttp
import pytest
import pytest_asyncio

from facilitator.api.access import Access
from facilitator.api.delivery import Deliveries
from facilitator.api.desk import Desk
from facilitator.api.server import Server, routes_for
from facilitator.api.settings import AccessSettings, Settings
from facilitator.clock import SystemClock
from facilitator.domain.limits import Breach
from facilitator.protocol.messages import SettleResult, Supported, VerifyResult
from facilitator.settlement.admission import SettleAnswer
from facilitator.settlement.engine import Engine
from facilitator.settlement.restraints import LimitReached
from facilitator.store import administration, tenants
from facilitator.store.db import Db
from facilitator.units import Listen, TxHash
from tests.fixtures.service import free_port
from tests.fixtures.vectors import v1_request, v2_request

OTHER = "0x" + "9a" * 20


class StandIn:
    """An engine that counts who gets as far as it."""

    def __init__(self) -> None:
        self.asked = 0
        self.raises: Exception | None = None

    async def verify(self, *_: object) -> VerifyResult:
        self.asked += 1
        return VerifyResult(payer=None)

    async def settle(self, *_: object) -> SettleAnswer:
        self.asked += 1
        if self.raises is not None:
            raise self.raises
        return SettleAnswer(result=SettleResult(payer=None, tx_hash=TxHash("0x" + "ab" * 32), log_index=1))


class House:
    """A service with one tenant, its key, and one administrator."""

    def __init__(self, db: Db) -> None:
        clock = SystemClock()
        self.db = db
        self.engine = StandIn()
        port = free_port()
        self.host = f"127.0.0.1:{port}"
        self.access = Access(AccessSettings(jwt_bases=(self.host,)), clock)
        self.access.connect(db)
        self.desk = Desk(
            settings=Settings(listen=Listen("127.0.0.1", port)),
            clock=clock,
            deliveries=Deliveries(clock, 1.0),
            supported=lambda: Supported(kinds=(), extensions=(), signers={}),
            gates=dict,
            engine=cast("Engine", self.engine),
            db=db,
        )
        self.server = Server(self.desk, self.access, self.desk.settings.listen, routes_for(self.desk.settings.listen))
        self.key = tenants.generate_key()

    async def limit(self, **limits: Any) -> None:
        """Change the tenant's limits; the service notices."""
        await administration.change_tenant(self.db, "cli me", "shop", {}, limits=limits)
        await self.access._refresh()

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any], str | None]:
        """Status, answer and Retry-After."""
        headers = {"Authorization": f"Bearer {self.key.text}"}
        url = f"http://{self.host}{path}"
        async with aiohttp.ClientSession() as session, session.post(url, json=body, headers=headers) as answer:
            return answer.status, await answer.json(), answer.headers.get("Retry-After")


@pytest_asyncio.fixture
async def house(database_url: str) -> AsyncIterator[House]:
    db = await Db.connect(database_url, connections_max=4)
    house = House(db)
    await administration.create_key(db, "cli me", house.key, "shop", ("verify", "settle"), None, make_tenant=True)
    await house.server.start()
    yield house
    await house.server.stop()
    await house.desk.deliveries.finish()
    await db.close()


async def test_a_route_s_rate_holds_for_all_keys_of_the_tenant_and_says_what_and_when(house: House) -> None:
    await house.limit(rates={"/settle": {"perSecond": 0.1, "burst": 2}})
    second = tenants.generate_key()
    await administration.create_key(house.db, "cli me", second, "shop", ("verify", "settle"), None)
    assert (await house.post("/settle", v2_request()))[0] == 200
    first, house.key = house.key, second
    assert (await house.post("/settle", v2_request()))[0] == 200
    status, told, retry_after = await house.post("/settle", v2_request())
    assert (status, told["error"]) == (429, "too_many_requests")
    assert told["limit"] == {"name": "rates./settle", "perSecond": 0.1, "burst": 2, "left": 0, "freesInSeconds": int(retry_after or 0)}
    assert 8 <= int(retry_after or 0) <= 10
    house.key = first
    assert (await house.post("/settle", v2_request()))[0] == 429
    assert (await house.post("/verify", v2_request()))[0] == 200, "another route has its own bucket"
    await house.limit(rates=None)
    assert (await house.post("/settle", v2_request()))[0] == 200, "limits change while the service runs"


@pytest.mark.parametrize("path", ["/verify", "/settle"])
@pytest.mark.parametrize(
    ("limits", "name"),
    [
        ({"networks": ["eip155:8453"]}, "networks"),
        ({"assets": [OTHER]}, "assets"),
        ({"payTo": [OTHER]}, "payTo"),
        ({"amountMin": "10001"}, "amountMin"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_terms_beyond_the_limits_are_403_in_both_versions_before_the_engine_is_asked(
    house: House, path: str, limits: dict[str, Any], name: str
) -> None:
    await house.limit(**limits)
    for body in (v1_request(), v2_request()):
        status, told, retry_after = await house.post(path, body)
        assert (status, told["error"], told["limit"]["name"], retry_after) == (403, "limit_exceeded", name, None)
        assert told["limit"]["freesInSeconds"] is None
        word = told["invalidReason"] if path == "/verify" else told["errorReason"]
        assert word == "invalid_payment_requirements", "what old clients look for"
    assert house.engine.asked == 0


async def test_terms_within_the_limits_go_on_however_an_address_is_spelled(house: House) -> None:
    asked = v2_request()["paymentRequirements"]
    spelled = {"assets": [asked["asset"].lower()], "payTo": ["0x" + asked["payTo"][2:].upper()]}
    await house.limit(networks=[asked["network"]], amountMin=asked["amount"], **spelled)
    assert (await house.post("/verify", v2_request()))[0] == 200
    assert house.engine.asked == 1


async def test_what_is_under_way_is_429_with_when_it_frees(house: House) -> None:
    house.engine.raises = LimitReached(Breach(limit="settlementsMax", message="no", facts={"max": 1, "left": 0}, frees_s=7))
    status, told, retry_after = await house.post("/settle", v2_request())
    assert (status, told["limit"], retry_after) == (429, {"name": "settlementsMax", "max": 1, "left": 0, "freesInSeconds": 7}, "7")


async def test_a_noisy_tenant_hears_429_with_what_is_left_and_when_and_a_quiet_one_beside_it_is_never_refused(house: House) -> None:
    """The noisy one sends twenty times its rate; what that does to the other's time is in benchmarks/bench_noisy.py."""
    await house.limit(rates={"/verify": {"perSecond": 0.001, "burst": 5}})
    quiet = tenants.generate_key()
    await administration.create_key(house.db, "cli me", quiet, "quiet", ("verify",), None, make_tenant=True)

    async def ask(key: tenants.NewKey, times: int) -> list[tuple[int, dict[str, Any], str | None]]:
        headers = {"Authorization": f"Bearer {key.text}"}
        found = []
        async with aiohttp.ClientSession() as session:
            for _ in range(times):
                async with session.post(f"http://{house.host}/verify", json=v2_request(), headers=headers) as answer:
                    found.append((answer.status, await answer.json(), answer.headers.get("Retry-After")))
        return found

    noise, silence = await asyncio.gather(ask(house.key, 100), ask(quiet, 20))
    assert [status for status, _, _ in silence] == [200] * 20
    assert [status for status, _, _ in noise].count(200) == 5
    for status, told, retry_after in noise[5:]:
        assert (status, told["limit"]["name"], told["limit"]["left"]) == (429, "rates./verify", 0)
        assert int(retry_after or 0) == told["limit"]["freesInSeconds"] > 0
    assert house.engine.asked == 25
