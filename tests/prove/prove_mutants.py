"""Bugs planted in the engine, one at a time: the crash test or the random walk must find each, and say what is wrong."""

import inspect
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from textwrap import dedent
from typing import Any

import asyncpg
import pytest

from facilitator.chain.evm import EvmClient, Sight
from facilitator.domain.states import PAID, State
from facilitator.errors import ChainFault
from facilitator.protocol.reasons import Reason
from facilitator.settlement import recovery, watcher
from facilitator.settlement.recovery import Keeper
from facilitator.settlement.relayer import Composer
from facilitator.settlement.resolver import Resolver
from facilitator.settlement.slots import Ruling
from facilitator.store import relayers, settlements
from facilitator.store.settlements import Answer
from tests.fault import test_levels, test_modes_endpoints
from tests.fault.conftest import StartScene, seed, start_scene, start_sim
from tests.fault.test_crash_everywhere import RECOVERY, SINGLE, Scene, Theatre, theatre
from tests.fault.test_model import Ground, ground
from tests.fixtures import crash
from tests.fixtures.base_sim import PretendAccepted, Rules, base_sim_before
from tests.fixtures.model import Model
from tests.prove.conftest import Tell

__all__ = ["ground", "seed", "start_scene", "start_sim", "theatre"]  # fixtures

SEEDS, RUNS, STEPS = 6, 30, 40
Plant = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True, slots=True)
class Mutant:
    """A bug, and what gives it away."""

    name: str
    plant: Plant
    seen: Sequence[str]
    """One of these stands in what the test says."""
    scene: Scene | None = None
    """Found by this scene of the crash test, else by the random walk."""
    spoil: Callable[[Model], Awaitable[None]] | None = None


def send_before_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    sign = Composer.sign

    async def sign_and_send(self: Composer, *how: Any) -> Any:
        slots = await sign(self, *how)
        for slot in slots:
            await self._chain.evm.send_raw(slot.raw, self._chain.evm.deadline_in(5.0))
        return slots

    monkeypatch.setattr(Composer, "sign", sign_and_send)


