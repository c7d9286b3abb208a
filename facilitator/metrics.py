"""Every Prometheus series, declared once. Labels are bounded sets: no payer, hash or free text ever becomes one.

Gauges that name a time hold the time, not an age: an age stands still with the process that should update it. Histograms
are classic ones, their buckets cut at the objectives (docs/operations.md). One process per pod: nothing is merged here.
"""

from functools import lru_cache
from typing import TypeVar, cast

from prometheus_client import Counter, Gauge, Histogram

_Metric = TypeVar("_Metric", Counter, Gauge, Histogram)


def series(metric: _Metric, *labels: str) -> _Metric:
    """`metric.labels(…)`, remembered: for the hot path, where it costs a fifth. Not for series that are ever removed."""
    return cast("_Metric", _series(metric, labels))


@lru_cache(maxsize=4096)
def _series(metric: Counter | Gauge | Histogram, labels: tuple[str, ...]) -> Counter | Gauge | Histogram:
    return metric.labels(*labels)


_REQUEST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 20.0, 30.0, 60.0)
"""From a verification on warm caches to a settlement that waits for its deadline."""
_STAGE = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 20.0, 30.0, 60.0, 120.0, 600.0, 1800.0)
"""From a signature to finality."""
_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""One exchange with a node or the database."""

# --- the process
BUILD_INFO = Gauge("facilitator_build_info", "1; which release and commit runs here.", ["version", "commit"])
EVENTS = Counter("facilitator_events_total", "Log lines written.", ["event", "level"])
TASKS = Gauge("facilitator_event_loop_tasks", "Tasks of the event loop, as of the last heartbeat.")
BLOCKING_SECONDS = Gauge("facilitator_event_loop_lag_seconds", "How late the event loop ran its last heartbeat.")
LOOP_RESTARTS = Counter("facilitator_loop_restarts_total", "A loop met a bug and was restarted.", ["loop"])
LOOP_HEARTBEAT = Gauge("facilitator_loop_heartbeat_timestamp_seconds", "When a loop last began a round.", ["loop", "network"])

# --- HTTP
REQUESTS = Counter("facilitator_http_requests_total", "HTTP requests answered.", ["route", "status"])
REQUEST_SECONDS = Histogram("facilitator_http_request_duration_seconds", "Time to answer.", ["route"], buckets=_REQUEST)
REQUESTS_IN_FLIGHT = Gauge("facilitator_http_in_flight_requests", "HTTP requests being answered.", ["route"])
JUDGING = Gauge("facilitator_http_judging_requests", "Requests whose payments are being judged.")
JUDGED_MAX = Gauge("facilitator_http_judging_requests_max", "Bound of that number.")
REQUESTS_SHED = Counter(
    "facilitator_http_requests_shed_total",
    "Requests answered 503 for load: beyond that bound, once admitted or on their connection; for a full queue.",
    ["at"],
)
CONNECTIONS = Gauge("facilitator_http_connections", "Open HTTP connections.")
CONNECTIONS_MAX = Gauge("facilitator_http_connections_max", "Bound of that number.")
CONNECTIONS_REFUSED = Counter("facilitator_http_connections_refused_total", "Connections not taken, because there were too many.")
CONNECTIONS_CLOSED = Counter(
    "facilitator_http_connections_closed_total", "Connections without a request in hand that were closed.", ["why"]
)

# --- payments
VERIFICATIONS = Counter("facilitator_verifications_total", "Payments judged by /verify.", ["network", "scheme", "outcome"])
UNRECORDED_VERIFICATIONS = Counter(
    "facilitator_verifications_without_record_total", "Verifications answered without the own-record check, the store being away."
)
WALLET_VERIFICATIONS = Counter(
    "facilitator_wallet_verifications_total",
    "Payments of smart wallets held against the chain, by /verify and /settle.",
    ["network", "payer_kind", "outcome"],
)
SETTLE_ANSWERS = Counter("facilitator_settle_answers_total", "Answers of /settle by reason word; success is `success`.", ["outcome"])
UNDELIVERED_ANSWERS = Counter("facilitator_undelivered_answers_total", "Settle answers whose caller was gone.")
SETTLEMENTS = Counter("facilitator_settlements_total", "Settlements by how they ended.", ["network", "scheme", "outcome"])
SETTLED_VALUE = Counter("facilitator_settled_value_atomic_total", "What settlements moved, in atomic units.", ["network", "asset"])
STAGE_SECONDS = Histogram("facilitator_settle_duration_seconds", "Time in one stage of a settlement.", ["network", "stage"], buckets=_STAGE)
CANARY_AT = Gauge(
    "facilitator_canary_last_success_timestamp_seconds", "When a payment of our own last did what it should.", ["network", "path"]
)
CANARY_INTERVAL = Gauge("facilitator_canary_interval_seconds", "How often one is sent.", ["network", "path"])
CANARY_FAILURES = Counter("facilitator_canary_failures_total", "Payments of our own that did not.", ["network", "path"])
CANARY_SECONDS = Histogram("facilitator_canary_duration_seconds", "Time that they took.", ["network", "path"], buckets=_REQUEST)
QUEUE_DEPTH = Gauge("facilitator_queue_depth", "Settlements waiting in a bounded queue of this process.", ["network"])
QUEUE_LIMIT = Gauge("facilitator_queue_limit", "Bound of that queue.", ["network"])
QUEUE_AGE_SECONDS = Gauge("facilitator_queue_oldest_seconds", "How long the oldest waiting settlement has waited.", ["network"])

# --- the catalogue
LISTINGS_NOTED = Counter("facilitator_listings_noted_total", "Resources written to the catalogue, known ones too.")
LISTINGS_DROPPED = Counter("facilitator_listings_dropped_total", "Resources not noted because too many waited to be written.")

# --- screening
SCREENING_DECISIONS = Counter(
    "facilitator_screening_decisions_total", "Looks at sanctions lists, by what they said.", ["network", "decision"]
)
SCREENING_LIST_TIMESTAMP = Gauge("facilitator_screening_list_timestamp_seconds", "When the list file in use was last written.")
SCREENING_LIST_AGE_MAX = Gauge("facilitator_screening_list_age_max_seconds", "How old that may be before the list counts as stale.")

# --- the ledger, as every replica reads it from the database
OPEN_SETTLEMENTS = Gauge("facilitator_open_settlements", "Settlements in a state that must not last.", ["network", "state"])
OLDEST_SETTLEMENT = Gauge("facilitator_open_settlements_oldest_timestamp_seconds", "Since when the oldest is open.", ["network", "state"])
PAST_DEADLINE = Gauge("facilitator_past_deadline_settlements", "Open settlements whose validBefore is past.", ["network"])
OPEN_INCIDENTS = Gauge("facilitator_open_incidents", "Incidents that nobody closed yet.", ["network", "kind"])
INCIDENTS = Counter("facilitator_incidents_total", "Incidents opened.", ["kind"])

# --- what tenants may do
LIMIT_REFUSALS = Counter("facilitator_limit_refusals_total", "Requests that a limit refused (429 or 403).", ["limit"])
GAS_BUDGETS_EXHAUSTED = Gauge("facilitator_gas_budgets_exhausted", "Tenants whose gas budget is spent, or in dollars without a rate.")
COOLING_DOWN = Gauge("facilitator_cooling_down", "Payers and tenants that rest after payments that cost gas and paid nobody.", ["who"])

# --- relayers and their gas money
OPEN_SLOTS = Gauge("facilitator_relayer_open_slots", "Transactions in flight.", ["network", "relayer"])
RELAYER_BALANCE = Gauge("facilitator_relayer_balance_wei", "Gas money of a relayer.", ["network", "relayer"])
GAS_SPENT = Counter("facilitator_gas_spent_wei_total", "Gas money spent on mined transactions.", ["network", "relayer", "outcome"])
PRIORITY_FEE = Gauge("facilitator_priority_fee_wei", "Tip per gas that fresh transactions bid.", ["network"])
GAS_LIMIT = Gauge("facilitator_gas_limit", "Gas limit of a payment that goes alone, and of each in a batch.", ["network", "kind"])
PAYMENT_COST = Gauge("facilitator_payment_cost_wei", "The most that a payment costs that goes alone in the next block.", ["network"])

# --- the chains
NETWORK_SERVED = Gauge("facilitator_network_served", "1 while a network's chain agrees with the configuration.", ["network"])
HEAD_AGE_SECONDS = Gauge("facilitator_head_age_seconds", "Wall time less the newest block's timestamp.", ["network"])
LIFE_MIN_SECONDS = Gauge("facilitator_payment_life_min_seconds", "What must be left until validBefore to be taken.", ["network"])
DISCREPANCIES = Gauge("facilitator_discrepancies_open", "Disagreements of books and chain that nobody has explained.", ["network", "class"])
MATCHED_SHARE = Gauge(
    "facilitator_matched_share",
    "Of the value settled in the day that ended an hour ago, what was matched to the chain in an hour.",
    ["network", "asset"],
)
RECONCILED_BLOCK = Gauge("facilitator_reconciled_block", "Last block that was held against the ledger.", ["network"])
SEAL_NO = Gauge("facilitator_seal_number", "Number of the newest seal of this process.")
SEAL_TIMESTAMP = Gauge("facilitator_seal_timestamp_seconds", "When it was made.")
SEALED_AT = Gauge("facilitator_seal_last_success_timestamp_seconds", "When a round of sealing last ended with nothing left to seal.")
RECONCILED_AT = Gauge(
    "facilitator_reconcile_last_success_timestamp_seconds", "When the ledger was last held against the chain to the end.", ["network"]
)
CLOSE_DUE = Gauge(
    "facilitator_close_due_timestamp_seconds", "Since when the oldest book day that is not closed could be; 0: nothing was booked."
)
RATE_TIMESTAMP = Gauge("facilitator_rate_timestamp_seconds", "When the newest dollar rate of a network's coin was quoted.", ["network"])
WATCHED_AUTHORIZATIONS = Gauge(
    "facilitator_watched_authorizations",
    "Failed and withdrawn settlements whose authorization may yet be used, up to 100,000.",
    ["network"],
)
HEAD_BLOCK = Gauge("facilitator_head_block", "Number of the newest block seen.", ["network"])
RPC_REQUESTS = Counter(
    "facilitator_rpc_requests_total",
    "JSON-RPC HTTP requests by endpoint, method and outcome.",
    ["network", "endpoint", "method", "outcome"],
)
RPC_SECONDS = Histogram(
    "facilitator_rpc_duration_seconds", "Time of a JSON-RPC HTTP request.", ["network", "endpoint", "method"], buckets=_FAST
)
RPC_DISAGREEMENTS = Counter(
    "facilitator_rpc_disagreements_total", "Facts that RPC endpoints told differently; nothing was decided.", ["network", "fact"]
)

# --- the database
DATABASE_SECONDS = Histogram("facilitator_database_duration_seconds", "Time of a named SQL query.", ["query"], buckets=_FAST)
DATABASE_CONNECTIONS = Gauge("facilitator_database_connections", "Connections of this process's pool.", ["state"])
DATABASE_CONNECTIONS_MAX = Gauge("facilitator_database_connections_max", "Bound of that pool.")
