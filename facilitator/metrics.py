"""Every Prometheus series, declared once. Labels are bounded sets: no payer, hash or free text ever becomes one."""

from prometheus_client import Counter, Gauge, Histogram

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SLOW = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 20.0, 30.0, 60.0)

REQUESTS = Counter("facilitator_http_requests_total", "HTTP requests answered.", ["route", "status"])
REQUEST_SECONDS = Histogram("facilitator_http_request_duration_seconds", "Time to answer.", ["route"], buckets=_SLOW)
CONNECTIONS = Gauge("facilitator_http_connections", "Open HTTP connections, as of the last request.")
CONNECTIONS_MAX = Gauge("facilitator_http_connections_max", "Bound of that number; beyond it connections are refused.")
CONNECTIONS_REFUSED = Counter("facilitator_http_connections_refused_total", "Connections closed because there were too many.")
VERIFICATIONS = Counter("facilitator_verifications_total", "Payments judged by /verify.", ["network", "scheme", "outcome"])
SETTLEMENTS = Counter("facilitator_settlements_total", "Settlements by how they ended.", ["network", "scheme", "outcome"])
SETTLE_ANSWERS = Counter("facilitator_settle_answers_total", "Answers of /settle by reason word; success is `success`.", ["outcome"])
STAGE_SECONDS = Histogram("facilitator_stage_duration_seconds", "Time in one stage of a settlement.", ["stage"], buckets=_SLOW)
RPC_REQUESTS = Counter("facilitator_rpc_requests_total", "JSON-RPC HTTP requests by method and outcome.", ["method", "outcome"])
RPC_SECONDS = Histogram("facilitator_rpc_duration_seconds", "Time of a JSON-RPC HTTP request.", ["method"], buckets=_FAST)
DATABASE_SECONDS = Histogram("facilitator_database_duration_seconds", "Time of a named SQL query.", ["query"], buckets=_FAST)
UNRECORDED_VERIFICATIONS = Counter(
    "facilitator_verifications_without_record_total", "Verifications answered without the own-record check, the store being away."
)
QUEUE_DEPTH = Gauge("facilitator_queue_depth", "Settlements waiting in a bounded queue of this process.", ["network"])
QUEUE_LIMIT = Gauge("facilitator_queue_limit", "Bound of that queue.", ["network"])
OPEN_SLOTS = Gauge("facilitator_relayer_open_slots", "Transactions in flight.", ["network", "relayer"])
RELAYER_BALANCE = Gauge("facilitator_relayer_balance_wei", "Gas money of a relayer.", ["network", "relayer"])
HEAD_AGE_SECONDS = Gauge("facilitator_head_age_seconds", "Wall time less the newest block's timestamp.", ["network"])
LIFE_MIN_SECONDS = Gauge("facilitator_payment_life_min_seconds", "What must be left until validBefore to be taken.", ["network"])
LOOP_RESTARTS = Counter("facilitator_loop_restarts_total", "A loop met a bug and was restarted.", ["loop"])
UNDELIVERED_ANSWERS = Counter("facilitator_undelivered_answers_total", "Settle answers whose caller was gone.")
RATE_TIMESTAMP = Gauge("facilitator_rate_timestamp_seconds", "When the newest dollar rate of a network's coin was quoted.", ["network"])
WATCHED_AUTHORIZATIONS = Gauge(
    "facilitator_watched_authorizations",
    "Failed and withdrawn settlements whose authorization may yet be used, up to 100,000.",
    ["network"],
)
INCIDENTS = Counter("facilitator_incidents_total", "Incidents opened.", ["kind"])
BLOCKING_SECONDS = Gauge("facilitator_event_loop_lag_seconds", "How late the event loop ran its last heartbeat.")
