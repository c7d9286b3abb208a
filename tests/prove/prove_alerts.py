"""Every alert is caused, fires in a real Prometheus, is looked into and ended as its runbook says, and resolves there.

Each fault stays until a remedy ends it, or, where the remedy only goes round it (another provider, a higher bound), even longer.
`FACILITATOR_FAULTS` names the faults to cause, all by default. The table of docs/operations.md is what `test_…` tells.
"""

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import asyncpg
import yaml
from eth_abi.abi import encode
from eth_utils.crypto import keccak

from facilitator.store.migrate import migrate
from tests.fixtures.house import House, eventually
from tests.fixtures.service import ServeFailed
from tests.ops.watched import RULES
from tests.prove.alert_remedies import REMEDIES, explain_all
from tests.prove.alert_stage import LIFE_S, PAGE, PATIENCE_S, Stage, odd_service, quote, staged
from tests.prove.conftest import Tell

BALANCES_SLOT: Final = 9
"""Of balances in the storage of Circle's token."""
BRIEF_LIFE_S: Final = 20


@asynccontextmanager
async def no_relayer_key(stage: Stage) -> AsyncIterator[None]:
    """A replica dies while its payments wait for a block, and comes back without its relayer's key."""
    stage.life_s = BRIEF_LIFE_S
    await stage.house.call("evm_setIntervalMining", 0)
    await stage.house.pooled()
    await stage.service.akill()
    await stage.house.mine_every_second()
    keys, stage.house.relayers = stage.house.relayers, []
    await stage.restart()
    stage.house.relayers = keys
    yield
    stage.life_s = LIFE_S


@asynccontextmanager
async def too_few_relayers(stage: Stage) -> AsyncIterator[None]:
    """More payments than the relayers' slots carry in blocks of 5 s"""
    await stage.house.call("evm_setIntervalMining", 5)
    yield
    await stage.house.mine_every_second()


@asynccontextmanager
async def money_that_moves_away(stage: Stage) -> AsyncIterator[None]:
    """Payments are good when they are signed, and the payer's money is gone when they are mined"""
    house, payer = stage.house, stage.house.payment().payer
    balance_at = "0x" + keccak(encode(["address", "uint256"], [payer, BALANCES_SLOT])).hex()

    async def spoil() -> None:
        while True:
            await house.pooled()
            await house.call("anvil_setStorageAt", house.token.asset, balance_at, "0x" + "00" * 32)
            await eventually(lambda: _decided(stage), "an end of what was signed", timeout_s=PATIENCE_S, poll_s=1.0)
            await house.token.fund([payer], amount_atomic=10**9)

    await house.call("evm_setIntervalMining", 0)
    spoiling = asyncio.create_task(spoil())
    try:
        await stage.until_firing("GasWasteHigh")
        await stage.command("facilitator tenants set test --strikes-max 1")
        yield
    finally:
        spoiling.cancel()
        await asyncio.gather(spoiling, return_exceptions=True)
        await house.token.fund([payer], amount_atomic=10**12)
        await house.mine_every_second()
        await stage.command("facilitator tenants enable test")
        await stage.command("facilitator tenants set test --strikes-max none")


async def _decided(stage: Stage) -> bool:
    """Mine a block: is nothing open any more? While the payer has no money, nothing new is signed."""
    await stage.house.mine()
    return not await stage.fetch("select 1 from settlement where state = 'submitted'")


@asynccontextmanager
async def a_spent_gas_budget(stage: Stage) -> AsyncIterator[None]:
    """A tenant's gas budget suffices for a few payments, and then not for one more"""
    await stage.until_paid()
    await eventually(lambda: stage.shows("facilitator_payment_cost_wei > 0"), "a cost", timeout_s=PATIENCE_S, poll_s=0.3)
    [cost] = await stage.query("max(facilitator_payment_cost_wei)")
    await stage.command(f"facilitator tenants set test --gas-wei-per-day {2 * int(float(cost['value'][1]))}")
    yield
    await stage.command("facilitator tenants set test --gas-wei-per-day none")


