"""The local stack's child processes and the directory that remembers them.

A child never outlives its owner: on Linux the kernel signals it when the owner dies, and everywhere the next owner of the
same state directory ends what an earlier one left, known by pid and start time so that no stranger is ever signalled.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Self

import psutil

from facilitator.errors import Fault

_LAUNCHER: Final = Path(__file__).with_name("launch.py")
_TEMPORARY: Final = "facilitator-stack-"
_START_TOLERANCE_S: Final = 2.0


class StackFault(Fault):
    """A part of the local stack is missing, did not start in time or died."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The operating system's user that a child runs as."""

    uid: int
    gid: int
    see_all: bool
    """Keep access to every file: for programs or data in a directory that this user cannot enter."""


class Child:
    """One running program. Its pid and start time are on record in `record` until it was seen to end."""

    def __init__(self, process: subprocess.Popen[bytes], record: Path, stop_signal: signal.Signals) -> None:
        self._process = process
        self._record = record
        self._stop_signal = stop_signal

    @classmethod
    def start(
        cls,
        argv: Sequence[str | Path],
        *,
        record: Path,
        log: Path,
        cwd: Path,
        stop_signal: signal.Signals = signal.SIGINT,
        account: Account | None = None,
    ) -> Self:
        """Start `argv` (absolute path first), its output going to `log`, which is emptied first.

        The child dies with the calling thread: call from one that lives as long as the stack.
        """
        with log.open("wb") as out:
            process = subprocess.Popen(
                launched(argv, stop_signal=stop_signal, account=account),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the terminal's Ctrl-C is for us alone; we stop children in order
            )
        started = psutil.Process(process.pid).create_time()
        record.write_text(json.dumps({"pid": process.pid, "started": started}), encoding="ascii")
        return cls(process, record, stop_signal)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """None while it runs; reaps it when it has ended. Negative: the signal that ended it."""
        return self._process.poll()

    async def stop(self, *, grace_s: float = 10.0) -> None:
        """Ask it to stop, end it by force after `grace_s` seconds, reap it, forget it. Does nothing to one that has ended."""
        if self.exit_status is None:
            self._process.send_signal(self._stop_signal)
            try:
                await asyncio.to_thread(self._process.wait, grace_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                await asyncio.to_thread(self._process.wait)
        self._record.unlink(missing_ok=True)

    async def kill(self) -> None:
        """End it at once by SIGKILL, as a crash would, and reap it."""
        self._process.kill()
        await asyncio.to_thread(self._process.wait)
        self._record.unlink(missing_ok=True)


def launched(argv: Sequence[str | Path], *, stop_signal: signal.Signals, account: Account | None) -> list[str]:
    """The command that becomes `argv` with its life tied to this process."""
    command = [sys.executable, "-I", "-S", str(_LAUNCHER), "--parent", str(os.getpid()), "--signal", str(int(stop_signal))]
    if account is not None:
        command += ["--uid", str(account.uid), "--gid", str(account.gid)]
        command += ["--see-all"] if account.see_all else []
    return [*command, "--", *map(str, argv)]


def end_recorded(record: Path, *, grace_s: float = 10.0) -> None:
    """End the child that an earlier owner recorded and did not see to its end. Blocks for at most twice `grace_s`."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, psutil.NoSuchProcess):
        known = json.loads(record.read_bytes())
        process = psutil.Process(int(known["pid"]))
        if abs(process.create_time() - float(known["started"])) <= _START_TOLERANCE_S:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(grace_s)
            except psutil.TimeoutExpired:
                process.kill()
                process.wait(grace_s)
    record.unlink(missing_ok=True)


def reachable_by_others(path: Path) -> bool:
    """Whether any user may enter every directory above `path` and read (and run) it."""
    path = path.resolve()
    needed = stat.S_IROTH | (stat.S_IXOTH if os.access(path, os.X_OK) else 0)
    above = all(parent.stat().st_mode & stat.S_IXOTH for parent in path.parents)
    return above and path.stat().st_mode & needed == needed


class StateDirectory:
    """Where a stack keeps data, logs and records. One owner at a time, held by a file lock that dies with the owner."""

    def __init__(self, path: Path, lock: IO[bytes], *, temporary: bool) -> None:
        self.path = path
        self.temporary = temporary
        self._lock = lock

    @classmethod
    def open(cls, path: Path | None = None) -> Self:
        """Take `path`, made when missing, or a new temporary directory that `close` removes.

        What earlier owners left running is ended first, in `path` and in temporary directories without an owner.
        Raises StackFault when another process holds `path`.
        """
        if path is None:
            _sweep_temporary()
            made = Path(tempfile.mkdtemp(prefix=_TEMPORARY))
            unborn = _locked(made / "lock.new")
            assert unborn is not None, "nobody else knows this name"
            (made / "lock.new").rename(made / "lock")  # a sweeper sees the lock only when it is held
            made.chmod(0o711)  # the database's user passes through
            return cls(made, unborn, temporary=True)
        path = path.resolve()
        path.mkdir(parents=True, exist_ok=True)
        lock = _locked(path / "lock")
        if lock is None:
            raise StackFault("state_in_use", f"{path} belongs to a running stack: stop it or choose another directory")
        _end_all(path)
        return cls(path, lock, temporary=False)

    def record(self, name: str) -> Path:
        """The file that remembers the running child `name`."""
        return self.path / f"{name}.child.json"

    def close(self) -> None:
        """Let go of the directory; a temporary one is removed. Children must have been stopped."""
        if self.temporary:
            shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _locked(path: Path) -> IO[bytes] | None:
    """An exclusively locked file, or None when someone else holds it."""
    lock = path.open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def _end_all(path: Path) -> None:
    for record in path.glob("*.child.json"):
        end_recorded(record)


def _sweep_temporary() -> None:
    """Remove the temporary stacks of our own user whose owners died, and what still runs in them."""
    for path in Path(tempfile.gettempdir()).glob(_TEMPORARY + "*"):
        with contextlib.suppress(OSError):
            if path.lstat().st_uid != os.geteuid() or path.is_symlink() or not (path / "lock").exists():
                continue
            lock = _locked(path / "lock")
            if lock is not None:
                with lock:
                    _end_all(path)
                    shutil.rmtree(path, ignore_errors=True)
