"""`facilitator serve` as its users have it: pay, look up, be refused, stop; and the hostile corpus over its socket."""

import asyncio
import io
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import aiohttp
import psutil
import pytest
import pytest_asyncio
from eth_account.signers.local import LocalAccount

from facilitator.devstack.buyer import Buyer, facilitator_request, requirements
from facilitator.devstack.stack import Anvil
from tests.fixtures.hostile import HostileBody, hostile_bodies
from tests.fixtures.service import ServeProcess
from tests.fixtures.waiting import PATIENCE_S

PAY_TO = "0x2222222222222222222222222222222222222222"
NewBuyer = Callable[..., Awaitable[Buyer]]


def request_of(buyer: Buyer, version: Literal[1, 2], amount_atomic: int = 1000) -> dict[str, Any]:
    terms = requirements(version, pay_to=PAY_TO, amount_atomic=amount_atomic)
    return facilitator_request(buyer.pay(version, terms), terms)


@pytest_asyncio.fixture
async def service(
    tmp_path: Path, database_url: str, chain: Anvil, new_relayer: Callable[[], Awaitable[LocalAccount]]
) -> AsyncIterator[ServeProcess]:
    relayer = await new_relayer()
    process = ServeProcess(tmp_path, database_url=database_url, rpc_url=chain.rpc_url, relayer_keys=["0x" + bytes(relayer.key).hex()])
    await asyncio.to_thread(process.migrate)
    await asyncio.to_thread(lambda: process.api_key)
    await process.astart()
    yield process
    await asyncio.to_thread(process.terminate)


@pytest_asyncio.fixture
async def client(service: ServeProcess) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(service.base_url, headers=service.headers) as session:
        yield session


async def in_pool(chain: Anvil) -> None:
    """Return when a transaction waits for its block."""
    async with asyncio.timeout(PATIENCE_S):
        while not int((await chain.node.call("txpool_status"))["pending"], 16):  # type: ignore[index]
            await asyncio.sleep(0.01)


async def post(client: aiohttp.ClientSession, path: str, body: object, **headers: str) -> tuple[int, dict[str, Any]]:
    async with client.post(path, json=body, headers=headers) as answer:
        return answer.status, await answer.json()


@pytest.mark.parametrize("version", [1, 2])
async def test_a_payment_is_verified_settled_and_looked_up(
    client: aiohttp.ClientSession, new_buyer: NewBuyer, service: ServeProcess, version: Literal[1, 2]
) -> None:
    buyer = await new_buyer()
    body = request_of(buyer, version)
    authorization = body["paymentPayload"]["payload"]["authorization"]

    assert await post(client, "/verify", body) == (200, {"isValid": True, "payer": buyer.address})
    status, settled = await post(client, "/settle", body)
    assert (status, settled["success"], settled["payer"]) == (200, True, buyer.address)
    assert settled["network"] == ("base-sepolia" if version == 1 else "eip155:84532")

    query = {
        "network": "eip155:84532",
        "asset": body["paymentRequirements"]["asset"],
        "payer": buyer.address,
        "nonce": authorization["nonce"],
    }
    async with client.get("/settlements/lookup", params=query) as answer:
        assert answer.status == 200
        found = await answer.json()
    assert found["transaction"] == settled["transaction"]
    assert (found["state"], found["amount"], found["payTo"], found["payer"]) == ("included", "1000", PAY_TO, buyer.address)
    assert found["logIndex"] == settled["extra"]["logIndex"]
    assert [move["state"] for move in found["history"]] == ["queued", "submitted", "included"]
    assert int(found["cost"]["wei"]) > 0
    async with client.get(f"/settlements/{found['id']}") as answer:
        assert await answer.json() == found
    async with client.get("/settlements", params={"payer": buyer.address}) as answer:
        assert await answer.json() == {"settlements": [found], "nextCursor": None}

    other_key = await asyncio.to_thread(service.create_key, "stranger")
    stranger = {"Authorization": f"Bearer {other_key}"}
    for path in (f"/settlements/{found['id']}", "/settlements/lookup"):
        async with client.get(path, params=query if path.endswith("lookup") else {}, headers=stranger) as answer:
            assert answer.status == 404
    async with client.get("/settlements", headers=stranger) as answer:
        assert (await answer.json())["settlements"] == []
    finance_key = await asyncio.to_thread(lambda: service.create_key("office", scopes="finance"))
    async with client.get(f"/settlements/{found['id']}", headers={"Authorization": f"Bearer {finance_key}"}) as answer:
        assert answer.status == 200

    line = next(event for event in service.log_events if event.get("route") == "/settle")
    assert (line["tenant"], line["outcome"], line["tx_hash"], line["status"]) == ("test", "success", settled["transaction"], 200)
    secret = service.api_key.rpartition("_")[2]
    assert secret not in service.logs
    assert body["paymentPayload"]["payload"]["signature"] not in service.logs


async def test_pages_follow_the_cursor_until_the_end(client: aiohttp.ClientSession, new_buyer: NewBuyer) -> None:
    buyer = await new_buyer()
    answers = [await post(client, "/settle", request_of(buyer, 2)) for _ in range(5)]
    assert all(answer["success"] for _, answer in answers)
    seen: list[str] = []
    cursor: str | None = None
    while True:
        async with client.get("/settlements", params={"limit": "2"} | ({"cursor": cursor} if cursor else {})) as answer:
            page = await answer.json()
        seen += [settlement["transaction"] for settlement in page["settlements"]]
        cursor = page["nextCursor"]
        if cursor is None:
            break
    assert seen == [answer["transaction"] for _, answer in reversed(answers)]


