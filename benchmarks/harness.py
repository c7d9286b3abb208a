"""What the benchmarks share: one chain, one database server, the contestants, prepared payments, and the chain's own verdict.

Every contestant is a real process with wallets of its own, and reaches the node through a proxy of its own that counts and, when
told, delays. Nothing here judges a figure: no time is ever asserted.
"""

import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal, Self, cast

import aiohttp
import asyncpg
import psutil
from coincurve import PrivateKey
from eth_utils.address import to_checksum_address

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent
sys.path.insert(0, str(ROOT))  # tests.fixtures is no installed package

from facilitator.devstack.accounts import dev_account  # noqa: E402
from facilitator.devstack.buyer import facilitator_request, requirements  # noqa: E402
from facilitator.devstack.children import StateDirectory, launched  # noqa: E402
from facilitator.devstack.install import node_program  # noqa: E402
from facilitator.devstack.stack import Anvil, Postgres  # noqa: E402
from facilitator.devstack.token import BASE_SEPOLIA_USDC, Token, install_token  # noqa: E402
from facilitator.protocol.messages import Authorization  # noqa: E402
from facilitator.schemes.signatures import transfer_digest  # noqa: E402
from facilitator.store.migrate import migrate  # noqa: E402
from facilitator.units import Address, Atomic, AuthNonce, Network, UnixSeconds  # noqa: E402
from tests.fixtures.service import ServeProcess, free_port, http_status  # noqa: E402

QUICK: Final = os.environ.get("BENCH_QUICK") == "1"
ONLY: Final = tuple(filter(None, os.environ.get("BENCH_ONLY", "").split(",")))
"""Names of contestants; empty: all."""
NETWORK: Final = Network("eip155:84532")
NODE_MODULES: Final = ROOT / "tests" / "conformance" / "npm" / "node_modules"
PAYEE: Final = dev_account("bench-payee").address
AMOUNT_ATOMIC: Final = 100
PAYERS: Final = 240
LIFE_S: Final = 7 * 86_400  # a chain with blocks faster than a second runs ahead of the wall clock
START_S: Final = 30.0
ETHER: Final = 10**18
USED_TOPIC: Final = "0x98de503528ee59b575ef0c0a2576a82497bfc029a5685b209e9ec333479b10a5"
TRANSFER_TOPIC: Final = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
_METHOD: Final = re.compile(rb'"method" *: *"([A-Za-z0-9_]+)"')
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_COUNTED: Final = re.compile(r'^facilitator_database_duration_seconds_count\{query="([^"]+)"\} ([0-9.e+]+)$', re.MULTILINE)
_NO_STATEMENT: Final = frozenset({"acquire", "release", "connect"})

BASELINE: Final = HERE / "baseline.json"
KEEP_BASELINE: Final = os.environ.get("BENCH_BASELINE") == "write"
"""Make this run's medians the committed figures that later runs are held against."""

Point = dict[str, Any]
"""One line of figures."""


# --- the way to the node ---


class _Upstream(asyncio.Protocol):
    """The node's side: what it answers goes back at once."""

    def __init__(self, caller: asyncio.Transport) -> None:
        self._caller = caller

    def data_received(self, data: bytes) -> None:
        self._caller.write(data)

    def connection_lost(self, _: Exception | None) -> None:
        self._caller.close()


