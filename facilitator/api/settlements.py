"""Looking settlements up: by id, by authorization identity, or page by page. Own tenant only, unless scope finance or admin.

The answer to a lost reply: whoever knows (network, asset, payer, nonce) finds out how the payment ended. It must never
show another tenant's settlement, not even that it exists.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, TypedDict
from uuid import UUID

from aiohttp import web

from facilitator.api.desk import Desk, Grant, HttpProblem, json_response
from facilitator.domain.identity import AuthKey
from facilitator.domain.screening import decode_screening
from facilitator.domain.states import State
from facilitator.protocol import v1
from facilitator.protocol.address import checksum_address
from facilitator.protocol.reasons import Reason
from facilitator.store import settlements
from facilitator.store.db import Db
from facilitator.store.settlements import Incident, ItemCost, Move, Settlement
from facilitator.tracing import trace_id_of
from facilitator.units import Address, AuthNonce, Network, TxHash, parse_address, parse_bytes32, parse_network

PAGE_DEFAULT: Final = 50
LOOKUP_PARAMETERS: Final = ("network", "asset", "payer", "nonce")
LIST_PARAMETERS: Final = ("from", "to", "state", "payer", "pay_to", "network", "asset", "tx", "cursor", "limit")


class _Filters(TypedDict):
    """What a page is narrowed to; None: not by this."""

    queued_from: datetime | None
    queued_to: datetime | None
    state: str | None
    payer: Address | None
    pay_to: Address | None
    network: Network | None
    asset: Address | None
    tx_hash: TxHash | None
    before: UUID | None


async def get(desk: Desk, request: web.Request, grant: Grant) -> web.StreamResponse:
    """GET /settlements/{id}."""
    try:
        settlement_id = UUID(request.match_info["id"])
    except ValueError:
        raise _not_found() from None
    return await _answer_one(desk, grant, await settlements.get(desk.need_db(), settlement_id))


async def lookup(desk: Desk, request: web.Request, grant: Grant) -> web.StreamResponse:
    """GET /settlements/lookup: by authorization identity; no id or hash is needed."""
    query = _query(request, LOOKUP_PARAMETERS)
    missing = [name for name in LOOKUP_PARAMETERS if name not in query]
    if missing:
        raise HttpProblem(400, "invalid_request", f"missing query parameters: {', '.join(missing)}")
    key = AuthKey(_network(query, "network"), _address(query, "asset"), _address(query, "payer"), AuthNonce(_bytes32(query, "nonce")))
    return await _answer_one(desk, grant, await settlements.find(desk.need_db(), key))


async def page(desk: Desk, request: web.Request, grant: Grant) -> web.StreamResponse:
    """GET /settlements: newest first; `nextCursor` leads to the next page, null on the last."""
    query = _query(request, LIST_PARAMETERS)
    limit = _limit(query, desk.settings.page_max)
    filters = _Filters(
        queued_from=_time(query, "from"),
        queued_to=_time(query, "to"),
        state=_state(query),
        payer=_address(query, "payer") if "payer" in query else None,
        pay_to=_address(query, "pay_to") if "pay_to" in query else None,
        network=_network(query, "network") if "network" in query else None,
        asset=_address(query, "asset") if "asset" in query else None,
        tx_hash=TxHash(_bytes32(query, "tx")) if "tx" in query else None,
        before=_cursor(query),
    )
    db = desk.need_db()
    rows = await settlements.page(db, tenant_id=None if grant.sees_all else grant.tenant.tenant_id, limit=limit + 1, **filters)
    more = len(rows) > limit
    rows = rows[:limit]
    return json_response({"settlements": await _render(db, rows), "nextCursor": str(rows[-1].settlement_id) if more else None})


async def _answer_one(desk: Desk, grant: Grant, row: Settlement | None) -> web.StreamResponse:
    if row is None or not (grant.sees_all or row.tenant_id == grant.tenant.tenant_id):
        raise _not_found()
    (rendered,) = await _render(desk.need_db(), [row])
    return json_response(rendered)


def _not_found() -> HttpProblem:
    return HttpProblem(404, "not_found", "there is no such settlement of yours")


# ---- JSON


async def _render(db: Db, rows: Sequence[Settlement]) -> list[dict[str, object]]:
    """Settlements as interface objects, with what belongs to them in three queries whatever their number."""
    if not rows:
        return []
    ids = [row.settlement_id for row in rows]
    moves, costs, incidents = await settlements.history(db, ids), await settlements.costs(db, ids), await settlements.incidents(db, ids)
    return [
        render(
            row,
            [move for move in moves if move.settlement_id == row.settlement_id],
            [cost for cost in costs if cost.settlement_id == row.settlement_id],
            [incident for incident in incidents if incident.settlement_id == row.settlement_id],
        )
        for row in rows
    ]


def render(row: Settlement, moves: Sequence[Move], costs: Sequence[ItemCost], incidents: Sequence[Incident]) -> dict[str, object]:
    """One settlement as JSON: amounts as text, times in RFC 3339, addresses in EIP-55, reasons in the words of v2."""
    first = {"state": State.QUEUED.value, "time": _rfc3339(row.queued_at), "transaction": None}
    history = [
        {"state": move.to_state, "time": _rfc3339(move.moved_at), "transaction": move.tx_hash, **_reason(move.reason)} for move in moves
    ]
    return {
        "id": str(row.settlement_id),
        "state": row.state,
        "scheme": row.scheme,
        "network": row.network,
        "asset": checksum_address(row.asset),
        "payer": checksum_address(row.payer),
        "payTo": checksum_address(row.pay_to),
        "amount": str(row.amount_atomic),
        "nonce": row.auth_nonce,
        "validAfter": str(row.valid_after),
        "validBefore": str(row.valid_before),
        "transaction": row.tx_hash,
        "logIndex": row.log_index,
        "blockNumber": row.block_number,
        "reason": _reason(row.reason).get("reason"),
        "tenant": row.tenant_id,
        "requestId": row.request_id,
        "paymentIdentifier": row.payment_identifier,
        "traceId": trace_id_of(row.traceparent),
        "resource": row.resource,
        "queuedAt": _rfc3339(row.queued_at),
        "resolvedAt": _rfc3339(row.resolved_at),
        "answered": row.answer_state == "spent",
        "screening": _screening(row),
        "history": [first, *history],
        "cost": _cost(costs),
        "incidents": [
            {
                "kind": incident.kind,
                "transaction": incident.tx_hash,
                "detail": incident.detail,
                "time": _rfc3339(incident.opened_at),
            }
            for incident in incidents
        ],
    }


def _screening(row: Settlement) -> dict[str, object] | None:
    """What it was held against before it was last signed."""
    found = decode_screening(row.screening)
    if found is None:
        return None
    return {"decision": found.decision, "lists": list(found.lists), "time": _rfc3339(datetime.fromtimestamp(found.at, UTC))}


def _cost(costs: Sequence[ItemCost]) -> dict[str, object] | None:
    """What it cost in wei: its shares of the mined transactions that carried it, whether they paid or not."""
    if not costs:
        return None
    return {"wei": str(sum(cost.share_wei for cost in costs)), "transactions": [_transaction_cost(cost) for cost in costs]}


def _transaction_cost(cost: ItemCost) -> dict[str, object]:
    """A whole transaction, and the share of it."""
    l2_fee_wei = cost.gas_used * cost.effective_gas_price_wei
    return {
        "transaction": cost.tx_hash,
        "gasUsed": str(cost.gas_used),
        "feeWei": str(l2_fee_wei + (cost.l1_fee_wei or 0) + (cost.operator_fee_wei or 0)),
        "l2FeeWei": str(l2_fee_wei),
        "l1FeeWei": str(cost.l1_fee_wei or 0),
        "operatorFeeWei": str(cost.operator_fee_wei or 0),
        "shareWei": str(cost.share_wei),
        "settlements": cost.items,
    }


def _reason(name: str | None) -> dict[str, str]:
    if name is None:
        return {}
    return {"reason": Reason[name].v2 if name in Reason.__members__ else name}


def _rfc3339(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# ---- query parameters: a wrong one is refused, for a filter that is ignored shows too much


def _query(request: web.Request, allowed: Sequence[str]) -> Mapping[str, str]:
    for name in request.query:
        if name not in allowed:
            raise HttpProblem(400, "invalid_request", f"unknown query parameter {name[:40]!a}; known: {', '.join(allowed)}")
        if len(request.query.getall(name)) > 1:
            raise HttpProblem(400, "invalid_request", f"query parameter {name}: expected once")
    return dict(request.query)


def _wrong(name: str, expected: str) -> HttpProblem:
    return HttpProblem(400, "invalid_request", f"query parameter {name}: {expected}")


def _address(query: Mapping[str, str], name: str) -> Address:
    try:
        return parse_address(query[name])
    except ValueError as error:
        raise _wrong(name, str(error)) from None


def _bytes32(query: Mapping[str, str], name: str) -> str:
    try:
        return parse_bytes32(query[name])
    except ValueError as error:
        raise _wrong(name, str(error)) from None


def _network(query: Mapping[str, str], name: str) -> Network:
    """CAIP-2, or a nickname of v1."""
    try:
        return v1.parse_network(query[name]) or parse_network(query[name])
    except ValueError as error:
        raise _wrong(name, str(error)) from None


def _time(query: Mapping[str, str], name: str) -> datetime | None:
    if name not in query:
        return None
    try:
        moment = datetime.fromisoformat(query[name])
        if moment.tzinfo is None:
            raise ValueError  # noqa: TRY301
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise _wrong(name, "expected a time with its zone, such as 2026-01-31T00:00:00Z") from None


def _state(query: Mapping[str, str]) -> str | None:
    if "state" not in query:
        return None
    try:
        return State(query["state"]).value
    except ValueError:
        raise _wrong("state", f"expected one of {', '.join(State)}") from None


def _cursor(query: Mapping[str, str]) -> UUID | None:
    if "cursor" not in query:
        return None
    try:
        return UUID(query["cursor"])
    except ValueError:
        raise _wrong("cursor", "expected the nextCursor of the page before") from None


def _limit(query: Mapping[str, str], most: int) -> int:
    text = query.get("limit", str(PAGE_DEFAULT))
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and int(text) >= 1):
        raise _wrong("limit", f"expected an integer from 1 to {most}")
    return min(int(text), most)
