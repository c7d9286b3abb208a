"""One network's relayers in this process: which of them may send, how much, and how signed payments leave through them.

It must never sign for a relayer whose lease is not to be trusted, nor open a slot that the relayer's money would not do for.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from uuid import UUID

import structlog

from facilitator.chain.signer import Signer
from facilitator.clock import Clock
from facilitator.domain.backoff import Backoff
from facilitator.domain.batching import Batch, BurnGuard, Candidate, Limits, plan, without
from facilitator.domain.fees import Fees
from facilitator.domain.wallets import Wallet
from facilitator.errors import SignerFault, StoreFault
from facilitator.protocol.messages import Authorization
from facilitator.schemes.scheme import Registry
from facilitator.settlement.network import ServedNetwork
from facilitator.settlement.relayer import Account, Composer
from facilitator.settlement.settings import Settings
from facilitator.settlement.slots import Attempt, Item, OpenSlot
from facilitator.settlement.tasks import Background
from facilitator.settlement.watcher import Watcher
from facilitator.store import relayers
from facilitator.store.db import NOT_REACHED, ROLLED_BACK, Db
from facilitator.store.settlements import OpenedSlot, SignedSlot
from facilitator.units import Address, Gas, Wei

log = structlog.get_logger(__name__)


class RelayerPool:
    """See the module."""

    def __init__(
        self, chain: ServedNetwork, registry: Registry, watcher: Watcher, db: Db, clock: Clock, settings: Settings, background: Background
    ) -> None:
        self._chain = chain
        self._watcher = watcher
        self._db = db
        self._clock = clock
        self._settings = settings
        self._background = background
        self._pricing = watcher.pricing
        self._composer = Composer(chain, registry, watcher.pricing)
        self._guard = BurnGuard(settings.batch_max)
        self.accounts: tuple[Account, ...] = tuple(map(self._account, chain.signers))
        self.writing = asyncio.Lock()
        """Held by whoever plans, signs and records: one write-ahead of this network at a time, for each takes the next tx_nonces."""
        self.stopping = False
        """Set on shutdown: no new slots."""
        watcher.outbid, watcher.batch_burned, watcher.send_answered = self.outbid, self._burned, self._send_answered

    # --- who ---

    def take_in(self, signer: Signer) -> None:
        """One more relayer, whose lease is still to be had."""
        self._chain.signers = (*self._chain.signers, signer)
        self.accounts = (*self.accounts, self._account(signer))

    def _account(self, signer: Signer) -> Account:
        return Account(signer, backoff=Backoff(self._settings.relayer_rest_s, self._settings.relayer_rest_max_s))

    def let_go(self, relayer: Address) -> None:
        """Forget a relayer's key. Its lease was given back."""
        self._chain.signers = tuple(signer for signer in self._chain.signers if signer.address != relayer)
        self.accounts = tuple(account for account in self.accounts if account.address != relayer)

    def room(self, account: Account) -> int:
        """Slots this account may open now; 0 when its lease is not to be trusted any more, or its money would not do.

        Up to `slots_soft` the builder takes them in the next block; from there to `slots_max` is room for a burst.
        """
        now = self._clock.monotonic()
        if not account.ready or now < account.rest_until or now - account.renewed_at > self._settings.lease_trust_s:
            return 0
        if self._chain.head.newest is None or self._spare_wei(account) < self.most_wei(1):
            return 0
        taken = self._watcher.open_slots(account.address)
        return (self._settings.slots_soft if taken < self._settings.slots_soft else self._settings.slots_max) - taken

    def most_wei(self, items: int) -> int:
        """The most that a fresh transaction of so many payments can cost."""
        return self._pricing.gas.limit(items) * self._pricing.quote().max_fee_wei + self._pricing.surcharge_wei(items)

    def _spare_wei(self, account: Account) -> int:
        """Gas money that no open slot may need, above the reserve."""
        if account.balance_wei is None:
            return 0
        return account.balance_wei - self._watcher.reserved_wei(account.address) - self._settings.relayer_reserve_wei

    def choose(self, wallets: Iterable[Wallet] = ()) -> tuple[Account | None, int]:
        """The account with the most room, first of those with money for each of these smart wallets, if there are any.

        (None, 0) when no relayer is ours: then settlements are queued for others.
        """
        ready = [account for account in self.accounts if account.ready]
        if not ready:
            return None, 0
        need_wei = max(map(self._pricing.wallet_cost_wei, wallets), default=0)
        rooms = {account.address: self.room(account) for account in ready}

        def fitness(account: Account) -> tuple[bool, bool, bool, int]:
            room, soft = rooms[account.address], self._watcher.open_slots(account.address) < self._settings.slots_soft
            return room > 0, self._spare_wei(account) >= need_wei, soft, room

        best = max(ready, key=fitness)
        return best, rooms[best.address]

    def limits(self) -> Limits:
        """What bounds a batch now."""
        together = self._settings.batching == "adaptive" and self._chain.evm.multicall
        batch_max = self._guard.limit(self._clock.monotonic()) if together else 1
        return Limits(
            batch_min=self._settings.batch_min,
            batch_max=batch_max,
            life_min_s=self._settings.batch_life_min_s,
            calldata_bytes_max=self._settings.batch_calldata_bytes_max,
            gas=self._pricing.gas,
        )

    def plan(
        self, payments: Sequence[tuple[UUID, Authorization, bool]], wallets: Mapping[UUID, Wallet], account: Account, room: int
    ) -> tuple[Batch[UUID], ...]:
        """Cut payments into transactions that the account has room and money for."""
        head = self._chain.head.newest
        assert head is not None
        spare_wei, limits = self._spare_wei(account), self.limits()
        cost_wei = {identity: self._pricing.wallet_cost_wei(wallet) for identity, wallet in wallets.items()}
        candidates = [
            Candidate(id=identity, payer=authorization.payer, alone=alone, life_s=authorization.valid_before - head.timestamp)
            for identity, authorization, alone in payments
            if cost_wei.get(identity, 0) <= spare_wei  # one that there is no money for stands in nobody's way
        ]

        def most_wei(batch: Batch[UUID]) -> int:
            return cost_wei.get(batch.ids[0]) or self.most_wei(len(batch.ids))

        while (batches := plan(candidates, room, limits)) and sum(map(most_wei, batches)) > spare_wei:
            candidates = candidates[: len(candidates) // 2]  # fewer, down to the one that there is money for, or none is ever sent
        return batches

    async def payable_together(
        self, batches: Sequence[Batch[UUID]], authorizations: Mapping[UUID, Authorization], stale: AbstractSet[UUID] = frozenset()
    ) -> tuple[list[Batch[UUID]], list[UUID]]:
        """Simulate what shares a transaction, all in one call and in order, so that a payer's running balance counts.

        So it goes with what is `stale`, for it was judged a while ago. Returns the batches without the payments that would
        fail, and those payments. Raises ChainFault.
        """
        shared = [identity for batch in batches for identity in batch.ids if batch.kind == "batch" or identity in stale]
        if not shared:
            return list(batches), []
        calls = [self._composer.payment(authorizations[identity]) for identity in shared]
        facts = await self._chain.evm.answer(calls, self._chain.evm.deadline_in(self._settings.verify_deadline_s))
        self._chain.head.observe(facts.head)
        failing = {identity for identity, reply in zip(shared, facts.replies, strict=True) if not reply.ok}
        return without(batches, failing), [identity for identity in shared if identity in failing]

    def held_up(self, payer: Address, wallet: Wallet) -> bool:
        """Is a transaction of this smart wallet in flight, or has no relayer the money for one? It takes nobody's place meanwhile."""
        ready = [account for account in self.accounts if account.ready]
        cost_wei = self._pricing.wallet_cost_wei(wallet)
        poor = bool(ready) and all(self._spare_wei(account) < cost_wei for account in ready)
        return poor or self._watcher.pays_from_wallet(payer)

    async def sign(
        self,
        account: Account,
        batches: Sequence[Batch[UUID]],
        authorizations: Mapping[UUID, Authorization],
        wallets: Mapping[UUID, Wallet],
    ) -> list[SignedSlot]:
        """Sign; a relayer whose key service does not rests. Raises SignerFault: nothing was signed that anybody could send."""
        try:
            return await self._composer.sign(account, batches, authorizations, wallets)
        except SignerFault as fault:
            log.warning("relayer.not_signed", relayer=account.address, kind=fault.kind, fault=str(fault))
            self._send_answered(account.address, welcome=False)
            raise

    def lease_lost(self, account: Account) -> None:
        """Postgres said so: what was signed with it is not on record, and is forgotten."""
        log.warning("relayer.lease_lost", relayer=account.address, network=self._chain.network)
        account.lose()

    def launch(self, account: Account, slots: Sequence[SignedSlot], opened: Sequence[OpenedSlot], items: dict[UUID, Item]) -> None:
        """What is on record may be watched and sent."""
        id_of = {slot.tx_nonce: slot.slot_id for slot in opened}
        for slot in slots:
            watched = OpenSlot(
                slot_id=id_of[slot.tx_nonce],
                relayer=account.address,
                tx_nonce=slot.tx_nonce,
                attempts=[Attempt(tx_hash=slot.tx_hash, raw=slot.raw, fees=Fees(Wei(slot.max_fee_wei), Wei(slot.max_priority_fee_wei)))],
                kind=slot.kind,
                gas=Gas(slot.gas),
                items=tuple(items[settlement_id] for settlement_id in slot.settlement_ids),
                opened_at=self._clock.monotonic(),
                wallet_code=slot.wallet_code,
            )
            self._watcher.add(watched)
            self._background.start("send", self._watcher.send(watched, fresh=True))

    def _send_answered(self, relayer: Address, *, welcome: bool) -> None:
        """How the network took a transaction: a relayer that is refused, or does not sign, rests, longer each time; the others go on."""
        account = next((account for account in self.accounts if account.address == relayer), None)
        now = self._clock.monotonic()
        if account is None or (not welcome and now < account.rest_until):
            return
        if welcome:
            account.backoff.reset()
            return
        rest_s = account.backoff.next_s()
        account.rest_until = now + rest_s
        log.warning("relayer.resting", relayer=relayer, network=self._chain.network, rest_s=round(rest_s, 2))
        asyncio.get_running_loop().call_later(rest_s, self._watcher.slot_freed.set)

    # --- what is not mined ---

    async def outbid(self, slot: OpenSlot, fees: Fees, *, noop: bool) -> bool:
        """Record the slot's payload at higher fees, or a no-op in its place, then send it. Fenced like every signature.

        What carries somebody who is on a sanctions list by now is not signed for again: a no-op takes its place.
        False when a gas budget that it would be held of is overdrawn already: then nothing was recorded.
        """
        noop = noop or self._watcher.stopped(slot)
        account = next((account for account in self.accounts if account.address == slot.relayer), None)
        lease = account.lease if account is not None else None
        if account is None or lease is None or self._clock.monotonic() - account.renewed_at > self._settings.lease_trust_s:
            return True
        signed, gas, most_wei = await self._composer.sign_again(account, slot, fees, noop=noop)
        number, purpose = len(slot.attempts), "noop" if noop else "bump"
        attempt = Attempt(tx_hash=signed.tx_hash, raw=signed.raw, fees=fees, purpose=purpose)
        try:
            found = await relayers.record_attempt(
                self._db, lease, slot.slot_id, number, purpose, attempt.tx_hash, attempt.raw, gas, fees, most_wei
            )
        except StoreFault as fault:
            if fault.kind not in {NOT_REACHED, ROLLED_BACK} and account.lease is lease:
                account.lose()  # it is unknown whether it is on record, and with it the slot's next bid: taken up afresh
            raise
        if not found.recorded:
            return not found.unaffordable
        slot.attempts.append(attempt)
        log.warning("transaction.outbid", tx_hash=attempt.tx_hash, slot_id=slot.slot_id, purpose=purpose, max_fee_wei=fees.max_fee_wei)
        self._background.start("send", self._watcher.send(slot, fresh=True))
        return True

    def _burned(self) -> None:
        """A batch ate its gas: the next ones are smaller, should it happen again soon."""
        self._guard.burned(self._clock.monotonic())
