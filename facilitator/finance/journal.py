"""The journal as a table, and how each asset of the books is written. Pure."""

from collections.abc import Callable, Iterable
from typing import Final

from facilitator.domain.money import decimal_text
from facilitator.domain.schedules import USD, USD_DECIMALS
from facilitator.finance.detail import NATIVE_DECIMALS, Cell, Column
from facilitator.schemes.scheme import Token
from facilitator.store.books import JournalLine

JOURNAL_COLUMNS: Final = tuple(
    Column(*column)
    for column in (
        ("entry_id", "count"),
        ("book", "text"),
        ("phase", "text"),
        ("debit", "text"),
        ("credit", "text"),
        ("asset", "text"),
        ("amount_atomic", "integer"),
        ("amount", "decimal"),
        ("settlement_id", "text"),
        ("tx_hash", "text"),
        ("reference", "text"),
        ("resolves", "count"),
        ("resolved_by", "count"),
        ("happened_at_utc", "time"),
        ("booked_at_utc", "time"),
    )
)


def decimals_of(tokens: Iterable[Token]) -> Callable[[str], int]:
    """Decimal places by the journal's name of an asset; an asset that is configured no more is written in atomic units."""
    known = {f"{token.network}/{token.address}": token.decimals for token in tokens} | {USD: USD_DECIMALS}

    def decimals(asset: str) -> int:
        return NATIVE_DECIMALS if asset.endswith("/native") else known.get(asset, 0)

    return decimals


def journal_cells(entry: JournalLine, decimals: Callable[[str], int]) -> list[Cell]:
    """The row of an entry, in the order of `JOURNAL_COLUMNS`."""
    return [
        entry.entry_id,
        entry.book,
        entry.phase,
        entry.debit,
        entry.credit,
        entry.asset,
        str(entry.amount_atomic),
        decimal_text(entry.amount_atomic, decimals(entry.asset)),
        None if entry.settlement_id is None else str(entry.settlement_id),
        entry.tx_hash,
        entry.reference,
        entry.resolves,
        entry.resolved_by,
        entry.happened_at,
        entry.booked_at,
    ]
