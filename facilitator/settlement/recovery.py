"""Leases, and taking up what an earlier owner left: the same steps at start, after a crash and after a lost lease.

Nonces only rise: what the database, the chain or a pool has seen is used. Every open transaction is sent again byte
for byte; every open settlement is found out about by chain facts. Only then may the relayer sign.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Final

import structlog

from facilitator.chain.evm import Account as SeenAccount
from facilitator.chain.signer import Signer
from facilitator.chain.strays import Stray, mined, pooled
from facilitator.clock import Clock
from facilitator.domain.pool import share_out
from facilitator.domain.states import State
from facilitator.errors import ChainFault, ConfigFault, Fault
from facilitator.metrics import INCIDENTS, RELAYER_BALANCE, RPC_DISAGREEMENTS
from facilitator.protocol.messages import Authorization
from facilitator.settlement.claims import Claims
from facilitator.settlement.found import record_payments
from facilitator.settlement.network import ServedNetwork
from facilitator.settlement.pool import RelayerPool
from facilitator.settlement.relayer import Account
from facilitator.settlement.settings import Settings
from facilitator.settlement.slots import Attempt, OpenSlot, item_of
from facilitator.settlement.tasks import beat, set_within
from facilitator.settlement.watcher import Watcher
from facilitator.store import relayers, replicas, settlements
from facilitator.store.db import Db
from facilitator.store.relayers import PoolRelayer, Relayer
from facilitator.store.settlements import Lease
from facilitator.units import Address, Gas, Network

_RPC_S = 5.0
_SEARCH_S: Final = 3.0
"""Deadline of a search for transactions that are not on record."""
_STRAYS_MAX: Final = 50
"""Used tx_nonces that are searched for, the last ones of more."""
_UNRESOLVED_S: Final = 10.0
"""How long a reference that led to no key is left alone: opening a keystore takes a second of work."""

OpenKey = Callable[[Network, str], Awaitable[Signer]]
"""The key that a reference leads to. Raises ConfigFault, without the key, when it leads to none here."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Kept:
    """What one round knows of the leases held."""

    asked_at: float
    """Monotonic, before their renewal."""
    renewed: Mapping[tuple[Address, int], Relayer]
    """By relayer and epoch."""
    open_slots: Mapping[Address, Sequence[int]]


