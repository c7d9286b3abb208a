"""Places in judgement over a real port: taken when the bytes come, and home again whatever callers do. The engine is a stand-in."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

import pytest
import pytest_asyncio

from facilitator.api.connections import Connection
from facilitator.errors import OverloadFault
from facilitator.metrics import REQUESTS_SHED
from facilitator.store import administration, tenants
from facilitator.units import AuthNonce, Network
from tests.fixtures.house import eventually
from tests.fixtures.vectors import v2_request
from tests.fixtures.waiting import PATIENCE_S
from tests.integration.api.test_limits import House, house
from tests.integration.api.test_server import SETTINGS, Stage

__all__ = ["house"]
BODY: Final = json.dumps(v2_request()).encode()
SEPOLIA: Final = Network("eip155:84532")


class Caller:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def answer(self) -> tuple[int, dict[str, Any]]:
        head = await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        return int(head.split()[1]), json.loads(await self._reader.readexactly(length))

    async def ended(self) -> bytes:
        """What still comes until the other side has closed."""
        return await asyncio.wait_for(self._reader.read(), PATIENCE_S)

    def vanish(self) -> None:
        self._writer.transport.abort()


@asynccontextmanager
async def calling(port: int, count: int) -> AsyncIterator[list[Caller]]:
    callers = [Caller(*await asyncio.open_connection("127.0.0.1", port)) for _ in range(count)]
    try:
        yield callers
    finally:
        for caller in callers:
            caller.vanish()


def request(
    path: str = "/verify", body: bytes = BODY, *, key: str = "", more: str = "", media: str = "application/json", length: str = ""
) -> bytes:
    bearer = f"Authorization: Bearer {key}\r\n" if key else ""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\n{bearer}Content-Type: {media}\r\n{more}Content-Length: {length or len(body)}\r\n\r\n"
    return head.encode() + body


async def done(answers: "list[asyncio.Task[tuple[int, dict[str, Any]]]]", count: int) -> None:
    """Wait until so many of them are there, or more."""
    while sum(answer.done() for answer in answers) < count:
        await asyncio.wait([answer for answer in answers if not answer.done()], return_when=asyncio.FIRST_COMPLETED)


def shed(at: str) -> float:
    return float(REQUESTS_SHED.labels(at)._value.get())


@pytest_asyncio.fixture
async def start() -> AsyncIterator[Callable[..., Any]]:
    stages: list[Stage] = []

    async def begin(judged_max: int) -> Stage:
        stages.append(stage := Stage(replace(SETTINGS, judged_max=judged_max)))
        await stage.server.start()
        return stage

    yield begin
    for stage in stages:
        await stage.server.stop()
        await stage.desk.deliveries.finish()


@pytest.mark.parametrize("path", ["/verify", "/settle"])
async def test_of_a_wave_that_is_read_at_once_as_many_are_let_in_as_there_are_places_and_the_rest_is_refused_unparsed(
    start: Callable[..., Any], path: str
) -> None:
    stage: Stage = await start(judged_max=8)
    async with calling(stage.server.port, 12) as callers:
        for caller in callers:
            caller.send(request(path))
            assert (await caller.answer())[0] == 200
        stage.engine.gate = asyncio.Event()
        before = shed("connection"), shed("admitted")
        for caller in callers:
            caller.send(request(path))  # written at once, so the server's loop reads them in one turn
        answers = [asyncio.create_task(caller.answer()) for caller in callers]
        await done(answers, 6)
        assert (shed("connection"), shed("admitted")) == (before[0] + 6, before[1])
        assert [answer.result()[1]["error"] for answer in answers if answer.done()] == ["overloaded"] * 6
        stage.engine.gate.set()
        assert sorted(status for status, _ in await asyncio.gather(*answers)) == [200] * 6 + [503] * 6
        assert stage.desk.gate._all == 0


class Queues:
    """A queue with room for so many, of which the engine has taken none."""

    def __init__(self, room: int) -> None:
        self.room = room

    def full(self, _network: Network, coming: int) -> OverloadFault | None:
        return None if coming < self.room else OverloadFault("queue_slow", "payments wait for too long", retry_after_s=9)

    def began(self, _auth_nonce: AuthNonce) -> bool:
        return False


async def test_of_a_wave_of_settlements_as_many_are_let_in_as_their_queue_has_room_for(start: Callable[..., Any]) -> None:
    stage: Stage = await start(judged_max=100)
    async with calling(stage.server.port, 10) as callers:
        for caller in callers:
            caller.send(request("/settle"))
            assert (await caller.answer())[0] == 200
        stage.desk.gate.watch(queues := Queues(3), [SEPOLIA])
        stage.engine.gate = asyncio.Event()
        before = shed("queue")
        for caller in callers:
            caller.send(request("/settle"))
        answers = [asyncio.create_task(caller.answer()) for caller in callers]
        await done(answers, 7)
        assert shed("queue") == before + 7
        refused = [caller for caller, answer in zip(callers, answers, strict=True) if answer.done()]
        assert {answer.result()[1]["error"] for answer in answers if answer.done()} == {"queue_slow"}
        refused[0].send(request("/settle"))
        assert (await refused[0].answer())[1]["error"] == "queue_slow"
        assert shed("queue") == before + 8, "those of a later turn are counted too"
        stage.engine.gate.set()
        assert [status for status, _ in await asyncio.gather(*answers)].count(200) == 3
        queues.room = 10
        callers[0].send(request("/settle"))
        assert (await callers[0].answer())[0] == 200, "as soon as there is room"
        assert stage.desk.gate._all == 0


async def occupy(stage: Stage, held: Caller, other: Caller) -> asyncio.Event:
    """Both have asked before; now a request of the first is in judgement, until the event is set."""
    for each in (held, other):
        each.send(request())
        assert (await each.answer())[0] == 200
    await stage.engine.entered(2)
    stage.engine.gate = gate = asyncio.Event()
    held.send(request())
    await stage.engine.entered(1)
    return gate


async def test_a_caller_that_does_not_read_is_left_to_the_parser_which_waits_for_it(start: Callable[..., Any]) -> None:
    stage: Stage = await start(judged_max=1)
    async with calling(stage.server.port, 3) as [held, caller, bystander]:
        release = await occupy(stage, held, caller)
        connections = stage.server._connections
        assert connections is not None
        [reading] = connections._idle
        reading.pause_writing()  # as the transport does when what is unread is too much
        before = shed("connection"), shed("admitted")
        caller.send(request())
        assert (await caller.answer())[1]["error"] == "overloaded"
        assert (shed("connection"), shed("admitted")) == (before[0], before[1] + 1)
        caller.send(request())
        answer = asyncio.create_task(caller.answer())
        await read_by_now(bystander)
        assert not answer.done(), "what it was told before is still to be read"
        reading.resume_writing()
        assert (await answer)[1]["error"] == "overloaded"
        release.set()
        assert (await held.answer())[0] == 200


def asks_again(stage: Stage, data: bytes) -> None:
    """From now on whoever is answered has its next request read before the library's task has heard of that answer."""
    connections = stage.server._connections
    assert connections is not None
    answered = connections.answered

    def again(connection: Connection) -> None:
        connections.answered = answered
        answered(connection)
        asyncio.get_running_loop().call_soon(connection.data_received, data)

    connections.answered = again


