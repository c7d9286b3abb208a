"""The composition root: builds every part from a Config, starts them in order, stops them in reverse.

The only module that knows everything. It must decide nothing about payments. The API listens first: `/supported` and
`/healthz` answer without database and chain; the rest answers 503 until the database was reached once. Chains are
checked in the background by the engine, which withdraws a kind whose chain id or token differs from the configuration.
"""

import asyncio
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

from facilitator import tracing
from facilitator.api.access import OPEN_TENANT, Access
from facilitator.api.catalogue import Catalogue
from facilitator.api.delivery import Deliveries
from facilitator.api.desk import Desk
from facilitator.api.server import METRICS_ROUTE, ROUTES, Server, beat, routes_for
from facilitator.chain.evm import EvmClient
from facilitator.chain.rpc import RpcClient
from facilitator.clock import Clock, SystemClock
from facilitator.config import Config, ConsoleSettings, NetworkSettings
from facilitator.errors import ConfigFault, Fault
from facilitator.finance.earnings import Earnings
from facilitator.finance.examination import Examiner
from facilitator.finance.rates import RateKeeper
from facilitator.finance.seals import Sealer
from facilitator.finance.tally import Tally
from facilitator.keyring import KeptSigner, build_signers, open_canary, open_signer, parse_reference
from facilitator.metrics import BUILD_INFO, RPC_REQUESTS, RPC_SECONDS
from facilitator.protocol.messages import BAZAAR, PAYMENT_IDENTIFIER, Supported
from facilitator.schemes.exact_eip3009 import ExactEip3009
from facilitator.schemes.scheme import Registry
from facilitator.settlement.engine import Engine
from facilitator.settlement.network import HeadClock, OwnAccounts, ServedNetwork
from facilitator.settlement.screening import ListFile, Screen
from facilitator.settlement.settings import Settings as SettlementSettings
from facilitator.settlement.tasks import keep_running
from facilitator.store import tenants
from facilitator.store.db import Db
from facilitator.store.migrate import migrate, schema_standing
from facilitator.telemetry import get_logger
from facilitator.units import Address, Network

if TYPE_CHECKING:
    from facilitator.console.app import Console

_log = get_logger()

_RETRY_S: Final = 1.0
"""Wait between two attempts to reach the database at start-up."""
_PROBES: Final = tuple(route for route in ROUTES if route.path in {"/healthz", "/readyz"})


