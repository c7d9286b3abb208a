"""A pytest plugin: every `facilitator serve` of the run comes out of the image's prefix, confined as in a pod (`image.confined`).

`-p tests.ops.in_image` with IMAGE_PREFIX. The database is reached over the loopback: its socket is for its own user only.
"""

import asyncio
import os
import subprocess
import threading
from functools import cache, partialmethod
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.fixtures.service import ServeProcess
from tests.ops.image import confined, stages


def last_stage_environment() -> dict[str, str]:
    """What the image sets, less the PATH that leads into it."""
    (text,) = [arguments for instruction, arguments in stages()[-1] if instruction == "ENV"]
    return {name: value for name, _, value in (pair.partition("=") for pair in text.split()) if name != "PATH"}


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="database relay", daemon=True).start()
    return loop


@cache
def _port_of(socket: Path) -> int:
    """A port of the loopback that leads to this socket."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream_reader, upstream_writer = await asyncio.open_unix_connection(str(socket))
        except OSError:
            writer.close()
            return
        await asyncio.gather(pass_on(reader, upstream_writer), pass_on(upstream_reader, writer), return_exceptions=True)

    async def listen() -> int:
        server = await asyncio.start_server(relay, "127.0.0.1", 0)
        return int(server.sockets[0].getsockname()[1])

    return asyncio.run_coroutine_threadsafe(listen(), _loop()).result()


def reachable(database_url: str) -> str:
    """The same database by a port."""
    parts = urlsplit(database_url)
    (directory,) = parse_qs(parts.query)["host"]
    (socket,) = Path(directory).glob(".s.PGSQL.*[0-9]")
    return f"postgresql://postgres@127.0.0.1:{_port_of(socket)}{parts.path}"


def spawn(service: ServeProcess, prefix: Path) -> None:
    """In place of `ServeProcess.spawn`: out of this prefix."""
    assert not service.running, "the service is running already"
    environment = service._environment | last_stage_environment()
    environment["DATABASE_URL"] = reachable(environment["DATABASE_URL"])
    service._directory.chmod(0o755)
    with service.log_path.open("ab") as log:
        service._process = subprocess.Popen(
            confined([prefix / "bin" / "facilitator", "serve", "--config", service.config_path], kept=[prefix, service._directory]),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def pytest_configure() -> None:
    """Once a process, before anything is collected."""
    ServeProcess.spawn = partialmethod(spawn, Path(os.environ["IMAGE_PREFIX"]))  # type: ignore[assignment]
