"""A picture is fetched from where the buyer said and from nowhere else, or the buyer is not charged."""

import asyncio
import gzip
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from yarl import URL

from facilitator.devstack.sellers import fetching
from facilitator.devstack.sellers.fetching import BYTES_MAX, NotFetched, check_url, fetch, is_public, media_type
from facilitator.devstack.sellers.models.local import LOCAL
from facilitator.devstack.sellers.models.model import Order
from tests.integration.sellers.market import Stalls

Serve = Callable[..., Awaitable[TestServer]]


@pytest.fixture(scope="module")
def picture() -> bytes:
    return asyncio.run(LOCAL.draw(Order(model="m", prompt="p", width=64, height=64, seed=1))).pictures[0]


@pytest_asyncio.fixture
async def serve() -> AsyncIterator[Serve]:
    """Serve every path with a handler."""
    servers: list[TestServer] = []

    async def start(handler: Callable[[web.Request], Awaitable[web.StreamResponse]], **options: object) -> TestServer:
        application = web.Application()
        application.router.add_get("/{tail:.*}", handler)
        servers.append(TestServer(application))
        await servers[-1].start_server(**options)
        return servers[-1]

    yield start
    for server in servers:
        await server.close()


def origin(server: TestServer) -> str:
    return f"http://127.0.0.1:{server.port}"


