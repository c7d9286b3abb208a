"""The journal as hledger reads it: an audit of our balances by a program that we did not write.

Debits are positive. A posted entry is a cleared transaction, one that is still pending a pending one, a voided one is left
out with the entry that it voids. Each file begins with the balances from before its period and ends by asserting every
balance that we have, so that a single altered unit, on one side or on both, makes `hledger check --strict` fail.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from datetime import timedelta
from typing import Final

from facilitator.domain.money import decimal_text
from facilitator.domain.periods import Period, local_date
from facilitator.finance.tables import time_text
from facilitator.store import books
from facilitator.store.books import AccountTotal, JournalLine
from facilitator.store.db import Db
from facilitator.units import Zone

_INSTANT: Final = timedelta(microseconds=1)


async def hledger_lines(db: Db, period: Period, zone: Zone, decimals: Callable[[str], int]) -> AsyncIterator[str]:
    """The text of the file, line by line, from one snapshot. `decimals` says how an asset is written. Raises StoreFault."""
    async with db.snapshot() as session:
        closing = [total async for total in books.balances(session, period.end)]
        yield f"; the journal from {time_text(period.start)} to {time_text(period.end)}, which is excluded; dates of {zone}"
        for line in _declarations(closing, decimals):
            yield line
        opening = [total async for total in books.balances(session, period.start)]
        for line in _opening(opening, period, zone, decimals):
            yield line
        async for entry in books.open_lines(session, period.start):
            for line in _transaction(entry, zone, decimals):
                yield line
        async for entry in books.journal_lines(session, period):
            if entry.phase == "posted" or (entry.phase == "pending" and entry.resolved_by is None):
                for line in _transaction(entry, zone, decimals):
                    yield line
        for line in _assertions(closing, period, zone, decimals):
            yield line


def _declarations(totals: Iterable[AccountTotal], decimals: Callable[[str], int]) -> Iterator[str]:
    """Strict checking refuses an account or a commodity that is not declared."""
    held = list(totals)
    for asset in sorted({total.asset for total in held}):
        sample = decimal_text(1000 * 10 ** decimals(asset), decimals(asset))
        yield f'commodity {sample if "." in sample else sample + "."} "{asset}"'
    for account in sorted({total.account for total in held}):
        yield f"account {account}"


def _opening(totals: Iterable[AccountTotal], period: Period, zone: Zone, decimals: Callable[[str], int]) -> Iterator[str]:
    held = [total for total in totals if total.balance_atomic]
    if held:
        yield ""
        yield f"{local_date(period.start, zone)} * opening balances"
        for total in held:
            yield f"    {total.account}  {_amount(total.balance_atomic, total.asset, decimals)}"


def _transaction(entry: JournalLine, zone: Zone, decimals: Callable[[str], int]) -> Iterator[str]:
    about = f"settlement {entry.settlement_id}" if entry.settlement_id else entry.debit.partition(":")[0]
    mark = "*" if entry.phase == "posted" else "!"
    tx_hash = f", tx:{entry.tx_hash}" if entry.tx_hash else ""
    yield ""
    yield f"{local_date(entry.happened_at, zone)} {mark} ({entry.entry_id}) {about}  ; booked:{time_text(entry.booked_at)}{tx_hash}"
    yield f"    {entry.debit}  {_amount(entry.amount_atomic, entry.asset, decimals)}"
    yield f"    {entry.credit}  {_amount(-entry.amount_atomic, entry.asset, decimals)}"


def _assertions(totals: Iterable[AccountTotal], period: Period, zone: Zone, decimals: Callable[[str], int]) -> Iterator[str]:
    held = list(totals)
    if held:
        yield ""
        yield f"{local_date(period.end - _INSTANT, zone)} * closing balances, asserted"
    for total in held:
        zero = _amount(0, total.asset, decimals)
        yield f"    {total.account}  {zero} = {_amount(total.balance_atomic + (total.pending_atomic or 0), total.asset, decimals)}"


def _amount(atomic: int, asset: str, decimals: Callable[[str], int]) -> str:
    return f'{decimal_text(atomic, decimals(asset))} "{asset}"'
