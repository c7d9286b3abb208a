"""A backup is restored that is older than the last payments: the service heals itself from the chain, and pays nothing twice."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from facilitator.devstack.stack import Postgres, _postgres_programs
from tests.fixtures.house import House, client_session, eventually, words
from tests.fixtures.service import ServeProcess

BEFORE = 3
LOST = 12
"""Paid after the backup was taken."""
POOLED = 2
"""Sent after it, and not mined when the database was lost."""


@pytest_asyncio.fixture
async def house(tmp_path: Path, database_url: str) -> AsyncIterator[House]:
    """Its transactions carry several payments each."""
    async with House.open(tmp_path, database_url, settlement={"batch_min": 1, "linger_ms": 200}) as house:
        await house.serve()
        yield house


def postgres_tool(name: str, *arguments: str | Path) -> None:
    subprocess.run([_postgres_programs() / name, *arguments], check=True, capture_output=True, timeout=100)


async def taken_up(service: ServeProcess) -> bool:
    """Was everything looked for that the relayer sent and that is not on record?"""
    return any(event.get("event") == "relayer.ready" for event in service.log_events)


async def test_an_older_backup_and_the_chain_make_the_ledger_again(house: House, postgres: Postgres, tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    async with client_session() as session:
        kept = [house.payment() for _ in range(BEFORE)]
        assert words(await asyncio.gather(*(house.settle(session, payment) for payment in kept))) == {"success": BEFORE}
        await asyncio.to_thread(postgres_tool, "pg_dump", "--format=custom", f"--file={backup}", house.database_url)

        lost = [house.payment() for _ in range(LOST)]
        told = await asyncio.gather(*(house.settle(session, payment) for payment in lost))
        assert words(told) == {"success": LOST}
        await house.mine_on_command()
        pooled = [house.payment() for _ in range(POOLED)]
        waiting = [asyncio.create_task(house.settle(session, payment)) for payment in pooled]
        await house.pooled()
        await house.services[0].akill()
        await asyncio.gather(*waiting, return_exceptions=True)

        name = f"restored_{os.getpid()}"
        restored = await postgres.create_database(name)
        try:
            await asyncio.to_thread(postgres_tool, "pg_restore", f"--dbname={restored}", backup)
            await house.mine_at_once()  # the runbook waits until nothing of the lost time is under way
            house.database_url = restored
            heir = await house.serve()
            await eventually(lambda: taken_up(heir), "the relayer to be taken up", timeout_s=60)
            again = await asyncio.gather(*(house.settle(session, payment, service=heir) for payment in [*lost, *pooled]))
            assert words(again) == {"duplicate_settlement": LOST + POOLED}
            assert [answer.transaction for answer in again[:LOST]] == [answer.transaction for answer in told]
            more = [house.payment() for _ in range(BEFORE)]
            fresh = await asyncio.gather(*(house.settle(session, payment, service=heir) for payment in more))
            assert words(fresh) == {"success": BEFORE}

            await house.assert_ledger_is_chain(settled=BEFORE + LOST + POOLED + BEFORE)
            found = [event for event in heir.log_events if event.get("event") == "transaction.found"]
            assert {event["tx_hash"] for event in found} >= {answer.transaction for answer in told}
            reconciled = await asyncio.to_thread(heir.command, "reconcile", "--network", heir.network)
            assert "ledger = chain" in reconciled
            await heir.aterminate()
        finally:
            await postgres.drop_database(name)
