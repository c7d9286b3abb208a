"""Looks at a range of blocks for the nine classes of discrepancy, records what it finds, and does so continuously.

What the ledger and the chain say about settlements is compared by `reconciliation`; here each difference gets its class,
and gas costs and relayer balances are looked at too. A finding keeps its age until it is gone or somebody explained it.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Final

import structlog

from facilitator.chain.evm import EvmClient
from facilitator.clock import Clock
from facilitator.domain.discrepancies import CLASSES, Finding, worst
from facilitator.domain.postings import Entry
from facilitator.domain.states import State
from facilitator.errors import ChainFault, ConfigFault
from facilitator.finance.reconciliation import Difference, Kind, Report, reconcile
from facilitator.finance.settings import Settings
from facilitator.metrics import DISCREPANCIES, MATCHED_SHARE, RECONCILED_AT, RECONCILED_BLOCK
from facilitator.store import billing
from facilitator.store import discrepancies as store
from facilitator.store.db import ConstraintViolated, Db
from facilitator.store.discrepancies import MinedCost
from facilitator.store.reconciliation import LedgerRow
from facilitator.units import Address, Atomic, Network, TxHash, Wei

_RPC_S: Final = 30.0
_BLOCKS_A_LOOK: Final = 20_000
"""Blocks of one background look: what is found in them is on record before the next begins."""
log = structlog.get_logger(__name__)


async def examine(
    db: Db, evm: EvmClient, network: Network, assets: Sequence[Address], from_block: int, to_block: int, *, background: bool = False
) -> tuple[Report, list[Finding]]:
    """Look at these blocks, record the findings, and return them with the comparison. Faults as `reconcile`."""
    report = await reconcile(db, evm, network, assets, from_block, to_block)
    findings = [await _judged(evm, network, difference, report.ours) for difference in report.differences]
    findings += [_otherwise(row) for row in report.otherwise]
    costs, owed = await _costs(db, evm, network, from_block, to_block)
    findings = worst([*findings, *costs, *await _balances(db, evm, network, to_block, owed)])
    await store.record(db, network, (from_block, to_block), report.to_hash, findings, background=background)
    return report, findings


async def explain(db: Db, discrepancy_id: int, by: str, note: str, entry_id: int | None, *, book: bool) -> int | None:
    """Say what a discrepancy was, with the entry that resolves it; `book` makes that entry for a relayer's balance (R6).

    Returns the entry's id. Raises ConfigFault when there is no such discrepancy, or it cannot be explained so.
    """
    async with db.transaction() as session:
        found = await store.lock(session, discrepancy_id)
        if found is None or found.resolved_at is not None:
            raise ConfigFault("not_open", f"discrepancy {discrepancy_id} is {'explained already' if found else 'not on record'}")
        if book:
            if found.class_ != "R6" or found.value_atomic is None:
                raise ConfigFault(
                    "nothing_to_book", f"discrepancy {discrepancy_id} is {found.class_}: only a relayer's balance (R6) is booked so"
                )
            relayer, came = found.subject.partition(" ")[0], " wei: +" in found.got
            accounts = f"gas:{found.network}:{relayer}", f"funding:{found.network}"
            debit, credit = accounts if came else accounts[::-1]
            entry = Entry(debit=debit, credit=credit, asset=f"{found.network}/native", amount_atomic=Atomic(found.value_atomic))
            entry_id = await billing.post_entry(session, entry, found.first_seen_at, f"discrepancy {discrepancy_id}")
        try:
            await store.resolve(session, discrepancy_id, by, note, entry_id)
        except ConstraintViolated as broken:
            raise ConfigFault("wrong_entry", f"--entry: there is no entry {entry_id}, or it explains another discrepancy") from broken
    return entry_id


class Examiner:
    """Holds one network's ledger against its finalized blocks, for ever; one replica at a time."""

    def __init__(self, db: Db, clock: Clock, settings: Settings, evm: EvmClient, network: Network, assets: Sequence[Address]) -> None:
        self._db = db
        self._clock = clock
        self._settings = settings
        self._evm = evm
        self._network = network
        self._assets = assets
        RECONCILED_AT.labels(network)  # shown as 0 before the first

    async def run(self) -> None:
        """A look at what became final, every `reconcile_s`."""
        while True:
            await self.look()
            RECONCILED_AT.labels(self._network).set_to_current_time()
            await self._clock.sleep(self._settings.reconcile_s)

    async def look(self) -> None:
        """Every finalized block that nobody looked at yet; then the figures."""
        async with self._db.transaction(long=True) as session:
            if await store.lock_reconciling(session, self._network):
                await self._catch_up()
        for asset in await store.matched(self._db, self._network):
            MATCHED_SHARE.labels(self._network, asset.asset).set(
                asset.matched_atomic / asset.settled_atomic if asset.settled_atomic else 1.0
            )
        open_now = [found.class_ for found in await store.list_all(self._db, self._network)]
        for name in CLASSES:
            DISCREPANCIES.labels(self._network, name).set(open_now.count(name))

    async def _catch_up(self) -> None:
        final = await self._evm.block_at("finalized", self._evm.deadline_in(_RPC_S))
        through = await store.reconciled_through(self._db, self._network)
        start = final.number + 1 if through is None else through + 1
        while start <= final.number:
            end = min(final.number, start + _BLOCKS_A_LOOK - 1)
            _, findings = await examine(self._db, self._evm, self._network, self._assets, start, end, background=True)
            for finding in findings:
                log.warning(
                    "discrepancy.found", network=self._network, discrepancy=finding.class_, subject=finding.subject, got=finding.got
                )
            RECONCILED_BLOCK.labels(self._network).set(end)
            start = end + 1