@asynccontextmanager
async def too_many_connections(stage: Stage) -> AsyncIterator[None]:
    """120 callers at once, where 60 connections are allowed"""
    await stage.throng()
    yield
    await stage.throng()
    assert await stage.query("facilitator_http_connections_refused_total > 0") == [], "the same throng has room now"
    await stage.restart()


@asynccontextmanager
async def no_processor(stage: Stage) -> AsyncIterator[None]:
    """The process has the processor for a twentieth of the time (stopped and continued, as a CPU limit does)"""

    async def starve() -> None:
        while True:
            for number, seconds in ((signal.SIGSTOP, 3.0), (signal.SIGCONT, 0.15)):
                stage.service.send_signal(number)
                await asyncio.sleep(seconds)

    starving = asyncio.create_task(starve())

    async def end() -> None:
        starving.cancel()
        stage.service.send_signal(signal.SIGCONT)

    stage.end_cause = end
    try:
        yield
    finally:
        await end()


@asynccontextmanager
async def no_fresh_rate(stage: Stage) -> AsyncIterator[None]:
    """Whoever writes the rate file stopped four hours ago"""
    quote(stage.directory / "rate.json", datetime.now(UTC) - timedelta(hours=4))
    yield


@asynccontextmanager
async def no_gas_money(stage: Stage) -> AsyncIterator[None]:
    """The relayers' coins are gone"""
    await stage.gas_money(0)
    yield


@asynccontextmanager
async def a_reorganisation(stage: Stage) -> AsyncIterator[None]:
    """Two blocks with payments leave the chain"""
    await stage.until_paid()
    await stage.house.call("anvil_reorg", 2, [])
    yield


@asynccontextmanager
async def an_altered_schema(stage: Stage) -> AsyncIterator[None]:
    """Somebody renamed the table that a loop writes to"""
    await stage.fetch("alter table rate rename to gone")
    quote(stage.directory / "rate.json", datetime.now(UTC))
    yield


@asynccontextmanager
async def an_altered_ledger(stage: Stage) -> AsyncIterator[None]:
    """The amount of a payment two hours old was changed in the ledger"""
    await explain_all(stage)
    await stage.until_resolved("LedgerChainMismatch")
    await stage.until_paid()
    [newest] = await stage.fetch(
        "select settlement_id from settlement where state in ('included', 'safe', 'finalized') order by block_number desc limit 1"
    )
    await stage.fetch(
        "update settlement set amount_atomic = amount_atomic + 1, queued_at = now() - interval '3 hours',"
        " resolved_at = now() - interval '2 hours' where settlement_id = $1",
        newest["settlement_id"],
    )
    await stage.fetch("truncate settled_slice cascade")  # as if it had been settled then
    await stage.until_firing("LedgerChainMismatch")
    await stage.fetch("update reconciliation_run set ran_at = ran_at - interval '2 hours'")  # the look was two hours ago, too
    yield


@asynccontextmanager
async def an_old_day(stage: Stage) -> AsyncIterator[None]:
    """Nobody has closed the book day of three days ago"""
    [entry] = await stage.fetch(
        "insert into journal_entry (book, phase, debit, credit, asset, amount_atomic, happened_at)"
        " values ('own', 'pending', 'receivable:a', 'fee_income:a', 'USD', 5, now() - interval '3 days') returning entry_id"
    )
    await stage.fetch(
        "insert into journal_entry (book, phase, debit, credit, asset, amount_atomic, happened_at, resolves)"
        " values ('own', 'posted', 'receivable:a', 'fee_income:a', 'USD', 5, now() - interval '3 days', $1)",
        entry["entry_id"],
    )
    yield


@asynccontextmanager
async def another_chain(stage: Stage) -> AsyncIterator[None]:
    """A replica is configured for Base, and its URL leads to another chain"""
    async with odd_service(stage, {"network": {"plain_keys": True}}, network="eip155:8453"):
        yield


