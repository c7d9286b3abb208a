"""How facts are written on a page: amounts, times, hashes, words for states. Pure; never a float, never a rounded amount.

Everything returned is safe to stand in HTML: what came from outside is escaped here, once.
"""

from datetime import UTC, date, datetime
from typing import Final
from zoneinfo import ZoneInfo

from markupsafe import Markup

from facilitator.domain.money import decimal_text
from facilitator.domain.rates import RATE_DECIMALS
from facilitator.domain.schedules import USD_DECIMALS
from facilitator.domain.states import PAID, UNRESOLVED, State
from facilitator.protocol.address import checksum_address
from facilitator.units import Address, Zone

NOTHING: Final = Markup('<span class="none">–<span class="unseen">not known</span></span>')
"""A fact that is not known. Never 0."""
_MAIN_PLACES: Final = 2
_COIN_PLACES: Final = 6
_TAIL: Final = 4
_SIZES: Final = (("GB", 10**9), ("MB", 10**6), ("kB", 10**3))
_MINUTE_S: Final = 60
_HOUR_S: Final = 3_600
_DAY_S: Final = 86_400


def amount(atomic: int | None, decimals: int | None) -> Markup:
    """`1,234.567800`, every digit shown; those beyond cents are paler. In atomic units when the decimals are not known."""
    if atomic is None:
        return NOTHING
    if decimals is None:
        return Markup('<data class="figure" value="{}">{}</data>').format(atomic, f"{atomic:,}")
    return _figure(decimal_text(atomic, decimals), _MAIN_PLACES)


def usd(micros: int | None) -> Markup:
    """Micro-dollars as dollars."""
    return amount(micros, USD_DECIMALS)


def money(text: str) -> Markup:
    """Decimal text that is exact already."""
    return _figure(text, _MAIN_PLACES)


def coin(wei: int | None) -> Markup:
    """Wei as the network's own coin, all 18 decimals."""
    return NOTHING if wei is None else _figure(decimal_text(wei, 18), _COIN_PLACES)


def rate(usd_e8: int | None) -> Markup:
    """Dollars for one coin."""
    return NOTHING if usd_e8 is None else _figure(decimal_text(usd_e8, RATE_DECIMALS), _MAIN_PLACES)


def count(number: int | None) -> Markup:
    """`1,234`."""
    return NOTHING if number is None else Markup('<span class="figure">{}</span>').format(f"{number:,}")


def _figure(text: str, main_places: int) -> Markup:
    whole, _, part = text.partition(".")
    sign, digits = ("−", whole[1:]) if whole.startswith("-") else ("", whole)
    main = f"{sign}{int(digits):,}"
    if not part:
        return Markup('<data class="figure" value="{}">{}</data>').format(text, main)
    return Markup('<data class="figure" value="{}">{}.{}<span class="fine">{}</span></data>').format(
        text, main, part[:main_places], part[main_places:]
    )


def grouped(text: str) -> str:
    """Decimal text with thousands separators, for prose and labels."""
    whole, dot, part = text.partition(".")
    return f"{int(whole):,}{dot}{part}"


def trimmed(text: str) -> str:
    """Decimal text without noughts at its end."""
    return text.rstrip("0").rstrip(".") if "." in text else text


def moment(instant: datetime | None, zone: Zone) -> Markup:
    """`2026-11-21 08:30:00` on a clock of the zone; the page says which. Readable by machines in UTC."""
    if instant is None:
        return NOTHING
    local = instant.astimezone(ZoneInfo(zone))
    return Markup('<time datetime="{}" title="{}"><span class="day">{}</span> {}</time>').format(
        instant.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        f"{local:%Y-%m-%d %H:%M:%S.%f} {local.tzname()}",
        f"{local:%Y-%m-%d}",
        f"{local:%H:%M:%S}",
    )


def day(when: date) -> Markup:
    """`Sat 21 Nov 2026`."""
    return Markup('<time datetime="{}">{}</time>').format(when.isoformat(), f"{when:%a} {when.day} {when:%b %Y}")


def span(seconds: int) -> str:
    """`45 s`, `12 min`, `5 h 10 min`, `3 d 4 h`: the two largest units."""
    if seconds < _MINUTE_S:
        return f"{seconds} s"
    if seconds < _HOUR_S:
        return f"{seconds // _MINUTE_S} min"
    if seconds < _DAY_S:
        return f"{seconds // _HOUR_S} h {seconds % _HOUR_S // _MINUTE_S} min"
    return f"{seconds // _DAY_S} d {seconds % _DAY_S // _HOUR_S} h"


def size(count_bytes: int) -> str:
    """`812 B`, `4.5 MB`: in powers of 1000, one place, cut."""
    unit, worth = next((pair for pair in _SIZES if count_bytes >= pair[1]), ("B", 1))
    return f"{count_bytes} B" if worth == 1 else f"{count_bytes // worth}.{count_bytes * 10 // worth % 10} {unit}"


def address(account: str | None) -> Markup:
    """An account in EIP-55, shortened for the eye and whole for the clipboard."""
    return NOTHING if account is None else short(checksum_address(Address(account)))


def short(text: str | None) -> Markup:
    """A hash or an account: the middle is cut away by the style sheet only, so that what is copied is whole."""
    if text is None:
        return NOTHING
    return Markup('<span class="hash" title="{}"><span class="head">{}</span>{}</span>').format(text, text[:-_TAIL], text[-_TAIL:])


def whole(text: str | None) -> Markup:
    """A hash in full; it breaks where the line ends."""
    return NOTHING if text is None else Markup('<span class="hash whole">{}</span>').format(text)


def kind_of(state: str) -> str:
    """The class of a state in the style sheet: did we pay, is it open, or did it end otherwise?"""
    known = State(state)
    if known in PAID:
        return "good" if known is State.FINALIZED else "going"
    if known in UNRESOLVED:
        return "going"
    return "warn" if known is State.EXTERNAL else "bad"


def permille(part: int, of: int) -> str:
    """`98.7 %`, cut and not rounded up: 100.0 % means all of it."""
    thousandths = part * 1_000 // of
    return f"{thousandths // 10}.{thousandths % 10} %"
