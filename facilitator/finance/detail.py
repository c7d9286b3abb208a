"""The settlement detail report: its columns, and how a line of the books fills them. Pure.

One row is one admission of a settlement that has ended: posted when we paid, voided when it ended otherwise. A row of a
past period never changes. The columns and their order change only with `REPORT_VERSION`.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, Literal, NamedTuple

from facilitator.domain.money import decimal_text
from facilitator.domain.periods import local_date
from facilitator.domain.rates import RATE_DECIMALS
from facilitator.domain.schedules import USD_DECIMALS, Charge
from facilitator.domain.screening import decode_screening
from facilitator.finance.pricing import gas_cost_micros
from facilitator.store.books import GasLine, SettlementLine
from facilitator.units import Address, Network, Zone

REPORT_VERSION: Final = 1
NATIVE_DECIMALS: Final = 18
"""Of the network's own coin."""
UNIX_MAX: Final = 253_402_300_799
"""The last second of the year 9999; a payer may write any later one, which no calendar shows."""

Kind = Literal["text", "count", "integer", "decimal", "time"]
"""`count` fits 64 bits; `integer` is of any size and `decimal` exact, both as text in every file; `time` is UTC."""
Cell = str | int | datetime | None


class Column(NamedTuple):
    """One column of a report."""

    name: str
    kind: Kind


COLUMNS: Final = tuple(
    Column(*column)
    for column in (
        ("settlement_id", "text"),
        ("tenant", "text"),
        ("api_key_id", "text"),
        ("payment_identifier", "text"),
        ("request_id", "text"),
        ("x402_version", "count"),
        ("scheme", "text"),
        ("network", "text"),
        ("asset", "text"),
        ("asset_decimals", "count"),
        ("payer", "text"),
        ("pay_to", "text"),
        ("amount_atomic", "integer"),
        ("amount", "decimal"),
        ("auth_nonce", "text"),
        ("valid_after_utc", "time"),
        ("valid_before_utc", "time"),
        ("resource", "text"),
        ("state", "text"),
        ("reason", "text"),
        ("requested_at_utc", "time"),
        ("submitted_at_utc", "time"),
        ("included_at_utc", "time"),
        ("finalized_at_utc", "time"),
        ("booked_at_utc", "time"),
        ("local_date", "text"),
        ("tx_hash", "text"),
        ("log_index", "count"),
        ("block_number", "count"),
        ("block_hash", "text"),
        ("settled_by", "text"),
        ("relayer", "text"),
        ("tx_nonce", "count"),
        ("gas_used", "count"),
        ("effective_gas_price_wei", "integer"),
        ("l2_fee_wei", "integer"),
        ("l1_fee_wei", "integer"),
        ("operator_fee_wei", "integer"),
        ("total_fee_wei", "integer"),
        ("total_fee_eth", "decimal"),
        ("eth_usd", "decimal"),
        ("eth_usd_source", "text"),
        ("eth_usd_at_utc", "time"),
        ("gas_cost_usd", "decimal"),
        ("fee_usd", "decimal"),
        ("fee_schedule_version", "text"),
        ("margin_usd", "decimal"),
        ("screening_decision", "text"),
        ("screening_list_version", "text"),
        ("reporting_category", "text"),
        ("period", "text"),
        ("entry_ids", "text"),
        ("seal_no", "count"),
    )
)


def category(line: SettlementLine) -> str:
    """Which of the report's categories a line counts under."""
    if line.phase == "posted":
        return "settlement"
    return "settlement_external" if line.state == "external" else "unpaid"


def cells(line: SettlementLine, charge: Charge | None, zone: Zone, decimals: Mapping[tuple[Network, Address], int]) -> list[Cell]:
    """The row of a line, in the order of `COLUMNS`; empty cells are facts that are not known."""
    gas_cost = gas_cost_micros(line)
    charged = None if charge is None or charge.gas_micros is None else charge.fee_micros + charge.gas_micros
    price = line.effective_gas_price_wei
    l2_fee = None if line.gas_used is None or price is None else str(line.gas_used * price)
    kind = category(line)
    day = local_date(line.happened_at, zone)
    places = decimals.get((line.network, line.asset))
    screening = decode_screening(line.screening)
    known: dict[str, Cell] = {
        "settlement_id": str(line.settlement_id),
        "tenant": line.tenant_id,
        "payment_identifier": line.payment_identifier,
        "request_id": line.request_id,
        "scheme": line.scheme,
        "network": line.network,
        "asset": line.asset,
        "asset_decimals": places,
        "payer": line.payer,
        "pay_to": line.pay_to,
        "amount_atomic": str(line.amount_atomic),
        "amount": None if places is None else decimal_text(line.amount_atomic, places),
        "auth_nonce": line.auth_nonce,
        "valid_after_utc": _moment(line.valid_after),
        "valid_before_utc": _moment(line.valid_before),
        "resource": line.resource,
        "state": line.state,
        "reason": line.reason,
        "requested_at_utc": line.requested_at,
        "submitted_at_utc": line.submitted_at,
        "included_at_utc": line.included_at,
        "finalized_at_utc": line.finalized_at,
        "booked_at_utc": line.booked_at,
        "local_date": day.isoformat(),
        "tx_hash": line.tx_hash,
        "log_index": line.log_index,
        "block_number": line.block_number,
        "block_hash": line.block_hash,
        "settled_by": {"settlement": "us", "settlement_external": "other"}.get(kind),
        "relayer": line.relayer,
        "tx_nonce": line.tx_nonce,
        "gas_used": line.gas_used,
        "effective_gas_price_wei": whole_text(line.effective_gas_price_wei),
        "l2_fee_wei": l2_fee,
        "l1_fee_wei": whole_text(line.l1_fee_wei),
        "operator_fee_wei": whole_text(line.operator_fee_wei),
        "total_fee_wei": whole_text(line.cost_wei),
        "total_fee_eth": None if line.cost_wei is None else decimal_text(line.cost_wei, NATIVE_DECIMALS),
        "gas_cost_usd": None if not line.gas_used or gas_cost is None else decimal_text(gas_cost, USD_DECIMALS),
        "fee_usd": None if charged is None else decimal_text(charged, USD_DECIMALS),
        "fee_schedule_version": None if charge is None else str(charge.version),
        "margin_usd": None if charged is None or gas_cost is None else decimal_text(charged - gas_cost, USD_DECIMALS),
        "eth_usd": decimal_text(line.usd_e8, RATE_DECIMALS) if line.usd_e8 is not None and line.rate_fresh else None,
        "eth_usd_source": rate_source(line),
        "eth_usd_at_utc": line.rate_at,
        "screening_decision": None if screening is None else screening.decision,
        "screening_list_version": None if screening is None else " ".join(screening.lists),
        "reporting_category": kind,
        "period": f"{day:%Y-%m}",
        "seal_no": line.seal_no,
        "entry_ids": f"{line.pending_entry_id} {line.entry_id}",
    }
    return [known.get(column.name) for column in COLUMNS]


def _moment(unix_s: int) -> datetime | None:
    return datetime.fromtimestamp(unix_s, UTC) if unix_s <= UNIX_MAX else None


def rate_source(line: SettlementLine | GasLine) -> str | None:
    """Where the rate is from; for a cost without a fresh one, why there is none."""
    if line.gas_used is None:
        return None
    if line.rate_at is None:
        return "none"
    return f"{'' if line.rate_fresh else 'stale '}{line.rate_source}#{line.rate_round}"


def whole_text(number: int | None) -> str | None:
    """An integer of any size, as every file has it."""
    return None if number is None else str(number)
