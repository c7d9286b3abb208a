"""Where secrets lie and where services are, as an operator writes them: references, and URLs that may be one.

A secret must never stand in a configuration, in a message or in a `repr`: only references to secrets do, and they are
read when they are needed.
"""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, cast
from urllib.parse import parse_qsl, urlsplit

from facilitator.errors import ConfigFault
from facilitator.units import Address, Listen, parse_address


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """Where a secret lies: `env:NAME`, `file:/path` or `keystore:/path?password=…`. Never the secret itself."""

    kind: Literal["env", "file", "keystore"]
    where: str
    """Name of the variable, or path of the file."""
    password: "Secret | None" = None
    """Of a keystore."""

    @classmethod
    def parse(cls, text: str) -> "Secret":
        """Read a reference. Raises ValueError that never quotes what came: it may be the secret."""
        kind, _, where = text.partition(":")
        if kind == "keystore":
            where, _, query = where.partition("?")
            passwords = [value for name, value in parse_qsl(query) if name == "password"]
            if where.startswith("/") and len(passwords) == 1 and not passwords[0].startswith("keystore:"):
                return cls(kind="keystore", where=where, password=cls.parse(passwords[0]))
            raise ValueError("expected keystore:/path?password=env:NAME")
        if kind == "env" and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", where):
            return cls(kind="env", where=where)
        if kind == "file" and where.startswith("/"):
            return cls(kind="file", where=where)
        raise ValueError(
            "a secret must not stand in the configuration: put it into an environment variable or a file"
            " and write env:NAME, file:/path or keystore:/path?password=env:NAME"
        )

    def read(self) -> str:
        """The secret (of a keystore: its encrypted JSON). Raises ConfigFault when it is not there."""
        if self.kind == "env":
            value = os.environ.get(self.where)
            if not value:
                raise ConfigFault("secret_missing", f"environment variable {self.where} is not set, but the configuration refers to it")
            return value
        try:
            return Path(self.where).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigFault("secret_missing", f"cannot read {self.where}, to which the configuration refers: {error}") from None

    def __str__(self) -> str:
        """The reference, as written."""
        return f"{self.kind}:{self.where}" + (f"?password={self.password}" if self.password else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceKey:
    """A key that a service holds: `aws-kms:ARN?address=0x…`, `gcp-kms:projects/…?address=0x…`, `web3signer:https://…?address=0x…`."""

    kind: Literal["aws-kms", "gcp-kms", "web3signer"]
    where: str
    """ARN, name of the key version, or URL."""
    address: Address
    """The account of the key, pinned: whatever else the service signs for is refused."""
    endpoint: str | None = None
    """Of AWS or Google, when it is not the public one."""
    token: Secret | None = None
    """Bearer token for a web3signer behind a gate."""

    @classmethod
    def parse(cls, text: str) -> "ServiceKey":
        """Read a reference. Raises ValueError."""
        kind, _, rest = text.partition(":")
        where, _, query = rest.partition("?")
        options = dict(parse_qsl(query))
        shape = _SERVICES[kind]
        if not shape.fullmatch(where) or not options.keys() <= {"address", "endpoint", "token"} or "address" not in options:
            raise ValueError(
                f"expected {kind}:{_SHOWN[kind]}?address=0x…, the account of the key; endpoint=URL and token=env:NAME may follow"
            )
        token = Secret.parse(options["token"]) if "token" in options else None
        return cls(
            kind=cast("Literal['aws-kms', 'gcp-kms', 'web3signer']", kind),
            where=where,
            address=parse_address(options["address"]),
            endpoint=options.get("endpoint"),
            token=token,
        )

    def __str__(self) -> str:
        """The reference, as written."""
        more = (
            [f"address={self.address}"] + [f"endpoint={self.endpoint}"] * bool(self.endpoint) + [f"token={self.token}"] * bool(self.token)
        )
        return f"{self.kind}:{self.where}?{'&'.join(more)}"


_SERVICES: Final = {
    "aws-kms": re.compile(r"arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:(key|alias)/[A-Za-z0-9/_-]+"),
    "gcp-kms": re.compile(r"projects/[^/?]+/locations/[^/?]+/keyRings/[^/?]+/cryptoKeys/[^/?]+/cryptoKeyVersions/[0-9]+"),
    "web3signer": re.compile(r"https?://[^?@]+"),
}
_SHOWN: Final = {
    "aws-kms": "arn:aws:kms:REGION:ACCOUNT:key/ID",
    "gcp-kms": "projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/N",
    "web3signer": "https://HOST:PORT",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyReference:
    """Where a relayer's key is: a secret that is read into this process, or a service that signs."""

    secret: Secret | None = None
    service: ServiceKey | None = None

    @classmethod
    def parse(cls, text: str) -> "KeyReference":
        """Read a reference. Raises ValueError that never quotes what came: it may be the key."""
        if text.partition(":")[0] in _SERVICES:
            return cls(service=ServiceKey.parse(text))
        return cls(secret=Secret.parse(text))

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """Every secret that must be there."""
        parts = (self.secret, self.secret.password if self.secret else None, self.service.token if self.service else None)
        return tuple(part for part in parts if part is not None)

    def __str__(self) -> str:
        """The reference, as written."""
        return str(self.secret or self.service)


@dataclass(frozen=True, slots=True, kw_only=True)
class Url:
    """An address that may contain a credential: written out only when it does not, else a reference."""

    literal: str | None = field(default=None, repr=False)
    secret: Secret | None = None

    @classmethod
    def parse(cls, text: str, schemes: tuple[str, ...]) -> "Url":
        """Read a URL of one of the schemes, or a reference to one. Raises ValueError without what came."""
        if text.startswith(("env:", "file:")):
            return cls(secret=Secret.parse(text))
        expected = f"expected {' or '.join(f'{scheme}://…' for scheme in schemes)}, or a reference env:NAME or file:/path to one"
        try:
            parts = urlsplit(text)
            has_host = bool(parts.hostname) or parts.scheme.startswith("postgres")
        except ValueError:
            raise ValueError(expected) from None
        if parts.scheme not in schemes or not has_host:
            raise ValueError(expected)
        loopback = Listen(parts.hostname or "localhost", 0).loopback
        query = [value for name, value in parse_qsl(parts.query) if name != "host"]
        if parts.password or "password=" in parts.query or (not loopback and any(map(looks_secret, [*parts.path.split("/"), *query]))):
            raise ValueError(
                "this URL contains a credential, which must not stand in the configuration:"
                " put the URL into an environment variable or a file and write env:NAME or file:/path"
            )
        return cls(literal=text)

    def read(self) -> str:
        """The URL itself. Raises ConfigFault when the reference leads nowhere."""
        if self.secret is not None:
            return self.secret.read()
        return self.literal or ""

    def __str__(self) -> str:
        """The reference, or the URL, which has no credential."""
        return str(self.secret) if self.secret is not None else self.literal or ""


def looks_secret(text: str) -> bool:
    """A provider's key in a path or query: long, and no word."""
    return bool(re.fullmatch(r"[A-Za-z0-9_-]{20,}", text)) and any(map(str.isdigit, text)) and any(map(str.isalpha, text))


class RpcUrl(Url):
    """An endpoint of a chain: `http(s)://…` or a reference."""

    __slots__ = ()


class WebSocketUrl(Url):
    """A subscription endpoint of a chain: `ws(s)://…` or a reference."""

    __slots__ = ()


class DatabaseUrl(Url):
    """PostgreSQL: `postgresql://…`, a reference, or `embedded:./directory` for a server of our own."""

    __slots__ = ()

    @property
    def embedded(self) -> Path | None:
        """Directory of the embedded server, if that is meant."""
        return Path(self.literal.removeprefix("embedded:")) if self.literal and self.literal.startswith("embedded:") else None


def parse_database_url(text: str) -> DatabaseUrl:
    """Read `[database] url`. Raises ValueError without what came."""
    if text.startswith("embedded:"):
        if not text.removeprefix("embedded:"):
            raise ValueError("expected embedded:DIRECTORY such as embedded:./var/postgres")
        return DatabaseUrl(literal=text)
    url = Url.parse(text, ("postgresql", "postgres"))
    return DatabaseUrl(literal=url.literal, secret=url.secret)


def parse_rpc_url(text: str) -> RpcUrl:
    """Read an entry of `rpc_urls`. Raises ValueError without what came."""
    url = Url.parse(text, ("http", "https"))
    return RpcUrl(literal=url.literal, secret=url.secret)


def parse_ws_url(text: str) -> WebSocketUrl:
    """Read `ws_url`. Raises ValueError without what came."""
    url = Url.parse(text, ("ws", "wss"))
    return WebSocketUrl(literal=url.literal, secret=url.secret)
