"""The nine ways in which books and chain may disagree. Pure."""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from facilitator.units import TxHash

CLASSES: Final = {
    "R1": "booked as paid, and the chain has no such log",
    "R2": "paid by a transaction of ours, and not booked",
    "R3": "amount, payee or asset differs",
    "R4": "executed by somebody else's transaction",
    "R5": "gas cost differs from the receipt",
    "R6": "a relayer's balance is not what its entries say",
    "R7": "one authorization booked twice",
    "R8": "booked in a block that left the canonical chain",
    "R9": "cancelled by the payer after it was admitted",
}
"""By the name that reports and notes use."""
PRECEDENCE: Final = ("R7", "R8", "R1", "R3", "R2", "R9", "R4", "R5", "R6")
"""A settlement is reported under the first of these that applies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One disagreement."""

    class_: str
    """One of `CLASSES`."""
    subject: str
    """What it is about, the same each time it is found: a settlement, a log, a transaction, a relayer at a block."""
    expected: str
    got: str
    settlement_id: UUID | None = None
    tx_hash: TxHash | None = None
    block_number: int | None = None
    asset: str | None = None
    """As the journal names it."""
    value_atomic: int | None = None


def worst(findings: list[Finding]) -> list[Finding]:
    """One finding for each subject: the first by precedence."""
    chosen: dict[str, Finding] = {}
    for finding in sorted(findings, key=lambda finding: PRECEDENCE.index(finding.class_)):
        chosen.setdefault(finding.subject, finding)
    return list(chosen.values())
