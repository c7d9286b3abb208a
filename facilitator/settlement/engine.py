"""The settlement engine: builds the parts of `settlement/`, runs their loops, and is what the HTTP face talks to."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID, uuid4

import structlog

from facilitator.chain.heads import follow_heads
from facilitator.chain.signer import Signer
from facilitator.clock import Clock
from facilitator.domain.facts import Head
from facilitator.errors import ConfigFault, Fault, OverloadFault
from facilitator.metrics import NETWORK_SERVED, STAGE_SECONDS
from facilitator.protocol.messages import Payment, Supported, SupportedKind, VerifyResult
from facilitator.schemes.scheme import Registry
from facilitator.settlement.admission import Admitter, Caller, SettleAnswer, Ticket
from facilitator.settlement.aftermath import Aftermath
from facilitator.settlement.answers import AnswerBoard
from facilitator.settlement.dispatcher import Dispatcher
from facilitator.settlement.finality import Finality
from facilitator.settlement.network import ServedNetwork
from facilitator.settlement.pricing import Pricing
from facilitator.settlement.records import RecordReader
from facilitator.settlement.recovery import Keeper, OpenKey
from facilitator.settlement.resolver import Resolver
from facilitator.settlement.settings import Settings
from facilitator.settlement.survey import Surveyor
from facilitator.settlement.tasks import Background, beat, keep_running
from facilitator.settlement.verification import Verifier
from facilitator.settlement.watcher import Watcher
from facilitator.store import notifications, settlements
from facilitator.store.db import Db
from facilitator.units import Network

_CHECK_S: Final = 5.0
"""Deadline of a start-up check of one network, and the wait before it is tried again."""

log = structlog.get_logger(__name__)


class Engine:
    """All loops of one process. `start` once, `stop` once; stopping an engine that never started does no harm."""

    def __init__(
        self,
        settings: Settings,
        networks: Sequence[ServedNetwork],
        registry: Registry,
        db: Db,
        clock: Clock,
        replica_id: str | None = None,
        open_key: OpenKey | None = None,
    ) -> None:
        """`open_key` resolves the references of relayers that are added at run time; None: none of them."""
        self.replica_id: Final = replica_id or uuid4().hex
        self._settings = settings
        self._networks: Mapping[Network, ServedNetwork] = {chain.network: chain for chain in networks}
        self._registry = registry
        self._db = db
        self._clock = clock
        self._background = Background()
        self._board = AnswerBoard(db, settings.lease_ttl_s)
        records = RecordReader(db, settings.lease_ttl_s)
        self._verifier = Verifier(registry, self._networks, records, clock, settings)
        self._watchers: dict[Network, Watcher] = {}
        self._dispatchers: dict[Network, Dispatcher] = {}
        self._keepers: dict[Network, Keeper] = {}
        self._finalities: dict[Network, Finality] = {}
        self._aftermaths: dict[Network, Aftermath] = {}
        for chain in networks:
            resolver = Resolver(chain, registry, db)
            pricing = Pricing(chain, clock, settings)
            watcher = Watcher(chain, resolver, pricing, self._board, db, clock, settings, self.replica_id, self._background)
            dispatcher = Dispatcher(
                chain, registry, self._verifier, resolver, watcher, db, clock, settings, self.replica_id, self._background
            )
            self._finalities[chain.network] = Finality(chain, db, clock, settings)
            self._aftermaths[chain.network] = Aftermath(chain, resolver, db, clock, settings)
            self._watchers[chain.network], self._dispatchers[chain.network] = watcher, dispatcher
            self._keepers[chain.network] = Keeper(chain, dispatcher, watcher, db, clock, settings, self.replica_id, open_key or _no_key)
        self._admitter = Admitter(
            self._verifier, records, self._dispatchers, self._board, db, clock, settings, self.replica_id, self._background
        )
        self._loops: asyncio.Task[None] | None = None
        self._callers = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False
        self._started = False

    # --- life ---

    async def start(self) -> None:
        """Say that this replica lives, then start every loop. Raises StoreFault when Postgres cannot be reached."""
        await self._say_alive()
        self._loops = asyncio.create_task(self._run(), name="engine")
        self._started = True
        log.info("engine.started", replica_id=self.replica_id, networks=list(self._networks))

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:

            def loop(name: str, body: object) -> None:
                group.create_task(keep_running(name, body, self._clock), name=name)  # type: ignore[arg-type]

            loop("heartbeat", self._beat)
            loop("notifications", self._listen)
            loop("survey", Surveyor(tuple(self._networks.values()), self._db, self._clock, self._settings).run)
            for network, chain in self._networks.items():
                watcher, dispatcher, keeper = self._watchers[network], self._dispatchers[network], self._keepers[network]
                loop("check", lambda chain=chain: self._check(chain))
                loop("watcher", watcher.run)
                loop("finality", self._finalities[network].run)
                loop("aftermath", self._aftermaths[network].run)
                loop("pricing", watcher.pricing.run)
                if chain.ws_url is not None:
                    loop("heads", lambda chain=chain, watcher=watcher: self._follow(chain, watcher))
                loop("dispatcher", dispatcher.run)
                loop("queue", dispatcher.run_queue)
                loop("room", dispatcher.wake_when_freed)
                loop("keeper", keeper.run)

    async def stop(self, grace_s: float) -> None:
        """Take no more work, answer who waits (with the hash, if not decided in time), give leases back."""
        self._stopping = True
        deadline = self._clock.monotonic() + grace_s
        try:
            async with asyncio.timeout(max(0.0, grace_s - 1.0)):
                await self._idle.wait()
        except TimeoutError:
            for dispatcher in self._dispatchers.values():
                dispatcher.stop()
            self._admitter.hurry()
            self._board.wake_all()
            try:
                async with asyncio.timeout(max(0.1, deadline - self._clock.monotonic())):
                    await self._idle.wait()
            except TimeoutError:
                log.warning("engine.callers_left", callers=self._callers)
        for dispatcher in self._dispatchers.values():
            dispatcher.stop()
        await self._background.drain(1.0)
        if self._loops is not None:
            self._loops.cancel()
            await asyncio.wait([self._loops])
        if self._started:
            try:
                for keeper in self._keepers.values():
                    await keeper.release()
                await settlements.retire_replica(self._db, self.replica_id)
            except Fault as fault:
                log.warning("engine.release_failed", fault=str(fault))
        log.info("engine.stopped", replica_id=self.replica_id)

    @property
    def ready(self) -> Mapping[str, bool]:
        """The gates of readiness, by name."""
        return {"store_reached": self._started, "not_draining": not self._stopping}

    # --- what the HTTP face asks ---

    def supported(self) -> Supported:
        """Kinds that are served; a network whose start-up check failed is not."""
        served = set(self._verifier.networks_served())
        return Supported(
            kinds=tuple(
                SupportedKind(scheme=scheme, network=network)
                for network in self._registry.networks
                if network in served
                for scheme in self._registry.names
            ),
            extensions=(),
            signers={"eip155:*": tuple(dict.fromkeys(a for chain in self._networks.values() for a in chain.relayers))},
        )

    async def verify(self, caller: Caller, payment: Payment) -> VerifyResult:
        """Judge a payment without changing anything. Raises Fault."""
        return await self._verifier.verify(caller.tenant.tenant_id, payment)

    async def settle(self, caller: Caller, payment: Payment, idempotency_key: str | None) -> SettleAnswer:
        """Settle, once (see `Admitter.settle`). Raises Fault, IdempotencyConflict."""
        if self._stopping:
            raise OverloadFault("draining", "this replica is stopping; ask again")
        self._callers += 1
        self._idle.clear()
        started = self._clock.monotonic()
        try:
            return await self._admitter.settle(caller, payment, idempotency_key)
        finally:
            network = payment.network if payment.network in self._networks else "other"
            STAGE_SECONDS.labels(network, "total").observe(self._clock.monotonic() - started)
            self._callers -= 1
            if self._callers == 0:
                self._idle.set()

    async def delivered(self, ticket: Ticket) -> None:
        """The holder of `ticket` has its answer."""
        self._admitter.delivered(ticket)

    async def undelivered(self, ticket: Ticket) -> None:
        """The answer did not reach the holder of `ticket`: the slot is freed."""
        await self._admitter.undelivered(ticket)

    # --- loops ---

    async def _beat(self) -> None:
        while True:
            beat("heartbeat")
            await self._say_alive()
            await self._clock.sleep(self._settings.lease_renew_s)

    async def _say_alive(self) -> None:
        """Heartbeat: this replica lives, and it has these keys."""
        chains = [chain for chain in self._networks.values() if chain.signers]
        relayers = [f"{chain.network}:{address}" for chain in chains for address in chain.relayers]
        await settlements.heartbeat(self._db, self.replica_id, [chain.network for chain in chains], relayers)

    async def _listen(self) -> None:
        await notifications.listen(self._db.url, self._heard)

    def _heard(self, channel: str, payload: str) -> None:
        if channel == "facilitator_answer":
            self._board.poke(UUID(payload))
        elif channel == "facilitator_relayers" and (keeper := self._keepers.get(Network(payload))) is not None:
            keeper.look_soon()
        elif (dispatcher := self._dispatchers.get(Network(payload))) is not None:
            dispatcher.claim_soon()

    async def _follow(self, chain: ServedNetwork, watcher: Watcher) -> None:
        """Hear of new blocks by websocket; polling goes on beside it, more rarely."""
        assert chain.ws_url is not None

        def heard(head: Head) -> None:
            chain.head.observe(head, pushed=True)
            watcher.look_soon()

        try:
            await follow_heads(chain.ws_url, heard)
        finally:
            chain.head.pushed = False

    async def _check(self, chain: ServedNetwork) -> None:
        """Once the chain answers: is it the right one, and are the tokens what the configuration says?"""
        while True:
            try:
                deadline = chain.evm.deadline_in(_CHECK_S)
                chain.head.observe(await chain.evm.connect(deadline))
                findings: list[str] = []
                for token in self._registry.tokens.values():
                    if token.network == chain.network:
                        findings += await chain.evm.token_domain(token, deadline)
            except ConfigFault as fault:
                findings = [str(fault)]
            chain.findings = tuple(findings)
            NETWORK_SERVED.labels(chain.network).set(not findings)
            for finding in findings:
                log.error("network.withdrawn", network=chain.network, finding=finding)
            await self._clock.sleep(3600.0 if not findings else 60.0)


async def _no_key(network: Network, reference: str) -> Signer:
    """For an engine that knows of no references."""
    raise ConfigFault("no_key", f"relayer {reference} of {network}: this process resolves no references")