class App:
    """One facilitator process without its process: what `facilitator serve` runs, and what the local stack embeds."""

    def __init__(self, config: Config, database_url: str, clock: Clock | None = None) -> None:
        """`database_url` is what `config.database.url` leads to, or the embedded server's."""
        self.config: Final = config
        self.clock: Final = clock or SystemClock()
        self._database_url = database_url
        self._stopping = False
        self._schema_known = False
        self._chains: list[ServedNetwork] = []
        self._list_file: ListFile | None = None
        self._registry: Registry | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.fault: ConfigFault | None = None
        """Why the service can never become ready, once `failed` is set."""
        self.failed: Final = asyncio.Event()
        self._ready = asyncio.Event()
        self.access: Final = Access(config.access, self.clock)
        self.desk: Final = Desk(
            settings=config.server,
            clock=self.clock,
            deliveries=Deliveries(self.clock, config.server.delivery_timeout_s),
            supported=self._supported,
            gates=self._gates,
            finance=config.finance,
            decimals={(token.network, token.address): token.decimals for token in config.tokens},
            catalogue=Catalogue(config.discovery, self.clock),
        )
        self.server: Final = Server(self.desk, self.access, config.server.listen, routes_for(config.server.listen))
        self.metrics_server: Final = (
            None if config.metrics is None else Server(self.desk, self.access, config.metrics.listen, (METRICS_ROUTE, *_PROBES))
        )
        self.console: Final = None if config.console is None else build_console(config, config.console, self.clock)

    # ---- life

    async def start(self) -> None:
        """Read the secrets, listen, and go for the database in the background.

        Raises ConfigFault for a secret that is not there or no key, Fault when the address is taken.
        """
        self._start_tracing()
        BUILD_INFO.labels(version("facilitator"), os.environ.get("FACILITATOR_COMMIT", "unknown")).set(1)
        screening = self.config.screening
        if screening is not None and screening.list_file is not None:
            self._list_file = ListFile(screening, self.clock)
            await self._list_file.load()
        for network in self.config.networks:
            self._chains.append(await build_network(network, self.config, self.clock, self._list_file))
        tokens = self.config.tokens
        self._registry = Registry((ExactEip3009(tokens, OwnAccounts(self._chains), self.config.wallets),), tokens)
        self._tasks.append(asyncio.create_task(beat(self.desk), name="heartbeat"))
        await asyncio.sleep(0)  # the first beat
        await self.server.start()
        if self.metrics_server is not None:
            await self.metrics_server.start()
        if self.console is not None:
            await self.console.start()
        _log.info("server.started", listen=f"{self.config.server.listen.host}:{self.server.port}")
        if self._list_file is not None:
            self._tasks.append(asyncio.create_task(keep_running("screening", self._list_file.run, self.clock), name="screening"))
        self._tasks.append(asyncio.create_task(self._connect(self._registry), name="connect"))

    async def wait_ready(self) -> None:
        """Return once every gate is open. Raises ConfigFault when that can never be."""
        await _first_of(self._ready, self.failed)
        if self.fault is not None:
            raise self.fault

    async def stop(self) -> None:
        """Answer who waits, with the truth or `settlement_pending`, and give everything back. Bounded by `stop_grace_s`."""
        if self._stopping:
            return
        self._stopping = True
        server = self.config.server
        _log.info("server.draining", grace_s=server.stop_grace_s)
        if server.drain_delay_s:
            await self.clock.sleep(server.drain_delay_s)
        await self.server.close_listener()
        if self.desk.engine is not None:
            await self.desk.engine.stop(server.stop_grace_s)
        await self.desk.deliveries.finish()
        await self.access.stop()
        await self.server.stop()
        if self.metrics_server is not None:
            await self.metrics_server.stop()
        if self.console is not None:
            await self.console.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for chain in self._chains:
            await chain.close()
        if self.desk.db is not None:
            await self.desk.db.close()
        await asyncio.to_thread(tracing.stop)
        _log.info("server.stopped")

    def _start_tracing(self) -> None:
        if self.config.tracing is None:
            return
        try:
            tracing.start(self.config.tracing, version("facilitator"))
        except ImportError as error:
            raise ConfigFault("extra_missing", f"[tracing] needs `pip install facilitator[otel]` ({error.name} is missing)") from None

    async def _connect(self, registry: Registry) -> None:
        """Reach the database, however long it takes, then start what needs it."""
        while True:
            try:
                await self._open_store(registry)
            except ConfigFault as fault:
                self.fault = fault
                self.failed.set()
                return
            except Fault as fault:
                _log.warning("store.not_reached", fault=fault.kind, detail=str(fault))
                await self.clock.sleep(_RETRY_S)
            else:
                break
        self._tasks.append(asyncio.create_task(self.access.run(), name="access"))
        self._ready.set()
        _log.info("server.ready")

    async def _open_store(self, registry: Registry) -> None:
        database = self.config.database
        await ensure_schema(self._database_url, may_migrate=database.migrate)
        self._schema_known = True
        db = await open_database(self.config, self._database_url)
        try:
            if self.config.access.mode == "open":
                await tenants.create_tenant(db, OPEN_TENANT)
            engine = Engine(self._settlement_settings(), self._chains, registry, db, self.clock, open_key=self._open_key)
            await engine.start()
        except BaseException:
            await db.close()
            raise
        self._tasks.append(asyncio.create_task(keep_running("rates", self._rate_keeper(db).run, self.clock), name="rates"))
        sealer = Sealer(db, self.clock, self.config.finance)
        self._tasks.append(asyncio.create_task(keep_running("sealer", sealer.run, self.clock), name="sealer"))
        tally = Tally(db, self.clock)
        self._tasks.append(asyncio.create_task(keep_running("tally", tally.run, self.clock), name="tally"))
        earnings = Earnings(db, self.clock, self.config.finance, self.desk.decimals)
        self._tasks.append(asyncio.create_task(keep_running("earnings", earnings.run, self.clock), name="earnings"))
        for network, chain in zip(self.config.networks, self._chains, strict=True):
            assets = [token.address for token in network.tokens]
            examiner = Examiner(db, self.clock, self.config.finance, chain.evm, network.id, assets)
            self._tasks.append(asyncio.create_task(keep_running("reconciliation", examiner.run, self.clock), name="reconciliation"))
        self.access.connect(db)
        if self.console is not None:
            self.console.connect(db)
        self.desk.db, self.desk.engine = db, engine
        self.desk.gate.watch(engine, [network.id for network in self.config.networks])
        if self.desk.catalogue is not None and self.config.discovery.enabled:
            run = partial(self.desk.catalogue.run, db)
            self._tasks.append(asyncio.create_task(keep_running("catalogue", run, self.clock), name="catalogue"))

    def _settlement_settings(self) -> SettlementSettings:
        own = [network.poll_s for network in self.config.networks if network.poll_s is not None]
        return replace(self.config.settlement, poll_s=min(own)) if own else self.config.settlement

    async def _open_key(self, network: Network, reference: str) -> KeptSigner:
        """The key of a relayer that was added at run time."""
        settings = next(each for each in self.config.networks if each.id == network)
        return await open_signer(parse_reference(reference), settings, self.config)

    def _rate_keeper(self, db: Db) -> RateKeeper:
        sources: dict[Network, tuple[EvmClient, Address] | Path] = {}
        for network, chain in zip(self.config.networks, self._chains, strict=True):
            if network.rate_feed is not None:
                sources[network.id] = (chain.evm, network.rate_feed)
            elif network.rate_file is not None:
                sources[network.id] = Path(network.rate_file)
        return RateKeeper(db, self.clock, self.config.finance, sources)

    # ---- what the API asks

    def _supported(self) -> Supported:
        extensions = (PAYMENT_IDENTIFIER, *((BAZAAR,) if self.config.discovery.enabled else ()))
        if self.desk.engine is not None:
            return replace(self.desk.engine.supported(), extensions=extensions)
        assert self._registry is not None
        return Supported(
            kinds=self._registry.kinds(self._registry.networks),
            extensions=extensions,
            signers={"eip155:*": tuple(dict.fromkeys(relayer for chain in self._chains for relayer in chain.relayers))},
        )

    def _gates(self) -> Mapping[str, bool]:
        gates = {"schema_known": self._schema_known, "store_reached": self.desk.engine is not None}
        if self.desk.engine is not None:
            gates.update(self.desk.engine.ready)
        gates["not_draining"] = gates.get("not_draining", True) and not self._stopping
        return gates