class _Downstream(asyncio.Protocol):
    """The facilitator's side: requests are counted, delayed, and passed on unchanged."""

    def __init__(self, proxy: "RpcProxy") -> None:
        self._proxy = proxy
        self._scanned = b""
        self._held: list[bytes] | None = []
        self._upstream: asyncio.Transport | None = None
        self._caller: asyncio.Transport | None = None
        self._dialling: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._caller = cast("asyncio.Transport", transport)  # uvloop's is one in all but its class
        self._dialling = asyncio.get_running_loop().create_task(self._dial(self._caller))

    async def _dial(self, caller: asyncio.Transport) -> None:
        loop = asyncio.get_running_loop()
        try:
            self._upstream, _ = await loop.create_connection(lambda: _Upstream(caller), "127.0.0.1", self._proxy.node_port)
        except OSError:
            caller.abort()
            return
        held, self._held = self._held or [], None
        for data in held:
            self._upstream.write(data)

    def data_received(self, data: bytes) -> None:
        self._scan(data)
        if self._proxy.delay_s:
            asyncio.get_running_loop().call_later(self._proxy.delay_s, self._pass_on, data)
        else:
            self._pass_on(data)

    def _pass_on(self, data: bytes) -> None:
        if self._held is not None:
            self._held.append(data)
        elif self._upstream is not None and not self._upstream.is_closing():
            self._upstream.write(data)

    def _scan(self, data: bytes) -> None:
        self._scanned += data
        while (head := self._scanned.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._scanned, 0, head + 2)
            end = head + 4 + (int(length[1]) if length else 0)
            if len(self._scanned) < end:
                return
            self._proxy.requests += 1
            self._proxy.calls.update(_METHOD.findall(self._scanned, head, end))
            self._scanned = self._scanned[end:]

    def connection_lost(self, _: Exception | None) -> None:
        if self._upstream is not None:
            self._upstream.close()


