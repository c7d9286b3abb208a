"""The front page: how the books stand, and what wants somebody's attention."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

from aiohttp import web
from markupsafe import Markup

from facilitator.console import charts, names, show
from facilitator.console.charts import Axis, Bar, Part
from facilitator.console.desk import Desk, Visit
from facilitator.domain.money import decimal_text
from facilitator.finance import standing, views
from facilitator.finance.detail import NATIVE_DECIMALS
from facilitator.finance.earnings import gas_by_day
from facilitator.store.discrepancies import Matched
from facilitator.store.earnings import Earned
from facilitator.store.views import DayTotal, GasSpent, StateTotal
from facilitator.units import Address, Network

_DAY: Final = timedelta(days=1)
_TICK_DAYS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One figure for each day, with its chart."""

    title: str
    unit: str
    decimals: int | None
    total: int
    settlements: int
    by_day: Mapping[date, int]
    chart: Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """What the counted days come to, in micro-dollars; None where a part of it is not known."""

    days: int
    last: date
    fees_micros: int | None
    gas_micros: int | None
    margin_micros: int | None
    unpriced: int
    unrated: int


async def show_overview(desk: Desk, visit: Visit) -> web.StreamResponse:
    """GET /."""
    db, zone = desk.need_db(), desk.finance.booking_zone
    found = await views.overview(db, zone)
    days = [found.first_day + number * _DAY for number in range((found.last_day - found.first_day).days + 1)]
    gas = await gas_by_day(db, zone, days[0], days[-1])
    paid = _paid(desk.names, days, found.days)
    spent = _gas(days, gas)
    outcomes = _outcomes(found.days)
    return desk.render(
        visit,
        "overview.html",
        here="overview",
        found=found,
        standing=await standing.read(db),
        days=days,
        paid=paid,
        gas=spent,
        earned={each.day: each for each in found.earned},
        sums=_sums(found.earned),
        outcomes=outcomes,
        outcomes_chart=charts.shares("outcomes", "How the settlements of these days ended", outcomes),
        undecided=_undecided(found.open),
        matched=_matched(desk.names, found.matched),
        counts=_counts(found.days),
        to_close=(found.last_day - found.last_closed).days - 1 if found.last_closed else None,
    )


def _sums(earned: Sequence[Earned]) -> Sums | None:
    """None: no day is counted yet."""
    if not earned:
        return None
    return Sums(
        days=len(earned),
        last=earned[-1].day,
        fees_micros=_sum(each.fees_micros for each in earned),
        gas_micros=_sum(each.gas_micros for each in earned),
        margin_micros=_sum(each.margin_micros for each in earned),
        unpriced=sum(each.unpriced for each in earned),
        unrated=sum(each.unrated for each in earned),
    )


def _sum(parts: Iterable[int | None]) -> int | None:
    """None when a part is not known: a sum without it would be too small."""
    known = list(parts)
    return None if None in known else sum(part for part in known if part is not None)


def _paid(assets: names.Assets, days: Sequence[date], found: Iterable[DayTotal]) -> list[Series]:
    """What was paid on each day, by asset, the busiest first."""
    values: dict[tuple[Network, Address], Counter[date]] = defaultdict(Counter)
    numbers: Counter[tuple[Network, Address]] = Counter()
    for total in found:
        if total.state in views.PAID:
            values[total.network, total.asset][total.day] += total.amount_atomic
            numbers[total.network, total.asset] += total.settlements
    series = []
    for index, ((network, asset), number) in enumerate(numbers.most_common()):
        unit, decimals = assets.token_unit(network, asset), assets.token_decimals(network, asset)
        title = f"Paid per day, {unit} on {names.network(network)}"
        by_day = values[network, asset]
        chart = _chart(f"paid-{index}", title, days, by_day, decimals or 0, unit)
        series.append(
            Series(title=title, unit=unit, decimals=decimals, total=by_day.total(), settlements=number, by_day=by_day, chart=chart)
        )
    return series


def _gas(days: Sequence[date], found: Iterable[GasSpent]) -> list[Series]:
    """What gas cost on each day, by network."""
    values: dict[Network, Counter[date]] = defaultdict(Counter)
    numbers: Counter[Network] = Counter()
    for spent in found:
        values[spent.network][spent.day] += spent.amount_wei
        numbers[spent.network] += spent.transactions
    series = []
    for index, (network, by_day) in enumerate(sorted(values.items())):
        unit = names.coin(network)
        title = f"Gas per day, {unit} on {names.network(network)}"
        chart = _chart(f"gas-{index}", title, days, by_day, NATIVE_DECIMALS, unit)
        series.append(
            Series(
                title=title,
                unit=unit,
                decimals=NATIVE_DECIMALS,
                total=by_day.total(),
                settlements=numbers[network],
                by_day=by_day,
                chart=chart,
            )
        )
    return series


def _chart(name: str, title: str, days: Sequence[date], by_day: Mapping[date, int], decimals: int, unit: str) -> Markup:
    columns = [
        Bar(
            label=f"{day:%a} {day.day} {day:%b %Y}",
            tick=f"{day.day} {day:%b}" if (len(days) - 1 - index) % _TICK_DAYS == 0 else "",
            value=by_day.get(day, 0),
            text=f"{show.grouped(decimal_text(by_day.get(day, 0), decimals))} {unit}",
            unfinished=day == days[-1],
        )
        for index, day in enumerate(days)
    ]
    steps = charts.steps_to(max(column.value for column in columns))
    texts = [show.grouped(show.trimmed(decimal_text(step, decimals))) for step in steps]
    best = max(columns, key=lambda column: column.value)
    description = f"A bar for each day from {days[0]} to {days[-1]}, which is not over. The highest is {best.label} with {best.text}."
    return charts.bars(name, title, description, columns, Axis(steps=steps, texts=texts))


def _outcomes(found: Iterable[DayTotal]) -> list[Part]:
    """How many settlements ended how."""
    numbers: Counter[str] = Counter()
    for total in found:
        numbers[show.kind_of(total.state)] += total.settlements
    labels = {"good": "final", "going": "on the way", "warn": "executed by somebody else", "bad": "not paid"}
    return [Part(label=label, value=numbers[kind], kind=kind) for kind, label in labels.items()]


def _counts(found: Iterable[DayTotal]) -> Mapping[date, Counter[str]]:
    numbers: dict[date, Counter[str]] = defaultdict(Counter)
    for total in found:
        numbers[total.day][show.kind_of(total.state)] += total.settlements
    return numbers


def _undecided(found: Iterable[StateTotal]) -> int:
    return sum(total.settlements for total in found)


def _matched(assets: names.Assets, found: Mapping[Network, Sequence[Matched]]) -> list[tuple[str, str]]:
    """The share of each asset's value, and what it is of; nothing settled is no share."""
    return [
        (
            show.permille(each.matched_atomic, each.settled_atomic),
            f"{assets.token_unit(network, each.asset)}, {names.network(network)}",
        )
        for network, rows in found.items()
        for each in rows
        if each.settled_atomic
    ]