async def _judged(evm: EvmClient, network: Network, difference: Difference, ours: AbstractSet[TxHash]) -> Finding:
    """The difference under its class."""
    row, use = difference.row, difference.use
    asset = row.asset if row is not None else use.key.asset if use is not None else None
    value = row.amount_atomic if row is not None else use.transfer.amount_atomic if use is not None and use.transfer is not None else None
    return Finding(
        class_=await _class_of(evm, difference, ours),
        subject=str(difference.settlement_id) if difference.settlement_id else f"{difference.tx_hash} {difference.log_index}",
        settlement_id=difference.settlement_id,
        tx_hash=difference.tx_hash,
        block_number=_block_of(difference),
        asset=None if asset is None else f"{network}/{asset}",
        value_atomic=value,
        expected=difference.expected,
        got=difference.got,
    )


async def _class_of(evm: EvmClient, difference: Difference, ours: AbstractSet[TxHash]) -> str:
    row, use = difference.row, difference.use
    match difference.kind:
        case Kind.PAID_TWICE:
            return "R7"
        case Kind.NOT_IN_LEDGER:
            return "R2"
        case Kind.TERMS_DIFFER | Kind.BOOKED_OTHERWISE:
            return "R3"
        case Kind.NOT_ON_CHAIN | Kind.PROOF_DIFFERS | Kind.ANSWERED_UNPAID:
            if row is not None and row.block_number is not None and not await _canonical(evm, row):
                return "R8"
            return "R4" if use is not None and not use.canceled and use.log.tx_hash not in ours else "R1"
        case Kind.OPEN_BUT_USED | Kind.STATE_DIFFERS:
            if use is not None and use.canceled:
                return "R9"
            return "R2" if use is not None and use.log.tx_hash in ours else "R4"


async def _canonical(evm: EvmClient, row: LedgerRow) -> bool:
    """Is the block that the settlement names still the one of its number?"""
    block = await evm.block(row.block_number or 0, evm.deadline_in(_RPC_S))
    return block is not None and block.block_hash == row.block_hash


def _block_of(difference: Difference) -> int | None:
    if difference.row is not None and difference.row.block_number is not None:
        return difference.row.block_number
    return difference.use.log.block_number if difference.use is not None else None


