"""Relayers in Postgres: leases with a fencing epoch, tx_nonces, and the transactions that are still open."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from facilitator.domain.fees import Fees
from facilitator.store.db import Db, Session, load_queries
from facilitator.store.seals import record_event
from facilitator.store.settlements import Lease
from facilitator.units import Address, Gas, Network, TxHash, Wei

QUERIES: Final = load_queries("relayers")


@dataclass(frozen=True, slots=True)
class Relayer:
    """One row of `relayer`."""

    network: Network
    address: Address
    next_tx_nonce: int
    status: str
    owner: str | None
    epoch: int


@dataclass(frozen=True, slots=True)
class OpenTransaction:
    """A signed transaction of an open slot."""

    slot_id: int
    tx_nonce: int
    kind: str
    opened_at: datetime
    tx_hash: TxHash
    attempt: int
    purpose: str
    raw: bytes
    gas: int
    max_fee_wei: int
    max_priority_fee_wei: int

    @property
    def fees(self) -> Fees:
        """What it bids."""
        return Fees(Wei(self.max_fee_wei), Wei(self.max_priority_fee_wei))


@dataclass(frozen=True, slots=True)
class OpenSlotId:
    """A tx_nonce whose end is not on record."""

    slot_id: int
    relayer: Address


@dataclass(frozen=True, slots=True)
class OpenItem:
    """A settlement that an open slot carries."""

    slot_id: int
    item_index: int
    settlement_id: UUID


@dataclass(frozen=True, slots=True)
class ConsumedSlot:
    """A tx_nonce that a transaction of somebody else consumed."""

    slot_id: int
    relayer: Address
    tx_nonce: int


@dataclass(frozen=True, slots=True)
class PoolRelayer:
    """A relayer as operators and keepers see it."""

    network: Network
    address: Address
    next_tx_nonce: int
    status: str
    owner: str | None
    leased: bool
    """Does the owner's lease run still? Of one that died it runs out."""
    key_reference: str | None
    """Where the key lies; None when the configuration says it."""
    open_slots: int

    @property
    def gone(self) -> bool:
        """Removed, and nothing of it has to be looked after any more."""
        return self.status == "removed" and not self.open_slots


@dataclass(frozen=True, slots=True)
class RecordedAttempt:
    """Whether another transaction for a slot is on record."""

    recorded: bool
    unaffordable: bool
    """It may cost more than the first, and a gas budget that it is to be held of is overdrawn already."""


@dataclass(frozen=True, slots=True)
class KnownHash:
    """A transaction hash of ours."""

    tx_hash: TxHash


async def register(db: Db, network: Network, address: Address, next_tx_nonce: int) -> None:
    """Make the relayer known; a known one keeps its tx_nonce."""
    await db.execute(QUERIES["register_relayer"], network, address, next_tx_nonce)


async def take_lease(db: Db, network: Network, address: Address, owner: str, ttl_s: float) -> Relayer | None:
    """Become the relayer's owner under a new epoch, or None while somebody else is."""
    return await db.optional(Relayer, QUERIES["take_lease"], network, address, owner, ttl_s)


async def renew_lease(db: Db, network: Network, address: Address, owner: str, epoch: int, ttl_s: float) -> Relayer | None:
    """Extend the lease, or None when it is lost."""
    return await db.optional(Relayer, QUERIES["renew_lease"], network, address, owner, epoch, ttl_s)


async def renew_leases(db: Db, network: Network, owner: str, epochs: Mapping[Address, int], ttl_s: float) -> list[Relayer]:
    """Extend many leases in one statement. Missing are those that are lost, and those whose row is being written just now."""
    return await db.many(Relayer, QUERIES["renew_leases"], network, owner, list(epochs), list(epochs.values()), ttl_s)


async def release_lease(db: Db, network: Network, address: Address, owner: str, epoch: int) -> None:
    """Give the lease back, so that another replica need not wait for its end."""
    await db.execute(QUERIES["release_lease"], network, address, owner, epoch)


async def raise_tx_nonce(db: Db, network: Network, address: Address, owner: str, epoch: int, floor: int) -> Relayer | None:
    """Never use a tx_nonce below `floor` again; None when the lease is lost."""
    return await db.optional(Relayer, QUERIES["raise_tx_nonce"], network, address, owner, epoch, floor)


async def add(db: Db, actor: str, network: Network, address: Address, next_tx_nonce: int, key_reference: str) -> None:
    """Make a relayer known by where its key lies, and tell the running services. One on record keeps its tx_nonce.

    With its line in the audit trail, as every change of `set_status`.
    """
    async with db.transaction() as session:
        before = await _facts(session, network, address)
        await session.execute(QUERIES["add_relayer"], network, address, next_tx_nonce, key_reference)
        await _record(session, "relayer_added", actor, network, address, before)
        await session.execute(QUERIES["notify_relayers"], network)


