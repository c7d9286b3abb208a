"""JSON-RPC over aiohttp: batches, deadlines, endpoint health, fail-over, and the one table of node messages.

It must never turn an error into an absence: a call either has the node's own result, an `RpcError` that the node
answered, or it raises `ChainFault`. URLs may carry credentials, so endpoints are known by `host:port` in every message.
A deadline is a reading of the clock's `monotonic()`: it is passed down, never restarted.
"""

import asyncio
import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Final, Self

import aiohttp
import msgspec
from yarl import URL

from facilitator.clock import Clock
from facilitator.errors import ChainFault, ConfigFault

Observe = Callable[[str, str, str, float], None]
"""Called once for each HTTP request: endpoint (host:port), method (`batch` for several calls), outcome (`ok` or a short word), seconds."""

Result = msgspec.Raw
"""The node's result, still JSON: the caller decodes it into the type it expects."""


class NodeError(Enum):
    """What a node's error message means, whichever node wrote it."""

    ALREADY_KNOWN = "already_known"
    """The very transaction is in the pool already: as good as accepted."""
    NONCE_TOO_LOW = "nonce_too_low"
    NONCE_TOO_HIGH = "nonce_too_high"
    REPLACEMENT_UNDERPRICED = "replacement_underpriced"
    """Another transaction holds this tx_nonce and the new one does not pay enough more."""
    UNDERPRICED = "underpriced"
    """The fee is below what this node takes at all, or below the base fee (anvil refuses those, reth parks them)."""
    INSUFFICIENT_FUNDS = "insufficient_funds"
    TXPOOL_FULL = "txpool_full"
    """The pool, or this sender's share of it (reth: 16 slots, a delegated account: 1), is full."""
    GAS_LIMIT = "gas_limit"
    """The gas limit is above what a block or a transaction may have (EIP-7825), or below the intrinsic gas."""
    INVALID_TRANSACTION = "invalid_transaction"
    """Not a transaction for this chain: malformed, wrong chain id, wrong type, oversized."""
    REVERTED = "reverted"
    OUT_OF_GAS = "out_of_gas"
    RATE_LIMITED = "rate_limited"
    BATCH_TOO_LARGE = "batch_too_large"
    RANGE_TOO_LARGE = "range_too_large"
    """Too many blocks or results for one `eth_getLogs`."""
    STATE_UNAVAILABLE = "state_unavailable"
    """The node lacks the block or its state: it lags or has pruned."""
    TIMEOUT = "timeout"
    """The node gave up on its own work; says nothing about a transaction."""
    METHOD_UNSUPPORTED = "method_unsupported"
    INVALID_PARAMS = "invalid_params"
    INTERNAL = "internal"
    UNKNOWN = "unknown"


TRY_ELSEWHERE: Final = frozenset(
    {NodeError.RATE_LIMITED, NodeError.STATE_UNAVAILABLE, NodeError.TIMEOUT, NodeError.INTERNAL, NodeError.METHOD_UNSUPPORTED}
)
"""Errors that are the endpoint's own trouble: another endpoint may answer the same read."""

