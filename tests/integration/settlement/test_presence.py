"""Who dies is missed by its connection, long before its heartbeat and its leases run out."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
import pytest_asyncio
from eth_account.signers.local import LocalAccount

from facilitator.clock import Clock, SystemClock
from facilitator.devstack.stack import Anvil
from facilitator.errors import Fault, StoreFault
from facilitator.protocol.messages import Payment
from facilitator.protocol.reasons import Reason
from facilitator.settlement import presence
from facilitator.settlement.presence import GONE_S, Presence
from facilitator.settlement.settings import Settings
from facilitator.store import notifications, relayers, replicas
from facilitator.store.db import Db, Session
from facilitator.units import Address
from tests.fixtures.oracle import assert_ledger_is_chain
from tests.fixtures.waiting import PATIENCE_S
from tests.integration.settlement.conftest import NETWORK, Rig, decoded, present
from tests.integration.settlement.test_engine import NewBuyer, StartEngine, reason, terms
from tests.integration.settlement.test_relayers import held, until

NewRelayer = Callable[..., Awaitable[LocalAccount]]

LASTING = {"lease_ttl_s": 3600.0, "lease_trust_s": 3000.0}
"""Nobody's lease or heartbeat runs out."""


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that were just started miss others at once."""
    monkeypatch.setattr(presence, "_SETTLED_S", 0.0)


async def cut(rig: Rig) -> None:
    """The server ends the connection on which it listens."""
    [ended] = await rig.fetch(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where application_name = 'facilitator-listen' and datname = current_database()"
    )
    assert ended[0]


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
    rows = await second.fetch("select replica_id, present from replica where seen_at > '-infinity'")
    assert [tuple(row) for row in rows] == [(second.engine.replica_id, True)]


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
async def test_who_asks_another_before_or_after_a_death_is_answered_by_the_survivor(
    start_engine: StartEngine,
    new_buyer: NewBuyer,
    new_relayer: NewRelayer,
    chain: Anvil,
    monkeypatch: pytest.MonkeyPatch,
    *,
    before: bool,
) -> None:
    """The survivor looks of itself once an hour: it is the caller who makes it look."""
    looks: list[str] = []
    missing = replicas.missing

    async def counted(db: Db, replica_id: str, ttl_s: float) -> list[replicas.MissingReplica]:
        looks.append(replica_id)
        return await missing(db, replica_id, ttl_s)

    monkeypatch.setattr(replicas, "missing", counted)
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
    again = asyncio.create_task(second.engine.settle(second.caller(), payment, None)) if before else None
    if before:
        await until(lambda: bool(second.engine._board._seats))
        seen = len(looks)
        await until(lambda: second.engine.replica_id in looks[seen:])  # and finds nobody missing yet
    await kill(first)
    await chain.node.call("evm_mine")
    await chain.node.call("evm_setAutomine", True)

    async with asyncio.timeout(PATIENCE_S):
        answer = await (again or second.engine.settle(second.caller(), payment, None))

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
    mine = first.engine._presence
    since = mine._since
    await cut(first)
    await until(lambda: mine._since not in {None, since})

    assert await replicas.missing(first.db, "another", 3600.0) == []
    [row] = await first.fetch("select epoch, owner from relayer")
    assert (row["epoch"], row["owner"]) == (1, first.engine.replica_id)


async def test_who_cannot_listen_says_so_at_once_and_is_not_missed(
    start_engine: StartEngine, new_relayer: NewRelayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It speaks of itself once in two thousand seconds."""
    first = await start_engine(relayers=[await new_relayer()], **LASTING | {"lease_renew_s": 2_000.0})
    await present(first)

    async def refused(*_: object) -> None:
        raise StoreFault("store_unavailable", "no connection is left")

    monkeypatch.setattr(notifications, "listen", refused)
    await cut(first)
    async with asyncio.timeout(PATIENCE_S):
        while (await first.fetch("select present from replica"))[0]["present"]:
            await asyncio.sleep(0.02)
    assert await replicas.missing(first.db, "another", 3600.0) == []


