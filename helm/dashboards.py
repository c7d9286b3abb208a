"""Writes the Grafana dashboards of the chart: `python helm/dashboards.py`. A test holds the files equal to what this makes.

A panel is its title, unit, expressions and what a reader must know; where there is an alert for it, the threshold is the alert's
and the panel links to its runbook. `docs/operations.md` in links is replaced by the chart's value `runbooks.baseUrl`.
"""

# ruff: noqa: INP001 - a script beside the chart that it writes into

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

DIRECTORY: Final = Path(__file__).parent / "facilitator" / "dashboards"
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_RATE: Final = "[$__rate_interval]"
_NET: Final = 'network=~"$network"'
_WIDTH, _HEIGHT, _COLUMNS = 8, 8, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One picture. `expressions` are (PromQL, legend)."""

    title: str
    unit: str
    description: str
    expressions: tuple[tuple[str, str], ...]
    warn: float | None = None
    """Where yellow begins; red begins at `bad`. Below `warn` is bad when it is the larger one."""
    bad: float | None = None
    runbook: str | None = None
    """Name of the alert that watches this."""
    kind: str = "timeseries"


def _quantiles(histogram: str, selector: str, by: str = "", legend: str = "") -> tuple[tuple[str, str], ...]:
    grouping = f"le, {by}" if by else "le"
    quantiles = (0.95, 0.99) if by else (0.5, 0.95, 0.99)
    return tuple(
        (f"histogram_quantile({q}, sum by ({grouping}) (rate({histogram}_bucket{{{selector}}}{_RATE})))", f"p{q * 100:g} {legend}".strip())
        for q in quantiles
    )


def _share(counter: str, failing: str, by: str, selector: str = "") -> str:
    """Part of a counter's rate that matches `failing`: 0, not nothing, where none does."""
    every = f"sum by ({by}) (rate({counter}{{{selector}}}{_RATE}))"
    inner = f"{selector},{failing}" if selector else failing
    return f"(sum by ({by}) (rate({counter}{{{inner}}}{_RATE})) or 0 * {every}) / {every}"


