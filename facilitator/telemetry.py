"""What the service says about itself: structlog, the facts bound to a request, one canonical line each.

It must never let a secret out: every line passes `redact`, whatever was put into it. Events are constants of the form
`noun.past_verb`; facts are keys from the glossary. A request and a settlement get one canonical line each.
"""

import logging
import re
import sys
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
    stream = stream or sys.stderr
    console = form == "console" or (form == "auto" and stream.isatty())
    shared: list[structlog.typing.Processor] = [
        _add_bound,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendered: list[structlog.typing.Processor] = (
        [redact, structlog.dev.ConsoleRenderer(colors=stream.isatty())]
        if console
        else [structlog.processors.format_exc_info, redact, _render]
    )
    if console:
        rendered.insert(0, structlog.processors.format_exc_info)
    if observe is not None:
        rendered.insert(0, partial(_tell, observe))
    number = getattr(logging, level.upper())
    structlog.configure(
        processors=[*shared, *rendered],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
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


_ENCODER: Final = msgspec.json.Encoder(enc_hook=str)


def _render(_logger: object, _method: str, event: MutableMapping[str, object]) -> str:
    """The line as JSON; three times as fast as the standard library's."""
    return _ENCODER.encode(event).decode()


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
        if not _harmless(value) or _is_secret(key):
            event[key] = _clean(key, value, depth=0)
    return event


def _harmless(value: object) -> bool:
    """Most facts are short words, hashes and numbers: nothing that `redact_text` looks for, seen without its patterns."""
    kind = type(value)
    if kind is str:
        text = cast("str", value)
        return len(text) < _LONG_HEX_CHARS and " " not in text and "://" not in text and "fk_" not in text and text.isascii()
    return kind is int or kind is float or kind is bool or value is None


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
