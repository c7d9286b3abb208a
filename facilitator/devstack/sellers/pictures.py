"""Keeps pictures in a directory, under URLs that nobody can guess and that stay as long as the directory does."""

import asyncio
import uuid
from pathlib import Path
from typing import Final

from aiohttp import hdrs, web

from facilitator.devstack.sellers.models.model import Format

_NAME: Final = r"{name:[a-z0-9-]{1,64}\.(?:png|jpeg|webp)}"


class Pictures:
    """The pictures of one seller, served under `/pictures/`."""

    def __init__(self, directory: Path, base_url: str) -> None:
        """`base_url` is the seller's, without a trailing slash."""
        self._directory = directory
        self._base_url = base_url
        directory.mkdir(parents=True, exist_ok=True)

    async def keep(self, picture: bytes, form: Format, name: str | None = None) -> tuple[str, str]:
        """Write a picture down, under a fresh UUID unless a name is given; that, and the URL."""
        name = name or str(uuid.uuid4())
        path = self._directory / f"{name}.{form}"
        await asyncio.to_thread(_write_whole, path, picture)
        return name, self.url_of(f"{name}.{form}")

    def url_of(self, file: str) -> str:
        """Where a file of the directory is served."""
        return f"{self._base_url}/pictures/{file}"

    def add_route(self, application: web.Application) -> None:
        """Serve them, free."""
        application.router.add_get(f"/pictures/{_NAME}", self._serve)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        path = self._directory / request.match_info["name"]
        if not path.is_file():
            raise web.HTTPNotFound
        headers = {hdrs.CONTENT_TYPE: f"image/{path.suffix[1:]}", hdrs.CACHE_CONTROL: "public, max-age=31536000, immutable"}
        return web.FileResponse(path, headers=headers)


def _write_whole(path: Path, content: bytes) -> None:
    unfinished = path.with_suffix(".part")
    unfinished.write_bytes(content)
    unfinished.replace(path)
