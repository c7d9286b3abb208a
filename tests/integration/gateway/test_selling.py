"""The middleware before a facilitator in miniature: what is charged, what is withheld, and what each caller sees."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer

from facilitator.devstack.buyer import Buyer, payment_header, requirements
from facilitator.devstack.pay import decoded
from facilitator.errors import ConfigFault
from facilitator.gateway.client import FacilitatorClient
from facilitator.gateway.middleware import charge
from facilitator.gateway.seller import PURCHASE, Priced
from tests.integration.gateway.model import BUYER, HASTY, SELLER, TX_HASH, Model, Scene

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
BROWSER = {"Accept": "text/html,application/xhtml+xml", "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0"}


async def test_one_header_twenty_times_at_once_to_one_route_is_one_paid_response_and_one_piece_of_work() -> None:
    async with Scene(Model()) as scene:
        payment = scene.payment()
        answers = [answer for answer in await asyncio.gather(*(scene.buy(payment) for _ in range(20))) if answer]
        assert sorted(answer.status for answer in answers) == [200] + [402] * 19
        assert {answer.json.get("error") for answer in answers} == {None, "duplicate_settlement"}
        assert (scene.worked, len(scene.model.keys)) == (1, 1)


async def test_one_header_twenty_times_at_once_to_two_routes_of_one_price_is_one_paid_response() -> None:
    async with Scene(Model()) as scene:
        payment = scene.payment()
        calls = (scene.buy(payment, path="/other" if number % 2 else "/work") for number in range(20))
        answers = [answer for answer in await asyncio.gather(*calls) if answer]
        assert sorted(answer.status for answer in answers) == [200] + [402] * 19


async def test_a_buyer_who_left_before_the_settlement_is_not_charged() -> None:
    async with Scene(Model()) as scene:
        payment = scene.payment()
        assert await scene.buy(payment, stage="leaves at work") is None
        await asyncio.sleep(0.05)
        assert (scene.model.recorded, scene.model.asked) == (False, ["verify"])


async def test_who_left_during_the_settlement_gets_what_he_paid_for_with_the_same_payment_and_nothing_else() -> None:
    async with Scene(Model()) as scene:
        payment = scene.payment()
        assert await scene.buy(payment, stage="leaves at settle") is None
        elsewhere = await scene.buy(payment, path="/other")
        assert elsewhere is not None
        assert (elsewhere.status, elsewhere.json["error"]) == (402, "duplicate_settlement")
        again = await scene.buy(payment)
        assert again is not None
        assert (again.status, again.json) == (200, {"work": "done"})
        assert decoded(again.headers["Payment-Response"])["transaction"] == TX_HASH
        assert (scene.worked, len(scene.model.keys)) == (1, 1)
        third = await scene.buy(payment)
        assert third is not None
        assert third.status == 402


async def test_every_request_has_a_key_of_its_own_that_its_repeats_share() -> None:
    model = Model(settling=["pending", "pending", "recorded lost", "success"])
    async with Scene(model) as scene:
        payment = scene.payment()
        first, second = await scene.buy(payment), await scene.buy(payment)
    assert first is not None
    assert second is not None
    assert (first.json["error"], second.status) == ("settlement_pending", 200)
    assert model.keys[0] == model.keys[1] != model.keys[2] == model.keys[3]
    assert all(len(key) >= 32 and key not in payment for key in model.keys)


class Shop:
    """One handler for `GET /thing` and `POST /thing`, before a model."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.model = Model()
        self.session = session
        self.url = ""

    async def open(self, stack: list[TestServer], handler: Handler, price: Any = "$0.01", **options: Any) -> None:
        facilitator = TestServer(self.model.application())
        application = web.Application()
        application.router.add_get("/thing", handler)
        application.router.add_post("/thing", handler)
        await facilitator.start_server()
        client = FacilitatorClient(str(facilitator.make_url("")), settings=HASTY)
        prices = {"GET /thing": Priced(price=price, description="a <thing>"), "POST /thing": price}
        charge(application, client, pay_to=SELLER, network=["base-sepolia", "eip155:8453"], routes=prices, **options)
        server = TestServer(application)
        stack += [server, facilitator]
        await server.start_server()
        self.url = str(server.make_url("/thing"))

    async def pay(self, amount_atomic: int = 10_000, **how: Any) -> aiohttp.ClientResponse:
        name, value = payment_header(BUYER.pay(2, requirements(2, pay_to=SELLER, amount_atomic=amount_atomic)))
        return await self.session.request(how.pop("method", "GET"), self.url, headers={name: value}, **how)


@pytest_asyncio.fixture
async def opened() -> AsyncIterator[Callable[..., Awaitable[Shop]]]:
    servers: list[TestServer] = []
    async with aiohttp.ClientSession() as session:

        async def make(handler: Handler, price: Any = "$0.01", **options: Any) -> Shop:
            shop = Shop(session)
            await shop.open(servers, handler, price, **options)
            return shop

        yield make
        for server in servers:
            await server.close()


async def thing(_: web.Request) -> web.StreamResponse:
    return web.json_response({"thing": 1})


