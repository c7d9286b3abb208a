"""The command line: `serve`, `migrate`, `keys`, `doctor`, `config`, `demo` and `dev`.

Results go to stdout, everything else to stderr. A failure is one line: what, where, remedy. Exit status: 0 done,
1 checked and failed, 2 wrong usage or configuration, 3 not possible now. A secret is shown once, when a key is made.
A command imports what it needs when it runs: all of it together takes half a second.
"""

import argparse
import asyncio
import gc
import importlib
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import uvloop

from facilitator import config as configuration
from facilitator import telemetry
from facilitator.config import CONFIG_VARIABLE, Config, ConfigProblems, Loaded
from facilitator.errors import ConfigFault, Fault
from facilitator.metrics import EVENTS, series
from facilitator.references import Secret
from facilitator.store.db import Db
from facilitator.store.migrate import migrate, schema_standing

if TYPE_CHECKING:
    from facilitator.books import Done, Work

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNEXPLAINED: Final = 2
NOT_NOW: Final = 3

_LIGHT: Final = ("serve", "migrate", "config", "demo", "dev")
"""Commands that need nothing of the others."""
_DATABASE: Final = "facilitator"
"""Name of our database in an embedded server."""


_GC_THRESHOLDS: Final = (20_000, 50, 100)
"""Collections are rarer than Python's own (700, 10, 10): requests free what they make by reference counts."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    parsed = _parser(given[0] if given else None).parse_args(given)
    try:
        status: int = parsed.run(parsed)
    except ConfigFault as fault:
        return _complain(fault.message, USAGE)
    except Fault as fault:
        return _complain(str(fault), NOT_NOW)
    except OSError as error:
        return _complain(str(error), NOT_NOW)
    except KeyboardInterrupt:
        return 130
    return status


def _complain(message: str, status: int) -> int:
    print(f"facilitator: {telemetry.redact_text(message)}", file=sys.stderr)
    return status


def _parser(word: str | None = None) -> argparse.ArgumentParser:
    """All commands; a light one's `word` leaves those out that take long to import."""
    parser = argparse.ArgumentParser(prog="facilitator", description="An x402 payment facilitator.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    with_config = argparse.ArgumentParser(add_help=False)
    with_config.add_argument("--config", type=Path, metavar="FILE", help=f"TOML file; {CONFIG_VARIABLE} may name it instead")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str, **options: object) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, parents=[with_config] if options.get("config", True) else [])
        added.set_defaults(run=run)
        return added

    command("serve", _serve, "run the service")
    command("migrate", _migrate, "bring the database's schema up")
    if word not in _LIGHT:
        _add_others(commands, command, with_config)

    config = commands.add_parser("config", help="the effective configuration").add_subparsers(required=True, metavar="COMMAND")
    config.add_parser("check", parents=[with_config], help="all that is wrong with it").set_defaults(run=_config_check)
    config.add_parser("print", parents=[with_config], help="each value and its origin, secrets as references").set_defaults(
        run=_config_print
    )

    demo = command("demo", _demo, "the whole stack once: pay, settle, reconcile", config=False)
    demo.add_argument("--payments", type=int, default=10, metavar="N")
    demo.add_argument("--json", action="store_true")
    dev = command("dev", _dev, "the same stack kept running", config=False)
    dev.add_argument("--port", type=int, default=4022)
    dev.add_argument("--block-time", type=float, default=None, metavar="S")
    dev.add_argument("--state", type=Path, default=None, metavar="DIR")
    dev.add_argument("--upstream", default=None, metavar="URL", help="OpenAI-compatible API behind the sample sellers")
    dev.add_argument("--upstream-key", default=None, metavar="REF", help="its key: env:NAME or file:/path")
    return parser