async def test_whoever_asks_again_as_soon_as_it_is_answered_is_refused_unparsed_too(start: Callable[..., Any]) -> None:
    stage: Stage = await start(judged_max=1)
    async with calling(stage.server.port, 3) as [held, other, caller]:
        release = await occupy(stage, held, other)
        before = shed("connection"), shed("admitted")
        asks_again(stage, request())
        caller.send(request())  # the first of its connection: refused when it is parsed
        assert [(await caller.answer())[0] for _ in range(2)] == [503, 503]
        assert (shed("connection"), shed("admitted")) == (before[0] + 1, before[1] + 1)
        release.set()
        assert (await held.answer())[0] == 200


async def test_behind_the_last_answer_nothing_is_answered(start: Callable[..., Any]) -> None:
    stage: Stage = await start(judged_max=1)
    async with calling(stage.server.port, 2) as [held, caller]:
        release = await occupy(stage, held, caller)
        asks_again(stage, request())
        caller.send(request(more="Connection: close\r\n"))
        assert (await caller.answer())[0] == 503
        assert await caller.ended() == b""
        release.set()
        assert (await held.answer())[0] == 200


async def test_nothing_is_refused_before_what_was_asked_earlier_is_answered(start: Callable[..., Any]) -> None:
    stage: Stage = await start(judged_max=1)
    async with calling(stage.server.port, 2) as [caller, bystander]:
        caller.send(request())
        assert (await caller.answer())[0] == 200
        await stage.engine.entered(1)
        stage.engine.gate = gate = asyncio.Event()
        caller.send(request())
        await stage.engine.entered(1)
        caller.send(request())
        await read_by_now(bystander)
        gate.set()
        assert [(await caller.answer())[0] for _ in range(2)] == [200, 200]


