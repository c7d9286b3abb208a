"""The page that a browser gets for an unpaid request: what it costs, and a way to pay with a wallet in the browser.

Ours is one small page without any outside asset, readable without scripts. The page of the official `x402` package (MIT, more
than two megabytes, wallets of many makers) is used instead where a seller asks for it and has that package installed. Neither
must decide anything: the payment that a page makes is judged like any other.
"""

import base64
import hashlib
import html
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from string import Template
from typing import Final, Literal

from aiohttp import web

from facilitator.gateway.prices import Resource, Terms, dollars, offer

_FILES: Final = resources.files("facilitator.gateway").joinpath("page")
_STYLE: Final = _FILES.joinpath("paywall.css").read_text("utf-8")
_SCRIPT: Final = _FILES.joinpath("paywall.js").read_text("utf-8")
_PAGE: Final = Template(_FILES.joinpath("paywall.html").read_text("utf-8"))


def _source(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii") + "'"


_POLICY: Final = (
    f"default-src 'none'; script-src {_source(_SCRIPT)}; style-src {_source(_STYLE)}; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """An HTML page, and the Content-Security-Policy under which it works; None sends none."""

    html: str
    policy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpaid:
    """What is asked for and not paid: what a page and every other demand is made from."""

    terms: tuple[Terms, ...]
    resource: Resource
    error: str
    challenges: tuple[str, ...] = ()
    """The same terms as `WWW-Authenticate` says them, where the route takes MPP."""


Paywall = Callable[[Unpaid], Page]


def is_browser(request: web.Request) -> bool:
    """Does a person look at the answer? Judged as the official servers do."""
    return "text/html" in request.headers.get("Accept", "") and "Mozilla" in request.headers.get("User-Agent", "")


def render_paywall(unpaid: Unpaid) -> Page:
    """Our own page."""
    first = unpaid.terms[0]
    demand = json.dumps(offer(unpaid.terms, unpaid.resource, 2, unpaid.error), separators=(",", ":"))
    shown = {
        "description": unpaid.resource.description or "This page is sold for a small payment.",
        "price": dollars(unpaid.terms),
        "coin": first.token.name,
        "network": first.token.network,
        "pay_to": str((first.render(2, unpaid.resource) or {})["payTo"]),
        "url": unpaid.resource.url,
    }
    text = _PAGE.substitute(
        {key: html.escape(value) for key, value in shown.items()},
        style=_STYLE,
        script=_SCRIPT,
        demand=demand.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"),
    )
    return Page(html=text, policy=_POLICY)


def official_paywall(*, app_name: str = "", network: Literal["main", "test"] = "main") -> Paywall:
    """The page of the official `x402` package. Raises ModuleNotFoundError where that is not installed."""
    from x402.http.paywall import create_paywall, evm_paywall  # noqa: PLC0415 (no dependency of ours)
    from x402.schemas import PaymentRequired  # noqa: PLC0415

    built = create_paywall().with_network(evm_paywall).with_config(app_name=app_name, testnet=network == "test").build()

    def render(unpaid: Unpaid) -> Page:
        return Page(html=built.generate_html(PaymentRequired.model_validate(offer(unpaid.terms, unpaid.resource, 2, unpaid.error))))

    return render