@asynccontextmanager
async def an_old_list(stage: Stage) -> AsyncIterator[None]:
    """The job that fetches the sanctions list does not run"""
    listed = stage.directory / "listed.txt"
    listed.write_text("0x" + "11" * 20 + "\n")
    os.utime(listed, (time.time() - 90, time.time() - 90))
    async with odd_service(stage, _screened(listed, list_age_max_s=100.0)):
        yield


@asynccontextmanager
async def a_file_system_that_hangs(stage: Stage) -> AsyncIterator[None]:
    """The sanctions list cannot be opened: its file system does not answer (a named pipe that nobody writes to)"""
    listed, hung = stage.directory / "listed.txt", stage.directory / "hung"
    listed.write_text("0x" + "11" * 20 + "\n")
    async with odd_service(stage, _screened(listed)):
        os.mkfifo(hung)
        hung.rename(listed)
        yield


def _screened(listed: Path, **settings: Any) -> Mapping[str, Mapping[str, Any]]:
    return {"screening": {"list_file": str(listed), "known_listed": "0x" + "11" * 20, "reload_s": 1.0, **settings}}


@asynccontextmanager
async def an_endpoint_that_lies(stage: Stage) -> AsyncIterator[None]:
    """A second endpoint of the same height knows of no payment (it is another chain with the same id)"""
    database_url = await stage.database.create_database("witnesses")
    await migrate(database_url)
    async with (
        House.open(stage.directory / "second", database_url) as second,
        House.open(stage.directory / "other", database_url) as other,
    ):
        witnesses = {"settlement": {"receipt_witnesses": 2}, "network": {"rpc_urls": [second.rpc_url, other.rpc_url]}}
        async with odd_service(stage, witnesses, house=second) as odd:
            second.services.append(odd)
            await second.key("test")
            await second.call("anvil_mine", "0x10")
            await other.call("anvil_mine", "0x12")  # so far that it is asked, not so far that the first one lags
            payment = second.payment()
            paying = asyncio.create_task(second.settle(stage.session, payment, service=odd))
            yield
            await asyncio.gather(paying, return_exceptions=True)
            assert (await second.settle(stage.session, payment, service=stage.odd)).word in {"success", "duplicate_settlement"}


@asynccontextmanager
async def a_locked_table(stage: Stage) -> AsyncIterator[None]:
    """Somebody holds a lock on the settlements, and does nothing"""
    connection = await asyncpg.connect(stage.house.database_url)
    try:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("lock table settlement in access exclusive mode")
        yield
    finally:
        await connection.close(timeout=5)


@asynccontextmanager
async def no_database(stage: Stage) -> AsyncIterator[None]:
    """PostgreSQL is stopped"""
    await stage.database.stop()
    yield


@asynccontextmanager
async def a_failing_provider(stage: Stage) -> AsyncIterator[None]:
    """The first of two providers answers no request"""
    stage.provider.well = True
    await stage.restart({"network": {"rpc_urls": [stage.provider.url, stage.house.rpc_url]}})
    stage.provider.break_down()
    yield
    await stage.restart()


@asynccontextmanager
async def no_provider(stage: Stage) -> AsyncIterator[None]:
    """The only provider answers no request"""
    stage.provider.well = True
    await stage.restart({"network": {"rpc_urls": [stage.provider.url]}})
    await stage.until_paid()
    stage.provider.break_down()
    yield


@asynccontextmanager
async def a_broken_configuration(stage: Stage) -> AsyncIterator[None]:
    """A table of the configuration is misspelt: no replica starts"""
    await stage.service.aterminate()
    path = stage.service.config_path
    path.write_text(path.read_text().replace("[settlement]", "[setlement]"))
    stage.service.spawn()
    yield