SERVICE: Final = (
    Panel(
        title="Requests",
        unit="reqps",
        description="Requests answered, by route.",
        expressions=((f"sum by (route) (rate(facilitator_http_requests_total{_RATE}))", "{{route}}"),),
    ),
    Panel(
        title="Share of requests answered 5xx",
        unit="percentunit",
        description="503 says that the database, a chain or the queue cannot be used now; 500 is a bug of ours.",
        expressions=((_share("facilitator_http_requests_total", 'status=~"5.."', "route"), "{{route}}"),),
        warn=0.001,
        bad=0.0144,
        runbook="SettleBudgetBurnFast",
    ),
    Panel(
        title="Error budget spent (1 = as fast as it is given)",
        unit="short",
        description="Errors of the last hour (of five minutes, in a quiet one) over the objective's 0.1 %. 14.4 pages.",
        expressions=(
            ("(facilitator:verify_errors:ratio_rate1h or facilitator:verify_errors:ratio_rate5m) / 0.001", "/verify"),
            ("(facilitator:settle_errors:ratio_rate1h or facilitator:settle_errors:ratio_rate5m) / 0.001", "/settle"),
        ),
        warn=1,
        bad=14.4,
        runbook="SettleBudgetBurnSlow",
        kind="stat",
    ),
    Panel(
        title="Time of /verify",
        unit="s",
        description="Objective: 99 % within 0.5 s.",
        expressions=_quantiles("facilitator_http_request_duration_seconds", 'route="/verify"'),
        warn=0.25,
        bad=0.5,
        runbook="VerifyLatencyHigh",
    ),
    Panel(
        title="Time of /settle",
        unit="s",
        description="Until the answer, so with the wait for a block. Objective: 99 % within 8 s.",
        expressions=_quantiles("facilitator_http_request_duration_seconds", 'route="/settle"'),
        warn=4,
        bad=8,
        runbook="SettleLatencyHigh",
    ),
    Panel(
        title="In flight",
        unit="short",
        description="Requests being answered, by route, over all replicas.",
        expressions=(("sum by (route) (facilitator_http_in_flight_requests)", "{{route}}"),),
    ),
    Panel(
        title="Answers of /settle",
        unit="reqps",
        description="By reason word. `settlement_pending`: the caller's deadline came before the block.",
        expressions=((f"sum by (outcome) (rate(facilitator_settle_answers_total{_RATE}))", "{{outcome}}"),),
        runbook="SettleBudgetBurnFast",
    ),
    Panel(
        title="Verdicts of /verify",
        unit="reqps",
        description="`valid`, or the reason of the refusal.",
        expressions=((f"sum by (outcome) (rate(facilitator_verifications_total{{{_NET}}}{_RATE}))", "{{outcome}}"),),
    ),
    Panel(
        title="Connections, part of the bound",
        unit="percentunit",
        description="Of server.connections_max, by replica. At 100 % a further one takes the place of one that is silent or idle.",
        expressions=(("facilitator_http_connections / facilitator_http_connections_max", "{{pod}} {{instance}}"),),
        warn=0.7,
        bad=0.95,
        runbook="ConnectionsRefused",
    ),
    Panel(
        title="Event loop lag",
        unit="s",
        description="How late each replica's heartbeat was. Above 0.1 s it is short of CPU.",
        expressions=(("facilitator_event_loop_lag_seconds", "{{pod}} {{instance}}"),),
        warn=0.1,
        bad=0.25,
        runbook="EventLoopLagging",
    ),
    Panel(
        title="Age of the last good canary",
        unit="s",
        description="A payment of our own that was judged (verify) or made (settle).",
        expressions=(("time() - max by (network, path) (facilitator_canary_last_success_timestamp_seconds)", "{{network}} {{path}}"),),
        runbook="CanaryFailing",
    ),
    Panel(
        title="Log lines",
        unit="short",
        description="Lines a second, by level. An error asks for a person.",
        expressions=((f"sum by (level) (rate(facilitator_events_total{_RATE}))", "{{level}}"),),
        runbook="ErrorLogged",
    ),
    Panel(
        title="Replicas",
        unit="short",
        description="Processes by release.",
        expressions=(("count by (version, commit) (facilitator_build_info)", "{{version}} {{commit}}"),),
        runbook="TargetAbsent",
        kind="stat",
    ),
)

