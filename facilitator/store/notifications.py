"""LISTEN/NOTIFY: a hint that something changed, never the truth. Whoever waits polls as well."""

import asyncio
from collections.abc import Callable

import asyncpg

from facilitator.errors import StoreFault

CHANNELS = ("facilitator_queue", "facilitator_answer", "facilitator_relayers")


async def listen(url: str, heard: Callable[[str, str], None]) -> None:
    """Call `heard(channel, payload)` for every notification until the connection is lost, then raise StoreFault."""
    try:
        connection = await asyncpg.connect(url, timeout=5, server_settings={"application_name": "facilitator-listen"})
    except (OSError, asyncpg.PostgresError, TimeoutError) as error:
        raise StoreFault("store_unavailable", f"cannot listen for notifications: {type(error).__name__}") from error
    lost = asyncio.Event()
    connection.add_termination_listener(lambda _: lost.set())
    try:
        for channel in CHANNELS:
            await connection.add_listener(channel, lambda _connection, _pid, name, payload: heard(name, str(payload)))
        await lost.wait()
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise StoreFault("store_unavailable", f"lost the notification connection: {type(error).__name__}") from error
    finally:
        if not connection.is_closed():
            connection.terminate()
    raise StoreFault("store_unavailable", "lost the notification connection")