FAULTS: Final[Mapping[Callable[[Stage], AbstractAsyncContextManager[None]], tuple[str, ...]]] = {
    no_relayer_key: ("QueueOldestHigh", "SettlementPastDeadline"),
    too_few_relayers: ("QueueFilling", "SettleLatencyHigh", "SettleBudgetBurnFast", "SettleBudgetBurnSlow"),
    money_that_moves_away: ("GasWasteHigh", "TenantCoolingDown"),
    a_spent_gas_budget: ("GasBudgetExhausted",),
    too_many_connections: ("ConnectionsRefused",),
    no_processor: ("EventLoopLagging",),
    no_fresh_rate: ("RateStale",),
    no_gas_money: ("RelayerRunwayLow",),
    a_reorganisation: ("IncidentOpen", "ErrorLogged"),
    an_altered_schema: ("LoopCrashed",),
    an_altered_ledger: ("LedgerChainMismatch", "MatchedShareLow"),
    an_old_day: ("CloseOverdue",),
    another_chain: ("NetworkWithdrawn",),
    an_old_list: ("ScreeningListStale",),
    a_file_system_that_hangs: ("LoopStalled",),
    an_endpoint_that_lies: ("RpcDisagreement",),
    a_locked_table: ("DbPoolExhausted",),
    no_database: ("StoreUnreachable", "SealerStalled", "LoopFaulting"),
    a_failing_provider: ("RpcEndpointFailing",),
    no_provider: (
        "VerifyBudgetBurnFast", "VerifyBudgetBurnSlow", "VerifyLatencyHigh", "RpcAllDown", "RpcHeadStale", "ReconcilerStalled",
        "CanaryFailing", "FinalityStalled",
    ),
    a_broken_configuration: ("TargetAbsent",),
}  # fmt: skip
"""Each fault with the alerts that are waited for, looked into and ended."""


async def _to_the_letter(stage: Stage) -> None:
    """What the alerts' sections tell to run does run: statements, queries and commands, each as it stands there."""
    text = PAGE.read_text("utf-8").partition("\n## Alerts\n")[2].partition("\n## ")[0]
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


async def test_every_alert_fires_for_its_fault_and_ends_by_its_runbook(tmp_path: Path, tell: Tell) -> None:
    only = os.environ.get("FACILITATOR_FAULTS", "").split()
    failed, rows = [], []
    async with staged(tmp_path) as stage:
        for fault, alerts in FAULTS.items():
            if only and fault.__name__ not in only:
                continue
            try:
                await _caused_and_ended(stage, fault, alerts)
            except (AssertionError, ServeFailed) as error:
                failed.append(f"{fault.__name__}: {error}")
                await stage.recover()
            for alert in alerts:
                fired, resolved = (f"{times[alert]:.0f} s" if alert in times else "no" for times in (stage.fired, stage.resolved))
                rows.append(f"| {alert} | {fault.__doc__} | {REMEDIES[alert].__doc__} | {fired} | {resolved} |")
                print(rows[-1], flush=True)  # noqa: T201
            print(failed[-1:], flush=True)  # noqa: T201
        if not only:
            await _to_the_letter(stage)
    print((tmp_path / "looked.txt").read_text())  # noqa: T201
    alerts = {rule["alert"] for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"] if "alert" in rule}
    tell(f"{len(stage.fired)} of {len(alerts)} alerts fired, {len(stage.resolved)} ended:\n" + "\n".join(rows))
    assert failed == []
    assert set(REMEDIES) == alerts
    assert only or set(stage.fired) == set(stage.resolved) == alerts


async def _caused_and_ended(stage: Stage, fault: Callable[[Stage], AbstractAsyncContextManager[None]], alerts: tuple[str, ...]) -> None:
    """Cause it, see it, read the pages, do what they say, once each, and see its end while the fault itself may stay."""
    await stage.until_quiet(*alerts)
    async with fault(stage):
        await stage.until_firing(*alerts)
        for alert in alerts:
            await stage.look(alert)
        for remedy in dict.fromkeys(REMEDIES[alert] for alert in alerts):
            await remedy(stage)
            await stage.until_resolved(*(alert for alert in alerts if REMEDIES[alert] is remedy))
