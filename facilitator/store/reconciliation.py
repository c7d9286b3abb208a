"""The ledger read for the reconciliation: settlements with their proofs and what is booked for them. Reads only."""

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from facilitator.domain.identity import AuthKey
from facilitator.store.db import Db, Query, load_queries
from facilitator.units import Address, Atomic, AuthNonce, BlockHash, Network, TxHash

QUERIES: Final = load_queries("reconciliation")
PAGE_ROWS: Final = 500
"""Rows of one page, and authorizations of one look-up."""


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """A settlement, its proof, and its latest pending entry with the phase of the entry that resolved it."""

    settlement_id: UUID
    network: Network
    asset: Address
    payer: Address
    auth_nonce: AuthNonce
    pay_to: Address
    amount_atomic: Atomic
    state: str
    tx_hash: TxHash | None
    log_index: int | None
    block_number: int | None
    block_hash: BlockHash | None
    told_success: bool
    """A success is its stored answer."""
    booked_debit: str | None
    booked_credit: str | None
    booked_asset: str | None
    booked_amount_atomic: Atomic | None
    booked_phase: str | None
    """None while the pending entry is unresolved."""

    @property
    def key(self) -> AuthKey:
        """The identity of the payment."""
        return AuthKey(self.network, self.asset, self.payer, self.auth_nonce)


async def claims_in_blocks(db: Db, network: Network, from_block: int, to_block: int) -> AsyncIterator[list[LedgerRow]]:
    """Pages of the settlements that claim a log of an asset in these blocks, both included."""
    async for page in _pages(db, QUERIES["claims_in_blocks"], network, from_block, to_block):
        yield page


async def claimless_in_blocks(db: Db, network: Network, from_block: int, to_block: int) -> AsyncIterator[list[LedgerRow]]:
    """Pages of the settlements that were admitted at these blocks and claim no log."""
    async for page in _pages(db, QUERIES["claimless_in_blocks"], network, from_block, to_block):
        yield page


async def rows_of_authorizations(db: Db, network: Network, keys: Iterable[AuthKey]) -> list[LedgerRow]:
    """The settlements of these authorizations of one network, as far as there are any."""
    wanted = list(keys)
    rows: list[LedgerRow] = []
    for start in range(0, len(wanted), PAGE_ROWS):
        part = wanted[start : start + PAGE_ROWS]
        arguments = [key.asset for key in part], [key.payer for key in part], [key.auth_nonce for key in part]
        rows += await db.many(LedgerRow, QUERIES["rows_of_authorizations"], network, *arguments)
    return rows


async def _pages(db: Db, query: Query, network: Network, from_block: int, to_block: int) -> AsyncIterator[list[LedgerRow]]:
    after: UUID | None = None
    while True:
        page = await db.many(LedgerRow, query, network, from_block, to_block, after, PAGE_ROWS)
        if page:
            yield page
        if len(page) < PAGE_ROWS:
            return
        after = page[-1].settlement_id