_OLDEST: Final = "facilitator_open_settlements_oldest_timestamp_seconds"
PIPELINE: Final = (
    Panel(
        title="Settlements",
        unit="ops",
        description="By the state in which they were resolved.",
        expressions=((f"sum by (outcome) (rate(facilitator_settlements_total{{{_NET}}}{_RATE}))", "{{outcome}}"),),
    ),
    Panel(
        title="Time by stage",
        unit="s",
        description="queue: until the write-ahead; record: signature and commit; inclusion: from recorded to resolved; total: /settle.",
        expressions=_quantiles(
            "facilitator_settle_duration_seconds", f'{_NET},stage=~"queue|sign|record|broadcast|inclusion|total"', "stage", "{{stage}}"
        ),
        warn=4,
        bad=8,
        runbook="SettleLatencyHigh",
    ),
    Panel(
        title="Open settlements",
        unit="short",
        description="Of the whole ledger: queued (nothing signed yet) and submitted (signed, not decided).",
        expressions=((f"max by (network, state) (facilitator_open_settlements{{{_NET}}})", "{{network}} {{state}}"),),
    ),
    Panel(
        title="Age of the oldest open settlement",
        unit="s",
        description="0 when nothing is open.",
        expressions=(
            (
                (
                    f'max by (network, state) ((time() - {_OLDEST}{{{_NET},state=~"queued|submitted"}})'
                    f' * ({_OLDEST}{{{_NET},state=~"queued|submitted"}} > bool 0))'
                ),
                "{{network}} {{state}}",
            ),
        ),
        warn=30,
        bad=120,
        runbook="QueueOldestHigh",
    ),
    Panel(
        title="Open past validBefore",
        unit="short",
        description="Settlements that can no longer be paid and are not ruled on yet. Must be 0.",
        expressions=((f"max by (network) (facilitator_past_deadline_settlements{{{_NET}}})", "{{network}}"),),
        warn=1,
        bad=1,
        runbook="SettlementPastDeadline",
        kind="stat",
    ),
    Panel(
        title="Queue, part of the bound",
        unit="percentunit",
        description="Payments of a replica that wait to be recorded, of settlement.queue_max. At 100 % /settle answers 503.",
        expressions=((f"facilitator_queue_depth{{{_NET}}} / facilitator_queue_limit{{{_NET}}}", "{{pod}} {{network}}"),),
        warn=0.5,
        bad=0.8,
        runbook="QueueFilling",
    ),
    Panel(
        title="Transactions in flight",
        unit="short",
        description="By relayer; the bound is settlement.slots_max.",
        expressions=((f"max by (network, relayer) (facilitator_relayer_open_slots{{{_NET}}})", "{{network}} {{relayer}}"),),
    ),
    Panel(
        title="Age of the oldest unfinal payment",
        unit="s",
        description="Included, but its block is not finalized yet. 0 when there is none.",
        expressions=(
            (
                f'max by (network) ((time() - {_OLDEST}{{{_NET},state="unfinal"}}) * ({_OLDEST}{{{_NET},state="unfinal"}} > bool 0))',
                "{{network}}",
            ),
        ),
        warn=1800,
        bad=3600,
        runbook="FinalityStalled",
    ),
    Panel(
        title="Time to finality",
        unit="s",
        description="From a block's time until it is seen finalized.",
        expressions=_quantiles("facilitator_settle_duration_seconds", f'{_NET},stage="finality"'),
        runbook="FinalityStalled",
    ),
    Panel(
        title="Age of loop heartbeats",
        unit="s",
        description="Since each loop last began a round, the slowest replica.",
        expressions=(("max by (loop, network) (time() - facilitator_loop_heartbeat_timestamp_seconds)", "{{loop}} {{network}}"),),
        warn=60,
        bad=120,
        runbook="LoopStalled",
    ),
    Panel(
        title="Transactions outbid or refused",
        unit="ops",
        description="Log lines transaction.outbid, transaction.send_refused and transaction.send_in_doubt.",
        expressions=((f'sum by (event) (rate(facilitator_events_total{{event=~"transaction[.].*"}}{_RATE})) or vector(0)', "{{event}}"),),
        runbook="SettleLatencyHigh",
    ),
    Panel(
        title="Successes whose caller was gone",
        unit="ops",
        description="The next caller with the same payment may hear it.",
        expressions=((f"sum(rate(facilitator_undelivered_answers_total{_RATE}))", "undelivered"),),
    ),
)

