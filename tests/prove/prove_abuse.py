"""Abuse at the length at which it happens; the short forms run in `make test`."""

import asyncio
import time

import pytest

from facilitator.devstack.stack import Anvil
from facilitator.devstack.token import Token
from facilitator.settlement.settings import Settings
from tests.fixtures.base_sim.fixtures import start_sim
from tests.integration.settlement.conftest import start_engine
from tests.integration.settlement.test_bad_signatures import (
    OFF,
    NewBuyer,
    StartEngine,
    StartSim,
    about_strangers,
    asked_for,
    flood,
    made_up,
    new_wallet,
    one_of_another_tenant_pays,
    signed,
)
from tests.prove.conftest import Tell

__all__ = ["start_engine", "start_sim"]  # fixtures

SIGNATURES = 10_000


async def test_ten_thousand_wrong_signatures_ask_the_chain_nothing(
    start_engine: StartEngine, start_sim: StartSim, new_buyer: NewBuyer, chain: Anvil, tell: Tell
) -> None:
    sim = await start_sim(node_url=chain.rpc_url)
    rig = await start_engine(rpc_url=sim.url, plain_payer_ttl_s=3600.0)
    buyers = [await new_buyer() for _ in range(20)]
    first = await asked_for(rig, sim, buyers, len(buyers))
    asked = await asked_for(rig, sim, buyers, SIGNATURES)
    tell(f"{first} questions for {len(buyers)} payers seen for the first time, then {asked} for {SIGNATURES} wrong signatures")
    assert asked == 0


@pytest.mark.parametrize("length", [65, 200, 0])
async def test_ten_thousand_wrong_signatures_of_as_many_strangers_ask_nothing_where_no_wallet_may_pay(
    length: int, start_engine: StartEngine, start_sim: StartSim, new_buyer: NewBuyer, chain: Anvil, tell: Tell
) -> None:
    sim = await start_sim(node_url=chain.rpc_url)
    rig = await start_engine(rpc_url=sim.url, wallets=OFF)
    with sim.faults(about_strangers()) as [asked]:
        said = await flood(rig, made_up(await signed(new_buyer), length), SIGNATURES)
    tell(f"{length} bytes: {asked.seen} questions for {SIGNATURES} payers, told {dict(said)}")
    assert asked.seen == 0
    assert said.total() == SIGNATURES


@pytest.mark.parametrize("length", [65, 200, 0])
async def test_ten_thousand_strangers_are_looked_at_as_often_as_the_limit_says_and_another_tenants_wallet_pays_meanwhile(
    length: int, start_engine: StartEngine, start_sim: StartSim, new_buyer: NewBuyer, chain: Anvil, token: Token, tell: Tell
) -> None:
    """With the limits that everybody has who sets none."""
    sim = await start_sim(node_url=chain.rpc_url)
    settings = Settings()
    rig = await start_engine(rpc_url=sim.url)
    wallet, payments = await new_wallet(chain, token), made_up(await signed(new_buyer), length)
    started = time.monotonic()
    with sim.faults(about_strangers("eth_getCode")) as [looks]:
        said, _ = await asyncio.gather(flood(rig, payments, SIGNATURES), one_of_another_tenant_pays(rig, wallet))
    took_s = time.monotonic() - started
    limited = said["settlement.stranger_looks_per_s"]
    tell(f"{length} bytes: {looks.seen} looks for {SIGNATURES} payers in {took_s:.1f} s, {limited} put off with 429")
    assert settings.stranger_looks_burst <= looks.seen <= settings.stranger_looks_burst + settings.stranger_looks_per_s * took_s
    assert looks.seen + limited == SIGNATURES
