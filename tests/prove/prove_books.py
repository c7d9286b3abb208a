"""A million settlements: every export in constant memory, and its sums those of the journal."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from facilitator.clock import SystemClock
from facilitator.finance.seals import Sealer, verify
from facilitator.finance.settings import Settings
from facilitator.store.db import Db
from tests.fixtures.books import NETWORK, USDC, plant

START = datetime(2025, 11, 1, tzinfo=UTC)
SETTLEMENTS = 1_000_000
GROWTH_BYTES_MAX = 64 << 20
_EXPORT = """
import asyncio, json, re, sys
from datetime import UTC, datetime
from pathlib import Path
from facilitator.domain.periods import Period
from facilitator.finance.export import Asked, export_report
from facilitator.store.db import Db
from facilitator.units import UTC_ZONE

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

async def main(url, kind, out):
    db = await Db.connect(url, connections_max=2)
    period = Period(datetime(2025, 11, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC))
    small = Period(period.start, datetime(2025, 11, 1, 0, 10, tzinfo=UTC))
    asked = dict(zone=UTC_ZONE, tenant_id=None, format=kind, decimals={}, rate_stale_s=3600.0, booking_zone=UTC_ZONE)
    await export_report(db, Asked(period=small, **asked), Path(out))  # what every export loads
    before = peak()
    manifest = await export_report(db, Asked(period=period, **asked), Path(out))
    after = peak()
    await db.close()
    print(json.dumps({"growth": after - before, "manifest": manifest}))

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
async def million(database_url: str) -> AsyncIterator[tuple[str, Any]]:
    connection = await asyncpg.connect(database_url)
    for first in range(0, SETTLEMENTS, 50_000):
        await plant(connection, 50_000, first=first, start=START, step=timedelta(seconds=30))
    await connection.execute("vacuum analyze")
    yield database_url, connection
    await connection.close()


async def test_a_million_rows_are_exported_in_constant_memory(million: tuple[str, Any], tmp_path: Path) -> None:
    url, connection = million
    posted = await connection.fetchval("select sum(amount_atomic)::text from journal_entry where phase = 'posted'")
    for kind in ("csv", "jsonl", "parquet"):
        started = datetime.now(UTC)
        done = subprocess.run(
            [sys.executable, "-c", _EXPORT, url, kind, str(tmp_path / "out")], capture_output=True, text=True, env=os.environ, check=False
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        took = datetime.now(UTC) - started
        print(f"{kind}: {found['growth'] >> 20} MiB more, {took.total_seconds():.0f} s, {found['manifest']['bytes'] >> 20} MiB")  # noqa: T201
        assert found["manifest"]["rows"] == SETTLEMENTS
        assert found["manifest"]["sums"][f"{NETWORK}/{USDC}"]["settlement"]["amount_atomic"] == posted
        assert found["growth"] < GROWTH_BYTES_MAX
    await _sealed_and_verified(url)


async def _sealed_and_verified(url: str) -> None:
    """Two million entries are sealed, and the whole history is verified, within a minute a million."""
    db = await Db.connect(url)
    sealer = Sealer(db, SystemClock(), Settings())
    started = time.monotonic()
    while (sealed := await sealer.seal()) is not None:
        last = sealed
    print(f"sealed in {time.monotonic() - started:.0f} s")  # noqa: T201
    started = time.monotonic()
    found = await verify(db, {last.seal_no: last.head})
    took = time.monotonic() - started
    print(f"{found.leaves} records in {found.seals} seals verified in {took:.0f} s")  # noqa: T201
    assert (found.wrong, found.leaves) == ((), 2 * SETTLEMENTS)
    assert took < 60 * found.leaves / 1_000_000
    await db.close()


async def test_no_writer_waits_for_a_sealer(database_url: str) -> None:
    """Eight writers that saturate one process, with and without a sealer in it, turn by turn: it takes its share of the processor."""
    db = await Db.connect(database_url)
    sealer = Sealer(db, SystemClock(), Settings())
    entry = "insert into journal_entry (phase, debit, credit, asset, amount_atomic) values ('pending', 'payer:0xaa', 'payee:0xbb', 'x', 1)"
    written = {True: 0, False: 0}

    async def write(until: float, *, sealing: bool) -> None:
        connection = await asyncpg.connect(database_url)
        while time.monotonic() < until:
            await connection.execute(entry)
            written[sealing] += 1
        await connection.close()

    async def seal(until: float) -> None:
        while time.monotonic() < until:
            await sealer.seal()
            await asyncio.sleep(min(Settings().seal_s / 10, 1.0))

    for turn in range(12):
        sealing, until = turn % 2 == 1, time.monotonic() + 3.0
        await asyncio.gather(*(write(until, sealing=sealing) for _ in range(8)), *([seal(until)] if sealing else []))
    ratio = written[True] / written[False]
    print(f"{written[False] / 18:.0f} entries a second, {written[True] / 18:.0f} beside a sealer ten times as eager as ours: {ratio:.2f}")  # noqa: T201
    assert ratio > 0.5
    await db.close()
