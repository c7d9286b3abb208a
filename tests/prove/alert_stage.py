"""Where alerts are caused and ended: one service, its database and chain, a real Prometheus with our rules, and the page of runbooks.

The rules are those of the chart with every duration a sixtieth (six hours and more: a 360th), also ages compared with `time()`.
Loops beat every 30 s, so LoopStalled waits for a third; RpcHeadStale is left as it is.
"""

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import aiohttp
import asyncpg
import yaml

from facilitator.devstack.accounts import dev_account
from facilitator.devstack.children import StackFault, StateDirectory
from facilitator.devstack.stack import Postgres
from facilitator.store.migrate import migrate
from tests.fixtures.house import House, client_session, eventually
from tests.fixtures.service import BASE_SEPOLIA, ServeFailed, ServeProcess, free_port
from tests.ops.watched import RULES, is_ready, running

PAGE: Final = Path(__file__).parents[2] / "docs" / "operations.md"
PATIENCE_S: Final = float(os.environ.get("FACILITATOR_PATIENCE_S") or 240)
LIFE_S: Final = 60
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONG_S: Final = 6 * 3600
ETHER: Final = 10**18
Settings = Mapping[str, Mapping[str, Any]]
SETTINGS: Final[Settings] = {
    "settlement": {
        "survey_s": 0.5, "finality_poll_s": 1.0, "balance_poll_s": 1.0, "canary_verify_s": 1.0, "deadline_s": 10.0,
        "verify_deadline_s": 2.0, "queue_max": 5, "group_max": 5, "slots_soft": 2, "slots_max": 2, "batching": "off",
        "queue_wait_max_s": 30.0, "limits_poll_s": 0.5, "payer_strikes_max": 10_000, "lease_ttl_s": 10.0, "lease_trust_s": 7.0,
    },
    "finance": {"reconcile_s": 1.0, "seal_s": 1.0, "rate_poll_s": 1.0},
    "server": {"connections_max": 60},
    "database": {"connections_max": 4},
}  # fmt: skip


def scaled(directory: Path) -> Path:
    """The chart's rules, faster."""

    def shorter(match: re.Match[str]) -> str:
        seconds = int(match[2]) * _UNITS[match[3]]
        return f"{match[1]}{max(2, seconds // (360 if seconds >= _LONG_S else 60))}s"

    def younger(match: re.Match[str]) -> str:
        return f"> {int(match[1]) * (3600 if match[2] else 1) // 60}"

    def younger_loop(match: re.Match[str]) -> str:
        return f"> {int(match[1]) // 3}"

    rules = yaml.safe_load(RULES.read_text("utf-8"))
    for group in rules["groups"]:
        for rule in group["rules"]:
            expr = re.sub(r"(\[|offset )(\d+)([smhd])", shorter, rule["expr"])
            if "time()" in expr:
                expr = re.sub(r"> (\d+)( \* 3600)?\s*$", younger_loop if "loop_heartbeat" in expr else younger, expr)
            rule["expr"] = expr
            if "for" in rule:
                rule["for"] = re.sub(r"^()(\d+)([smhd])", shorter, rule["for"])
    file = directory / "rules.yaml"
    file.write_text(yaml.safe_dump(rules))
    return file


class Runbook:
    """One alert's section of docs/operations.md: all that whoever ends the alert reads."""

    def __init__(self, alert: str) -> None:
        text = PAGE.read_text("utf-8").partition("\n## Alerts\n")[2].partition("\n## ")[0]
        found = re.search(rf"^### {alert}\n(.*?)(?=^### |\Z)", text, re.DOTALL | re.MULTILINE)
        assert found is not None, alert
        self.alert = alert
        self.text = found[1]

    def spans(self, part: str = "") -> list[str]:
        """What stands in code type, in one part (`Look`, `Do`) or all."""
        text = self.text if not part else self.text.partition(f"**{part}.**")[2].partition("\n**")[0]
        return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]

    def says(self, start: str, **filled: str) -> str:
        """The statement, command or setting that begins so, as it stands there, with its gaps `filled`; AssertionError without it."""
        found = next((span for span in self.spans() if span.startswith(start)), None)
        assert found is not None, f"the section {self.alert} does not tell `{start}`"
        for gap, value in filled.items():
            found = found.replace({"gap": "…"}.get(gap, gap), value)
        return found


