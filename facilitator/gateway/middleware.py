"""Sells routes of an aiohttp server: `charge(app, client, pay_to=…, network=…, routes={"GET /report": "$0.01"})`.

Checks everything at start that can be wrong with what is sold, and puts a `Seller` around the application. It must never let
a route be free by mistake: a price for a route that does not exist stops the start.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from aiohttp import web

from facilitator.clock import Clock, SystemClock
from facilitator.errors import ConfigFault
from facilitator.gateway.client import FacilitatorClient
from facilitator.gateway.paywall import Paywall, render_paywall
from facilitator.gateway.prices import Price, Token, find_token, parse_payee
from facilitator.gateway.seller import Priced, PriceOf, Seller, Settings, Shop

_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")


def charge(
    app: web.Application,
    facilitator: FacilitatorClient,
    *,
    pay_to: str,
    network: str | Token | Sequence[str | Token],
    routes: Mapping[str, Price | PriceOf | Priced],
    allow_origins: Collection[str] = (),
    paywall: Paywall | None = render_paywall,
    public_url: str | None = None,
    settings: Settings | None = None,
    clock: Clock | None = None,
) -> None:
    """Charge for routes of `app`, named as they were added: `"GET /report"`, `"POST /v1/items/{id}"`.

    Buyers may choose among several networks or tokens. `allow_origins` opens the priced routes to scripts of other origins
    (`"*"`: to all); leave it empty where something else does. `public_url` replaces scheme and host in what buyers are
    shown, for a server behind a proxy. `paywall` None answers browsers like everybody else. The client is closed with the app.
    Call it on the outermost application, once; it wraps all other middlewares. Raises ConfigFault for what cannot be
    sold; a route that does not exist is found at start-up.
    """
    tokens = tuple(find_token(each) for each in ([network] if isinstance(network, str | Token) else network))
    if not tokens:
        raise ConfigFault("network", "network: expected at least one")
    shop = Shop(
        pay_to=parse_payee(pay_to),
        tokens=tokens,
        routes={_route_key(key): value if isinstance(value, Priced) else Priced(price=value) for key, value in routes.items()},
        allow_origins=frozenset(allow_origins),
        paywall=paywall,
        public_url=public_url.rstrip("/") if public_url else None,
    )
    seller = Seller(facilitator, shop, settings or Settings(), clock or SystemClock())
    for priced in shop.routes.values():
        if isinstance(priced.price, str | int):
            seller.terms_at(priced.price)

    async def check_routes(started: web.Application) -> None:
        known = {(route.method, route.resource.canonical) for route in started.router.routes() if route.resource is not None}
        for method, path in shop.routes:
            if (method, path) not in known and ("*", path) not in known:
                raise ConfigFault("route", f"{method} {path} has a price, but there is no such route")

    async def finish(_: web.Application) -> None:
        await seller.finish()
        await facilitator.close()

    app.middlewares.insert(0, seller.serve)
    app.on_response_prepare.append(seller.withhold)
    app.on_startup.append(check_routes)
    app.on_cleanup.append(finish)


def _route_key(text: str) -> tuple[str, str]:
    method, _, path = text.partition(" ")
    if method not in _METHODS or not path.startswith("/"):
        raise ConfigFault("route", f'routes: expected one of {", ".join(_METHODS)} and a path, such as "GET /report", got {text!r}')
    return method, path
