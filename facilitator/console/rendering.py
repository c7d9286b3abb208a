"""What templates write facts with: every filter is a pure function of `show` or `names`."""

from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta
from typing import Any, Final

from jinja2 import Environment, pass_context
from jinja2.runtime import Context
from markupsafe import Markup

from facilitator.console import names, show
from facilitator.protocol.address import checksum_address
from facilitator.units import Address


def equip(templates: Environment, assets: names.Assets) -> None:
    """Give templates what they write facts with; `zone` is a variable of every page."""
    templates.filters.update(_FILTERS)
    templates.filters.update(
        unit=assets.unit,
        decimals=assets.decimals,
        token_unit=lambda token: assets.token_unit(*token),
        token_decimals=lambda token: assets.token_decimals(*token),
    )


@pass_context
def _moment(context: Context, instant: datetime | None) -> Markup:
    return show.moment(instant, context["zone"])


def _ledger_account(name: str) -> Markup:
    """An account of the books: its kind, and the address at its end shortened."""
    kind, _, rest = name.rpartition(":")
    if kind and rest.startswith("0x"):
        return Markup("{}:{}").format(kind, show.address(rest))
    return Markup("{}").format(name)


def _day(when: date | str) -> Markup:
    return show.day(date.fromisoformat(when) if isinstance(when, str) else when)


def _after(day: date) -> date:
    return day + timedelta(days=1)


_FILTERS: Final[Mapping[str, Callable[..., Any]]] = {
    "account": lambda address: show.whole(checksum_address(Address(address))),
    "address": show.address,
    "after": _after,
    "amount": show.amount,
    "class_text": names.class_text,
    "coin": show.coin,
    "coin_name": names.coin,
    "count": show.count,
    "day": _day,
    "kind": show.kind_of,
    "ledger_account": _ledger_account,
    "moment": _moment,
    "money": show.money,
    "network": names.network,
    "rate": show.rate,
    "reason": names.reason,
    "short": show.short,
    "span": show.span,
    "state_text": names.STATES.__getitem__,
    "size": show.size,
    "usd": show.usd,
    "whole": show.whole,
    "words": names.words,
}
