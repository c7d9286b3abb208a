"""Requests that no honest client sends, over a running service: refused quickly, quietly, without growth, and it settles on.

The corpus of bodies goes to both routes again and again; beside it stand broken requests on bare sockets, which no HTTP
library would send.
"""

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import psutil
import pytest
import pytest_asyncio

from tests.fixtures.hostile import HostileBody, hostile_bodies
from tests.fixtures.house import House, client_session, words
from tests.fixtures.waiting import PATIENCE_S

QUICK_S: Final = 0.05
TRIES: Final = 3
GROWTH_MAX: Final = 20 * 1024 * 1024
BIG: Final = 1024 * 1024
PATHS: Final = ("/verify", "/settle")
CORPUS: Final = tuple(hostile_bodies())


@pytest_asyncio.fixture
async def house(tmp_path: Path, database_url: str) -> AsyncIterator[House]:
    async with House.open(tmp_path, database_url) as house:
        await house.serve()
        yield house


@pytest_asyncio.fixture
async def roomy_house(tmp_path: Path, database_url: str) -> AsyncIterator[House]:
    """It takes as many of one tenant at once as the corpus has bodies, twice."""
    async with House.open(tmp_path, database_url, server={"judged_max": 2 * len(PATHS) * len(CORPUS)}) as house:
        await house.serve()
        yield house


@pytest_asyncio.fixture(params=[3.0])
async def strict_house(tmp_path: Path, database_url: str, request: pytest.FixtureRequest) -> AsyncIterator[House]:
    """It waits for nobody's head or body for long."""
    async with House.open(tmp_path, database_url, server={"body_timeout_s": request.param, "header_timeout_s": request.param}) as house:
        await house.serve()
        yield house


def resident_bytes(house: House) -> int:
    return int(psutil.Process(house.services[0].pid).memory_info().rss)


def worked_s(house: House) -> float:
    """Processor time of the service's event loop, to the nanosecond. (Linux' scheduler statistics)"""
    return int(Path(f"/proc/{house.services[0].pid}/schedstat").read_text("ascii").split()[0]) / 1e9


async def refused_in_s(house: House, session: aiohttp.ClientSession, path: str, hostile: HostileBody) -> float:
    """Seconds that the service worked from the request's first byte to the answer's last; the answer is checked."""
    headers = {"Authorization": f"Bearer {await house.key('test')}", "Content-Type": hostile.content_type}
    before_s = worked_s(house)
    async with session.post(house.services[0].base_url + path, data=io.BytesIO(hostile.body), headers=headers) as response:
        text = await response.text()
        took_s = worked_s(house) - before_s
    assert response.status == hostile.status, (path, hostile.name, response.status, text)
    problem = json.loads(text)
    assert {"error", "message", "requestId"} <= problem.keys(), (path, hostile.name)
    assert problem.get("isValid" if path == "/verify" else "success") is (False if "isValid" in problem or "success" in problem else None)
    assert "Traceback" not in text
    return took_s


async def assert_unimpressed(house: House, settled: int) -> None:
    """No traceback, no error, and payments go on as if nothing had been."""
    (service,) = house.services
    payments = [house.payment() for _ in range(settled)]
    async with client_session() as session:
        answers = await asyncio.gather(*(house.settle(session, payment) for payment in payments))
    assert words(answers) == {"success": settled}
    assert service.running
    assert "Traceback" not in service.logs
    assert not [event for event in service.log_events if event.get("level") == "error" or "exception" in event]
    await house.assert_ledger_is_chain(settled=settled)


async def test_every_hostile_body_is_refused_with_fifty_milliseconds_of_work_without_growth(house: House) -> None:
    assert len(CORPUS) >= 150
    best: dict[tuple[str, str], float] = {}
    async with client_session() as session:
        for path in PATHS:  # fills caches and pools
            for hostile in CORPUS:
                await refused_in_s(house, session, path, hostile)
        before = resident_bytes(house)
        for _ in range(TRIES):
            for path in PATHS:
                for hostile in CORPUS:
                    took_s = await refused_in_s(house, session, path, hostile)
                    best[path, hostile.name] = min(took_s, best.get((path, hostile.name), took_s))
        grown = resident_bytes(house) - before
    big = {hostile.name for hostile in CORPUS if len(hostile.body) >= BIG}
    slow = {key: took_s for key, took_s in best.items() if took_s >= (QUICK_S * 4 if key[1] in big else QUICK_S)}
    print(  # noqa: T201
        f"{len(CORPUS)} bodies, slowest {max(took_s for key, took_s in best.items() if key[1] not in big) * 1000:.1f} ms,"
        f" slowest above 1 MB {max(took_s for key, took_s in best.items() if key[1] in big) * 1000:.1f} ms, grown {grown // 1024} KiB"
    )
    assert not slow
    assert grown < GROWTH_MAX, f"{grown} bytes more after {TRIES * len(PATHS) * len(CORPUS)} hostile bodies"
    await assert_unimpressed(house, settled=5)


async def test_the_corpus_all_at_once_leaves_the_service_settling(roomy_house: House) -> None:
    house = roomy_house
    crowd = [(path, hostile) for path in PATHS for hostile in CORPUS if len(hostile.body) < BIG]
    before = 0
    async with client_session() as session:
        for number in range(TRIES):
            honest = asyncio.create_task(house.settle(session, house.payment()))
            await asyncio.gather(*(refused_in_s(house, session, path, hostile) for path, hostile in crowd))
            assert (await honest).word == "success"
            before = before if number else resident_bytes(house)  # the first crowd brings as many connections as will ever be
    assert resident_bytes(house) - before < GROWTH_MAX
    assert "Traceback" not in house.services[0].logs
    await house.assert_ledger_is_chain(settled=TRIES)