async def serve(config: Config, database_url: str) -> None:
    """Run until SIGTERM or SIGINT; a second one exits at once. Raises ConfigFault when it can never become ready."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def asked(name: str) -> None:
        if stop.is_set():
            _log.warning("server.aborted", signal=name)
            os._exit(1)
        _log.info("server.stop_requested", signal=name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked, number.name)
    app = App(config, database_url)
    try:
        await app.start()
        await _first_of(stop, app.failed)
    finally:
        await app.stop()
    if app.fault is not None:
        raise app.fault


async def _first_of(*events: asyncio.Event) -> None:
    """Wait until one of them is set."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


# ---- parts that commands need on their own


async def open_database(config: Config, database_url: str) -> Db:
    """The pool as configured. Raises StoreFault when the server cannot be reached."""
    database = config.database
    return await Db.connect(
        database_url,
        connections_max=database.connections_max,
        statement_timeout_s=database.statement_timeout_s,
        acquire_timeout_s=database.acquire_timeout_s,
    )


async def ensure_schema(database_url: str, *, may_migrate: bool) -> list[str]:
    """Migrate if that is allowed, and return what was applied. Raises ConfigFault for a schema that is not ours to serve."""
    standing = await schema_standing(database_url)
    if standing.ahead:
        _log.info("schema.ahead", ahead=standing.ahead)
    if not (missing := standing.missing):
        return []
    if not may_migrate:
        raise ConfigFault(
            "schema_behind",
            f"the database lacks {', '.join(missing)}: run `facilitator migrate`, or set migrate = true in [database]",
        )
    applied = await migrate(database_url)
    _log.info("schema.migrated", applied=applied)
    return applied