NODE_MESSAGES: Final[tuple[tuple[str, NodeError], ...]] = (
    # The first pattern found in the lower-cased message decides, so the narrower one stands first. What follows on a revert is a
    # contract's own text, and may say anything.
    (r"^execution reverted", NodeError.REVERTED),
    (r"already known|already imported|known transaction|alreadyknown|already in (the )?(mem|tx)pool", NodeError.ALREADY_KNOWN),
    (r"replacement transaction underpriced|replacement fee too low|could not replace existing", NodeError.REPLACEMENT_UNDERPRICED),
    (r"future transaction tries to replace pending", NodeError.REPLACEMENT_UNDERPRICED),
    (r"nonce too low|nonce is too low|old nonce|oldnonce|invalid nonce; got", NodeError.NONCE_TOO_LOW),
    (r"nonce too high|nonce is too high|nonce gap|gapped.nonce", NodeError.NONCE_TOO_HIGH),
    (r"insufficient funds|insufficient balance for transfer|doesn't have enough funds", NodeError.INSUFFICIENT_FUNDS),
    (r"(tx|transaction) ?pool is full|account limit exceeded|in-flight transaction limit|too many pending", NodeError.TXPOOL_FULL),
    (
        r"underpriced|fee per gas less than block base fee|feetoolow|gas price below|fee cap less than block|tip.*too low",
        NodeError.UNDERPRICED,
    ),
    (r"exceeds block gas limit|intrinsic gas|gas limit too high|exceeds (the )?(max|maximum|cap)[a-z ]* gas limit", NodeError.GAS_LIMIT),
    (r"transaction gas limit is greater than the cap|floor data gas", NodeError.GAS_LIMIT),
    (r"oversized data|invalid sender|invalid chain id|chain ?id mismatch|only replay-protected", NodeError.INVALID_TRANSACTION),
    (
        r"transaction type not supported|invalid signature|failed to decode (signed )?transaction|rlp: |typed transaction too short",
        NodeError.INVALID_TRANSACTION,
    ),
    (r"max priority fee per gas higher than max fee|priority fee greater than max fee", NodeError.INVALID_TRANSACTION),
    (r"vm execution error|reverted", NodeError.REVERTED),
    (r"out ?of ?gas|gas required exceeds|gas uint64 overflow", NodeError.OUT_OF_GAS),
    (r"rate.?limit|too many requests|request limit|compute units|capacity|quota|throttl|daily request count", NodeError.RATE_LIMITED),
    (
        r"batch (size|limit|too)|too many (requests|calls) in (a |the )?batch|batch of more than|maximum \d+ calls in (1|one) batch",
        NodeError.BATCH_TOO_LARGE,
    ),
    (
        r"block range|query returned more than|too many results|exceed maximum block|log response size|range (is )?too",
        NodeError.RANGE_TOO_LARGE,
    ),
    (r"limited to [a0-9, ]+range", NodeError.RANGE_TOO_LARGE),
    (
        r"header not found|missing trie node|unknown block|block not found|state .*not available|pruned|historical state",
        NodeError.STATE_UNAVAILABLE,
    ),
    (r"blockoutofrange|after last accepted block|resource not found", NodeError.STATE_UNAVAILABLE),
    (r"timed? ?out|timeout|deadline exceeded", NodeError.TIMEOUT),
    (r"method .*(not found|not supported|not available|does not exist)|method not found|unsupported method", NodeError.METHOD_UNSUPPORTED),
)
"""What nodes write (geth, op-geth, reth, anvil, erigon, nethermind, providers in front of them) and what it means."""

NODE_CODES: Final = {
    3: NodeError.REVERTED,
    429: NodeError.RATE_LIMITED,
    -32005: NodeError.RATE_LIMITED,
    -32001: NodeError.STATE_UNAVAILABLE,
    -32601: NodeError.METHOD_UNSUPPORTED,
    -32602: NodeError.INVALID_PARAMS,
    -32603: NodeError.INTERNAL,
}
"""Error codes that speak where the message does not. -32000 and -32003 are used for everything, so they say nothing."""

