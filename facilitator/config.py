"""Reads TOML and environment into one frozen Config, and says what is wrong with them in words that help.

Every package's Settings meet here: unknown keys are refused with the nearest known one, types and relations are checked
before anything starts, and each value remembers where it came from. A secret must never stand in a configuration or in
a message: only references to secrets do, and they are read when they are needed.
"""

import difflib
import os
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, urlsplit

from facilitator.api.settings import AccessSettings, ConsoleSettings, Listen, MetricsSettings
from facilitator.api.settings import Settings as ServerSettings
from facilitator.chain.rpc import Settings as RpcSettings
from facilitator.errors import ConfigFault
from facilitator.protocol.address import checksum_address
from facilitator.protocol.codec import BODY_BYTES_MAX
from facilitator.schemes.scheme import Token
from facilitator.settlement.settings import Settings as SettlementSettings
from facilitator.telemetry import Format, Level
from facilitator.units import Address, Network, parse_address, parse_network

ENVIRONMENT_PREFIX: Final = "FACILITATOR__"
CONFIG_VARIABLE: Final = "FACILITATOR_CONFIG"


# ---- what the operator may write


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
        if kind in {"aws-kms", "gcp-kms", "web3signer"}:
            raise ValueError(f"{kind} references are not supported by this release: use keystore:/path?password=env:NAME")
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
        if parts.password or "password=" in parts.query or (not loopback and any(map(_looks_secret, [*parts.path.split("/"), *query]))):
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


