"""The `bazaar` extension: what a seller wants listed about what was paid for, checked. Pure.

Everything here was written by strangers and copied by buyers. It is checked for shape, size and where it leads, and passed
on as it is; no address in it is ever fetched, and its JSON Schema is never run: a stranger's regular expressions and
references cost us time, and nobody is paid by them (docs/adr/0026-a-listing-is-checked-never-run.md).
"""

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

import msgspec

from facilitator.protocol import v1
from facilitator.protocol.address import checksum_address
from facilitator.protocol.messages import Offer, Payment

Kind = Literal["http", "mcp"]

URL_CHARS_MAX: Final = 2048
OPERATION_CHARS_MAX: Final = 128
"""Longest HTTP method or tool name."""
TEXT_CHARS_MAX: Final = 1000
"""Longest description; what is longer is cut."""
_QUERY_METHODS: Final = ("GET", "HEAD", "DELETE")
_BODY_METHODS: Final = ("POST", "PUT", "PATCH")
_BODY_TYPES: Final = ("json", "form-data", "text")
_TRANSPORTS: Final = ("streamable-http", "sse")
_TEMPLATE: Final = re.compile(r"/[a-zA-Z0-9_/:.\-~%]+", re.ASCII)
_HOST: Final = re.compile(r"(?=.{1,253}\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_PRINTABLE: Final = re.compile(r"[\x20-\x7e]{1,32}", re.ASCII)
_PRIVATE_SUFFIXES: Final = (
    ".localhost",
    ".local",
    ".localdomain",
    ".internal",
    ".intranet",
    ".lan",
    ".home",
    ".corp",
    ".home.arpa",
    ".test",
)
_REFERENCES: Final = frozenset({"$ref", "$id", "$dynamicRef", "$schema", "id"})
_DRAFTS: Final = re.compile(r"https?://json-schema\.org/[a-z0-9/\-]{1,64}#?", re.ASCII)
_QUERY_NAMES: Final = ("queryParams", "query_params", "query", "params")
_BODY_NAMES: Final = ("bodyFields", "body_fields", "bodyParams", "body", "data", "properties")
_HEADER_NAMES: Final = ("headerFields", "header_fields", "headers")
_ENCODER: Final = msgspec.json.Encoder(order="deterministic")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What is listed of one resource: its key, what it costs, and what is said about it."""

    resource: str
    """Canonical URL: origin and path, or origin and the route's template."""
    kind: Kind
    operation: str
    """HTTP method, or name of the MCP tool."""
    version: int
    entry: bytes
    """JSON: description, MIME type, service data, `extensions.bazaar`."""
    price: bytes
    """JSON: the requirements that were paid, in the version's own words."""
    words: str
    """What a search looks through."""


class UnlistedError(ValueError):
    """What was declared cannot be listed; the text says why, and quotes nothing."""


def read_listing(payment: Payment, *, entry_bytes_max: int, private_hosts: bool) -> Listing | None:
    """What this payment's seller wants listed. None: nothing. Raises UnlistedError; the payment is none the worse for it."""
    offer = payment.offer
    if offer is None:
        return None
    bazaar = _from_v1(offer) if payment.version == 1 else offer.bazaar
    if bazaar is None:
        return None
    info = bazaar.get("info")
    if not isinstance(info, Mapping) or not isinstance(info.get("input"), Mapping):
        raise UnlistedError("info.input: expected an object")
    kind, operation = _operation(info["input"])
    schema = bazaar.get("schema")
    if payment.version == 2 and not isinstance(schema, Mapping):
        raise UnlistedError("schema: expected an object")
    if schema is not None and any(_leads_out(tree) for tree in _objects(schema)):
        raise UnlistedError("schema: $ref and $id may only lead into itself")
    resource = _canonical(offer.url, bazaar.get("routeTemplate"), private_hosts=private_hosts)
    about = {
        "description": _text(offer.description, TEXT_CHARS_MAX),
        "mimeType": _text(offer.mime_type, 128),
        "serviceName": offer.service_name if isinstance(offer.service_name, str) and _PRINTABLE.fullmatch(offer.service_name) else None,
        "tags": _tags(offer.tags),
        "iconUrl": _icon(offer.icon_url),
    }
    kept = {name: bazaar[name] for name in ("info", "schema", "routeTemplate") if name in bazaar}
    entry = _ENCODER.encode({**{name: value for name, value in about.items() if value}, "extensions": {"bazaar": kept}})
    if len(entry) > entry_bytes_max:
        raise UnlistedError(f"expected at most {entry_bytes_max} bytes, got {len(entry)}")
    said = (about["serviceName"], about["description"], *(about["tags"] or ()), operation, re.sub(r"[^a-zA-Z0-9]+", " ", resource))
    return Listing(
        resource=resource,
        kind=kind,
        operation=operation,
        version=payment.version,
        entry=entry,
        price=_ENCODER.encode(_price(payment)),
        words=" ".join(word for word in said if word),
    )


def _operation(asked: Mapping[str, object]) -> tuple[Kind, str]:
    """How the resource is asked for."""
    if asked.get("type") == "http":
        method, body_type = asked.get("method"), asked.get("bodyType")
        if method not in (*_QUERY_METHODS, *_BODY_METHODS):
            raise UnlistedError("info.input.method: expected GET, HEAD, DELETE, POST, PUT or PATCH")
        if (body_type is None) == (method in _BODY_METHODS) or (body_type is not None and body_type not in _BODY_TYPES):
            raise UnlistedError("info.input.bodyType: expected json, form-data or text with POST, PUT and PATCH, and none without")
        return "http", str(method)
    if asked.get("type") == "mcp":
        tool = asked.get("toolName")
        if not isinstance(tool, str) or not 1 <= len(tool) <= OPERATION_CHARS_MAX or not tool.isprintable():
            raise UnlistedError(f"info.input.toolName: expected 1 to {OPERATION_CHARS_MAX} characters")
        if not isinstance(asked.get("inputSchema"), Mapping):
            raise UnlistedError("info.input.inputSchema: expected an object")
        if asked.get("transport") is not None and asked["transport"] not in _TRANSPORTS:
            raise UnlistedError("info.input.transport: expected streamable-http or sse")
        return "mcp", tool
    raise UnlistedError("info.input.type: expected http or mcp")


def _objects(tree: object) -> Iterator[Mapping[str, object]]:
    """Every object within a schema."""
    waiting = [tree]
    while waiting:
        here = waiting.pop()
        if isinstance(here, Mapping):
            yield here
            waiting += here.values()
        elif isinstance(here, list):
            waiting += here


def _leads_out(schema: Mapping[str, object]) -> bool:
    """Does it refer to anything but itself, or to a published draft of JSON Schema? Whoever evaluates it may fetch that."""
    for name in _REFERENCES & schema.keys():
        target = schema[name]
        if isinstance(target, str) and not target.startswith("#") and not (name == "$schema" and _DRAFTS.fullmatch(target)):
            return name != "id"  # `id` is a property's name as often as an old draft's keyword
    return False


# ---- addresses


def _canonical(url: str | None, template: object, *, private_hosts: bool) -> str:
    """Origin and path, or origin and template: one resource has one name, whatever was asked of it."""
    if url is None or len(url) > URL_CHARS_MAX or not url.isascii() or not url.isprintable() or " " in url:
        raise UnlistedError(f"resource.url: expected a URL of at most {URL_CHARS_MAX} ASCII characters")
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        raise UnlistedError("resource.url: expected a URL") from None
    if parts.scheme not in {"http", "https"} or not host:
        raise UnlistedError("resource.url: expected http or https")
    if "@" in parts.netloc:
        raise UnlistedError("resource.url: expected no credentials")
    if not private_hosts and not _is_public(host):
        raise UnlistedError("resource.url: expected a public host")
    origin = f"{parts.scheme}://{f'[{host}]' if ':' in host else host}"
    if port is not None and port != {"http": 80, "https": 443}[parts.scheme]:
        origin += f":{port}"
    return origin + (template if isinstance(template, str) and _is_template(template) else parts.path)


def _is_public(host: str) -> bool:
    """A name of the public tree, or a global address; never one that only looks like a name (`127.1`, `0x7f000001`)."""
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        pass
    if not _HOST.fullmatch(host) or "." not in host or f".{host}".endswith(_PRIVATE_SUFFIXES):
        return False
    return host.rpartition(".")[2].isalpha() or ".xn--" in host


def _is_template(text: str) -> bool:
    """A path with `:name` in the place of its parameters, that climbs nowhere however often it is decoded."""
    if not _TEMPLATE.fullmatch(text) or len(text) > URL_CHARS_MAX:
        return False
    for _ in range(5):
        if ".." in text or "://" in text or text.startswith("//"):
            return False
        decoded = unquote(text)
        if decoded == text:
            return True
        text = decoded
    return False


def _icon(url: object) -> str | None:
    """An icon that anybody may show: a public http(s) URL."""
    if not isinstance(url, str) or len(url) > URL_CHARS_MAX or not url.isascii() or not url.isprintable():
        return None
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return None
    named = "@" not in parts.netloc and ":" not in host and not host.replace(".", "").isdigit()
    return url if parts.scheme in {"http", "https"} and named and _is_public(host) else None


# ---- words


def _text(text: object, most: int) -> str | None:
    """Printable text, cut to its bound."""
    if not isinstance(text, str):
        return None
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text[:most]).split()) or None


