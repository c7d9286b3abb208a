"""What the service says about itself: structlog, the facts bound to a request, one canonical line each.

It must never let a secret out: every line passes `redact`, whatever was put into it. Events are constants of the form
`noun.past_verb`; facts are keys from the glossary. A request and a settlement get one canonical line each.
"""

import asyncio
import atexit
import logging
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, MutableMapping
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import Final, Literal, TextIO, cast

import msgspec
import structlog

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "json", "console"]

REDACTED: Final = "[redacted]"
TEXT_CHARS_MAX: Final = 2000
"""Longest text of one fact, but for tracebacks; the rest is cut."""

_SECRET_WORDS: Final = frozenset(
    {
        "authorization",
        "cookie",
        "credential",
        "credentials",
        "jwt",
        "key",
        "mnemonic",
        "passphrase",
        "password",
        "private",
        "raw",
        "secret",
        "seed",
        "signature",
        "token",
    }
)
"""Facts whose name ends in one of these never leave, in any spelling of case and hyphens; nor does `raw_transaction`."""
_PUBLIC_KEYS: Final = frozenset({"idempotency_key", "public_key"})
_URL: Final = re.compile(
    r"\b(?P<scheme>[a-z][a-z0-9+.-]{1,20})://(?:[^\s/@'\"<>]*@)?(?P<host>[^\s/?#'\"<>,)]*)(?P<rest>[^\s'\"<>,)]*)", re.IGNORECASE
)
_OUR_KEY: Final = re.compile(r"\bfk_([a-z0-9]{12})_[A-Za-z0-9_-]+")
_LONG_HEX_CHARS: Final = 128
_LONG_HEX: Final = re.compile(rf"\b(?:0x)?[0-9a-fA-F]{{{_LONG_HEX_CHARS},}}\b")
"""A signature or a signed transaction: longer than any hash or address."""
_BEARER: Final = re.compile(r"\b(bearer|basic) +[A-Za-z0-9._~+/=-]+", re.IGNORECASE)
_JWT: Final = re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]++\.eyJ[A-Za-z0-9_-]++(?:\.[A-Za-z0-9_-]*+)?")
"""Begins where a word does and never goes back: linear for any text."""
_PEM: Final = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_NAMED: Final = re.compile(
    r"(passw(?:or)?d|passphrase|secret|token|api[_-]?key|private[_-]?key|mnemonic)(=[\"']?|[\"']: ?[\"'])[^\s\"',;&)}]++", re.IGNORECASE
)
"""A secret that a library names beside it: `password=…`, `"private_key": "…"`."""


def configure(
    level: Level = "info", form: Format = "auto", stream: TextIO | None = None, observe: Callable[[str, str], None] | None = None
) -> None:
    """Set logging up for the whole process: ours and, through the same redaction, that of libraries.

    `auto` writes for people when the stream is a terminal and JSON lines otherwise. The stream is stderr by default.
    `observe` is told event and level of each line.
    """
    global _lines  # noqa: PLW0603 (a process has one log)
    stream = stream or sys.stderr
    console = form == "console" or (form == "auto" and stream.isatty())
    shared: list[structlog.typing.Processor] = [_add_bound, structlog.processors.add_log_level, _add_time]
    rendered: list[structlog.typing.Processor] = [
        structlog.processors.format_exc_info,
        *([redact, structlog.dev.ConsoleRenderer(colors=stream.isatty())] if console else [_render]),
    ]
    if observe is not None:
        rendered.insert(0, partial(_tell, observe))
    number = getattr(logging, level.upper())
    _lines = _Lines(stream, [*shared, *rendered], canonical=number <= logging.INFO)
    structlog.configure(
        processors=_lines.processors,
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _lines)),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(_lines)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[_name_library, structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered], foreign_pre_chain=shared
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.WARNING))


def get_logger() -> structlog.typing.FilteringBoundLogger:
    """The logger of a module. Facts bound by `bind` come with every line."""
    return cast("structlog.typing.FilteringBoundLogger", structlog.get_logger())


