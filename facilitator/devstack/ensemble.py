"""Everything at once, as a user has it: Postgres, chain and token, `facilitator serve` as a process, a paid API, the sample sellers.

For `facilitator demo` and `facilitator dev`. The service is the real one, started by its command line with a configuration
file; nothing of it is embedded. All of it lives in the stack's state directory and dies with the process that started it.
"""

import asyncio
import json
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Final, Self

import aiohttp
import asyncpg

from facilitator.console.secrets import hash_of, new_secret
from facilitator.devstack.accounts import dev_account
from facilitator.devstack.buyer import BASE_SEPOLIA, Buyer
from facilitator.devstack.children import Child, StackFault
from facilitator.devstack.gateway import SampleGateway
from facilitator.devstack.sellers.market import Market
from facilitator.devstack.sellers.models.local import LOCAL
from facilitator.devstack.sellers.models.model import Models
from facilitator.devstack.stack import Stack
from facilitator.devstack.token import Token, install_token
from facilitator.gateway.client import Exchange
from facilitator.store import console, tenants
from facilitator.store.db import Db
from facilitator.store.migrate import migrate
from facilitator.store.tenants import Tenant

NETWORK: Final = f"eip155:{BASE_SEPOLIA}"
TENANT: Final = "demo"
RELAYER: Final = dev_account("relayer")
SELLER: Final = str(dev_account("seller").address)

_DATABASE: Final = "facilitator"
_ETHER: Final = 10**18
_START_TIMEOUT_S: Final = 30.0
_LEASES: Final = "[settlement]\nlease_ttl_s = 3.0\nlease_trust_s = 2.0\nlease_renew_s = 0.5\n"
"""One process owns everything here; after a crash the next one need not wait long for the relayer's lease to run out."""
_POLL_S: Final = 0.02
_WATCH_S: Final = 0.25
_LINK_LIFE_S: Final = 86_400.0
"""Of the link that `dev` prints: it stands on the terminal for as long as the stack runs."""


