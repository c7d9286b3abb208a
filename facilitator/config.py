"""Reads TOML and environment into one frozen Config, and says what is wrong with them in words that help.

Every package's Settings meet here: unknown keys are refused with the nearest known one, types and relations are checked
before anything starts, and each value remembers where it came from. It reads no secret: references to them are read when
they are needed (`facilitator.references`).
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Final

from facilitator.api.settings import AccessSettings, DiscoverySettings, MetricsSettings
from facilitator.api.settings import Settings as ServerSettings
from facilitator.chain.rpc import Settings as RpcSettings
from facilitator.console.settings import Settings as ConsoleBasics
from facilitator.domain.abi import MULTICALL3_ADDRESS
from facilitator.domain.batching import SINGLE_GAS, TRANSACTION_GAS_MAX
from facilitator.domain.wallets import Rules
from facilitator.errors import ConfigFault
from facilitator.finance.settings import Settings as FinanceSettings
from facilitator.protocol.address import checksum_address
from facilitator.protocol.codec import BODY_BYTES_MAX
from facilitator.reading import Origin, Parsers, Reader, flatten, line_numbers
from facilitator.references import DatabaseUrl, KeyReference, RpcUrl, Secret, WebSocketUrl, parse_database_url, parse_rpc_url, parse_ws_url
from facilitator.schemes.scheme import Token
from facilitator.schemes.usdc import USDC
from facilitator.settlement.screening import Settings as ScreeningSettings
from facilitator.settlement.settings import Settings as SettlementSettings
from facilitator.telemetry import Format, Level
from facilitator.tracing import Settings as TracingSettings
from facilitator.units import Address, Gas, Listen, Network, Zone, parse_address, parse_network, parse_zone

ENVIRONMENT_PREFIX: Final = "FACILITATOR__"
CONFIG_VARIABLE: Final = "FACILITATOR_CONFIG"
_EXPLORER: Final = re.compile(r"https://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?", re.ASCII)


# ---- what the operator may write


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
    relayers: tuple[KeyReference, ...] = ()
    """Keys of the accounts that send and pay gas. None: what this replica admits waits for replicas that have some."""
    plain_keys: bool = False
    """Whether keys may lie unencrypted in the environment or in a file although this network's money is real."""
    canary: Secret | None = None
    """Key of an account that pays itself one atomic unit every `settlement.canary_settle_s`; it needs that unit and no coins."""
    ws_url: WebSocketUrl | None = None
    """For notice of new blocks; polling remains the truth."""
    poll_s: float | None = None
    """How often new blocks are looked for; None: `settlement.poll_s`."""
    screening_oracle: Address | None = None
    """Contract on this network that is asked `isSanctioned(address)` about payer and payee; needs a `[screening]` table."""
    rate_feed: Address | None = None
    """Chainlink feed on this network of its own coin in US dollars."""
    rate_file: str | None = None
    """File with that rate instead: `{"usd": "3120.55", "quoted_at": "2026-11-21T08:00:00Z"}`."""
    explorer_url: str | None = None
    """`https://host` of a block explorer: pages of the console link to `/tx/…` below it. It is never fetched by us."""
    wallet_factories: tuple[Address, ...] = ()
    """Contracts that may be called to deploy a smart wallet that pays (ERC-6492), where `settlement.smart_wallets` lets it."""
    assets: tuple[AssetSettings, ...] = ()
    """Tokens besides the network's USDC of the built-in table; one with the same address replaces that."""

    @property
    def tokens(self) -> tuple[Token, ...]:
        """Everything that is served on this network."""
        known = {token.address: token for token in USDC if token.network == self.id}
        for asset in self.assets:
            known[asset.address] = Token(
                network=self.id, address=asset.address, name=asset.name, version=asset.version, decimals=asset.decimals
            )
        return tuple(known.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class OidcSettings:
    """The `[console.oidc]` table: who signs people in to the finance console, and what they may be there."""

    issuer: str
    """Of the OpenID provider, as it calls itself; `/.well-known/openid-configuration` lies below it."""
    client_id: str
    """What the provider knows the console as. Its redirect address is `console.url` and `/sign-in/callback`."""
    client_secret: Secret | None = None
    """None: a public client, held by PKCE alone."""
    scopes: tuple[str, ...] = ("openid", "email", "profile")
    """What is asked of the provider."""
    person_claim: str = "email"
    """Claim of the ID token that names a person, in the audit trail too."""
    role_claim: str = "roles"
    """Claim with what the person may be: a word or a list."""
    viewer: tuple[str, ...] = ("viewer",)
    """Values of that claim that make somebody a viewer."""
    finance: tuple[str, ...] = ("finance",)
    """Values that make somebody finance."""
    auditor: tuple[str, ...] = ("auditor",)
    """Values that make somebody an auditor."""
    admin: tuple[str, ...] = ("admin",)
    """Values that make somebody an admin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleSettings(ConsoleBasics):
    """The `[console]` table."""

    oidc: OidcSettings | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """The `[log]` table."""

    level: Level = "info"
    format: Format = "auto"
    """`auto`: for people on a terminal, JSON lines otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything the operator said, checked."""

    server: ServerSettings = field(default_factory=ServerSettings)
    access: AccessSettings = field(default_factory=AccessSettings)
    discovery: DiscoverySettings = field(default_factory=DiscoverySettings)
    database: DatabaseSettings
    settlement: SettlementSettings = field(default_factory=SettlementSettings)
    rpc: RpcSettings = field(default_factory=RpcSettings)
    finance: FinanceSettings = field(default_factory=FinanceSettings)
    screening: ScreeningSettings | None = None
    log: LogSettings = field(default_factory=LogSettings)
    metrics: MetricsSettings | None = None
    tracing: TracingSettings | None = None
    console: ConsoleSettings | None = None
    networks: tuple[NetworkSettings, ...]

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The tokens of all networks."""
        return tuple(token for network in self.networks for token in network.tokens)

    @property
    def wallets(self) -> Rules:
        """Which smart wallets may pay."""
        settlement = self.settlement
        return Rules(
            mode=settlement.smart_wallets,
            gas_max=Gas(settlement.wallet_gas_max),
            deployment_gas_max=Gas(settlement.deployment_gas_max),
            factories=frozenset((network.id, factory) for network in self.networks for factory in network.wallet_factories),
        )


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
    reader = Reader("environment" if path is None else path.name, ENVIRONMENT_PREFIX, _PARSERS)
    tree: dict[str, object] = {}
    if path is not None:
        try:
            text = path.read_text("utf-8")
            parsed = tomllib.loads(text)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigProblems([f"cannot read the configuration {path}: {error}"]) from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigProblems([f"{path}: not TOML: {error}"]) from None
        tree = reader.plant(parsed, "", line_numbers(text))
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
        for path, text in flatten("", loaded.config)
    ]


