"""Death at every I/O: a settlement is run once to count its I/O, then once for each of them and each side of it.

An engine dies before an I/O happens, or after it happened and before its result is seen; another takes over on the same
database and the same chain, and clients ask again until they have a final answer. Each run ends in the oracle. Here a share of
each scene's points; `FACILITATOR_SEED` says which, and `make prove` runs them all.
"""

import asyncio
import os
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from facilitator.devstack.accounts import dev_account
from facilitator.devstack.buyer import Buyer, requirements
from facilitator.devstack.stack import Anvil, Postgres
from facilitator.devstack.token import Token
from facilitator.protocol.messages import Payment
from facilitator.protocol.reasons import Reason
from tests.fixtures.base_sim import BaseSim, RawTransaction
from tests.fixtures.crash import Io, Moment, Point, own_tasks
from tests.fixtures.oracle import assert_ledger_is_chain
from tests.fixtures.succession import BUDGETED, TENANT, Succession, decoded, finalized, prepare
from tests.fixtures.wallets import install_factory, undeployed

AMOUNT = 1_000
DOOMED_S = 40
AGAIN_MAX = 3
"""How often a point is tried whose I/O did not come: polls come or not, as the clock has it."""
RIVAL = dev_account("rival").address


@dataclass(frozen=True, slots=True)
class Scene:
    """What is settled while engines die."""

    name: str
    payments: int = 1
    settings: dict[str, Any] = field(default_factory=dict)
    early: bool = False
    """The payment comes before its relayer is ready: by the queue in Postgres."""
    beaten: bool = False
    """Somebody else uses the authorization just before our transaction reaches the chain."""
    first: Point | None = None
    """Another engine died here before."""
    blocks: bool = False
    """Blocks come all the time."""
    withheld: bool = False
    """The first bid at each tx_nonce gets into no block."""
    doomed: bool = False
    """The first payment's time runs out while it is in the way of the others."""
    reorganised: bool = False
    """The block that paid is replaced by an empty one after the success was told."""
    standby: bool = False
    """Another replica runs all the time."""
    wallet: bool = False
    """A smart wallet pays that the transaction deploys first."""
    stopped: bool = False
    """The engine is told to stop when it sends, and the next block comes later."""
    evidence: str = ""
    """Finds a row when nobody dies: what the scene is about has happened."""


SINGLE = Scene("single")
QUEUED = Scene("queued", early=True)
BEATEN = Scene("beaten", beaten=True)
RECOVERY = Scene("recovery", first=Point(Io("write_ahead", 1), "after"))
SHARED = "select from relayer_slot where kind = 'batch'"
BATCH = Scene("batch", payments=8, settings={"batch_min": 1, "linger_ms": 30}, evidence=SHARED)
BATCH_RECOVERY = Scene("batch_recovery", payments=8, settings=BATCH.settings, first=RECOVERY.first, evidence=SHARED)
SWIFT = {"resend_s": 0.05, "bump_blocks": 1}
BUMP = Scene("bump", settings=SWIFT, withheld=True, evidence="select from relayer_transaction where purpose = 'bump'")
WALLET = Scene(
    "wallet",
    settings=SWIFT,
    wallet=True,
    withheld=True,
    evidence="select from relayer_slot join relayer_transaction using (slot_id) where kind = 'contract_payer' and purpose = 'bump'",
)
NOOP = Scene(
    "noop",
    payments=2,
    settings={**SWIFT, "batching": "off"},
    doomed=True,
    evidence="select from relayer_transaction where purpose = 'noop'",
)
KEEPS = {"lease_renew_s": 0.2}
REORG = Scene("reorg", settings=KEEPS, reorganised=True, evidence="select from incident where kind = 'reorganised'")
TAKE_OVER = Scene("take_over", settings=KEEPS, standby=True)
SHUTDOWN = Scene("shutdown", stopped=True)
FINAL = Scene("final", settings={"confirm_level": "finalized", "finality_poll_s": 0.1, "bump_blocks": 10_000}, blocks=True)
SCENES = {
    scene.name: scene for scene in (SINGLE, QUEUED, BEATEN, RECOVERY, BATCH, BATCH_RECOVERY, BUMP, WALLET, NOOP, REORG, TAKE_OVER, SHUTDOWN)
}


class OffTheScriptError(AssertionError):
    """All went well, but what the scene is about did not happen."""