PRIVATE = [
    "0.0.0.0",  # noqa: S104 - not bound to
    "10.1.2.3",
    "100.64.0.1",
    "127.0.0.1",
    "127.9.9.9",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.1",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.1.1.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "2001:0:7f00:1::",
    "fc00::1",
    "fe80::1",
    "fe80::1%eth0",
    "ff02::1",
    "2001:db8::1",
    "localhost",
    "",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_in_every_spelling_are_known(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_are_known(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "2130706433", "0x7f.1", "0177.0.0.1"]
)
async def test_nothing_private_is_connected_to(host: str, serve: Serve, picture: bytes) -> None:
    asked: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(body=picture)

    server = await serve(handler)
    with pytest.raises(NotFetched, match="not on the public internet|cannot be had"):
        await fetch(check_url(f"https://{host}:{server.port}/a.png", None), allowed_origin=None)
    assert asked == []


async def test_one_private_address_among_public_ones_is_enough_to_refuse() -> None:
    async def names(_host: str, _port: int) -> Sequence[str]:
        return ["93.184.216.34", "10.0.0.1"]

    with pytest.raises(NotFetched, match="not on the public internet"):
        await fetch(URL("https://example.org/a.png"), allowed_origin=None, names=names)


async def test_the_name_is_resolved_once_and_the_connection_goes_where_it_was_judged_to_lead(
    serve: Serve, picture: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A name server that says something else the second time (DNS rebinding) is not asked a second time; TLS is checked by name."""
    asked: list[tuple[str, str]] = []
    hosts: list[str] = []

    async def names(host: str, _port: int) -> Sequence[str]:
        asked.append((host, "first" if not asked else "again"))
        return ["127.0.0.1"] if len(asked) == 1 else ["10.0.0.1"]

    async def handler(request: web.Request) -> web.Response:
        hosts.append(request.host)
        return web.Response(body=picture)

    monkeypatch.setattr(fetching, "is_public", lambda _: True)  # nothing on this machine is
    trusted, served = certificates(tmp_path, "pictures.example")
    server = await serve(handler, ssl=served)
    url = URL(f"https://pictures.example:{server.port}/a.png")
    fetched = await fetch(url, allowed_origin=None, names=names, ssl=trusted)
    assert (fetched.content, fetched.media_type) == (picture, "image/png")
    assert asked == [("pictures.example", "first")]
    assert hosts == [f"pictures.example:{server.port}"]
    asked.clear()
    with pytest.raises(NotFetched, match="cannot be had"):  # another name on the same certificate
        await fetch(url.with_host("other.example"), allowed_origin=None, names=names, ssl=trusted)


def certificates(directory: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A client's context that trusts one certificate, and a server's that shows it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = directory / "server.pem"
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(file)
    return ssl.create_default_context(cadata=certificate.public_bytes(serialization.Encoding.PEM).decode()), served


async def test_a_redirect_is_not_followed(serve: Serve, picture: bytes) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == "/a.png":
            raise web.HTTPFound("/b.png")
        return web.Response(body=picture)

    server = await serve(handler)
    with pytest.raises(NotFetched, match="answered 302"):
        await fetch(URL(f"{origin(server)}/a.png"), allowed_origin=origin(server))


@pytest.mark.parametrize("told", [True, False], ids=["told", "not told"])
async def test_a_megabyte_is_taken_and_a_byte_more_is_not(serve: Serve, picture: bytes, *, told: bool) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        body = picture.ljust(BYTES_MAX + int(request.path == "/more.png"), b"\0")
        if told:
            return web.Response(body=body)
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        for at in range(0, len(body), 100_000):
            await response.write(body[at : at + 100_000])
        return response

    server = await serve(handler)
    assert len((await fetch(URL(f"{origin(server)}/a.png"), allowed_origin=origin(server))).content) == BYTES_MAX
    with pytest.raises(NotFetched, match="larger than 1,048,576 bytes"):
        await fetch(URL(f"{origin(server)}/more.png"), allowed_origin=origin(server))


async def test_a_packed_body_is_not_unpacked(serve: Serve, picture: bytes) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=gzip.compress(picture), headers={"Content-Encoding": "gzip"})

    server = await serve(handler)
    with pytest.raises(NotFetched, match="no JPEG, PNG, GIF or WebP"):
        await fetch(URL(f"{origin(server)}/a.png"), allowed_origin=origin(server))


async def test_a_server_that_keeps_us_waiting_is_left(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    leave = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"\x89PNG")
        await leave.wait()
        return response

    assert fetching._TIMEOUT_S == 5.0
    monkeypatch.setattr(fetching, "_TIMEOUT_S", 0.2)
    server = await serve(handler)
    with pytest.raises(NotFetched, match="longer than"):
        await fetch(URL(f"{origin(server)}/a.png"), allowed_origin=origin(server))
    leave.set()


@pytest.mark.parametrize("status", [204, 206, 304, 404, 500])
async def test_only_200_is_a_picture(serve: Serve, status: int) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=status)

    server = await serve(handler)
    with pytest.raises(NotFetched, match=str(status)):
        await fetch(URL(f"{origin(server)}/a.png"), allowed_origin=origin(server))


async def test_a_port_where_nobody_listens_is_no_picture() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        here = f"http://127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(NotFetched, match="cannot be had"):
            await fetch(URL(f"{here}/a.png"), allowed_origin=here)


def test_the_kind_is_told_by_the_content() -> None:
    assert media_type(b"\xff\xd8\xff\xe0") == "image/jpeg"
    assert media_type(b"GIF89a") == "image/gif"
    assert media_type(b"RIFF\0\0\0\0WEBPVP8 ") == "image/webp"
    for other in (b"", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"RIFF\0\0\0\0WAVE", b"%PDF-1.7", b"BM", b"II*\0"):
        with pytest.raises(NotFetched, match="no JPEG, PNG, GIF or WebP"):
            media_type(other)


# ---- and so at the seller's


async def test_the_one_allowed_host_is_one_origin(tmp_path: Path) -> None:
    async with Stalls(tmp_path) as stalls:
        router, studio = stalls.market.urls["xrouter"], stalls.market.urls["studio"]
        assert (await stalls.buy("/api/ai/describe-image", {"imageUrl": f"{router}/pictures/sample.png"})).status == 200
        for other in (f"{studio}/pictures/sample.png", f"{router.replace('127.0.0.1', 'localhost')}/pictures/sample.png"):
            assert (await stalls.ask("/api/ai/describe-image", {"imageUrl": other}))[0] == 400


async def test_nothing_is_fetched_before_the_payment_is_verified_nor_charged_when_it_cannot_be_had(tmp_path: Path) -> None:
    async with Stalls(tmp_path) as stalls:
        missing = {"imageUrl": stalls.market.sample_url.replace("sample", "missing")}
        private = {"imageUrl": "https://localhost/a.png"}
        for order, why in ((missing, "answered 404"), (private, "not on the public internet")):
            stalls.model.asked.clear()
            assert (await stalls.ask("/api/ai/describe-image", order))[0] == 402
            assert stalls.model.asked == []
            refused = await stalls.buy("/api/ai/describe-image", order)
            assert (refused.status, refused.body["error"]["param"]) == (422, "imageUrl")
            assert why in refused.body["error"]["message"]
            assert (stalls.model.asked, stalls.model.recorded) == (["verify"], False)
        stalls.model.verifying = ["refuse"]
        poor = await stalls.buy("/api/ai/describe-image", missing)
        assert (poor.status, poor.body["error"]) == (402, "insufficient_funds")


async def test_a_picture_that_only_pretends_to_be_one_is_not_charged(tmp_path: Path) -> None:
    async with Stalls(tmp_path) as stalls:
        (tmp_path / "market" / "xrouter" / "fake.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"nothing")
        refused = await stalls.buy("/api/ai/describe-image", {"imageUrl": stalls.market.sample_url.replace("sample", "fake")})
        assert refused.status == 502
        assert "decoded" in refused.body["error"]["message"]
        assert not stalls.model.recorded
