"""What an operator may tune about the HTTP face: where it listens, its bounds, and how callers are told apart."""

from dataclasses import dataclass
from typing import Final, Literal

from facilitator.units import Listen

_LISTEN: Final = Listen("127.0.0.1", 4022)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The `[server]` table. Times in seconds, sizes in bytes."""

    listen: Listen = _LISTEN
    """Where the API is served. TLS belongs to the proxy in front."""
    body_bytes_max: int = 65_536
    """Largest request body; beyond it 413."""
    body_timeout_s: float = 5.0
    """Longest that a request body may take to arrive; then 408."""
    header_timeout_s: float = 5.0
    """Longest that a request's head may take, the first from the connection's start, others from their first byte; then it is closed."""
    idle_timeout_s: float = 75.0
    """How long an idle keep-alive connection is kept. Longer than the usual 60 s of a proxy in front."""
    unread_timeout_s: float = 20.0
    """How long a caller may take to read an answer, or its machine to acknowledge a byte of it (Linux); then the connection is cut."""
    request_timeout_s: float = 10.0
    """Longest time for any request but `/settle`, which ends by `settlement.deadline_s`; then 503."""
    connections_max: int = 2000
    """Open connections; for a further one the longest silent or idle one is closed, or itself when all are at work."""
    judged_max: int = 512
    """Requests in judgement at once, and so the wait for it; a tenant may have twice as many as there are places left, beyond that 503."""
    connections_per_address_max: int | None = None
    """Of those, from one IPv4 address or IPv6 /64 as TCP has it. Leave it out behind a proxy, whose address all callers have."""
    delivery_timeout_s: float = 5.0
    """How long the caller's machine may take to acknowledge a `/settle` answer before it counts as undelivered."""
    stop_grace_s: float = 25.0
    """How long a stopping service waits for callers to be answered. Keep it below the supervisor's own limit."""
    drain_delay_s: float = 0.0
    """How long a stopping service still accepts, not ready already, so that load balancers notice first."""
    retry_after_s: int = 2
    """`Retry-After` of a 503."""
    page_max: int = 200
    """Most settlements in one page of the list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessSettings:
    """The `[access]` table."""

    mode: Literal["keys", "open"] = "keys"
    """`open` takes every caller for the tenant `open` with all scopes; only with loopback addresses."""
    refresh_s: float = 5.0
    """How often known keys are read again: a revoked key works at most this much longer."""
    stale_max_s: float = 60.0
    """How long known keys are believed after the last contact with the store (docs/architecture.md decision 9)."""
    keys_max: int = 10_000
    """Keys kept in memory; the one unused for longest goes first."""
    unknown_ttl_s: float = 2.0
    """How long a key that does not exist is remembered as such."""
    unknown_max: int = 10_000
    """Unknown keys remembered."""
    lookups_max: int = 4
    """Unknown keys looked up at the same time, so that strangers cannot keep the store busy."""
    jwt_bases: tuple[str, ...] = ()
    """`host[:port][/path]` under which callers reach this API: the `uris` of a signed token must name one. None: no tokens."""
    rate_per_s: float | None = None
    """Requests per second of one key, per route; beyond it 429. None: no limit."""
    rate_burst: int = 100
    """Requests that may come at once before that rate holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSettings:
    """The `[metrics]` table."""

    listen: Listen
    """Where `/metrics` is served alone. On the main port it is served only while that is loopback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoverySettings:
    """The `[discovery]` table: the public catalogue of resources whose sellers declare the extension `bazaar`."""

    enabled: bool = True
    """Whether there is one. A tenant may keep out of it: `discoverable`."""
    private_hosts: bool = False
    """Whether hosts are listed that nobody outside can reach; only with a loopback listen address."""
    entries_max: int = 10_000
    """Listings of all tenants; what comes beyond is not listed until others expire."""
    entries_per_tenant_max: int = 200
    """Of one tenant."""
    entry_bytes_max: int = 16_384
    """Most that may be said about one resource."""
    pending_max: int = 1000
    """Resources that wait in this process to be written."""
    flush_s: float = 5.0
    """How often they are written, all at once."""
    expire_s: float = 2_592_000.0
    """How long a listing lives after the last payment for it was verified or settled."""
    page_max: int = 100
    """Most listings in one page; whoever asks for more gets these."""
    rate_per_s: float = 10.0
    """Requests per second of one address; beyond it 429. Behind a balancer that is the balancer's."""
    rate_burst: int = 50
    """Requests that may come at once before that rate holds."""
    addresses_max: int = 10_000
    """Addresses whose rate is remembered; the one silent for longest goes first."""