class Provider:
    """An RPC provider: it passes everything on to the chain, until it is broken."""

    def __init__(self, rpc_url: str) -> None:
        self._chain = int(rpc_url.rstrip("/").rpartition(":")[2])
        self._open: set[asyncio.StreamWriter] = set()
        self.well = True
        self.url = ""

    @classmethod
    @asynccontextmanager
    async def open(cls, rpc_url: str) -> AsyncIterator["Provider"]:
        provider = cls(rpc_url)
        async with await asyncio.start_server(provider._serve, "127.0.0.1", 0, backlog=256) as server:
            provider.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield provider
            provider.break_down()

    def break_down(self) -> None:
        """From here on it takes connections, and answers nothing."""
        self.well = False
        for writer in self._open:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.well:
            with suppress(OSError):
                await reader.read()
            return writer.close()
        with suppress(OSError):
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._chain)
            self._open |= {writer, to_writer}
            await asyncio.gather(_copy(reader, to_writer), _copy(to_reader, writer), return_exceptions=True)
            self._open -= {writer, to_writer}
        return None


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
    finally:
        writer.close()


@dataclass(slots=True)
class Stage:
    """A house with one service that is hurt, on a database of its own, and Prometheus."""

    house: House
    provider: Provider
    database: Postgres
    session: aiohttp.ClientSession
    url: str
    directory: Path
    service: ServeProcess
    odd: ServeProcess | None = None
    """A second service, which is set up wrongly, and on which the operator's commands are run."""
    odd_house: House = field(init=False, repr=False)
    end_cause: Callable[[], Awaitable[None]] = field(init=False, repr=False)
    """Ends what only its doer can end."""
    life_s: int = LIFE_S
    """Of the payments that callers make, from their signature to `validBefore`."""
    relayers: list[str] = field(default_factory=list)
    """Accounts that were added at run time."""
    fired: dict[str, float] = field(default_factory=dict)
    """Seconds from the fault to the alert."""
    resolved: dict[str, float] = field(default_factory=dict)
    """Seconds from the remedy to the end of the alert."""

    # Prometheus

    async def query(self, expression: str) -> list[dict[str, Any]]:
        async with self.session.post(f"{self.url}/api/v1/query", data={"query": expression}) as response:
            answer = await response.json()
            assert answer["status"] == "success", f"{expression}: {answer}"
            found: list[dict[str, Any]] = answer["data"]["result"]
            return found

    async def shows(self, expression: str) -> bool:
        return bool(await self.query(expression))

    async def firing(self) -> set[str]:
        return {row["metric"]["alertname"] for row in await self.query('ALERTS{alertstate="firing"}')}

    async def until_firing(self, *alerts: str) -> None:
        """Return when these have fired, at the same time or one after the other."""
        began, left = time.monotonic(), set(alerts)

        async def all_fired() -> bool:
            for name in await self.firing() & left:
                self.fired.setdefault(name, time.monotonic() - began)
                left.discard(name)
            return not left

        try:
            await eventually(all_fired, "alerts", timeout_s=PATIENCE_S, poll_s=0.3)
        except AssertionError:
            raise AssertionError(f"not fired: {sorted(left)}; firing now: {sorted(await self.firing())}") from None

    async def until_quiet(self, *alerts: str) -> None:
        """Return when none of these fires, for whatever they fired before."""

        async def none_fires() -> bool:
            return not await self.firing() & set(alerts)

        await eventually(none_fires, f"peace before {alerts}", timeout_s=PATIENCE_S, poll_s=0.3)

    async def until_resolved(self, *alerts: str) -> None:
        """Return when none of these fires any more."""
        began = time.monotonic()
        left = set(alerts)

        async def none_fires() -> bool:
            for name in left - await self.firing():
                self.resolved[name] = time.monotonic() - began
                left.discard(name)
            return not left

        try:
            await eventually(none_fires, "an end", timeout_s=PATIENCE_S, poll_s=0.3)
        except AssertionError:
            raise AssertionError(f"fire on after their remedies: {sorted(left)}") from None

    # the operator

    async def look(self, alert: str) -> None:
        """Do what the section tells to look at: commands, statements and queries, each as it stands; what they show is kept."""
        runbook, shown = Runbook(alert), [f"===== {alert}"]
        for span in runbook.spans("Look"):
            if re.match(r"select .* from ", span):
                with suppress(OSError, asyncpg.CannotConnectNowError, TimeoutError):
                    shown += [span, *(f"    {dict(row)}" for row in (await self.fetch(span.replace("'…'", "'test'")))[:10])]
            elif "facilitator_" in span and "container_" not in span:
                found = await self.query(span.replace('endpoint="…"', 'endpoint!=""'))
                shown += [span, *(f"    {row['metric']} {row.get('value', ['', ''])[1]}" for row in found[:10])]
            elif span.startswith("facilitator "):
                told = await self.command(span.replace("--network ID", f"--network {BASE_SEPOLIA}").replace(" ID", " test"), may_fail=True)
                shown += [span, *(f"    {line[:300]}" for line in told.splitlines()[:25])]
        with (self.directory / "looked.txt").open("a") as file:
            file.write("\n".join(shown) + "\n")

    async def command(self, line: str, *, may_fail: bool = False) -> str:
        """One `facilitator …` as it stands on the page; what it printed. Raises ServeFailed unless it `may_fail`."""
        words = [word.strip("'\"") for word in re.findall(r"'[^']*'|\S+", line)]
        assert words.pop(0) == "facilitator", line
        try:
            return await asyncio.to_thread((self.odd or self.service).command, *words)
        except ServeFailed as error:
            if not may_fail:
                raise
            return str(error)

    async def fetch(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.house.database_url, timeout=5)
        try:
            return await connection.fetch(sql, *arguments)
        finally:
            await connection.close()

    async def restart(self, settings: Settings | None = None, **options: Any) -> None:
        """The service again, with settings changed."""
        await self.service.aterminate()
        merged: dict[str, dict[str, Any]] = {table: dict(values) for table, values in stage_settings(self).items()}
        for table, values in (settings or {}).items():
            merged.setdefault(table, {}).update(values)
        self.service = self.house.service(None, merged, port=self.service.port, **options)
        self.house.services[0] = self.service
        await self.service.astart()

    async def restart_odd(self, settings: Settings) -> None:
        """The second service again, as it should have been."""
        assert self.odd is not None
        await self.odd.aterminate()
        self.odd = self.odd_house.service(None, settings, port=ODD_PORT)
        await self.odd.astart()

    async def recover(self) -> None:
        """Peace again after a fault that did not end as it should."""
        self.life_s = LIFE_S
        try:
            assert self.database.pid
        except StackFault:
            await self.database.start()
        await self.gas_money(10 * ETHER)
        await self.house.mine_every_second()
        await self.restart()

    async def add_relayer(self, runbook: Runbook) -> None:
        """A funded account more, whose key lies in a file, by the command on the page."""
        account = dev_account("spare", len(self.relayers))
        key = self.directory / f"spare-{len(self.relayers)}.key"
        key.write_text("0x" + bytes(account.key).hex())
        key.chmod(0o600)
        await self.house.token.set_gas_money(account.address, 10 * ETHER)
        self.relayers.append(account.address)
        await self.command(runbook.says("facilitator relayers add", ID=BASE_SEPOLIA, REFERENCE=f"file:{key}"))

    async def gas_money(self, wei: int) -> None:
        """What each relayer has from now on."""
        for address in (self.house.relayer.address, *self.relayers):
            await self.house.token.set_gas_money(address, wei)

    # callers

    async def settle(self) -> str:
        """One payment, whatever becomes of it."""
        with suppress(aiohttp.ClientError, TimeoutError):
            payment = self.house.payment(valid_before=int(time.time()) + self.life_s)
            return (await self.house.settle(self.session, payment, service=self.service)).word
        return "unanswered"

    async def until_paid(self) -> None:
        async def paid() -> bool:
            return await self.settle() == "success"

        await eventually(paid, "a payment", timeout_s=PATIENCE_S)

    async def throng(self) -> None:
        """120 callers at once, who have to wait because the chain does not answer for a moment."""
        headers = {"Authorization": f"Bearer {await self.house.key('test')}", "Content-Type": "application/json"}

        async def verify() -> None:
            with suppress(aiohttp.ClientError, TimeoutError):
                async with self.session.post(
                    f"{self.service.base_url}/verify", data=self.house.payment().body, headers=headers
                ) as response:
                    await response.read()

        os.kill(self.house.anvil.pid, signal.SIGSTOP)
        asking = [asyncio.create_task(verify()) for _ in range(120)]
        await asyncio.sleep(1.5)
        os.kill(self.house.anvil.pid, signal.SIGCONT)
        await asyncio.gather(*asking)

    async def callers(self) -> None:
        """Somebody verifies and somebody pays, about once a second each, for ever."""
        headers = {"Authorization": f"Bearer {await self.house.key('test')}", "Content-Type": "application/json"}
        tasks: set[asyncio.Task[Any]] = set()

        async def verify() -> None:
            body = self.house.payment().body
            with suppress(aiohttp.ClientError, TimeoutError):
                async with self.session.post(f"{self.service.base_url}/verify", data=body, headers=headers):
                    pass

        while True:
            for work in (verify(), self.settle()):
                tasks.add(task := asyncio.create_task(work))
                task.add_done_callback(tasks.discard)
            await asyncio.sleep(0.8)


