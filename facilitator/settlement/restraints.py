"""What tenants and payers may not do now: gas budgets that are used up, cool-downs after payments that cost gas and paid nobody.

Judged from memory before the chain is asked, so that no request costs a query; read from Postgres every `limits_poll_s`.
That late is a cool-down known. A budget is held by the write-ahead itself (`gas_day_within`), whatever stands here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, NoReturn

import structlog

from facilitator.clock import Clock
from facilitator.domain.limits import Breach, cooling_down, over_budget
from facilitator.errors import OverloadFault
from facilitator.metrics import COOLING_DOWN, GAS_BUDGETS_EXHAUSTED
from facilitator.protocol.reasons import Reason, Refusal
from facilitator.settlement.settings import Settings
from facilitator.settlement.tasks import beat
from facilitator.store import restraints
from facilitator.store.db import Db
from facilitator.store.restraints import USD, GasBudget
from facilitator.store.tenants import Tenant
from facilitator.units import Address, Network

_MICROS_OF_A_WEI_E8: Final = 10**20
"""`usd_e8` of a coin times so much wei is a micro-dollar."""

log = structlog.get_logger(__name__)


class LimitReached(Exception):
    """One of the tenant's limits forbids a new payment now."""

    def __init__(self, breach: Breach) -> None:
        super().__init__(breach.message)
        self.breach = breach


@dataclass(slots=True)
class _Left:
    """A budget as last read, less what this process has let through since."""

    budget: GasBudget
    used: int


@dataclass(frozen=True, slots=True)
class _Strikes:
    count: int
    paid: int
    """Payments that were made meanwhile, of a tenant; counted no further than to `count`."""
    most: int | None
    """A tenant's own bound."""
    until_s: float
    """Monotonic."""

    def too_many(self, most: int) -> bool:
        """Strikes that others' payments do not outweigh: who brings as many that pay is not put to rest by strangers' tricks."""
        return self.count >= most and self.count > self.paid


