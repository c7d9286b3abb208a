"""Every alert fired for real: its fault is caused on the local stack, and a real Prometheus with our rules says so.

The rules are those of the chart with every duration a sixtieth: windows, `for`, `offset`, and ages compared with `time()`. Left
as they are: LoopStalled, for loops beat every 30 s, and RpcHeadStale. What fired, and what cannot be caused, is told at the end.
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
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import aiohttp
import asyncpg
import yaml
from eth_abi.abi import encode
from eth_utils.crypto import keccak

from facilitator.devstack.children import StateDirectory
from facilitator.devstack.stack import Postgres
from facilitator.store.migrate import migrate
from tests.fixtures.house import House, client_session, eventually
from tests.fixtures.service import ServeFailed, ServeProcess, free_port
from tests.ops.watched import RULES, is_ready, running
from tests.prove.conftest import Tell

SCALE: Final = 60
PATIENCE_S: Final = float(os.environ.get("FACILITATOR_PATIENCE_S") or 180)
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
NOT_CAUSED: Final = {
    "LoopStalled": "a loop that hangs would be a bug: every wait has a bound, and a process that is stopped is not scraped",
}
"""Alerts whose fault cannot be caused from outside, and why; their cases stand in tests/ops/alert_cases.py."""
BALANCES_SLOT: Final = 9
"""Of balances in the storage of Circle's token."""
LIFE_S: Final = 60
BRIEF_LIFE_S: Final = 20
SETTINGS: Final[Mapping[str, Mapping[str, Any]]] = {
    "settlement": {
        "survey_s": 0.5, "finality_poll_s": 1.0, "balance_poll_s": 1.0, "canary_verify_s": 1.0, "deadline_s": 10.0,
        "verify_deadline_s": 2.0, "queue_max": 5, "group_max": 5, "slots_soft": 2, "slots_max": 2, "batching": "off",
        "queue_wait_max_s": 30.0, "limits_poll_s": 0.5, "payer_strikes_max": 10_000,
    },
    "finance": {"reconcile_s": 1.0, "seal_s": 1.0, "rate_poll_s": 1.0},
    "server": {"connections_max": 60},
    "database": {"connections_max": 4},
}  # fmt: skip


def scaled(directory: Path) -> Path:
    """The chart's rules, faster."""

    def shorter(match: re.Match[str]) -> str:
        return f"{match[1]}{max(2, int(match[2]) * _UNITS[match[3]] // SCALE)}s"

    rules = yaml.safe_load(RULES.read_text("utf-8"))
    for group in rules["groups"]:
        for rule in group["rules"]:
            expr = re.sub(r"(\[|offset )(\d+)([smhd])", shorter, rule["expr"])
            if "time()" in expr and "loop_heartbeat" not in expr:
                whole = lambda match: f"> {int(match[1]) * (3600 if match[2] else 1) // SCALE}"  # noqa: E731
                expr = re.sub(r"> (\d+)( \* 3600)?\s*$", whole, expr)
            rule["expr"] = expr
            if "for" in rule:
                rule["for"] = re.sub(r"^()(\d+)([smhd])", shorter, rule["for"])
    file = directory / "rules.yaml"
    file.write_text(yaml.safe_dump(rules))
    return file


@dataclass(slots=True)
class Stage:
    """A house with one service that is hurt, on a database of its own, and Prometheus."""

    house: House
    database: Postgres
    session: aiohttp.ClientSession
    url: str
    directory: Path
    service: ServeProcess
    life_s: int = LIFE_S
    """Of the payments that callers make, from their signature to `validBefore`."""
    fired: dict[str, float] = field(default_factory=dict)
    """Seconds from the fault to the alert."""

    async def query(self, expression: str) -> list[dict[str, Any]]:
        async with self.session.post(f"{self.url}/api/v1/query", data={"query": expression}) as response:
            found: list[dict[str, Any]] = (await response.json())["data"]["result"]
            return found

    async def firing(self) -> set[str]:
        return {row["metric"]["alertname"] for row in await self.query('ALERTS{alertstate="firing"}')}

    async def until_firing(self, *alerts: str) -> None:
        """Return when these have fired, at the same time or one after the other."""
        began, left = time.monotonic(), set(alerts)

        async def all_fired() -> bool:
            for name in await self.firing() & left:
                self.fired[name] = time.monotonic() - began
                left.discard(name)
            return not left

        try:
            await eventually(all_fired, "alerts", timeout_s=PATIENCE_S, poll_s=0.3)
        except AssertionError:
            raise AssertionError(f"not fired: {sorted(left)}; firing now: {sorted(await self.firing())}") from None

    async def until_quiet(self, *alerts: str) -> None:
        async def none_fires() -> bool:
            return not await self.firing() & set(alerts)

        await eventually(none_fires, f"an end of {alerts}", timeout_s=PATIENCE_S, poll_s=0.3)

    async def execute(self, sql: str, *arguments: object) -> None:
        connection = await asyncpg.connect(self.house.database_url)
        try:
            await connection.execute(sql, *arguments)
        finally:
            await connection.close()

    async def settle(self) -> str:
        """One payment, whatever becomes of it."""
        with suppress(aiohttp.ClientError, TimeoutError):
            payment = self.house.payment(valid_before=int(time.time()) + self.life_s)
            return (await self.house.settle(self.session, payment, service=self.service)).word
        return "unanswered"

    async def limit(self, *changes: str) -> None:
        """Change the limits of the tenant that pays, as an operator does."""
        await asyncio.to_thread(self.service.command, "tenants", "set", "test", *changes)

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