ODD_PORT: Final = free_port()
"""Of services that are set up wrongly, one after the other."""


Step = Callable[[Stage], Awaitable[None]]


def stage_settings(stage: Stage) -> dict[str, Mapping[str, Any]]:
    """Of the service in peace."""
    return {**SETTINGS, "network": {"rate_file": str(stage.directory / "rate.json"), "rpc_urls": [stage.house.rpc_url]}}


def quote(file: Path, at: datetime) -> None:
    """Write a dollar rate of that time."""
    file.write_text(json.dumps({"usd": "3120.55", "quoted_at": at.isoformat()}))


@asynccontextmanager
async def staged(directory: Path) -> AsyncIterator[Stage]:
    """Everything runs, and callers come."""
    state = StateDirectory.open(directory / "postgres")
    database = Postgres(state)
    await database.start()
    try:
        database_url = await database.create_database("alerts")
        await migrate(database_url)
        quote(directory / "rate.json", datetime.now(UTC))
        async with (
            House.open(directory / "house", database_url, slots_in_an_epoch=2) as house,
            Provider.open(house.rpc_url) as provider,
            client_session() as session,
        ):
            await house.mine_every_second()
            stage = Stage(house, provider, database, session, "", directory, house.service())
            stage.service = house.service(None, stage_settings(stage))
            house.services.append(stage.service)
            await house.key("test")
            await stage.service.astart()
            with running(directory / "prometheus", free_port(), [stage.service.port, ODD_PORT], scaled(directory)) as stage.url:
                await eventually(lambda: is_ready(session, stage.url), "Prometheus", poll_s=0.1, timeout_s=60)
                load = asyncio.create_task(stage.callers())
                try:
                    yield stage
                finally:
                    load.cancel()
                    await stage.service.aterminate()
    finally:
        await database.stop()
        state.close()


@asynccontextmanager
async def odd_service(stage: Stage, settings: Settings, house: House | None = None, **options: Any) -> AsyncIterator[ServeProcess]:
    """A second service, of the stage's house or another, while the block runs."""
    stage.odd_house = house or stage.house
    stage.odd = stage.odd_house.service(None, settings, port=ODD_PORT, **options)
    await stage.odd.astart()
    try:
        yield stage.odd
    finally:
        if stage.odd is not None:
            await stage.odd.aterminate()
        stage.odd = None