def _add_others(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    command: Callable[..., argparse.ArgumentParser],
    with_config: argparse.ArgumentParser,
) -> None:
    from facilitator import books, tenancy  # noqa: PLC0415
    from facilitator.operate import STATUSES  # noqa: PLC0415

    command("doctor", _doctor, "check database, chains, relayers and clock; exit 1 when a check fails")

    tenancy.add_commands(commands, with_config, _on_ledger)

    check = command("reconcile", _reconcile, "ledger against chain; exit 2 while something is unexplained")
    check.add_argument("--network", required=True, metavar="ID")
    check.add_argument("--from-block", type=int, default=0, metavar="N")
    check.add_argument("--to-block", type=int, default=None, metavar="N", help="the newest block by default")
    check.add_argument("--json", action="store_true")

    pool = commands.add_parser("relayers", help="relayer accounts, with transactions in flight").add_subparsers(
        required=True, metavar="COMMAND"
    )
    pool.add_parser("list", parents=[with_config], help="all on record").set_defaults(run=_relayers_list)
    add = pool.add_parser("add", parents=[with_config], help="one more, by where its key lies; running services take it in")
    add.add_argument("--network", required=True, metavar="ID")
    add.add_argument("--address", metavar="ADDRESS", help="of the account; needed when its key cannot be read here")
    add.add_argument("reference", metavar="REFERENCE", help="env:NAME, file:/path or keystore:/path?password=env:NAME; never the key")
    add.set_defaults(run=_relayers_add)
    for name in STATUSES:
        change = pool.add_parser(name, parents=[with_config], help=f"make one {STATUSES[name]}")
        change.add_argument("--network", required=True, metavar="ID")
        change.add_argument("address", metavar="ADDRESS")
        change.set_defaults(run=_relayers_change, change=name)

    books.add_commands(commands, with_config, _on_ledger, _offline)

    why = command("explain", _explain, "why a payment payload or PAYMENT-SIGNATURE header is refused, field by field")
    why.add_argument("file", metavar="FILE", help="request body, payment payload or header as copied from a log; - is stdin")
    why.add_argument("--requirements", type=Path, metavar="FILE", help="the seller's terms, an entry of `accepts`")
    why.add_argument("--rpc-url", metavar="URL", help="ask this chain too; a configuration's is asked anyway")
    why.add_argument("--json", action="store_true")


# ---- configuration


def _load(parsed: argparse.Namespace) -> Loaded:
    """The configuration of this command. Raises ConfigFault."""
    named = os.environ.get(CONFIG_VARIABLE)
    path: Path | None = parsed.config or (Path(named) if named else None)
    if path is None and not any(name.startswith(configuration.ENVIRONMENT_PREFIX) for name in os.environ):
        raise ConfigFault("no_config", f"no configuration: give --config FILE or set {CONFIG_VARIABLE}")
    return configuration.load(path, os.environ)


def _prepare(parsed: argparse.Namespace, *, quiet: bool) -> Config:
    """Load the configuration and set logging up; a command for people logs warnings only."""
    loaded = _load(parsed)
    config = loaded.config
    level: telemetry.Level = "warning" if quiet and config.log.level == "info" else config.log.level
    telemetry.configure(level, config.log.format, observe=lambda event, level: series(EVENTS, event, level).inc())
    if not quiet:
        for warning in loaded.warnings:
            telemetry.get_logger().warning("config.doubtful", detail=warning)
    return config


def _config_check(parsed: argparse.Namespace) -> int:
    try:
        loaded = _load(parsed)
    except ConfigProblems as faults:
        for problem in faults.problems:
            print(telemetry.redact_text(problem), file=sys.stderr)
        return FAILED
    missing = [str(secret) for secret in _secrets_of(loaded.config) if not _is_there(secret)]
    for warning in loaded.warnings:
        print(f"warn  {warning}")
    for reference in missing:
        print(f"fail  {reference}: nothing there; set the variable or write the file")
    if missing:
        return FAILED
    print(f"ok    {len(loaded.origins)} values, {len(loaded.config.networks)} networks, {len(loaded.config.tokens)} assets")
    return DONE