class Keeper:
    """Keeps one network's relayers leased and taken up."""

    def __init__(
        self,
        chain: ServedNetwork,
        pool: RelayerPool,
        claims: Claims,
        watcher: Watcher,
        db: Db,
        clock: Clock,
        settings: Settings,
        replica_id: str,
        open_key: OpenKey,
    ) -> None:
        self._chain = chain
        self._pool = pool
        self._claims = claims
        self._watcher = watcher
        self._db = db
        self._clock = clock
        self._settings = settings
        self._replica_id = replica_id
        self._open_key = open_key
        self._balances_due = float("-inf")
        self._unresolved: dict[str, float] = {}
        self._look = asyncio.Event()

    def look_soon(self) -> None:
        """Somebody added, drained or removed a relayer."""
        self._look.set()

    async def run(self) -> None:
        """Renew or take each lease every `lease_renew_s`, or sooner while a relayer is not taken up.

        Each relayer is kept by a task of its own, and balances by another: a chain that does not answer for one holds up
        no other's lease.
        """
        keeping: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                beat("keeper", self._chain.network)
                await self._round(keeping)
        finally:
            for task in keeping.values():
                task.cancel()
            await asyncio.gather(*keeping.values(), return_exceptions=True)

    async def _round(self, keeping: dict[str, asyncio.Task[None]]) -> None:
        """Look at every relayer that is not being looked at still, then wait for the next time."""
        rows = await relayers.list_relayers(self._db, self._chain.network)
        await self._take_in(rows)
        part, pause_s = await self._part(rows), min(1.0, self._settings.lease_renew_s)
        free = [account for account in self._pool.accounts if account.address not in keeping]
        kept = await self._renew(free)
        for account in free:
            keeping[account.address] = asyncio.create_task(self._keep_apart(account, part, kept), name="keep")
        if self._clock.monotonic() >= self._balances_due and "balances" not in keeping:
            self._balances_due = self._clock.monotonic() + self._settings.balance_poll_s
            keeping["balances"] = asyncio.create_task(self._look_at_balances(), name="balances")
        done, _ = await asyncio.wait(keeping.values(), timeout=pause_s) if keeping else (set(), set())
        for name in [name for name, task in keeping.items() if task in done]:
            keeping.pop(name).result()  # a bug in one restarts the loop
        settled = all(account.adopted for account in self._pool.accounts if account.lease or account.address in part)
        await set_within(self._look, self._settings.lease_renew_s if settled else pause_s)

    async def _look_at_balances(self) -> None:
        """Read the coins of the relayers that are ours."""
        try:
            await self._read_balances([account for account in self._pool.accounts if account.adopted])
        except Fault as fault:
            log.warning("loop.faulted", loop="balances", kind=fault.kind, fault=str(fault))
        self._forget_balances([account for account in self._pool.accounts if not account.adopted])

    async def _take_in(self, rows: Sequence[PoolRelayer]) -> None:
        """Take in the keys that were added while this process runs, and let go of those that were removed."""
        known = {account.address: account for account in self._pool.accounts}
        for row in rows:
            if row.key_reference is None:
                continue
            if row.gone and row.address in known and known[row.address].lease is None:
                self._pool.let_go(row.address)
            elif not row.gone and row.address not in known and (signer := await self._resolve(row)) is not None:
                self._pool.take_in(signer)
                log.info("relayer.added", relayer=row.address, network=row.network, reference=row.key_reference)

    async def _resolve(self, row: PoolRelayer) -> Signer | None:
        """The key of an added relayer; None, said once, when its reference does not lead to it here."""
        reference, now = row.key_reference, self._clock.monotonic()
        assert reference is not None
        if now < self._unresolved.get(reference, float("-inf")):
            return None
        try:
            signer = await self._open_key(row.network, reference)
        except ConfigFault as fault:
            why = str(fault)
        else:
            if signer.address == row.address:
                self._unresolved.pop(reference, None)
                return signer
            why = f"it leads to the key of {signer.address}"
        if reference not in self._unresolved:
            log.warning("relayer.unresolved", relayer=row.address, network=row.network, reference=reference, fault=why)
        self._unresolved[reference] = now + _UNRESOLVED_S
        return None

    async def _part(self, rows: Sequence[PoolRelayer]) -> AbstractSet[Address]:
        """The relayers that this replica should hold, so that each live one has its part of those that it has keys of."""
        network, gone = self._chain.network, {row.address for row in rows if row.gone}
        keys_of = {
            replica.replica_id: {Address(name.removeprefix(f"{network}:")) for name in replica.relayers if name.startswith(f"{network}:")}
            for replica in await replicas.live(self._db, network, self._settings.lease_ttl_s)
        }
        keys_of[self._replica_id] = set(self._chain.relayers)
        given = share_out(
            {replica: keys - gone for replica, keys in keys_of.items()}, {row.address: row.owner for row in rows if row.owner is not None}
        )
        return {address for address, replica in given.items() if replica == self._replica_id}

    async def _renew(self, accounts: Sequence[Account]) -> "_Kept":
        """Renew these leases in one statement, and see what is open on record."""
        asked_at = self._clock.monotonic()
        epochs = {account.address: account.lease.epoch for account in accounts if account.lease is not None}
        if not epochs:
            return _Kept(asked_at, {}, {})
        rows = await relayers.renew_leases(self._db, self._chain.network, self._replica_id, epochs, self._settings.lease_ttl_s)
        slots = await relayers.open_slots(self._db, self._chain.network, list(epochs))
        return _Kept(asked_at, {(row.address, row.epoch): row for row in rows}, slots)

    async def _keep_apart(self, account: Account, part: AbstractSet[Address], kept: "_Kept") -> None:
        """Keep one relayer; the other relayers' leases do not wait for this one."""
        try:
            await self._keep(account, part, kept)
        except Fault as fault:
            log.warning("relayer.not_kept", relayer=account.address, network=self._chain.network, kind=fault.kind, fault=str(fault))

    async def release(self) -> None:
        """Give every lease back; open slots stay on record for the next owner."""
        for account in self._pool.accounts:
            await self._give_back(account)

    async def _give_back(self, account: Account) -> None:
        """Release the lease: another replica may take it at once."""
        if (lease := account.lease) is not None:
            account.lose()
            await relayers.release_lease(self._db, lease.network, lease.relayer, lease.owner, lease.epoch)

    async def _keep(self, account: Account, part: AbstractSet[Address], kept: "_Kept") -> None:
        network, address = self._chain.network, account.address
        asked_at = kept.asked_at
        if account.lease is None and address not in part:
            return
        if (lease := account.lease) is not None:
            renewed = kept.renewed.get((address, lease.epoch))
            if renewed is None:  # lost; or its row was being written just then
                asked_at = self._clock.monotonic()
                renewed = await relayers.renew_lease(self._db, network, address, self._replica_id, lease.epoch, self._settings.lease_ttl_s)
            if renewed is None:
                log.warning("relayer.lease_lost", relayer=address, network=network)
                account.lose()
                self._watcher.drop_relayer(address)
                return
            if account.lease is not lease:
                return  # the dispatcher gave it up meanwhile: it is taken afresh
            account.renewed_at = asked_at
            if (address not in part or renewed.status == "removed") and not self._watcher.open_slots(address):
                await self._give_back(account)
                return
            account.ready = account.adopted and not account.has_code and renewed.status == "active"
        elif not await self._take(account, self._clock.monotonic()):
            return
        if not account.adopted:
            await self._adopt(account)
        elif not all(self._watcher.has(slot_id) for slot_id in kept.open_slots.get(address, ())):
            await self._take_up(account)

    async def _take(self, account: Account, asked_at: float) -> bool:
        """Take the lease if it is to be had."""
        network, address = self._chain.network, account.address
        taken = await relayers.take_lease(self._db, network, address, self._replica_id, self._settings.lease_ttl_s)
        if taken is None:
            known = {relayer.address for relayer in await relayers.list_relayers(self._db, network)}
            if address in known:
                return False
            _, granted = await self._see(account)
            await relayers.register(self._db, network, address, granted)
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
        seen, used = await self._see(account)
        strays = await self._find_strays(account, seen)
        for stray in strays:
            await self._record_stray(lease, stray)
        used = max(used, account.next_tx_nonce)
        signed = {stray.tx_nonce for stray in strays}
        while used in signed:  # whatever an endpoint says, a transaction that our key signed is proof
            used += 1
        if (claimed := max(seen.mined, seen.pending)) > used:
            RPC_DISAGREEMENTS.labels(self._chain.network, "tx_nonce").inc()
            log.warning("relayer.tx_nonce_disputed", relayer=account.address, network=self._chain.network, claimed=claimed, believed=used)
        row = await relayers.raise_tx_nonce(self._db, lease.network, lease.relayer, lease.owner, lease.epoch, used)
        if row is None:
            account.lose()
            return
        if unknown := sorted(set(range(account.next_tx_nonce, used)) - {stray.tx_nonce for stray in strays}):
            await self._report_gap(account, used, unknown)
        if account.lease is not lease:
            return  # a write-ahead of an earlier lease gave it up meanwhile: it is taken afresh
        account.next_tx_nonce = row.next_tx_nonce
        await self._take_up(account)
        if account.lease is not lease:
            return
        account.adopted = True
        account.has_code = seen.has_code
        if seen.has_code:  # it turned into a smart account: it finishes what is open and signs nothing new
            log.error("relayer.has_code", relayer=account.address, network=self._chain.network)
        self._note_balance(account, seen.balance_wei)
        if row.status != "active" or seen.has_code:
            return
        account.ready = True
        self._claims.soon()
        log.info("relayer.ready", relayer=lease.relayer, network=lease.network, next_tx_nonce=row.next_tx_nonce)

    async def _see(self, account: Account) -> tuple[SeenAccount, int]:
        """The relayer's account by the word of every endpoint that answers: the most that one says, and the tx_nonce that all grant."""
        deadline = self._chain.evm.deadline_in(_RPC_S)
        witnesses = self._chain.evm.witnesses()
        asked = await asyncio.gather(*(evm.account(account.address, deadline) for evm in witnesses), return_exceptions=True)
        seen = [answer for answer in asked if isinstance(answer, SeenAccount)]
        for answer in asked:
            if isinstance(answer, BaseException) and (not seen or not isinstance(answer, ChainFault)):
                raise answer
        for answer in seen:
            self._chain.head.observe(answer.head)
        furthest = max(seen, key=lambda answer: answer.head.number)
        granted = min(max(answer.mined, answer.pending) for answer in seen)
        return replace(furthest, mined=max(answer.mined for answer in seen), pending=max(answer.pending for answer in seen)), granted

    async def _find_strays(self, account: Account, seen: SeenAccount) -> list[Stray]:
        """Transactions of this account beyond what is on record: commits that were lost, or somebody else's use of the key.

        In the pool as far as tx_nonces follow each other, for what waits behind a gap is not sent by us alone.
        """
        evm, recorded = self._chain.evm, account.next_tx_nonce
        deadline = evm.deadline_in(_SEARCH_S)
        pool: dict[int, Stray] = {}
        for witness in evm.witnesses():
            pool |= await pooled(witness, account.address, deadline)
        used = range(max(recorded, seen.mined - _STRAYS_MAX), seen.mined)
        searched = await asyncio.gather(*(mined(evm, account.address, tx_nonce, seen.head.number, deadline) for tx_nonce in used))
        found = [stray for stray in searched if stray is not None]
        following = max(recorded, seen.mined)
        while following in pool:
            found.append(pool[following])
            following += 1
        return found

    async def _record_stray(self, lease: Lease, stray: Stray) -> None:
        """It is watched like any other from here on.

        Payments of what is mined are put on record with it, in nobody's name: they cannot be asked for again. Those of a pooled
        one are once it is mined, unless somebody asks again before, who then hears its outcome.
        """
        detail = (
            f"tx_nonce {stray.tx_nonce} was used by a transaction that was not on record: commits were lost, or the key is used elsewhere"
        )
        signed = stray.signed
        async with self._db.transaction() as session:
            recorded = await relayers.record_stray(
                session, lease, stray.tx_nonce, signed.tx_hash, signed.raw, stray.gas, stray.fees, detail
            )
            if recorded:
                await record_payments(session, self._clock, lease.network, stray)
        if recorded:
            INCIDENTS.labels("transaction_found").inc()
            log.error("transaction.found", relayer=lease.relayer, tx_nonce=stray.tx_nonce, tx_hash=signed.tx_hash)

    async def _read_balances(self, accounts: Sequence[Account]) -> None:
        """Read relayers' coins in one request; more of them, from whoever funded them, make room at once."""
        if not accounts:
            return
        balances = await self._chain.evm.balances([account.address for account in accounts], self._chain.evm.deadline_in(_RPC_S))
        for account, balance_wei in zip(accounts, balances, strict=True):
            self._note_balance(account, balance_wei)

    def _note_balance(self, account: Account, balance_wei: int) -> None:
        if account.balance_wei is not None and account.balance_wei < balance_wei:
            self._watcher.slot_freed.set()
        account.balance_wei = balance_wei
        RELAYER_BALANCE.labels(self._chain.network, account.address).set(balance_wei)

    def _forget_balances(self, accounts: Sequence[Account]) -> None:
        """Whoever signs for a relayer shows its balance: one that stands still elsewhere would mislead."""
        for account in accounts:
            RELAYER_BALANCE.remove(self._chain.network, account.address)

    async def _report_gap(self, account: Account, used: int, unknown: Sequence[int]) -> None:
        """The chain has seen more of this relayer than is on record or can be found."""
        INCIDENTS.labels("relayer_used_elsewhere").inc()
        await settlements.open_incident(
            self._db,
            self._chain.network,
            "relayer_used_elsewhere",
            f"the next tx_nonce on record is {account.next_tx_nonce}, the chain has used {used}, unknown is what used {unknown[:20]}",
            relayer=account.address,
        )

    async def _hear_of(self, authorizations: Sequence[Authorization]) -> None:
        """Ask the network's oracle, if it has one, about what another replica signed. Without its word that replica's look stands."""
        screen = self._chain.screen
        questions = [question for each in authorizations for question in screen.questions(each)] if screen is not None else []
        if screen is None or not questions:
            return
        try:
            screen.hear(authorizations, await self._chain.evm.answer(questions, self._chain.evm.deadline_in(_RPC_S)))
        except ChainFault as fault:
            log.warning("screening.not_repeated", network=self._chain.network, kind=fault.kind, fault=str(fault))

    async def _take_up(self, account: Account) -> None:
        """Watch every open slot on record that is not watched yet; the watcher sends again what is not mined.

        After adoption these are slots that a reorganisation opened again, whichever replica noticed it.
        """
        lease = account.lease
        assert lease is not None
        transactions = await relayers.open_transactions(self._db, lease.network, lease.relayer)
        items = await relayers.open_items(self._db, lease.network, lease.relayer)
        rows = await settlements.records(self._db, [item.settlement_id for item in items], 0.0) if items else []
        by_id = {row.settlement_id: row for row in rows}
        await self._hear_of([row.authorization for row in rows])
        head_number = self._chain.head.newest.number if self._chain.head.newest else 0
        for slot_id in dict.fromkeys(transaction.slot_id for transaction in transactions):
            if self._watcher.has(slot_id):
                continue
            attempts = [transaction for transaction in transactions if transaction.slot_id == slot_id]
            carried = [by_id[item.settlement_id] for item in items if item.slot_id == slot_id]
            slot = OpenSlot(
                slot_id=slot_id,
                relayer=account.address,
                tx_nonce=attempts[0].tx_nonce,
                attempts=[
                    Attempt(tx_hash=attempt.tx_hash, raw=attempt.raw, fees=attempt.fees, purpose=attempt.purpose) for attempt in attempts
                ],
                kind=attempts[0].kind,
                gas=Gas(attempts[0].gas),
                items=tuple(item_of(row) for row in carried),
                opened_at=self._clock.monotonic(),
                sent_block=head_number,
                first_sent_block=head_number,
                preconfirmed={row.settlement_id: row.block_number or 0 for row in carried if row.state == State.PRECONFIRMED},
            )
            self._watcher.add(slot)
        self._watcher.look_soon()
        if transactions:
            log.info("relayer.slots_taken_up", relayer=account.address, transactions=len(transactions))
