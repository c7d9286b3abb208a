"""Sells routes of an aiohttp server: `charge(app, client, pay_to=…, network=…, routes={"GET /report": "$0.01"})`.

Checks everything at start that can be wrong with what is sold, and puts a `Seller` around the application. It must never let
a route be free by mistake: a price for a route that does not exist stops the start.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from facilitator.clock import Clock, SystemClock
from facilitator.errors import ConfigFault
from facilitator.gateway.client import FacilitatorClient
from facilitator.gateway.mpp import SECRET_CHARS_MIN
from facilitator.gateway.paywall import Paywall, render_paywall
from facilitator.gateway.prices import Price, Token, find_token, parse_payee
from facilitator.gateway.seller import Priced, PriceOf, Seller, Settings, Shop

_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
"""Hosts that are reached without a network, where plain HTTP keeps credentials to oneself."""


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
    shown, for a server behind a proxy; routes that are sold by MPP need it. `paywall` None answers browsers like everybody
    else. The client is closed with the app. Call it on the outermost application, once; it wraps all other middlewares.
    Raises ConfigFault for what cannot be sold; a route that does not exist is found at start-up.
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
        realm=urlsplit(public_url or "").netloc.rpartition("@")[2].lower(),
    )
    seller = Seller(facilitator, shop, settings or Settings(), clock or SystemClock())
    for priced in shop.routes.values():
        if isinstance(priced.price, str | int):
            seller.terms_at(priced.price)
        if priced.mpp_secret is not None:
            _check_mpp(priced.mpp_secret, public_url, tokens)

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


def _check_mpp(secret: str, public_url: str | None, tokens: Sequence[Token]) -> None:
    """May a route be sold by MPP? Raises ConfigFault for what the scheme forbids: plain HTTP, and a secret that can be guessed."""
    where = urlsplit(public_url or "")
    if not where.hostname or (where.scheme != "https" and where.hostname not in _LOOPBACK):
        raise ConfigFault("public_url", f"public_url: MPP needs the https address that buyers see, got {public_url!r}")
    if len(secret) < SECRET_CHARS_MIN:
        raise ConfigFault("mpp_secret", f"mpp_secret: expected at least {SECRET_CHARS_MIN} characters, got {len(secret)}")
    if any(not token.network.startswith("eip155:") for token in tokens):
        raise ConfigFault("network", "network: MPP is served on EVM networks (eip155) only")