_TABLE: Final = tuple((re.compile(pattern), kind) for pattern, kind in NODE_MESSAGES)
_URL_IN_TEXT: Final = re.compile(r"[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE)
_MESSAGE_MAX: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcError:
    """The node answered this call with an error."""

    kind: NodeError
    code: int
    message: str
    """The node's words without URLs, at most 200 characters."""
    data: bytes | None = None
    """Revert data, where the node sent it."""

    def as_fault(self, method: str) -> ChainFault:
        """The fault of a caller that has no use for this error."""
        return ChainFault(self.kind.value, f"the node refused {method}: {self.message}", method=method, code=self.code)


@dataclass(frozen=True, slots=True)
class RpcCall:
    """One JSON-RPC method and its positional parameters."""

    method: str
    params: Sequence[object] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Bounds of the RPC transport, the same for every endpoint."""

    request_timeout_s: float = 5.0
    """Longest that one endpoint may take for one request, however late the deadline is; then the next one is asked."""
    response_bytes_max: int = 32 * 1024 * 1024
    """Longest body read, after decompression."""
    connections_max: int = 64
    """Connections to one endpoint."""
    batch_max: int = 100
    """Calls in one JSON-RPC batch; longer lists are split by the caller."""
    failures_max: int = 3
    """Consecutive failures after which an endpoint rests."""
    rest_s: float = 1.0
    """First rest of a failing endpoint; doubles with each failed trial."""
    rest_max_s: float = 30.0
    """Longest rest."""
    lag_max_blocks: int = 3
    """An endpoint further behind the furthest one than this is asked last, and is no witness of what did not happen."""
    lag_poll_s: float = 2.0
    """How often several endpoints are asked how far they are."""


class _Request(msgspec.Struct, frozen=True):
    """One call on the wire."""

    id: int
    method: str
    params: Sequence[object]
    jsonrpc: str = "2.0"


class _ErrorBody(msgspec.Struct, frozen=True):
    """The `error` of a reply."""

    code: int = 0
    message: str = ""
    data: msgspec.Raw = msgspec.Raw()


class _Reply(msgspec.Struct, frozen=True):
    """One reply on the wire. `result` is empty when the key is missing and `null` when the node said null."""

    id: int | str | None = None
    result: msgspec.Raw = msgspec.Raw()
    error: _ErrorBody | None = None


_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(list[_Reply] | _Reply)
_TEXT: Final = msgspec.json.Decoder(str)


class _Endpoint:
    """One URL and its health: a circuit that opens after failures, rests, and lets one trial through."""

    __slots__ = ("_settings", "failures", "label", "lag_blocks", "rest_until", "rests", "sends_sync", "trial", "url")

    def __init__(self, url: str, settings: Settings) -> None:
        self.url = _parse_url(url)
        self.label = f"{self.url.host}:{self.url.port}"
        self._settings = settings
        self.failures = 0
        self.rests = 0
        self.rest_until = 0.0
        self.trial = False
        self.sends_sync = True
        """It may have `eth_sendRawTransactionSync`; False once it said that it does not."""
        self.lag_blocks = 0
        """How far it was behind the furthest endpoint when all were last asked."""

    def ready(self, now: float) -> bool:
        """Is it worth asking before the others?"""
        return self.lag_blocks <= self._settings.lag_max_blocks and self.answering(now)

    def answering(self, now: float) -> bool:
        """Does it answer, as far as we know?"""
        return self.failures < self._settings.failures_max or (now >= self.rest_until and not self.trial)

    def started(self) -> None:
        """A request goes out; while resting this is the one trial."""
        self.trial = self.failures >= self._settings.failures_max

    def succeeded(self) -> None:
        """It answered as a node does."""
        self.failures, self.rests, self.trial = 0, 0, False

    def failed(self, now: float, *, at_once: bool) -> None:
        """It did not answer. `at_once` opens the circuit without counting: the endpoint itself asked us to stay away."""
        self.trial = False
        self.failures = self._settings.failures_max if at_once else self.failures + 1
        if self.failures >= self._settings.failures_max:
            self.rest_until = now + min(self._settings.rest_max_s, self._settings.rest_s * 2.0**self.rests)
            self.rests = min(self.rests + 1, 16)


@dataclass(slots=True)
class _Connections:
    """What a client shares with those that speak to one endpoint of it alone."""

    session: aiohttp.ClientSession | None = None
    requests_sent: int = 0


class RpcClient:
    """All endpoints of one chain. Reads go to one and fail over to the next; transactions go to all at once."""

    def __init__(self, urls: Sequence[str], clock: Clock, settings: Settings | None = None, observe: Observe | None = None) -> None:
        """Take the URLs in order of preference. Raises ConfigFault, without the URL, for one that is not http(s)."""
        if not urls:
            raise ConfigFault("no_rpc_url", "a network needs at least one RPC URL")
        self.settings = settings or Settings()
        self._clock = clock
        self._endpoints = tuple(_Endpoint(url, self.settings) for url in urls)
        self._observe: Observe = observe or (lambda _endpoint, _method, _outcome, _seconds: None)
        self._connections = _Connections()
        self._sends: set[asyncio.Task[Result | RpcError]] = set()

    async def __aenter__(self) -> Self:
        """Open nothing yet: connections are made when needed."""
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close."""
        await self.close()

    async def close(self) -> None:
        """Close all connections; sends still under way are abandoned. Safe to call twice, or unstarted."""
        sends = tuple(self._sends)
        for task in sends:
            task.cancel()
        await asyncio.gather(*sends, return_exceptions=True)
        if self._connections.session is not None:
            await self._connections.session.close()
            self._connections.session = None

    def deadline_in(self, seconds: float) -> float:
        """The deadline that lies `seconds` from now."""
        return self._clock.monotonic() + seconds

    @property
    def requests_sent(self) -> int:
        """HTTP requests sent so far, failed ones included."""
        return self._connections.requests_sent

    def alone(self) -> "tuple[RpcClient, ...]":
        """A client for each endpoint, in order of preference; connections and health are shared. `close` them with this one."""
        return tuple(self._only(endpoint) for endpoint in self._endpoints)

    def witnesses(self) -> "tuple[RpcClient, ...]":
        """A client for each endpoint that answers and is not far behind; for all of them when none does. Never none."""
        if len(self._endpoints) == 1:
            return (self,)
        now = self._clock.monotonic()
        return tuple(self._only(endpoint) for endpoint in [each for each in self._endpoints if each.ready(now)] or self._endpoints)

    def _only(self, endpoint: _Endpoint) -> "RpcClient":
        view = copy.copy(self)
        view._endpoints = (endpoint,)  # noqa: SLF001 (of our own kind)
        return view

    def sync_sender(self) -> "RpcClient | None":
        """A client of the first ready endpoint that may have `eth_sendRawTransactionSync`; None when none may."""
        now = self._clock.monotonic()
        return next((self._only(endpoint) for endpoint in self._endpoints if endpoint.sends_sync and endpoint.ready(now)), None)

    def no_sync(self) -> None:
        """The endpoints of this client do not have it: they are not asked again."""
        for endpoint in self._endpoints:
            endpoint.sends_sync = False

    def note_heights(self, heights: Sequence[int | None]) -> None:
        """Take note of how far each endpoint is, all asked at one moment; None: it did not say, and keeps its standing."""
        furthest = max((height for height in heights if height is not None), default=0)
        for endpoint, height in zip(self._endpoints, heights, strict=True):
            if height is not None:
                endpoint.lag_blocks = furthest - height

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Host and port of each endpoint, in order of preference."""
        return tuple(endpoint.label for endpoint in self._endpoints)

    async def call(self, method: str, params: Sequence[object], deadline: float) -> Result:
        """The result of one read. Raises ChainFault, also when the node answers with an error."""
        (reply,) = await self.batch((RpcCall(method, params),), deadline)
        if isinstance(reply, RpcError):
            raise reply.as_fault(method)
        return reply

    async def batch(self, calls: Sequence[RpcCall], deadline: float) -> list[Result | RpcError]:
        """The answers to several reads in their order, in one HTTP request to one endpoint; the next endpoint when that fails.

        An error that another endpoint might not have (rate limit, missing state) is returned only when all have it.
        Raises ChainFault when no endpoint answered before the deadline, with the last failure's kind.
        """
        replies: list[Result | RpcError] | None = None
        fault: ChainFault | None = None
        for endpoint in self._in_order():
            if self._clock.monotonic() >= deadline and (replies is not None or fault is not None):
                break
            try:
                replies = await self._post(endpoint, calls, deadline)
            except ChainFault as failure:
                fault = failure
                if fault.kind == "disconnected" and len(self._endpoints) == 1:  # a kept-alive connection that the node had closed
                    return await self._post(endpoint, calls, deadline)
                continue
            if not any(isinstance(reply, RpcError) and reply.kind in TRY_ELSEWHERE for reply in replies):
                break
        if replies is not None:
            return replies
        raise fault or ChainFault("timeout", "no time was left to ask the chain")

    async def broadcast(
        self, call: RpcCall, deadline: float, enough: Callable[[Result | RpcError], bool]
    ) -> list[Result | RpcError | ChainFault]:
        """Send one call to all endpoints at once and return what came back by the time that one answer was `enough`.

        Without such an answer: what every endpoint said or failed with. Requests to the slower endpoints go on in the
        background, for the more pools know a transaction the better.
        """
        tasks = [asyncio.create_task(self._send(endpoint, call, deadline)) for endpoint in self._endpoints]
        self._sends.update(tasks)
        for task in tasks:
            task.add_done_callback(self._forget)
        pending: set[asyncio.Task[Result | RpcError]] = set(tasks)
        answers: list[Result | RpcError | ChainFault] = []
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                try:
                    answer: Result | RpcError | ChainFault = task.result()
                except ChainFault as failure:
                    answer = failure
                answers.append(answer)
            if any(not isinstance(answer, ChainFault) and enough(answer) for answer in answers):
                break
        return answers

    def _forget(self, task: asyncio.Task[Result | RpcError]) -> None:
        """Drop a finished send and take note of its exception, so that nothing is reported as never retrieved."""
        self._sends.discard(task)
        if not task.cancelled():
            task.exception()

    async def _send(self, endpoint: _Endpoint, call: RpcCall, deadline: float) -> Result | RpcError:
        """One call to one endpoint."""
        (reply,) = await self._post(endpoint, (call,), deadline)
        return reply

    def _in_order(self) -> list[_Endpoint]:
        """Ready endpoints in the configured order, those far behind, then the resting ones, the soonest back first: never none."""
        now = self._clock.monotonic()
        ready = [endpoint for endpoint in self._endpoints if endpoint.ready(now)]
        if len(ready) == len(self._endpoints):
            return ready
        behind = [endpoint for endpoint in self._endpoints if endpoint.answering(now) and not endpoint.ready(now)]
        resting = sorted(
            (endpoint for endpoint in self._endpoints if not endpoint.answering(now)), key=lambda endpoint: endpoint.rest_until
        )
        return ready + behind + resting

    async def _post(self, endpoint: _Endpoint, calls: Sequence[RpcCall], deadline: float) -> list[Result | RpcError]:
        """One HTTP request. Raises ChainFault for whatever is not an answer to every call."""
        method = calls[0].method if len(calls) == 1 else "batch"
        began = self._clock.monotonic()
        outcome = "cancelled"
        endpoint.started()
        try:
            replies = await self._exchange(endpoint, calls, min(deadline - began, self.settings.request_timeout_s))
        except ChainFault as fault:
            outcome = fault.kind
            endpoint.failed(self._clock.monotonic(), at_once=fault.kind == NodeError.RATE_LIMITED.value)
            raise
        else:
            errors = [reply.kind for reply in replies if isinstance(reply, RpcError)]
            outcome = errors[0].value if errors else "ok"
            if NodeError.RATE_LIMITED in errors:
                endpoint.failed(self._clock.monotonic(), at_once=True)
            else:
                endpoint.succeeded()
            return replies
        finally:
            endpoint.trial = False
            self._observe(endpoint.label, method, outcome, self._clock.monotonic() - began)

    async def _exchange(self, endpoint: _Endpoint, calls: Sequence[RpcCall], timeout_s: float) -> list[Result | RpcError]:
        """Send, read within bounds, and match replies to calls."""
        if timeout_s <= 0:
            raise _fault("timeout", "no time was left to ask the chain", endpoint)
        requests = [_Request(number, call.method, call.params) for number, call in enumerate(calls)]
        body = _ENCODER.encode(requests if len(requests) > 1 else requests[0])
        self._connections.requests_sent += 1
        try:
            async with asyncio.timeout(timeout_s):
                status, answer = await self._read(endpoint, body)
        except TimeoutError:
            raise ChainFault(
                "timeout", "the RPC endpoint did not answer in time", endpoint=endpoint.label, timeout_s=round(timeout_s, 3)
            ) from None
        except aiohttp.ServerDisconnectedError:
            raise _fault("disconnected", "the RPC endpoint closed the connection", endpoint) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:  # their texts may hold the URL, so only the type is told
            raise _fault("unreachable", "the RPC endpoint cannot be reached", endpoint, error=type(error).__name__) from None
        if status == 429:
            raise _fault(NodeError.RATE_LIMITED.value, "the RPC endpoint limits our rate", endpoint)
        try:
            return _match(_DECODER.decode(answer), len(calls))
        except (msgspec.MsgspecError, _MismatchError) as error:
            if isinstance(error, _MismatchError) and error.refusal is not None:
                raise _fault(error.refusal.kind.value, f"the node refused the request: {error.refusal.message}", endpoint) from None
            if status != 200:
                raise ChainFault(
                    "http_status", f"the RPC endpoint answered HTTP {status}", endpoint=endpoint.label, status=status
                ) from None
            raise _fault("bad_answer", "the RPC endpoint's answer is not JSON-RPC for our calls", endpoint) from None

    async def _read(self, endpoint: _Endpoint, body: bytes) -> tuple[int, bytes]:
        """Status and body of one exchange. Redirects are not followed: a POST may turn into a GET on the way."""
        if self._connections.session is None:
            connector = aiohttp.TCPConnector(limit=0, limit_per_host=self.settings.connections_max)
            self._connections.session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "facilitator"},
                timeout=aiohttp.ClientTimeout(total=None),  # asyncio.timeout rules, to the millisecond
            )
        async with self._connections.session.post(endpoint.url, data=body, allow_redirects=False) as response:
            answer = bytearray()
            async for chunk in response.content.iter_any():
                answer += chunk
                if len(answer) > self.settings.response_bytes_max:
                    response.close()
                    raise _fault("too_large", "the RPC endpoint's answer is too long", endpoint, bytes_max=self.settings.response_bytes_max)
            return response.status, bytes(answer)


class _MismatchError(Exception):
    """The reply is JSON-RPC, but not one answer to each call. `refusal` is the error that stands for the whole batch."""

    def __init__(self, refusal: RpcError | None = None) -> None:
        super().__init__()
        self.refusal = refusal


def _fault(kind: str, message: str, endpoint: _Endpoint, **evidence: object) -> ChainFault:
    """A fault of one endpoint, by its label: its URL may hold credentials."""
    return ChainFault(kind, message, endpoint=endpoint.label, **evidence)


def classify(code: int, message: str) -> NodeError:
    """What a node's error means: by its message first, for codes differ from node to node."""
    lowered = message.lower()
    for pattern, kind in _TABLE:
        if pattern.search(lowered):
            return kind
    return NODE_CODES.get(code, NodeError.UNKNOWN)


def _match(decoded: list[_Reply] | _Reply, count: int) -> list[Result | RpcError]:
    """Replies in the order of their calls. The specification lets a node answer a batch in any order."""
    replies = decoded if isinstance(decoded, list) else [decoded]
    if len(replies) == 1 and replies[0].id is None and replies[0].error is not None:
        raise _MismatchError(_read_error(replies[0].error))
    by_id = {reply.id: reply for reply in replies}
    if len(replies) != count or len(by_id) != count:
        raise _MismatchError(_read_error(replies[0].error) if len(replies) == 1 and replies[0].error else None)
    return [_outcome(by_id.get(number)) for number in range(count)]


def _outcome(reply: _Reply | None) -> Result | RpcError:
    """Result or error of one reply; a reply with neither is no answer."""
    if reply is None:
        raise _MismatchError
    if reply.error is not None:
        return _read_error(reply.error)
    if not reply.result:
        raise _MismatchError
    return reply.result


def _read_error(body: _ErrorBody) -> RpcError:
    """The error in our words. Providers put URLs and keys into their texts, so those are cut out."""
    message = _URL_IN_TEXT.sub("(url)", body.message)[:_MESSAGE_MAX]
    data: bytes | None = None
    if body.data:
        try:
            data = bytes.fromhex(_TEXT.decode(body.data).removeprefix("0x"))
        except (msgspec.MsgspecError, ValueError):
            data = None
    return RpcError(kind=classify(body.code, body.message), code=body.code, message=message, data=data)


def _parse_url(text: str) -> URL:
    """The URL, or ConfigFault that does not repeat it: it may hold a password or a key."""
    try:
        url = URL(text)
    except ValueError:
        url = URL()
    if url.scheme not in {"http", "https"} or not url.host:
        raise ConfigFault("bad_rpc_url", "an RPC URL must start with http:// or https:// and name a host")
    return url