def _parse_token_address(text: str) -> Address:
    address = parse_address(text)
    if text[2:] not in {text[2:].lower(), text[2:].upper(), checksum_address(address)[2:]}:
        raise ValueError(f"the EIP-55 checksum of this address is wrong; did you mean {checksum_address(address)}?")
    return address


_PARSERS: Final[Parsers] = {
    KeyReference: KeyReference.parse,
    RpcUrl: parse_rpc_url,
    WebSocketUrl: parse_ws_url,
    DatabaseUrl: parse_database_url,
    Listen: Listen.parse,
    Address: _parse_token_address,
    Network: parse_network,
    Zone: parse_zone,
    Secret: Secret.parse,
}


# ---- relations between settings


def _broken_relations(config: Config) -> Iterator[str]:
    """One sentence for each rule between settings that does not hold."""
    yield from _bad_bounds(config)
    yield from _bad_level(config)
    yield from _bad_wallets(config)
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
        ("priority_fee_min_wei", "priority_fee_cap_wei"),
        ("priority_fee_cap_wei", "max_fee_cap_wei"),
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
    if server.delivery_timeout_s >= settlement.answer_doubt_s:
        yield (
            f"server.delivery_timeout_s = {server.delivery_timeout_s} must be below settlement.answer_doubt_s ="
            f" {settlement.answer_doubt_s}, or a repeat elsewhere is refused before it is known whether the answer arrived"
        )
    if access.refresh_s >= access.stale_max_s:
        yield f"access.refresh_s = {access.refresh_s} must be below access.stale_max_s = {access.stale_max_s}"
    yield from _bad_listens(config)
    yield from _bad_console(config)
    yield from _bad_networks(config)
    yield from _bad_tracing(config)
    yield from _bad_screening(config)


