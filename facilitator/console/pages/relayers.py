"""Relayers and what gas was paid for."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Final

from aiohttp import web

from facilitator.console.desk import Desk, Visit
from facilitator.domain.periods import local_date
from facilitator.finance.earnings import gas_by_day
from facilitator.store import views as rows
from facilitator.units import Address, Network

_WEEK_DAYS: Final = 7
_MONTH_DAYS: Final = 30
_YEAR_DAYS: Final = 365


async def show_relayers(desk: Desk, visit: Visit) -> web.StreamResponse:
    """GET /relayers."""
    db, zone = desk.need_db(), desk.finance.booking_zone
    today = local_date(datetime.now(UTC), zone)
    first, week = today - timedelta(days=_MONTH_DAYS - 1), today - timedelta(days=_WEEK_DAYS)
    spent = await gas_by_day(db, zone, first, today)
    causes: Counter[tuple[Network, str]] = Counter()
    transactions: Counter[tuple[Network, str]] = Counter()
    weekly: Counter[tuple[Network, Address]] = Counter()
    monthly: Counter[tuple[Network, Address]] = Counter()
    for each in spent:
        causes[each.network, each.cause] += each.amount_wei
        transactions[each.network, each.cause] += each.transactions
        monthly[each.network, each.relayer] += each.amount_wei
        if week <= each.day < today:
            weekly[each.network, each.relayer] += each.amount_wei
    return desk.render(
        visit,
        "relayers.html",
        here="relayers",
        first=first,
        today=today,
        relayers=[
            (each, monthly[each.network, each.address], _lasts(each.balance_wei, weekly[each.network, each.address]))
            for each in await rows.relayers(db)
        ],
        causes=[(network, cause, transactions[network, cause], wei) for (network, cause), wei in sorted(causes.items())],
    )


def _lasts(balance_wei: int | None, week_wei: int) -> str:
    """How long a balance lasts at last week's pace."""
    if balance_wei is None:
        return "not read yet"
    if not week_wei:
        return "nothing spent"
    days = balance_wei * _WEEK_DAYS // week_wei
    return f"{days:,} d" if days < _YEAR_DAYS else "over a year"
