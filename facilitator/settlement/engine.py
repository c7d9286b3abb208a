"""The settlement engine: builds the parts of `settlement/`, runs their loops, and is what the HTTP face talks to."""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final
from uuid import UUID, uuid4

import structlog

from facilitator.chain.heads import follow_heads
from facilitator.chain.signer import Signer
from facilitator.clock import Clock
from facilitator.domain.abi import Log
from facilitator.domain.facts import Head
from facilitator.errors import ConfigFault, Fault, OverloadFault
from facilitator.metrics import INCIDENTS, NETWORK_SERVED, STAGE_SECONDS, series
from facilitator.protocol.messages import PAYMENT_IDENTIFIER, Payment, Supported, VerifyResult
from facilitator.schemes.scheme import Registry
from facilitator.settlement.admission import Admitter, Caller, SettleAnswer, Ticket
from facilitator.settlement.aftermath import Aftermath
from facilitator.settlement.answers import AnswerBoard
from facilitator.settlement.canary import Canary
from facilitator.settlement.dispatcher import Dispatcher
from facilitator.settlement.finality import Finality
from facilitator.settlement.lookout import Lookout
from facilitator.settlement.network import ServedNetwork
from facilitator.settlement.presence import Presence
from facilitator.settlement.pricing import Pricing
from facilitator.settlement.records import RecordReader
from facilitator.settlement.recovery import Keeper, OpenKey
from facilitator.settlement.resolver import Resolver
from facilitator.settlement.restraints import Restraints
from facilitator.settlement.settings import Settings
from facilitator.settlement.survey import Surveyor
from facilitator.settlement.tasks import Background, keep_running, set_within
from facilitator.settlement.verification import Verifier
from facilitator.settlement.watcher import Watcher
from facilitator.store import notifications, replicas, settlements
from facilitator.store.db import Db
from facilitator.units import AuthNonce, Network

