"""Finds what became of open slots in the newest block: reads the chain, decides and commits nothing.

Logs find, receipts prove. One `eth_getLogs` a block shows every authorization of the served tokens that was used or cancelled,
by us or by others; the receipts around the logs that concern us tell what happened and what it cost. A transaction of ours
without any log (all that it carried failed) is found by its relayer's transaction count, or by asking when it is late.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from facilitator.chain.evm import LogQuery, Receipt
from facilitator.clock import Clock
from facilitator.domain import abi
from facilitator.domain.abi import Log
from facilitator.domain.facts import Head
from facilitator.domain.identity import AuthKey, key_of
from facilitator.errors import ChainFault
from facilitator.settlement.network import ServedNetwork
from facilitator.settlement.slots import Item, OpenSlot
from facilitator.units import Address, TxHash

_RPC_S: Final = 5.0
"""Deadline of one look at the chain."""
_AT_ONCE_MAX: Final = 20
"""Slots whose receipts go with the question for a block's logs: under little load one round trip does."""
_POLLED_MAX: Final = 100
"""Slots without a log whose receipts are asked for in one look, those asked longest ago first."""
_CATCH_UP_MAX: Final = 50
"""Blocks whose logs are asked for together; when more were missed, only the newest one's are."""
_UPGRADES_MAX: Final = 2000
"""Unseen blocks that are searched for upgrades of a token."""
_TOPICS: Final = ((abi.AUTHORIZATION_USED_TOPIC, abi.AUTHORIZATION_CANCELED_TOPIC, abi.UPGRADED_TOPIC),)

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Found:
    """What one look has shown."""

    mined: dict[int, Receipt] = field(default_factory=dict)
    """By slot id: the sealed receipt of one of its transactions."""
    unsealed: dict[int, Receipt] = field(default_factory=dict)
    """By slot id: the receipt from a flashblock."""
    unread: dict[int, ChainFault] = field(default_factory=dict)
    """By slot id: why a receipt could not be had."""
    asked: set[int] = field(default_factory=set)
    """Slots whose receipts were asked for."""
    upgraded: list[Log] = field(default_factory=list)
    """Tokens that have another implementation."""

    def absent(self, slot_id: int) -> bool:
        """Did the node say that it has seen none of its transactions in a block? No proof that none is."""
        return slot_id in self.asked and not any(slot_id in told for told in (self.mined, self.unsealed, self.unread))


