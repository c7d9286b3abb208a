"""The connection on which a replica listens, and which holds its presence.

LISTEN/NOTIFY is a hint that something changed, never the truth: whoever waits polls as well. The presence is an advisory lock of
the session: when the process dies the kernel closes the connection, PostgreSQL frees the lock, and the others can see it.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import asyncpg

from facilitator.errors import StoreFault
from facilitator.store import replicas
from facilitator.store.db import Session

CHANNELS = ("facilitator_queue", "facilitator_answer", "facilitator_relayers")
_AGAIN_S: Final = 1.0
"""How often the presence is asked for: where it is not to be had it may be by then, and a connection that has died says nothing of it."""
_ANSWER_S: Final = 5.0
"""How long an answer is waited for; one that does not come means that the connection is lost."""


async def listen(url: str, replica_id: str, heard: Callable[[str, str], None], present: Callable[[bool], None]) -> None:
    """Call `heard(channel, payload)` for every notification until the connection is lost, then raise StoreFault.

    `present(held)` says whether the replica's presence is held, again and again: without it this replica is missed later, by its silence.
    """
    try:
        connection = await asyncpg.connect(
            url, timeout=5, command_timeout=_ANSWER_S, server_settings={"application_name": "facilitator-listen"}
        )
    except (OSError, asyncpg.PostgresError, TimeoutError) as error:
        raise StoreFault("store_unavailable", f"cannot listen for notifications: {type(error).__name__}") from error
    lost = asyncio.Event()
    connection.add_termination_listener(lambda _: lost.set())
    try:
        for channel in CHANNELS:
            await connection.add_listener(channel, lambda _connection, _pid, name, payload: heard(name, str(payload)))
        while not lost.is_set():
            present(await replicas.hold_presence(Session(connection), replica_id))
            with suppress(TimeoutError):
                async with asyncio.timeout(_AGAIN_S):
                    await lost.wait()
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise StoreFault("store_unavailable", f"lost the notification connection: {type(error).__name__}") from error
    finally:
        present(False)
        if not connection.is_closed():
            connection.terminate()
    raise StoreFault("store_unavailable", "lost the notification connection")