async def set_status(db: Db, actor: str, network: Network, address: Address, status: str) -> bool:
    """Take a relayer in or out of use, and tell the running services; False when there is none.

    Raises RelayerBusyError when it is to be removed and has open slots. The new status comes first: it locks the row
    that every write-ahead has to change, so that no slot opens between the look and the commit.
    """
    async with db.transaction() as session:
        before = await _facts(session, network, address)
        if await session.execute(QUERIES["set_status"], network, address, status) != 1:
            return False
        if status == "removed" and await session.many(OpenSlotId, QUERIES["open_slots"], network, [address]):
            raise RelayerBusyError
        await _record(session, "relayer_changed", actor, network, address, before)
        await session.execute(QUERIES["notify_relayers"], network)
        return True


async def _facts(session: Session, network: Network, address: Address) -> dict[str, str | None] | None:
    """A relayer for the trail: where its key lies, never the key."""
    pool = await session.many(PoolRelayer, QUERIES["list_relayers"], network)
    row = next((each for each in pool if each.address == address), None)
    return None if row is None else {"network": row.network, "status": row.status, "key_reference": row.key_reference}


async def _record(
    session: Session, kind: str, actor: str, network: Network, address: Address, before: dict[str, str | None] | None
) -> None:
    """What changes nothing leaves no trace."""
    after = await _facts(session, network, address)
    if after != before:
        detail = {"subject": address, "before": before, "after": after}
        await record_event(session, kind, actor, json.dumps(detail, sort_keys=True, separators=(",", ":")))


class RelayerBusyError(Exception):
    """A relayer with open slots cannot be removed."""


async def quarantine(db: Db, network: Network, address: Address) -> None:
    """No new slots for this relayer until a person looks: somebody else uses its key."""
    await db.execute(QUERIES["quarantine"], network, address)


async def open_transactions(db: Db, network: Network, relayer: Address) -> list[OpenTransaction]:
    """All signed transactions of open slots, by tx_nonce and attempt."""
    return await db.many(OpenTransaction, QUERIES["open_transactions"], network, relayer)


async def open_slots(db: Db, network: Network, addresses: Sequence[Address]) -> dict[Address, list[int]]:
    """Ids of all open slots of these relayers, by tx_nonce."""
    found: dict[Address, list[int]] = {address: [] for address in addresses}
    for row in await db.many(OpenSlotId, QUERIES["open_slots"], network, list(addresses)):
        found[row.relayer].append(row.slot_id)
    return found


async def open_items(db: Db, network: Network, relayer: Address) -> list[OpenItem]:
    """What the open slots carry."""
    return await db.many(OpenItem, QUERIES["open_items"], network, relayer)


async def consumed_slots(db: Db, network: Network, limit: int) -> list[ConsumedSlot]:
    """Slots that a stranger's transaction consumed, until `close_consumed`."""
    return await db.many(ConsumedSlot, QUERIES["consumed_slots"], network, limit)


async def close_consumed(db: Db, slot_ids: Sequence[int]) -> None:
    """Those are consumed for good: what they carried may be admitted again."""
    await db.execute(QUERIES["close_consumed"], list(slot_ids))


async def record_attempt(
    db: Db, lease: Lease, slot_id: int, attempt: int, purpose: str, tx_hash: TxHash, raw: bytes, gas: Gas, fees: Fees, most_wei: int
) -> RecordedAttempt:
    """Record another transaction for an open slot, which can cost `most_wei`; not when the lease is lost or the slot is closed."""
    return await db.one(
        RecordedAttempt,
        QUERIES["record_attempt"],
        lease.network,
        lease.relayer,
        lease.owner,
        lease.epoch,
        slot_id,
        attempt,
        purpose,
        tx_hash,
        raw,
        gas,
        str(fees.max_fee_wei),
        str(fees.max_priority_fee_wei),
        str(most_wei),
    )


async def record_stray(
    db: Db | Session, lease: Lease, tx_nonce: int, tx_hash: TxHash, raw: bytes, gas: Gas, fees: Fees, detail: str
) -> bool:
    """Put a transaction that was found on record as an open slot, with an incident; its tx_nonce is used from here on.

    False when it is on record, its tx_nonce is, or the lease is lost.
    """
    recorded = await db.many(
        KnownHash,
        QUERIES["record_stray"],
        lease.network,
        lease.relayer,
        lease.owner,
        lease.epoch,
        tx_nonce,
        tx_hash,
        raw,
        gas,
        str(fees.max_fee_wei),
        str(fees.max_priority_fee_wei),
        detail,
    )
    return bool(recorded)


async def carry(db: Db, tx_hash: TxHash, settlement_id: UUID) -> None:
    """Note that this transaction of ours carried a settlement, if that is not on record."""
    await db.execute(QUERIES["carry"], tx_hash, settlement_id)


async def our_transactions(db: Db, tx_hashes: Sequence[TxHash]) -> set[TxHash]:
    """Which of these transactions we signed."""
    return {row.tx_hash for row in await db.many(KnownHash, QUERIES["our_transactions"], list(tx_hashes))}


async def list_relayers(db: Db, network: Network) -> list[PoolRelayer]:
    """Relayers of a network that were ever used or added."""
    return await db.many(PoolRelayer, QUERIES["list_relayers"], network)