class _Lines:
    """The stream that lines go to. Canonical lines go out in one write at the end of the event loop's turn.

    Any other line is written at once, and those that wait before it: their order is kept. A process that is killed loses the
    canonical lines of the turn in which it dies, one that exits loses none. At 64 callers a canonical line is 5 µs; by way
    of structlog's logger, with a write of its own, it was 14.
    """

    def __init__(self, stream: TextIO, processors: list[structlog.typing.Processor], *, canonical: bool) -> None:
        self._stream = stream
        self._waiting: deque[str] = deque()
        self._writing = threading.RLock()
        self._canonical = canonical
        self._turn_of: asyncio.AbstractEventLoop | None = None
        """The loop at the end of whose turn `_end_turn` runs. What waits says nothing of it: it may be another thread's, just written."""
        self.processors: Final = processors
        """As structlog has them: from the facts of a line to its text. Tests may empty the list."""
        atexit.register(self.flush)

    def write(self, text: str) -> None:
        """Take it. It goes out with the next `flush`."""
        self._waiting.append(text)

    def flush(self) -> None:
        """Write all that wait."""
        with self._writing:
            text = "".join([self._waiting.popleft() for _ in range(len(self._waiting))])
            if text:
                self._stream.write(text)
                self._stream.flush()

    def write_canonical(self, event: str, facts: Mapping[str, object]) -> None:
        """What `get_logger().info(event, **facts)` writes; within an event loop, at the end of its turn."""
        if not self._canonical:
            return
        line: MutableMapping[str, object] | str = {**facts, "event": event}
        try:
            for process in self.processors:
                line = process(None, "info", line)  # type: ignore[assignment,arg-type] # a mapping until the last makes it a text
        except structlog.DropEvent:
            return
        self.write(f"{line}\n")
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no loop runs here
            self.flush()
            return
        if self._turn_of is not loop:
            self._turn_of = loop
            loop.call_soon(self._end_turn)

    def _end_turn(self) -> None:
        self._turn_of = None
        self.flush()


_lines: _Lines | None = None