def _config_print(parsed: argparse.Namespace) -> int:
    rows = configuration.describe(_load(parsed))
    wide = max(len(path) for path, _, _ in rows)
    for path, value, origin in rows:
        print(f"{path:<{wide}} = {value}  # {origin}")
    return DONE


def _secrets_of(config: Config) -> Iterator[Secret]:
    urls = [config.database.url, *(url for network in config.networks for url in (*network.rpc_urls, network.ws_url))]
    yield from (url.secret for url in urls if url is not None and url.secret is not None)
    for network in config.networks:
        for relayer in network.relayers:
            yield from relayer.secrets
    if config.console is not None and config.console.oidc is not None and config.console.oidc.client_secret is not None:
        yield config.console.oidc.client_secret


def _is_there(secret: Secret) -> bool:
    try:
        return bool(secret.read())
    except ConfigFault:
        return False


# ---- the database, also when it is ours to start


@asynccontextmanager
async def _database(config: Config) -> AsyncIterator[str]:
    """The database's URL; an embedded server is started for the time, unless a running service has it up already."""
    directory = config.database.url.embedded
    if directory is None:
        yield config.database.url.read()
        return
    try:
        from facilitator.devstack.children import StackFault, StateDirectory  # noqa: PLC0415 (never loaded in production)
        from facilitator.devstack.stack import Postgres  # noqa: PLC0415
    except ImportError as error:
        raise ConfigFault(
            "no_embedded_database", f"[database] url: an embedded database needs `pip install facilitator[dev]` ({error.name} is missing)"
        ) from None
    note = directory / "url"
    try:
        state = StateDirectory.open(directory)
    except StackFault:
        if note.exists():
            yield note.read_text("utf-8")
            return
        raise
    server = Postgres(state)
    try:
        await server.start()
        url = server.url_of(_DATABASE)
        if not note.exists():
            await server.create_database(_DATABASE)
        note.write_text(url, "utf-8")
        yield url
    finally:
        await server.stop()
        state.close()


@asynccontextmanager
async def _open(config: Config) -> AsyncIterator[Db]:
    from facilitator.app import open_database  # noqa: PLC0415

    async with _database(config) as url:
        if missing := (await schema_standing(url)).missing:
            raise ConfigFault("schema_behind", f"the database lacks {', '.join(missing)}: run `facilitator migrate` first")
        db = await open_database(config, url)
        try:
            yield db
        finally:
            await db.close()