async def build_network(network: NetworkSettings, config: Config, clock: Clock, list_file: ListFile | None) -> ServedNetwork:
    """One chain with its keys and what its payments are held against, not connected yet.

    Raises ConfigFault for a secret that is missing or no key.
    """
    signers = await build_signers(network, config)
    head = HeadClock(network.id, clock, config.settlement.wall_skew_max_s)
    ws_url = network.ws_url.read() if network.ws_url is not None else None
    served = ServedNetwork(network.id, build_client(network, config, clock), signers, head, ws_url, await open_canary(network))
    if config.screening is not None and (list_file is not None or network.screening_oracle is not None):
        served.screen = Screen(network.id, config.screening, list_file, network.screening_oracle, clock)
    return served


def build_console(config: Config, settings: ConsoleSettings, clock: Clock) -> "Console":
    """The finance console, not listening yet. Raises ConfigFault when its extra is missing, or a secret."""
    try:
        from facilitator.console.app import Console  # noqa: PLC0415 - an extra
        from facilitator.console.desk import Desk as ConsoleDesk  # noqa: PLC0415
        from facilitator.console.oidc import Client, Provider  # noqa: PLC0415
    except ImportError as error:
        raise ConfigFault("no_console", f"[console] needs `pip install facilitator[console]` ({error.name} is missing)") from None
    provider = None
    if (oidc := settings.oidc) is not None:
        client = Client(
            issuer=oidc.issuer,
            client_id=oidc.client_id,
            client_secret=None if oidc.client_secret is None else oidc.client_secret.read(),
            scopes=oidc.scopes,
            person_claim=oidc.person_claim,
            role_claim=oidc.role_claim,
            roles={"viewer": oidc.viewer, "finance": oidc.finance, "auditor": oidc.auditor, "admin": oidc.admin},
        )
        provider = Provider(client, clock)
    explorers = {network.id: network.explorer_url for network in config.networks if network.explorer_url is not None}
    desk = ConsoleDesk(settings=settings, finance=config.finance, tokens=config.tokens, explorers=explorers, clock=clock)
    return Console(desk, provider)


def build_client(network: NetworkSettings, config: Config, clock: Clock) -> EvmClient:
    """A client of one chain. Raises ConfigFault for a reference that leads nowhere."""
    urls = [url.read() for url in network.rpc_urls]
    return EvmClient(network.id, RpcClient(urls, clock, config.rpc, observe=partial(_observe_rpc, network.id)))


def _observe_rpc(network: Network, endpoint: str, method: str, outcome: str, elapsed_s: float) -> None:
    RPC_REQUESTS.labels(network, endpoint, method, outcome).inc()
    RPC_SECONDS.labels(network, endpoint, method).observe(elapsed_s)
    tracing.record("rpc", elapsed_s, (), network=network, endpoint=endpoint, method=method, outcome=outcome)