def _otherwise(row: LedgerRow) -> Finding:
    """Ledger and chain agree, and it went otherwise than was asked of us."""
    name = "R9" if row.state == State.CANCELLED else "R4"
    return Finding(
        class_=name,
        subject=str(row.settlement_id),
        settlement_id=row.settlement_id,
        tx_hash=row.tx_hash,
        block_number=row.block_number,
        asset=f"{row.network}/{row.asset}",
        value_atomic=row.amount_atomic,
        expected="a payment by a transaction of ours",
        got=f"{row.state}: {CLASSES[name]}",
    )


async def _costs(
    db: Db, evm: EvmClient, network: Network, from_block: int, to_block: int
) -> tuple[list[Finding], list[tuple[MinedCost, int]]]:
    """R5, and which transactions cost how much more than the ledger has."""
    findings: list[Finding] = []
    owed: list[tuple[MinedCost, int]] = []
    after = ""
    while page := await store.mined_costs(db, network, from_block, to_block, after):
        after = page[-1].tx_hash
        receipts = await evm.receipts([cost.tx_hash for cost in page], evm.deadline_in(_RPC_S))
        for cost, receipt in zip(page, receipts, strict=True):
            if receipt is None:  # its settlements are R1 or R8
                continue
            paid = (receipt.gas_used, receipt.effective_gas_price_wei, receipt.l1_fee_wei, receipt.operator_fee_wei)
            had = (cost.gas_used, cost.effective_gas_price_wei, cost.l1_fee_wei, cost.operator_fee_wei)
            if paid == had and (cost.booked_wei or 0) == receipt.fee_wei and cost.shared_wei in {receipt.fee_wei, None}:
                continue
            recorded = _fee(cost)
            owed.append((cost, receipt.fee_wei - recorded))
            findings.append(
                Finding(
                    class_="R5",
                    subject=cost.tx_hash,
                    tx_hash=cost.tx_hash,
                    block_number=cost.block_number,
                    asset=f"{network}/native",
                    value_atomic=abs(receipt.fee_wei - (recorded if recorded != receipt.fee_wei else cost.booked_wei or 0)),
                    expected=f"{receipt.fee_wei} wei by the receipt: gas, price, L1 and operator fee {paid}",
                    got=f"{recorded} wei on record {had}, {cost.booked_wei} booked, {cost.shared_wei} shared out",
                )
            )
    return findings, owed


def _fee(cost: MinedCost) -> int:
    """What the ledger has as paid for the transaction."""
    return (cost.gas_used or 0) * (cost.effective_gas_price_wei or 0) + (cost.l1_fee_wei or 0) + (cost.operator_fee_wei or 0)


async def _balances(db: Db, evm: EvmClient, network: Network, to_block: int, owed: Sequence[tuple[MinedCost, int]]) -> list[Finding]:
    """R6: opening balance, plus what is booked to it, less costs, against the balance at the last block."""
    findings = []
    for relayer in await store.roll_forward(db, network, to_block):
        if relayer.block_number is not None and relayer.block_number >= to_block:
            continue
        try:
            wei = await evm.balance_at(relayer.relayer, to_block, evm.deadline_in(_RPC_S))
        except ChainFault as fault:  # a node without that block's state; the next look begins where the last one ended
            log.warning("balance.unread", network=network, relayer=relayer.relayer, block=to_block, fault=fault.kind)
            continue
        if relayer.wei is not None:
            since = relayer.block_number or 0
            unrecorded = sum(wei for cost, wei in owed if cost.relayer == relayer.relayer and cost.block_number > since)
            expected = relayer.wei + relayer.moved_wei - relayer.spent_wei - unrecorded
            if wei != expected:
                findings.append(
                    Finding(
                        class_="R6",
                        subject=f"{relayer.relayer} {to_block}",
                        block_number=to_block,
                        asset=f"{network}/native",
                        value_atomic=abs(wei - expected),
                        expected=f"{expected} wei: {relayer.wei} at block {relayer.block_number}, {relayer.moved_wei} booked to it, "
                        f"{relayer.spent_wei} spent on gas",
                        got=f"{wei} wei: {'+' if wei > expected else '-'}{abs(wei - expected)}",
                    )
                )
        await store.record_balance(db, network, relayer.relayer, to_block, Wei(wei), relayer.newest_entry)
    return findings