HEAD: Final = b"POST /settle HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %KEY%\r\nContent-Type: application/json\r\n"
BROKEN: Final[dict[str, tuple[bytes, bool]]] = {
    # name: what is sent, and whether the sender says that it has finished
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), False),
    "a body cut short": (HEAD + b'Content-Length: 100\r\n\r\n{"x402Version":', True),
    "a body that never comes": (HEAD + b"Content-Length: 100\r\n\r\n", False),
    "a head that never ends": (HEAD, False),
    "two lengths": (HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", False),
    "length and chunks": (HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", False),
    "a negative length": (HEAD + b"Content-Length: -1\r\n\r\n", False),
    "a length in Arabic digits": (HEAD + "Content-Length: ٢\r\n\r\n{}".encode(), False),
    "a length beyond any machine": (HEAD + b"Content-Length: 1" + b"0" * 300 + b"\r\n\r\n", False),
    "a chunk of no size": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", False),
    "a chunk of endless size": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 4096 + b"\r\n", False),
    "chunks beyond the limit": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"8000\r\n" + b" " * 0x8000 + b"\r\n" + b"8000\r\n", True),
    "compressed": (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00", False),
    "a header of a megabyte": (HEAD + b"X-Long: " + b"a" * BIG + b"\r\n\r\n", False),
    "ten thousand headers": (HEAD + b"".join(b"X-%d: 1\r\n" % number for number in range(10_000)) + b"\r\n", False),
    "a NUL in a header": (HEAD + b"X-Nul: a\0b\r\nContent-Length: 2\r\n\r\n{}", False),
    "a line of a megabyte": (b"GET /" + b"a" * BIG + b" HTTP/1.1\r\nHost: x\r\n\r\n", False),
    "an unknown method": (b"\xff\xfe /settle HTTP/1.1\r\nHost: x\r\n\r\n", False),
    "a key that is no ASCII": (b"POST /settle HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe\r\nContent-Length: 2\r\n\r\n{}", False),
    "an expectation": (HEAD + b"Expect: the-unexpected\r\nContent-Length: 2\r\n\r\n{}", False),
}


async def exchange(house: House, request: bytes, *, finished: bool) -> bytes:
    """Send, and read until the service ends the connection or the answer is complete."""
    reader, writer = await asyncio.open_connection("127.0.0.1", house.services[0].port)
    try:
        writer.write(request.replace(b"%KEY%", (await house.key("test")).encode()))
        if finished:
            writer.write_eof()
        got = b""
        async with asyncio.timeout(PATIENCE_S):
            while chunk := await reader.read(65536):
                got += chunk
                if _whole(got):
                    break
    except ConnectionError:
        return b""  # refused in the middle of what we sent
    finally:
        writer.transport.abort()
    return got


def _whole(got: bytes) -> bool:
    head, found, body = got.partition(b"\r\n\r\n")
    lengths: list[Any] = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(found) and len(body) >= int(lengths[0] if lengths else 0)


async def test_broken_requests_are_refused_or_hung_up_on(strict_house: House) -> None:
    house = strict_house
    for name, (request, finished) in BROKEN.items():
        got = await exchange(house, request, finished=finished)
        if got:
            assert got.startswith(b"HTTP/1."), (name, got[:80])
            assert 400 <= int(got.split(b" ", 2)[1]) < 500, (name, got[:200])
            assert b"Traceback" not in got, name
        assert "Traceback" not in house.services[0].logs, name
    before = resident_bytes(house)
    for _ in range(2):
        await asyncio.gather(*(exchange(house, request, finished=finished) for request, finished in BROKEN.values()))
    assert resident_bytes(house) - before < GROWTH_MAX
    assert [event for event in house.services[0].log_events if event.get("event") == "request.unreadable"]
    await assert_unimpressed(house, settled=1)


SLOW_CALLERS: Final = 500


async def dribble(house: House, slow: asyncio.Semaphore) -> None:
    """Send a head byte by byte until the service has enough of it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", house.services[0].port)
    writer.write(HEAD)
    slow.release()
    ended = asyncio.create_task(reader.read())
    try:
        while not ended.done():
            writer.write(b"x")
            await asyncio.wait([ended], timeout=0.5)
        with contextlib.suppress(ConnectionError):
            assert await ended == b"", "a head that has no end was answered"
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("strict_house", [8.0], indirect=True)
async def test_five_hundred_slow_heads_are_closed_and_nobody_else_is_refused(strict_house: House) -> None:
    house = strict_house
    key = await house.key("test")
    payment = house.payment()
    slow = asyncio.Semaphore(0)
    async with client_session() as session:

        async def metric(name: str) -> float:
            async with session.get(house.services[0].base_url + "/metrics") as response:
                text = await response.text()
            return float(next((line.split()[-1] for line in text.splitlines() if line.startswith(name)), 0))

        callers = [asyncio.create_task(dribble(house, slow)) for _ in range(SLOW_CALLERS)]
        for _ in callers:
            await slow.acquire()
        verified = 0
        async with asyncio.timeout(2 * PATIENCE_S):
            while not all(caller.done() for caller in callers):
                url = house.services[0].base_url + "/verify"
                headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
                async with aiohttp.request(
                    "POST", url, data=payment.body, headers=headers
                ) as response:  # a connection of its own each time
                    assert (response.status, (await response.json())["isValid"]) == (200, True)
                verified += 1
        await asyncio.gather(*callers)
        assert verified >= 1
        assert await metric('facilitator_http_connections_closed_total{why="late"}') == SLOW_CALLERS
        assert await metric("facilitator_http_connections_refused_total") == 0
    await assert_unimpressed(house, settled=1)
