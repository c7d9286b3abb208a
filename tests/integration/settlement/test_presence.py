"""Who dies is missed by its connection, long before its heartbeat and its leases run out."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from eth_account.signers.local import LocalAccount

from facilitator.clock import Clock, SystemClock
from facilitator.devstack.stack import Anvil
from facilitator.settlement import presence
from facilitator.settlement.presence import GONE_S, Presence
from facilitator.settlement.settings import Settings
from facilitator.store import replicas
from facilitator.store.db import Db
from tests.fixtures.waiting import PATIENCE_S
from tests.integration.settlement.conftest import NETWORK, Rig, decoded
from tests.integration.settlement.test_engine import NewBuyer, StartEngine, reason, terms
from tests.integration.settlement.test_relayers import held, until

NewRelayer = Callable[..., Awaitable[LocalAccount]]

LASTING = {"lease_ttl_s": 3600.0, "lease_trust_s": 3000.0}
"""Nobody's lease or heartbeat runs out."""


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that were just started miss others at once."""
    monkeypatch.setattr(presence, "_SETTLED_S", 0.0)


async def present(rig: Rig) -> None:
    """Until its heartbeat says that it holds its presence."""
    async with asyncio.timeout(PATIENCE_S):
        while not (await rig.fetch("select present from replica where replica_id = $1", rig.engine.replica_id))[0]["present"]:
            await asyncio.sleep(0.02)


async def kill(rig: Rig) -> None:
    """It gives nothing back and says nothing; its connections close, as the kernel closes those of a process."""
    assert rig.engine._loops is not None
    rig.engine._loops.cancel()
    await asyncio.wait([rig.engine._loops])


# --- engines ---


async def test_the_relayers_of_one_that_died_are_taken_though_their_leases_last(start_engine: StartEngine, new_relayer: NewRelayer) -> None:
    keys = [await new_relayer() for _ in range(4)]
    first, second = [await start_engine(relayers=keys, ready=False, **LASTING) for _ in range(2)]
    await until(lambda: (held(first), held(second)) == (2, 2))
    await asyncio.gather(present(first), present(second))

    await kill(first)

    await until(lambda: held(second) == 4)
    rows = await second.fetch("select replica_id, present, seen_at = '-infinity' as buried from replica order by seen_at")
    assert [tuple(row) for row in rows] == [(first.engine.replica_id, False, True), (second.engine.replica_id, True, False)]


async def test_who_asks_again_after_a_death_is_answered_by_the_survivor(
    start_engine: StartEngine, new_buyer: NewBuyer, new_relayer: NewRelayer, chain: Anvil
) -> None:
    """The survivor looks of itself once an hour: it is the caller who makes it look."""
    await chain.node.call("evm_setAutomine", False)
    relayer = await new_relayer()
    first = await start_engine(relayers=[relayer], **LASTING)
    await present(first)
    second = await start_engine(relayers=[relayer], ready=False, **LASTING | {"lease_renew_s": 2_000.0})
    await until(lambda: second.engine._presence._since is not None)
    buyer, asked = await new_buyer(), terms()
    payment = decoded(buyer.pay(2, asked), asked)
    lost = asyncio.create_task(first.engine.settle(first.caller(), payment, None))
    while not await second.fetch("select from settlement where state = 'submitted'"):
        await asyncio.sleep(0.02)
    await kill(first)
    await chain.node.call("evm_mine")
    await chain.node.call("evm_setAutomine", True)

    async with asyncio.timeout(PATIENCE_S):
        answer = await second.engine.settle(second.caller(), payment, None)

    assert reason(answer) is None
    assert answer.result.tx_hash is not None
    assert held(second) == 1
    lost.cancel()


async def test_a_live_one_whose_connection_is_cut_has_it_again_and_keeps_its_relayers(
    start_engine: StartEngine, new_relayer: NewRelayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "GONE_S", 3600.0)  # however slow this machine is
    first = await start_engine(relayers=[await new_relayer()], **LASTING)
    await present(first)
    [cut] = await first.fetch(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where application_name = 'facilitator-listen' and datname = current_database()"
    )
    assert cut[0]
    mine = first.engine._presence
    since = mine._since
    await until(lambda: mine._since not in {None, since})

    assert await replicas.missing(first.db, "another", 3600.0) == []
    [row] = await first.fetch("select epoch, owner from relayer")
    assert (row["epoch"], row["owner"]) == (1, first.engine.replica_id)


async def test_one_that_was_buried_alive_pays_on(start_engine: StartEngine, new_buyer: NewBuyer, new_relayer: NewRelayer) -> None:
    first = await start_engine(relayers=[await new_relayer()], **LASTING)
    await first.fetch("update replica set seen_at = '-infinity', present = false")
    await first.fetch("update relayer set lease_until = now()")

    buyer, asked = await new_buyer(), terms()
    assert reason(await first.engine.settle(first.caller(), decoded(buyer.pay(2, asked), asked), None)) is None

    await present(first)
    [row] = await first.fetch("select owner, lease_until > now() as leased from relayer")
    assert tuple(row) == (first.engine.replica_id, True)


# --- looks ---


class Replica:
    """A replica as it stands on record, with a connection of its own that may hold its presence."""

    def __init__(self, db: Db, database_url: str) -> None:
        self._db = db
        self._database_url = database_url
        self._connections: list[asyncpg.Connection[Any]] = []

    async def speaks(self, replica_id: str, *, present: bool = True, holds: bool) -> None:
        await replicas.heartbeat(self._db, replica_id, [NETWORK], present=present)
        if holds:
            connection = await asyncpg.connect(self._database_url)
            self._connections.append(connection)
            await connection.execute(replicas.QUERIES["hold_presence"].sql, replica_id)

    async def close(self) -> None:
        for connection in self._connections:
            await connection.close()


@pytest_asyncio.fixture
async def db(database_url: str) -> Any:
    opened = await Db.connect(database_url)
    yield opened
    await opened.close()


@pytest_asyncio.fixture
async def replica(db: Db, database_url: str) -> Any:
    made = Replica(db, database_url)
    yield made
    await made.close()


def names(found: Sequence[replicas.MissingReplica]) -> set[str]:
    return {one.replica_id for one in found}


async def test_only_whose_presence_was_held_and_is_free_is_missed(db: Db, replica: Replica) -> None:
    await replica.speaks("lives", holds=True)
    await replica.speaks("died", holds=False)
    await replica.speaks("knows of no presence", present=False, holds=False)
    await replica.speaks("asks", holds=False)

    assert names(await replicas.missing(db, "asks", 60.0)) == {"died"}
    assert names(await replicas.missing(db, "another", 60.0)) == {"died", "asks"}
    assert await replicas.missing(db, "asks", 0.0) == []  # whose time ran out needs no burial


async def test_a_look_keeps_nobody_from_its_presence(db: Db, replica: Replica) -> None:
    await replica.speaks("died", holds=False)
    async with db.transaction() as looking, db.transaction() as other:
        for session in (looking, other):
            found = await session.many(replicas.MissingReplica, replicas.QUERIES["missing_replicas"], "asks", 60.0)
            assert names(found) == {"died"}
        back = asyncio.create_task(replica.speaks("died", holds=True))
        await asyncio.wait([back], timeout=0.05)
    async with asyncio.timeout(PATIENCE_S):
        await back
    assert await replicas.missing(db, "asks", 60.0) == []


async def test_who_spoke_or_came_back_since_is_not_buried(db: Db, replica: Replica) -> None:
    await replica.speaks("spoke", holds=False)
    await replica.speaks("came back", holds=False)
    await replica.speaks("died", holds=False)
    missing = {one.replica_id: one.seen_at for one in await replicas.missing(db, "asks", 60.0)}
    assert set(missing) == {"spoke", "came back", "died"}
    await replica.speaks("spoke", holds=False)
    connection = await asyncpg.connect(db.url)
    await connection.execute(replicas.QUERIES["hold_presence"].sql, "came back")

    buried = await replicas.bury(db, missing)

    assert [(one.replica_id, one.leases) for one in buried] == [("died", 0)]
    assert await replicas.bury(db, missing) == []
    await connection.close()


class Looks:
    """A presence on a clock that stands still, and who it buries."""

    def __init__(self, db: Db, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        clock = SystemClock()
        monkeypatch.setattr(clock, "monotonic", lambda: self.now)
        self.presence = Presence([], db, self._as_clock(clock), Settings(), "asks")
        self.buried: list[str] = []
        bury = replicas.bury

        async def seen(db: Db, missing: dict[str, datetime]) -> list[replicas.GoneReplica]:
            found = await bury(db, missing)
            self.buried += [one.replica_id for one in found]
            return found

        monkeypatch.setattr(replicas, "bury", seen)

    @staticmethod
    def _as_clock(clock: Clock) -> Clock:
        return clock

    async def look(self, after_s: float = 0.0) -> list[str]:
        self.now += after_s
        self.buried.clear()
        await self.presence.look()
        return list(self.buried)


async def test_the_first_look_buries_nobody_and_the_second_does(db: Db, replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(db, monkeypatch)
    looks.presence.held(True)
    await replica.speaks("died", holds=False)
    assert await looks.look() == []
    assert await looks.look(GONE_S / 2) == []
    assert await looks.look(GONE_S / 2) == ["died"]
    assert await looks.look(GONE_S) == []


async def test_who_speaks_between_two_looks_is_missed_afresh(db: Db, replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(db, monkeypatch)
    looks.presence.held(True)
    await replica.speaks("slow", holds=False)
    assert await looks.look() == []
    await replica.speaks("slow", holds=False)
    assert await looks.look(GONE_S) == []
    await replica.speaks("slow", holds=True)
    assert await looks.look(GONE_S) == []
    assert not looks.presence._missing


async def test_who_has_lost_its_own_presence_or_just_has_it_again_misses_nobody(
    db: Db, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "_SETTLED_S", 3.0)
    looks = Looks(db, monkeypatch)
    await replica.speaks("died", holds=False)
    assert [await looks.look(10.0) for _ in range(3)] == [[], [], []]
    looks.presence.held(True)
    assert [await looks.look(1.0) for _ in range(2)] == [[], []]
    assert [await looks.look(1.0) for _ in range(2)] == [[], ["died"]]
    await replica.speaks("died too", holds=False)
    assert await looks.look() == []
    looks.presence.held(False)
    looks.presence.held(True)
    assert [await looks.look(1.0) for _ in range(3)] == [[], [], []]
