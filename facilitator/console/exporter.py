"""Sees to it that the files people asked for are made: takes the next job, starts a process for it, says that it lives.

Any replica may take any job; the database has a few places for those that run at the same time. A job whose process died, or
whose replica did, is told to have failed, and can be asked for again.
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import Final

import msgspec

from facilitator.clock import Clock
from facilitator.console.settings import Settings
from facilitator.errors import Fault
from facilitator.finance.export_files import Wanted
from facilitator.finance.export_job import Order
from facilitator.finance.settings import Settings as FinanceSettings
from facilitator.schemes.scheme import Token
from facilitator.store import exports
from facilitator.store.db import ConstraintViolated, Db
from facilitator.store.exports import Claimed
from facilitator.telemetry import get_logger

POLL_S: Final = 2.0
"""How often it is looked for jobs that were asked for elsewhere."""
_TOUCH_S: Final = 5.0
SILENT_S: Final = 60.0
"""A job that was not heard of for so long has no process any more."""
_DROP_CHUNKS: Final = 64
"""Parts of old files that one statement deletes."""
DIED: Final = "The process that made it ended before the file was whole. Ask again."
_log = get_logger()


class Exporter:
    """Of one replica."""

    def __init__(self, settings: Settings, finance: FinanceSettings, tokens: Sequence[Token], clock: Clock) -> None:
        self._settings = settings
        self._finance = finance
        self._tokens = tuple(tokens)
        self._clock = clock
        self._asked = asyncio.Event()
        self._making: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        """Something was asked for here."""
        self._asked.set()

    async def run(self, db: Db) -> None:
        """Until cancelled; the processes that it started end with it, and their jobs are told to have failed."""
        try:
            while True:
                self._asked.clear()
                try:
                    await self._look(db)
                except Fault as fault:  # what is being made goes on
                    _log.warning("export.untold", fault=fault.kind, detail=str(fault))
                await self._rest()
        finally:
            making = [*self._making]
            for task in making:
                task.cancel()
            await asyncio.gather(*making, return_exceptions=True)

    async def _look(self, db: Db) -> None:
        await exports.fail_silent(db, SILENT_S, DIED)
        while await exports.drop_chunks(db, _DROP_CHUNKS):
            pass
        while (job := await self._claim(db)) is not None:
            task = asyncio.create_task(self._make(db, job), name="export")
            self._making.add(task)
            task.add_done_callback(self._ended)

    async def _rest(self) -> None:
        waits = [asyncio.ensure_future(self._asked.wait()), asyncio.ensure_future(self._clock.sleep(POLL_S))]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _claim(self, db: Db) -> Claimed | None:
        if len(self._making) >= self._settings.exports_max:
            return None
        try:
            return await exports.claim(db, self._settings.exports_max)
        except ConstraintViolated:  # another replica took the place
            return None

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._making.discard(task)
        self._asked.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("export.lost", error=repr(error))

    async def _make(self, db: Db, job: Claimed) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "facilitator.finance.export_job",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        saying = asyncio.ensure_future(process.communicate(msgspec.json.encode(self._order(db, job))))
        try:
            while not saying.done():
                await asyncio.wait([saying], timeout=_TOUCH_S)
                await _touch(db, job)
            _, said = await saying
        finally:
            if process.returncode is None:
                process.kill()
                await saying
            await asyncio.shield(self._close(db, job, process.returncode))
        if process.returncode:
            _log.error(
                "export.crashed", export=str(job.export_id), status=process.returncode, detail=said.decode(errors="replace")[-4_000:]
            )

    async def _close(self, db: Db, job: Claimed, status: int | None) -> None:
        """What its process left running runs no more."""
        try:
            await exports.fail(db, job.export_id, DIED)
            ended = await exports.get(db, job.export_id)
        except Fault as fault:  # it will be found silent
            _log.warning("export.untold", fault=fault.kind, detail=str(fault))
            return
        if ended is not None:
            _log.info("export.ended", export=str(job.export_id), kind=job.kind, state=ended.state, rows=ended.rows_done, status=status)

    def _order(self, db: Db, job: Claimed) -> Order:
        settings = self._settings
        wanted = Wanted(
            kind=job.kind,
            format=job.format,
            asked=json.loads(job.asked),
            tokens=self._tokens,
            booking_zone=self._finance.booking_zone,
            rate_stale_s=self._finance.rate_stale_s,
        )
        return Order(
            database_url=db.url,
            export_id=job.export_id,
            person=job.person,
            wanted=wanted,
            directory=settings.export_directory,
            bytes_max=settings.export_bytes_max,
            kept_s=settings.export_kept_s,
        )


async def _touch(db: Db, job: Claimed) -> None:
    try:
        await exports.touch(db, job.export_id)
    except Fault as fault:
        _log.warning("export.untold", fault=fault.kind, detail=str(fault))