async def test_the_demand_speaks_to_both_versions_and_offers_every_network(opened: Callable[..., Awaitable[Shop]]) -> None:
    shop = await opened(thing, public_url="https://shop.example/")
    response = await shop.session.get(f"{shop.url}?q=1")
    v1, v2 = await response.json(), decoded(response.headers["PAYMENT-REQUIRED"])
    assert (response.status, response.headers["Cache-Control"]) == (402, "no-store")
    assert [terms["network"] for terms in v1["accepts"]] == ["base-sepolia", "base"]
    assert [(terms["network"], terms["amount"], terms["extra"]["name"]) for terms in v2["accepts"]] == [
        ("eip155:84532", "10000", "USDC"),
        ("eip155:8453", "10000", "USD Coin"),
    ]
    assert v2["resource"] == {"url": "https://shop.example/thing", "description": "a <thing>", "mimeType": "application/json"}
    assert shop.model.asked == []


async def test_a_handler_cannot_send_before_it_is_paid_and_then_nobody_is_charged(opened: Callable[..., Awaitable[Shop]]) -> None:
    async def streams(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"for nothing")
        return response

    shop = await opened(streams)
    response = await shop.pay()
    assert response.status == 500
    assert b"for nothing" not in await response.read()
    assert shop.model.asked == ["verify"]


async def test_what_cannot_be_withheld_is_not_charged(opened: Callable[..., Awaitable[Shop]], tmp_path: Path) -> None:
    async def file(_: web.Request) -> web.StreamResponse:
        return web.FileResponse(tmp_path / "missing")

    shop = await opened(file)
    assert (await shop.pay()).status == 500
    assert shop.model.asked == ["verify"]


async def test_a_lazy_body_is_made_before_the_settlement(opened: Callable[..., Awaitable[Shop]]) -> None:
    model_when_read: list[list[str]] = []

    async def lazy(request: web.Request) -> web.StreamResponse:
        async def parts() -> AsyncIterator[bytes]:
            model_when_read.append(list(shop.model.asked))
            yield b"one "
            yield b"two"

        assert request[PURCHASE].payer == BUYER.address
        response = web.Response(body=parts())
        response.set_cookie("a", "b")
        response.enable_compression(web.ContentCoding.gzip)
        return response

    shop = await opened(lazy)
    response = await shop.pay()
    assert await response.read() == b"one two"
    assert response.cookies["a"].value == "b"
    assert model_when_read == [["verify"]]
    assert response.headers["Content-Encoding"] in {"gzip", "deflate"}


async def test_a_redirect_is_a_paid_response_and_may_be_raised(opened: Callable[..., Awaitable[Shop]]) -> None:
    async def redirects(_: web.Request) -> web.StreamResponse:
        raise web.HTTPSeeOther("/elsewhere")

    shop = await opened(redirects)
    response = await shop.pay(allow_redirects=False)
    assert (response.status, response.headers["Location"]) == (303, "/elsewhere")
    assert shop.model.told_with_key is not None


async def test_head_tells_the_price_and_never_charges(opened: Callable[..., Awaitable[Shop]]) -> None:
    shop = await opened(thing)
    response = await shop.pay(method="HEAD")
    assert (response.status, shop.model.asked) == (402, [])
    assert decoded(response.headers["PAYMENT-REQUIRED"])["accepts"]


async def test_a_computed_price_is_quoted_and_a_wrong_request_hears_so_before_any_demand(opened: Callable[..., Awaitable[Shop]]) -> None:
    async def by_words(request: web.Request) -> str | int | None:
        if request.method == "GET":
            return None
        words = (await request.json()).get("words")
        if not isinstance(words, int):
            raise web.HTTPBadRequest(text="words: expected a number")
        return words * 10

    async def echo(request: web.Request) -> web.StreamResponse:
        return web.json_response(await request.json() if request.method == "POST" else "free")

    shop = await opened(echo, by_words, allow_origins=["*"])
    free = await shop.session.get(shop.url)
    assert (free.status, await free.json()) == (200, "free")
    wrong = await shop.pay(method="POST", json={"words": "many"})
    assert (wrong.status, wrong.headers["Access-Control-Allow-Origin"]) == (400, "*")
    asked = await shop.session.post(shop.url, json={"words": 7})
    assert decoded(asked.headers["PAYMENT-REQUIRED"])["accepts"][0]["amount"] == "70"
    cheap = await shop.pay(60, method="POST", json={"words": 7})
    assert (cheap.status, (await cheap.json())["error"]) == (402, "invalid_payment_requirements")
    assert shop.model.asked == []
    paid = await shop.pay(70, method="POST", json={"words": 7})
    assert (paid.status, await paid.json()) == (200, {"words": 7})


