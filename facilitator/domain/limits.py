"""A tenant's own limits: what its callers may ask for, how often, and how much at the same time. Pure.

They are judged before anything else of a payment, so that what they refuse costs no look at the chain and leaves no
settlement. Counters are their owner's: `Bucket` and `InFlight` are told the time and never ask for it.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from facilitator.domain.identity import AuthKey

RATED_ROUTES: Final = ("/verify", "/settle", "/settlements", "/settlements/lookup", "/settlements/{id}")
"""Routes that may have a rate: every one with a scope of tenants. Administration is never limited."""

_NETWORK: Final = re.compile(r"[-a-z0-9]{3,8}:[-_a-zA-Z0-9]{1,32}", re.ASCII)  # CAIP-2
_ADDRESS: Final = re.compile(r"0x[0-9a-f]{40}", re.ASCII)
_AMOUNT: Final = re.compile(r"0|[1-9][0-9]{0,77}", re.ASCII)
_USD: Final = re.compile(r"(0|[1-9][0-9]{0,11})(\.[0-9]{1,6})?", re.ASCII)
_COUNT_MAX: Final = 1_000_000
_LIST_MAX: Final = 1000
HELD_S: Final = 2
"""When to come again for what is held for open transactions: about as long as one is under way."""


class Rate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    """A token bucket: `burst` requests at once, refilled by `per_second`."""

    per_second: float
    burst: int


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, rename="camel"):
    """What is absent does not limit."""

    rates: dict[str, Rate] = {}
    """By route; all keys of the tenant share a bucket."""
    settlements_max: int | None = None
    """Payments that the tenant's callers may be settling at the same time."""
    payer_settlements_max: int | None = None
    """Of one payer among them."""
    networks: tuple[str, ...] | None = None
    """CAIP-2."""
    assets: tuple[str, ...] | None = None
    """Token contracts, lower case."""
    pay_to: tuple[str, ...] | None = None
    """Recipients, lower case."""
    amount_min: str | None = None
    """Least amount of a payment, decimal text in atomic units of its asset."""
    gas_wei_per_day: str | None = None
    """Gas budget of a day (UTC) on each network, in wei of its coin, decimal text."""
    gas_usd_per_day: str | None = None
    """Gas budget of a day on all networks together, in dollars, such as `12.50`."""
    payer_strikes_max: int | None = None
    """Strikes at which a payer rests for this tenant, instead of `settlement.payer_strikes_max`."""
    strikes_max: int | None = None
    """Strikes at which the tenant rests, instead of `settlement.tenant_strikes_max`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Breach:
    """A limit that forbids a request."""

    limit: str
    """Its name as the tenant's limits spell it."""
    message: str
    facts: Mapping[str, object]
    """For programs: what is allowed and what came, or how much and how much is left."""
    frees_s: int | None = None
    """Seconds until it lets such a request through again; None: waiting does not help."""


# ---- reading and changing


def decode_limits(text: str | bytes) -> Limits:
    """Limits from JSON. Raises ValueError that says what is wrong with them."""
    try:
        return _checked(msgspec.json.decode(text, type=Limits))
    except msgspec.DecodeError as error:
        raise ValueError(f"limits: {error}") from None


def encode_limits(limits: Limits) -> str:
    """Limits as JSON, in one spelling."""
    return msgspec.json.encode(limits, order="sorted").decode()


def patched(limits: Limits, patch: Mapping[str, object]) -> Limits:
    """Limits with some replaced, and those ended that the patch has as null (RFC 7396). Raises ValueError."""
    merged = _merge(msgspec.to_builtins(limits), patch)
    try:
        return _checked(msgspec.convert(merged, type=Limits))
    except msgspec.ValidationError as error:
        raise ValueError(f"limits: {error}") from None


