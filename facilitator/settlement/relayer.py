"""One relayer account of this process, and the transactions it signs. Signs what is about to be recorded; sends nothing."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from facilitator.chain.signer import Signer
from facilitator.domain import abi
from facilitator.domain.backoff import Backoff
from facilitator.domain.batching import Batch
from facilitator.domain.facts import Call
from facilitator.domain.fees import Fees
from facilitator.domain.resubmission import NOOP_GAS
from facilitator.domain.transactions import SignedTransaction, Transaction, read_call
from facilitator.domain.wallets import Wallet
from facilitator.protocol.messages import Authorization
from facilitator.schemes.scheme import Registry
from facilitator.settlement.network import ServedNetwork
from facilitator.settlement.pricing import Pricing
from facilitator.settlement.slots import OpenSlot
from facilitator.store.settlements import Lease, SignedSlot
from facilitator.units import Address, Gas, chain_id_of


@dataclass(eq=False, slots=True)
class Account:
    """One relayer key of this process, and the lease it holds, if any."""

    signer: Signer
    backoff: Backoff
    """Of those rests."""
    lease: Lease | None = None
    next_tx_nonce: int = 0
    renewed_at: float = float("-inf")
    """Monotonic time of the last confirmed renewal."""
    adopted: bool = False
    """The lease is held and everything left open by an earlier owner was taken up."""
    ready: bool = False
    """Adopted, and it may sign."""
    balance_wei: int | None = None
    """Its coins as last read; None before that."""
    rest_until: float = float("-inf")
    """Monotonic time until which it is given no new slots: the network refused its transactions."""
    has_code: bool = False
    """It must not sign: pools give an account with code (EIP-7702) one slot, and its code runs on our gas."""

    @property
    def address(self) -> Address:
        """The account that pays for gas."""
        return self.signer.address

    def lose(self) -> None:
        """Stop signing: the lease, or the knowledge of the next tx_nonce, is gone."""
        self.adopted = self.ready = False
        self.lease = None


class Composer:
    """Makes one network's transactions: what they call, what they bid, and their signature."""

    def __init__(self, chain: ServedNetwork, registry: Registry, pricing: Pricing) -> None:
        self._chain = chain
        self._registry = registry
        self._pricing = pricing

    def payment(self, authorization: Authorization) -> Call:
        """The call that makes one payment."""
        scheme = self._registry.find(authorization.scheme)
        assert scheme is not None
        return scheme.call(authorization)

    def call(self, authorizations: Sequence[Authorization]) -> Call:
        """One payment as it is; several through Multicall3, each allowed to fail without the others."""
        if len(authorizations) == 1:
            return self.payment(authorizations[0])
        return Call(to=abi.MULTICALL3_ADDRESS, data=abi.aggregate3([self.payment(each) for each in authorizations]))

    async def sign(
        self,
        account: Account,
        batches: Sequence[Batch[UUID]],
        authorizations: Mapping[UUID, Authorization],
        wallets: Mapping[UUID, Wallet],
    ) -> list[SignedSlot]:
        """One transaction per batch, with consecutive tx_nonces from the account's next one. A wallet's call is what was simulated."""
        fees = self._pricing.quote()
        paying = [wallets.get(batch.ids[0]) for batch in batches]
        calls = [
            wallet.call if wallet else self.call([authorizations[settlement_id] for settlement_id in batch.ids])
            for batch, wallet in zip(batches, paying, strict=True)
        ]
        limits = [wallet.gas if wallet else self._pricing.gas.limit(len(batch.ids)) for batch, wallet in zip(batches, paying, strict=True)]
        transactions = [
            self._transaction(account.next_tx_nonce + index, call, gas, fees)
            for index, (call, gas) in enumerate(zip(calls, limits, strict=True))
        ]
        signed = await asyncio.gather(*(account.signer.sign(transaction) for transaction in transactions))  # a key service takes a while
        return [
            SignedSlot(
                tx_nonce=transaction.tx_nonce,
                kind="contract_payer" if wallet else batch.kind,
                tx_hash=each.tx_hash,
                raw=each.raw,
                gas=transaction.gas,
                max_fee_wei=fees.max_fee_wei,
                max_priority_fee_wei=fees.max_priority_fee_wei,
                most_wei=self._pricing.most_wei(transaction.gas, fees, len(transaction.data)),
                settlement_ids=batch.ids,
                wallet_code=wallet.code if wallet else None,
            )
            for batch, wallet, transaction, each in zip(batches, paying, transactions, signed, strict=True)
        ]

    async def sign_again(self, account: Account, slot: OpenSlot, fees: Fees, *, noop: bool) -> tuple[SignedTransaction, Gas, int]:
        """The slot's payload as it stands on record at other fees, or a no-op in its place, a self-transfer of nothing.

        Returned with its gas limit, and the most that it can cost in wei.
        """
        if noop:
            call, gas = Call(to=account.address, data=b""), Gas(NOOP_GAS)
        else:
            call, gas = read_call(slot.payload), slot.gas
        signed = await account.signer.sign(self._transaction(slot.tx_nonce, call, gas, fees))
        return signed, gas, self._pricing.most_wei(gas, fees, len(call.data))

    def _transaction(self, tx_nonce: int, call: Call, gas: Gas, fees: Fees) -> Transaction:
        return Transaction(
            chain_id=chain_id_of(self._chain.network),
            tx_nonce=tx_nonce,
            to=call.to,
            data=call.data,
            gas=gas,
            max_fee_wei=fees.max_fee_wei,
            max_priority_fee_wei=fees.max_priority_fee_wei,
        )
