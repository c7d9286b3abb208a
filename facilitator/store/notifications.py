"""The connection on which a replica listens, and which holds its presence.

LISTEN/NOTIFY is a hint that something changed, never the truth: whoever waits polls as well. The presence is an advisory lock of
the session: when the process dies the kernel closes the connection, PostgreSQL frees the lock, and the others can see it.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import asyncpg

from facilitator.errors import StoreFault
from facilitator.store.replicas import QUERIES

CHANNELS = ("facilitator_queue", "facilitator_answer", "facilitator_relayers")
_PRESENCE_S: Final = 2.0
"""How long the presence is waited for. Without it this replica is missed later, by its silence."""


async def listen(url: str, replica_id: str, heard: Callable[[str, str], None], present: Callable[[bool], None]) -> None:
    """Call `heard(channel, payload)` for every notification until the connection is lost, then raise StoreFault.

    `present(True)` once the replica's presence is held, `present(False)` when it is not any more.
    """
    try:
        connection = await asyncpg.connect(url, timeout=5, server_settings={"application_name": "facilitator-listen"})
    except (OSError, asyncpg.PostgresError, TimeoutError) as error:
        raise StoreFault("store_unavailable", f"cannot listen for notifications: {type(error).__name__}") from error
    lost = asyncio.Event()
    connection.add_termination_listener(lambda _: lost.set())
    try:
        for channel in CHANNELS:
            await connection.add_listener(channel, lambda _connection, _pid, name, payload: heard(name, str(payload)))
        present(await _hold_presence(connection, replica_id))
        await lost.wait()
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise StoreFault("store_unavailable", f"lost the notification connection: {type(error).__name__}") from error
    finally:
        present(False)
        if not connection.is_closed():
            connection.terminate()
    raise StoreFault("store_unavailable", "lost the notification connection")


async def _hold_presence(connection: "asyncpg.Connection[asyncpg.Record]", replica_id: str) -> bool:
    """False while another connection holds it: one of ours that the server does not know to be dead."""
    try:
        await connection.execute(QUERIES["hold_presence"].sql, replica_id, timeout=_PRESENCE_S)
    except TimeoutError:
        return False
    return True