@asynccontextmanager
async def staged(directory: Path) -> AsyncIterator[Stage]:
    state = StateDirectory.open(directory / "postgres")
    database = Postgres(state)
    await database.start()
    try:
        database_url = await database.create_database("alerts")
        await migrate(database_url)
        rate = directory / "rate.json"
        quote(rate, datetime.now(UTC))
        async with House.open(directory / "house", database_url) as house, client_session() as session:
            await house.mine_every_second()
            service = house.service(None, {**SETTINGS, "network": {"rate_file": str(rate)}})
            house.services.append(service)
            await house.key("test")
            await service.astart()
            port = free_port()
            targets = [service.port, ODD_PORT]
            with running(directory / "prometheus", port, targets, scaled(directory)) as url:
                stage = Stage(house, database, session, url, directory, service)
                await eventually(lambda: is_ready(session, url), "Prometheus", poll_s=0.1, timeout_s=60)
                load = asyncio.create_task(stage.callers())
                try:
                    yield stage
                finally:
                    load.cancel()
                    await service.aterminate()
    finally:
        await database.stop()
        state.close()


ODD_PORT: Final = free_port()
"""Of services that are set up wrongly, one after the other."""


def quote(file: Path, at: datetime) -> None:
    file.write_text(json.dumps({"usd": "3120.55", "quoted_at": at.isoformat()}))


# --- the faults


async def no_blocks(stage: Stage) -> None:
    """Payments are signed and never mined; those behind them wait, and their time runs out."""
    stage.life_s = BRIEF_LIFE_S
    await stage.house.call("evm_setIntervalMining", 0)
    await stage.until_firing("QueueOldestHigh", "QueueFilling", "SettleLatencyHigh", "SettlementPastDeadline")
    stage.life_s = LIFE_S
    await stage.house.mine_every_second()
    await stage.until_quiet("QueueOldestHigh", "QueueFilling", "SettlementPastDeadline")


async def money_that_moves_away(stage: Stage) -> None:
    """Payments are good when they are signed, and the payer's money is gone when they are mined."""
    house, payer = stage.house, stage.house.payment().payer
    balance_at = "0x" + keccak(encode(["address", "uint256"], [payer, BALANCES_SLOT])).hex()

    async def spoil() -> None:
        while True:
            await house.pooled()
            await house.call("anvil_setStorageAt", house.token.asset, balance_at, "0x" + "00" * 32)
            await eventually(lambda: decided(stage), "an end of what was signed", timeout_s=PATIENCE_S, poll_s=1.0)
            await house.token.fund([payer], amount_atomic=10**9)

    await house.call("evm_setIntervalMining", 0)
    spoiling = asyncio.create_task(spoil())
    try:
        await stage.until_firing("GasWasteHigh")
        await stage.limit("--strikes-max", "1")
        await stage.until_firing("TenantCoolingDown")
    finally:
        spoiling.cancel()
        await asyncio.gather(spoiling, return_exceptions=True)
        await house.token.fund([payer], amount_atomic=10**12)
        await house.mine_every_second()
    await stage.limit("--strikes-max", "none")
    await stage.until_quiet("TenantCoolingDown")


async def decided(stage: Stage) -> bool:
    """Mine a block: is nothing open any more? While the payer has no money, nothing new is signed."""
    await stage.house.mine()
    connection = await asyncpg.connect(stage.house.database_url)
    try:
        return await connection.fetchval("select count(*) from settlement where state = 'submitted'") == 0
    finally:
        await connection.close()


async def a_spent_gas_budget(stage: Stage) -> None:
    """Enough for a few payments, and then not for one more."""
    [cost] = await stage.query("facilitator_payment_cost_wei")
    await stage.limit("--gas-wei-per-day", str(2 * int(float(cost["value"][1]))))
    await stage.until_firing("GasBudgetExhausted")
    await stage.limit("--gas-wei-per-day", "none")
    await stage.until_quiet("GasBudgetExhausted")