async def test_the_rest_of_a_body_is_no_request_whatever_it_looks_like(start: Callable[..., Any]) -> None:
    stage: Stage = await start(judged_max=1)
    async with calling(stage.server.port, 3) as [held, caller, bystander]:
        release = await occupy(stage, held, caller)
        whole = request(body=request())
        caller.send(whole[: -len(request())])  # the head: what it announces looks like one more request
        assert (await caller.answer())[1]["error"] == "overloaded"
        caller.send(request())
        await read_by_now(bystander)
        release.set()
        assert (await held.answer())[0] == 200
        caller.send(request(more="X-Request-Id: mine\r\n"))
        status, told = await caller.answer()
        assert (status, told.get("isValid")) == (200, True), "the first answer is that of the next request"


BEGUN: Final = b"POST /verify HTTP/1.1\r\nX-A: "
"""What comes next is the rest of this line."""
SPLIT: Final = request(body=b"\r\n\r\n" + BODY)


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ([request() + BEGUN], "overloaded"),
        ([request(), BEGUN], "overloaded"),
        ([request()[:-9], request()[-9:] + BEGUN], "overloaded"),
        # the first empty line of the second piece is in the body, as far before its end as these four bytes are long
        ([SPLIT[: -len(BODY) - 5], SPLIT[-len(BODY) - 5 :] + b"POST"], None),
    ],
    ids=["with it", "behind it", "with the end of its body", "with the end of its head"],
)
async def test_the_beginning_of_the_next_head_is_held_against_what_follows(
    start: Callable[..., Any], pieces: list[bytes], error: str | None
) -> None:
    stage: Stage = await start(judged_max=1)
    async with calling(stage.server.port, 3) as [held, caller, bystander]:
        caller.send(request())
        assert (await caller.answer())[0] == 200
        for piece in pieces:
            caller.send(piece)
            await read_by_now(bystander)
        await caller.answer()
        place = stage.desk.gate.enter("open")
        before = shed("connection"), shed("admitted")
        caller.send(request())
        if error is None:
            await caller.ended()  # it is no HTTP
            assert shed("connection") == before[0]
        else:
            assert (await caller.answer())[1]["error"] == error
            assert (shed("connection"), shed("admitted")) == (before[0], before[1] + 1)
            caller.send(request(more="X-Request-Id: mine\r\n"))
            assert (await caller.answer())[1]["requestId"] == "mine"
            assert shed("connection") == before[0] + 1, "that was the end of it: what follows is refused unparsed again"
        place.leave()
        held.send(request())
        assert (await held.answer())[0] == 200