@dataclass(slots=True)
class Theatre:
    """Where scenes are played: one chain, and a database and accounts of its own for each run."""

    anvil: Anvil
    token: Token
    postgres: Postgres
    template: str
    runs: int = 0

    async def play(self, scene: Scene, *fuses: Point) -> Succession:
        """Play a scene to its end, and ask the oracle."""
        self.runs += 1
        number = os.getpid() * 10_000 + self.runs
        relayer, pay_to = dev_account("crash-relayer", number), dev_account("crash-seller", number).address
        await self.token.set_gas_money(relayer.address, 10**19)
        payments, raw = await self._payments(scene, number, pay_to)
        name = f"crash_{number}"
        database_url = await self.postgres.create_database(name, self.template)
        try:
            tenant = BUDGETED if scene.wallet else TENANT
            await prepare(database_url, tenant)
            async with self._world(scene, raw) as rpc_url:
                succession = Succession(
                    database_url,
                    rpc_url,
                    relayer,
                    ([scene.first] if scene.first else []) + list(fuses),
                    settings=scene.settings,
                    tenant=tenant,
                    standby=scene.standby,
                    stop_at_send=scene.stopped,
                    wait_until_ready=not scene.early,
                    before_send=self._rival(raw[0]) if scene.beaten else None,
                )
                await succession.settle(payments, self._final(scene, succession))
            await self._judge(scene, succession, database_url, pay_to)
        finally:
            await self.postgres.drop_database(name)
        return succession

    async def _payments(self, scene: Scene, number: int, pay_to: str) -> tuple[list[Payment], list[dict[str, Any]]]:
        buyer = undeployed(number) if scene.wallet else Buyer(dev_account("crash-buyer", number))
        if scene.wallet:
            await install_factory(self.anvil.node)
        await self.token.mint(buyer.address, scene.payments * AMOUNT)
        terms = requirements(2, pay_to=pay_to, amount_atomic=AMOUNT, maxTimeoutSeconds=10**7)
        raw = [buyer.pay(2, terms) for _ in range(scene.payments)]
        if scene.doomed:
            raw[0] = buyer.pay(2, terms, valid_before=await self._chain_time() + DOOMED_S)
        return [decoded(payment, terms) for payment in raw], raw

    async def _chain_time(self) -> int:
        head: Any = await self.anvil.node.call("eth_getBlockByNumber", "latest", False)
        return max(int(head["timestamp"], 16), int(time.time()))

    @asynccontextmanager
    async def _world(self, scene: Scene, raw: list[dict[str, Any]]) -> AsyncIterator[str]:
        """What goes on beside the engines. Where the chain is."""
        async with AsyncExitStack() as stack:
            url, work = self.anvil.rpc_url, None
            if scene.blocks:
                work = self._every(0.3, lambda: self.anvil.node.call("evm_mine"))
            elif scene.withheld:
                sim = await stack.enter_async_context(BaseSim(url))
                sim.pool.hold = _first_bids()
                url, work = sim.url, self._every(0.05, sim.mine)
            elif scene.doomed:
                sim = await stack.enter_async_context(BaseSim(url))
                url, work = sim.url, self._run_out(sim, raw[0])
            elif scene.stopped:
                await self.anvil.node.call("evm_setAutomine", False)
                stack.push_async_callback(self.anvil.node.call, "evm_setAutomine", True)
                work = self._every(0.8, lambda: self.anvil.node.call("evm_mine"))
            if work is not None:
                task = asyncio.create_task(work)
                stack.push_async_callback(_end, task)
            yield url

    async def _every(self, seconds: float, mine: Callable[[], Awaitable[object]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            await mine()

    async def _run_out(self, sim: BaseSim, doomed: dict[str, Any]) -> None:
        """All wait in the pool until the first payment's time is over; then its transaction stays there while others wait behind it."""
        signed = doomed["payload"]["authorization"]
        sim.pool.hold = lambda transaction: True  # noqa: ARG005
        while len(sim.pool.pending()) < NOOP.payments:
            await asyncio.sleep(0.005)
        await self.anvil.node.call("evm_setNextBlockTimestamp", int(signed["validBefore"]) + 1)

        def in_the_way(transaction: RawTransaction) -> bool:
            behind = any(other.tx_nonce > transaction.tx_nonce for other in sim.pool.pending(transaction.sender))
            return behind and bytes.fromhex(signed["nonce"][2:]) in transaction.data

        sim.pool.hold = in_the_way
        await self._every(0.05, sim.mine)

    def _final(self, scene: Scene, succession: Succession) -> Callable[[Any], Coroutine[Any, Any, bool]]:
        """Everything is final, for the living engine too."""
        undone = False

        async def final(engine: Any) -> bool:
            nonlocal undone
            if scene.reorganised and not undone:
                undone = True
                await self.anvil.node.call("anvil_reorg", 1, [])
            await finalized(engine)
            if not await succession.nothing_open():
                await asyncio.sleep(0.02)
                return False
            await self.anvil.node.call("anvil_mine", "0x4")
            return await finalized(engine)

        return final

    def _rival(self, payment: dict[str, Any]) -> Callable[[str], Coroutine[Any, Any, None]]:
        """Use the authorization once, when the first transaction is about to be sent."""
        signed, signature = payment["payload"]["authorization"], payment["payload"]["signature"]
        numbers = [int(signed[name]) for name in ("value", "validAfter", "validBefore")]
        arguments = [signed["from"], signed["to"], *numbers, bytes.fromhex(signed["nonce"][2:]), bytes.fromhex(signature[2:])]

        async def use(_: str) -> None:
            if not await self.token.authorization_used(signed["from"], signed["nonce"]):
                await self.token.set_gas_money(RIVAL, 10**19)
                await self.token.transact(
                    RIVAL, "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)", *arguments
                )

        return use

    async def _judge(self, scene: Scene, succession: Succession, database_url: str, pay_to: str) -> None:
        """Paid once or truthfully failed, told so, nothing lost."""
        assert len(succession.heard) == scene.payments
        settled = 0 if scene.beaten else scene.payments - scene.doomed
        paid_atomic = await self.token.balance_of(pay_to)
        assert paid_atomic == (settled or scene.payments) * AMOUNT, f"{paid_atomic} paid"
        reasons = Counter(result.refusal.reason if result.refusal else None for result in succession.heard)
        expected = {None, Reason.DUPLICATE_SETTLEMENT, *([Reason.EXPIRED] if scene.doomed else [])}
        assert set(reasons) <= ({Reason.SETTLEMENT_EXTERNAL} if scene.beaten else expected), reasons
        bare = [result.refusal.reason if result.refusal else None for result in succession.heard if not result.tx_hash]
        afresh = [Reason.EXPIRED] if scene.doomed and len(succession.lives) > 1 else []  # judged again after a death
        assert bare in ([], afresh), succession.heard
        if scene.evidence and not any(life.fuse for life in succession.lives if life.fuse != scene.first):
            connection = await asyncpg.connect(database_url)
            try:
                if not await connection.fetchval(f"select exists ({scene.evidence})"):
                    raise OffTheScriptError(f"{scene.name}: not what it is about")
            finally:
                await connection.close()
        report = await assert_ledger_is_chain(database_url, self.anvil.rpc_url, settled=settled)
        assert report.transfers == settled

    async def points(self, scene: Scene) -> list[Point]:
        """Every point of a scene, from a run in which nobody (else) dies."""
        for left in reversed(range(AGAIN_MAX)):
            try:
                succession = await self.play(scene)
                break
            except OffTheScriptError:  # on a busy machine a block may come before what the scene waits for
                if not left:
                    raise
        found = [Point(io, moment) for io in succession.seen for moment in ("before", "after")]
        kinds = Counter(io.name for io in succession.seen)
        print(f"{scene.name}: {len(found) // 2} I/Os, {len(found)} points: {dict(kinds)}")  # noqa: T201
        return found

    async def die_at(self, scene: Scene, points: list[Point]) -> None:
        """Play the scene once for each point. Fails when one fails, after the others."""
        started, missed, failed = time.monotonic(), [], []
        for point in points:
            for _ in range(AGAIN_MAX):
                try:
                    succession = await self.play(scene, point)
                except Exception as error:  # noqa: BLE001 - told below, with its point
                    failed.append(f"{point}: {type(error).__name__}: {error}")
                    break
                if not succession.unburnt:
                    break
            else:
                missed.append(str(point))
        print(  # noqa: T201
            f"{scene.name}: {len(points)} points, {len(failed)} failed, {len(missed)} whose I/O did not come again {missed},"
            f" {time.monotonic() - started:.0f} s"
        )
        assert failed == [], "\n".join(failed)
        assert len(missed) <= max(2, len(points) // 10), missed  # polls, on a busy machine


def _first_bids() -> Callable[[RawTransaction], bool]:
    """Of each tx_nonce, the transaction that was seen first."""
    first: dict[tuple[str, int], str] = {}
    return lambda transaction: first.setdefault((transaction.sender, transaction.tx_nonce), transaction.tx_hash) == transaction.tx_hash


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


@pytest.fixture(scope="module")
def seed() -> int:
    """Printed when a test fails, and on demand with -s."""
    seed = int(os.environ.get("FACILITATOR_SEED") or secrets.randbelow(2**32))
    print(f"FACILITATOR_SEED={seed}")  # noqa: T201
    return seed


@pytest_asyncio.fixture
async def theatre(start_chain: Callable[..., Awaitable[Anvil]], postgres: Postgres, database_template: str) -> AsyncIterator[Theatre]:
    anvil = await start_chain(slots_in_an_epoch=1)
    with own_tasks():
        yield Theatre(anvil, Token.at(anvil.rpc_url), postgres, database_template)


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("single", 3),
        ("queued", 6),
        ("beaten", 6),
        ("recovery", 6),
        ("batch", 8),
        ("batch_recovery", 12),
        ("bump", 25),
        ("wallet", 25),
        ("noop", 25),
        ("reorg", 25),
        ("take_over", 25),
        ("shutdown", 25),
    ],
)
async def test_an_engine_that_dies_at_an_io_loses_and_repeats_nothing(theatre: Theatre, seed: int, name: str, share: int) -> None:
    points = await theatre.points(SCENES[name])
    await theatre.die_at(SCENES[name], points[seed % share :: share])


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("statement", ["resolve", "unfinal_blocks", "make_safe", "finalize", "spend_answer"])
async def test_an_engine_that_dies_on_the_way_to_the_confirm_level_loses_and_repeats_nothing(
    theatre: Theatre, statement: str, when: Moment
) -> None:
    succession = await theatre.play(FINAL, Point(Io(statement, 1), when))
    assert succession.unburnt == [], f"{statement} did not come"