async def test_the_same_idempotency_key_gets_the_same_bytes_and_another_payment_a_conflict(
    client: aiohttp.ClientSession, new_buyer: NewBuyer
) -> None:
    buyer = await new_buyer()
    body, key = request_of(buyer, 2), {"Idempotency-Key": "order-17"}
    texts = []
    for _ in range(2):
        async with client.post("/settle", json=body, headers=key) as answer:
            assert answer.status == 200
            texts.append(await answer.read())
    assert texts[0] == texts[1]
    async with client.post("/settle", json=request_of(buyer, 2), headers=key) as answer:
        assert answer.status == 409
        assert (await answer.json())["error"] == "idempotency_conflict"
    async with client.post("/settle", json=body, headers={"Idempotency-Key": "with space"}) as answer:
        assert answer.status == 400


async def test_a_caller_that_hangs_up_mid_wait_leaves_the_answer_to_the_next(
    start_chain: Callable[..., Awaitable[Anvil]],
    new_relayer: Callable[..., Awaitable[LocalAccount]],
    database_url: str,
    tmp_path: Path,
) -> None:
    from facilitator.devstack.token import Token  # noqa: PLC0415

    chain = await start_chain(automine=False)
    token = Token.at(chain.rpc_url)
    relayer = await new_relayer(token=token)
    buyer = Buyer.numbered(4711)
    await token.fund([buyer.address], amount_atomic=10_000)
    process = ServeProcess(tmp_path, database_url=database_url, rpc_url=chain.rpc_url, relayer_keys=["0x" + bytes(relayer.key).hex()])
    await asyncio.to_thread(lambda: process.api_key)
    await process.astart()
    try:
        body = json.dumps(request_of(buyer, 2)).encode()
        head = f"POST /settle HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAuthorization: Bearer {process.api_key}\r\n"
        caller = socket.create_connection(("127.0.0.1", process.port))
        caller.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await in_pool(chain)
        caller.close()
        await chain.node.call("evm_mine")
        async with aiohttp.ClientSession(process.base_url, headers=process.headers) as session:
            async with session.post("/settle", data=body, headers={"Content-Type": "application/json"}) as answer:
                assert (await answer.json())["success"] is True
            async with session.post("/settle", data=body, headers={"Content-Type": "application/json"}) as answer:
                assert (await answer.json())["errorReason"] == "duplicate_settlement"
    finally:
        await asyncio.to_thread(process.terminate)


async def test_every_hostile_body_is_refused_without_a_traceback_and_without_growth(
    service: ServeProcess, client: aiohttp.ClientSession
) -> None:
    corpus = list(hostile_bodies())
    assert len(corpus) >= 150

    async def send(path: str, hostile: HostileBody) -> None:
        async with client.post(path, data=io.BytesIO(hostile.body), headers={"Content-Type": hostile.content_type}) as answer:
            text = await answer.text()
        assert answer.status == hostile.status, (path, hostile.name, answer.status, text)
        problem = json.loads(text)
        assert {"error", "message", "requestId"} <= problem.keys(), hostile.name
        assert problem["requestId"] == answer.headers["X-Request-Id"]
        assert "Traceback" not in text

    process = psutil.Process(service.pid)
    for path in ("/verify", "/settle"):  # the first round fills caches
        for hostile in corpus:
            await send(path, hostile)
    before = process.memory_info().rss
    for _ in range(2):
        for path in ("/verify", "/settle"):
            for hostile in corpus:
                await send(path, hostile)
    grown = process.memory_info().rss - before
    assert grown < 4 * 1024 * 1024, f"{grown} bytes more after {4 * len(corpus)} hostile bodies"
    assert "Traceback" not in service.logs
    assert not [event for event in service.log_events if event.get("level") == "error"]


async def test_without_a_key_only_what_needs_none_is_answered(service: ServeProcess) -> None:
    async with aiohttp.ClientSession(service.base_url) as session:
        for path in ("/supported", "/healthz", "/readyz", "/metrics", "/openapi.json"):
            async with session.get(path) as answer:
                assert answer.status == 200, path
        for method, path in (("POST", "/verify"), ("POST", "/settle"), ("GET", "/settlements"), ("GET", "/settlements/x")):
            async with session.request(method, path) as answer:
                assert answer.status == 401, path
                assert answer.headers["WWW-Authenticate"].startswith("Bearer")


async def test_sigterm_answers_the_waiting_caller_before_the_process_ends(
    start_chain: Callable[..., Awaitable[Anvil]],
    new_relayer: Callable[..., Awaitable[LocalAccount]],
    database_url: str,
    tmp_path: Path,
) -> None:
    from facilitator.devstack.token import Token  # noqa: PLC0415

    chain = await start_chain(automine=False)
    token = Token.at(chain.rpc_url)
    relayer = await new_relayer(token=token)
    buyer = Buyer.numbered(4712)
    await token.fund([buyer.address], amount_atomic=10_000)
    process = ServeProcess(tmp_path, database_url=database_url, rpc_url=chain.rpc_url, relayer_keys=["0x" + bytes(relayer.key).hex()])
    await asyncio.to_thread(lambda: process.api_key)
    await process.astart()
    async with aiohttp.ClientSession(process.base_url, headers=process.headers) as session:
        waiting = asyncio.create_task(post(session, "/settle", request_of(buyer, 2)))
        await in_pool(chain)
        stopping = asyncio.create_task(asyncio.to_thread(process.terminate))
        while not stopping.done():
            await chain.node.call("evm_mine")
            await asyncio.wait([stopping], timeout=0.1)
        assert stopping.result() == 0
        code, answer = await waiting
    assert code == 200
    assert answer["success"] or answer["errorReason"] == "settlement_pending"
    assert answer["transaction"].startswith("0x")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", process.port), timeout=PATIENCE_S)
