"""One trace from a buyer's request to the seller, through the facilitator, to the block that paid; seen by a collector."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from eth_account.signers.local import LocalAccount

from facilitator.devstack.buyer import Buyer, facilitator_request, payment_header, requirements
from facilitator.devstack.stack import Anvil
from facilitator.gateway.client import FacilitatorClient
from facilitator.gateway.middleware import charge
from tests.fixtures.collector import Collector, Heard
from tests.fixtures.service import BASE_SEPOLIA, ServeProcess

PAY_TO = "0x2222222222222222222222222222222222222222"
TOGETHER = 6
NewBuyer = Callable[..., Awaitable[Buyer]]


@dataclass(slots=True)
class Traced:
    """A service that traces, and who listens."""

    service: ServeProcess
    collector: Collector


@pytest_asyncio.fixture
async def traced(
    tmp_path: Path, database_url: str, chain: Anvil, new_relayer: Callable[[], Awaitable[LocalAccount]]
) -> AsyncIterator[Traced]:
    relayer = await new_relayer()
    async with Collector.open() as collector:
        service = ServeProcess(
            tmp_path,
            database_url=database_url,
            rpc_url=chain.rpc_url,
            relayer_keys=["0x" + bytes(relayer.key).hex()],
            settings={"tracing": {"endpoint": collector.url}, "settlement": {"linger_ms": 300, "batch_min": 1}},
        )
        async with service:
            yield Traced(service, collector)


def new_traceparent(*, kept: bool = True) -> str:
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-{int(kept):02x}"


def tree(spans: list[Heard], parent: str) -> dict[str, object]:
    """Names below a span, with what is below them; equal names once."""
    return {span.name: tree(spans, span.span_id) for span in spans if span.parent_id == parent}


async def test_a_payment_is_one_trace_and_what_payments_share_links_to_all_of_theirs(traced: Traced, new_buyer: NewBuyer) -> None:
    """One service for all of it; its last spans come when it ends."""
    judge = await one_trace_from_the_buyers_request_to_the_block(traced, new_buyer)
    judge_shared = await what_is_shared_links_to_the_others(traced, new_buyer)
    assert await traced.service.aterminate() == 0, traced.service.logs[-2000:]
    judge()
    judge_shared()
    assert max(len(str(value)) for span in traced.collector.spans for value in span.facts.values()) <= 200


async def one_trace_from_the_buyers_request_to_the_block(traced: Traced, new_buyer: NewBuyer) -> Callable[[], None]:
    service, collector = traced.service, traced.collector
    app = web.Application()

    async def report(_: web.Request) -> web.Response:
        return web.json_response({"report": "whole"})

    app.router.add_get("/report", report)
    client = FacilitatorClient(service.base_url, api_key=await asyncio.to_thread(lambda: service.api_key))
    charge(app, client, pay_to=PAY_TO, network=BASE_SEPOLIA, routes={"GET /report": "$0.001"})
    traceparent = new_traceparent()
    trace_id, buyers_span = traceparent.split("-")[1:3]
    buyer = await new_buyer()
    payload = buyer.pay(2, requirements(2, pay_to=PAY_TO, amount_atomic=1_000))
    async with TestServer(app) as seller, aiohttp.ClientSession() as session:
        headers = dict([payment_header(payload), ("traceparent", traceparent)])
        async with session.get(seller.make_url("/report"), headers=headers) as response:
            assert (response.status, await response.json()) == (200, {"report": "whole"})
        query = {"network": BASE_SEPOLIA, "asset": payload["accepted"]["asset"], "payer": buyer.address}
        query["nonce"] = payload["payload"]["authorization"]["nonce"]
        async with session.get(f"{service.base_url}/settlements/lookup", params=query, headers=service.headers) as response:
            found = await response.json()

    def judge() -> None:
        assert found["traceId"] == trace_id
        spans = collector.of(trace_id)
        assert tree(spans, buyers_span) == {
            "POST /verify": {"signature": {}, "record": {}, "chain facts": {"rpc": {}}},
            "POST /settle": {
                "signature": {},
                "record": {},
                "chain facts": {"rpc": {}},
                "admission": {},
                "write-ahead": {"sign": {}, "commit": {}},
                "send": {"rpc": {}},
                "inclusion": {},
                "outcome": {},
                "answer": {},
            },
        }
        by_name = {span.name: span.facts for span in spans}
        assert by_name["inclusion"]["facilitator.tx_hash"] == by_name["send"]["facilitator.tx_hash"] == found["transaction"]
        assert by_name["outcome"]["facilitator.settlement_id"] == found["id"]
        assert by_name["POST /settle"]["facilitator.status"] == 200
        lines = [event for event in service.log_events if event.get("trace_id") == trace_id]
        assert {event["event"] for event in lines} == {"request.answered", "settlement.resolved"}

        signature = payload["payload"]["signature"].removeprefix("0x")
        assert all(signature.encode() not in body and bytes.fromhex(signature) not in body for body in collector.bodies)

    return judge


async def what_is_shared_links_to_the_others(traced: Traced, new_buyer: NewBuyer) -> Callable[[], None]:
    service, collector = traced.service, traced.collector
    headers = dict(await asyncio.to_thread(lambda: service.headers))
    unkept = new_traceparent(kept=False)
    traceparents = [*(new_traceparent() for _ in range(TOGETHER - 1)), unkept]
    terms = requirements(2, pay_to=PAY_TO, amount_atomic=1_000)
    buyers = [await new_buyer() for _ in traceparents]
    bodies = [json.dumps(facilitator_request(buyer.pay(2, terms), terms)) for buyer in buyers]

    async with aiohttp.ClientSession(headers=headers | {"Content-Type": "application/json"}) as session:

        async def settle(body: str, traceparent: str) -> str:
            async with session.post(f"{service.base_url}/settle", data=body, headers={"traceparent": traceparent}) as response:
                return str((await response.json())["transaction"])

        hashes = await asyncio.gather(*(settle(body, each) for body, each in zip(bodies, traceparents, strict=True)))

    def judge() -> None:
        trace_ids = {traceparent.split("-")[1] for traceparent in traceparents}
        assert {span.trace_id for span in collector.spans if span.name == "POST /settle"} & trace_ids == trace_ids - {unkept.split("-")[1]}
        sends = [span for span in collector.spans if span.name == "send" and span.facts["facilitator.tx_hash"] in hashes]
        assert sends
        for send in sends:
            of_it = {
                traceparent.split("-")[1] for traceparent, tx_hash in zip(traceparents, hashes, strict=True)
                if tx_hash == send.facts["facilitator.tx_hash"]
            }  # fmt: skip
            assert {send.trace_id, *send.links} == of_it
            assert send.facts["facilitator.payments"] == len(of_it)
        assert max(send.facts["facilitator.payments"] for send in sends) > 1, "none shared a transaction"

    return judge
