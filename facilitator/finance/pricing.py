"""Prices settlements one after the other as the books give them: who had how many before, and which terms held that day."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from facilitator.domain.periods import Period, day_start, local_date
from facilitator.domain.rates import usd_micros
from facilitator.domain.schedules import Charge, Schedule, at_par, charge, in_force
from facilitator.errors import ConfigFault
from facilitator.store import billing, books
from facilitator.store.books import SettlementLine
from facilitator.store.db import Db, Session
from facilitator.store.views import SettlementEntry
from facilitator.units import Address, Network, Wei, Zone


class Pricer:
    """Feed it every settlement of its tenants from its start on, in order; it counts within each month of the booking zone."""

    def __init__(
        self,
        schedules: Mapping[str, Sequence[Schedule]],
        counted: Mapping[str, int],
        start_month: date,
        booking_zone: Zone,
        decimals: Mapping[tuple[Network, Address], int],
    ) -> None:
        self._schedules = schedules
        self._counted = Counter({(tenant_id, start_month): count for tenant_id, count in counted.items()})
        self._zone = booking_zone
        self._decimals = decimals

    @classmethod
    async def open(
        cls, session: Session, period: Period, tenant_id: str | None, booking_zone: Zone, decimals: Mapping[tuple[Network, Address], int]
    ) -> "Pricer":
        """For the settlements of a period, read in the same snapshot: those of its first month before it are counted in."""
        schedules: dict[str, list[Schedule]] = {}
        for row in await billing.list_schedules(session, tenant_id):
            schedules.setdefault(row.tenant_id, []).append(row.schedule)
        month = local_date(period.start, booking_zone).replace(day=1)
        before = Period(day_start(month, booking_zone), period.start)
        counted = await billing.counted(session, before, tenant_id) if schedules else {}
        return cls(schedules, counted, month, booking_zone, decimals)

    def price(self, line: SettlementLine) -> Charge | None:
        """What the tenant is charged; None for what we did not pay, and for a tenant without terms. Raises ConfigFault."""
        if line.phase != "posted":
            return None
        day = local_date(line.happened_at, self._zone)
        month = line.tenant_id, day.replace(day=1)
        self._counted[month] += 1
        schedule = in_force(self._schedules.get(line.tenant_id, ()), day)
        if schedule is None:
            return None
        places = self._decimals.get((line.network, line.asset))
        if places is None:
            raise ConfigFault(
                "unknown_asset", f"{line.network}/{line.asset} was settled and is configured no more: its amounts have no price"
            )
        return charge(schedule, self._counted[month], at_par(line.amount_atomic, places), gas_cost_micros(line))


def gas_cost_micros(line: SettlementLine) -> int | None:
    """The settlement's share of its transaction in micro-dollars; None without a fresh rate."""
    if line.cost_wei is None:
        return 0 if line.gas_used is None else None
    if line.usd_e8 is None or not line.rate_fresh:
        return None
    return usd_micros(Wei(line.cost_wei), line.usd_e8)


@dataclass(frozen=True, slots=True, kw_only=True)
class DollarCost:
    """What a settlement's gas cost in dollars, and at which rate."""

    micros: int
    usd_e8: int
    source: str
    quoted_at: datetime


async def cost_in_dollars(db: Db, tenant_id: str, entries: Sequence[SettlementEntry], rate_stale_s: float) -> DollarCost | None:
    """Of a settlement with these entries, by its last end on record, as the detail report has it; None without one or a fresh rate."""
    ends = [entry for entry in entries if entry.phase in {"posted", "voided"}]
    if not ends:
        return None
    period = Period(ends[-1].happened_at, ends[-1].happened_at + timedelta(microseconds=1))
    async with db.snapshot() as session:
        async for line in books.settlement_lines(session, period, tenant_id, rate_stale_s):
            if line.entry_id == ends[-1].entry_id:
                micros = gas_cost_micros(line)
                if micros is None or line.usd_e8 is None or line.rate_source is None or line.rate_at is None:
                    return None
                return DollarCost(micros=micros, usd_e8=line.usd_e8, source=line.rate_source, quoted_at=line.rate_at)
    return None
