"""What finance people look at: one set of questions for the finance API and the console alike.

Every function reads the ledger and returns rows; nothing here writes, prices or renders. A filter is read from text in one
place, `parse_filter`, so that a URL means the same wherever it is sent.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final, TypeVar
from uuid import UUID

from facilitator.domain.money import decimal_text
from facilitator.domain.periods import Period, day_of, local_date, parse_instant
from facilitator.domain.states import State
from facilitator.finance.detail import Cell, Column
from facilitator.finance.export import complete_through
from facilitator.finance.tables import TEXTS
from facilitator.protocol import v1
from facilitator.store import billing, books, earnings, seals, survey, views
from facilitator.store import days as book_days
from facilitator.store import discrepancies as discrepancies_store
from facilitator.store import settlements as settlements_store
from facilitator.store.billing import Movement
from facilitator.store.days import DayEvent
from facilitator.store.db import Db
from facilitator.store.discrepancies import Discrepancy, Matched
from facilitator.store.earnings import Earned
from facilitator.store.seals import Seal
from facilitator.store.settlements import Incident, ItemCost, Move
from facilitator.store.views import (
    Attempt,
    Cursor,
    DayTotal,
    EventRow,
    Filter,
    NetworkRow,
    SettlementEntry,
    SettlementRow,
    StateTotal,
)
from facilitator.units import Address, Network, TxHash, Zone, parse_address, parse_bytes32, parse_network, parse_uint256, parse_zone

FILTERS: Final = ("from", "to", "tz", "state", "tenant", "network", "asset", "payer", "pay_to", "tx", "amount_min", "amount_max")
"""Names in a URL."""
PAID: Final = frozenset({"preconfirmed", "included", "safe", "finalized"})
"""States in which we paid; only `finalized` stays so for certain."""
OPEN: Final = frozenset({"queued", "submitted"})
DISCREPANCY_STATUSES: Final = ("open", "explained", "gone", "all")
_OVERVIEW_DAYS: Final = 30
_Value = TypeVar("_Value")


# ---- settlements


def parse_filter(query: Mapping[str, str], booking_zone: Zone) -> Filter:
    """Read a filter. Empty values count as absent, as forms send them. Raises ValueError that names the parameter.

    `from` and `to` are dates or months of `tz` (by default the booking zone), or times with an offset; amounts are atomic units.
    """
    given = {name: value.strip() for name, value in query.items() if value.strip()}

    def read(name: str, parse: Callable[[str], _Value]) -> _Value | None:
        try:
            return parse(given[name]) if name in given else None
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{name}: {error}") from None

    zone = read("tz", parse_zone) or booking_zone
    chosen = Filter(
        queued_from=read("from", lambda text: parse_instant(text, zone)),
        queued_to=read("to", lambda text: parse_instant(text, zone)),
        state=read("state", _parse_state),
        tenant_id=given.get("tenant"),
        network=read("network", lambda text: v1.parse_network(text) or parse_network(text)),
        asset=read("asset", parse_address),
        payer=read("payer", parse_address),
        pay_to=read("pay_to", parse_address),
        tx_hash=read("tx", lambda text: TxHash(parse_bytes32(text))),
        amount_min_atomic=read("amount_min", parse_uint256),
        amount_max_atomic=read("amount_max", parse_uint256),
    )
    if chosen.queued_from is not None and chosen.queued_to is not None and chosen.queued_from >= chosen.queued_to:
        raise ValueError("to: the period is empty: it ends before it begins")
    return chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class SettlementPage:
    """Some settlements of a filter, newest first."""

    rows: Sequence[SettlementRow]
    next_cursor: str | None
    """Of the page after this one; None on the last."""


async def settlements(db: Db, chosen: Filter, cursor: str | None, limit: int) -> SettlementPage:
    """A page. Raises ValueError for a cursor that is none."""
    rows = await views.settlements(db, chosen, None if not cursor else parse_cursor(cursor), limit + 1)
    more, rows = len(rows) > limit, rows[:limit]
    return SettlementPage(rows=rows, next_cursor=cursor_text(rows[-1]) if more else None)


async def totals(db: Db, chosen: Filter) -> list[StateTotal]:
    """What the whole filter comes to, by network, asset and state."""
    return await views.totals(db, chosen)


LIST_COLUMNS: Final = tuple(
    Column(*column)
    for column in (
        ("settlement_id", "text"),
        ("tenant", "text"),
        ("request_id", "text"),
        ("scheme", "text"),
        ("network", "text"),
        ("asset", "text"),
        ("asset_decimals", "count"),
        ("payer", "text"),
        ("pay_to", "text"),
        ("amount_atomic", "integer"),
        ("amount", "decimal"),
        ("auth_nonce", "text"),
        ("resource", "text"),
        ("state", "text"),
        ("reason", "text"),
        ("requested_at_utc", "time"),
        ("resolved_at_utc", "time"),
        ("tx_hash", "text"),
        ("log_index", "count"),
        ("block_number", "count"),
        ("block_hash", "text"),
        ("total_fee_wei", "integer"),
    )
)
"""Of a list of settlements as a file. The settlement detail report is another: it has what ended in a period, priced."""


async def settlement_list(db: Db, chosen: Filter, form: str, decimals: Mapping[tuple[Network, Address], int]) -> AsyncIterator[str]:
    """Precisely the settlements of a filter as text, part by part; `form` is one of `TEXTS`."""
    head, spell = TEXTS[form](LIST_COLUMNS)
    yield head
    async with db.snapshot() as session:
        async for row in views.stream_settlements(session, chosen):
            yield spell(_cells(row, decimals.get((row.network, row.asset))))


def _cells(row: SettlementRow, places: int | None) -> list[Cell]:
    return [
        str(row.settlement_id),
        row.tenant_id,
        row.request_id,
        row.scheme,
        row.network,
        row.asset,
        places,
        row.payer,
        row.pay_to,
        str(row.amount_atomic),
        None if places is None else decimal_text(row.amount_atomic, places),
        row.auth_nonce,
        row.resource,
        row.state,
        row.reason,
        row.queued_at,
        row.resolved_at,
        row.tx_hash,
        row.log_index,
        row.block_number,
        row.block_hash,
        None if row.cost_wei is None else str(row.cost_wei),
    ]


def cursor_text(row: SettlementRow) -> str:
    """The cursor of the page after this settlement."""
    return f"{row.queued_at.astimezone(UTC).isoformat().replace('+00:00', 'Z')},{row.settlement_id}"


def parse_cursor(text: str) -> Cursor:
    """Read a cursor. Raises ValueError."""
    moment, _, settlement_id = text.partition(",")
    try:
        at = datetime.fromisoformat(moment)
        if at.tzinfo is None:
            raise ValueError  # noqa: TRY301
        return Cursor(at, UUID(settlement_id))
    except ValueError:
        raise ValueError("cursor: expected the one of the page before") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class SettlementSheet:
    """All that is on record of one settlement."""

    row: SettlementRow
    moves: Sequence[Move]
    """Every move after `queued` at `row.queued_at`."""
    costs: Sequence[ItemCost]
    """Each mined transaction that carried it, with its share."""
    attempts: Sequence[Attempt]
    entries: Sequence[SettlementEntry]
    incidents: Sequence[Incident]


async def settlement(db: Db, settlement_id: UUID) -> SettlementSheet | None:
    """One settlement; None when there is none."""
    row = await views.settlement(db, settlement_id)
    if row is None:
        return None
    return SettlementSheet(
        row=row,
        moves=await settlements_store.history(db, [settlement_id]),
        costs=await settlements_store.costs(db, [settlement_id]),
        attempts=await views.attempts_of(db, settlement_id),
        entries=await views.entries_of(db, settlement_id),
        incidents=await settlements_store.incidents(db, [settlement_id]),
    )


# ---- the whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """How the books stand."""

    complete_through: datetime | None
    """Before it nothing can be booked any more, save corrections; None while no network was ever served."""
    networks: Sequence[NetworkRow]
    days: Sequence[DayTotal]
    """Of the last 30 days of the booking zone, today included; days without any are left out."""
    first_day: date
    last_day: date
    earned: Sequence[Earned]
    """Of those days, the ones that are counted: what nothing can be booked in any more."""
    open: Sequence[StateTotal]
    """What is not decided: queued and submitted."""
    overdue: int
    """Of them, those whose validBefore is past."""
    matched: Mapping[Network, Sequence[Matched]]
    """By asset: what was settled in the day that ended an hour ago, and what of it was matched to the chain within an hour."""
    last_close: DayEvent | None
    last_closed: date | None
    """The last closed book day."""
    seal: Seal | None
    """The newest."""


async def overview(db: Db, zone: Zone) -> Overview:
    """The front page."""
    now = datetime.now(UTC)
    today = local_date(now, zone)
    first_day = today - timedelta(days=_OVERVIEW_DAYS - 1)
    networks = await views.networks(db)
    async with db.snapshot() as session:
        complete = complete_through(await books.completeness(session))
        closes = await book_days.events(session)
        last_closed, seal = await seals.last_closed(session), await seals.last(session)
    undecided = await survey.open_settlements(db, [network.network for network in networks])
    return Overview(
        complete_through=complete,
        networks=networks,
        days=[total for number in range(_OVERVIEW_DAYS) for total in await _day_totals(db, first_day + timedelta(days=number), zone)],
        first_day=first_day,
        last_day=today,
        earned=await earnings.earned(db, zone, first_day, today),
        open=[total for state in sorted(OPEN) for total in await views.totals(db, Filter(state=state))],
        overdue=sum(each.past_deadline for each in undecided),
        matched={network.network: await discrepancies_store.matched(db, network.network) for network in networks},
        last_close=next((event for event in reversed(closes) if event.kind == "closed"), None),
        last_closed=last_closed,
        seal=seal,
    )


async def _day_totals(db: Db, day: date, zone: Zone) -> list[DayTotal]:
    """One day at a time: days that were counted are not read again."""
    period = day_of(day, zone)
    found = await views.totals(db, Filter(queued_from=period.start, queued_to=period.end))
    return [DayTotal(day, each.network, each.asset, each.state, each.settlements, each.amount_atomic) for each in found]


# ---- accounts


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What one account had before a period, what moved it, and what it had then. Debits are positive."""

    account: str
    opening: Mapping[str, int]
    """By asset, as `closing`: the next period opens with that."""
    movements: Sequence[Movement]
    closing: Mapping[str, int]


