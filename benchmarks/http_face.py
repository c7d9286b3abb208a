"""What the HTTP face costs without what stands behind it: `/verify` over real connections, with an engine that says yes in the next turn.

Everything else is on as in production: keys, limits, deadlines, canonical lines (to a file), metrics. Beside it the library's
own echo of the same body, and the parts that can be called alone.
"""

import asyncio
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, cast

from aiohttp import web
from harness import HERE, QUICK, Prepared
from multidict import CIMultiDict

from facilitator import telemetry
from facilitator.api.access import Access, _Known
from facilitator.api.answers import Answer, _head
from facilitator.api.catalogue import Catalogue
from facilitator.api.delivery import Deliveries
from facilitator.api.desk import Desk
from facilitator.api.server import ROUTES, Server
from facilitator.api.settings import AccessSettings, DiscoverySettings, Settings
from facilitator.cli import _GC_THRESHOLDS
from facilitator.clock import SystemClock, Timeouts
from facilitator.metrics import EVENTS, REQUEST_SECONDS, REQUESTS, REQUESTS_IN_FLIGHT, series
from facilitator.protocol.messages import Payment, Supported, VerifyResult
from facilitator.settlement.engine import Engine
from facilitator.store import tenants
from facilitator.store.tenants import LiveKey
from facilitator.units import Address, Listen

CALLERS: Final = 64
SECONDS: Final = 0.5 if QUICK else 3.0
LINE: Final = {
    "request_id": "ab" * 16,
    "tenant": "bench",
    "method": "POST",
    "route": "/verify",
    "key_id": "abcdefghijkl",
    "version": 2,
    "scheme": "exact",
    "network": "eip155:84532",
    "asset": "0x" + "ab" * 20,
    "pay_to": "0x" + "cd" * 20,
    "amount_atomic": "1000",
    "payer": "0x" + "ef" * 20,
    "outcome": "valid",
    "status": 200,
    "duration_ms": 12.3,
}


class Yes:
    """An engine whose verifications end together in the next turn of the loop."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    async def verify(self, _caller: object, _payment: Payment) -> VerifyResult:
        """Valid."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._tell)
        waiting = loop.create_future()
        self._waiting.append(waiting)
        await waiting
        return VerifyResult(payer=Address("0x" + "ef" * 20))

    def _tell(self) -> None:
        told, self._waiting = self._waiting, []
        for one in told:
            one.set_result(None)


def known_key(access: Access) -> str:
    """A key of `access` that the store was never asked for."""
    new = tenants.generate_key()
    key = LiveKey(
        key_id=new.key_id,
        secret_sha256=new.sha256,
        public_key=None,
        scopes=["verify"],
        expires_at=None,
        tenant_id="bench",
        shared_transactions=True,
        accept_external=False,
        trust_payment_identifier=False,
        confirm_level=None,
        limits="{}",
        accept_unscreened=False,
        discoverable=True,
    )
    access._known[key.key_id] = _Known.of(key, used=True)  # noqa: SLF001 - no store is here to ask
    access._contact_at = float("inf")  # noqa: SLF001
    return new.text


@asynccontextmanager
async def ours(directory: Path) -> AsyncIterator[tuple[int, dict[str, str]]]:
    """Port and headers of our face."""
    clock = SystemClock()
    with (directory / "log").open("w") as log:
        telemetry.configure("info", "json", log, observe=lambda event, level: series(EVENTS, event, level).inc())
        access = Access(AccessSettings(), clock)
        desk = Desk(
            settings=Settings(),
            clock=clock,
            deliveries=Deliveries(clock, 5.0),
            supported=lambda: Supported(kinds=(), extensions=(), signers={}),
            gates=dict,
            catalogue=Catalogue(DiscoverySettings(), clock),
            engine=cast("Engine", Yes()),
        )
        server = Server(desk, access, Listen("127.0.0.1", 0), ROUTES)
        await server.start()
        try:
            yield server.port, {"Authorization": f"Bearer {known_key(access)}"}
        finally:
            await server.stop()