def _tags(tags: object) -> list[str] | None:
    """At most five, each once whatever its case."""
    if not isinstance(tags, list):
        return None
    kept: dict[str, str] = {}
    for tag in tags[:50]:
        if isinstance(tag, str) and (clean := tag.strip()) and _PRINTABLE.fullmatch(clean):
            kept.setdefault(clean.lower(), clean)
    return list(kept.values())[:5] or None


# ---- version 1, and what was paid


def _from_v1(offer: Offer) -> Mapping[str, object] | None:
    """The same of version 1, which says it in `outputSchema`. None: it is not for listing."""
    schema = offer.output_schema
    asked = schema.get("input") if schema is not None else None
    if schema is None or not isinstance(asked, Mapping) or asked.get("type") != "http" or asked.get("discoverable", True) is not True:
        return None
    method = asked.get("method")
    told: dict[str, object] = {"type": "http", "method": method.upper() if isinstance(method, str) and len(method) < 8 else None}
    if told["method"] in _BODY_METHODS:
        body_type = asked.get("bodyType", asked.get("body_type"))
        told |= {"bodyType": body_type if body_type in _BODY_TYPES else "json", "body": _first(asked, _BODY_NAMES) or {}}
    elif (query := _first(asked, _QUERY_NAMES)) is not None:
        told["queryParams"] = query
    if (headers := _first(asked, _HEADER_NAMES)) is not None:
        told["headers"] = headers
    output = schema.get("output")
    return {"info": {"input": told, **({} if output is None else {"output": {"type": "json", "example": output}})}}


def _first(asked: Mapping[str, object], names: tuple[str, ...]) -> Mapping[str, object] | None:
    """What stands under the first of these names."""
    found = (asked.get(name) for name in names)
    return next((each for each in found if isinstance(each, Mapping)), None)


def _price(payment: Payment) -> dict[str, object]:
    """The requirements that were paid, as `accepts` has them in that version."""
    asked = payment.requirements
    about = payment.offer
    terms: dict[str, object] = {
        "scheme": asked.scheme,
        "network": (v1.render_network(asked.network) or asked.network) if payment.version == 1 else asked.network,
        "asset": checksum_address(asked.asset),
        "payTo": checksum_address(asked.pay_to),
        "maxTimeoutSeconds": asked.max_timeout_s,
        "extra": {name: asked.extra[name] for name in ("name", "version") if isinstance(asked.extra.get(name), str)},
    }
    if payment.version == 2:
        return {**terms, "amount": str(asked.amount_atomic)}
    assert about is not None
    told = {
        "resource": about.url,
        "description": _text(about.description, TEXT_CHARS_MAX) or "",
        "mimeType": _text(about.mime_type, 128) or "",
    }
    return {**terms, "maxAmountRequired": str(asked.amount_atomic), **told}
