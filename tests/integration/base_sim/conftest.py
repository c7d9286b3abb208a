"""base-sim and our own chain client as its user."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from eth_account.signers.local import LocalAccount

from facilitator.chain.evm import EvmClient, SendOutcome
from facilitator.chain.rpc import RpcClient, Settings
from facilitator.clock import SystemClock
from facilitator.devstack.accounts import dev_account
from tests.fixtures.base_sim import BaseSim, RawTransaction
from tests.fixtures.base_sim.fixtures import base_sim, start_sim
from tests.fixtures.payments import BASE_SEPOLIA

__all__ = ["base_sim", "start_sim"]

GWEI = 10**9
ETHER = 10**18


@dataclass(slots=True)
class Relayer:
    """An account with gas money on the chain behind the proxy."""

    account: LocalAccount
    evm: EvmClient

    @property
    def address(self) -> str:
        return self.account.address.lower()

    def sign(self, tx_nonce: int, *, max_fee_wei: int = 10 * GWEI, tip_wei: int = 1_000, **changes: Any) -> RawTransaction:
        """A transfer of nothing to itself, unless changed."""
        fields: dict[str, Any] = {"chainId": 84532, "nonce": tx_nonce, "to": self.account.address, "value": 0, "gas": 21_000}
        fields |= {"maxFeePerGas": max_fee_wei, "maxPriorityFeePerGas": tip_wei, "type": 2, "data": b""} | changes
        return RawTransaction.decode(bytes(self.account.sign_transaction(fields).raw_transaction))

    async def send(self, transaction: RawTransaction, seconds: float = 5) -> SendOutcome:
        """Send through the service's own client."""
        return await self.evm.send_raw(transaction.raw, self.evm.deadline_in(seconds))

    async def words(self, transaction: RawTransaction) -> str:
        """What the node says to a transaction that it refuses."""
        outcome = await self.send(transaction)
        assert outcome.error is not None
        return outcome.message


@pytest_asyncio.fixture
async def connect() -> AsyncIterator[Callable[..., EvmClient]]:
    """Make a client of the URLs."""
    async with AsyncExitStack() as stack:

        def make(*urls: str, **settings: Any) -> EvmClient:
            client = EvmClient(BASE_SEPOLIA, RpcClient(urls, SystemClock(), Settings(**settings)))
            stack.push_async_callback(client.close)
            return client

        yield make


@pytest.fixture
def evm(base_sim: BaseSim, connect: Callable[..., EvmClient]) -> EvmClient:
    """The service's client of the proxy."""
    return connect(base_sim.url)


@pytest_asyncio.fixture
async def relayer(base_sim: BaseSim, evm: EvmClient) -> Relayer:
    """A relayer with 10 coins."""
    account = dev_account("relayer", 900)
    await base_sim.upstream.result("anvil_setBalance", account.address, hex(10 * ETHER))
    return Relayer(account, evm)
