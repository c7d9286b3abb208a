"""Leases, and taking up what an earlier owner left: the same steps at start, after a crash and after a lost lease.

Nonces only rise: what the database, the chain or a pool has seen is used. Every open transaction is sent again byte
for byte; every open settlement is found out about by chain facts. Only then may the relayer sign.
"""

from collections.abc import Sequence
from hashlib import sha256
from math import ceil

import structlog

from facilitator.clock import Clock
from facilitator.errors import Fault
from facilitator.metrics import INCIDENTS, RELAYER_BALANCE
from facilitator.settlement.dispatcher import Dispatcher
from facilitator.settlement.network import ServedNetwork
from facilitator.settlement.relayer import Account
from facilitator.settlement.settings import Settings
from facilitator.settlement.slots import Attempt, OpenSlot, item_of
from facilitator.settlement.watcher import Watcher
from facilitator.store import relayers, settlements
from facilitator.store.db import Db
from facilitator.store.settlements import Lease
from facilitator.units import Gas

_RPC_S = 5.0

log = structlog.get_logger(__name__)


class Keeper:
    """Keeps one network's relayers leased and taken up."""

    def __init__(
        self,
        chain: ServedNetwork,
        dispatcher: Dispatcher,
        watcher: Watcher,
        db: Db,
        clock: Clock,
        settings: Settings,
        replica_id: str,
    ) -> None:
        self._chain = chain
        self._dispatcher = dispatcher
        self._watcher = watcher
        self._db = db
        self._clock = clock
        self._settings = settings
        self._replica_id = replica_id
        self._balances_due = float("-inf")

    async def run(self) -> None:
        """Renew or take each lease every `lease_renew_s`, or sooner while a relayer is not taken up."""
        while True:
            share = await self._share()
            for account in self._in_order():
                try:
                    await self._keep(account, share)
                except Fault as fault:  # the other relayers' leases do not wait for this one
                    log.warning("relayer.not_kept", relayer=account.address, network=self._chain.network, kind=fault.kind, fault=str(fault))
            if self._clock.monotonic() >= self._balances_due:
                self._balances_due = self._clock.monotonic() + self._settings.balance_poll_s
                await self._read_balances([account for account in self._dispatcher.accounts if account.adopted])
            settled = self._held() >= share and all(account.adopted for account in self._dispatcher.accounts if account.lease)
            await self._clock.sleep(self._settings.lease_renew_s if settled else min(1.0, self._settings.lease_renew_s))

    async def _share(self) -> int:
        """How many relayers this replica should hold, so that each live one has its part."""
        live = await relayers.live_replicas(self._db, self._chain.network, self._settings.lease_ttl_s)
        return ceil(len(self._dispatcher.accounts) / max(1, live))

    def _held(self) -> int:
        return sum(account.lease is not None for account in self._dispatcher.accounts)

    def _in_order(self) -> list[Account]:
        """Those it holds first, then by an order of this replica's own, so that two do not reach for the same."""
        return sorted(
            self._dispatcher.accounts,
            key=lambda account: (account.lease is None, sha256(f"{self._replica_id}{account.address}".encode()).digest()),
        )

    async def release(self) -> None:
        """Give every lease back; open slots stay on record for the next owner."""
        for account in self._dispatcher.accounts:
            await self._give_back(account)

    async def _give_back(self, account: Account) -> None:
        """Release the lease: another replica may take it at once."""
        if (lease := account.lease) is not None:
            account.lose()
            await relayers.release_lease(self._db, lease.network, lease.relayer, lease.owner, lease.epoch)

    async def _keep(self, account: Account, share: int) -> None:
        network, address = self._chain.network, account.address
        asked_at = self._clock.monotonic()
        if account.lease is None and self._held() >= share:
            return
        if (lease := account.lease) is not None:
            renewed = await relayers.renew_lease(self._db, network, address, self._replica_id, lease.epoch, self._settings.lease_ttl_s)
            if renewed is None:
                log.warning("relayer.lease_lost", relayer=address, network=network)
                account.lose()
                self._watcher.drop_relayer(address)
                return
            if account.lease is not lease:
                return  # the dispatcher gave it up meanwhile: it is taken afresh
            account.renewed_at = asked_at
            if self._held() > share and not self._watcher.open_slots(address):
                await self._give_back(account)
                return
            account.ready = account.adopted and renewed.status == "active"
        elif not await self._take(account, asked_at):
            return
        await (self._take_up(account) if account.adopted else self._adopt(account))

    async def _take(self, account: Account, asked_at: float) -> bool:
        """Take the lease if it is to be had."""
        network, address = self._chain.network, account.address
        taken = await relayers.take_lease(self._db, network, address, self._replica_id, self._settings.lease_ttl_s)
        if taken is None:
            known = {relayer.address for relayer in await relayers.list_relayers(self._db, network)}
            if address in known:
                return False
            used = await self._used_on_chain(account)
            await relayers.register(self._db, network, address, used)
            taken = await relayers.take_lease(self._db, network, address, self._replica_id, self._settings.lease_ttl_s)
            if taken is None:
                return False
        self._watcher.drop_relayer(address)
        account.lease = Lease(network=network, relayer=address, owner=self._replica_id, epoch=taken.epoch)
        account.renewed_at = asked_at
        account.next_tx_nonce = taken.next_tx_nonce
        log.info("relayer.leased", relayer=address, network=network, epoch=taken.epoch)
        return True

    async def _adopt(self, account: Account) -> None:
        """Take up what is open, raise the tx_nonce to what the chain has seen, and only then be ready."""
        lease = account.lease
        assert lease is not None
        await self._chain.evm.connect(self._chain.evm.deadline_in(_RPC_S))
        self._chain.head.observe(await self._chain.evm.head(self._chain.evm.deadline_in(_RPC_S)))
        used = await self._used_on_chain(account)
        row = await relayers.raise_tx_nonce(self._db, lease.network, lease.relayer, lease.owner, lease.epoch, used)
        if row is None:
            account.lose()
            return
        if used > account.next_tx_nonce:
            await self._report_gap(account, used)
        if account.lease is not lease:
            return  # a write-ahead of an earlier lease gave it up meanwhile: it is taken afresh
        account.next_tx_nonce = row.next_tx_nonce
        await self._take_up(account)
        if account.lease is not lease:
            return
        account.adopted = True
        if row.status != "active":
            return
        await self._read_balances([account])
        if account.lease is not lease:
            return
        account.ready = True
        self._dispatcher.claim_soon()
        log.info("relayer.ready", relayer=lease.relayer, network=lease.network, next_tx_nonce=row.next_tx_nonce)

    async def _read_balances(self, accounts: Sequence[Account]) -> None:
        """Read relayers' coins in one request; more of them, from whoever funded them, make room at once."""
        if not accounts:
            return
        balances = await self._chain.evm.balances([account.address for account in accounts], self._chain.evm.deadline_in(_RPC_S))
        for account, balance_wei in zip(accounts, balances, strict=True):
            if account.balance_wei is not None and account.balance_wei < balance_wei:
                self._watcher.slot_freed.set()
            account.balance_wei = balance_wei
            RELAYER_BALANCE.labels(self._chain.network, account.address).set(balance_wei)

    async def _used_on_chain(self, account: Account) -> int:
        """The next tx_nonce by the chain's and the pool's word, whichever is higher."""
        deadline = self._chain.evm.deadline_in(_RPC_S)
        latest = await self._chain.evm.transaction_count(account.address, "latest", deadline)
        pending = await self._chain.evm.transaction_count(account.address, "pending", deadline)
        return max(latest, pending)

    async def _report_gap(self, account: Account, used: int) -> None:
        """The chain has seen more of this relayer than is on record: lost commits, or somebody else's use of the key."""
        INCIDENTS.labels("relayer_used_elsewhere").inc()
        await settlements.open_incident(
            self._db,
            self._chain.network,
            "relayer_used_elsewhere",
            f"the next tx_nonce on record is {account.next_tx_nonce}, the chain has used {used}",
            relayer=account.address,
        )

    async def _take_up(self, account: Account) -> None:
        """Watch every open slot on record that is not watched yet; the watcher sends again what is not mined.

        After adoption these are slots that a reorganisation opened again, whichever replica noticed it.
        """
        lease = account.lease
        assert lease is not None
        if all(self._watcher.has(slot_id) for slot_id in await relayers.open_slots(self._db, lease.network, lease.relayer)):
            return
        transactions = await relayers.open_transactions(self._db, lease.network, lease.relayer)
        items = await relayers.open_items(self._db, lease.network, lease.relayer)
        rows = await settlements.records(self._db, [item.settlement_id for item in items], 0.0) if items else []
        by_id = {row.settlement_id: row for row in rows}
        for slot_id in dict.fromkeys(transaction.slot_id for transaction in transactions):
            if self._watcher.has(slot_id):
                continue
            attempts = [transaction for transaction in transactions if transaction.slot_id == slot_id]
            carried = [by_id[item.settlement_id] for item in items if item.slot_id == slot_id]
            slot = OpenSlot(
                slot_id=slot_id,
                relayer=account.address,
                tx_nonce=attempts[0].tx_nonce,
                attempts=[Attempt(tx_hash=attempt.tx_hash, raw=attempt.raw, fees=attempt.fees) for attempt in attempts],
                kind=attempts[0].kind,
                gas=Gas(attempts[0].gas),
                items=tuple(item_of(row) for row in carried),
                opened_at=self._clock.monotonic(),
                sent_block=self._chain.head.newest.number if self._chain.head.newest else 0,
            )
            self._watcher.add(slot)
        self._watcher.look_soon()
        if transactions:
            log.info("relayer.slots_taken_up", relayer=account.address, transactions=len(transactions))