_GAS: Final = "facilitator_gas_spent_wei_total"
MONEY: Final = (
    Panel(
        title="Value settled",
        unit="short",
        description="A second, by asset, in millions of atomic units: whole coins for tokens of six decimals, as USDC is.",
        expressions=(
            (f"sum by (network, asset) (rate(facilitator_settled_value_atomic_total{{{_NET}}}{_RATE})) / 1e6", "{{network}} {{asset}}"),
        ),
    ),
    Panel(
        title="Value settled in the time shown",
        unit="short",
        description="In millions of atomic units: whole coins for tokens of six decimals.",
        expressions=(
            (
                f"sum by (network, asset) (increase(facilitator_settled_value_atomic_total{{{_NET}}}[$__range])) / 1e6",
                "{{network}} {{asset}}",
            ),
        ),
        kind="stat",
    ),
    Panel(
        title="Payments made in the time shown",
        unit="short",
        description="Settlements resolved as included.",
        expressions=(
            (f'sum by (network) (increase(facilitator_settlements_total{{{_NET},outcome="included"}}[$__range]))', "{{network}}"),
        ),
        kind="stat",
    ),
    Panel(
        title="Gas money spent",
        unit="short",
        description="Coins of the chain (10^18 wei) an hour, L1 fee included, by what it bought.",
        expressions=((f"sum by (network, outcome) (rate({_GAS}{{{_NET}}}{_RATE})) * 3600 / 1e18", "{{network}} {{outcome}}"),),
    ),
    Panel(
        title="Share of gas money wasted",
        unit="percentunit",
        description="Spent on transactions that made no payment.",
        expressions=((_share(_GAS, 'outcome="wasted"', "network", _NET), "{{network}}"),),
        warn=0.02,
        bad=0.05,
        runbook="GasWasteHigh",
    ),
    Panel(
        title="Gas money for one payment",
        unit="short",
        description="In gwei (10^9 wei), L1 fee and waste included.",
        expressions=(
            (
                (
                    f"sum by (network) (rate({_GAS}{{{_NET}}}{_RATE})) / 1e9"
                    f' / sum by (network) (rate(facilitator_settlements_total{{{_NET},outcome="included"}}{_RATE}))'
                ),
                "{{network}}",
            ),
        ),
    ),
    Panel(
        title="Relayers' gas money",
        unit="short",
        description="Coins of the chain (10^18 wei).",
        expressions=((f"min by (network, relayer) (facilitator_relayer_balance_wei{{{_NET}}}) / 1e18", "{{network}} {{relayer}}"),),
        runbook="RelayerRunwayLow",
    ),
    Panel(
        title="Relayers' runway",
        unit="s",
        description="How long the gas money lasts at the rate of the last hour.",
        expressions=(
            (
                (
                    f"min by (network, relayer) (facilitator_relayer_balance_wei{{{_NET}}})"
                    f" / sum by (network, relayer) (rate({_GAS}{{{_NET}}}[1h]))"
                ),
                "{{network}} {{relayer}}",
            ),
        ),
        warn=86400,
        bad=21600,
        runbook="RelayerRunwayLow",
    ),
    Panel(
        title="Open incidents",
        unit="short",
        description="What ended otherwise than an answer of ours said, or a relayer key used elsewhere. Must be 0.",
        expressions=(("max by (network, kind) (facilitator_open_incidents) or vector(0)", "{{network}} {{kind}}"),),
        warn=1,
        bad=1,
        runbook="IncidentOpen",
        kind="stat",
    ),
    Panel(
        title="Discrepancies of books and chain",
        unit="short",
        description="That nobody has explained, by class. Must be 0.",
        expressions=((f"max by (network, class) (facilitator_discrepancies_open{{{_NET}}})", "{{network}} {{class}}"),),
        warn=1,
        bad=1,
        runbook="LedgerChainMismatch",
        kind="stat",
    ),
    Panel(
        title="Share of value matched to the chain within an hour",
        unit="percentunit",
        description="Of the day that ended an hour ago.",
        expressions=((f"min by (network, asset) (facilitator_matched_share{{{_NET}}})", "{{network}} {{asset}}"),),
        warn=1,
        bad=0.999,
        runbook="MatchedShareLow",
        kind="stat",
    ),
    Panel(
        title="Age of the last reconciliation",
        unit="s",
        description="Since any replica last held the ledger against the chain to the end.",
        expressions=((f"time() - max by (network) (facilitator_reconcile_last_success_timestamp_seconds{{{_NET}}})", "{{network}}"),),
        warn=900,
        bad=1800,
        runbook="ReconcilerStalled",
    ),
    Panel(
        title="Age of the last round of sealing",
        unit="s",
        description="Since any replica last sealed all that was booked.",
        expressions=(("time() - max(facilitator_seal_last_success_timestamp_seconds)", "seal"),),
        warn=120,
        bad=600,
        runbook="SealerStalled",
    ),
    Panel(
        title="Gas budgets spent",
        unit="short",
        description="Tenants that are refused until midnight UTC, or for want of a dollar rate.",
        expressions=(("max(facilitator_gas_budgets_exhausted)", "tenants"),),
        runbook="GasBudgetExhausted",
    ),
    Panel(
        title="Payers and tenants at rest",
        unit="short",
        description="After payments that cost gas and paid nobody.",
        expressions=(("max by (who) (facilitator_cooling_down)", "{{who}}"),),
        runbook="TenantCoolingDown",
    ),
    Panel(
        title="How long the oldest book day has waited for its close",
        unit="s",
        description="0 while none can be closed.",
        expressions=(
            (
                "(time() - max(facilitator_close_due_timestamp_seconds)) * (max(facilitator_close_due_timestamp_seconds) > bool 0)",
                "day",
            ),
        ),
        runbook="CloseOverdue",
    ),
    Panel(
        title="Looks at sanctions lists",
        unit="ops",
        description="By what they said; several looks for each payment. None where nobody is screened.",
        expressions=((f"sum by (decision) (rate(facilitator_screening_decisions_total{{{_NET}}}{_RATE}))", "{{decision}}"),),
    ),
    Panel(
        title="Share of its life that the sanctions list has used",
        unit="percentunit",
        description="The oldest list file in use by a replica. At 100 % payments are refused, but for tenants that accept that.",
        expressions=(
            (
                "max((time() - facilitator_screening_list_timestamp_seconds) / (facilitator_screening_list_age_max_seconds > 0))",
                "list",
            ),
        ),
        warn=0.5,
        bad=0.75,
        runbook="ScreeningListStale",
    ),
)

