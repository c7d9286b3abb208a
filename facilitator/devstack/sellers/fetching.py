"""Fetches a picture from an address that a buyer wrote, without being led anywhere else.

The name is resolved once, every address of it must be public, and the connection goes to exactly these; redirects are not
followed; size and time are bounded; the kind is told by the content. It must never be asked before the buyer's payment has
been verified, and whoever cannot have the picture charges nothing.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

BYTES_MAX: Final = 1024 * 1024
URL_LENGTH_MAX: Final = 2048

_TIMEOUT_S: Final = 5.0
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Addresses of a host, as text."""


class NotFetched(Exception):
    """The picture cannot be had, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A picture as it came."""

    content: bytes
    media_type: str


async def resolve(host: str, port: int) -> Sequence[str]:
    """Ask the system for a host's addresses."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[4][0]) for address in found]


def check_url(text: str, allowed_origin: str | None) -> URL:
    """The address, if it is one that may be fetched from: https, or of the one allowed origin. Raises ValueError; asks nobody."""
    if len(text) > URL_LENGTH_MAX:
        raise ValueError(f"expected at most {URL_LENGTH_MAX} characters, got {len(text)}")
    url = URL(text)
    if not url.absolute or not url.host or url.user is not None or url.password is not None:
        raise ValueError("expected https://host/…, without a user")
    if url.scheme != "https" and str(url.origin()) != allowed_origin:
        raise ValueError("expected https://…")
    return url


async def fetch(url: URL, *, allowed_origin: str | None, names: Resolve = resolve, ssl: object = True) -> Fetched:
    """Fetch a picture. Raises NotFetched.

    `allowed_origin`, such as `http://127.0.0.1:8000`, is the one origin that may be private; `ssl` is aiohttp's.
    """
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            content = await _content(url, await _pinned(url, allowed_origin, names), ssl)
    except TimeoutError:
        raise NotFetched(f"it took longer than {_TIMEOUT_S:g} s") from None
    except (aiohttp.ClientError, OSError, UnicodeError, ValueError) as error:
        raise NotFetched(f"it cannot be had: {type(error).__name__}") from None
    return Fetched(content=content, media_type=media_type(content))


def media_type(content: bytes) -> str:
    """What a picture is, by its first bytes. Raises NotFetched for anything but JPEG, PNG, GIF and WebP."""
    if content.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if content.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "image/webp"
    raise NotFetched("it is no JPEG, PNG, GIF or WebP")


def is_public(text: str) -> bool:
    """May a stranger's request send us to this address? IPv4 inside IPv6 is judged as what it is."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            address = inner
    return address.is_global and not address.is_multicast


class _Pinned(AbstractResolver):
    """Knows one host, and the addresses that were judged."""

    def __init__(self, host: str, addresses: Sequence[str]) -> None:
        self._host = host
        self._addresses = addresses

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        del family
        if host != self._host:
            raise OSError(f"{host} was not judged")
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        """Holds nothing."""


async def _pinned(url: URL, allowed_origin: str | None, names: Resolve) -> _Pinned:
    host, port = url.raw_host or "", url.port or 443
    addresses = list(dict.fromkeys(await names(host, port)))
    if str(url.origin()) != allowed_origin and not (addresses and all(map(is_public, addresses))):
        raise NotFetched("its host is not on the public internet")
    return _Pinned(host, addresses)


async def _content(url: URL, resolver: _Pinned, ssl: object) -> bytes:
    connector = aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False, force_close=True, ssl=ssl)  # type: ignore[arg-type]
    headers = {"Accept": "image/*", "Accept-Encoding": "identity"}
    async with (
        aiohttp.ClientSession(connector=connector, auto_decompress=False, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()) as session,
        session.get(url, headers=headers, allow_redirects=False) as response,
    ):
        if response.status != 200:
            raise NotFetched(f"its server answered {response.status}")
        if (response.content_length or 0) > BYTES_MAX:
            raise NotFetched(f"it is larger than {BYTES_MAX:,} bytes")
        content = bytearray()
        async for piece in response.content.iter_chunked(65_536):
            content += piece
            if len(content) > BYTES_MAX:
                raise NotFetched(f"it is larger than {BYTES_MAX:,} bytes")
        return bytes(content)
