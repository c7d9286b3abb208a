"""What every page stands on: who asks, the services behind it, and how it is shown."""

import hashlib
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Final

import jinja2
from aiohttp import web

from facilitator.clock import Clock
from facilitator.console.exporter import Exporter
from facilitator.console.names import Assets
from facilitator.console.rendering import equip
from facilitator.console.roles import PERMISSIONS, Permission, Role
from facilitator.console.secrets import derived
from facilitator.console.settings import Settings
from facilitator.errors import StoreFault
from facilitator.finance.settings import Settings as FinanceSettings
from facilitator.schemes.scheme import Token
from facilitator.store.db import Db
from facilitator.units import Address, Network

_PACKAGE: Final = resources.files("facilitator.console")
THEMES: Final = ("auto", "light", "dark")
THEME_COOKIE: Final = "facilitator-theme"
_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


class Refused(Exception):
    """A page that is not shown; the reader sees status and words."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers or {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One request of somebody who is signed in."""

    request: web.Request
    person: str
    role: Role
    secret: str = field(repr=False)
    """Of the session."""
    form: Mapping[str, str] = field(default_factory=dict)
    """Fields of a POST, each given once; its token was checked."""

    @property
    def csrf(self) -> str:
        """The hidden field `csrf` of every form, or the header `X-CSRF-Token`."""
        return derived(self.secret, "csrf")

    def may(self, permission: Permission) -> bool:
        """Whether the role allows it."""
        return permission in PERMISSIONS[self.role]


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of ours that browsers fetch: style, script, picture."""

    body: bytes
    content_type: str

    @property
    def integrity(self) -> str:
        """For `integrity` (Subresource Integrity)."""
        return "sha384-" + b64encode(hashlib.sha384(self.body).digest()).decode()

    @property
    def version(self) -> str:
        """Changes with the content, so that a browser may keep it for ever."""
        return hashlib.sha256(self.body).hexdigest()[:12]


def _read_assets() -> Mapping[str, Asset]:
    files = sorted(Path(str(_PACKAGE.joinpath("static"))).iterdir())
    return {file.name: Asset(file.read_bytes(), _TYPES[file.suffix]) for file in files if file.suffix in _TYPES}


@dataclass(slots=True, kw_only=True)
class Desk:
    """What pages use. `db` is None until the database was reached for the first time."""

    settings: Settings
    finance: FinanceSettings
    tokens: Sequence[Token]
    """What is served."""
    clock: Clock
    explorers: Mapping[Network, str] = field(default_factory=dict)
    """Addresses of block explorers; networks without one have no links."""
    db: Db | None = None
    assets: Mapping[str, Asset] = field(default_factory=_read_assets)
    templates: jinja2.Environment = field(
        default_factory=lambda: jinja2.Environment(
            loader=jinja2.FileSystemLoader(str(_PACKAGE.joinpath("templates"))),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
    )

    names: Assets = field(init=False)
    """Units and decimals of what the books hold."""
    exporter: Exporter = field(init=False)
    """Makes the files that are asked for."""

    def __post_init__(self) -> None:
        self.names = Assets(self.tokens)
        self.exporter = Exporter(self.settings, self.finance, self.tokens, self.clock)
        equip(self.templates, self.names)
        self.templates.globals.update(
            asset=lambda name: f"/static/{name}?v={self.assets[name].version}", integrity=lambda name: self.assets[name].integrity
        )
        self.templates.globals["explorer"] = self.explorer

    @property
    def decimals(self) -> Mapping[tuple[Network, Address], int]:
        """Of every token that is served."""
        return {(token.network, token.address): token.decimals for token in self.tokens}

    def explorer(self, network: Network, tx_hash: str) -> str | None:
        """Where a block explorer shows a transaction; None without one."""
        base = self.explorers.get(network)
        return None if base is None else f"{base.rstrip('/')}/tx/{tx_hash}"

    def need_db(self) -> Db:
        """The database. Raises StoreFault until it was reached once."""
        if self.db is None:
            raise StoreFault("starting", "the database was not reached yet")
        return self.db

    def render(self, visit: Visit | None, template: str, /, *, status: int = 200, **facts: object) -> web.Response:
        """A page from `templates/`. It knows `visit` (None on pages before the sign-in), `zone`, `theme` and every fact given."""
        chosen = None if visit is None else visit.request.cookies.get(THEME_COOKIE)
        known = {"visit": visit, "zone": self.finance.booking_zone, "theme": chosen if chosen in THEMES else "auto", "here": "", **facts}
        text = self.templates.get_template(template).render(known)
        return web.Response(text=text, status=status, content_type="text/html", charset="utf-8")


Handler = Callable[[Desk, Visit], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One line of the page table."""

    method: str
    path: str
    handler: Handler
    needs: Permission = "view"
    streams: bool = False
    """It sends a file for as long as somebody reads it."""


def see(location: str) -> web.Response:
    """Go on there with GET: the answer to a form."""
    return web.Response(status=303, headers={"Location": location})


def local_path(path: str) -> str:
    """A path of ours: whatever could lead to another host is the front page."""
    plain = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() and len(path) <= 2000
    return path if plain else "/"