@lru_cache(maxsize=1)
def _second_text(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _add_time(_logger: object, _method: str, event: MutableMapping[str, object]) -> MutableMapping[str, object]:
    """As structlog's TimeStamper does, which spends a microsecond on each line's date."""
    second, microsecond = divmod(time.time_ns() // 1000, 1_000_000)
    event["timestamp"] = f"{_second_text(second)}.{microsecond:06d}Z"
    return event


_ENCODER: Final = msgspec.json.Encoder(enc_hook=str)


def _render(logger: object, method: str, event: MutableMapping[str, object]) -> str:
    """The redacted line as JSON; a plain one is looked at once it is rendered, which takes a third of looking at each fact."""
    text = _render_plain(event)
    return _ENCODER.encode(redact(logger, method, event)).decode() if text is None else text


def _render_plain(event: Mapping[str, object]) -> str | None:
    """The line of facts in which nothing can be that is redacted; None for any other, be there something or not.

    Rendering leaves all text as it is but for quotes, backslashes and control characters, which it marks by a backslash.
    """
    for value in event.values():
        if type(value) is str:
            if len(value) >= _LONG_HEX_CHARS:
                return None
        elif type(value) not in _NUMBERS:
            return None
    if _secrets_among(tuple(event)):
        return None
    text = _ENCODER.encode(event).decode()
    return text if text.isascii() and "\\" not in text and _is_plain(text) else None


def _tell(
    observe: Callable[[str, str], None], _logger: object, _method: str, event: MutableMapping[str, object]
) -> MutableMapping[str, object]:
    """Count a line: its event is a constant, its level one of a few."""
    observe(str(event.get("event")), str(event.get("level")))
    return event


def _name_library(_logger: object, _method: str, event: MutableMapping[str, object]) -> MutableMapping[str, object]:
    """A library's line: its text is a fact, the event a constant."""
    record = event.get("_record")
    event["library"] = getattr(record, "name", "unknown")
    event["message"], event["event"] = event.get("event"), "library.logged"
    return event


# ---- context


_bound: ContextVar[dict[str, object]] = ContextVar("bound", default={})  # noqa: B039 (never written to)


class bind:  # noqa: N801 (reads like a function)
    """Put facts on every line written within the block and in tasks started there."""

    __slots__ = ("_facts", "_token")

    def __init__(self, **facts: object) -> None:
        self._facts = facts

    def __enter__(self) -> None:
        """Begin."""
        self._token = _bound.set({**_bound.get(), **self._facts})

    def __exit__(self, *_: object) -> None:
        """What was bound before is bound again."""
        _bound.reset(self._token)


def bind_too(**facts: object) -> None:
    """Add facts to the innermost `bind` of this context; nothing happens where there is none."""
    bound = _bound.get()
    if bound:
        bound.update(facts)


def _add_bound(_logger: object, _method: str, event: MutableMapping[str, object]) -> MutableMapping[str, object]:
    """What is bound, and what the line says itself, which goes first."""
    return {**_bound.get(), **event}


# ---- the canonical line

_canonical: ContextVar[dict[str, object] | None] = ContextVar("canonical", default=None)


class canonical:  # noqa: N801 (reads like a function)
    """Write one INFO line with everything learnt within the block, also when the block ends in an exception.

    The block adds facts to the mapping it is given; code further down adds them by `annotate`.
    """

    __slots__ = ("_event", "_line", "_token")

    def __init__(self, event: str, **facts: object) -> None:
        self._event = event
        self._line = facts

    def __enter__(self) -> dict[str, object]:
        """Begin."""
        self._token = _canonical.set(self._line)
        return self._line

    def __exit__(self, *_: object) -> None:
        """Write it."""
        _canonical.reset(self._token)
        if _lines is not None and structlog.is_configured():
            _lines.write_canonical(self._event, self._line)
        else:
            get_logger().info(self._event, **self._line)


def annotate(**facts: object) -> None:
    """Add facts to the canonical line of this context; nothing happens where there is none."""
    line = _canonical.get()
    if line is not None:
        line.update(facts)


# ---- redaction


def redact(_logger: object, _method: str, event: MutableMapping[str, object]) -> MutableMapping[str, object]:
    """The last processor before rendering: no key, signature, header or URL with credentials passes it."""
    for key, value in event.items():
        if type(value) is str:
            if len(value) < _LONG_HEX_CHARS and value.isascii() and (value.isalnum() or ('"' not in value and _is_plain(value))):
                continue
        elif type(value) in _NUMBERS:
            continue
        event[key] = _clean(key, value, depth=0)
    for key in _secrets_among(tuple(event)):
        event[key] = _clean(key, event[key], depth=0)
    return event


_NUMBERS: Final = frozenset({int, float, bool, type(None)})


def _is_plain(text: str) -> bool:
    """Whether a short ASCII text without double quotes holds nothing that a pattern of `redact_text` begins with or needs."""
    return not (" " in text or "=" in text or "'" in text or "://" in text or "fk_" in text or "eyJ" in text)


def redact_text(text: str) -> str:
    """A text without URLs' credentials, paths and queries, our API keys, tokens, private keys in PEM, named secrets and long hex.

    Each pattern is tried only on texts that hold what every match of it holds: most facts are short words and hashes.
    """
    if "fk_" in text:
        text = _OUR_KEY.sub(r"fk_\1_" + REDACTED, text)
    if "://" in text:
        text = _URL.sub(_shorten_url, text)
    if "eyJ" in text:
        text = _JWT.sub(REDACTED, text)
    if "PRIVATE KEY" in text:
        text = _PEM.sub(REDACTED, text)
    if "=" in text or "'" in text or '"' in text:
        text = _NAMED.sub(rf"\1\2{REDACTED}", text)
    if " " in text:
        text = _BEARER.sub(rf"\1 {REDACTED}", text)
    return text if len(text) < _LONG_HEX_CHARS else _LONG_HEX.sub(REDACTED, text)


def _shorten_url(match: re.Match[str]) -> str:
    """Scheme and host: path and query of an RPC provider's URL are its key."""
    return f"{match['scheme']}://{match['host']}" + ("/…" if len(match["rest"]) > 1 else match["rest"])


_CAMEL: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")


@lru_cache(maxsize=1024)
def _is_secret(key: str) -> bool:
    name = _CAMEL.sub("_", key).lower().replace("-", "_")
    return name not in _PUBLIC_KEYS and (name == "raw_transaction" or name.rpartition("_")[2] in _SECRET_WORDS)


@lru_cache(maxsize=1024)
def _secrets_among(keys: tuple[str, ...]) -> tuple[str, ...]:
    """Lines of one event have the same facts, as a rule in the same order."""
    return tuple(key for key in keys if _is_secret(key))


def _clean(key: str, value: object, depth: int) -> object:
    if value is not None and _is_secret(key):
        return REDACTED
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            limit = TEXT_CHARS_MAX * 10 if key == "exception" else TEXT_CHARS_MAX
            text = redact_text(value if value.isascii() else value.encode(errors="replace").decode())
            return text if len(text) <= limit else text[:limit] + "…"
        case bytes() | bytearray() | memoryview():
            return f"[{len(value)} bytes]"
        case _ if depth >= 4:
            return "[deep]"
        case Mapping():
            return {str(inner): _clean(str(inner), item, depth + 1) for inner, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_clean(key, item, depth + 1) for item in value]
        case _:
            return redact_text(str(value))
