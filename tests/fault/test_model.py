"""A random walk through everything that may befall two or three engines, held against what must hold at every step and in the end.

Real Postgres, a real chain behind a proxy with Base's manners. `FACILITATOR_SEED` repeats the choices, though not the timing;
`make prove` walks farther.
"""

import asyncio
import os
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from facilitator.devstack.stack import Anvil, Postgres
from tests.fixtures.base_sim import BaseSim, Fault, Stale
from tests.fixtures.base_sim.strategies import read_faults, send_faults
from tests.fixtures.crash import own_tasks
from tests.fixtures.jumping import JumpingLoop, LoopClock
from tests.fixtures.model import ENGINES, REORG_MAX, Model

RUNS, STEPS = 10, 30
AGAIN = "FACILITATOR_SEED={seed} .venv/bin/python -m pytest tests/fault/test_model.py"
ENGINE = st.integers(0, ENGINES - 1)
IOS = st.integers(1, 12)
SCARCE_WEI = 2 * 10**14
"""Pays for one transaction at a time, or for a few."""
BILL = st.integers(0, 7)
"""Of the last so many."""
KEYS = st.sampled_from([None, None, "key-1", "key-2"])


@dataclass(slots=True)
class Ground:
    """Where walks take place: one chain, and a database for each walk."""

    anvil: Anvil
    postgres: Postgres
    template: str
    spoil: Callable[[Model], Awaitable[None]] | None = None
    again: str = AGAIN
    """The command that repeats a walk."""
    walks: int = 0
    steps: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    """What broke, as it was first seen."""
    broken_at: int = 0
    """After so many steps."""

    def walk(self, seed: int, runs: int, steps: int) -> None:
        """Walk so many times so many steps. Raises what broke."""

        class Machine(Walk):
            ground = self

        quiet = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.large_base_example, HealthCheck.data_too_large]
        choices = settings(
            max_examples=runs,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=quiet,
            report_multiple_bugs=False,
        )
        try:
            run_state_machine_as_test(seeded(seed)(Machine), settings=choices)
        except Exception as error:  # that the same steps broke otherwise the second time hides what broke first
            if not self.broken:
                raise
            what = f"seed {seed}, walk {self.walks}, step {self.broken_at or self.steps.total()}: {self.broken[0]}"
            raise AssertionError(f"{what}\nagain: {self.again.format(seed=seed)}") from error
        self.tell(seed)

    def tell(self, seed: int) -> None:
        """How far it went."""
        print(f"seed {seed}: {self.walks} walks, {self.steps.total()} steps: {dict(self.steps)}")  # noqa: T201