def _looks_secret(text: str) -> bool:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseSettings:
    """The `[database]` table. Times in seconds."""

    url: DatabaseUrl
    migrate: bool = False
    """Whether `serve` may bring the schema up by itself."""
    connections_max: int = 10
    """Connections of one process."""
    statement_timeout_s: float = 5.0
    """Longest that one statement may take."""
    acquire_timeout_s: float = 5.0
    """Longest wait for a connection of the pool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetSettings:
    """One `[[networks.assets]]`: an EIP-3009 token that is served."""

    address: Address
    name: str
    """EIP-712 domain name; it differs between networks for the same coin."""
    version: str
    """EIP-712 domain version."""
    decimals: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """One `[[networks]]`."""

    id: Network
    """CAIP-2, such as `eip155:8453`."""
    rpc_urls: tuple[RpcUrl, ...]
    """In order of preference."""
    relayers: tuple[Secret, ...]
    """Keys of the accounts that send and pay gas."""
    ws_url: WebSocketUrl | None = None
    """For notice of new blocks; polling remains the truth."""
    poll_s: float | None = None
    """How often new blocks are looked for; None: `settlement.poll_s`."""
    assets: tuple[AssetSettings, ...] = ()
    """Tokens besides the network's USDC of the built-in table; one with the same address replaces that."""

    @property
    def tokens(self) -> tuple[Token, ...]:
        """Everything that is served on this network."""
        known = {token.address: token for token in KNOWN_TOKENS if token.network == self.id}
        for asset in self.assets:
            known[asset.address] = Token(
                network=self.id, address=asset.address, name=asset.name, version=asset.version, decimals=asset.decimals
            )
        return tuple(known.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """The `[log]` table."""

    level: Level = "info"
    format: Format = "auto"
    """`auto`: for people on a terminal, JSON lines otherwise."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from."""

    kind: Literal["file", "env", "default"]
    place: str
    """`facilitator.toml:12`, the variable's name, or "" for a default."""

    def __str__(self) -> str:
        """For the right-hand column of `config print`."""
        return f"{self.kind} {self.place}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything the operator said, checked."""

    server: ServerSettings = field(default_factory=ServerSettings)
    access: AccessSettings = field(default_factory=AccessSettings)
    database: DatabaseSettings
    settlement: SettlementSettings = field(default_factory=SettlementSettings)
    rpc: RpcSettings = field(default_factory=RpcSettings)
    log: LogSettings = field(default_factory=LogSettings)
    metrics: MetricsSettings | None = None
    console: ConsoleSettings | None = None
    networks: tuple[NetworkSettings, ...]

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The tokens of all networks."""
        return tuple(token for network in self.networks for token in network.tokens)


def _usdc(chain_id: int, address: str, name: str) -> Token:
    return Token(network=Network(f"eip155:{chain_id}"), address=parse_address(address), name=name, version="2", decimals=6)


KNOWN_TOKENS: Final = (
    _usdc(8453, "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913", "USD Coin"),
    _usdc(84532, "0x036CbD53842c5426634e7929541eC2318f3dCF7e", "USDC"),
    _usdc(1, "0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48", "USD Coin"),
    _usdc(43114, "0xB97EF9Ef8734C71904D8002F8b6Bc66Dd9c48a6E", "USD Coin"),
    _usdc(43113, "0x5425890298aed601595a70AB815c96711a31Bc65", "USD Coin"),
    _usdc(137, "0x3c499c542cEF5E3811e1192ce70d8cC03d5c3359", "USD Coin"),
    _usdc(80002, "0x41E94Eb019C0762f9Bfcf9Fb1E58725BfB0e7582", "USDC"),
    _usdc(42161, "0xaf88d065e77c8cC2239327C5EDb3A432268e5831", "USD Coin"),
    _usdc(421614, "0x75faf114eafb1BDbe2F0316DF893fd58CE46AA4d", "USDC"),
)
"""Circle's native USDC with its EIP-712 domain (x402-protocol §2.7). The chain is asked at start-up whether it agrees."""


# ---- loading


class ConfigProblems(ConfigFault):
    """Everything that is wrong with a configuration; the message is the first of it."""

    def __init__(self, problems: list[str]) -> None:
        more = f" (and {len(problems) - 1} more: run `facilitator config check`)" if len(problems) > 1 else ""
        super().__init__("config_invalid", problems[0] + more)
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A Config and what `config print` and `config check` tell about it."""

    config: Config
    origins: Mapping[str, Origin]
    """By path, such as `settlement.deadline_s` or `networks.0.rpc_urls`."""
    warnings: tuple[str, ...]


def load(path: Path | None, environment: Mapping[str, str]) -> Loaded:
    """Read the file and the environment. Raises ConfigProblems (ConfigFault) with all that is wrong; reads no secret."""
    reader = _Reader("environment" if path is None else path.name)
    tree: dict[str, _Node] = {}
    if path is not None:
        try:
            text = path.read_text("utf-8")
            parsed = tomllib.loads(text)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigProblems([f"cannot read the configuration {path}: {error}"]) from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigProblems([f"{path}: not TOML: {error}"]) from None
        tree = reader.plant(parsed, "", _line_numbers(text))
    for name in sorted(environment):
        if name.startswith(ENVIRONMENT_PREFIX):
            reader.graft(tree, name, environment[name])
    config = reader.table(Config, tree, "")
    if config is None or reader.problems:
        raise ConfigProblems(reader.problems)
    problems = list(_broken_relations(config))
    if problems:
        raise ConfigProblems(problems)
    return Loaded(config=config, origins=reader.origins, warnings=tuple(_warnings(config)))


def describe(loaded: Loaded) -> list[tuple[str, str, str]]:
    """(path, value, origin) of every setting, for people; references stand for secrets."""
    return [
        (path, text, str(loaded.origins.get(path, loaded.origins.get(path.rpartition(".")[0], Origin("default", "")))))
        for path, text in _flatten("", loaded.config)
    ]


def _flatten(path: str, value: object) -> Iterator[tuple[str, str]]:
    if is_dataclass(value) and not isinstance(value, Secret | Url | Listen | type):
        for entry in fields(value):
            yield from _flatten(f"{path}.{entry.name}".lstrip("."), getattr(value, entry.name))
    elif isinstance(value, tuple) and value and is_dataclass(value[0]) and not isinstance(value[0], Secret | Url):
        for index, item in enumerate(value):
            yield from _flatten(f"{path}.{index}", item)
    else:
        yield path, _spell(value)


def _spell(value: object) -> str:
    match value:
        case None:
            return "(none)"
        case bool():
            return str(value).lower()
        case int() | float():
            return str(value)
        case tuple():
            return f"[{', '.join(map(_spell, value))}]"
        case str() if re.fullmatch(r"0x[0-9a-f]{40}", value):
            return f'"{checksum_address(Address(value))}"'
        case _:
            return f'"{value}"'


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A value as it was written."""

    value: object
    origin: Origin


_Node = Any  # dict[str, _Node] | list[dict[str, _Node]] | _Leaf


class _Reader:
    """Walks what was written beside what is known, and collects what does not fit."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.problems: list[str] = []
        self.origins: dict[str, Origin] = {}

    def plant(self, table: Mapping[str, object], path: str, lines: Mapping[str, int]) -> dict[str, _Node]:
        """A parsed TOML table with the origin of each value."""
        planted: dict[str, _Node] = {}
        for key, value in table.items():
            here = f"{path}.{key}".lstrip(".")
            if isinstance(value, dict):
                planted[key] = self.plant(value, here, lines)
            elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
                planted[key] = [self.plant(item, f"{here}.{index}", lines) for index, item in enumerate(value)]
            else:
                line = f":{lines[here]}" if here in lines else ""
                planted[key] = _Leaf(value, Origin("file", f"{self.place}{line}"))
        return planted

    def graft(self, tree: dict[str, _Node], name: str, text: str) -> None:
        """One environment variable, over whatever the file says."""
        *parents, last = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        node: _Node = tree
        for position, key in enumerate(parents):
            following = [*parents, last][position + 1]
            if isinstance(node, list):
                if not key.isdigit() or int(key) > len(node):
                    self.problems.append(f"environment {name}: expected a number from 0 to {len(node)} where it says {key.upper()}")
                    return
                if int(key) == len(node):
                    node.append({})
                node = node[int(key)]
            elif isinstance(node, dict):
                node = node.setdefault(key, [] if following.isdigit() else {})
        if not isinstance(node, dict):
            self.problems.append(f"environment {name}: this is no table, so nothing in it can be set")
            return
        node[last] = _Leaf(text, Origin("env", name))

    def table(self, kind: type[Any], node: _Node, path: str) -> Any:  # noqa: ANN401 (whatever dataclass is asked for)
        """An instance of a settings dataclass, or None with problems noted."""
        if not isinstance(node, dict):
            self._note(path, f"expected a table, got {_kind(node)}", _first_origin(node))
            return None
        known: dict[str, Field[Any]] = {entry.name: entry for entry in fields(kind)}
        hints = typing.get_type_hints(kind)
        for key in node:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
                did_you_mean = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
                self._note(f"{path}.{key}".lstrip("."), f"unknown key; {did_you_mean}", _first_origin(node[key]))
        values: dict[str, object] = {}
        before = len(self.problems)
        for name, entry in known.items():
            here = f"{path}.{name}".lstrip(".")
            if name in node:
                try:
                    values[name] = self._value(hints[name], node[name], here)
                except _WrongValueError as wrong:
                    self._note(here, str(wrong), wrong.origin)
            elif entry.default_factory is not MISSING:
                self._note_defaults(here, entry.default_factory())
            elif entry.default is MISSING and is_dataclass(hints[name]) and hints[name] not in _PARSERS:
                self.table(hints[name], {}, here)
            elif entry.default is MISSING:
                variable = ENVIRONMENT_PREFIX + here.upper().replace(".", "__")
                remedy = f"add [[{here}]]" if name == "networks" else f"set it, or the variable {variable}"
                self._note(here, f"is required; {remedy}", Origin("file", self.place))
            else:
                self._note_defaults(here, entry.default)
        return None if len(self.problems) > before else kind(**values)

    def _note_defaults(self, path: str, value: object) -> None:
        for leaf, _ in _flatten(path, value):
            self.origins[leaf] = Origin("default", "")

    def _note(self, path: str, what: str, origin: Origin) -> None:
        self.problems.append(f"{origin.place or self.place}: {path}: {what}")

    def _value(self, kind: Any, node: _Node, path: str) -> object:  # noqa: ANN401 (a type hint)
        if isinstance(kind, types.UnionType):  # X | None
            kind = next(arm for arm in typing.get_args(kind) if arm is not type(None))
        if is_dataclass(kind) and isinstance(kind, type) and kind not in _PARSERS:
            return self.table(kind, node, path)
        if typing.get_origin(kind) is tuple:
            item = typing.get_args(kind)[0]
            if is_dataclass(item) and item not in _PARSERS:
                return self._rows(item, node, path)
            return self._list(item, node, path)
        if not isinstance(node, _Leaf):
            raise _WrongValueError(f"expected {_expected(kind)}, got {_kind(node)}", _first_origin(node))
        self.origins[path] = node.origin
        return _scalar(kind, node.value, node.origin)

    def _rows(self, kind: Any, node: _Node, path: str) -> object:  # noqa: ANN401 (a type hint)
        if not isinstance(node, list) or not node:
            raise _WrongValueError(f"expected tables, each under [[{path}]], got {_kind(node)}", _first_origin(node))
        return tuple(self.table(kind, row, f"{path}.{index}") for index, row in enumerate(node))

    def _list(self, kind: Any, node: _Node, path: str) -> object:  # noqa: ANN401 (a type hint)
        if not isinstance(node, _Leaf):
            raise _WrongValueError(f"expected a list, got {_kind(node)}", _first_origin(node))
        items = node.value
        if isinstance(items, str) and node.origin.kind == "env":
            items = [part.strip() for part in items.split(",") if part.strip()]
        if not isinstance(items, list):
            raise _WrongValueError(f"expected a list, got {_kind(node)}", node.origin)
        if not items:
            raise _WrongValueError("expected at least one entry", node.origin)
        self.origins[path] = node.origin
        return tuple(_scalar(kind, item, node.origin) for item in items)


class _WrongValueError(ValueError):
    """A value that does not fit, and where it was written."""

    def __init__(self, message: str, origin: Origin) -> None:
        super().__init__(message)
        self.origin = origin


def _scalar(kind: Any, value: object, origin: Origin) -> object:  # noqa: ANN401 (a type hint)
    """One value of the wanted type; text from the environment is read as that type."""
    parse = _PARSERS.get(kind)
    if parse is not None:
        if not isinstance(value, str):
            raise _WrongValueError(f"expected text, got {_kind(value)}", origin)
        try:
            return parse(value)
        except ValueError as error:
            raise _WrongValueError(str(error), origin) from None
    if typing.get_origin(kind) is Literal:
        if value not in typing.get_args(kind):
            near = difflib.get_close_matches(str(value), typing.get_args(kind), n=1)
            raise _WrongValueError(
                f"expected {_expected(kind)}, got {_kind(value)}" + (f"; did you mean {near[0]}?" if near else ""), origin
            )
        return value
    if isinstance(value, str) and origin.kind == "env" and kind is not str:
        value = _from_text(kind, value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or value != value:  # noqa: PLR0124 (NaN)
        raise _WrongValueError(f"expected {_expected(kind)}, got {_kind(value)}", origin)
    return value


def _from_text(kind: type[object], text: str) -> object:
    """Text of an environment variable as the wanted type; the text itself when it is none."""
    if kind is bool and text in {"true", "false"}:
        return text == "true"
    if kind is int and re.fullmatch(r"-?[0-9]{1,30}", text, re.ASCII):
        return int(text)
    if kind is float and re.fullmatch(r"-?[0-9]{1,15}(\.[0-9]{1,15})?", text, re.ASCII):
        return float(text)
    return text


def _parse_token_address(text: str) -> Address:
    address = parse_address(text)
    if text[2:] not in {text[2:].lower(), text[2:].upper(), checksum_address(address)[2:]}:
        raise ValueError(f"the EIP-55 checksum of this address is wrong; did you mean {checksum_address(address)}?")
    return address


def _parse_database_url(text: str) -> DatabaseUrl:
    if text.startswith("embedded:"):
        if not text.removeprefix("embedded:"):
            raise ValueError("expected embedded:DIRECTORY such as embedded:./var/postgres")
        return DatabaseUrl(literal=text)
    url = Url.parse(text, ("postgresql", "postgres"))
    return DatabaseUrl(literal=url.literal, secret=url.secret)


def _parse_rpc_url(text: str) -> RpcUrl:
    url = Url.parse(text, ("http", "https"))
    return RpcUrl(literal=url.literal, secret=url.secret)


def _parse_ws_url(text: str) -> WebSocketUrl:
    url = Url.parse(text, ("ws", "wss"))
    return WebSocketUrl(literal=url.literal, secret=url.secret)


_PARSERS: Final[Mapping[Any, Callable[[str], object]]] = {
    Secret: Secret.parse,
    RpcUrl: _parse_rpc_url,
    WebSocketUrl: _parse_ws_url,
    DatabaseUrl: _parse_database_url,
    Listen: Listen.parse,
    Address: _parse_token_address,
    Network: parse_network,
}


def _expected(kind: Any) -> str:  # noqa: ANN401 (a type hint)
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(f'"{word}"' for word in typing.get_args(kind))
    return {int: "an integer", float: "a number", str: "text", bool: "true or false"}.get(kind, "a table")


def _kind(node: object) -> str:
    match node:
        case _Leaf():
            return _kind(node.value)
        case dict():
            return "a table"
        case list():
            return "a list"
        case bool():
            return str(node).lower()
        case int() | float():
            return str(node)
        case str():
            return f'text "{node}"' if len(node) <= 20 and not _looks_secret(node) else "text"
        case _:
            return type(node).__name__


def _first_origin(node: _Node) -> Origin:
    """Where a part of the tree was written."""
    if isinstance(node, _Leaf):
        return node.origin
    inner = list(node.values()) if isinstance(node, dict) else list(node)
    return _first_origin(inner[0]) if inner else Origin("file", "")


_HEADER = re.compile(r"\s*(?P<open>\[\[?)\s*(?P<path>[A-Za-z0-9_.-]+)\s*\]")
_ENTRY = re.compile(r"\s*(?P<key>[A-Za-z0-9_-]+)\s*=")


def _line_numbers(text: str) -> dict[str, int]:
    """The line of each plainly written key, by path. Best effort: it only serves messages."""
    lines: dict[str, int] = {}
    rows: dict[str, int] = {}
    prefix = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            *parents, last = header["path"].split(".")
            prefix = ""
            for parent in parents:
                prefix = f"{prefix}.{parent}".lstrip(".")
                prefix += f".{rows[prefix]}" if prefix in rows else ""
            prefix = f"{prefix}.{last}".lstrip(".")
            if header["open"] == "[[":
                rows[prefix] = rows.get(prefix, -1) + 1
                prefix += f".{rows[prefix]}"
        elif entry := _ENTRY.match(line):
            lines.setdefault(f"{prefix}.{entry['key']}".lstrip("."), number)
    return lines


# ---- relations between settings


def _broken_relations(config: Config) -> Iterator[str]:
    """One sentence for each rule between settings that does not hold."""
    yield from _bad_bounds(config)
    settlement, server, access = config.settlement, config.server, config.access
    for small, large in (
        ("lease_renew_s", "lease_trust_s"),
        ("lease_trust_s", "lease_ttl_s"),
    ):
        if getattr(settlement, small) >= getattr(settlement, large):
            yield (
                f"settlement.{small} = {getattr(settlement, small)} must be below settlement.{large} = {getattr(settlement, large)},"
                " or a relayer could be signed for by two processes"
            )
    for small, large in (
        ("verify_deadline_s", "deadline_s"),
        ("max_fee_floor_wei", "max_fee_cap_wei"),
        ("priority_fee_wei", "max_fee_cap_wei"),
        ("group_max", "queue_max"),
    ):
        if getattr(settlement, small) > getattr(settlement, large):
            yield f"settlement.{small} = {getattr(settlement, small)} must not be above settlement.{large} = {getattr(settlement, large)}"
    if server.body_bytes_max > BODY_BYTES_MAX:
        yield f"server.body_bytes_max = {server.body_bytes_max} must not be above {BODY_BYTES_MAX}, the most that the codec reads"
    for path, value_s in (
        ("settlement.verify_deadline_s", settlement.verify_deadline_s),
        ("server.body_timeout_s", server.body_timeout_s),
    ):
        if value_s >= server.request_timeout_s:
            yield f"{path} = {value_s} must be below server.request_timeout_s = {server.request_timeout_s}"
    if access.refresh_s >= access.stale_max_s:
        yield f"access.refresh_s = {access.refresh_s} must be below access.stale_max_s = {access.stale_max_s}"
    yield from _bad_listens(config)
    yield from _bad_networks(config)


def _bad_listens(config: Config) -> Iterator[str]:
    server, access = config.server, config.access
    listens = [("server.listen", server.listen)]
    listens += [("metrics.listen", config.metrics.listen)] if config.metrics else []
    listens += [("console.listen", config.console.listen)] if config.console else []
    if access.mode == "open" and not server.listen.loopback:
        yield f'access.mode = "open" lets everybody settle, so server.listen = "{server.listen}" must be loopback: use mode "keys"'
    if config.database.url.embedded is not None and not server.listen.loopback:
        yield f'an embedded database is for trying out, so server.listen = "{server.listen}" must be loopback: use a PostgreSQL server'
    for index, (name, listen) in enumerate(listens):
        for other, taken in listens[:index]:
            if listen.port and listen == taken:
                yield f"{name} and {other} are both {listen}: give each its own port"


def _bad_networks(config: Config) -> Iterator[str]:
    seen: set[Network] = set()
    for index, network in enumerate(config.networks):
        where = f"networks.{index} ({network.id})"
        if network.id in seen:
            yield f"{where}: this network is configured twice: merge the two tables"
        seen.add(network.id)
        if len(set(network.relayers)) < len(network.relayers):
            yield f"{where}: a relayer is listed twice: two loops would use the same tx_nonces"
        if not network.tokens:
            yield f"{where}: no USDC is known for this network: add [[networks.assets]] with address, name, version and decimals"
        if len({asset.address for asset in network.assets}) < len(network.assets):
            yield f"{where}: an asset is listed twice"


def _bad_bounds(config: Config) -> Iterator[str]:
    """Times and bounds are positive, whatever package they belong to."""
    may_be_zero = {"server.drain_delay_s", "settlement.priority_fee_wei", "settlement.max_fee_floor_wei"}
    for path, value in _numbers("", config):
        if value < 0 or (value == 0 and path not in may_be_zero and not path.endswith("decimals")):
            yield f"{path} = {value} must be above zero"
        elif value == float("inf"):
            yield f"{path} must be finite"


def _numbers(path: str, value: object) -> Iterator[tuple[str, int | float]]:
    if is_dataclass(value) and not isinstance(value, Listen | type):
        for entry in fields(value):
            yield from _numbers(f"{path}.{entry.name}".lstrip("."), getattr(value, entry.name))
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _numbers(f"{path}.{index}", item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value


def _warnings(config: Config) -> Iterator[str]:
    """What is allowed but probably not meant."""
    if config.settlement.deadline_s >= 28:
        yield f"settlement.deadline_s = {config.settlement.deadline_s}: clients of the Go SDK give up after 30 s; stay below 28"
    if config.settlement.deadline_s > config.server.stop_grace_s:
        yield "settlement.deadline_s is above server.stop_grace_s: callers may be told `settlement_pending` on a stop"
    if not config.server.listen.loopback and config.metrics is None:
        yield "server.listen is not loopback and there is no [metrics] table: /metrics is served nowhere"
    if len({network.poll_s for network in config.networks if network.poll_s is not None}) > 1:
        yield "networks have different poll_s: the smallest counts for all of them"
    for index, network in enumerate(config.networks):
        if network.ws_url is not None:
            yield f"networks.{index} ({network.id}): ws_url is not used by this release, which polls"
        if len(network.rpc_urls) == 1:
            yield f"networks.{index} ({network.id}): one RPC URL only; a second one keeps payments flowing when it fails"