def _merge(tree: object, patch: object) -> object:
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(tree) if isinstance(tree, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _merge(merged.get(name), value)
    return merged


def _checked(limits: Limits) -> Limits:
    """The same in our spelling: addresses in lower case, each named once."""
    for route, rate in limits.rates.items():
        if route not in RATED_ROUTES:
            raise ValueError(f"limits: rates: expected some of {', '.join(RATED_ROUTES)}, got {route[:64]!r}")
        if not (0.001 <= rate.per_second <= _COUNT_MAX and 1 <= rate.burst <= _COUNT_MAX):
            raise ValueError(f"limits: rates: {route}: expected perSecond from 0.001 and burst from 1 to {_COUNT_MAX}")
    for name, count, least in (
        ("settlementsMax", limits.settlements_max, 0),
        ("payerSettlementsMax", limits.payer_settlements_max, 0),
        ("payerStrikesMax", limits.payer_strikes_max, 1),
        ("strikesMax", limits.strikes_max, 1),
    ):
        if count is not None and not least <= count <= _COUNT_MAX:
            raise ValueError(f"limits: {name}: expected {least} to {_COUNT_MAX}, got {count}")
    for name, text, form, expected in (
        ("amountMin", limits.amount_min, _AMOUNT, "an integer in atomic units as text"),
        ("gasWeiPerDay", limits.gas_wei_per_day, _AMOUNT, "an integer in wei as text"),
        ("gasUsdPerDay", limits.gas_usd_per_day, _USD, "dollars as text such as 12.50"),
    ):
        if text is not None and not form.fullmatch(text):
            raise ValueError(f"limits: {name}: expected {expected}, got {text[:80]!r}")
    return msgspec.structs.replace(
        limits,
        networks=_listed("networks", limits.networks, _NETWORK, "a CAIP-2 network such as eip155:8453"),
        assets=_listed("assets", _lower(limits.assets), _ADDRESS, "an address"),
        pay_to=_listed("payTo", _lower(limits.pay_to), _ADDRESS, "an address"),
    )


def _lower(entries: tuple[str, ...] | None) -> tuple[str, ...] | None:
    return None if entries is None else tuple(entry.lower() for entry in entries)


def _listed(name: str, entries: tuple[str, ...] | None, form: re.Pattern[str], expected: str) -> tuple[str, ...] | None:
    if entries is None:
        return None
    if len(entries) > _LIST_MAX:
        raise ValueError(f"limits: {name}: expected at most {_LIST_MAX} entries")
    for entry in entries:
        if not form.fullmatch(entry):
            raise ValueError(f"limits: {name}: expected {expected}, got {entry[:64]!r}")
    return tuple(dict.fromkeys(entries))


# ---- judging


def judge_terms(limits: Limits, network: str, asset: str, pay_to: str, amount_atomic: int) -> Breach | None:
    """The first limit that forbids a payment of these terms. Addresses in lower case."""
    lists = (("networks", limits.networks, network), ("assets", limits.assets, asset), ("payTo", limits.pay_to, pay_to))
    for name, allowed, got in lists:
        if allowed is not None and got not in allowed:
            message = f"{name}: this tenant's payments are limited to {', '.join(allowed) or 'none'}; got {got}"
            return Breach(limit=name, message=message, facts={"allowed": allowed, "got": got})
    if limits.amount_min is not None and amount_atomic < int(limits.amount_min):
        message = f"amountMin: this tenant's payments are of {limits.amount_min} atomic units at least; got {amount_atomic}"
        return Breach(limit="amountMin", message=message, facts={"min": limits.amount_min, "got": str(amount_atomic)})
    return None


@dataclass(slots=True)
class Bucket:
    """Requests that may still be sent, and as of when."""

    tokens: float
    filled_at_s: float

    def take(self, per_second: float, burst: int, now_s: float, kept: float = 0) -> float | None:
        """One request, with `kept` left to others: None, it may go; otherwise in how many seconds the next one may.

        The rate may change between calls.
        """
        self.tokens = min(burst, self.tokens + (now_s - self.filled_at_s) * per_second)
        self.filled_at_s = now_s
        if self.tokens < 1 + kept:
            return (1 + kept - self.tokens) / per_second
        self.tokens -= 1
        return None

    def give_back(self, burst: int) -> None:
        """One that is not to count."""
        self.tokens = min(burst, self.tokens + 1)


def too_fast(limit: str, who: str, path: str, per_second: float, burst: int, wait_s: float) -> Breach:
    """What an empty bucket tells."""
    frees_s = max(1, math.ceil(wait_s))
    message = f"{who} may send {per_second:g} requests a second to {path}, {burst} at once; the next one in {frees_s} s"
    return Breach(limit=limit, message=message, facts={"perSecond": per_second, "burst": burst, "left": 0}, frees_s=frees_s)


class Looks:
    """Looks at the chain for payers whose keys did not sign: how many one tenant may cause, and all of them together.

    Half of what all have is kept for tenants who have used less than half of their own, so that one that is flooded takes
    nobody else's wallets off the air.
    """

    def __init__(self, tenant: Rate, total: Rate) -> None:
        self._tenant, self._total = tenant, total
        self._all = Bucket(total.burst, 0.0)
        self._of: dict[str, Bucket] = {}

    def take(self, tenant_id: str, now_s: float) -> Breach | None:
        """One look, unless the limit that it would exceed is returned."""
        own = self._of.setdefault(tenant_id, Bucket(self._tenant.burst, now_s))
        if (wait_s := own.take(self._tenant.per_second, self._tenant.burst, now_s)) is not None:
            return _too_many_looks("settlement.stranger_looks_per_s", "this tenant", self._tenant, wait_s)
        kept = self._total.burst / 2 if own.tokens < self._tenant.burst / 2 else 0
        if (wait_s := self._all.take(self._total.per_second, self._total.burst, now_s, kept)) is not None:
            own.give_back(self._tenant.burst)
            return _too_many_looks("settlement.stranger_looks_total_per_s", "all tenants together", self._total, wait_s)
        return None

    def give_back(self, tenant_id: str) -> None:
        """It found a wallet that took the signature: it does not count."""
        self._all.give_back(self._total.burst)
        self._of[tenant_id].give_back(self._tenant.burst)


def _too_many_looks(limit: str, who: str, rate: Rate, wait_s: float) -> Breach:
    frees_s = max(1, math.ceil(wait_s))
    message = (
        f"{limit}: this signature is not by the payer's key, and whether the payer is a wallet whose code takes it is not asked now: "
        f"for {who}, {rate.per_second:g} such looks a second are taken in vain, {rate.burst} at once; the next one in {frees_s} s"
    )
    return Breach(limit=limit, message=message, facts={"perSecond": rate.per_second, "burst": rate.burst, "left": 0}, frees_s=frees_s)


def over_budget(limit: str, unit: str, most: int, used: int, need: int, spent: int, ends_in_s: float) -> Breach | None:
    """A gas budget that does not suffice for one more payment. `used` is `spent` and what open transactions may cost.

    What is held for those comes back within seconds; what is spent, at midnight.
    """
    if used + need <= most:
        return None
    frees_s = HELD_S if spent + need <= most else max(1, math.ceil(ends_in_s))
    budget, left, needs = (_dollars(amount) if unit == "dollars" else str(amount) for amount in (most, max(0, most - used), need))
    more = "when what is held for open transactions comes back" if frees_s == HELD_S else "at midnight UTC"
    message = (
        f"{limit}: of this tenant's gas budget for today, {budget} {unit}, {left} is left, and a payment may cost {needs}; more {more}"
    )
    return Breach(limit=limit, message=message, facts={"max": budget, "left": left, "needs": needs, "unit": unit}, frees_s=frees_s)


def _dollars(micros: int) -> str:
    return f"{micros // 10**6}.{micros % 10**6:06}"


def cooling_down(limit: str, most: int, strikes: int, paid: int, frees_s: float) -> Breach:
    """What a tenant with too many strikes is told."""
    seconds = max(1, math.ceil(frees_s))
    message = (
        f"{limit}: {strikes} payments of this tenant's cost gas and paid nobody, and {paid} were made; "
        f"{most} are too many unless as many are made; "
        f"no new ones are taken for {seconds} s; what is under way goes on"
    )
    return Breach(limit=limit, message=message, facts={"max": most, "strikes": strikes, "paid": paid, "left": 0}, frees_s=seconds)


@dataclass(slots=True)
class _Flight:
    callers: int
    until_s: float
    """When the last of them has been answered at the latest."""


@dataclass(slots=True)
class InFlight:
    """Payments being settled for each tenant's callers. Several callers with one payment count once."""

    _of: dict[str, dict[AuthKey, _Flight]] = field(default_factory=dict)

    def enter(self, tenant_id: str, limits: Limits, key: AuthKey, until_s: float, now_s: float) -> Breach | None:
        """One more caller, answered by `until_s`: counted, unless the limit that it would exceed is returned."""
        flights = self._of.get(tenant_id, {})
        if key not in flights:
            breach = _full("settlementsMax", limits.settlements_max, flights, now_s)
            if breach is None and limits.payer_settlements_max is not None:
                same = {other: flight for other, flight in flights.items() if other.payer == key.payer}
                breach = _full("payerSettlementsMax", limits.payer_settlements_max, same, now_s)
            if breach is not None:
                return breach
        flight = self._of.setdefault(tenant_id, {}).setdefault(key, _Flight(0, until_s))
        flight.callers += 1
        flight.until_s = max(flight.until_s, until_s)
        return None

    def leave(self, tenant_id: str, key: AuthKey) -> None:
        """A caller that was counted is answered, or gone."""
        flights = self._of[tenant_id]
        flights[key].callers -= 1
        if not flights[key].callers:
            del flights[key]
            if not flights:
                del self._of[tenant_id]


def _full(limit: str, most: int | None, flights: Mapping[AuthKey, _Flight], now_s: float) -> Breach | None:
    if most is None or len(flights) < most:
        return None
    of = "of one payer " if limit == "payerSettlementsMax" else ""
    message = f"{limit}: this tenant may have {most} settlements {of}under way at the same time; {len(flights)} are"
    first_s = min((flight.until_s for flight in flights.values()), default=None)
    frees_s = None if first_s is None else max(1, math.ceil(first_s - now_s))
    return Breach(limit=limit, message=message, facts={"max": most, "left": 0}, frees_s=frees_s)
