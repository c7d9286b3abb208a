"""What each alert is shown: series that fire it, series that do not, no traffic, and a restart that sets counters back.

Values are promtool's notation, a sample a step from minute 0: `0+60x10` grows by 60 ten times, `_x5` is no sample. Each
case is judged at its minute, past every `for`. Restarts show a counter that falls, or a gauge that begins anew.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

Series = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Shown:
    """One alert's four cases."""

    firing: Series
    silent: Series
    idle: Series
    """No traffic: counters stand still, gauges say that there is nothing, or there is no series at all."""
    restarted: Series
    minute: int = 30
    step_minutes: int = 1
    """Time between samples, and between evaluations."""


NET: Final = 'network="eip155:8453"'
POD: Final = 'instance="10.0.0.1:9464"'
RELAYER: Final = f'{NET},relayer="0x1"'


def _requests(route: str, served: str, failed: str, pending: str | None = None) -> Series:
    found = {
        f'facilitator_http_requests_total{{route="{route}",status="200"}}': served,
        f'facilitator_http_requests_total{{route="{route}",status="503"}}': failed,
    }
    return found if pending is None else {**found, 'facilitator_settle_answers_total{outcome="settlement_pending"}': pending}


def _burn_fast(route: str) -> Shown:
    return Shown(
        firing=_requests(route, "0+60x120", "0+3x120"),
        silent=_requests(route, "0+60x120", "0+0.3x120"),
        idle=_requests(route, "9000x120", "900x120"),
        restarted=_requests(route, "0+60x60 0+60x60", "500x60 0x60"),
        minute=100,
    )


def _burn_slow(route: str) -> Shown:
    return Shown(
        firing=_requests(route, "0+1800x160", "0+3.6x160"),
        silent=_requests(route, "0+1800x160", "0+0.9x160"),
        idle=_requests(route, "9000x160", "900x160"),
        restarted=_requests(route, "0+1800x80 0+1800x80", "500x80 0x80"),
        minute=4500,
        step_minutes=30,
    )


def _latency(route: str, bound: str) -> Shown:
    def answered(in_time: str, every: str) -> Series:
        return {
            f'facilitator_http_request_duration_seconds_bucket{{route="{route}",le="{bound}"}}': in_time,
            f'facilitator_http_request_duration_seconds_count{{route="{route}"}}': every,
        }

    return Shown(
        firing=answered("0+50x60", "0+60x60"),
        silent=answered("0+60x60", "0+60x60"),
        idle=answered("50x60", "600x60"),
        restarted=answered("0+60x15 0+60x45", "0+60x15 0+60x45"),
    )


def _gauge(name: str, labels: str, fires: str, *, silent: str = "0x60", restarted: str = "0x10 _x10 0x40", minute: int = 30) -> Shown:
    series = f"{name}{{{labels}}}"
    return Shown(firing={series: fires}, silent={series: silent}, idle={}, restarted={series: restarted}, minute=minute)


def _counter(name: str, labels: str, fires: str = "0x20 1x40", minute: int = 25) -> Shown:
    """A counter of what must not happen: any increase fires."""
    series = f"{name}{{{labels}}}" if labels else name
    return Shown(firing={series: fires}, silent={series: "0x60"}, idle={series: "7x60"}, restarted={series: "7x20 0x40"}, minute=minute)


def _rpc(ok: str, failed: str, endpoint: str = "one:443") -> Series:
    labels = f'{NET},endpoint="{endpoint}",method="eth_call"'
    return {
        f'facilitator_rpc_requests_total{{{labels},outcome="ok"}}': ok,
        f'facilitator_rpc_requests_total{{{labels},outcome="timeout"}}': failed,
    }


def _gas(settled: str, wasted: str) -> Series:
    return {
        f'facilitator_gas_spent_wei_total{{{RELAYER},outcome="settled"}}': settled,
        f'facilitator_gas_spent_wei_total{{{RELAYER},outcome="wasted"}}': wasted,
    }


def _balance(values: str) -> Series:
    return {f"facilitator_relayer_balance_wei{{{RELAYER}}}": values}


def _pool(busy: str) -> Series:
    return {
        f'facilitator_database_connections{{{POD},state="busy"}}': busy,
        f"facilitator_database_connections_max{{{POD}}}": "10x60",
    }