def _bad_listens(config: Config) -> Iterator[str]:
    server, access = config.server, config.access
    listens = [("server.listen", server.listen)]
    listens += [("metrics.listen", config.metrics.listen)] if config.metrics else []
    listens += [("console.listen", config.console.listen)] if config.console else []
    if access.mode == "open" and not server.listen.loopback:
        yield f'access.mode = "open" lets everybody settle, so server.listen = "{server.listen}" must be loopback: use mode "keys"'
    if config.discovery.private_hosts and not server.listen.loopback:
        yield "discovery.private_hosts would publish addresses of your own network: only with a loopback server.listen"
    if config.database.url.embedded is not None and not server.listen.loopback:
        yield f'an embedded database is for trying out, so server.listen = "{server.listen}" must be loopback: use a PostgreSQL server'
    for index, (name, listen) in enumerate(listens):
        for other, taken in listens[:index]:
            if listen.port and listen == taken:
                yield f"{name} and {other} are both {listen}: give each its own port"


def _bad_console(config: Config) -> Iterator[str]:
    console = config.console
    if console is None:
        return
    if console.url is None and not console.listen.loopback:
        yield f'console.listen = "{console.listen}" can be reached from elsewhere: set console.url to the https address that browsers use'
    if console.url is not None and not re.fullmatch(r"https://[^/?#@\s]+/?", console.url):
        yield f'console.url = "{console.url}": expected https://host or https://host:port, without a path'
    if console.session_idle_s > console.session_life_s:
        yield f"console.session_idle_s = {console.session_idle_s} must not be above console.session_life_s = {console.session_life_s}"
    if console.oidc is not None and "openid" not in console.oidc.scopes:
        yield "console.oidc.scopes: expected openid among them"
    issuer = "" if console.oidc is None else console.oidc.issuer
    if issuer and not re.fullmatch(r"https://[^?#@\s]+|http://(127\.0\.0\.1|localhost|\[::1\])(:[0-9]+)?(/[^?#@\s]*)?", issuer):
        yield f'console.oidc.issuer = "{issuer}": expected an https address'


def _bad_networks(config: Config) -> Iterator[str]:
    seen: set[Network] = set()
    for index, network in enumerate(config.networks):
        where = f"networks.{index} ({network.id})"
        if network.id in seen:
            yield f"{where}: this network is configured twice: merge the two tables"
        seen.add(network.id)
        if len(network.rpc_urls) < config.settlement.receipt_witnesses:
            yield (
                f"{where}: settlement.receipt_witnesses = {config.settlement.receipt_witnesses} needs as many rpc_urls,"
                f" got {len(network.rpc_urls)}"
            )
        if len(set(network.relayers)) < len(network.relayers):
            yield f"{where}: a relayer is listed twice: two loops would use the same tx_nonces"
        if not network.tokens:
            yield f"{where}: no USDC is known for this network: add [[networks.assets]] with address, name, version and decimals"
        if network.explorer_url is not None and not re.fullmatch(
            r"https://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?", network.explorer_url
        ):
            yield f'{where}: explorer_url = "{network.explorer_url}": expected https://host, or a path there, without a query'
        if network.rate_feed is not None and network.rate_file is not None:
            yield f"{where}: rate_feed and rate_file exclude each other"
        if len({asset.address for asset in network.assets}) < len(network.assets):
            yield f"{where}: an asset is listed twice"
        if forbidden := {MULTICALL3_ADDRESS, *(token.address for token in network.tokens)} & set(network.wallet_factories):
            yield f"{where}: wallet_factories: {checksum_address(min(forbidden))} deploys no wallets, and a payer could have it called"


def _bad_wallets(config: Config) -> Iterator[str]:
    """What smart wallets may cost, and who deploys them."""
    settlement = config.settlement
    for name in ("wallet_gas_max", "deployment_gas_max"):
        if not SINGLE_GAS <= getattr(settlement, name) <= TRANSACTION_GAS_MAX:
            yield f"settlement.{name} = {getattr(settlement, name)} must lie between {SINGLE_GAS} and {TRANSACTION_GAS_MAX}"
    if settlement.smart_wallets == "counterfactual" and not any(network.wallet_factories for network in config.networks):
        yield "settlement.smart_wallets = counterfactual: no network names wallet_factories, so none could be deployed"