def _run(work: Coroutine[None, None, int]) -> int:
    """Run on uvloop's event loop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def _on_ledger(work: "Work") -> Callable[[argparse.Namespace], int]:
    """A command that needs configuration and database."""

    def run(parsed: argparse.Namespace) -> int:
        config = _prepare(parsed, quiet=True)

        async def go() -> int:
            async with _open(config) as db:
                return _tell(await work(config, db, parsed))

        return _run(go())

    return run


def _offline(work: Callable[[argparse.Namespace], "Done"]) -> Callable[[argparse.Namespace], int]:
    """A command that needs neither."""
    return lambda parsed: _tell(work(parsed))


def _tell(done: "Done") -> int:
    if done.lines:
        print("\n".join(done.lines))
    return done.status


# ---- commands


def _serve(parsed: argparse.Namespace) -> int:
    from facilitator.app import serve  # noqa: PLC0415

    config = _prepare(parsed, quiet=False)

    async def run() -> int:
        gc.freeze()  # modules and tables live as long as the process: the collector need not walk them
        gc.set_threshold(*_GC_THRESHOLDS)
        async with _database(config) as url:
            await serve(config, url)
        return DONE

    return _run(run())


def _migrate(parsed: argparse.Namespace) -> int:
    config = _prepare(parsed, quiet=True)

    async def run() -> int:
        async with _database(config) as url:
            applied = await migrate(url)
        print("\n".join(f"applied {name}" for name in applied) or "nothing to do: the schema is up to date")
        return DONE

    return _run(run())


def _explain(parsed: argparse.Namespace) -> int:
    from facilitator.explain import explain  # noqa: PLC0415

    telemetry.configure("warning")
    config = _load(parsed).config if parsed.config or os.environ.get(CONFIG_VARIABLE) else None
    text = sys.stdin.buffer.read() if parsed.file == "-" else Path(parsed.file).read_bytes()
    lines = asyncio.run(explain(text, parsed.requirements.read_bytes() if parsed.requirements else None, config, parsed.rpc_url))
    if parsed.json:
        print(json.dumps([asdict(line) for line in lines]))
    else:
        print("\n".join(str(line) for line in lines))
    return FAILED if any(line.verdict == "fail" for line in lines) else DONE


def _demo(parsed: argparse.Namespace) -> int:
    status: int = _devstack("run_demo")(payments=parsed.payments, as_json=parsed.json)
    return status


def _dev(parsed: argparse.Namespace) -> int:
    status: int = _devstack("run_dev")(
        port=parsed.port,
        block_time_s=parsed.block_time,
        state=parsed.state,
        upstream=parsed.upstream,
        upstream_key=parsed.upstream_key,
    )
    return status


def _devstack(name: str) -> Callable[..., int]:
    """A function of the local stack, which production does not install."""
    telemetry.configure("warning")
    try:
        return cast("Callable[..., int]", getattr(importlib.import_module("facilitator.devstack.demo"), name))
    except ImportError as error:
        raise ConfigFault(
            "no_devstack", f"the local stack needs `make setup`, or `pip install facilitator[dev]` ({error.name} is missing)"
        ) from None


def _reconcile(parsed: argparse.Namespace) -> int:
    from facilitator.operate import reconcile_network, report_lines  # noqa: PLC0415

    config = _prepare(parsed, quiet=True)

    async def run() -> int:
        async with _open(config) as db:
            look = await reconcile_network(config, db, parsed.network, parsed.from_block, parsed.to_block)
            print("\n".join(report_lines(look, as_json=parsed.json)))
        return UNEXPLAINED if look.unexplained else DONE

    return _run(run())


def _relayers_list(parsed: argparse.Namespace) -> int:
    from facilitator.operate import relayer_lines  # noqa: PLC0415

    config = _prepare(parsed, quiet=True)

    async def run() -> int:
        async with _open(config) as db:
            print("\n".join(await relayer_lines(config, db)) or "no relayer was used yet")
        return DONE

    return _run(run())


def _relayers_add(parsed: argparse.Namespace) -> int:
    from facilitator.books import ACTOR  # noqa: PLC0415
    from facilitator.operate import add_relayer  # noqa: PLC0415

    config = _prepare(parsed, quiet=True)

    async def run() -> int:
        async with _open(config) as db:
            print(await add_relayer(config, db, f"cli {ACTOR}", parsed.network, parsed.reference, parsed.address))
        return DONE

    return _run(run())


def _relayers_change(parsed: argparse.Namespace) -> int:
    from facilitator.books import ACTOR  # noqa: PLC0415
    from facilitator.operate import set_relayer_status  # noqa: PLC0415

    config = _prepare(parsed, quiet=True)

    async def run() -> int:
        async with _open(config) as db:
            print(await set_relayer_status(config, db, f"cli {ACTOR}", parsed.network, parsed.address, parsed.change))
        return DONE

    return _run(run())


def _doctor(parsed: argparse.Namespace) -> int:
    from facilitator.doctor import examine  # noqa: PLC0415

    config = _prepare(parsed, quiet=True)

    async def run() -> int:
        worst = DONE
        async for finding in examine(config, _database(config)):
            print(finding, flush=True)
            if finding.verdict == "fail":
                worst = FAILED
        return worst

    return _run(run())
