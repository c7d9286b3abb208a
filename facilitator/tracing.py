"""Spans of OpenTelemetry, from a caller's `traceparent` to its answer; without `[tracing]` nothing, and nothing is imported.

A payment's spans stand in its caller's trace. What several payments share, a write-ahead or a transaction, stands in the
trace of the first and links to those of the others. Names are constants; values are short facts, never a signature, a key
or a body.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Link, Tracer

Value = str | int | float | bool | None
Annotate = Callable[[Mapping[str, Value]], None]
"""Adds facts to a span."""

TEXT_CHARS_MAX: Final = 200
"""Longest text of one fact."""
LINKS_MAX: Final = 100
"""Most payments that a shared span links to."""
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Settings:
    """`[tracing]`; absent, nothing is traced."""

    endpoint: str
    """Where a collector takes OTLP over HTTP: `http://127.0.0.1:4318/v1/traces`; credentials go into `OTEL_EXPORTER_OTLP_HEADERS`."""
    sample_ratio: float = 1.0
    """Share of traces that are kept when the caller's `traceparent` does not say."""


_tracer: "Tracer | None" = None
_provider: "TracerProvider | None" = None
_caller: ContextVar[str | None] = ContextVar("caller", default=None)
"""The `traceparent` that came with the request, while nothing is traced here."""


def start(settings: Settings, version: str) -> None:
    """Trace from here on. Raises ImportError where OpenTelemetry is not installed."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 (nobody pays who does not trace)
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import SpanLimits, TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio  # noqa: PLC0415

    global _tracer, _provider  # noqa: PLW0603 (a process traces or does not)
    _provider = TracerProvider(
        sampler=ParentBasedTraceIdRatio(settings.sample_ratio),
        resource=Resource.create({"service.name": "facilitator", "service.version": version}),
        span_limits=SpanLimits(max_span_attribute_length=TEXT_CHARS_MAX, max_links=LINKS_MAX),
        shutdown_on_exit=False,
    )
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.endpoint, timeout=5)))
    _tracer = _provider.get_tracer("facilitator", version)


def stop() -> None:
    """Hand over what is left, which may take some seconds, and trace no more."""
    global _tracer, _provider  # noqa: PLW0603
    if _provider is not None:
        _provider.shutdown()
    _tracer = _provider = None


def request(name: str, traceparent: str | None) -> AbstractContextManager[Annotate]:
    """The span of a request, in its caller's trace."""
    if _tracer is not None:
        return _span(_tracer, name, traceparent, (), server=True)
    return NOTHING if trace_id_of(traceparent) is None else _called_by(traceparent)


def span(name: str, parent: str | None = None, linked: Sequence[str | None] = (), **facts: Value) -> AbstractContextManager[Annotate]:
    """A span within the one at hand, or within `parent`; it links to all the others that share it."""
    return NOTHING if _tracer is None else _span(_tracer, name, parent, linked, facts)


def shared(name: str, traceparents: Sequence[str | None], **facts: Value) -> AbstractContextManager[Annotate]:
    """The span of what these payments share: in the trace of the first that is kept, linked to the others'."""
    if _tracer is None:
        return NOTHING
    known = _kept_first(traceparents)
    return _span(_tracer, name, known[0] if known else None, known[1:], facts)


def record(name: str, took_s: float, traceparents: Sequence[str | None], **facts: Value) -> None:
    """A shared span that has just ended and began so long ago; without payments one of the span at hand, if that is open."""
    if _tracer is None:
        return
    from opentelemetry.trace import get_current_span  # noqa: PLC0415

    known, now_ns = _kept_first(traceparents), time.time_ns()
    if not known and not get_current_span().is_recording():
        return  # nobody's: loops ask the chain all day
    ended = _tracer.start_span(
        name,
        context=_context_of(known[0]) if known else None,
        links=_links(known[1:]),
        start_time=now_ns - int(took_s * 1e9),
        attributes=_attributes(facts),
    )
    ended.end(now_ns)


def current() -> str | None:
    """The `traceparent` of the span at hand; without tracing, the caller's."""
    if _tracer is None:
        return _caller.get()
    from opentelemetry.trace import get_current_span  # noqa: PLC0415

    context = get_current_span().get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}" if context.is_valid else None


def trace_id_of(traceparent: str | None) -> str | None:
    """The trace id of a W3C `traceparent` header, or None when it is absent or malformed. (W3C Trace Context §3.2)"""
    match = None if traceparent is None or len(traceparent) > 256 else _TRACEPARENT.fullmatch(traceparent.strip())
    if match is None or traceparent is None or traceparent.startswith("ff"):
        return None
    trace, span_id = match["trace"], match["span"]
    return None if trace == "0" * 32 or span_id == "0" * 16 else trace


def _kept_first(traceparents: Sequence[str | None]) -> list[str]:
    """Those that there are, in their order, but those that are not kept (flag 01 of W3C Trace Context §3.2.2.5) at the end."""
    return sorted((each for each in traceparents if each is not None), key=lambda each: not int(each[53:55], 16) & 1)


def _ignore(facts: Mapping[str, Value]) -> None:
    del facts


NOTHING: Final = nullcontext(_ignore)
"""The span of what is not traced."""


@contextmanager
def _called_by(traceparent: str | None) -> "Iterator[Annotate]":
    token = _caller.set(None if traceparent is None else traceparent.strip()[:55])
    try:
        yield _ignore
    finally:
        _caller.reset(token)


@contextmanager
def _span(
    tracer: "Tracer", name: str, parent: str | None, linked: Sequence[str | None], facts: Mapping[str, Value] = {}, *, server: bool = False
) -> "Iterator[Annotate]":
    from opentelemetry.trace import SpanKind  # noqa: PLC0415

    with tracer.start_as_current_span(
        name,
        context=_context_of(parent) if parent is not None or server else None,
        kind=SpanKind.SERVER if server else SpanKind.INTERNAL,
        links=_links(linked),
        attributes=_attributes(facts),
        record_exception=False,  # its text may hold a row
    ) as opened:
        yield lambda more: opened.set_attributes(_attributes(more))


def _context_of(traceparent: str | None) -> "Context":
    """A context whose current span is that one, and nothing else."""
    from opentelemetry.context import Context  # noqa: PLC0415
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent or ""}, Context())


def _links(traceparents: Sequence[str | None]) -> "list[Link]":
    from opentelemetry.trace import Link, get_current_span  # noqa: PLC0415

    contexts = [get_current_span(_context_of(each)).get_span_context() for each in traceparents[:LINKS_MAX] if each is not None]
    return [Link(context) for context in contexts if context.is_valid]


def _attributes(facts: Mapping[str, Value]) -> dict[str, Any]:
    return {f"facilitator.{name}": value for name, value in facts.items() if value is not None}