DEPENDENCIES: Final = (
    Panel(
        title="Requests to RPC endpoints",
        unit="reqps",
        description="By endpoint. What they cost is the provider's count of calls, of which a batch holds several.",
        expressions=((f"sum by (network, endpoint) (rate(facilitator_rpc_requests_total{{{_NET}}}{_RATE}))", "{{network}} {{endpoint}}"),),
    ),
    Panel(
        title="Outcomes of RPC requests",
        unit="reqps",
        description="`ok`, the node's error, or what went wrong on the way.",
        expressions=((f"sum by (endpoint, outcome) (rate(facilitator_rpc_requests_total{{{_NET}}}{_RATE}))", "{{endpoint}} {{outcome}}"),),
        runbook="RpcEndpointFailing",
    ),
    Panel(
        title="Time of RPC requests",
        unit="s",
        description="By endpoint.",
        expressions=_quantiles("facilitator_rpc_duration_seconds", _NET, "endpoint", "{{endpoint}}"),
        warn=0.5,
        bad=2,
        runbook="RpcEndpointFailing",
    ),
    Panel(
        title="Age of the newest block",
        unit="s",
        description="Wall time less the timestamp of the newest block that any replica saw.",
        expressions=((f"min by (network) (facilitator_head_age_seconds{{{_NET}}})", "{{network}}"),),
        warn=30,
        bad=60,
        runbook="RpcHeadStale",
    ),
    Panel(
        title="Newest block",
        unit="none",
        description="By replica: a line that stays behind is a replica whose endpoints lag.",
        expressions=((f"facilitator_head_block{{{_NET}}}", "{{network}} {{pod}} {{instance}}"),),
        runbook="RpcHeadStale",
    ),
    Panel(
        title="Networks served",
        unit="bool_yes_no",
        description="Whether chain and configuration agree, in every replica.",
        expressions=((f"min by (network) (facilitator_network_served{{{_NET}}})", "{{network}}"),),
        warn=1,
        bad=0,
        runbook="NetworkWithdrawn",
        kind="stat",
    ),
    Panel(
        title="Time of SQL statements",
        unit="s",
        description="By statement; `acquire` is the wait for a connection.",
        expressions=_quantiles("facilitator_database_duration_seconds", "", "query", "{{query}}"),
        warn=0.05,
        bad=0.5,
        runbook="DbPoolExhausted",
    ),
    Panel(
        title="SQL statements",
        unit="ops",
        description="By statement.",
        expressions=((f"sum by (query) (rate(facilitator_database_duration_seconds_count{_RATE}))", "{{query}}"),),
    ),
    Panel(
        title="Connections of the pool, part of the bound",
        unit="percentunit",
        description="Busy ones, of database.connections_max, by replica.",
        expressions=(
            (
                'facilitator_database_connections{state="busy"} / ignoring (state) facilitator_database_connections_max',
                "{{pod}} {{instance}}",
            ),
        ),
        warn=0.7,
        bad=0.95,
        runbook="DbPoolExhausted",
    ),
    Panel(
        title="Verifications without the database",
        unit="reqps",
        description="Answered without the look at our own record, because the database was away. Must be 0.",
        expressions=((f"sum(rate(facilitator_verifications_without_record_total{_RATE}))", "verifications"),),
        runbook="StoreUnreachable",
    ),
    Panel(
        title="Facts that endpoints tell differently",
        unit="ops",
        description="Nothing is decided on them.",
        expressions=(
            (f"sum by (network, fact) (rate(facilitator_rpc_disagreements_total{{{_NET}}}{_RATE})) or vector(0)", "{{network}} {{fact}}"),
        ),
        runbook="RpcDisagreement",
    ),
)