def adopt_a_lower_tx_nonce(monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite(monkeypatch, relayers.QUERIES, "raise_tx_nonce", ("greatest(next_tx_nonce, $5::bigint)", "$5::bigint"))
    source = dedent(inspect.getsource(Keeper._adopt))
    assert source.count("used = max(used, account.next_tx_nonce)\n") == 1
    exec(source.replace("used = max(used, account.next_tx_nonce)\n", "pass\n"), vars(recovery), found := {})  # noqa: S102
    monkeypatch.setattr(Keeper, "_adopt", found["_adopt"])


def ignore_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    for queries, name in (
        (settlements.QUERIES, "write_ahead"),
        (settlements.QUERIES, "dispatch_claimed"),
    ):
        fence = "and owner = $3::text and epoch = $4::bigint"
        rewrite(monkeypatch, queries, name, (fence, "and $3::text is not null and $4::bigint is not null"), ("and lease_until > now()", ""))


def take_errors_for_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    see, rule = EvmClient.see, Resolver.rule

    async def see_or_none(self: EvmClient, query: Any, tx_hashes: Any, senders: Any, deadline: float) -> Sight:
        try:
            sight = await see(self, query, tx_hashes, senders, deadline)
        except ChainFault as fault:
            return Sight(logs=(), receipts=[None] * len(tx_hashes), tx_counts=[fault] * len(senders))
        return replace(sight, receipts=[None if isinstance(each, ChainFault) else each for each in sight.receipts])

    async def ruled(self: Resolver, *what: Any, **how: Any) -> Any:
        try:
            return await rule(self, *what, **how)
        except ChainFault as fault:
            reason = Reason.TRANSACTION_FAILED
            return Ruling(state=State.FAILED, reason=reason, answer=Answer(success=False, reason=reason.name, message=str(fault)))

    monkeypatch.setattr(EvmClient, "see", see_or_none)
    monkeypatch.setattr(Resolver, "rule", ruled)


def tell_below_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (watcher, settlements):
        monkeypatch.setattr(module, "deep_enough", lambda state, level, *, closed=False: state in PAID)  # noqa: ARG005


def believe_the_first_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    witnesses = EvmClient.witnesses
    monkeypatch.setattr(EvmClient, "witnesses", lambda self: witnesses(self)[:1])


def no_code_change(_: pytest.MonkeyPatch) -> None:
    """The bug is in the database."""


async def drop_the_unique_key(model: Model) -> None:
    connection = await asyncpg.connect(model.database_url)
    try:
        await connection.execute("alter table settlement drop constraint settlement_authorization")
    finally:
        await connection.close()


async def below_the_level(start_scene: StartScene) -> None:
    scene = await start_scene(chain={"automine": False, "slots_in_an_epoch": 2})
    await scene.sim.mine(6)
    await test_levels.test_below_its_level_a_payment_is_pending_with_its_hash_and_the_repeat_hears_the_truth(scene, "safe", "the default")


async def one_endpoint_lies(start_scene: StartScene) -> None:
    scene = await start_scene()
    async with base_sim_before(scene.sim.upstream.url, rules=Rules(pool=False)) as honest:
        honest.plant(PretendAccepted(method="eth_sendRawTransaction"))
        await test_modes_endpoints.test_mode_37_a_failure_that_one_endpoint_invents_is_none_while_another_denies_it(scene, honest)


async def an_endpoint_is_silent(start_scene: StartScene) -> None:
    scene = await start_scene()
    async with base_sim_before(scene.sim.upstream.url, rules=Rules(pool=False)) as honest:
        honest.plant(PretendAccepted(method="eth_sendRawTransaction"))
        await test_modes_endpoints.test_mode_37_nothing_is_decided_while_an_endpoint_that_should_know_does_not_answer(scene, honest)


def rewrite(monkeypatch: pytest.MonkeyPatch, queries: dict[str, Any], name: str, *changes: tuple[str, str]) -> None:
    """Put another statement in a query's place."""
    sql = queries[name].sql
    for old, new in changes:
        assert old in sql, f"{name} does not hold {old!r}"
        sql = sql.replace(old, new)
    monkeypatch.setitem(queries, name, replace(queries[name], sql=sql))
    monkeypatch.setitem(crash._NAMES, sql, name)


SCENARIOS: list[tuple[Mutant, Callable[[StartScene], Awaitable[None]]]] = [
    (Mutant("success below the level asked for", tell_below_the_level, ["SETTLEMENT_PENDING"]), below_the_level),
    (Mutant("take an error for absence", take_errors_for_absence, ["in vain for questions to the second endpoint"]), an_endpoint_is_silent),
    (Mutant("believe the first endpoint", believe_the_first_endpoint, ["in vain for the lie to be found out"]), one_endpoint_lies),
]
CRASHES = [
    Mutant("skip the commit before sending", send_before_the_commit, ["was sent and is not on record"], scene=SINGLE),
    Mutant("adopt a lower tx_nonce", adopt_a_lower_tx_nonce, ["goes on at", "has a gap"], scene=RECOVERY),
]
WALKS = [
    Mutant("skip the commit before sending", send_before_the_commit, ["is not on record"]),
    Mutant("drop the unique key", no_code_change, ["1: two settlements of one authorization"], spoil=drop_the_unique_key),
    Mutant("adopt a lower tx_nonce", adopt_a_lower_tx_nonce, ["6: next_tx_nonce fell", "relayer_slot_nonce", "10: ", "failed with a bug"]),
    Mutant("ignore the epoch", ignore_the_epoch, ["10: "]),
]


@pytest.mark.parametrize(("mutant", "play"), SCENARIOS, ids=lambda each: getattr(each, "name", ""))
async def test_a_scenario_finds_a_planted_bug(
    start_scene: StartScene, monkeypatch: pytest.MonkeyPatch, mutant: Mutant, play: Callable[[StartScene], Awaitable[None]], tell: Tell
) -> None:
    mutant.plant(monkeypatch)
    with pytest.raises(AssertionError) as raised:
        await play(start_scene)
    said = f"{raised.traceback[-1].statement} {raised.value}"
    assert any(sign in said for sign in mutant.seen), said
    tell(f"| {mutant.name} | {play.__name__} | | {said.splitlines()[0][:160]} |")


@pytest.mark.parametrize("mutant", CRASHES, ids=lambda mutant: mutant.name)
async def test_the_crash_test_finds_a_planted_bug(theatre: Theatre, monkeypatch: pytest.MonkeyPatch, mutant: Mutant, tell: Tell) -> None:
    mutant.plant(monkeypatch)
    assert mutant.scene is not None
    with pytest.raises(AssertionError) as raised:
        await theatre.die_at(mutant.scene, await theatre.points(mutant.scene))
    assert any(sign in str(raised.value) for sign in mutant.seen), raised.value
    tell(f"| {mutant.name} | crash test, {mutant.scene.name} | run {theatre.runs} | {str(raised.value).splitlines()[0][:160]} |")


@pytest.mark.parametrize("mutant", WALKS, ids=lambda mutant: mutant.name)
def test_the_random_walk_finds_a_planted_bug(ground: Ground, monkeypatch: pytest.MonkeyPatch, mutant: Mutant, tell: Tell) -> None:
    mutant.plant(monkeypatch)
    ground.spoil = mutant.spoil
    started = time.monotonic()
    for number in range(1, SEEDS + 1):
        try:
            ground.walk(number, RUNS, STEPS)
        except Exception:  # what broke first is told by the ground
            if not ground.broken:
                raise
        if ground.broken:
            break
    assert ground.broken, f"not found in {ground.steps.total()} steps"
    assert any(sign in ground.broken[0] for sign in mutant.seen), ground.broken[0]
    took_s = time.monotonic() - started
    first = ground.broken[0].splitlines()[0][:160]
    tell(f"| {mutant.name} | random walk, seed {number} | step {ground.steps.total()}, {took_s:.0f} s | {first} |")
