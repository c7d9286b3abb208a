"""The sample sellers before a running `facilitator serve`: every route is paid by official clients, and every payment buys once."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest_asyncio
from eth_account.signers.local import LocalAccount

from facilitator.devstack.buyer import Buyer
from facilitator.devstack.ensemble import SELLER
from facilitator.devstack.install import node_program
from facilitator.devstack.pay import demanded, hand_over, new_session, sign_in
from facilitator.devstack.sellers.market import Market
from facilitator.devstack.stack import Anvil
from facilitator.devstack.token import Token
from facilitator.gateway.client import Settings
from facilitator.protocol.reasons import Reason
from tests.fixtures.house import BRIEF_LEASES, FAST
from tests.fixtures.mpp import answered, as_x402, changed, decoded, header
from tests.fixtures.oracle import assert_ledger_is_chain
from tests.fixtures.service import ServeProcess
from tests.fixtures.waiting import PATIENCE_S

NewBuyer = Callable[..., Awaitable[Buyer]]
NewRelayer = Callable[..., Awaitable[LocalAccount]]
Json = dict[str, Any]
CONFORMANCE: Final = Path(__file__).parents[1] / "conformance"

CHAT: Final[Json] = {"model": "openai/gpt-5", "max_tokens": 100, "messages": [{"role": "user", "content": "count to 3"}]}
IMAGE: Final[Json] = {"model": "openai/gpt-image-1", "prompt": "a lighthouse", "size": "256x256", "n": 2}
GENERATE: Final[Json] = {"prompt": "a lighthouse", "quality": "low"}
ROUTER: Final[Json] = {"prompt": "a lighthouse", "width": 256, "height": 256, "seed": 7}


@pytest_asyncio.fixture
async def market(tmp_path: Path, database_url: str, chain: Anvil, new_relayer: NewRelayer) -> AsyncIterator[Market]:
    keys = [bytes((await new_relayer()).key).hex()]
    async with ServeProcess(tmp_path / "service", database_url=database_url, rpc_url=chain.rpc_url, relayer_keys=keys) as service:
        market = Market(service.base_url, service.api_key, SELLER, tmp_path / "market")
        await market.start()
        yield market
        await market.stop()


@pytest_asyncio.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with new_session() as session:
        yield session


def routes(market: Market) -> dict[str, tuple[str, Json, int]]:
    """Every paid route: its address, an order, and what that costs."""
    twos, studio, router = (market.urls[name] for name in ("twos", "studio", "xrouter"))
    return {
        "chat": (f"{twos}/api/ai/chat", CHAT, 1_200),
        "image": (f"{twos}/api/ai/image", IMAGE, 120_000),
        "describe": (f"{twos}/api/ai/describe-image", {"imageUrl": market.sample_url}, 18_000),
        "generate": (f"{studio}/api/generate/gpt-image-1/generate", GENERATE, 9_000),
        "alias": (f"{studio}/api/generate/gpt-image-1.5/generate", GENERATE, 9_000),
        "router": (f"{router}/v1/images/generate", ROUTER, 356),
    }


CLIENTS_AT_ONCE: Final = ThreadPoolExecutor(max_workers=3)
"""Of their own: the sellers, in this process, need the threads that there are for everybody."""


async def in_thread(work: Callable[..., Json], *arguments: Any, **more: Any) -> Json:
    return await asyncio.get_running_loop().run_in_executor(CLIENTS_AT_ONCE, partial(work, *arguments, **more))


def run_client(directory: Path, name: str, buyer: Buyer, url: str, order: Json | None = None, **more: str) -> Json:
    """Run one of the official clients' programs once, beside the installed packages."""
    directory.mkdir(exist_ok=True)
    program = directory / name
    for path in (CONFORMANCE / "clients" / name, *(CONFORMANCE / "clients").glob("signers.*")):
        (directory / path.name).write_bytes(path.read_bytes())
    modules = directory / "node_modules"
    if not modules.exists():
        modules.symlink_to(CONFORMANCE / "npm" / "node_modules", target_is_directory=True)
    own = {"RESOURCE_URL": url, "EVM_PRIVATE_KEY": "0x" + bytes(buyer.account.key).hex()} | more
    own |= {"RESOURCE_ORDER": json.dumps(order)} if order is not None else {}
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    command = [node_program() if program.suffix == ".mjs" else sys.executable, program]
    done = subprocess.run(command, env=kept | own, cwd=directory, capture_output=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr.decode()
    told: Json = json.loads(done.stdout)
    return told


async def test_official_clients_pay_every_route(
    market: Market, session: aiohttp.ClientSession, new_buyer: NewBuyer, token: Token, tmp_path: Path, database_url: str, chain: Anvil
) -> None:
    async def pay(client: str, route: str, buyer: Buyer) -> tuple[str, Buyer, Json]:
        url, order, _ = routes(market)[route]
        told = await in_thread(run_client, tmp_path / f"{client}-{route}", client, buyer, url, order)
        assert (told["status"], told["error"]) == (200, None), (client, route, told)
        assert told["payment_response"]["success"] is True
        assert told["payment_response"]["network"] == ("base-sepolia" if client == "legacy_fetch.mjs" else "eip155:84532")
        assert await token.balance_of(buyer.address) == 0
        assert told["body"]["servedBy"].startswith("local-")
        return route, buyer, told["body"]

    purchases = [("fetch.mjs", route) for route in routes(market)]
    purchases += [("httpx_client.py", route) for route in ("chat", "alias", "router")]
    purchases.append(("legacy_fetch.mjs", "router"))
    buyers = [await new_buyer(amount_atomic=routes(market)[route][2]) for _, route in purchases]
    bought = await asyncio.gather(*(pay(*purchase, buyer) for purchase, buyer in zip(purchases, buyers, strict=True)))

    def answers(route: str) -> list[Json]:
        return [body for name, _, body in bought if name == route]

    assert {each["choices"][0]["message"]["content"] for each in answers("chat")} == {"1, 2, 3"}
    assert all(len(each["data"]) == 2 for each in answers("image"))
    assert {each["contentType"] for each in answers("describe")} == {"illustration"}
    pictures = []
    for each in answers("router"):
        async with session.get(each["images"][0]["url"]) as response:
            pictures.append(await response.read())
    assert len(pictures) == 3
    assert len(set(pictures)) == 1  # the same seed
    buyer, body = next((buyer, body) for name, buyer, body in bought if name == "generate")
    job = f"{market.urls['studio']}/api/jobs/{body['jobId']}"
    told = await in_thread(run_client, tmp_path / "job", "siwx_fetch.mjs", buyer, job)
    assert (told["status"], told["body"]["status"]) == (200, "complete"), told
    async with session.get(told["body"]["result"]["imageUrl"]) as response:
        assert (response.status, response.content_type) == (200, "image/png")
    url, order, price_atomic = routes(market)["chat"]  # an MCP client, through an MCP server of one tool
    buyer = await new_buyer(amount_atomic=price_atomic)
    server = str(CONFORMANCE / "servers" / "mcp_wrapper.py")
    told = await in_thread(run_client, tmp_path / "mcp", "mcp_client.py", buyer, url, order, MCP_SERVER=server)
    assert (told["tools"], told["error"], told["paid"]) == (["buy"], False, True)
    assert told["body"]["choices"][0]["message"]["content"] == "1, 2, 3"
    assert told["payment_response"]["success"] is True
    assert await token.balance_of(buyer.address) == 0
    await assert_ledger_is_chain(database_url, chain.rpc_url, settled=len(purchases) + 1)


async def test_one_header_twenty_times_at_once_is_one_paid_response_at_one_route_and_at_two(
    market: Market, session: aiohttp.ClientSession, new_buyer: NewBuyer, token: Token, database_url: str, chain: Anvil
) -> None:
    known = routes(market)
    for settled, targets in enumerate((["chat"], ["image"], ["describe"], ["router"], ["generate"], ["generate", "alias"]), start=1):
        url, order, price_atomic = known[targets[0]]
        buyer = await new_buyer(amount_atomic=20 * price_atomic)
        payment = buyer.pay(2, await demanded(session, url, 2, order))
        urls = [known[targets[number % len(targets)]][0] for number in range(20)]
        answers = await asyncio.gather(*(hand_over(session, each, payment, order) for each in urls))
        assert sorted(answer.status for answer in answers) == [200] + [402] * 19, targets
        assert {answer.body["error"] for answer in answers if answer.status == 402} == {"duplicate_settlement"}
        assert await token.balance_of(buyer.address) == 19 * price_atomic
        await assert_ledger_is_chain(database_url, chain.rpc_url, settled=settled)


async def test_mppx_pays_the_studio_with_its_evm_method_and_a_challenge_is_paid_once(
    market: Market, session: aiohttp.ClientSession, new_buyer: NewBuyer, token: Token, tmp_path: Path, database_url: str, chain: Anvil
) -> None:
    async def pay(route: str, buyer: Buyer) -> Json:
        url, order, _ = routes(market)[route]
        return await in_thread(run_client, tmp_path / f"mppx-{route}", "mppx_fetch.mjs", buyer, url, order)

    names = ["generate", "alias"]
    buyers = [await new_buyer(amount_atomic=2 * routes(market)[name][2]) for name in names]
    for name, buyer, told in zip(names, buyers, await asyncio.gather(*map(pay, names, buyers)), strict=True):
        url, order, price_atomic = routes(market)[name]
        assert (told["status"], told["body"]["status"]) == (200, "pending"), told
        (sent,) = told["sent"]  # one challenge, one signature
        assert sent["credential"].startswith("Payment ")
        assert sent["challenge"]["request"]["methodDetails"]["credentialTypes"] == ["authorization"]
        assert told["headers"]["cache-control"] in {"private", "no-store"}
        receipt = told["receipt"]
        assert (receipt["method"], receipt["status"]) == ("evm", "success")
        raw = decoded(told["headers"]["payment-receipt"])
        assert (raw["challengeId"], raw["chainId"]) == (sent["challenge"]["id"], 84532)
        mined = await chain.node.call("eth_getTransactionReceipt", receipt["reference"])
        assert int(mined["status"], 16) == 1
        nonce = decoded(sent["credential"].removeprefix("Payment "))["payload"]["nonce"]
        assert [nonce] == [
            log["topics"][2] for log in mined["logs"] if buyer.address.lower()[2:] in log["topics"][1] and log["data"] == "0x"
        ]
        assert await token.balance_of(buyer.address) == price_atomic
        job = await sign_in(session, buyer, f"{market.urls['studio']}/api/jobs/{told['body']['jobId']}")
        assert job["status"] == "complete"
        async with session.post(url, json=order, headers={"Authorization": sent["credential"]}) as again:
            assert (again.status, (await again.json(content_type=None))["type"].rpartition("/")[2]) == (402, "invalid-challenge")
            assert "Payment-Receipt" not in again.headers
        assert await token.balance_of(buyer.address) == price_atomic
    await assert_ledger_is_chain(database_url, chain.rpc_url, settled=2)


async def test_one_authorization_twenty_times_at_once_by_both_protocols_is_one_paid_response(
    market: Market, session: aiohttp.ClientSession, new_buyer: NewBuyer, token: Token, database_url: str, chain: Anvil
) -> None:
    url, order, price_atomic = routes(market)["generate"]
    other, _, _ = routes(market)["alias"]
    buyer = await new_buyer(amount_atomic=20 * price_atomic)
    async with session.post(url, json=order) as unpaid:
        credential = answered(buyer, unpaid.headers["WWW-Authenticate"])
    payment = as_x402(credential, await demanded(session, url, 2, order))

    async def send(number: int) -> tuple[int, str]:
        if number % 2:
            bought = await hand_over(session, url if number % 4 == 1 else other, payment, order)
            return bought.status, str(bought.body.get("error"))
        async with session.post(url, json=order, headers=header(credential)) as response:
            return response.status, str((await response.json(content_type=None)).get("reason"))

    answers = await asyncio.gather(*map(send, range(20)))
    assert sorted(status for status, _ in answers) == [200] + [402] * 19
    assert {word for status, word in answers if status == 402} == {"duplicate_settlement"}
    assert await token.balance_of(buyer.address) == 19 * price_atomic
    await assert_ledger_is_chain(database_url, chain.rpc_url, settled=1)


async def test_what_the_facilitator_refuses_is_a_problem_and_costs_nothing(
    market: Market, session: aiohttp.ClientSession, new_buyer: NewBuyer, token: Token
) -> None:
    url, order, price_atomic = routes(market)["generate"]
    buyer, poor = await new_buyer(amount_atomic=price_atomic), await new_buyer(amount_atomic=price_atomic - 1)

    async def problem(payer: Buyer, **how: Any) -> tuple[int, str, str]:
        async with session.post(url, json=order) as unpaid:
            credential = answered(
                payer, unpaid.headers["WWW-Authenticate"], **{name: value for name, value in how.items() if name != "swap"}
            )
        if "swap" in how:
            credential = changed(credential, "payload", **{"from": how["swap"]}) | {"source": f"did:pkh:eip155:84532:{how['swap']}"}
        async with session.post(url, json=order, headers=header(credential)) as response:
            told = await response.json(content_type=None)
            assert "WWW-Authenticate" in response.headers
            return response.status, told["type"].rpartition("/")[2], told["reason"]

    assert await problem(buyer, valid_before=int(time.time()) - 1) == (402, "payment-expired", Reason.EXPIRED.v2)
    assert await problem(poor) == (402, "verification-failed", Reason.INSUFFICIENT_BALANCE.v2)
    assert await problem(poor, swap=buyer.address) == (402, "verification-failed", Reason.SIGNATURE.v2)
    assert await token.balance_of(buyer.address) == price_atomic


async def test_a_facilitator_that_is_killed_in_the_middle_of_a_settlement_leaves_a_job_that_is_paid_and_complete(
    session: aiohttp.ClientSession,
    start_chain: Callable[..., Awaitable[Anvil]],
    new_relayer: NewRelayer,
    new_buyer: NewBuyer,
    tmp_path: Path,
    database_url: str,
) -> None:
    chain = await start_chain(automine=False)
    token = Token.at(chain.rpc_url)
    keys = [bytes((await new_relayer(token=token)).key).hex()]
    async with ServeProcess(
        tmp_path / "service",
        database_url=database_url,
        rpc_url=chain.rpc_url,
        relayer_keys=keys,
        settings={"settlement": {**FAST, **BRIEF_LEASES}},
    ) as service:
        patient = Settings(settle_attempts_max=120, retry_max_s=1.0)
        market = Market(service.base_url, service.api_key, SELLER, tmp_path / "market", client_settings=patient)
        await market.start()
        url, order, price_atomic = routes(market)["generate"]
        buyer = await new_buyer(token=token, amount_atomic=price_atomic)
        buying = asyncio.create_task(hand_over(session, url, buyer.pay(2, await demanded(session, url, 2, order)), order))
        async with asyncio.timeout(PATIENCE_S):
            while int((await chain.node.call("txpool_status"))["pending"], 16) < 1:
                await asyncio.sleep(0.01)
        await service.akill()
        await chain.node.call("evm_mine")
        await service.astart()
        bought = await buying
        assert (bought.status, bought.body["status"]) == (200, "pending"), bought
        job = await sign_in(session, buyer, f"{market.urls['studio']}/api/jobs/{bought.body['jobId']}")
        assert job["status"] == "complete"
        again = await hand_over(session, url, bought.payment, order)
        assert (again.status, again.body["error"]) == (402, "duplicate_settlement")
        await market.stop()
    await assert_ledger_is_chain(database_url, chain.rpc_url, settled=1)