class Restraints:
    """The memory of one process. `run` keeps it fresh; until it was read once, nobody is restrained by it."""

    def __init__(self, networks: tuple[Network, ...], db: Db, clock: Clock, settings: Settings) -> None:
        self._networks = networks
        self._db = db
        self._clock = clock
        self._settings = settings
        self._budgets: dict[str, dict[str, _Left]] = {}
        self._needs: dict[tuple[str, str], int] = {}
        """What the last payment that was held to a budget could cost, by tenant and unit."""
        self._rates: Mapping[Network, int] = {}
        self._strikes: dict[tuple[str, str], _Strikes] = {}
        self._read_at = float("-inf")
        self._refused: set[str] = set()

    async def run(self) -> None:
        """Read every `limits_poll_s`."""
        while True:
            beat("limits")
            await self._read()
            await self._clock.sleep(self._settings.limits_poll_s)

    async def _read(self) -> None:
        asked_at, settings = self._clock.monotonic(), self._settings
        budgets = await restraints.gas_budgets(self._db, self._networks)
        in_dollars = any(budget.unit == USD for budget in budgets)
        rates = await restraints.fresh_rates(self._db, self._networks, settings.gas_rate_max_age_s) if in_dollars else {}
        struck = await restraints.struck(self._db, settings.strike_window_s, settings.cool_down_s, settings.struck_max)
        self._budgets = {}
        for budget in budgets:
            self._budgets.setdefault(budget.tenant_id, {})[budget.unit] = _Left(budget, budget.held + budget.spent)
        self._rates = rates
        self._strikes = {(row.who, row.name): _Strikes(row.strikes, row.paid, row.most, asked_at + row.frees_s) for row in struck}
        self._read_at = asked_at
        self._tell()

    def _tell(self) -> None:
        """Gauges, and a line for each tenant that newly is or no longer is without gas."""
        exhausted = {
            tenant_id
            for tenant_id, units in self._budgets.items()
            if any(self._is_spent(left.budget) for left in units.values()) or (USD in units and not self._rates)
        }
        for tenant_id in exhausted - self._refused:
            log.warning("gas_budget.exhausted", tenant_id=tenant_id)
        for tenant_id in self._refused - exhausted:
            log.info("gas_budget.renewed", tenant_id=tenant_id)
        self._refused = exhausted
        GAS_BUDGETS_EXHAUSTED.set(len(exhausted))
        for who, most in (("payer", self._settings.payer_strikes_max), ("tenant", self._settings.tenant_strikes_max)):
            COOLING_DOWN.labels(who).set(sum(of == who and found.too_many(found.most or most) for (of, _), found in self._strikes.items()))

    def _is_spent(self, budget: GasBudget) -> bool:
        """Would it not suffice for one more payment like the last one, even if all that is held came back?

        To be signed, a payment needs several times what it will cost, so no budget is ever spent to the last wei.
        """
        return budget.spent + self._needs.get((budget.tenant_id, budget.unit), 1) > budget.most

    # --- judging ---

    def judge_tenant(self, tenant: Tenant, network: Network, need_wei: int, *, goes_on: bool) -> None:
        """May this tenant have a payment signed that may cost so much? If it `goes_on` to be, so much less is left for others.

        Raises LimitReached, or OverloadFault without a fresh rate.
        """
        most = tenant.limits.strikes_max or self._settings.tenant_strikes_max
        if (found := self._cooling("tenant", tenant.tenant_id, most)) is not None:
            raise LimitReached(cooling_down("strikesMax", most, found.count, found.paid, found.until_s - self._clock.monotonic()))
        units = self._budgets.get(tenant.tenant_id)
        if units is None:
            return
        asked: list[tuple[_Left, int]] = []
        if (in_wei := units.get(network)) is not None:
            self._hold_to("gasWeiPerDay", "wei", in_wei, need_wei)
            asked.append((in_wei, need_wei))
        if (in_dollars := units.get(USD)) is not None:
            usd_e8 = self._rates.get(network)
            if usd_e8 is None:
                raise no_rate(network)
            micros = -(-need_wei * usd_e8 // _MICROS_OF_A_WEI_E8)
            self._hold_to("gasUsdPerDay", "dollars", in_dollars, micros)
            asked.append((in_dollars, micros))
        for left, need in asked if goes_on else ():
            left.used += need

    def has_budget(self, tenant_id: str) -> bool:
        """Has this tenant a gas budget, as last read?"""
        return tenant_id in self._budgets

    def _hold_to(self, limit: str, unit: str, left: _Left, need: int) -> None:
        budget = left.budget
        ends_in_s = budget.ends_in_s - (self._clock.monotonic() - self._read_at)
        if ends_in_s <= 0:
            return  # a new day has begun since it was read
        self._needs[budget.tenant_id, budget.unit] = need
        if (breach := over_budget(limit, unit, budget.most, left.used, need, budget.spent, ends_in_s)) is not None:
            raise LimitReached(breach)

    async def refused(self, tenant: Tenant, network: Network, need_wei: int) -> NoReturn:
        """Raise what the database meant by `gas_day_within`: as `judge_tenant`, by what stands there now."""
        await self._read()
        self.judge_tenant(tenant, network, need_wei, goes_on=False)
        raise OverloadFault("gas_held", "the gas budget is held for open transactions; ask again", retry_after_s=1)

    def judge_payer(self, tenant: Tenant, payer: Address) -> Refusal | None:
        """Does this payer rest, for as many strikes as this tenant bears?"""
        most = tenant.limits.payer_strikes_max or self._settings.payer_strikes_max
        found = self._cooling("payer", payer, most)
        if found is None:
            return None
        seconds = max(1, round(found.until_s - self._clock.monotonic()))
        until = (datetime.fromtimestamp(self._clock.now(), UTC) + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")
        return Refusal(
            reason=Reason.PAYER_COOLING_DOWN,
            message=f"payer: {found.count} of its payments cost gas and paid nobody, {most} are too many; "
            f"its next one is taken from {until} on, in {seconds} s",
            evidence={"strikes": str(found.count), "until": until},
        )

    def _cooling(self, who: str, name: str, most: int) -> _Strikes | None:
        found = self._strikes.get((who, name))
        return found if found is not None and found.too_many(most) and found.until_s > self._clock.monotonic() else None


def no_rate(network: Network) -> OverloadFault:
    """A budget in dollars cannot be held without a fresh rate."""
    return OverloadFault(
        "no_dollar_rate", f"the gas budget is in dollars, and no fresh rate of the coin of {network} is known; ask again later"
    )
