"""The three sample sellers, each on a port of its own of the loopback, with one directory for what they keep.

Their addresses stay from start to start where the ports are still free, so that the URLs that they gave out stay good.
"""

import contextlib
import json
import secrets
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from aiohttp import web

from facilitator.devstack.sellers import studio, twos, xrouter
from facilitator.devstack.sellers.models.local import LOCAL
from facilitator.devstack.sellers.models.model import Models, Order
from facilitator.devstack.sellers.pictures import Pictures
from facilitator.gateway.client import Exchange, FacilitatorClient
from facilitator.gateway.client import Settings as ClientSettings

NAMES: Final = ("twos", "studio", "xrouter")
SAMPLE: Final = "sample"
"""Name of a picture that is there from the start, so that there is one to have described."""

_NETWORK: Final = "base-sepolia"
_FIELD_BYTES_MAX: Final = 32_768


class Market:
    """All three. `start` once, `stop` once; URLs hold once it is started."""

    def __init__(
        self,
        facilitator_url: str,
        api_key: str,
        pay_to: str,
        directory: Path,
        *,
        models: Models = LOCAL,
        observe: Callable[[Exchange], None] | None = None,
        client_settings: ClientSettings | None = None,
    ) -> None:
        """`directory` is the sellers' own. `observe` is told every exchange with the facilitator."""
        self._facilitator = (facilitator_url, api_key, observe, client_settings)
        self._pay_to = pay_to
        self._directory = directory
        self._models = models
        self._exit = AsyncExitStack()
        self.urls: dict[str, str] = {}
        """By the names of `NAMES`, without a trailing slash."""

    @property
    def sample_url(self) -> str:
        """A picture of ours that the describing seller may fetch."""
        return f"{self.urls['xrouter']}/pictures/{SAMPLE}.png"

    async def start(self) -> None:
        """Listen. Raises OSError."""
        self._directory.mkdir(parents=True, exist_ok=True)
        sockets = self._listen()
        self.urls = {name: f"http://127.0.0.1:{each.getsockname()[1]}" for name, each in sockets.items()}
        pictures = {name: Pictures(self._directory / name, self.urls[name]) for name in ("studio", "xrouter")}
        drawn = await LOCAL.draw(Order(model="sample", prompt="a sample", width=512, height=384, seed=1))
        await pictures["xrouter"].keep(drawn.pictures[0], "png", SAMPLE)
        applications = {
            "twos": twos.application(
                self._client(),
                self._models,
                pay_to=self._pay_to,
                network=_NETWORK,
                base_url=self.urls["twos"],
                allowed_origin=self.urls["xrouter"],
            ),
            "studio": studio.application(
                self._client(),
                self._models,
                pay_to=self._pay_to,
                network=_NETWORK,
                base_url=self.urls["studio"],
                mpp_secret=secrets.token_urlsafe(32),
                pictures=pictures["studio"],
                jobs=self._directory / "jobs",
            ),
            "xrouter": xrouter.application(
                self._client(),
                self._models,
                pay_to=self._pay_to,
                network=_NETWORK,
                base_url=self.urls["xrouter"],
                pictures=pictures["xrouter"],
            ),
        }
        for name, application in applications.items():
            runner = web.AppRunner(
                application, access_log=None, max_line_size=_FIELD_BYTES_MAX, max_field_size=_FIELD_BYTES_MAX, shutdown_timeout=5.0
            )
            self._exit.push_async_callback(runner.cleanup)
            await runner.setup()
            await web.SockSite(runner, sockets[name]).start()

    async def stop(self) -> None:
        """Stop listening; whoever is being served is served."""
        await self._exit.aclose()

    def _client(self) -> FacilitatorClient:
        url, key, observe, settings = self._facilitator
        return FacilitatorClient(url, api_key=key, observe=observe, settings=settings)

    def _listen(self) -> dict[str, socket.socket]:
        """A socket for each, on the port of the last start where that is free."""
        file = self._directory / "ports.json"
        known = json.loads(file.read_bytes()) if file.exists() else {}
        sockets = {name: self._exit.enter_context(contextlib.closing(_bound(known.get(name, 0)))) for name in NAMES}
        file.write_text(json.dumps({name: each.getsockname()[1] for name, each in sockets.items()}), encoding="ascii")
        return sockets


def _bound(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError:
        if port == 0:
            raise
        return socket.create_server(("127.0.0.1", 0))