def _list(written: str, most_s: str = "1200x60") -> Series:
    return {
        f"facilitator_screening_list_timestamp_seconds{{{POD}}}": written,
        f"facilitator_screening_list_age_max_seconds{{{POD}}}": most_s,
    }


_OLDEST: Final = "facilitator_open_settlements_oldest_timestamp_seconds"
_EVENTS: Final = "facilitator_events_total"
_CLOSE_DUE: Final = f"facilitator_close_due_timestamp_seconds{{{POD}}}"
_CANARY_AT: Final = f'facilitator_canary_last_success_timestamp_seconds{{{NET},path="verify"}}'
_CANARY_INTERVAL: Final = f'facilitator_canary_interval_seconds{{{NET},path="verify"}}'

SHOWN: Final[Mapping[str, Shown]] = {
    "VerifyBudgetBurnFast": _burn_fast("/verify"),
    "VerifyBudgetBurnSlow": _burn_slow("/verify"),
    "SettleBudgetBurnFast": _burn_fast("/settle"),
    "SettleBudgetBurnSlow": _burn_slow("/settle"),
    "VerifyLatencyHigh": _latency("/verify", "0.5"),
    "SettleLatencyHigh": _latency("/settle", "8.0"),
    "SettlementPastDeadline": _gauge("facilitator_past_deadline_settlements", NET, "0x10 1x50"),
    "QueueOldestHigh": _gauge(_OLDEST, f'{NET},state="queued"', "1200x60", silent="0+60x60", restarted="0+60x10 _x10 1200+60x40"),
    "QueueFilling": Shown(
        firing={f"facilitator_queue_depth{{{NET}}}": "1900x60", f"facilitator_queue_limit{{{NET}}}": "2000x60"},
        silent={f"facilitator_queue_depth{{{NET}}}": "100x60", f"facilitator_queue_limit{{{NET}}}": "2000x60"},
        idle={f"facilitator_queue_depth{{{NET}}}": "0x60", f"facilitator_queue_limit{{{NET}}}": "0x60"},
        restarted={f"facilitator_queue_depth{{{NET}}}": "1900x10 0x50", f"facilitator_queue_limit{{{NET}}}": "2000x60"},
    ),
    "FinalityStalled": _gauge(
        _OLDEST, f'{NET},state="unfinal"', "60x120", silent="0+60x120", restarted="0+60x10 _x10 1200+60x100", minute=100
    ),
    "IncidentOpen": _gauge("facilitator_open_incidents", f'{NET},kind="reorganised"', "0x10 1x50"),
    "RelayerRunwayLow": Shown(
        firing={**_balance("1000000x120"), **_gas("0+6000x120", "0x120")},
        silent={**_balance("1000000x120"), **_gas("0+60x120", "0x120")},
        idle={**_balance("1000000x120"), **_gas("6000x120", "0x120")},
        restarted={**_balance("1000000x60 _x5 1000000x60"), **_gas("90000+60x60 _x5 0+60x60", "0x120")},
        minute=100,
    ),
    "GasWasteHigh": Shown(
        firing=_gas("0+1000x120", "0+100x120"),
        silent=_gas("0+1000x120", "0+10x120"),
        idle=_gas("1000x120", "1000x120"),
        restarted=_gas("0+1000x60 0+1000x60", "9000x60 0x60"),
        minute=100,
    ),
    "GasBudgetExhausted": _gauge("facilitator_gas_budgets_exhausted", POD, "1x60", restarted="1x10 _x10 0x40"),
    "TenantCoolingDown": _gauge("facilitator_cooling_down", f'{POD},who="tenant"', "0x10 1x50", restarted="1x10 _x10 0x40"),
    "LedgerChainMismatch": _gauge("facilitator_discrepancies_open", f'{NET},class="missing"', "0x10 2x50"),
    "MatchedShareLow": _gauge("facilitator_matched_share", f'{NET},asset="0x1"', "1x5 0.99x60", silent="1x60", restarted="1x10 _x10 1x40"),
    "ReconcilerStalled": _gauge(
        "facilitator_reconcile_last_success_timestamp_seconds",
        NET,
        "60x90",
        silent="0+60x90",
        restarted="0+60x10 _x10 1200+60x70",
        minute=60,
    ),
    "SealerStalled": _gauge(
        "facilitator_seal_last_success_timestamp_seconds", POD, "60x90", silent="0+60x90", restarted="0+60x10 _x10 1200+60x70"
    ),
    "CanaryFailing": Shown(
        firing={_CANARY_AT: "60x60", _CANARY_INTERVAL: "30x60"},
        silent={_CANARY_AT: "0+60x60", _CANARY_INTERVAL: "30x60"},
        idle={},
        restarted={_CANARY_AT: "0+60x20 0x2 1380+60x40", _CANARY_INTERVAL: "30x60"},
    ),
    "CloseOverdue": Shown(
        firing={_CLOSE_DUE: "60x100"},
        silent={_CLOSE_DUE: "0+1800x100"},
        idle={_CLOSE_DUE: "0x100"},
        restarted={_CLOSE_DUE: "60x20 _x2 72000x80"},
        minute=1800,
        step_minutes=30,
    ),
    "RateStale": _gauge(
        "facilitator_rate_timestamp_seconds", NET, "60x300", silent="0+60x300", restarted="0+60x10 _x10 1200+60x280", minute=250
    ),
    "ScreeningListStale": Shown(
        firing=_list("60x60"),
        silent=_list("0+60x60"),
        idle=_list("0x60", most_s="0x60"),
        restarted=_list("0+60x10 _x10 1200+60x40"),
    ),
    "RpcDisagreement": _counter("facilitator_rpc_disagreements_total", f'{NET},fact="receipt"', fires="_x20 1x40"),
    "NetworkWithdrawn": _gauge("facilitator_network_served", NET, "1x10 0x50", silent="1x60", restarted="1x10 _x10 1x40"),
    "RpcHeadStale": _gauge("facilitator_head_age_seconds", NET, "2+60x60", silent="2x60", restarted="2x10 stale _x1 2x40"),
    "RpcAllDown": Shown(
        firing=_rpc("0+60x10 600x50", "0+60x60"),
        silent=_rpc("0+60x60", "0+60x60"),
        idle=_rpc("600x60", "600x60"),
        restarted=_rpc("0+60x20 0+60x40", "90x20 0x40"),
    ),
    "RpcEndpointFailing": Shown(
        firing={**_rpc("0+60x60", "0+30x60"), **_rpc("0+60x60", "0x60", "two:443")},
        silent=_rpc("0+60x60", "0+1x60"),
        idle=_rpc("600x60", "600x60"),
        restarted=_rpc("0+60x20 0+60x40", "900x20 0x40"),
    ),
    "TargetAbsent": Shown(
        firing={'facilitator_build_info{version="1"}': "1x5 _x60"},
        silent={'facilitator_build_info{version="1"}': "1x60"},
        idle={'facilitator_build_info{version="1"}': "1x60", 'facilitator_http_requests_total{route="/settle",status="200"}': "0x60"},
        restarted={'facilitator_build_info{version="1"}': "1x27 _x1 1x60"},
    ),
    "LoopStalled": _gauge(
        "facilitator_loop_heartbeat_timestamp_seconds",
        f'{POD},loop="keeper",{NET}',
        "0+60x20 1200x40",
        silent="0+60x60",
        restarted="0+60x10 _x10 1200+60x40",
    ),
    "LoopFaulting": Shown(
        firing={f'{_EVENTS}{{{POD},event="loop.faulted",level="warning"}}': "0+60x60"},
        silent={f'{_EVENTS}{{{POD},event="loop.faulted",level="warning"}}': "0+1x60"},
        idle={f'{_EVENTS}{{{POD},event="loop.faulted",level="warning"}}': "900x60"},
        restarted={f'{_EVENTS}{{{POD},event="loop.faulted",level="warning"}}': "900x28 0x40"},
    ),
    "LoopCrashed": _counter("facilitator_loop_restarts_total", f'{POD},loop="keeper"'),
    "ErrorLogged": _counter(_EVENTS, f'{POD},event="request.crashed",level="error"', fires="_x20 1x40"),
    "EventLoopLagging": _gauge("facilitator_event_loop_lag_seconds", POD, "0.4x60", silent="0.01x60", restarted="0.4x10 0.01x50"),
    "ConnectionsRefused": _counter("facilitator_http_connections_refused_total", POD),
    "StoreUnreachable": _counter("facilitator_verifications_without_record_total", POD, fires="0x20 0+5x40", minute=30),
    "DbPoolExhausted": Shown(firing=_pool("10x60"), silent=_pool("3x20 10x1 3x40"), idle=_pool("0x60"), restarted=_pool("10x10 _x10 0x40")),
}