async def test_no_answer_overtakes_that_of_an_earlier_request(start: Callable[..., Any]) -> None:
    stage: Stage = await start(judged_max=1)
    async with calling(stage.server.port, 1) as [caller]:
        caller.send(request())
        assert (await caller.answer())[0] == 200
        connections = stage.server._connections
        assert connections is not None
        answered = connections.answered

        def send_a_third(connection: Connection) -> None:
            """The second is read and its handler has not begun."""
            answered(connection)
            connections.answered = answered  # type: ignore[method-assign]
            stage.desk.gate.enter("open")
            caller.send(request(more="X-Request-Id: third\r\n"))

        connections.answered = send_a_third  # type: ignore[method-assign]
        caller.send(request() + request(more="X-Request-Id: second\r\n"))
        told = [await caller.answer() for _ in range(3)]
        assert [(status, body.get("requestId")) for status, body in told] == [(200, None), (503, "second"), (503, "third")]


async def read_by_now(bystander: Caller) -> None:
    """What was sent before is read by now: the loop of the server has had a turn."""
    bystander.send(b"GET /supported HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await bystander.answer())[0] == 200


async def test_the_beginning_of_a_head_takes_no_place(start: Callable[..., Any]) -> None:
    stage: Stage = await start(judged_max=8)
    async with calling(stage.server.port, 2) as [caller, bystander]:
        caller.send(request())
        assert (await caller.answer())[0] == 200
        caller.send(request()[:60])
        await read_by_now(bystander)
        assert stage.desk.gate._all == 0
        caller.send(request()[60:])
        assert (await caller.answer())[0] == 200


def sent(chance: random.Random, keys: list[str]) -> bytes:
    """What is answered, well or ill, and leaves the connection open."""
    path, key = chance.choice(["/verify", "/settle"]), chance.choice(keys)
    return chance.choice(
        [
            request(path, key=key),
            request(path, key=key),
            request(path, key="fk_0123456789abcdef_wrong"),
            request(path, key=key, media="text/plain"),
            request(path, b'{"x402Version":7}', key=key),
            b"GET /supported HTTP/1.1\r\nHost: x\r\n\r\n",
        ]
    )


async def act(chance: random.Random, caller: Caller, keys: list[str]) -> bool:
    """One thing that a caller does on its connection. False: that ended it."""
    whole = sent(chance, keys)
    cut = chance.randrange(1, len(whole))
    match chance.choice(["whole", "whole", "in pieces", "two at once", "part", "whole, but gone", "unreadable", "last"]):
        case "in pieces":
            caller.send(whole[:cut])
            await asyncio.sleep(0)
            caller.send(whole[cut:])
        case "two at once":
            caller.send(whole + whole)
            await caller.answer()
        case "part" | "whole, but gone" as how:
            caller.send(whole[:cut] if how == "part" else whole)
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            caller.vanish()
            return False
        case "unreadable" | "last" as how:
            caller.send(request(length="x") if how == "unreadable" else request(key=keys[0], more="Connection: close\r\n"))
            await caller.ended()
            return False
        case _:
            caller.send(whole)
    await caller.answer()
    return True


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_callers_do_every_place_comes_home(house: House, seed: int) -> None:
    other = tenants.generate_key()
    await administration.create_key(house.db, "cli me", other, "other", ("verify",), None, make_tenant=True)
    keys, gate = [house.key.text, other.text], house.desk.gate
    port = house.server.port

    async def lead(number: int) -> None:
        chance = random.Random(f"{seed} {number}")  # noqa: S311 - to repeat, not to keep a secret
        for _ in range(8):
            async with calling(port, 1) as [caller]:
                caller.send(request(key=house.key.text))
                assert (await caller.answer())[0] == 200
                for _ in range(12):
                    if not await act(chance, caller, keys):
                        break

    await asyncio.gather(*(lead(number) for number in range(12)))

    async def free() -> bool:
        return gate._all == 0

    await eventually(free, "every place to be free")
    assert not gate._of
    assert not +gate._coming