async def test_one_that_was_buried_alive_pays_on(start_engine: StartEngine, new_buyer: NewBuyer, new_relayer: NewRelayer) -> None:
    first = await start_engine(relayers=[await new_relayer()], **LASTING)
    await first.fetch("update replica set seen_at = '-infinity', present = false")
    await first.fetch("update relayer set lease_until = now()")

    buyer, asked = await new_buyer(), terms()
    assert reason(await first.engine.settle(first.caller(), decoded(buyer.pay(2, asked), asked), None)) is None

    await present(first)
    [row] = await first.fetch("select owner, lease_until > now() as leased from relayer")
    assert tuple(row) == (first.engine.replica_id, True)


async def test_burials_of_the_living_lose_and_repeat_nothing(
    start_engine: StartEngine, new_buyer: NewBuyer, new_relayer: NewRelayer, database_url: str, chain: Anvil
) -> None:
    """Two replicas bury each other without end, while each payment is asked for at both, twice, until it hears how it ended."""
    keys, buyer, asked = [await new_relayer() for _ in range(2)], await new_buyer(), terms()
    rigs = [await start_engine(relayers=keys, ready=False, **LASTING | {"lease_renew_s": 0.1}) for _ in range(2)]
    await asyncio.gather(*map(present, rigs))

    async def bury() -> None:
        while True:
            await rigs[0].fetch("update replica set seen_at = '-infinity', present = false")
            await rigs[0].fetch("update relayer set lease_until = now() where lease_until > now()")
            await asyncio.sleep(0.05)

    async def ask(rig: Rig, payment: Payment) -> Reason | None:
        while True:
            try:
                answer = await rig.engine.settle(rig.caller(), payment, None)
            except Fault:
                continue
            if answer.ticket is not None:
                await rig.engine.delivered(answer.ticket)
            if reason(answer) is not Reason.SETTLEMENT_PENDING:
                return reason(answer)

    burying = asyncio.create_task(bury())
    for _ in range(2):
        payments = [decoded(buyer.pay(2, asked), asked) for _ in range(10)]
        async with asyncio.timeout(PATIENCE_S):
            heard = await asyncio.gather(*(asyncio.gather(*(ask(rig, payment) for rig in rigs * 2)) for payment in payments))
        for answers in heard:
            assert sorted(answers, key=str) == sorted([None, *[Reason.DUPLICATE_SETTLEMENT] * 3], key=str), answers
    burying.cancel()
    await assert_ledger_is_chain(database_url, chain.rpc_url, settled=20)


# --- looks ---


class Replica:
    """A replica as it stands on record, with a connection of its own that holds its presence."""

    def __init__(self, db: Db, database_url: str) -> None:
        self._db = db
        self._database_url = database_url
        self._connections: dict[str, asyncpg.Connection[Any]] = {}

    async def holds(self, replica_id: str) -> bool:
        """It has a connection, and asks for its presence."""
        if replica_id not in self._connections:
            self._connections[replica_id] = await asyncpg.connect(self._database_url)
        return await replicas.hold_presence(Session(self._connections[replica_id]), replica_id)

    async def speaks(self, replica_id: str, *, present: bool = True, holds: bool = True) -> None:
        """It holds its presence when it speaks, unless another has it, and afterwards if it `holds` it."""
        assert await self.holds(replica_id)
        await replicas.heartbeat(self._db, replica_id, [NETWORK], present=present)
        if not holds:
            await self.loses(replica_id)

    async def loses(self, replica_id: str) -> None:
        """Its connection ends: return once the server knows."""
        connection = self._connections.pop(replica_id)
        pid = connection.get_server_pid()
        await connection.close()
        async with asyncio.timeout(PATIENCE_S), self._db.session() as session:
            while await session._connection.fetchval("select true from pg_stat_activity where pid = $1", pid):
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        for connection in self._connections.values():
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


async def test_looks_are_no_obstacle_to_each_other_and_keep_nobody_from_its_presence_for_long(db: Db, replica: Replica) -> None:
    await replica.speaks("died", holds=False)
    async with db.transaction() as looking, db.transaction() as other:
        for session in (looking, other):
            found = await session.many(replicas.MissingReplica, replicas.QUERIES["missing_replicas"], "asks", 60.0)
            assert names(found) == {"died"}
        assert not await replica.holds("died")
    assert await replica.holds("died")
    assert await replicas.missing(db, "asks", 60.0) == []