class RpcProxy:
    """A port of our own before the node."""

    def __init__(self, node_port: int) -> None:
        self.node_port = node_port
        self.delay_s = 0.0
        self.requests = 0
        """HTTP requests."""
        self.calls: Counter[bytes] = Counter()
        """JSON-RPC calls by method; a batch holds several."""
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        """Listen; returns the URL."""
        self._server = await asyncio.get_running_loop().create_server(lambda: _Downstream(self), "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()


# --- the world ---


@contextlib.contextmanager
def on_cpus(cpus: set[int] | None) -> Iterator[None]:
    """Children started within run on these CPUs only; None leaves it to the machine."""
    if cpus is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


CPUS: Final = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
"""What this process may use, before it is put on some of them itself."""


def split_cpus() -> tuple[set[int], set[int]] | None:
    """One CPU for the contestant, the others for everything else; None on a machine with one."""
    return ({CPUS[0]}, set(CPUS[1:])) if len(CPUS) > 1 else None


class World:
    """Postgres and one chain with Circle's token, payers with money, and what time every block came."""

    def __init__(self, block_time_s: float | None) -> None:
        self.blocks = "auto" if block_time_s is None else f"{block_time_s:g}s"
        self.block_time_s = block_time_s
        self.state = StateDirectory.open()
        self.directory = Path(tempfile.mkdtemp(prefix="bench-", dir=self.state.path))
        self.postgres = Postgres(self.state)
        self.anvil = Anvil(self.state, block_time_s=block_time_s)
        self.block_seen: dict[int, float] = {}
        """Monotonic time at which each block was announced."""
        self._pool: list[Prepared] = []
        self._watch: asyncio.Task[None] | None = None
        self._load: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        await asyncio.gather(self.postgres.start(), self.anvil.start())
        token = await install_token(self.anvil.rpc_url)
        await token.fund([dev_account("buyer", number).address for number in range(PAYERS)], amount_atomic=10**12)
        await token.mint(PAYEE, 1)
        self._watch = asyncio.create_task(self._watch_blocks())
        self._load = await asyncio.create_subprocess_exec(
            *launched([sys.executable, HERE / "load.py"], stop_signal=signal.SIGTERM, account=None),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in filter(None, [self._watch]):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._load is not None:
            self._load.terminate()
            await self._load.wait()
        await asyncio.gather(self.postgres.stop(), self.anvil.stop())
        self.state.close()

    @property
    def token(self) -> Token:
        return Token.at(self.anvil.rpc_url)

    @property
    def load_pid(self) -> int:
        """Process id of the load generator."""
        assert self._load is not None
        return self._load.pid

    async def _watch_blocks(self) -> None:
        async with aiohttp.ClientSession() as session, session.ws_connect(self.anvil.rpc_url.replace("http", "ws"), max_msg_size=0) as ws:
            await ws.send_json({"jsonrpc": "2.0", "id": 1, "method": "eth_subscribe", "params": ["newHeads"]})
            async for message in ws:
                if message.type is aiohttp.WSMsgType.TEXT and '"params"' in message.data:
                    number = int(json.loads(message.data)["params"]["result"]["number"], 16)
                    self.block_seen.setdefault(number, time.monotonic())

    async def rpc(self, method: str, *params: object) -> Any:  # noqa: ANN401 - JSON
        return await self.anvil.node.call(method, *params)

    async def batch(self, calls: Sequence[tuple[str, list[object]]]) -> list[Any]:
        """Results in order; not through any proxy."""
        body = [{"jsonrpc": "2.0", "id": number, "method": method, "params": params} for number, (method, params) in enumerate(calls)]
        if not body:
            return []
        async with aiohttp.ClientSession() as session, session.post(self.anvil.rpc_url, json=body) as response:
            answers = sorted(await response.json(), key=lambda answer: int(answer["id"]))
        return [answer["result"] for answer in answers]

    # payments

    def prepare(self, count: int) -> "list[Prepared]":
        """Signed payments that were never sent; what is not used is given back with `give_back`."""
        while len(self._pool) < count:
            self._pool.append(Prepared.new(len(self._pool)))
        taken, self._pool = self._pool[:count], self._pool[count:]
        return taken

    def give_back(self, payments: "Sequence[Prepared]") -> None:
        self._pool.extend(payments)

    # load

    async def apply(
        self,
        contestant: "Contestant",
        route: str,
        payments: "Sequence[Prepared]",
        seconds: float,
        *,
        connections: int,
        rate: float | None = None,
        again: bool = False,
        headers: Sequence[dict[str, str]] = (),
        drain_s: float = 25.0,
        awake: bool = False,
    ) -> "LoadRun":
        """Send payments at the contestant from the load process, with these `headers` in turns, or the contestant's own.

        `awake` keeps its CPU busy, which should be its own then.
        """
        assert self._load is not None
        assert self._load.stdin is not None
        assert self._load.stdout is not None
        bodies, out = self.directory / "bodies.jsonl", self.directory / "answers.json"
        bodies.write_bytes(b"\n".join(payment.body for payment in payments) + b"\n")
        order = {
            "port": contestant.port,
            "headers": list(headers) or [contestant.headers],
            "route": route,
            "bodies": str(bodies),
            "out": str(out),
            "seconds": seconds,
            "connections": connections,
            "rate": rate,
            "again": again,
            "drain_s": drain_s,
            "awake": awake,
        }
        self._load.stdin.write(json.dumps(order).encode() + b"\n")
        told = json.loads(await self._load.stdout.readline())
        answers = [Answer(*answer) for answer in json.loads(out.read_bytes())]
        return LoadRun(answers=answers, began=told["began"], ended=told["ended"], used=min(told["used"], len(payments)))


@dataclass(frozen=True, slots=True)
class Answer:
    """One request and what came back."""

    index: int
    due: float
    at: float
    status: int
    body: str

    @property
    def json(self) -> dict[str, Any]:
        with contextlib.suppress(ValueError):
            found = json.loads(self.body)
            if isinstance(found, dict):
                return found
        return {}

    @property
    def word(self) -> str:
        """`success`, the protocol's reason, or what the HTTP layer said."""
        said = self.json
        if said.get("success") is True or said.get("isValid") is True:
            return "success"
        if self.status == 0:
            return "unsent" if self.body == "unsent" else "unanswered"
        return str(said.get("errorReason") or said.get("invalidReason") or said.get("error") or self.status)[:60]

    @property
    def seconds(self) -> float:
        return self.at - self.due


@dataclass(frozen=True, slots=True)
class LoadRun:
    """What the load process reports."""

    answers: list[Answer]
    began: float
    ended: float
    used: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """One signed payment as the body of a request."""

    body: bytes
    payer: str
    auth_nonce: str

    @classmethod
    def new(cls, number: int) -> Self:
        """Sign by hand: 30 µs instead of eth-account's millisecond; the chain itself judges the signature."""
        account = dev_account("buyer", number % PAYERS)
        terms = requirements(2, pay_to=PAYEE, amount_atomic=AMOUNT_ATOMIC)
        authorization = Authorization(
            scheme="exact",
            network=NETWORK,
            asset=Address(BASE_SEPOLIA_USDC.lower()),
            payer=Address(account.address.lower()),
            pay_to=Address(PAYEE.lower()),
            amount_atomic=Atomic(AMOUNT_ATOMIC),
            valid_after=UnixSeconds(0),
            valid_before=UnixSeconds(int(time.time()) + LIFE_S),
            auth_nonce=AuthNonce("0x" + secrets.token_hex(32)),
            signature=b"",
        )
        signature = PrivateKey(bytes(account.key)).sign_recoverable(transfer_digest(authorization, "USDC", "2"), hasher=None)
        payload = {
            "signature": "0x" + signature[:64].hex() + f"{signature[64] + 27:02x}",
            "authorization": {
                "from": account.address,
                "to": to_checksum_address(PAYEE),
                "value": str(AMOUNT_ATOMIC),
                "validAfter": "0",
                "validBefore": str(authorization.valid_before),
                "nonce": authorization.auth_nonce,
            },
        }
        resource = {"url": "http://127.0.0.1/report", "description": "report", "mimeType": "application/json"}
        payment = {"x402Version": 2, "resource": resource, "accepted": terms, "payload": payload}
        body = json.dumps(facilitator_request(payment, terms), separators=(",", ":")).encode()
        return cls(body, account.address.lower(), authorization.auth_nonce)


# --- contestants ---


async def statements(session: aiohttp.ClientSession, port: int) -> dict[str, float]:
    """How often a service of ours has run each of its statements."""
    async with session.get(f"http://127.0.0.1:{port}/metrics") as response:
        text = await response.text()
    return {query: float(count) for query, count in _COUNTED.findall(text) if query not in _NO_STATEMENT}


class Contestant(ABC):
    """One facilitator under test."""

    def __init__(self, name: str, world: World, relayers: int = 1) -> None:
        self.name = name
        self.world = world
        self.relayers = [dev_account(f"bench-{name}", number) for number in range(relayers)]
        self.wallets = {account.address.lower() for account in self.relayers}
        self.proxy = RpcProxy(world.anvil.port)
        self.rpc_url = ""
        self.port = free_port()
        self.cpus: set[int] | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {}

    @property
    @abstractmethod
    def pid(self) -> int:
        """Process id of its service."""

    async def prepare(self) -> None:
        self.rpc_url = await self.proxy.start()
        for account in self.relayers:
            await self.world.token.set_gas_money(account.address, 10**6 * ETHER)

    @abstractmethod
    async def start(self) -> None:
        """Start its service and wait until it answers."""

    @abstractmethod
    async def stop(self) -> None:
        """End its service."""

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def database(self) -> dict[str, float]:
        """Counters of its database; empty without one."""
        return {}


class Ours(Contestant):
    """`facilitator serve`."""

    def __init__(
        self, world: World, relayers: int, settings: Mapping[str, Mapping[str, Any]] | None = None, *, name: str | None = None
    ) -> None:
        super().__init__(name or f"ours-{relayers}", world, relayers)
        self._settings = settings or {}
        self._service: ServeProcess | None = None
        self._database_url = ""

    @property
    def headers(self) -> dict[str, str]:
        assert self._service is not None
        return self._service.headers

    @property
    def pid(self) -> int:
        assert self._service is not None
        return self._service.pid

    async def prepare(self) -> None:
        await super().prepare()
        self._database_url = await self.world.postgres.create_database(self.name.replace("-", "_"))
        await migrate(self._database_url)
        await self.fill(self._database_url)
        self._service = ServeProcess(
            self.world.directory / self.name,
            database_url=self._database_url,
            rpc_url=self.rpc_url,
            relayer_keys=["0x" + bytes(account.key).hex() for account in self.relayers],
            settings=self._settings,
            port=self.port,
        )
        await asyncio.to_thread(lambda: self.headers)  # makes the API key

    async def fill(self, database_url: str) -> None:
        """What its ledger holds before it starts: nothing."""

    async def start(self) -> None:
        assert self._service is not None
        with on_cpus(self.cpus):
            self._service.spawn()
        await asyncio.to_thread(self._service.wait_ready)

    async def stop(self) -> None:
        if self._service is not None:
            await self._service.aterminate()

    async def limited_tenant(self, tenant: str, *limits: str) -> str:
        """Make a tenant with these limits, as `tenants set` takes them, and return a key of it."""
        assert self._service is not None
        key = await asyncio.to_thread(self._service.create_key, tenant)
        await asyncio.to_thread(self._service.command, "tenants", "set", tenant, *limits)
        return key

    async def database(self) -> dict[str, float]:
        async with aiohttp.ClientSession() as session:
            counted = await statements(session, self.port)
        connection = await asyncpg.connect(self._database_url)
        try:
            commits = await connection.fetchval("select xact_commit from pg_stat_database where datname = current_database()")
            synced = await connection.fetchval("select coalesce(sum(fsyncs), 0) from pg_stat_io where object = 'wal'")
        finally:
            await connection.close()
        return counted | {"commits": float(commits), "wal_fsyncs": float(synced)}

    @property
    def logs(self) -> str:
        return self._service.logs if self._service else ""


class Peer(Contestant):
    """A program of `peers/`."""

    def __init__(self, name: str, program: str, world: World, **environment: str) -> None:
        super().__init__(name, world)
        self._program = program
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        directory = self.world.directory / self.name
        if not directory.exists():
            directory.mkdir()
            (directory / self._program).write_bytes((HERE / "peers" / self._program).read_bytes())
            (directory / "node_modules").symlink_to(NODE_MODULES, target_is_directory=True)
        run = node_program() if self._program.endswith(".mjs") else sys.executable
        keep = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        own = {"RPC_URL": self.rpc_url, "EVM_PRIVATE_KEY": "0x" + bytes(self.relayers[0].key).hex(), "PORT": str(self.port)}
        with on_cpus(self.cpus), (directory / "log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603, ASYNC220 - one of our own peers
                launched([run, directory / self._program], stop_signal=signal.SIGTERM, account=None),
                env=keep | own | self._environment,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        end = time.monotonic() + START_S
        while await asyncio.to_thread(http_status, f"http://127.0.0.1:{self.port}/readyz") != 200:
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{self.name} did not start:\n{(directory / 'log').read_text()[-2000:]}")
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                await asyncio.to_thread(self._process.wait, 3)
            except subprocess.TimeoutExpired:
                self._process.kill()
                await asyncio.to_thread(self._process.wait)


def python_peer(world: World) -> Peer:
    return Peer("python", "python_facilitator.py", world)


def bare_python_peer(world: World) -> Peer:
    """The same as its installation leaves it: `x402[evm]` brings no coincurve, so eth-keys recovers in pure Python."""
    return Peer("python-bare", "python_facilitator.py", world, ECC_BACKEND_CLASS="eth_keys.backends.NativeECCBackend")


def ts_peer(world: World) -> Peer:
    return Peer("ts", "ts_facilitator.mjs", world)


@contextlib.asynccontextmanager
async def running(
    contestants: Sequence[Contestant], *, apart: Literal["contestants", "load"] | None = None
) -> AsyncIterator[list[Contestant]]:
    """Start those that `BENCH_ONLY` names, or all. Where there are two CPUs, one is for those who are `apart` alone."""
    chosen = [one for one in contestants if not ONLY or one.name in ONLY]
    cpus = split_cpus() if apart else None
    try:
        for one in chosen:
            one.cpus = cpus[0] if cpus else None
            await one.prepare()
            await one.start()
        if cpus is not None and chosen:
            world = chosen[0].world
            put_on(cpus[0] if apart == "load" else cpus[1], os.getpid(), world.anvil.pid, world.postgres.pid)
            put_on(cpus[1], world.load_pid)
        yield chosen
    finally:
        if cpus is not None:
            put_on(set(CPUS), os.getpid())
        for one in chosen:
            await one.stop()
            await one.proxy.stop()


def put_on(cpus: set[int], *roots: int) -> None:
    """Put these processes on these CPUs, threads and what the database server started and all."""
    workers = [child.pid for pid in roots if pid != os.getpid() for child in psutil.Process(pid).children(recursive=True)]
    for pid in (*roots, *workers):
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(int(thread.name), cpus)


# --- measuring ---


def strangers(spent: Mapping[str, float]) -> float:
    """How many CPUs others kept busy meanwhile, the hypervisor included: how far to trust the times."""
    known = sum(spent[key] for key in ("cpu", "anvil_cpu", "postgres_cpu", "bench_cpu"))
    return round(max(0.0, spent["machine_cpu"] - known) / max(spent["clock"], 1e-9), 2)


def _machine_cpu_s() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0))


def cpu_s(pid: int, *, family: bool = True) -> float:
    """CPU of a process, its threads and, with `family`, all its children, ended ones included."""
    total = 0.0
    try:
        process = psutil.Process(pid)
        if not family:
            times = process.cpu_times()
            return float(times.user + times.system)
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                times = one.cpu_times()
                total += times.user + times.system + (times.children_user + times.children_system if one is process else 0.0)
    except psutil.Error:
        pass
    return total


@dataclass(slots=True)
class Meter:
    """Counters before and after."""

    contestant: Contestant
    before: dict[str, float] = field(default_factory=dict)

    async def _read(self) -> dict[str, float]:
        one, world = self.contestant, self.contestant.world
        return {
            "cpu": cpu_s(one.pid),
            "anvil_cpu": cpu_s(world.anvil.pid),
            "postgres_cpu": cpu_s(world.postgres.pid),
            "bench_cpu": cpu_s(os.getpid(), family=False) + cpu_s(world.load_pid),
            "machine_cpu": _machine_cpu_s(),
            "clock": time.monotonic(),
            "rpc_requests": float(one.proxy.requests),
            "rpc_calls": float(one.proxy.calls.total()),
        }

    async def start(self) -> None:
        self.before = await self._read() | {f"db_{key}": value for key, value in (await self.contestant.database()).items()}

    async def cpu_now(self) -> dict[str, float]:
        """CPU and RPC since the start; call it as soon as the load ends, before anybody else works."""
        return {key: value - self.before[key] for key, value in (await self._read()).items()}

    async def database_now(self) -> dict[str, float]:
        """Statements since the start. Postgres tells its own counters up to a second late."""
        if not any(key.startswith("db_") for key in self.before):
            return {}
        await asyncio.sleep(1.1)
        after = {f"db_{key}": value for key, value in (await self.contestant.database()).items()}
        return {key: value - self.before.get(key, 0.0) for key, value in after.items()}


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value that `share` of the values do not exceed."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def in_ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)


def per(amount: float, count: int, digits: int = 3) -> float | None:
    """Amount for one payment."""
    return round(amount / count, digits) if count else None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The chain's own word on a run's answers."""

    paid: int
    """Payments of this run that the chain holds."""
    paid_twice: int
    told_paid_and_is_not: int
    told_failed_and_is_paid: int
    transactions: int
    gas: int

    @property
    def false_answers(self) -> int:
        return self.paid_twice + self.told_paid_and_is_not + self.told_failed_and_is_paid


async def quiet(world: World) -> None:
    """Wait until the chain has nothing left to mine, 10 s at most."""
    end = time.monotonic() + 10.0
    while time.monotonic() < end:
        status = await world.rpc("txpool_status")
        if int(status["pending"], 16) == 0:
            return
        if world.block_time_s is None:
            await world.rpc("evm_mine")
        await asyncio.sleep(0.05)


async def judge(world: World, contestant: Contestant, payments: Sequence[Prepared], answers: Sequence[Answer], since: int) -> Verdict:
    """Hold every answer against the chain, from block `since` on."""
    await quiet(world)
    head = int(await world.rpc("eth_blockNumber"), 16)
    criteria = {"fromBlock": hex(min(since, head)), "toBlock": hex(head), "address": BASE_SEPOLIA_USDC, "topics": [USED_TOPIC]}
    ours = {(payment.payer, payment.auth_nonce) for payment in payments}
    carried: dict[tuple[str, str], list[str]] = defaultdict(list)
    for log in await world.rpc("eth_getLogs", criteria):
        key = ("0x" + log["topics"][1][-40:], log["topics"][2])
        if key in ours:
            carried[key].append(log["transactionHash"])
    told_paid = told_failed = 0
    for answer in answers:
        if answer.index < 0:
            continue
        payment, said = payments[answer.index], answer.json
        hashes = carried.get((payment.payer, payment.auth_nonce), [])
        if said.get("success") is True:
            told_paid += str(said.get("transaction")) not in hashes
        elif said.get("success") is False and said.get("errorReason") != "settlement_pending":
            told_failed += bool(hashes)
    transactions = gas = 0
    for start in range(since, head + 1, 200):
        wanted: list[tuple[str, list[object]]] = [("eth_getBlockReceipts", [hex(n)]) for n in range(start, min(start + 200, head + 1))]
        for receipts in await world.batch(wanted):
            mine = [receipt for receipt in receipts or [] if receipt["from"] in contestant.wallets]
            transactions += len(mine)
            gas += sum(int(receipt["gasUsed"], 16) for receipt in mine)
    twice = sum(len(hashes) > 1 for hashes in carried.values())
    return Verdict(len(carried), twice, told_paid, told_failed, transactions, gas)


# --- reporting ---


class Report:
    """Figures as JSON lines on stdout, a table on stderr at the end."""

    def __init__(self, bench: str) -> None:
        self.bench = bench
        self._rounds: dict[str, list[Point]] = defaultdict(list)
        self._what: dict[str, Point] = {}
        self.medians: list[Point] = []
        self._head: Point = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "machine": machine(), "versions": versions(), "quick": QUICK}
        self.note(self._head)

    def note(self, facts: Point) -> None:
        print(json.dumps({"bench": self.bench, **facts}), flush=True)

    def add(self, what: Point, figures: Point) -> None:
        """One round of one point."""
        key = json.dumps(what, sort_keys=True)
        self._what[key] = what
        self._rounds[key].append(figures)
        self.note({"round": len(self._rounds[key]), **what, **figures})

    def close(self, rate: str, columns: Sequence[tuple[str, str]]) -> None:
        """Medians over rounds, ratios to the peers at the same point by the figure `rate`, and the table."""
        for key, rounds in self._rounds.items():
            self.medians.append(self._what[key] | _medians(rounds) | {"rounds": len(rounds)})
        for point in self.medians:
            for peer in ("python", "python-bare", "ts"):
                other = next((one for one in self.medians if _same(one, point) and one["who"] == peer), None)
                if other is not None and point["who"] != peer and other.get(rate) and point.get(rate):
                    point[f"times_{peer.replace('-', '_')}"] = round(point[rate] / other[rate], 1)
                    if point.get("cpu_ms") and other.get("cpu_ms"):
                        point[f"cpu_{peer.replace('-', '_')}"] = round(other["cpu_ms"] / point["cpu_ms"], 1)
        baseline = read_baseline(self.bench)
        for point in self.medians:
            before = next((one for one in baseline if _same(one, point) and one["who"] == point["who"]), {}).get(rate)
            if before and point.get(rate):
                point["times_baseline"] = round(point[rate] / before, 2)
            self.note({"median": True, **point})
        _table(self.bench, self.medians, (*columns, ("times_baseline", "x baseline")))
        if KEEP_BASELINE:
            write_baseline(self.bench, self._head, self.medians)


def read_baseline(bench: str) -> list[Point]:
    """The committed medians of a benchmark."""
    points: list[Point] = json.loads(BASELINE.read_bytes()).get(bench, {}).get("points", []) if BASELINE.exists() else []
    return points


def write_baseline(bench: str, head: Point, points: Sequence[Point]) -> None:
    """Replace one benchmark's part of the committed file, a line for each point."""
    kept = json.loads(BASELINE.read_bytes()) if BASELINE.exists() else {}
    kept[bench] = head | {"points": [{key: value for key, value in point.items() if key != "times_baseline"} for point in points]}
    parts = []
    for name, part in sorted(kept.items()):
        facts = json.dumps({key: value for key, value in part.items() if key != "points"})[1:-1]
        lines = ",\n".join("  " + json.dumps(point) for point in part["points"])
        parts.append(f'{json.dumps(name)}: {{{facts}, "points": [\n{lines}\n]}}')
    BASELINE.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def _same(one: Point, other: Point) -> bool:
    """The same point for another contestant."""
    return all(one.get(key) == other.get(key) for key in ("blocks", "rpc_ms", "load", "n", "what"))


def _medians(rounds: Sequence[Point]) -> Point:
    """Numbers by their median, counts of trouble by their sum, texts merged."""
    merged: Point = {}
    for key in {key: None for one in rounds for key in one}:
        values = [one[key] for one in rounds if one.get(key) is not None]
        if values and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            merged[key] = sum(values) if key in {"false", "sent", "failed", "unanswered", "paid"} else round(statistics.median(values), 3)
        elif values and all(isinstance(value, dict) for value in values):
            total: Counter[str] = Counter()
            for value in values:
                total.update(value)
            merged[key] = dict(total)
        else:
            merged[key] = values[0] if values else None
    return merged


def _table(title: str, points: Sequence[Point], columns: Sequence[tuple[str, str]]) -> None:
    rows = [[_shown(point.get(key)) for key, _ in columns] for point in points]
    heads = [head for _, head in columns]
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(columns))]
    print(f"\n{title}", file=sys.stderr)
    for row in [heads, ["-" * width for width in widths], *rows]:
        cells = (cell.ljust(width) if index < 2 else cell.rjust(width) for index, (cell, width) in enumerate(zip(row, widths, strict=True)))
        print("| " + " | ".join(cells) + " |", file=sys.stderr)


def _shown(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def machine() -> str:
    """Class of machine, no more."""
    model = "unknown"
    with contextlib.suppress(OSError):
        model = next(
            (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), model
        )
    return f"{os.cpu_count()} CPUs, {model}, {round(psutil.virtual_memory().total / 2**30)} GiB, Python {sys.version.split()[0]}"


def versions() -> dict[str, str]:
    """Of what is compared."""
    found = {name: version(name) for name in ("facilitator", "x402", "web3", "fastapi", "uvicorn", "uvloop", "coincurve")}
    for name in ("@x402/core", "@x402/evm", "viem", "express"):
        with contextlib.suppress(OSError):
            found[name] = json.loads((NODE_MODULES / name / "package.json").read_bytes())["version"]
    return found
