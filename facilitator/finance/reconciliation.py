"""The ledger held against the chain, block range by block range; every difference gets a name.

Zero differences mean "ledger = chain". The chain is read on its own terms: every use of an authorization of an asset is
taken from its logs, whatever the ledger expects there, so that what the ledger forgot is found too. `compare` is pure and
judges; `reconcile` reads, in bounded ranges and pages. It must never change either side, and never count an RPC failure
as an absence: a range that cannot be read raises.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final
from uuid import UUID

from facilitator.chain.evm import UNSEALED, EvmClient
from facilitator.domain.abi import TRANSFER_TOPIC, Log, Transfer, payment_topics, read_authorized, read_transfer
from facilitator.domain.identity import AuthKey
from facilitator.domain.postings import resolution
from facilitator.domain.states import PAID, UNRESOLVED, State
from facilitator.errors import ChainFault, ConfigFault
from facilitator.store import reconciliation as ledger
from facilitator.store import relayers
from facilitator.store.db import Db
from facilitator.store.reconciliation import LedgerRow
from facilitator.units import Address, Atomic, BlockHash, Network, TxHash

BLOCKS_MAX: Final = 2_000
"""Blocks in one `eth_getLogs`; fewer where the node wants fewer, or much is in them."""
_BLOCKS_FIRST: Final = 32
"""Blocks in the first one: nothing is known yet of how much is in them."""
_LOGS_AIMED: Final = 1_000
"""Logs in one answer, about: what is held in memory and compared between two turns of the event loop."""
DIFFERENCES_MAX: Final = 10_000
"""A comparison with more differences ends early: then something larger is wrong."""
_RPC_S: Final = 30.0
_CLAIMS: Final = PAID | {State.EXTERNAL, State.CANCELLED, State.CONFLICT}
"""States whose row names the log that proves them."""


class Kind(StrEnum):
    """What is wrong, in one word."""

    NOT_ON_CHAIN = "not_on_chain"
    """The ledger names a log that the chain does not have."""
    NOT_IN_LEDGER = "not_in_ledger"
    """A transaction of ours paid on chain, and the ledger does not say so."""
    TERMS_DIFFER = "terms_differ"
    """Ledger and chain disagree about amount, payTo or payer."""
    PROOF_DIFFERS = "proof_differs"
    """The authorization was used, but by another transaction, log or block than the ledger says."""
    PAID_TWICE = "paid_twice"
    """One authorization used twice on chain, or two payments in the ledger with one proof."""
    ANSWERED_UNPAID = "answered_unpaid"
    """A caller was told success, and the chain does not have the payment."""
    OPEN_BUT_USED = "open_but_used"
    """The ledger still waits for the outcome of an authorization that the chain has used or cancelled."""
    STATE_DIFFERS = "state_differs"
    """The settlement's state says something else than the chain's log."""
    BOOKED_OTHERWISE = "booked_otherwise"
    """The journal's entries are not those of the settlement's terms and state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One disagreement between ledger and chain."""

    kind: Kind
    settlement_id: UUID | None
    """None when the ledger has no settlement for what the chain shows."""
    tx_hash: TxHash | None
    log_index: int | None
    expected: str
    """What one side says."""
    got: str
    """What the other side says in its place."""
    row: LedgerRow | None = field(default=None, compare=False, repr=False)
    """The settlement, when there is one."""
    use: "Use | None" = field(default=None, compare=False, repr=False)
    """What the chain shows, when it shows something."""

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.kind}: settlement {self.settlement_id}, transaction {self.tx_hash}: expected {self.expected}, got {self.got}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a reconciliation found in a range of blocks."""

    network: Network
    from_block: int
    to_block: int
    to_hash: BlockHash
    """Hash of the last block: a reorganisation below it makes the report void."""
    payments: int
    """Settlements that the ledger has as paid by us in these blocks."""
    transfers: int
    """Payments that transactions of ours made in these blocks."""
    amounts_atomic: Mapping[Address, Atomic]
    """What those transfers moved, by asset."""
    ours: AbstractSet[TxHash]
    """Transactions of ours among those that used an authorization."""
    otherwise: tuple[LedgerRow, ...]
    """Settlements that somebody else executed, or whose payer cancelled, as the ledger has them too."""
    differences: tuple[Difference, ...]
    """Empty: ledger = chain. At most `DIFFERENCES_MAX` and those of one more range."""

    @property
    def balanced(self) -> bool:
        """Ledger = chain."""
        return not self.differences


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One AuthorizationUsed or AuthorizationCanceled log, with the Transfer right behind it."""

    key: AuthKey
    canceled: bool
    transfer: Transfer | None
    log: Log

    @property
    def place(self) -> tuple[TxHash, int]:
        """Where it stands."""
        return self.log.tx_hash, self.log.log_index

    def __str__(self) -> str:
        """For `expected` and `got`."""
        return f"{'cancelled' if self.canceled else 'used'} by {self.log.tx_hash} log {self.log.log_index} in block {self.log.block_number}"


def compare(rows: Iterable[LedgerRow], logs: Sequence[Log], ours: AbstractSet[TxHash]) -> tuple[Difference, ...]:
    """Judge settlements of one network against the complete logs of the blocks that they claim; `ours` are our transactions.

    `logs` hold every AuthorizationUsed, AuthorizationCanceled and Transfer of the assets in those blocks. A row that claims
    a log elsewhere belongs in `rows` only if these logs mention its authorization.
    """
    held = list(rows)
    judge = _Judge(held, _uses(held[0].network if held else Network(""), logs), ours)
    return tuple(difference for row in held for difference in judge.row(row)) + tuple(judge.unclaimed())


async def reconcile(db: Db, evm: EvmClient, network: Network, assets: Sequence[Address], from_block: int, to_block: int) -> Report:
    """Hold the ledger against the chain from `from_block` to `to_block`, both included and both in the past.

    The chain is read first, so a settlement that ends meanwhile is no difference. Raises ChainFault when a block cannot be
    read, StoreFault when Postgres cannot.
    """
    if not 0 <= from_block <= to_block:
        raise ConfigFault("bad_range", "expected 0 <= from_block <= to_block", from_block=from_block, to_block=to_block)
    last = await evm.block(to_block, evm.deadline_in(_RPC_S))
    if last is None:
        raise ChainFault("no_block", f"{network} has no block {to_block} yet", network=network)
    tally = _Tally()
    start, step, most = from_block, _BLOCKS_FIRST, BLOCKS_MAX
    while start <= to_block and len(tally.differences) < DIFFERENCES_MAX:
        end = min(start + step - 1, to_block)
        try:
            logs = await evm.logs(evm.deadline_in(_RPC_S), addresses=assets, topics=payment_topics(), from_block=start, to_block=end)
        except ChainFault as fault:
            if fault.kind != "range_too_large" or end == start:
                raise
            step = most = max(1, (end - start + 1) // 2)
            continue
        await tally.add(db, network, logs, start, end)
        start, step = end + 1, min(most, _next_step(end - start + 1, len(logs)))
    async for page in ledger.claimless_in_blocks(db, network, from_block, to_block):
        tally.differences += compare((row for row in page if row.settlement_id not in tally.judged), (), frozenset())
        if len(tally.differences) >= DIFFERENCES_MAX:
            break
    return Report(
        network=network,
        from_block=from_block,
        to_block=to_block,
        to_hash=last.block_hash,
        payments=tally.payments,
        transfers=tally.transfers,
        amounts_atomic=dict(tally.amounts_atomic),
        ours=frozenset(tally.ours),
        otherwise=tuple(tally.otherwise),
        differences=tuple(tally.differences),
    )


def _next_step(blocks: int, logs: int) -> int:
    """Blocks to ask for next, when these had so many logs: as many as it takes for `_LOGS_AIMED`, and at most twice these."""
    return max(1, min(2 * blocks, blocks * _LOGS_AIMED // max(1, logs)))


class _Tally:
    """What the ranges so far came to."""

    def __init__(self) -> None:
        self.differences: list[Difference] = []
        self.judged: set[UUID] = set()
        """Settlements without a proof that the chain mentioned all the same."""
        self.ours: set[TxHash] = set()
        self.otherwise: list[LedgerRow] = []
        self.payments = 0
        self.transfers = 0
        self.amounts_atomic: dict[Address, Atomic] = defaultdict(lambda: Atomic(0))

    async def add(self, db: Db, network: Network, logs: Sequence[Log], start: int, end: int) -> None:
        """Compare one range of blocks, whose logs these are."""
        uses = _uses(network, logs)
        ours = await _ours(db, uses)
        rows = {row.settlement_id: row for row in await ledger.rows_of_authorizations(db, network, {use.key for use in uses})}
        async for page in ledger.claims_in_blocks(db, network, start, end):
            rows.update((row.settlement_id, row) for row in page)
        self.differences += compare(rows.values(), logs, ours)
        self.judged.update(row.settlement_id for row in rows.values() if State(row.state) not in _CLAIMS)
        self.ours |= ours
        self.otherwise += [
            row
            for row in rows.values()
            if row.state in {State.EXTERNAL, State.CANCELLED, State.CONFLICT} and row.block_number in range(start, end + 1)
        ]
        self.payments += sum(row.state in PAID and row.block_number in range(start, end + 1) for row in rows.values())
        for use in uses:
            if use.transfer is not None and use.log.tx_hash in ours:
                self.transfers += 1
                self.amounts_atomic[use.key.asset] = Atomic(self.amounts_atomic[use.key.asset] + use.transfer.amount_atomic)


class _Judge:
    """Rows and uses side by side."""

    def __init__(self, rows: Sequence[LedgerRow], uses: Sequence[Use], ours: AbstractSet[TxHash]) -> None:
        self._ours = ours
        self._uses = uses
        self._by_key: dict[AuthKey, list[Use]] = defaultdict(list)
        for use in uses:
            self._by_key[use.key].append(use)
        self._by_place = {use.place: use for use in uses}
        self._keys = {row.key for row in rows}
        self._claims = {(row.tx_hash, row.log_index) for row in rows if State(row.state) in _CLAIMS}
        self._paid: dict[AuthKey, UUID] = {}
        for row in rows:
            if State(row.state) in PAID:
                self._paid.setdefault(row.key, row.settlement_id)

    def row(self, row: LedgerRow) -> Iterator[Difference]:
        """What is wrong with one settlement."""
        state, found = State(row.state), self._by_key.get(row.key, [])
        if state in _CLAIMS:
            yield from self._claim(row, state, found)
        else:
            yield from self._claimless(row, state, found)
        used = [use for use in found if not use.canceled]
        for extra in used[1:]:
            yield _differ(Kind.PAID_TWICE, row, "one use of the authorization", f"also {extra}", extra)
        if self._paid.get(row.key, row.settlement_id) != row.settlement_id and state in PAID:
            yield _differ(Kind.PAID_TWICE, row, "one payment in the ledger", f"settlement {self._paid[row.key]} has the same authorization")
        yield from _books(row, state)

    def unclaimed(self) -> Iterator[Difference]:
        """Payments that our transactions made and no settlement accounts for."""
        for use in self._uses:
            if use.log.tx_hash in self._ours and not use.canceled and use.key not in self._keys and use.place not in self._claims:
                yield Difference(
                    kind=Kind.NOT_IN_LEDGER,
                    settlement_id=None,
                    tx_hash=use.log.tx_hash,
                    log_index=use.log.log_index,
                    expected=f"a settlement of {use.key.payer} with auth nonce {use.key.auth_nonce}",
                    got=f"none, but {use}",
                    use=use,
                )

    def _claim(self, row: LedgerRow, state: State, found: Sequence[Use]) -> Iterator[Difference]:
        """The row names its proof: is it there, and does it say what the row says?"""
        claim = f"{row.state} by {row.tx_hash} log {row.log_index} in block {row.block_number}"
        at = self._by_place.get((row.tx_hash or TxHash(""), -1 if row.log_index is None else row.log_index))
        if at is None and found:
            yield _differ(Kind.PROOF_DIFFERS, row, claim, str(found[0]), found[0])
        elif at is None:
            yield _differ(Kind.NOT_ON_CHAIN, row, claim, "no such log")
            if row.told_success:
                yield _differ(Kind.ANSWERED_UNPAID, row, "a payment, for its caller was told success", "no such log")
        elif at.key != row.key and self._paid.get(at.key) is not None:
            yield _differ(Kind.PAID_TWICE, row, "a proof of its own", f"the proof of settlement {self._paid[at.key]}", at)
        elif at.key != row.key:
            yield _differ(Kind.TERMS_DIFFER, row, _terms(row), _said(at), at)
        elif row.block_hash not in {at.log.block_hash, UNSEALED}:
            yield _differ(Kind.PROOF_DIFFERS, row, f"block {row.block_hash}", f"block {at.log.block_hash}", at)
        else:
            yield from self._at_proof(row, state, at)

    def _at_proof(self, row: LedgerRow, state: State, at: Use) -> Iterator[Difference]:
        """The proof is where the row says; does it prove this state?"""
        if (state is State.CANCELLED) != at.canceled:
            yield _differ(Kind.STATE_DIFFERS, row, row.state, str(at), at)
        elif at.canceled:
            return
        elif (state is State.CONFLICT) == _pays(row, at):
            kind = Kind.STATE_DIFFERS if state is State.CONFLICT else Kind.TERMS_DIFFER
            yield _differ(kind, row, f"{'other terms than ' if state is State.CONFLICT else ''}{_terms(row)}", _said(at), at)
        elif state is State.EXTERNAL and at.log.tx_hash in self._ours:
            yield _differ(Kind.NOT_IN_LEDGER, row, "paid by us", "external, but the transaction is ours", at)
        elif state in PAID and at.log.tx_hash not in self._ours:
            yield _differ(Kind.STATE_DIFFERS, row, "a transaction of ours", "another sender's transaction", at)

    def _claimless(self, row: LedgerRow, state: State, found: Sequence[Use]) -> Iterator[Difference]:
        """The row names no proof: may the chain have one, and may its caller have been told success?"""
        if row.told_success and not any(_pays(row, use) for use in found):
            yield _differ(Kind.ANSWERED_UNPAID, row, "a payment, for its caller was told success", f"state {row.state}, no such log")
        if not found:
            return
        use = found[0]
        if state in UNRESOLVED:
            yield _differ(Kind.OPEN_BUT_USED, row, f"an unused authorization, for the settlement is {row.state}", str(use), use)
        elif not use.canceled and use.log.tx_hash in self._ours:
            yield _differ(Kind.NOT_IN_LEDGER, row, f"no payment, for the settlement is {row.state}", f"{use}, which is ours", use)
        elif state is State.EXPIRED:
            yield _differ(Kind.STATE_DIFFERS, row, "an authorization that was never used", str(use), use)


def _uses(network: Network, logs: Sequence[Log]) -> list[Use]:
    """Every use and cancellation in these logs, each with its Transfer."""
    transfers = {(log.block_hash, log.log_index, log.address): log for log in logs if log.topics and log.topics[0] == TRANSFER_TOPIC}
    uses = []
    for log in logs:
        said = read_authorized(log)
        if said is None or log.removed:
            continue
        follower = transfers.get((log.block_hash, log.log_index + 1, log.address))
        transfer = read_transfer(follower) if follower is not None and follower.tx_hash == log.tx_hash and not said.canceled else None
        key = AuthKey(network, log.address, said.authorizer, said.auth_nonce)
        uses.append(Use(key=key, canceled=said.canceled, transfer=transfer, log=log))
    return uses


async def _ours(db: Db, uses: Sequence[Use]) -> set[TxHash]:
    """Which transactions of these uses we signed."""
    hashes = list({use.log.tx_hash for use in uses})
    ours: set[TxHash] = set()
    for start in range(0, len(hashes), ledger.PAGE_ROWS):
        ours |= await relayers.our_transactions(db, hashes[start : start + ledger.PAGE_ROWS])
    return ours


def _pays(row: LedgerRow, use: Use) -> bool:
    """Did this use move the money that the row is about?"""
    return use.transfer == Transfer(sender=row.payer, recipient=row.pay_to, amount_atomic=row.amount_atomic)


def _books(row: LedgerRow, state: State) -> Iterator[Difference]:
    """Are the entries those that admission and state call for?"""
    wanted = f"payer:{row.payer} → payee:{row.pay_to} {row.amount_atomic} {row.network}/{row.asset}, {resolution(state) or 'pending'}"
    booked = f"{row.booked_debit} → {row.booked_credit} {row.booked_amount_atomic} {row.booked_asset}, {row.booked_phase or 'pending'}"
    if row.booked_debit is None:
        yield _differ(Kind.BOOKED_OTHERWISE, row, wanted, "no entry")
    elif booked != wanted:
        yield _differ(Kind.BOOKED_OTHERWISE, row, wanted, booked)


def _terms(row: LedgerRow) -> str:
    return f"{row.amount_atomic} of {row.asset} from {row.payer} to {row.pay_to}, auth nonce {row.auth_nonce}"


def _said(use: Use) -> str:
    if use.transfer is None:
        return f"auth nonce {use.key.auth_nonce} of {use.key.payer} used without a Transfer"
    moved = use.transfer
    return f"{moved.amount_atomic} of {use.key.asset} from {moved.sender} to {moved.recipient}, auth nonce {use.key.auth_nonce}"


def _differ(kind: Kind, row: LedgerRow, expected: str, got: str, use: Use | None = None) -> Difference:
    """A difference about a settlement; at the chain's log when there is one, else at the ledger's."""
    tx_hash, log_index = use.place if use is not None else (row.tx_hash, row.log_index)
    return Difference(
        kind=kind, settlement_id=row.settlement_id, tx_hash=tx_hash, log_index=log_index, expected=expected, got=got, row=row, use=use
    )