async def no_fresh_rate(stage: Stage) -> None:
    quote(stage.directory / "rate.json", datetime.now(UTC) - timedelta(hours=4))
    await stage.until_firing("RateStale")


async def no_gas_money(stage: Stage) -> None:
    await stage.house.token.set_gas_money(stage.house.relayer.address, 0)
    await stage.until_firing("RelayerRunwayLow")
    await stage.house.token.set_gas_money(stage.house.relayer.address, 10**19)


async def a_reorganisation(stage: Stage) -> None:
    await eventually(lambda: paid(stage), "a payment", timeout_s=PATIENCE_S)
    await stage.house.call("anvil_reorg", 2, [])
    await stage.until_firing("IncidentOpen", "ErrorLogged")


async def paid(stage: Stage) -> bool:
    return await stage.settle() == "success"


async def a_locked_table(stage: Stage) -> None:
    connection = await asyncpg.connect(stage.house.database_url)
    try:
        async with connection.transaction():
            await connection.execute("lock table settlement in access exclusive mode")
            await stage.until_firing("DbPoolExhausted")
    finally:
        await connection.close()


async def no_database(stage: Stage) -> None:
    await stage.database.stop()
    await stage.until_firing("StoreUnreachable", "SealerStalled", "LoopFaulting")
    await stage.database.start()


async def no_node(stage: Stage) -> None:
    os.kill(stage.house.anvil.pid, signal.SIGSTOP)
    await stage.until_firing(
        "VerifyBudgetBurnFast", "VerifyBudgetBurnSlow", "VerifyLatencyHigh", "RpcAllDown", "RpcEndpointFailing", "RpcHeadStale",
        "ReconcilerStalled", "CanaryFailing", "SettleBudgetBurnFast", "SettleBudgetBurnSlow", "FinalityStalled",
    )  # fmt: skip
    os.kill(stage.house.anvil.pid, signal.SIGCONT)


async def an_altered_schema(stage: Stage) -> None:
    await stage.execute("alter table rate rename to gone")
    quote(stage.directory / "rate.json", datetime.now(UTC))
    await stage.until_firing("LoopCrashed")
    await stage.execute("alter table gone rename to rate")


async def an_altered_ledger(stage: Stage) -> None:
    await eventually(lambda: paid(stage), "a payment", timeout_s=PATIENCE_S)
    await stage.house.call("anvil_mine", "0x60")
    connection = await asyncpg.connect(stage.house.database_url)
    try:
        changed = (
            "update settlement set amount_atomic = amount_atomic + 1, queued_at = now() - interval '3 hours',"
            " resolved_at = now() - interval '2 hours' where settlement_id = (select settlement_id from settlement"
            " where state in ('included', 'safe', 'finalized') order by block_number desc limit 1)"
        )
        assert await connection.execute(changed) == "UPDATE 1"
    finally:
        await connection.close()
    await stage.until_firing("LedgerChainMismatch", "MatchedShareLow")


async def an_old_day(stage: Stage) -> None:
    await stage.execute(
        "insert into journal_entry (book, phase, debit, credit, asset, amount_atomic, happened_at)"
        " values ('own', 'pending', 'receivable:a', 'fee_income:a', 'USD', 5, now() - interval '3 days')"
    )
    await stage.until_firing("CloseOverdue")


async def too_many_connections(stage: Stage) -> None:
    headers = {"Authorization": f"Bearer {await stage.house.key('test')}", "Content-Type": "application/json"}

    async def verify() -> None:
        with suppress(aiohttp.ClientError, TimeoutError):
            async with stage.session.post(f"{stage.service.base_url}/verify", data=stage.house.payment().body, headers=headers) as response:
                await response.read()

    os.kill(stage.house.anvil.pid, signal.SIGSTOP)  # so that all of them wait
    asking = [asyncio.create_task(verify()) for _ in range(120)]
    await asyncio.sleep(1.5)
    os.kill(stage.house.anvil.pid, signal.SIGCONT)
    await stage.until_firing("ConnectionsRefused")
    await asyncio.gather(*asking)


async def no_processor(stage: Stage) -> None:
    async def starve() -> None:
        while True:
            for number, seconds in ((signal.SIGSTOP, 3.0), (signal.SIGCONT, 0.15)):
                stage.service.send_signal(number)
                await asyncio.sleep(seconds)

    starving = asyncio.create_task(starve())
    try:
        await stage.until_firing("EventLoopLagging")
    finally:
        starving.cancel()
        stage.service.send_signal(signal.SIGCONT)