class Lookout:
    """One network's newest blocks, as far as they concern what is open."""

    def __init__(self, chain: ServedNetwork, assets: Collection[Address], clock: Clock) -> None:
        self._chain = chain
        self._assets = tuple(assets)
        self._clock = clock
        self._searched: Head | None = None
        """The last block whose logs were asked for."""

    async def look(self, slots: Sequence[OpenSlot], late: set[OpenSlot], head: Head) -> Found:
        """What the blocks since the last look, up to `head`, did to these slots. Raises ChainFault when nothing can be asked."""
        found = Found()
        due = late | {slot for slot in slots if slot.wants_flashblock or slot.preconfirmed}
        fresh = self._searched is None or self._searched.block_hash != head.block_hash
        past = [slot for slot in slots if slot in due or (fresh and slot.sent_block < head.number)]  # what was sent since is in no block
        if not past:
            return found
        at_once = _longest_unasked(past, _AT_ONCE_MAX)
        query, unseen = self._query(head, min(slot.sent_block for slot in past))
        logs = await self._ask(found, at_once, query)
        self._searched = head
        if isinstance(logs, ChainFault):
            log.warning("block.logs_unread", block_number=head.number, kind=logs.kind, fault=str(logs))
        concerned = [] if isinstance(logs, ChainFault) else self._concerned(slots, logs, found)
        polled = past if isinstance(logs, ChainFault) else due
        wanted = {slot for slot in concerned if slot.slot_id not in found.mined}
        wanted.update(_longest_unasked((slot for slot in polled if slot.slot_id not in found.asked), _POLLED_MAX))
        left = [slot for slot in past if slot.slot_id not in found.asked and slot not in wanted]
        relayers = tuple(dict.fromkeys(slot.relayer for slot in left))
        counts = await self._ask_counts(found, tuple(wanted), relayers) if wanted or relayers else {}
        passed = [slot for slot in left if slot.tx_nonce < counts.get(slot.relayer, 0)]
        if passed:
            await self._ask(found, _longest_unasked(passed, _POLLED_MAX), None)
        if unseen:
            await self._search_upgrades(found, unseen)
        return found

    def _query(self, head: Head, sent_block: int) -> tuple[LogQuery | None, range]:
        """Which logs to ask for, when the oldest transaction was sent after `sent_block`; and which blocks that leaves unseen."""
        since = self._searched
        if since is not None and since.block_hash == head.block_hash:
            return None, range(0)
        follows = since is not None and 0 < head.number - since.number <= _CATCH_UP_MAX
        first = since.number + 1 if since is not None and follows else sent_block + 1
        if first < head.number and head.number - first < _CATCH_UP_MAX:
            query = LogQuery(addresses=self._assets, topics=_TOPICS, from_block=first, to_block=head.number)
        else:
            first, query = head.number, LogQuery(addresses=self._assets, topics=_TOPICS, block_hash=head.block_hash)
        return query, range(0) if since is None else range(since.number + 1, first)[-_UPGRADES_MAX:]

    def _concerned(self, slots: Iterable[OpenSlot], logs: Sequence[Log], found: Found) -> list[OpenSlot]:
        """Slots that these logs are about; notes which of their items others used."""
        found.upgraded += [each for each in logs if each.topics[0] == abi.UPGRADED_TOPIC and not each.removed]
        used = [(each, authorized) for each in logs if not each.removed and (authorized := abi.read_authorized(each)) is not None]
        if not used:
            return []
        carried: dict[AuthKey, tuple[OpenSlot, Item]] = {key_of(item.authorization): (slot, item) for slot in slots for item in slot.items}
        concerned: list[OpenSlot] = []
        for each, authorized in used:
            key = AuthKey(self._chain.network, each.address, authorized.authorizer, authorized.auth_nonce)
            if (carrier := carried.get(key)) is None:
                continue
            slot, item = carrier
            concerned.append(slot)
            if each.tx_hash not in slot.tx_hashes and item.settlement_id not in slot.used_elsewhere:
                slot.used_elsewhere.add(item.settlement_id)
                log.warning("authorization.used_elsewhere", settlement_id=str(item.settlement_id), tx_hash=each.tx_hash)
        return concerned

    async def _ask(self, found: Found, slots: Sequence[OpenSlot], query: LogQuery | None) -> tuple[Log, ...] | ChainFault:
        """Receipts of these slots' transactions, and logs, in one request."""
        owners = self._owners(slots)
        sight = await self._chain.evm.see(query, [tx_hash for _, tx_hash in owners], (), self._deadline())
        self._note(found, owners, sight.receipts)
        return sight.logs

    async def _ask_counts(self, found: Found, slots: Sequence[OpenSlot], relayers: Sequence[Address]) -> dict[Address, int]:
        """Receipts of these slots' transactions, and how many transactions these relayers have in blocks, in one request."""
        owners = self._owners(slots)
        sight = await self._chain.evm.see(None, [tx_hash for _, tx_hash in owners], relayers, self._deadline())
        self._note(found, owners, sight.receipts)
        return {relayer: count for relayer, count in zip(relayers, sight.tx_counts, strict=True) if isinstance(count, int)}

    def _owners(self, slots: Sequence[OpenSlot]) -> list[tuple[OpenSlot, TxHash]]:
        now = self._clock.monotonic()
        for slot in slots:
            slot.asked_at = now
        return [(slot, tx_hash) for slot in slots for tx_hash in slot.tx_hashes]

    def _note(self, found: Found, owners: Sequence[tuple[OpenSlot, TxHash]], receipts: Sequence[Receipt | ChainFault | None]) -> None:
        for (slot, _), receipt in zip(owners, receipts, strict=True):
            found.asked.add(slot.slot_id)
            if isinstance(receipt, ChainFault):
                found.unread[slot.slot_id] = receipt
            elif receipt is not None:
                (found.mined if receipt.sealed else found.unsealed)[slot.slot_id] = receipt

    async def _search_upgrades(self, found: Found, unseen: range) -> None:
        """Look for upgrades in blocks whose logs nobody asked for: none are asked for while nothing is open."""
        try:
            found.upgraded += await self._chain.evm.logs(
                self._deadline(), addresses=self._assets, topics=((abi.UPGRADED_TOPIC,),), from_block=unseen[0], to_block=unseen[-1]
            )
        except ChainFault as fault:
            log.warning("block.logs_unread", block_number=unseen[-1], kind=fault.kind, fault=str(fault))

    def _deadline(self) -> float:
        return self._chain.evm.deadline_in(_RPC_S)


def _longest_unasked(slots: Iterable[OpenSlot], count: int) -> list[OpenSlot]:
    return sorted(slots, key=lambda slot: slot.asked_at)[:count]