async def test_scripts_of_other_origins_may_pay_where_the_seller_says_so(opened: Callable[..., Awaitable[Shop]]) -> None:
    shop = await opened(thing, allow_origins=["https://page.example"])
    ask = {"Origin": "https://page.example", "Access-Control-Request-Method": "GET"}
    ask["Access-Control-Request-Headers"] = "payment-signature, x-other"
    preflight = await shop.session.options(shop.url, headers=ask)
    assert preflight.status == 204
    assert preflight.headers["Access-Control-Allow-Origin"] == "https://page.example"
    allowed = {name.strip().lower() for name in preflight.headers["Access-Control-Allow-Headers"].split(",")}
    assert {"payment-signature", "x-payment", "authorization", "accept-payment", "sign-in-with-x", "x-other"} <= allowed
    assert "access-control-expose-headers" in allowed
    for response in (await shop.session.get(shop.url, headers={"Origin": "https://page.example"}), await shop.pay()):
        exposed = {name.strip() for name in response.headers["Access-Control-Expose-Headers"].split(",")}
        assert exposed == {"PAYMENT-REQUIRED", "PAYMENT-RESPONSE", "X-PAYMENT-RESPONSE", "WWW-Authenticate", "Payment-Receipt"}
        assert response.headers["Vary"] == "Origin"
    stranger = await shop.session.get(shop.url, headers={"Origin": "https://other.example"})
    assert "Access-Control-Allow-Origin" not in stranger.headers


async def test_without_allowed_origins_preflights_are_left_to_others(opened: Callable[..., Awaitable[Shop]]) -> None:
    shop = await opened(thing)
    assert (await shop.session.options(shop.url, headers={"Access-Control-Request-Method": "GET"})).status == 405
    assert "Access-Control-Expose-Headers" in (await shop.session.get(shop.url)).headers


async def test_a_browser_gets_a_page_and_a_program_the_demand(opened: Callable[..., Awaitable[Shop]]) -> None:
    shop = await opened(thing)
    page = await shop.session.get(shop.url, headers=BROWSER)
    assert (page.status, page.content_type, page.headers["Cache-Control"]) == (402, "text/html", "no-store")
    assert decoded(page.headers["PAYMENT-REQUIRED"])["accepts"]
    text = await page.text()
    assert "0.01 USDC" in text
    assert "a &lt;thing&gt;" in text
    assert "a <thing>" not in text
    assert (await shop.session.get(shop.url)).content_type == "application/json"
    plain = await opened(thing, paywall=None)
    assert (await plain.session.get(plain.url, headers=BROWSER)).content_type == "application/json"


async def test_a_price_for_a_route_that_does_not_exist_stops_the_start() -> None:
    application = web.Application()
    application.router.add_get("/thing/{id}", thing)
    prices: dict[str, Any] = {"GET /thing/{id}": "$1", "GET /thnig": "$1"}
    charge(application, FacilitatorClient("http://127.0.0.1:9"), pay_to=SELLER, network="base", routes=prices)
    with pytest.raises(ConfigFault, match="GET /thnig has a price, but there is no such route"):
        await TestServer(application).start_server()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pay_to": "0x1"}, "pay_to: expected an address"),
        ({"network": "ropsten"}, "network 'ropsten'"),
        ({"network": "eip155:1514"}, "its USDC is not known"),
        ({"network": []}, "at least one"),
        ({"routes": {"/thing": "$1"}}, "routes: expected one of"),
        ({"routes": {"GET /thing": "0"}}, "expected more than nothing"),
        ({"routes": {"GET /thing": "$0.0000001"}}, "finer than"),
        ({"routes": {"GET /thing": "1e3"}}, "expected text such as"),
    ],
    ids=str,
)
def test_what_cannot_be_sold_is_said_at_once(change: dict[str, Any], words: str) -> None:
    options: dict[str, Any] = {"pay_to": SELLER, "network": "base", "routes": {"GET /thing": "$1"}} | change
    with pytest.raises(ConfigFault, match=words):
        charge(web.Application(), FacilitatorClient("http://127.0.0.1:9"), **options)


async def test_a_v1_buyer_of_another_network_is_told_so(opened: Callable[..., Awaitable[Shop]]) -> None:
    shop = await opened(thing)
    terms = requirements(1, pay_to=SELLER, amount_atomic=10_000, network="avalanche")
    name, value = payment_header(Buyer.numbered(3).pay(1, terms))
    response = await shop.session.get(shop.url, headers={name: value})
    assert (response.status, (await response.json())["error"]) == (402, "invalid_payment_requirements")


async def test_the_example_in_the_documentation_sells_in_ten_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[3] / "docs" / "sellers.md").read_text("utf-8")
    example = page.partition("```python\n")[2].partition("```")[0]
    assert len(example.splitlines()) == 10
    run: list[web.Application] = []
    monkeypatch.setattr(web, "run_app", lambda app, **_: run.append(app))
    async with TestServer(Model().application()) as facilitator:
        for name, value in {"FACILITATOR_URL": str(facilitator.make_url("")), "FACILITATOR_KEY": "k", "PAY_TO": SELLER}.items():
            monkeypatch.setenv(name, value)
        exec(compile(example, "sellers.md", "exec"), {})  # noqa: S102 (our own page)
        async with TestServer(run[0]) as server, aiohttp.ClientSession() as session:
            name, value = payment_header(BUYER.pay(2, requirements(2, pay_to=SELLER, amount_atomic=10_000)))
            response = await session.get(server.make_url("/report"), headers={name: value})
            assert (response.status, await response.json()) == (200, {"report": "sunny"})