async def statement(db: Db, account: str, period: Period) -> Statement:
    """Of any account; one that is not in the books has nothing."""
    async with db.snapshot() as session:
        opening = await billing.opening(session, account, period.start)
        movements = [movement async for movement in billing.movements(session, account, period)]
    closing = Counter(opening)
    for movement in movements:
        closing[movement.asset] += movement.amount_atomic
    return Statement(account=account, opening=opening, movements=movements, closing=dict(sorted(closing.items())))


# ---- discrepancies, days, trail


async def discrepancies(
    db: Db, status: str = "open", network: Network | None = None, class_: str | None = None, before: int | None = None, limit: int = 200
) -> list[Discrepancy]:
    """Newest first; `status` is one of `DISCREPANCY_STATUSES`, `before` the last id of the page before."""
    return await views.discrepancies(db, status, network, class_, before, limit)


async def discrepancy(db: Db, discrepancy_id: int) -> Discrepancy | None:
    """One of them."""
    return await views.discrepancy(db, discrepancy_id)


async def day_events(db: Db) -> Sequence[DayEvent]:
    """Closes and reopenings, oldest first."""
    async with db.session() as session:
        return await book_days.events(session)


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseDay:
    """A book day in the calendar."""

    day: date
    closed: DayEvent | None
    """None: it is open."""
    history: Sequence[DayEvent]
    """Everything that was done to it."""
    reopening_asked: Sequence[book_days.Asked]
    """Who asked within a day that it be reopened: anybody else may confirm."""


async def calendar(db: Db, first: date, last: date) -> list[CloseDay]:
    """Every day from `first` to `last`, both included."""
    async with db.session() as session:
        events = await book_days.events(session)
        last_closed = await seals.last_closed(session)
        asked = [] if last_closed is None else await book_days.reopen_asked(session, last_closed)
    found = []
    for number in range((last - first).days + 1):
        day = first + timedelta(days=number)
        history = [event for event in events if event.day == day]
        closed = history[-1] if history and history[-1].kind == "closed" else None
        found.append(CloseDay(day=day, closed=closed, history=history, reopening_asked=asked if day == last_closed else []))
    return found


async def audit_events(
    db: Db, period: Period | None = None, kind: str | None = None, actor: str | None = None, before: int | None = None, limit: int = 200
) -> list[EventRow]:
    """The audit trail, newest first; `before` is the last id of the page before."""
    start, end = (None, None) if period is None else (period.start, period.end)
    return await views.events(db, start, end, kind, actor, before, limit)


def _parse_state(text: str) -> str:
    try:
        return State(text).value
    except ValueError:
        raise ValueError(f"expected one of {', '.join(State)}") from None