BOARDS: Final = {
    "service": ("Facilitator / Service", SERVICE),
    "settlement-pipeline": ("Facilitator / Settlement pipeline", PIPELINE),
    "money": ("Facilitator / Money", MONEY),
    "dependencies": ("Facilitator / Dependencies", DEPENDENCIES),
}


def _thresholds(panel: Panel) -> dict[str, Any]:
    if panel.warn is None or panel.bad is None:
        return {"mode": "absolute", "steps": [{"color": "green", "value": None}]}
    if panel.bad < panel.warn:
        ordered: list[tuple[str, float | None]] = [("red", None), ("yellow", panel.bad), ("green", panel.warn)]
    else:
        ordered = [("green", None), ("yellow", panel.warn), ("red", panel.bad)]
    steps = [{"color": color, "value": value} for color, value in ordered]
    return {"mode": "absolute", "steps": [steps[0], steps[2]] if panel.bad == panel.warn else steps}


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    lined = panel.kind == "timeseries" and panel.bad is not None
    shown: dict[str, Any] = {
        "id": number + 1,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "gridPos": {"x": number % _COLUMNS * _WIDTH, "y": number // _COLUMNS * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "links": [],
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0,
                "thresholds": _thresholds(panel),
                "custom": {"fillOpacity": 10, "thresholdsStyle": {"mode": "line" if lined else "off"}}
                if panel.kind == "timeseries"
                else {},
            },
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}
        if panel.kind == "timeseries"
        else {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "area"},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": _SOURCE, "expr": expression, "legendFormat": legend}
            for index, (expression, legend) in enumerate(panel.expressions)
        ],
    }
    if panel.runbook is not None:
        shown["links"] = [{"title": panel.runbook, "url": f"docs/operations.md#{panel.runbook.lower()}", "targetBlank": True}]
    return shown


def board(name: str) -> str:
    """One dashboard as JSON text."""
    title, panels = BOARDS[name]
    shown = {
        "uid": f"facilitator-{name}",
        "title": title,
        "tags": ["facilitator"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "utc",
        "links": [
            {
                "type": "dashboards",
                "title": "Facilitator",
                "tags": ["facilitator"],
                "asDropdown": True,
                "keepTime": True,
                "includeVars": True,
            }
        ],
        "annotations": {"list": []},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
                {
                    "name": "network",
                    "type": "query",
                    "label": "Network",
                    "datasource": _SOURCE,
                    "query": {"query": "label_values(facilitator_queue_limit, network)", "refId": "networks"},
                    "refresh": 2,
                    "multi": True,
                    "includeAll": True,
                    "allValue": ".*",
                    "current": {"text": ["All"], "value": ["$__all"]},
                },
            ]
        },
        "panels": [_panel(number, panel) for number, panel in enumerate(panels)],
    }
    return json.dumps(shown, indent=2) + "\n"


def generated() -> dict[Path, str]:
    """Every file and what must stand in it."""
    return {DIRECTORY / f"{name}.json": board(name) for name in BOARDS}


if __name__ == "__main__":
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for path, text in generated().items():
        path.write_text(text, "utf-8")
        sys.stdout.write(f"wrote {path.name}\n")
