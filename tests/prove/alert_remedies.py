"""What ends each alert: the steps of its section in docs/operations.md, taken from there. The first line of each is its row in the table.

Whatever a step needs (a statement, a command, the name of a setting) is read from the sections that the alert's own leads to;
a step that the page does not tell fails.
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from tests.fixtures.service import ServeFailed
from tests.prove.alert_stage import ETHER, PAGE, Runbook, Stage, Step, quote


async def start_with_the_key(stage: Stage) -> None:
    """`facilitator relayers list` shows no holder; a replica that has the key is started."""
    for alert in ("QueueOldestHigh", "SettlementPastDeadline"):
        told = await stage.command(Runbook(alert).says("facilitator relayers list"))
        assert "nobody" in told, told
    await stage.restart()


async def add_relayers(stage: Stage) -> None:
    """`facilitator relayers add`, four times"""
    for alert in ("QueueFilling", "SettleLatencyHigh", "SettleBudgetBurnFast", "SettleBudgetBurnSlow"):
        await stage.add_relayer(Runbook(alert))


async def disable_the_tenant(stage: Stage) -> None:
    """`facilitator tenants disable`, until its payers behave"""
    [worst, *_] = await stage.fetch(Runbook("GasWasteHigh").says("select payer"))
    assert worst["count"] > 0
    await stage.command(Runbook("GasWasteHigh").says("facilitator tenants disable", ID="test"))


async def forgive_strikes(stage: Stage) -> None:
    """`update strike set voided = true`"""
    runbook = Runbook("TenantCoolingDown")
    [worst, *_] = await stage.fetch(runbook.says("select payer", gap="test"))
    await stage.fetch(runbook.says("update strike", gap=worst["payer"]))


async def raise_the_budget(stage: Stage) -> None:
    """`facilitator tenants set --gas-wei-per-day`, higher"""
    await stage.command(Runbook("GasBudgetExhausted").says("facilitator tenants set", ID="test", WEI=str(ETHER)))


async def allow_connections(stage: Stage) -> None:
    """A higher `server.connections_max`"""
    table, _, name = Runbook("ConnectionsRefused").says("server.connections_max").partition(".")
    await stage.restart({table: {name: 1000}})


async def give_it_the_processor(stage: Stage) -> None:
    """No CPU limit any more"""
    await stage.end_cause()


async def write_the_rate(stage: Stage) -> None:
    """The rate file is written again"""
    Runbook("RateStale").says("networks[].rate_file")
    quote(stage.directory / "rate.json", datetime.now(UTC))


async def send_gas_money(stage: Stage) -> None:
    """Gas money is sent to each relayer"""
    await stage.gas_money(10 * ETHER)


async def close_incidents(stage: Stage) -> None:
    """Ledger and chain agree (`facilitator reconcile`); `update incident set closed_at = now()`"""
    runbook = Runbook("IncidentOpen")
    for incident in await stage.fetch(runbook.says("select * from incident")):
        await stage.fetch(runbook.says("update incident", gap=str(incident["incident_id"])))


async def do_what_the_event_says(stage: Stage) -> None:
    """What *Log events* says of the event"""
    table = PAGE.read_text("utf-8").partition("\n## Log events\n")[2].partition("\n## ")[0]
    told = {row["metric"]["event"] for row in await stage.query('facilitator_events_total{level="error"} > 0')}
    assert told, "the alert names an event"
    assert all(f"| `{event}` |" in table for event in told), told


async def undo_the_change(stage: Stage) -> None:
    """The line `loop.failed` names the table; the change is undone"""
    assert re.search(r'"event": ?"loop.failed".*relation .{0,3}rate', stage.service.logs) or "rate" in stage.service.logs
    await stage.fetch("alter table gone rename to rate")


async def explain_all(stage: Stage) -> None:
    """`facilitator discrepancies list`, then `explain` with what was found"""
    runbook = Runbook("LedgerChainMismatch")
    told = await stage.command(f"{runbook.says('facilitator discrepancies list')} --json", may_fail=True)
    found = json.loads(next(line for line in told.splitlines() if line.startswith("[")))
    for each in found:
        number = str(each["id"])
        await stage.command(runbook.says("facilitator discrepancies explain", ID=number, NAME="ops", TEXT="'seen by us'"))


async def close_days(stage: Stage) -> None:
    """`facilitator close DAY` for each open day"""
    await explain_all(stage)
    runbook, today = Runbook("CloseOverdue"), datetime.now(UTC).date()
    for ago in (3, 2, 1):
        line = runbook.says("facilitator close DAY", DAY=str(today - timedelta(days=ago)))
        try:
            await stage.command(line)
        except ServeFailed as error:
            if "must have passed" not in str(error):  # of yesterday, in the first hour of a day
                raise


async def correct_the_network(stage: Stage) -> None:
    """`facilitator doctor` names the chain id; the network is corrected, restart"""
    told = await stage.command(Runbook("NetworkWithdrawn").says("facilitator doctor"), may_fail=True)
    assert "8453" in told
    assert "84532" in told
    await stage.restart_odd({})


async def replace_the_list(stage: Stage) -> None:
    """A fresh list is written beside the old one and renamed"""
    fresh = stage.directory / "fresh.txt"
    fresh.write_text("0x" + "11" * 20 + "\n")
    fresh.rename(stage.directory / "listed.txt")


async def mend_and_restart(stage: Stage) -> None:
    """The file system is mended; the process is killed and started"""
    assert "list" in Runbook("LoopStalled").text
    await replace_the_list(stage)
    assert stage.odd is not None
    await stage.odd.akill()
    await stage.odd.astart()


async def leave_the_liar_out(stage: Stage) -> None:
    """`facilitator doctor` shows the different blocks; the endpoint leaves `networks[].rpc_urls`, restart"""
    told = await stage.command(Runbook("RpcDisagreement").says("facilitator doctor"), may_fail=True)
    assert "they have different blocks" in told
    Runbook("RpcDisagreement").says("networks[].rpc_urls")
    await stage.restart_odd({"network": {"rpc_urls": [stage.odd_house.rpc_url]}})


async def end_whoever_blocks(stage: Stage) -> None:
    """Who blocks is asked of `pg_stat_activity`; `pg_terminate_backend`"""
    runbook = Runbook("DbPoolExhausted")
    blockers = await stage.fetch(runbook.says("select pid"))
    assert len(blockers) == 1, blockers
    await stage.fetch(runbook.says("select pg_terminate_backend", PID=str(blockers[0]["pid"])))


async def bring_the_database_back(stage: Stage) -> None:
    """The database is started again, nothing else"""
    assert "database" in await stage.command(Runbook("StoreUnreachable").says("facilitator doctor"), may_fail=True)
    await stage.database.start()


async def leave_the_provider_out(stage: Stage) -> None:
    """The provider leaves `networks[].rpc_urls`, restart"""
    Runbook("RpcEndpointFailing").says("networks[].rpc_urls")
    await stage.restart({"network": {"rpc_urls": [stage.house.rpc_url]}})


async def add_a_provider(stage: Stage) -> None:
    """Another provider first in `networks[].rpc_urls`, restart"""
    assert re.search(r"fail +eip155:84532 rpc 0", await stage.command(Runbook("RpcAllDown").says("facilitator doctor"), may_fail=True))
    Runbook("RpcAllDown").says("networks[].rpc_urls")
    await stage.restart({"network": {"rpc_urls": [stage.house.rpc_url, stage.provider.url]}})


async def correct_the_configuration(stage: Stage) -> None:
    """`facilitator config check` names the table; it is corrected, start"""
    told = await stage.command(Runbook("TargetAbsent").says("facilitator config check"), may_fail=True)
    assert "setlement" in told
    path = stage.service.config_path
    path.write_text(path.read_text().replace("[setlement]", "[settlement]"))
    await stage.service.astart()


REMEDIES: Final[Mapping[str, Step]] = {
    "TargetAbsent": correct_the_configuration,
    "VerifyBudgetBurnFast": add_a_provider,
    "VerifyBudgetBurnSlow": add_a_provider,
    "SettleBudgetBurnFast": add_relayers,
    "SettleBudgetBurnSlow": add_relayers,
    "VerifyLatencyHigh": add_a_provider,
    "SettleLatencyHigh": add_relayers,
    "SettlementPastDeadline": start_with_the_key,
    "QueueOldestHigh": start_with_the_key,
    "QueueFilling": add_relayers,
    "FinalityStalled": add_a_provider,
    "IncidentOpen": close_incidents,
    "RelayerRunwayLow": send_gas_money,
    "GasWasteHigh": disable_the_tenant,
    "CanaryFailing": add_a_provider,
    "GasBudgetExhausted": raise_the_budget,
    "TenantCoolingDown": forgive_strikes,
    "LedgerChainMismatch": explain_all,
    "MatchedShareLow": explain_all,
    "ReconcilerStalled": add_a_provider,
    "SealerStalled": bring_the_database_back,
    "CloseOverdue": close_days,
    "RateStale": write_the_rate,
    "ScreeningListStale": replace_the_list,
    "RpcDisagreement": leave_the_liar_out,
    "NetworkWithdrawn": correct_the_network,
    "RpcHeadStale": add_a_provider,
    "RpcAllDown": add_a_provider,
    "RpcEndpointFailing": leave_the_provider_out,
    "LoopStalled": mend_and_restart,
    "LoopFaulting": bring_the_database_back,
    "LoopCrashed": undo_the_change,
    "ErrorLogged": do_what_the_event_says,
    "EventLoopLagging": give_it_the_processor,
    "ConnectionsRefused": allow_connections,
    "StoreUnreachable": bring_the_database_back,
    "DbPoolExhausted": end_whoever_blocks,
}
