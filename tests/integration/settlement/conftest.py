"""A settlement engine of the test's own, on a real database and a real chain."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import msgspec
import pytest_asyncio
from coincurve import PrivateKey

from facilitator.chain.evm import EvmClient
from facilitator.chain.rpc import RpcClient
from facilitator.chain.signer import Signer, SigningPolicy, load_signer
from facilitator.clock import SystemClock
from facilitator.devstack.buyer import facilitator_request
from facilitator.devstack.stack import Anvil
from facilitator.devstack.token import BASE_SEPOLIA_USDC
from facilitator.domain.wallets import Rules
from facilitator.protocol.codec import decode_request
from facilitator.protocol.messages import Payment
from facilitator.schemes.exact_eip3009 import ExactEip3009
from facilitator.schemes.scheme import Registry, Token
from facilitator.settlement.admission import Caller, SettleAnswer
from facilitator.settlement.engine import Engine
from facilitator.settlement.network import HeadClock, ServedNetwork
from facilitator.settlement.screening import Screen
from facilitator.settlement.settings import Settings
from facilitator.store import tenants
from facilitator.store.db import Db
from facilitator.store.tenants import Tenant
from facilitator.units import Address, Network, Wei
from tests.fixtures.base_sim.fixtures import start_sim
from tests.fixtures.waiting import PATIENCE_S

__all__ = ["start_sim"]
NETWORK = Network("eip155:84532")
USDC = Token(network=NETWORK, address=Address(BASE_SEPOLIA_USDC.lower()), name="USDC", version="2", decimals=6)
PATIENT = {
    "deadline_s": PATIENCE_S,
    "verify_deadline_s": PATIENCE_S,
    "queue_wait_max_s": 600.0,
    "max_head_age_s": 600,
    "lease_ttl_s": 120.0,
    "lease_trust_s": 90.0,
}
"""Settings under which no busy machine is taken for a halted chain, a dead owner, or a queue that does not move."""
FAST = {**PATIENT, "lease_renew_s": 0.3, "poll_s": 0.05, "queue_poll_s": 0.2, "answer_doubt_s": 1.0}


class Rig:
    """One engine and what a test wants to look at beside it."""

    def __init__(self, engine: Engine, db: Db, evm: EvmClient, settings: Settings) -> None:
        self.engine = engine
        self.db = db
        self.evm = evm
        self.settings = settings

    def caller(self, tenant_id: str = "acme", **rules: Any) -> Caller:
        """Somebody who asks for that tenant, which has these rules of its own."""
        return Caller(tenant=Tenant(tenant_id=tenant_id, **rules), request_id="test")

    async def time_is_up(self, *waiting: asyncio.Task[Any]) -> None:
        """These callers, whose settlements are on record, wait no longer: return when they were told how things stand."""
        admitter = self.engine._admitter
        admitter.hurry()
        self.engine._board.wake_all()
        try:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.wait(waiting)
        finally:
            admitter._hurry.clear()

    def callers_wait(self, deadline_s: float) -> None:
        """Whoever comes from here on waits for so long."""
        self.engine._admitter._settings = replace(self.settings, deadline_s=deadline_s)

    async def die(self) -> None:
        """It gives nothing back; its leases and its heartbeat are over, as they would be after `lease_ttl_s`."""
        assert self.engine._loops is not None
        self.engine._loops.cancel()
        await asyncio.wait([self.engine._loops])
        await self.fetch("update relayer set lease_until = now() where owner = $1", self.engine.replica_id)
        await self.fetch("update replica set seen_at = '-infinity' where replica_id = $1", self.engine.replica_id)

    async def fetch(self, sql: str, *arguments: object) -> list[Any]:
        """Rows of a plain statement."""
        async with self.db.session() as session:
            return list(await session._connection.fetch(sql, *arguments))


async def present(rig: Rig) -> None:
    """Until its heartbeat says that it holds its presence."""
    async with asyncio.timeout(PATIENCE_S):
        while not (await rig.fetch("select present from replica where replica_id = $1", rig.engine.replica_id))[0]["present"]:
            await asyncio.sleep(0.02)


async def given_up(rig: Rig, payment: Payment, tenant: str = "acme", **how: Any) -> SettleAnswer:
    """Settle through an engine that has no relayer, until the time is up. Raises what `settle` raises."""
    task = asyncio.create_task(rig.engine.settle(rig.caller(tenant, **how.pop("rules", {})), payment, how.get("key")))
    async with asyncio.timeout(PATIENCE_S):
        while not task.done() and not rig.engine._board._seats:
            await asyncio.sleep(0.01)
    await rig.time_is_up(task)
    return await task


def decoded(payment: dict[str, Any], terms: dict[str, Any]) -> Payment:
    """The payment as the engine takes it."""
    found = decode_request(msgspec.json.encode(facilitator_request(payment, terms)))
    assert isinstance(found, Payment), found
    return found


@pytest_asyncio.fixture
async def start_engine(
    database_url: str, chain: Anvil, new_relayer: Callable[..., Awaitable[Any]]
) -> AsyncIterator[Callable[..., Awaitable[Rig]]]:
    """Start an engine: `await start_engine(deadline_s=…, relayers=[…])`; several of them share database and chain."""
    async with AsyncExitStack() as stack:

        async def start(
            *,
            rpc_url: str | None = None,
            ws_url: str | None = None,
            relayers: list[Any] | None = None,
            signers: list[Signer] | None = None,
            ready: bool = True,
            screen: Screen | None = None,
            canary: PrivateKey | None = None,
            wallets: Rules | None = None,
            **changes: Any,
        ) -> Rig:
            settings = Settings(**{**FAST, **changes})
            clock = SystemClock()
            db = await Db.connect(database_url)
            stack.push_async_callback(db.close)
            for name in ("acme", "globex"):
                await tenants.create_tenant(db, Tenant(tenant_id=name))
            rpc = RpcClient([rpc_url or chain.rpc_url], clock)
            evm = EvmClient(NETWORK, rpc)
            stack.push_async_callback(evm.close)
            if signers is None:
                keys = relayers if relayers is not None else [await new_relayer()]
                policy = SigningPolicy(chain_id=84532, assets=frozenset({USDC.address}), max_fee_max_wei=Wei(settings.max_fee_cap_wei))
                signers = [load_signer(key.key.hex(), policy) for key in keys]
            served = ServedNetwork(NETWORK, evm, signers, HeadClock(NETWORK, clock, settings.wall_skew_max_s), ws_url, canary)
            served.screen = screen
            registry = Registry([ExactEip3009([USDC], frozenset(signer.address for signer in signers), wallets)], [USDC])
            engine = Engine(settings, [served], registry, db, clock)
            await engine.start()
            stack.push_async_callback(engine.stop, 3.0)
            if ready and signers:
                async with asyncio.timeout(PATIENCE_S):
                    while not all(account.ready for account in engine._dispatchers[NETWORK].pool.accounts):
                        await clock.sleep(0.01)
            return Rig(engine, db, evm, settings)

        yield start