def _bad_tracing(config: Config) -> Iterator[str]:
    if config.tracing is None:
        return
    if config.tracing.sample_ratio > 1:
        yield f"tracing.sample_ratio = {config.tracing.sample_ratio} must not be above 1"
    if not config.tracing.endpoint.startswith(("http://", "https://")) or "@" in config.tracing.endpoint:
        yield "tracing.endpoint: expected http://… or https://… without credentials: those go into OTEL_EXPORTER_OTLP_HEADERS"


def _bad_screening(config: Config) -> Iterator[str]:
    screening, oracles = config.screening, [network.id for network in config.networks if network.screening_oracle is not None]
    if screening is None and oracles:
        yield f"screening_oracle of {oracles[0]} needs a [screening] table with known_listed, an account that it lists"
    if screening is not None and screening.list_file is None and not oracles:
        yield "[screening] names neither a list_file nor any network's screening_oracle: nobody would be screened"
    if screening is not None and screening.reload_s >= screening.list_age_max_s:
        yield f"screening.reload_s = {screening.reload_s} must be below screening.list_age_max_s = {screening.list_age_max_s}"
    if screening is not None and oracles and screening.oracle_age_max_s <= config.settlement.deadline_s:
        yield (
            f"screening.oracle_age_max_s = {screening.oracle_age_max_s} must be above settlement.deadline_s ="
            f" {config.settlement.deadline_s}, or a payment that waits is refused for what the oracle said when it came"
        )


def _bad_level(config: Config) -> Iterator[str]:
    """The risk of a flashblock is taken tenant by tenant."""
    if config.settlement.confirm_level == "preconfirmed":
        yield "settlement.confirm_level = preconfirmed: tenants opt into that; expected latest, safe or finalized"


def _bad_bounds(config: Config) -> Iterator[str]:
    """Times and bounds are positive, whatever package they belong to, and waits end before those that hold them."""
    if config.settlement.canary_settle_s < 1:
        yield f"settlement.canary_settle_s = {config.settlement.canary_settle_s} must be at least 1"
    if config.settlement.send_sync_ms >= config.rpc.request_timeout_s * 1000:
        yield (
            f"settlement.send_sync_ms = {config.settlement.send_sync_ms} must be below"
            f" rpc.request_timeout_s = {config.rpc.request_timeout_s}, or a send that waits for its block looks like one that is lost"
        )
    may_be_zero = {
        "server.drain_delay_s",
        "tracing.sample_ratio",
        "settlement.priority_fee_min_wei",
        "settlement.payment_cost_cap_wei",
        "settlement.max_fee_floor_wei",
        "settlement.linger_ms",
        "settlement.send_sync_ms",
        "settlement.relayer_reserve_wei",
    }
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
    if config.settlement.smart_wallets != "counterfactual" and any(network.wallet_factories for network in config.networks):
        yield f"settlement.smart_wallets = {config.settlement.smart_wallets}: wallet_factories are never called"
    if config.settlement.smart_wallets == "counterfactual" and config.access.mode == "open":
        yield "settlement.smart_wallets = counterfactual: tenant open (access.mode) has no gas budget, so no wallet is deployed"
    if config.settlement.deadline_s >= 28:
        yield f"settlement.deadline_s = {config.settlement.deadline_s}: clients of the Go SDK give up after 30 s; stay below 28"
    if config.settlement.deadline_s > config.server.stop_grace_s:
        yield "settlement.deadline_s is above server.stop_grace_s: callers may be told `settlement_pending` on a stop"
    if not config.server.listen.loopback and config.metrics is None:
        yield "server.listen is not loopback and there is no [metrics] table: /metrics is served nowhere"
    if len({network.poll_s for network in config.networks if network.poll_s is not None}) > 1:
        yield "networks have different poll_s: the smallest counts for all of them"
    for index, network in enumerate(config.networks):
        if not network.relayers:
            yield f"networks.{index} ({network.id}): no relayers: this replica sends nothing, and what it admits waits for one that does"
        if len(network.rpc_urls) == 1:
            yield f"networks.{index} ({network.id}): one RPC URL only; a second one keeps payments flowing when it fails"