class Walk(RuleBasedStateMachine):
    """One walk. Steps run on a loop of its own; between them the engines stand still."""

    ground: ClassVar[Ground]

    def __init__(self) -> None:
        super().__init__()
        self.loop = JumpingLoop()
        self.model: Model | None = None
        self.sim: BaseSim | None = None
        self.name = ""
        self.failed = False

    def do(self, step: str, work: Awaitable[Any] | None = None) -> None:
        """One step, and a moment for the engines."""
        self.ground.steps[step] += 1

        async def done() -> None:
            if work is not None:
                await work
            assert self.model is not None
            await self.model.spin()

        self._run(done())

    def _run(self, work: Any) -> Any:
        try:
            return self.loop.run_until_complete(work)
        except BaseException as error:
            self.failed = True
            self.ground.broken.append(f"{type(error).__name__}: {error}")
            self.ground.broken_at = self.ground.broken_at or self.ground.steps.total()
            raise

    @initialize(engines=st.sampled_from([2, 2, ENGINES]))
    def begin(self, engines: int) -> None:
        self._run(self._begin(engines))

    async def _begin(self, engines: int) -> None:
        ground = self.ground
        ground.walks += 1
        self.name = f"model_{os.getpid()}_{id(ground)}_{ground.walks}"
        url = await ground.postgres.create_database(self.name, ground.template)
        self.sim = BaseSim(ground.anvil.rpc_url, clock=LoopClock())
        await self.sim.start()
        self.model = Model(self.sim, url, ground.spoil, engines)
        self._own = own_tasks()
        self._own.__enter__()
        await self.model.open()

    @property
    def here(self) -> Model:
        assert self.model is not None
        return self.model

    def bill(self, back: int) -> int:
        return max(0, len(self.here.bills) - 1 - back)

    async def _now(self, act: Callable[[], object]) -> None:
        act()

    # --- callers ---

    @rule(engine=ENGINE, buyer=st.integers(0, 2), times=st.sampled_from([1, 1, 1, 4]))
    def submit(self, engine: int, buyer: int, times: int) -> None:
        self.do("submit", self._now(lambda: [self.here.submit(engine, buyer) for _ in range(times)]))

    @rule()
    def all_pay(self) -> None:
        """Without a choice, and first by its name: what Hypothesis does most of."""

        async def pay() -> None:
            for buyer in range(3):
                self.here.submit(buyer, buyer)
            await self.here.spin()
            await self.here.sim.mine()

        self.do("all pay", pay())

    @rule(engine=ENGINE, buyer=st.integers(0, 2), blocks=st.integers(1, 3))
    def pay(self, engine: int, buyer: int, blocks: int) -> None:
        async def pay() -> None:
            self.here.submit(engine, buyer)
            for _ in range(blocks):
                await self.here.spin()
                await self.here.sim.mine()

        self.do("pay", pay())

    @rule(buyer=st.integers(0, 2))
    def race(self, buyer: int) -> None:
        """The same new payment in both engines at once."""

        def ask() -> None:
            self.here.submit(0, buyer)
            self.here.ask(1, len(self.here.bills) - 1, None)

        self.do("race", self._now(ask))

    @rule(engine=ENGINE, buyer=st.integers(0, 2))
    def withhold_receipts(self, engine: int, buyer: int) -> None:
        self.do("withhold receipts", self.here.withhold_receipts(engine, buyer))

    @rule(engine=ENGINE, buyer=st.integers(0, 2))
    def pay_while_one_dies(self, engine: int, buyer: int) -> None:
        async def pay() -> None:
            self.here.submit(engine, buyer)
            await self.here.spin()
            self.here.kill(engine, 1)
            await self.here.sim.mine()
            await self.here.revive(engine)

        self.do("pay and die", pay())

    @precondition(lambda self: self.model and self.model.bills)
    @rule(engine=ENGINE, back=BILL, key=KEYS, arrives=st.sampled_from([True, True, False]))
    def duplicate(self, engine: int, back: int, key: str | None, arrives: bool) -> None:  # noqa: FBT001
        self.do("duplicate", self._now(lambda: self.here.ask(engine, self.bill(back), key, arrives=arrives)))

    @precondition(lambda self: self.model and self.model.bills)
    @rule(engine=ENGINE, back=BILL, change=st.sampled_from([{"amount": "99"}, {"amount": "101"}, {"payTo": "0x" + "22" * 20}]))
    def mutate(self, engine: int, back: int, change: dict[str, str]) -> None:
        self.do("mutate", self._now(lambda: self.here.ask(engine, self.bill(back), None, **change)))

    @rule(engine=ENGINE, buyer=st.integers(0, 2))
    def expire(self, engine: int, buyer: int) -> None:
        self.do("expire", self.here.expire(engine, buyer))

    @rule()
    def hang_up(self) -> None:
        self.do("hang up", self._now(self.here.hang_up))

    # --- the chain ---

    @rule(blocks=st.integers(1, 2))
    def mine(self, blocks: int) -> None:
        self.do("mine", self.here.sim.mine(blocks))

    @rule(depth=st.integers(1, REORG_MAX))
    def reorganise(self, depth: int) -> None:
        self.do("reorganise", self.here.reorganise(depth))

    @rule()
    def evict(self) -> None:
        self.do("evict", self.here.evict())

    @precondition(lambda self: self.model and self.model.bills)
    @rule(back=BILL)
    def front_run(self, back: int) -> None:
        self.do("front-run", self.here.front_run(self.bill(back)))

    @precondition(lambda self: self.model and self.model.bills)
    @rule(back=BILL)
    def cancel(self, back: int) -> None:
        self.do("cancel", self.here.cancel(self.bill(back)))

    @rule(blocks=st.integers(1, REORG_MAX), sealed=st.booleans())
    def flashblocks(self, blocks: int, sealed: bool) -> None:  # noqa: FBT001
        self.do("flashblocks", self.here.flashblocks(blocks, sealed=sealed))

    @rule(gwei=st.sampled_from([1, 10, 100]))
    def spike_fee(self, gwei: int) -> None:
        """Up to ten times as much as is ever bid."""
        self.do("spike fee", self.here.spike_fee(gwei * 10**9))

    @rule(party=st.integers(0, 3), blacklisted=st.sampled_from([True, False, False]))
    def blacklist(self, party: int, blacklisted: bool) -> None:  # noqa: FBT001
        self.do("blacklist", self.here.blacklist(party, blacklisted=blacklisted))

    @rule(paused=st.sampled_from([True, False, False]))
    def pause_token(self, paused: bool) -> None:  # noqa: FBT001
        self.do("pause token", self.here.pause_token(paused=paused))

    @rule(relayer=st.integers(0, 1), wei=st.sampled_from([0, SCARCE_WEI, 10**19]))
    def drain(self, relayer: int, wei: int) -> None:
        self.do("drain", self.here.drain(relayer, wei))

    @rule(fault=send_faults(times=2))
    def lose_sends(self, fault: Fault) -> None:
        self.do("lose sends", self._now(lambda: self.here.sim.plant(fault)))

    @rule(fault=read_faults(times=2))
    def lie(self, fault: Fault) -> None:
        self.do("lie", self._now(lambda: self.here.sim.plant(fault)))

    @rule(blocks=st.integers(1, REORG_MAX), times=st.integers(1, 6))
    def stale(self, blocks: int, times: int) -> None:
        self.do("stale", self._now(lambda: self.here.sim.plant(Stale(blocks, times=times))))

    # --- engines ---

    @rule(engine=ENGINE, ios=IOS)
    def kill(self, engine: int, ios: int) -> None:
        self.do("kill", self._now(lambda: self.here.kill(engine, ios)))

    @rule(engine=ENGINE, ios=IOS)
    def pause(self, engine: int, ios: int) -> None:
        self.do("pause", self._now(lambda: self.here.pause(engine, ios)))

    @rule(engine=ENGINE)
    def outlive(self, engine: int) -> None:
        self.do("outlive", self.here.outlive(engine))

    @rule(engine=ENGINE)
    def resume(self, engine: int) -> None:
        self.do("resume", self._now(lambda: self.here.resume(engine)))

    @rule(engine=ENGINE, buyer=st.integers(0, 2))
    def zombie(self, engine: int, buyer: int) -> None:
        self.do("zombie", self.here.stand_before_writing(engine, buyer))

    @rule(engine=ENGINE)
    def revive(self, engine: int) -> None:
        self.do("revive", self.here.revive(engine))

    # --- the ledger ---

    @precondition(lambda self: self.model and not self.model.restored)
    @rule()
    def remember(self) -> None:
        self.do("remember", self.here.remember())

    @precondition(lambda self: self.model and self.model.bookmark is not None)
    @rule()
    def lose_commits(self) -> None:
        self.do("lose commits", self.here.lose_commits())

    # --- what must hold ---

    @invariant()
    def holds(self) -> None:
        if self.model is not None:
            self._run(self.model.check_always())

    def teardown(self) -> None:
        try:
            if self.model is not None and not self.failed:
                self._run(self.model.calm())
        finally:
            self.loop.run_until_complete(self._end())
            self.loop.close()

    async def _end(self) -> None:
        if self.model is not None:
            await self.model.close()
            self._own.__exit__(None, None, None)
        if self.sim is not None:
            await self.sim.stop()
        if self.name:
            await self.ground.postgres.drop_database(self.name)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


@pytest.fixture(scope="module")
def seed() -> int:
    """Printed when a test fails, and on demand with -s."""
    seed = int(os.environ.get("FACILITATOR_SEED") or secrets.randbelow(2**32))
    print(f"FACILITATOR_SEED={seed}")  # noqa: T201
    return seed


@pytest_asyncio.fixture
async def ground(start_chain: Callable[..., Awaitable[Anvil]], postgres: Postgres, database_template: str) -> AsyncIterator[Ground]:
    yield Ground(await start_chain(automine=False, slots_in_an_epoch=2), postgres, database_template)


def test_what_must_hold_holds_whatever_befalls_the_engines(ground: Ground, seed: int) -> None:
    ground.walk(seed, RUNS, STEPS)
