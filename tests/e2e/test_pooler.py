"""PgBouncer before the database: in session mode nothing is missed; in transaction mode every command refuses, by name."""

import asyncio
from pathlib import Path
from typing import Final

import pytest

from facilitator.errors import ConfigFault
from facilitator.store.db import Db
from facilitator.store.migrate import migrate, schema_standing
from tests.fixtures.house import House, client_session, eventually
from tests.fixtures.pgbouncer import pooled
from tests.fixtures.service import ServeFailed, ServeProcess

OPEN: Final = {"access": {"mode": "open"}}
WRONG_CONFIGURATION: Final = 2
"""Exit status."""


async def test_in_session_mode_payments_are_made_by_two_replicas_that_hear_each_other(tmp_path: Path, database_url: str) -> None:
    async with (
        pooled(tmp_path / "pooler", database_url, "session", default_pool_size="40") as through,
        # polling would find nothing for a minute: what is paid within the test was heard of
        House.open(tmp_path / "house", through, settlement={"queue_poll_s": 60.0}) as house,
        client_session() as session,
    ):
        sending = await house.serve()
        queueing = house.service(None, {"network": {"relayers": []}})
        house.services.append(queueing)
        try:
            await queueing.astart()
            for service in (sending, queueing):
                assert (await house.settle(session, house.payment(), service=service)).word == "success"
        finally:
            await queueing.aterminate()
        await house.assert_ledger_is_chain(settled=2)


async def test_time_outs_hold_through_a_pooler_that_takes_no_parameters(tmp_path: Path, database_url: str) -> None:
    async with pooled(tmp_path / "pooler", database_url, "session") as through:
        db = await Db.connect(through, statement_timeout_s=7.0)
        try:
            async with db.session() as session:
                connection = session._connection
                assert await connection.fetchval("show statement_timeout") == "7s"
                assert await connection.fetchval("show idle_in_transaction_session_timeout") == "14s"
                assert await connection.fetchval("show jit") == "off"
        finally:
            await db.close()


async def test_transaction_mode_is_refused_before_a_statement_is_taken_for_another(tmp_path: Path, database_url: str) -> None:
    async with pooled(tmp_path / "pooler", database_url, "transaction") as through:
        for ask in (schema_standing, migrate):
            with pytest.raises(ConfigFault, match="pool_mode = session"):
                await ask(through)
        service = ServeProcess(tmp_path, database_url=through, rpc_url="http://127.0.0.1:9", relayer_keys=[], settings=OPEN)
        with pytest.raises(ServeFailed, match=r"fail +database .*pool_mode = session"):
            await asyncio.to_thread(service.command, "doctor")
        service.spawn()

        async def refused() -> bool:
            return not service.running

        await eventually(refused, "an end of the service")
        assert "pool_mode = session" in service.logs
        assert service.terminate() == WRONG_CONFIGURATION