_CHECK_S: Final = 5.0
"""Deadline of a start-up check of one network, and the wait before it is tried again."""
_UNCHECKED: Final = "its implementation changed and is being looked at"

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Upgrades:
    """Upgrades of one network's tokens that were not looked at yet."""

    found: list[Log] = field(default_factory=list)
    due: asyncio.Event = field(default_factory=asyncio.Event)


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
        self._presence = Presence(networks, db, clock, settings, self.replica_id)
        records = RecordReader(db, settings.lease_ttl_s)
        self._restraints = Restraints(tuple(self._networks), db, clock, settings)
        self._verifier = Verifier(registry, self._networks, records, self._restraints, clock, settings)
        self._watchers: dict[Network, Watcher] = {}
        self._dispatchers: dict[Network, Dispatcher] = {}
        self._keepers: dict[Network, Keeper] = {}
        self._finalities: dict[Network, Finality] = {}
        self._upgrades = {chain.network: _Upgrades() for chain in networks}
        self._aftermaths: dict[Network, Aftermath] = {}
        for chain in networks:
            resolver = Resolver(chain, registry, db, settings.receipt_witnesses)
            pricing = Pricing(chain, clock, settings)
            assets = [token.address for token in registry.tokens.values() if token.network == chain.network]
            lookout = Lookout(chain, assets, clock)
            watcher = Watcher(chain, resolver, lookout, pricing, self._board, db, clock, settings, self.replica_id, self._background)
            watcher.upgraded = partial(self._upgraded, chain)
            dispatcher = Dispatcher(
                chain, registry, self._verifier, resolver, watcher, db, clock, settings, self.replica_id, self._background
            )
            self._finalities[chain.network] = Finality(chain, db, clock, settings)
            self._aftermaths[chain.network] = Aftermath(chain, resolver, db, clock, settings)
            self._watchers[chain.network], self._dispatchers[chain.network] = watcher, dispatcher
            self._keepers[chain.network] = Keeper(
                chain, dispatcher.pool, dispatcher.claims, watcher, db, clock, settings, self.replica_id, open_key or _no_key
            )
        self._admitter = Admitter(
            self._verifier,
            records,
            self._restraints,
            self._dispatchers,
            self._board,
            self._presence,
            db,
            clock,
            settings,
            self._background,
        )
        self._canaries = [
            Canary(self._networks[token.network], token, self._verifier, self._admitter, db, clock, settings)
            for token in {token.network: token for token in reversed(tuple(registry.tokens.values()))}.values()
        ]
        """By the first token of each network."""
        self._loops: asyncio.Task[None] | None = None
        self._callers = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = False
        self._started = False

    # --- life ---

    async def start(self) -> None:
        """Say that this replica lives, then start every loop. Raises StoreFault when Postgres cannot be reached."""
        await self._presence.say_alive()
        self._loops = asyncio.create_task(self._run(), name="engine")
        self._started = True
        log.info("engine.started", replica_id=self.replica_id, networks=list(self._networks))

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:

            def loop(name: str, body: object) -> None:
                group.create_task(keep_running(name, body, self._clock), name=name)  # type: ignore[arg-type]

            loop("heartbeat", self._presence.speak)
            loop("presence", self._presence.run)
            loop("notifications", self._listen)
            loop("limits", self._restraints.run)
            for canary in self._canaries:
                loop("canary", canary.run)
            loop("survey", Surveyor(tuple(self._networks.values()), self._db, self._clock, self._settings).run)
            for network, chain in self._networks.items():
                watcher, dispatcher, keeper = self._watchers[network], self._dispatchers[network], self._keepers[network]
                loop("check", lambda chain=chain: self._check(chain))
                if len(chain.evm.rpc.endpoints) > 1:
                    loop("endpoints", lambda chain=chain: self._ask_endpoints(chain))
                loop("watcher", watcher.run)
                loop("finality", self._finalities[network].run)
                loop("aftermath", self._aftermaths[network].run)
                loop("pricing", watcher.pricing.run)
                if chain.ws_url is not None:
                    loop("heads", lambda chain=chain, watcher=watcher: self._follow(chain, watcher))
                loop("dispatcher", dispatcher.run)
                loop("queue", dispatcher.claims.run)
                loop("room", dispatcher.wake_when_freed)
                loop("keeper", keeper.run)

    async def stop(self, grace_s: float) -> None:
        """Open no slot any more, answer who waits (with the hash, if not decided in time), give leases back."""
        self._stopping = True
        deadline = self._clock.monotonic() + grace_s
        for dispatcher in self._dispatchers.values():
            dispatcher.stop()
        try:
            async with asyncio.timeout(max(0.0, grace_s - 1.0)):
                await self._idle.wait()
        except TimeoutError:
            self._admitter.hurry()
            self._board.wake_all()
            try:
                async with asyncio.timeout(max(0.1, deadline - self._clock.monotonic())):
                    await self._idle.wait()
            except TimeoutError:
                log.warning("engine.callers_left", callers=self._callers)
        await self._background.drain(1.0)
        if self._loops is not None:
            self._loops.cancel()
            await asyncio.wait([self._loops])
        if self._started:
            try:
                for keeper in self._keepers.values():
                    await keeper.release()
                await replicas.retire(self._db, self.replica_id)
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
            kinds=self._registry.kinds(network for network in self._registry.networks if network in served),
            extensions=(PAYMENT_IDENTIFIER,),
            signers={"eip155:*": tuple(dict.fromkeys(a for chain in self._networks.values() for a in chain.relayers))},
        )

    def verify(self, caller: Caller, payment: Payment) -> Awaitable[VerifyResult]:
        """Judge a payment without changing anything. Raises Fault, LimitReached."""
        dispatcher = self._dispatchers.get(payment.network)
        budgeted = dispatcher is not None and self._restraints.has_budget(caller.tenant.tenant_id)  # nobody else is held to what it costs
        return self._verifier.verify(caller.tenant, payment, dispatcher.need_wei() if dispatcher and budgeted else 0)

    async def settle(self, caller: Caller, payment: Payment, idempotency_key: str | None) -> SettleAnswer:
        """Settle, once (see `Admitter.settle`). Raises Fault, IdempotencyConflict, LimitReached."""
        if self._stopping:
            raise OverloadFault("draining", "this replica is stopping; ask again")
        self._callers += 1
        self._idle.clear()
        started = self._clock.monotonic()
        try:
            return await self._admitter.settle(caller, payment, idempotency_key)
        finally:
            network = payment.network if payment.network in self._networks else "other"
            series(STAGE_SECONDS, network, "total").observe(self._clock.monotonic() - started)
            self._callers -= 1
            if self._callers == 0:
                self._idle.set()

    def full(self, network: Network, coming: int) -> OverloadFault | None:
        """Why no more is begun on this network, by its queue, when `coming` more are on their way to it; None: one more may come."""
        return self._dispatchers[network].full(coming)

    def began(self, auth_nonce: AuthNonce) -> bool:
        """Whether a payment with it was begun here, not long ago: however full the queue, it is answered from its record."""
        return self._admitter.began(auth_nonce)

    async def delivered(self, ticket: Ticket) -> None:
        """The holder of `ticket` has its answer."""
        self._admitter.delivered(ticket)

    async def undelivered(self, ticket: Ticket) -> None:
        """The answer did not reach the holder of `ticket`: the slot is freed."""
        await self._admitter.undelivered(ticket)

    # --- loops ---

    async def _listen(self) -> None:
        await notifications.listen(self._db.url, self.replica_id, self._heard, self._presence.held)

    def _heard(self, channel: str, payload: str) -> None:
        if channel == "facilitator_answer":
            self._board.poke(UUID(payload))
        elif channel == "facilitator_relayers" and (keeper := self._keepers.get(Network(payload))) is not None:
            keeper.look_soon()
        elif (dispatcher := self._dispatchers.get(Network(payload))) is not None:
            dispatcher.claims.soon()

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

    async def _ask_endpoints(self, chain: ServedNetwork) -> None:
        """Which of several endpoints are behind? They are asked last."""
        settings = chain.evm.rpc.settings
        while True:
            chain.head.observe(await chain.evm.furthest_head(chain.evm.deadline_in(settings.request_timeout_s)))
            await self._clock.sleep(settings.lag_poll_s)

    async def _check(self, chain: ServedNetwork) -> None:
        """Once the chain answers, every hour, and after an upgrade: is it the right one, and are the tokens what they should be?"""
        upgrades = self._upgrades[chain.network]
        tokens = [token for token in self._registry.tokens.values() if token.network == chain.network]
        while True:
            pending = list(upgrades.found)
            try:
                deadline = chain.evm.deadline_in(_CHECK_S)
                chain.head.observe(await chain.evm.connect(deadline))
                wrong = {token.address: "; ".join(found) for token in tokens if (found := await chain.evm.token_domain(token, deadline))}
            except ConfigFault as fault:
                chain.findings = (str(fault),)
            else:
                for upgrade in pending:
                    await self._report_upgrade(chain, upgrade, wrong.get(upgrade.address))
                    upgrades.found.remove(upgrade)
                chain.findings = tuple(wrong.values()) if len(wrong) == len(tokens) else ()
                chain.withdrawn = wrong | {upgrade.address: _UNCHECKED for upgrade in upgrades.found}
                for asset, finding in wrong.items():
                    log.error("asset.withdrawn", network=chain.network, asset=asset, finding=finding)
            NETWORK_SERVED.labels(chain.network).set(not chain.findings)
            for finding in chain.findings:
                log.error("network.withdrawn", network=chain.network, finding=finding)
            await set_within(upgrades.due, 60.0 if chain.findings or chain.withdrawn else 3600.0)

    def _upgraded(self, chain: ServedNetwork, found: Sequence[Log]) -> None:
        """A token has another implementation: it is not served until it was looked at."""
        upgrades = self._upgrades[chain.network]
        upgrades.found += [upgrade for upgrade in found if upgrade not in upgrades.found]
        chain.withdrawn |= {upgrade.address: _UNCHECKED for upgrade in found}
        upgrades.due.set()

    async def _report_upgrade(self, chain: ServedNetwork, upgrade: Log, finding: str | None) -> None:
        INCIDENTS.labels("token_upgraded").inc()
        log.error("token.upgraded", network=chain.network, asset=upgrade.address, tx_hash=upgrade.tx_hash, finding=finding)
        stands = finding or "code, EIP-712 domain and decimals are as configured"
        detail = f"the token {upgrade.address} has another implementation since block {upgrade.block_number}: {stands}"
        await settlements.open_incident(self._db, chain.network, "token_upgraded", detail, tx_hash=upgrade.tx_hash)


async def _no_key(network: Network, reference: str) -> Signer:
    """For an engine that knows of no references."""
    raise ConfigFault("no_key", f"relayer {reference} of {network}: this process resolves no references")
