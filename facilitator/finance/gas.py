"""The gas report: its columns, and how a posted entry in the coin of a network fills them. Pure.

It has every wei that moved a relayer's account, also for transactions that paid nobody, so its sums are those of the gas
book. Gas for payments is told settlement by settlement, too, in the settlement detail report (`finance/detail.py`).
"""

from typing import Final

from facilitator.domain.money import decimal_text
from facilitator.domain.periods import local_date
from facilitator.domain.rates import RATE_DECIMALS, usd_micros
from facilitator.domain.schedules import USD_DECIMALS
from facilitator.finance.detail import NATIVE_DECIMALS, Cell, Column, rate_source, whole_text
from facilitator.store.books import GasLine
from facilitator.units import Wei, Zone

REPORT_VERSION: Final = 1

COLUMNS: Final = tuple(
    Column(*column)
    for column in (
        ("reporting_category", "text"),
        ("network", "text"),
        ("asset", "text"),
        ("relayer", "text"),
        ("debit", "text"),
        ("credit", "text"),
        ("amount_atomic", "integer"),
        ("amount", "decimal"),
        ("included_at_utc", "time"),
        ("finalized_at_utc", "time"),
        ("booked_at_utc", "time"),
        ("local_date", "text"),
        ("period", "text"),
        ("tx_hash", "text"),
        ("tx_nonce", "count"),
        ("block_number", "count"),
        ("block_hash", "text"),
        ("settlements", "count"),
        ("gas_used", "count"),
        ("effective_gas_price_wei", "integer"),
        ("l2_fee_wei", "integer"),
        ("l1_fee_wei", "integer"),
        ("operator_fee_wei", "integer"),
        ("eth_usd", "decimal"),
        ("eth_usd_source", "text"),
        ("eth_usd_at_utc", "time"),
        ("gas_cost_usd", "decimal"),
        ("reference", "text"),
        ("entry_ids", "text"),
        ("seal_no", "count"),
    )
)


def category(line: GasLine) -> str:
    """Which of the report's categories an entry counts under: `gas_` and the cause, or what was done to a relayer's balance."""
    account, _, rest = line.debit.partition(":")
    if account == "gas_expense":
        return f"gas_{rest.rpartition(':')[2]}"
    if account == "gas" and line.credit.startswith("funding:"):
        return "relayer_topup"
    if account == "funding" and line.credit.startswith("gas:"):
        return "relayer_sweep"
    return "correction"


def cells(line: GasLine, zone: Zone) -> list[Cell]:
    """The row of an entry, in the order of `COLUMNS`; empty cells are facts that are not known, or not of its kind."""
    day = local_date(line.happened_at, zone)
    price = line.effective_gas_price_wei
    mined = line.gas_used is not None
    rate = line.usd_e8 if line.rate_fresh else None
    known: dict[str, Cell] = {
        "reporting_category": category(line),
        "network": line.network,
        "asset": "native",
        "relayer": next((name.rpartition(":")[2] for name in (line.credit, line.debit) if name.startswith("gas:")), None),
        "debit": line.debit,
        "credit": line.credit,
        "amount_atomic": str(line.amount_wei),
        "amount": decimal_text(line.amount_wei, NATIVE_DECIMALS),
        "included_at_utc": line.included_at if mined else None,
        "finalized_at_utc": line.happened_at if mined else None,
        "booked_at_utc": line.booked_at,
        "local_date": day.isoformat(),
        "period": f"{day:%Y-%m}",
        "tx_hash": line.tx_hash,
        "tx_nonce": line.tx_nonce,
        "block_number": line.block_number,
        "block_hash": line.block_hash,
        "settlements": line.settlements if mined else None,
        "gas_used": line.gas_used,
        "effective_gas_price_wei": whole_text(price),
        "l2_fee_wei": None if line.gas_used is None or price is None else str(line.gas_used * price),
        "l1_fee_wei": whole_text(line.l1_fee_wei),
        "operator_fee_wei": whole_text(line.operator_fee_wei),
        "eth_usd": None if rate is None else decimal_text(rate, RATE_DECIMALS),
        "eth_usd_source": rate_source(line),
        "eth_usd_at_utc": line.rate_at,
        "gas_cost_usd": None if rate is None else decimal_text(usd_micros(Wei(line.amount_wei), rate), USD_DECIMALS),
        "reference": line.reference,
        "entry_ids": f"{line.pending_entry_id} {line.entry_id}",
        "seal_no": line.seal_no,
    }
    return [known[column.name] for column in COLUMNS]