@asynccontextmanager
async def echo(_directory: Path) -> AsyncIterator[tuple[int, dict[str, str]]]:
    """The library, with one route and nothing else."""

    async def handle(request: web.Request) -> web.Response:
        return web.Response(body=await request.read(), content_type="application/json")

    app = web.Application()
    app.router.add_post("/verify", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1], {}
    finally:
        await runner.cleanup()


async def microseconds(face: Callable[[Path], Any]) -> float:
    """Processor time of this process for each answer; the load is another process."""
    with tempfile.TemporaryDirectory(prefix="bench-http-") as name:
        directory = Path(name)
        bodies, answers = directory / "bodies", directory / "answers"
        bodies.write_bytes(Prepared.new(1).body + b"\n")
        load = await asyncio.create_subprocess_exec(sys.executable, HERE / "load.py", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert load.stdin is not None
        assert load.stdout is not None
        try:
            async with face(directory) as (port, headers):
                order = {"port": port, "bodies": str(bodies), "headers": [headers], "route": "/verify", "again": True, "out": str(answers)}
                order |= {"seconds": SECONDS, "connections": CALLERS, "drain_s": 5}
                gc.freeze()  # as `facilitator serve` does
                gc.set_threshold(*_GC_THRESHOLDS)
                began = time.process_time()
                load.stdin.write(json.dumps(order).encode() + b"\n")
                await load.stdout.readline()
                spent = time.process_time() - began
                told = json.loads(answers.read_text())
                assert {answer[3] for answer in told} == {200}
                return spent / len(told) * 1e6
        finally:
            load.stdin.close()
            await load.wait()


def alone(timed: Callable[[Callable[[], object]], float]) -> Mapping[str, float]:
    """Microseconds of the parts that a request pays for besides judging its payment."""
    clock = SystemClock()
    access = Access(AccessSettings(), clock)
    key = known_key(access)
    request = cast("web.Request", _Headers({"Authorization": f"Bearer {key}"}))

    def line() -> None:
        with telemetry.bind(request_id="x"), telemetry.canonical("request.answered", **LINE):
            telemetry.annotate(outcome="valid")

    def meters() -> None:
        series(REQUESTS_IN_FLIGHT, "/verify").inc()
        series(REQUESTS_IN_FLIGHT, "/verify").dec()
        series(REQUESTS, "/verify", "200").inc()
        series(REQUEST_SECONDS, "/verify").observe(0.004)

    async def deadline() -> float:
        timeouts = Timeouts()

        def block() -> None:
            with timeouts.after(10.0):
                pass

        return timed(block)

    async def lines() -> float:
        return timed(line)

    with Path(os.devnull).open("w") as nowhere:
        telemetry.configure("info", "json", nowhere, observe=lambda event, level: series(EVENTS, event, level).inc())
        lines_us = asyncio.run(lines())
    return {
        "HTTP: key and limits": timed(lambda: _run(access.admit(request, "/verify", ("verify",)))),
        "HTTP: canonical line": lines_us,
        "HTTP: metrics of a request": timed(meters),
        "HTTP: a deadline": asyncio.run(deadline()),
        "HTTP: an answer's head": timed(lambda: (Answer(b"{}"), _head(200, int(time.time())))),
    }


class _Headers:
    """As much of a request as `Access.admit` looks at."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.headers = CIMultiDict(headers)
        self.method, self.path = "POST", "/verify"


def _run(work: Coroutine[object, object, object]) -> None:
    """To its end, which it reaches without waiting."""
    try:
        work.send(None)
    except StopIteration:
        return
    raise AssertionError("it waited")


async def whole() -> dict[tuple[str, str], float]:
    """Microseconds of an answer, by who gives it and what it is; measured in turns."""
    faces = {("library", "HTTP: echo"): echo, ("ours", "HTTP: /verify without an engine"): ours}
    best = dict.fromkeys(faces, float("inf"))
    for _ in range(1 if QUICK else 3):
        for name, face in faces.items():
            best[name] = min(best[name], await microseconds(face))
    return best
