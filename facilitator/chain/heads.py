"""New blocks as a websocket brings them (`eth_subscribe` newHeads): a hint that saves polling, never the only source."""

from collections.abc import Callable
from typing import Final

import aiohttp
import msgspec

from facilitator.chain.evm import read_head
from facilitator.domain.facts import Head
from facilitator.errors import ChainFault

_CONNECT_S: Final = 5.0
_SILENCE_S: Final = 30.0
"""Without a frame, answered pings included, for so long the connection counts as dead."""
_FRAME_BYTES_MAX: Final = 1 << 20
_SUBSCRIBE: Final = b'{"jsonrpc":"2.0","id":1,"method":"eth_subscribe","params":["newHeads"]}'


class _Parameters(msgspec.Struct, frozen=True):
    """What a notification brings."""

    result: msgspec.Raw


class _Frame(msgspec.Struct, frozen=True):
    """The answer to our subscription, or a notification of it."""

    id: int | None = None
    error: msgspec.Raw | None = None
    params: _Parameters | None = None


async def follow_heads(url: str, heard: Callable[[Head], None]) -> None:
    """Call `heard` with each new head until the connection is lost; then raise ChainFault. The URL is never in its text."""
    try:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.ws_connect(url, heartbeat=_SILENCE_S / 2, max_msg_size=_FRAME_BYTES_MAX) as socket,
        ):
            await socket.send_str(_SUBSCRIBE.decode())
            async for message in socket:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    continue
                frame = msgspec.json.decode(message.data, type=_Frame)
                if frame.error is not None:
                    raise ChainFault("no_subscription", "the node refused to subscribe to new heads")
                if frame.params is not None:
                    heard(read_head(frame.params.result))
    except (TimeoutError, aiohttp.ClientError, OSError, msgspec.MsgspecError) as error:
        raise ChainFault("heads_lost", f"lost the subscription to new heads: {type(error).__name__}") from None
    raise ChainFault("heads_lost", "the node closed the subscription to new heads")
