"""The process that makes one file: `python -m facilitator.finance.export_job`, its order on standard input.

A process of its own, so that a million rows take neither the event loop nor the memory of those who settle payments. It runs
below their priority, writes no file larger than it may, and stops when the job is not running any more. The file goes to
Postgres in parts, each with its own commit: a long transaction would keep the sealer waiting.
"""

import asyncio
import errno
import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from uuid import UUID

import msgspec

from facilitator.errors import ConfigFault, Fault
from facilitator.finance.export_files import Wanted, expected_rows, make_file
from facilitator.store import exports
from facilitator.store.db import Db
from facilitator.store.seals import record_event

_NICE: Final = 10
_CHUNK_BYTES: Final = 1 << 20
_CONNECTIONS: Final = 2
"""One reads the snapshot, the other says how far it is."""
_STATEMENT_S: Final = 60.0
NO_BUG: Final = 0
BUG: Final = 1


class Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the process is told; the address of the database is a secret, so it comes neither by argument nor by environment."""

    database_url: str
    export_id: UUID
    person: str
    wanted: Wanted
    directory: str | None
    """Where the file is made; None: the system's temporary directory."""
    bytes_max: int
    kept_s: float


class _Over(Exception):
    """The job runs no more: it was cancelled, or given up as dead."""


async def make(db: Db, order: Order) -> None:
    """Make the file and keep it. Raises what `make_file` raises, and `_Over`."""

    def go_on(running: bool) -> None:  # noqa: FBT001 - what the store answers
        if not running:
            raise _Over

    async def progress(rows: int) -> None:
        go_on(await exports.count(db, order.export_id, rows))

    go_on(await exports.expect(db, order.export_id, await expected_rows(db, order.wanted)))
    with tempfile.TemporaryDirectory(prefix="export-", dir=order.directory) as directory:
        tempfile.tempdir = directory  # what libraries put aside goes with it
        path, manifest = await make_file(db, order.wanted, Path(directory), progress)
        await progress(manifest["rows"])
        with path.open("rb") as file:
            number = 0
            while chunk := file.read(_CHUNK_BYTES):
                go_on(await exports.add_chunk(db, order.export_id, number, chunk))
                number += 1
        async with db.transaction() as session:
            text = json.dumps(manifest, indent=2) + "\n"
            go_on(await exports.finish(session, order.export_id, manifest["rows"], text, manifest["bytes"], order.kept_s))
            made = {"export": str(order.export_id), "kind": order.wanted.kind, "sha256": manifest["sha256"], "rows": manifest["rows"]}
            await record_event(session, "export_made", order.person, json.dumps(made))


async def run(order: Order) -> int:
    """Make it, or say on record why not; the exit status."""
    db = await Db.connect(order.database_url, connections_max=_CONNECTIONS, statement_timeout_s=_STATEMENT_S)
    try:
        try:
            await make(db, order)
        except _Over:
            pass
        except Exception as error:  # noqa: BLE001 - the top of a process
            problem, status = _problem(error, order)
            if status == BUG:
                traceback.print_exc()
            await exports.fail(db, order.export_id, problem)
            return status
        return NO_BUG
    finally:
        await db.close()


def _problem(error: BaseException, order: Order) -> tuple[str, int]:
    """In words for whoever asked."""
    if isinstance(error, ConfigFault):
        return f"{error.message}.", NO_BUG
    if isinstance(error, Fault):
        return "The database could not be read to the end. Nothing is lost: ask again.", NO_BUG
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno == errno.EFBIG:
            return f"The file would be larger than {order.bytes_max:,} bytes (console.export_bytes_max): choose a shorter period.", NO_BUG
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            return "There is no room where the file is made (console.export_directory).", NO_BUG
    return "This is a bug of ours; the log has it.", BUG


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def main() -> int:
    """Read the order, bound the process, make the file."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's: whoever started this ends it
    os.nice(_NICE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (order.bytes_max, order.bytes_max))
    return asyncio.run(run(order))


if __name__ == "__main__":
    sys.exit(main())
