"""The sample gateway: a small paid API on the gateway kit, in v1 and v2 of x402 at once.

For the demo, for `facilitator dev` and for tests. How a seller stays honest is the kit's (`facilitator.gateway`); what stands
here is what any seller writes: handlers, prices and an account.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from aiohttp import web

from facilitator.gateway.client import Exchange, FacilitatorClient
from facilitator.gateway.client import Settings as ClientSettings
from facilitator.gateway.middleware import charge
from facilitator.gateway.seller import Priced as PricedRoute

_FIELD_BYTES_MAX: Final = 32_768
"""Longest header line that is read: a payment of a scheme with long payloads has more than the usual 8190."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """One route that costs something."""

    path: str
    price_atomic: int
    description: str
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]]


async def _quote(_: web.Request) -> web.StreamResponse:
    return web.json_response({"quote": "Measure twice, pay once.", "at": datetime.now(UTC).isoformat(timespec="seconds")})


async def _report(_: web.Request) -> web.StreamResponse:
    return web.json_response({"report": "All quiet.", "rows": [{"day": day, "visitors": 40 + 2 * day} for day in range(1, 8)]})


ROUTES: Final = (
    Priced(path="/quote", price_atomic=1_000, description="a quote", handler=_quote),
    Priced(path="/report", price_atomic=10_000, description="a report", handler=_report),
)


class SampleGateway:
    """A paid API on the loopback. `start` once, `stop` once."""

    def __init__(
        self,
        facilitator_url: str,
        api_key: str,
        pay_to: str,
        *,
        routes: Sequence[Priced] = ROUTES,
        port: int = 0,
        observe: Callable[[Exchange], None] | None = None,
        client_settings: ClientSettings | None = None,
    ) -> None:
        """`port` 0 takes a free one. `observe` is told every exchange with the facilitator."""
        self._facilitator = FacilitatorClient(facilitator_url, api_key=api_key, observe=observe, settings=client_settings)
        self._pay_to = pay_to
        self._routes = routes
        self._port = port
        self._runner: web.AppRunner | None = None

    @property
    def base_url(self) -> str:
        """Where it listens, without a trailing slash."""
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Listen. Raises OSError when the port is taken."""
        application = web.Application()
        for priced in self._routes:
            application.router.add_get(priced.path, priced.handler)
        prices = {f"GET {each.path}": PricedRoute(price=each.price_atomic, description=each.description) for each in self._routes}
        charge(application, self._facilitator, pay_to=self._pay_to, network="base-sepolia", routes=prices, allow_origins=["*"])
        self._runner = web.AppRunner(
            application, access_log=None, max_line_size=_FIELD_BYTES_MAX, max_field_size=_FIELD_BYTES_MAX, shutdown_timeout=5.0
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening; whoever is being served is served."""
        if self._runner is not None:
            await self._runner.cleanup()