class Ensemble:
    """`async with Ensemble(…) as everything`. Attributes hold once it is started."""

    def __init__(
        self,
        path: Path | None = None,
        *,
        port: int = 0,
        block_time_s: float | None = None,
        buyers: int = 1,
        funds_atomic: int = 10_000_000,
        models: Models = LOCAL,
        observe: Callable[[Exchange], None] | None = None,
    ) -> None:
        """Without `path` nothing is left afterwards. `port` 0 takes a free one; each of `buyers` has `funds_atomic` at least.

        `models` are what the sample sellers sell. `observe` is told every exchange of sellers with the facilitator.
        """
        self.stack: Final = Stack(path, block_time_s=block_time_s)
        self.buyers: Final = tuple(Buyer.numbered(index) for index in range(buyers))
        self.url = ""
        """Where the facilitator listens."""
        self.api_key = ""
        """With the scopes verify, settle and read."""
        self.console_url = ""
        """Where the finance console listens."""
        self.started_s: dict[str, float] = {}
        """How long each part took to start."""
        self._port = port
        self._funds_atomic = funds_atomic
        self._models = models
        self._observe = observe
        self._exit = AsyncExitStack()
        self._service: Child | None = None
        self._gateway: SampleGateway | None = None
        self._market: Market | None = None

    @property
    def database_url(self) -> str:
        """The service's database, as asyncpg takes it."""
        return self.stack.postgres.url_of(_DATABASE)

    @property
    def rpc_url(self) -> str:
        """The chain's JSON-RPC."""
        return self.stack.anvil.rpc_url

    @property
    def token(self) -> Token:
        """USDC on the chain."""
        return Token.at(self.rpc_url)

    @property
    def gateway_url(self) -> str:
        """The paid API."""
        assert self._gateway is not None, "start first"
        return self._gateway.base_url

    @property
    def market(self) -> Market:
        """The sample sellers."""
        assert self._market is not None, "start first"
        return self._market

    @property
    def service_pid(self) -> int:
        """Process id of `facilitator serve`."""
        assert self._service is not None, "start first"
        return self._service.pid

    @property
    def service_log(self) -> Path:
        """What the service printed."""
        return self.stack.path / "facilitator.log"

    @property
    def failure(self) -> str | None:
        """Why the service ended, None while it runs."""
        if self._service is None or self._service.exit_status is None:
            return None
        return f"facilitator serve ended with status {self._service.exit_status}: {self._last_words()}"

    async def ended(self) -> str:
        """Return when the service has ended by itself, and why."""
        while (why := self.failure) is None:  # noqa: ASYNC110 (a child of a plain Popen tells nobody of its end)
            await asyncio.sleep(_WATCH_S)
        return why

    async def start(self) -> None:
        """Start everything and wait until the service is ready. Raises StackFault, and leaves nothing running then."""
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop everything, callers first: paid API, service, database and chain."""
        await self._exit.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()

    async def _start(self) -> None:
        await self._timed("stack", self.stack.start)
        self._exit.push_async_callback(self.stack.stop)
        await asyncio.gather(self._timed("database", self._prepare_database), self._timed("token", self._prepare_chain))
        await self._timed("facilitator", self._serve)
        self._gateway = SampleGateway(self.url, self.api_key, SELLER, observe=self._observe)
        self._exit.push_async_callback(self._gateway.stop)
        await self._gateway.start()
        self._market = Market(self.url, self.api_key, SELLER, self.stack.path / "sellers", models=self._models, observe=self._observe)
        self._exit.push_async_callback(self._market.stop)
        await self._market.start()

    async def _timed(self, part: str, work: Callable[[], Awaitable[None]]) -> None:
        started = monotonic()
        await work()
        self.started_s[part] = monotonic() - started

    async def _prepare_database(self) -> None:
        """Schema, tenant and key."""
        connection = await asyncpg.connect(self.stack.postgres.url)
        try:
            known = await connection.fetchval("select true from pg_database where datname = $1", _DATABASE)
        finally:
            await connection.close()
        if not known:
            await self.stack.postgres.create_database(_DATABASE)
        await migrate(self.database_url)
        db = await Db.connect(self.database_url, connections_max=1)
        try:
            await tenants.create_tenant(db, Tenant(tenant_id=TENANT))
            self.api_key = await self._kept_key(db) or await self._new_key(db)
        finally:
            await db.close()

    async def _kept_key(self, db: Db) -> str | None:
        """The key of an earlier start, if it still opens."""
        file = self.stack.path / "api-key"
        presented = tenants.parse_key(file.read_text("ascii").strip()) if file.exists() else None
        if presented is None:
            return None
        rows = await tenants.list_api_keys(db, TENANT)
        alive = any(row.key_id == presented.key_id and row.revoked_at is None for row in rows)
        return file.read_text("ascii").strip() if alive else None

    async def _new_key(self, db: Db) -> str:
        new = tenants.generate_key()
        await tenants.create_api_key(db, new, TENANT, ["verify", "settle", "read"], None)
        _write_private(self.stack.path / "api-key", new.text)
        return new.text

    async def console_link(self, person: str, role: str) -> str:
        """Where somebody signs in to the finance console, once."""
        secret = new_secret()
        db = await Db.connect(self.database_url, connections_max=1)
        try:
            await console.make_link(db, hash_of(secret), person, role, "dev", _LINK_LIFE_S)
        finally:
            await db.close()
        return f"{self.console_url}/sign-in?token={secret}"

    async def _prepare_chain(self) -> None:
        """Circle's code, gas money for the relayer, coins for the buyers. What is there already stays."""
        token = await install_token(self.rpc_url)
        await token.set_gas_money(str(RELAYER.address), 100 * _ETHER)
        for buyer in self.buyers:
            missing_atomic = self._funds_atomic - await token.balance_of(buyer.address)
            if missing_atomic > 0:
                await token.mint(buyer.address, missing_atomic)

    async def _serve(self) -> None:
        """`facilitator serve` on its configuration, as an operator starts it; without our own environment's settings."""
        key, config = self.stack.path / "relayer.key", self.stack.path / "facilitator.toml"
        _write_private(key, bytes(RELAYER.key).hex())
        config.write_text(
            f'[server]\nlisten = "127.0.0.1:{self._port}"\n\n[database]\nurl = {json.dumps(self.database_url)}\n\n'
            f'[log]\nformat = "json"\n\n'
            f'[console]\nlisten = "127.0.0.1:0"\n\n{_LEASES}\n'
            f'[[networks]]\nid = "{NETWORK}"\nrpc_urls = ["{self.rpc_url}"]\n'
            f"relayers = [{json.dumps(f'file:{key}')}]\n",
            encoding="utf-8",
        )
        strangers = [name for name in os.environ if name.startswith("FACILITATOR_")]
        isolated = [shutil.which("env") or "/usr/bin/env", *(part for name in strangers for part in ("-u", name))] if strangers else []
        self._service = Child.start(
            [*isolated, sys.executable, "-P", "-m", "facilitator", "serve", "--config", config],
            record=self.stack.path / "facilitator.child.json",
            log=self.service_log,
            cwd=self.stack.path,
            stop_signal=signal.SIGTERM,
        )
        self._exit.push_async_callback(self._service.stop, grace_s=30.0)
        deadline = monotonic() + _START_TIMEOUT_S
        async with aiohttp.ClientSession() as session:
            while not await self._ready(session):
                if self.failure is not None:
                    raise StackFault("facilitator_start", self.failure)
                if monotonic() > deadline:
                    raise StackFault("facilitator_start", f"facilitator serve was not ready in time: {self._last_words()}")
                await asyncio.sleep(_POLL_S)

    async def _ready(self, session: aiohttp.ClientSession) -> bool:
        if not self.url:
            ports = _ports(self.service_log)
            if not {"server", "console"} <= ports.keys():
                return False
            self.url, self.console_url = (f"http://127.0.0.1:{ports[name]}" for name in ("server", "console"))
        try:
            async with session.get(f"{self.url}/readyz") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    def _last_words(self) -> str:
        lines = self.service_log.read_text("utf-8", errors="replace").strip().splitlines()
        return lines[-1][-1000:] if lines else "it said nothing"


def _ports(log: Path) -> dict[str, int]:
    """Which ports the service says that it listens on: `server`, `console`."""
    told = [json.loads(line) for line in log.read_bytes().splitlines(keepends=True) if b'.started"' in line and line.endswith(b"\n")]
    return {line["event"].partition(".")[0]: int(line["listen"].rpartition(":")[2]) for line in told if "listen" in line}


def _write_private(path: Path, text: str) -> None:
    """A file that only we can read, whole or not at all."""
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(text)
    unfinished.replace(path)
