"""What tests share: one PostgreSQL and one chain with Circle's token per session, a fresh database and fresh accounts per test."""

import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from eth_account.signers.local import LocalAccount

from facilitator.devstack.accounts import dev_account
from facilitator.devstack.buyer import Buyer
from facilitator.devstack.children import StateDirectory
from facilitator.devstack.stack import Anvil, Postgres
from facilitator.devstack.token import Token, install_token

ETHER = 10**18
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def state_directory() -> Iterator[StateDirectory]:
    """A temporary state directory for children that live as long as the session."""
    state = StateDirectory.open()
    yield state
    state.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres(state_directory: StateDirectory) -> AsyncIterator[Postgres]:
    """The session's PostgreSQL server. No transaction runs in it but those of tests: what is booked can be sealed at once."""
    server = Postgres(state_directory)
    await server.start()
    connection = await asyncpg.connect(server.url)
    await connection.execute("alter system set autovacuum = off")
    await connection.execute("select pg_reload_conf()")
    await connection.close()
    yield server
    await server.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def database_template(postgres: Postgres) -> str:
    """Name of a database that holds the migrated schema and nothing else."""
    from facilitator.store.migrate import migrate  # noqa: PLC0415 - the stack's own tests run without the store

    await migrate(await postgres.create_database("template_migrated"))
    return "template_migrated"


@pytest_asyncio.fixture
async def database_url(postgres: Postgres, database_template: str) -> AsyncIterator[str]:
    """A migrated database of the test's own."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    yield await postgres.create_database(name, database_template)
    await postgres.drop_database(name)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chain(state_directory: StateDirectory) -> AsyncIterator[Anvil]:
    """The session's chain: mines each transaction at once, holds the token and Multicall3. Leave its clock and mining alone."""
    anvil = Anvil(state_directory)
    await anvil.start()
    await install_token(anvil.rpc_url)
    yield anvil
    await anvil.stop()


@pytest.fixture
def token(chain: Anvil) -> Token:
    """The token on the session's chain. Whoever pauses it unpauses it."""
    return Token.at(chain.rpc_url)


@pytest_asyncio.fixture
async def start_chain(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Callable[..., Awaitable[Anvil]]]:
    """Start a chain of the test's own, token installed; takes the options of `Anvil`."""
    started: list[tuple[Anvil, StateDirectory]] = []

    async def start(**options: Any) -> Anvil:
        state = StateDirectory.open(tmp_path_factory.mktemp("chain"))
        anvil = Anvil(state, **options)
        started.append((anvil, state))
        await anvil.start()
        await install_token(anvil.rpc_url)
        return anvil

    yield start
    for anvil, state in started:
        await anvil.stop()
        state.close()


@pytest.fixture
def new_buyer(token: Token) -> Callable[..., Awaitable[Buyer]]:
    """Make a buyer that nobody else uses: `await new_buyer(amount_atomic=…, token=…)`."""

    async def make(*, amount_atomic: int = 10_000_000, token: Token = token) -> Buyer:
        buyer = Buyer.numbered(next(_numbers))
        await token.fund([buyer.address], amount_atomic=amount_atomic)
        return buyer

    return make


@pytest.fixture
def new_relayer(token: Token) -> Callable[..., Awaitable[LocalAccount]]:
    """Make a relayer that nobody else uses, with gas money: `await new_relayer(wei=…, token=…)`."""

    async def make(*, wei: int = 10 * ETHER, token: Token = token) -> LocalAccount:
        relayer = dev_account("relayer", next(_numbers))
        await token.set_gas_money(relayer.address, wei)
        return relayer

    return make