async def another_chain(stage: Stage) -> None:
    odd = stage.house.service(None, {"network": {"plain_keys": True}}, network="eip155:8453", port=ODD_PORT)
    await odd.astart()
    try:
        await stage.until_firing("NetworkWithdrawn")
    finally:
        await odd.aterminate()


async def an_old_list(stage: Stage) -> None:
    listed = stage.directory / "listed.txt"
    listed.write_text("0x" + "11" * 20 + "\n")
    os.utime(listed, (time.time() - 90, time.time() - 90))
    odd = stage.house.service(
        None, {"screening": {"list_file": str(listed), "list_age_max_s": 100.0, "known_listed": "0x" + "11" * 20}}, port=ODD_PORT
    )
    await odd.astart()
    try:
        await stage.until_firing("ScreeningListStale")
    finally:
        await odd.aterminate()


async def an_endpoint_that_lies(stage: Stage) -> None:
    """A second chain of the same height, which knows of no payment."""
    database_url = await stage.database.create_database("witnesses")
    await migrate(database_url)
    async with (
        House.open(stage.directory / "second", database_url) as second,
        House.open(stage.directory / "other", database_url) as other,
    ):
        rpc_urls = [second.rpc_url, other.rpc_url]
        odd = second.service(None, {"settlement": {"receipt_witnesses": 2}, "network": {"rpc_urls": rpc_urls}}, port=ODD_PORT)
        second.services.append(odd)
        await second.key("test")
        await odd.astart()
        try:
            await second.call("anvil_mine", "0x10")
            await other.call("anvil_mine", "0x12")  # so far that it is asked, not so far that the first one lags
            paying = asyncio.create_task(second.settle(stage.session, second.payment(), service=odd))
            await stage.until_firing("RpcDisagreement")
            await asyncio.gather(paying, return_exceptions=True)
        finally:
            await odd.aterminate()


async def runbooks_to_the_letter(stage: Stage) -> None:
    """What the alerts' sections tell to run does run: statements, queries and commands, each as it stands there."""
    text = (RULES.parents[3] / "docs" / "operations.md").read_text("utf-8").partition("\n## Alerts\n")[2].partition("\n## ")[0]
    spans = sorted({" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)})
    wrong = []
    connection = await asyncpg.connect(stage.house.database_url)
    try:
        for sql in (span for span in spans if re.match(r"(select|update) .* (from|set) ", span)):
            try:
                await connection.execute(f"explain {sql.replace('= …', '= 1')}")
            except asyncpg.PostgresError as error:
                wrong.append(f"{sql}: {error}")
    finally:
        await connection.close()
    for query in (span for span in spans if "facilitator_" in span and "(" in span):
        async with stage.session.post(f"{stage.url}/api/v1/query", data={"query": query}) as response:
            if (answer := await response.json())["status"] != "success":
                wrong.append(f"{query}: {answer}")
    for command in {match[0] for span in spans if (match := re.match(r"facilitator [a-z]+( [a-z]+)?", span))}:
        try:
            await asyncio.to_thread(stage.service.command, *command.split()[1:], "--help")
        except ServeFailed as error:
            wrong.append(f"{command}: {error}")
    assert wrong == []


async def nobody_there(stage: Stage) -> None:
    await stage.service.aterminate()
    await stage.until_firing("TargetAbsent")


FAULTS: Final[tuple[Callable[[Stage], Awaitable[None]], ...]] = (
    no_blocks, money_that_moves_away, a_spent_gas_budget,
    too_many_connections, no_processor, no_fresh_rate, no_gas_money, a_reorganisation,
    an_altered_schema, an_altered_ledger, an_old_day, another_chain, an_old_list, an_endpoint_that_lies, a_locked_table,
    no_database, no_node, runbooks_to_the_letter, nobody_there,
)  # fmt: skip


async def test_every_alert_fires_for_its_fault(tmp_path: Path, tell: Tell) -> None:
    only = os.environ.get("FACILITATOR_FAULTS", "").split()
    failed = []
    async with staged(tmp_path) as stage:
        for fault in FAULTS:
            if only and fault.__name__ not in only:
                continue
            began = time.monotonic()
            try:
                await fault(stage)
            except AssertionError as error:
                failed.append(f"{fault.__name__}: {error}")
            print(f"{fault.__name__}: {time.monotonic() - began:.0f} s; {'; '.join(failed)}", flush=True)  # noqa: T201
    alerts = {rule["alert"] for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"] if "alert" in rule}
    times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in sorted(stage.fired.items()))
    tell(f"{len(stage.fired)} of {len(alerts)} alerts fired for their faults: {times}; not caused: {NOT_CAUSED}")
    assert failed == []
    assert only or set(stage.fired) == alerts - set(NOT_CAUSED)