async def test_who_spoke_or_came_back_since_is_not_buried(db: Db, replica: Replica) -> None:
    await replica.speaks("spoke", holds=False)
    await replica.speaks("came back", holds=False)
    await replica.speaks("died", holds=False)
    missing = {one.replica_id: one.seen_at for one in await replicas.missing(db, "asks", 60.0)}
    assert set(missing) == {"spoke", "came back", "died"}
    await replica.speaks("spoke", holds=False)
    assert await replica.holds("came back")

    buried = await replicas.bury(db, missing)

    assert [(one.replica_id, one.leases) for one in buried] == [("died", 0)]
    assert await replicas.bury(db, missing) == []


async def test_only_the_leases_of_the_dead_end(db: Db, replica: Replica) -> None:
    for address, owner in (("0x" + "1" * 40, "died"), ("0x" + "2" * 40, "lives"), ("0x" + "3" * 40, "died")):
        await relayers.register(db, NETWORK, Address(address), 0)
        assert await relayers.take_lease(db, NETWORK, Address(address), owner, 3600.0)
    await replica.speaks("died", holds=False)
    await replica.speaks("lives")

    buried = await replicas.bury(db, {one.replica_id: one.seen_at for one in await replicas.missing(db, "lives", 60.0)})

    assert buried == [replicas.GoneReplica("died", leases=2, told=1)]
    assert [row.leased for row in await relayers.list_relayers(db, NETWORK)] == [False, True, False]


async def test_who_says_that_it_is_present_and_is_not_is_not_believed(db: Db, replica: Replica) -> None:
    """Its connection died without its knowing, or leads to another server: it would be buried after each of its heartbeats."""
    await replica.speaks("lives", holds=False)
    assert names(await replicas.missing(db, "asks", 60.0)) == {"lives"}
    await replicas.heartbeat(db, "lives", [NETWORK], present=True)
    assert await replicas.missing(db, "asks", 60.0) == []


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


# --- the connection ---


class Relay:
    """Between a replica and the database. Broken, it says nothing of it and carries nothing, as a network that forgot a connection."""

    def __init__(self) -> None:
        self.broken = False
        self._writers: list[asyncio.StreamWriter] = []

    @classmethod
    @asynccontextmanager
    async def open(cls, database_url: str) -> AsyncIterator[tuple["Relay", str]]:
        """With the URL of the database through it."""
        parts, relay = urlsplit(database_url), cls()
        (socket,) = Path(parse_qs(parts.query)["host"][0]).glob(".s.PGSQL.*[0-9]")

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            server_reader, server_writer = await asyncio.open_unix_connection(str(socket))
            relay._writers += [writer, server_writer]
            await asyncio.gather(relay._carry(reader, server_writer), relay._carry(server_reader, writer), return_exceptions=True)

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            yield relay, f"postgresql://postgres@127.0.0.1:{port}{parts.path}"
            for writer in relay._writers:
                writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            if not self.broken:
                writer.write(data)
                await writer.drain()


async def test_a_connection_that_died_without_a_word_is_found_lost(
    database_url: str, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications, "_AGAIN_S", 0.05)
    said: asyncio.Queue[bool] = asyncio.Queue()
    async with Relay.open(database_url) as (relay, url), asyncio.timeout(PATIENCE_S):
        listening = asyncio.create_task(notifications.listen(url, "lives", lambda *_: None, said.put_nowait))
        while not await said.get():
            pass
        assert not await replica.holds("lives")
        relay.broken = True
        with pytest.raises(StoreFault):
            await listening
    while not said.empty():
        last = said.get_nowait()
    assert not last


async def test_a_presence_that_is_not_to_be_had_is_asked_for_again(
    database_url: str, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection of its own is dead, and the server has not noticed."""
    monkeypatch.setattr(notifications, "_AGAIN_S", 0.05)
    assert await replica.holds("lives")
    said: asyncio.Queue[bool] = asyncio.Queue()
    listening = asyncio.create_task(notifications.listen(database_url, "lives", lambda *_: None, said.put_nowait))
    async with asyncio.timeout(PATIENCE_S):
        assert not await said.get()
        await replica.loses("lives")
        while not await said.get():
            pass
    listening.cancel()
    await asyncio.wait([listening])
