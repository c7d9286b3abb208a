"""The service's own payments: judged without a trace, made once whatever the number of replicas, and noticed when they fail."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from coincurve import PrivateKey
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from facilitator.chain.signer import address_of
from facilitator.devstack.token import Token
from facilitator.settlement.canary import Canary
from tests.integration.settlement.conftest import NETWORK, Rig

Start = Callable[..., Awaitable[Rig]]


def canary_of(rig: Rig) -> Canary:
    (canary,) = rig.engine._canaries
    return canary


def figure(name: str, path: str) -> float:
    return REGISTRY.get_sample_value(f"facilitator_canary_{name}", {"network": NETWORK, "path": path}) or 0.0


@pytest.fixture
def key() -> PrivateKey:
    return PrivateKey()


async def test_a_payment_without_money_is_judged_by_the_token_and_leaves_no_trace(start_engine: Start) -> None:
    rig = await start_engine(relayers=[])
    failures = figure("failures_total", "verify")
    judged = "facilitator_verifications_total", {"network": NETWORK, "scheme": "exact", "outcome": "insufficient_balance"}
    before = REGISTRY.get_sample_value(*judged)
    await canary_of(rig).verify()
    assert figure("last_success_timestamp_seconds", "verify") > 0
    assert figure("failures_total", "verify") == failures
    assert REGISTRY.get_sample_value(*judged) == before
    assert await rig.fetch("select from settlement") == []


async def test_the_loop_judges_again_and_again(start_engine: Start) -> None:
    count = figure("duration_seconds_count", "verify")
    await start_engine(relayers=[], canary_verify_s=0.05)
    async with asyncio.timeout(60):
        while figure("duration_seconds_count", "verify") < count + 2:
            await asyncio.sleep(0.01)


async def test_a_network_that_is_not_served_fails_it(start_engine: Start) -> None:
    rig = await start_engine(relayers=[])
    failures = figure("failures_total", "verify")
    rig.engine._networks[NETWORK].findings = ("another chain",)
    with capture_logs() as lines:
        await canary_of(rig).verify()
    assert figure("failures_total", "verify") == failures + 1
    assert [(line["event"], line["path"], line["outcome"]) for line in lines if line["event"] == "canary.failed"] == [
        ("canary.failed", "verify", "unsupported_network")
    ]


async def test_a_chain_that_does_not_answer_fails_it(start_engine: Start) -> None:
    rig = await start_engine(relayers=[], rpc_url="http://127.0.0.1:1", verify_deadline_s=0.5)
    with capture_logs() as lines:
        await canary_of(rig).verify()
    assert "canary.failed" in [line["event"] for line in lines]


async def test_all_replicas_together_make_one_payment_in_a_stretch_of_time(start_engine: Start, token: Token, key: PrivateKey) -> None:
    await token.fund([address_of(key)], amount_atomic=1)
    rigs = [await start_engine(canary=key, canary_settle_s=1e9) for _ in range(2)]
    failures = figure("failures_total", "settle")
    await asyncio.gather(*(canary_of(rig).settle(key) for rig in rigs for _ in range(2)))
    assert figure("failures_total", "settle") == failures
    assert figure("last_success_timestamp_seconds", "settle") > 0
    rows = await rigs[0].fetch("select tenant_id, state, payer, pay_to, amount_atomic, answer_state from settlement")
    assert [tuple(row) for row in rows] == [("canary", "included", address_of(key), address_of(key), 1, "spent")]
    assert await token.balance_of(address_of(key)) == 1
    await canary_of(rigs[0]).settle(key)  # the stretch has its payment
    assert len(await rigs[0].fetch("select from settlement")) == 1


async def test_the_next_stretch_has_a_payment_of_its_own(start_engine: Start, token: Token, key: PrivateKey) -> None:
    await token.fund([address_of(key)], amount_atomic=1)
    for settle_s in (1e9, 2e9):
        rig = await start_engine(canary=key, canary_settle_s=settle_s)
        await canary_of(rig).settle(key)
    assert [row["state"] for row in await rig.fetch("select state from settlement")] == ["included"] * 2


async def test_an_account_without_the_unit_is_noticed_and_tried_again(start_engine: Start, token: Token, key: PrivateKey) -> None:
    rig = await start_engine(canary=key, canary_settle_s=1e9)
    failures = figure("failures_total", "settle")
    with capture_logs() as lines:
        await canary_of(rig).settle(key)
    assert [line["outcome"] for line in lines if line["event"] == "canary.failed"] == ["insufficient_balance"]
    assert figure("failures_total", "settle") == failures + 1
    await token.fund([address_of(key)], amount_atomic=1)
    await canary_of(rig).settle(key)
    assert [row["state"] for row in await rig.fetch("select state from settlement")] == ["included"]
