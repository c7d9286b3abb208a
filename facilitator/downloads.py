"""Sends a long file over HTTP part by part: constant memory, and never half a file that looks whole.

Whoever stops reading is cut off, for a text is read from a snapshot of the database.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import web

_CHUNK_CHARACTERS: Final = 1 << 16
_UNREAD_MAX_S: Final = 30.0
"""Longest that a reader may leave a chunk unread."""


async def send_text(request: web.Request, name: str, content_type: str, parts: AsyncIterator[str]) -> web.StreamResponse:
    """Send the parts as a file of that name. Raises what making them raises; the connection is cut then, if anything was sent."""
    response = web.StreamResponse(headers={"Content-Disposition": f'attachment; filename="{name}"'})
    response.content_type, response.charset = content_type, "utf-8"
    held: list[str] = []
    length = 0
    try:
        async for part in parts:
            held.append(part)
            length += len(part)
            if length >= _CHUNK_CHARACTERS:
                await _write(request, response, held)
                held, length = [], 0
        await _write(request, response, held)
        await response.write_eof()
    except BaseException:
        if response.prepared and request.transport is not None:
            request.transport.abort()
        raise
    return response


async def send_bytes(request: web.Request, name: str, content_type: str, size: int, parts: AsyncIterator[bytes]) -> web.StreamResponse:
    """Send a file of a known size. Raises what reading its parts raises; the connection is cut when there were too few."""
    response = web.StreamResponse(headers={"Content-Disposition": f'attachment; filename="{name}"', "Content-Length": str(size)})
    response.content_type = content_type
    await response.prepare(request)
    sent = 0
    try:
        async for part in parts:
            sent += len(part)
            async with asyncio.timeout(_UNREAD_MAX_S):
                await response.write(part)
        if sent != size:
            raise ConnectionAbortedError  # noqa: TRY301 - the file went while it was read
        await response.write_eof()
    except BaseException:
        if request.transport is not None:
            request.transport.abort()
        raise
    return response


async def _write(request: web.Request, response: web.StreamResponse, held: list[str]) -> None:
    if not response.prepared:
        await response.prepare(request)
    async with asyncio.timeout(_UNREAD_MAX_S):
        await response.write("".join(held).encode())
