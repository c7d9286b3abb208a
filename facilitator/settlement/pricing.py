"""What one network's transactions bid and may use, and what a payment costs there: learned from transactions that were mined."""

from collections import deque

import structlog

from facilitator.chain.evm import Receipt
from facilitator.clock import Clock
from facilitator.domain import abi
from facilitator.domain.batching import GasTable, ran_out
from facilitator.domain.facts import Call
from facilitator.domain.fees import WINDOW, FeePolicy, Fees, TipPolicy, max_fee, next_base_fee, next_tip
from facilitator.domain.wallets import Wallet
from facilitator.metrics import GAS_LIMIT, PAYMENT_COST, PRIORITY_FEE
from facilitator.settlement.network import ServedNetwork
from facilitator.settlement.settings import Settings
from facilitator.settlement.slots import OpenSlot
from facilitator.settlement.tasks import beat
from facilitator.units import Gas, Wei

_RPC_S = 5.0
"""Deadline of one look at the chain."""
_SURCHARGE_ROOM = 2
"""How many times the surcharge, as last read, is held of a gas budget: it rises by an eighth with a block of L1 at most."""
_SINGLE_BYTES = 352
"""A payment that goes alone, unsigned: 292 bytes of calldata and its other fields."""

log = structlog.get_logger(__name__)


class Pricing:
    """One network's prices, as this process has learned them; a restart begins with the constants again."""

    def __init__(self, chain: ServedNetwork, clock: Clock, settings: Settings) -> None:
        self._chain = chain
        self._clock = clock
        self._settings = settings
        self._fees = FeePolicy(
            headroom=settings.fee_multiplier,
            max_fee_min_wei=Wei(settings.max_fee_floor_wei),
            max_fee_max_wei=Wei(settings.max_fee_cap_wei),
        )
        self._tips = TipPolicy(min_wei=Wei(settings.priority_fee_min_wei), max_wei=Wei(settings.priority_fee_cap_wei))
        self._delays: deque[int] = deque(maxlen=WINDOW)
        self._too_dear = False
        self.tip_wei = self._tips.min_wei
        """`maxPriorityFeePerGas` of fresh transactions."""
        self.gas = GasTable()
        """Gas limits."""
        self.l1_fee_wei = Wei(0)
        """The most that L1 charges for a payment that goes alone, as last read."""
        self.operator_fee_wei = Wei(0)
        """The operator's fee for it, as last read."""
        self._tell()

    # --- what is asked of it ---

    def quote(self) -> Fees:
        """What a fresh transaction bids now. The newest block must be known."""
        return max_fee(self._base_fee_next(), self.tip_wei, self._fees)

    def surcharge_wei(self, items: int) -> int:
        """The most that a transaction of so many payments pays beside gas; data that it shares is counted for each."""
        return items * (self.l1_fee_wei + self.operator_fee_wei)

    def most_wei(self, gas: Gas, fees: Fees, data_bytes: int) -> int:
        """The most that a transaction can cost, whenever it is mined: what gas budgets hold for it."""
        return gas * fees.max_fee_wei + _SURCHARGE_ROOM * self.surcharge_wei(self._parts(gas, data_bytes))

    def _parts(self, gas: int, data_bytes: int) -> int:
        """Payments that would pay as much beside gas. L1's part grows with the data, the operator's with the gas."""
        return max(-(-data_bytes // _SINGLE_BYTES), -(-gas // self.gas.limit(1)))

    def need_wei(self, wallet: Wallet | None = None) -> int:
        """That of a fresh payment which goes alone, a smart wallet's perhaps; 0 while no block is known."""
        if self._chain.head.newest is None:
            return 0
        gas, data_bytes = (wallet.gas, len(wallet.call.data)) if wallet else (self.gas.limit(1), _SINGLE_BYTES)
        return self.most_wei(gas, self.quote(), data_bytes)

    def payment_cost_wei(self) -> int:
        """The most that a payment costs that goes alone in the next block: gas limit, L1 fee and operator fee together."""
        return self.gas.limit(1) * (self._base_fee_next() + self.tip_wei) + self.surcharge_wei(1)

    def wallet_cost_wei(self, wallet: Wallet) -> int:
        """The most that a fresh transaction of a smart wallet can cost."""
        return wallet.gas * self.quote().max_fee_wei + self.surcharge_wei(self._parts(wallet.gas, len(wallet.call.data)))

    def wallet_too_dear(self, wallet: Wallet) -> bool:
        """Would it cost more than `payment_cost_cap_wei` in the next block?"""
        spared_wei = wallet.gas * (self.quote().max_fee_wei - self._base_fee_next() - self.tip_wei)
        return 0 < self._settings.payment_cost_cap_wei < self.wallet_cost_wei(wallet) - spared_wei

    def too_dear(self) -> bool:
        """Does a payment cost more than `payment_cost_cap_wei`? Then no new work is taken; what is open is still pushed."""
        cap_wei = self._settings.payment_cost_cap_wei
        cost_wei = self.payment_cost_wei() if self._chain.head.newest is not None else 0
        too_dear = 0 < cap_wei < cost_wei
        if too_dear and not self._too_dear:
            log.warning("payments.refused", network=self._chain.network, cost_wei=cost_wei, cap_wei=cap_wei)
        if self._too_dear and not too_dear:
            log.info("payments.resumed", network=self._chain.network, cost_wei=cost_wei, cap_wei=cap_wei)
        self._too_dear = too_dear
        return too_dear

    def may_grow(self, slot: OpenSlot, receipt: Receipt) -> bool:
        """Did this transaction run out of gas where a larger limit is to be had? Then what it carried is worth another try."""
        if slot.kind == "contract_payer":
            return False  # what its code burned it may burn again: one transaction is all that it costs us
        return ran_out(receipt.gas_used, slot.gas) and slot.gas < self.gas.most(len(slot.items))

    # --- what it learns ---

    def missed(self, slot: OpenSlot) -> None:
        """A transaction missed so many blocks that it was outbid: as telling as a late inclusion, and sooner."""
        newest = self._chain.head.newest
        assert newest is not None
        self._delay(newest.number + 1 - slot.first_sent_block)

    def mined(self, slot: OpenSlot, receipt: Receipt, *, short_of_gas: bool) -> None:
        """Learn from a mined transaction. `short_of_gas`: it failed payments that the chain would have made with more gas."""
        self._delay(receipt.block_number - slot.first_sent_block)
        if slot.is_noop(receipt.tx_hash):
            return
        if slot.kind == "contract_payer":
            if slot.wallet_code is not None and receipt.succeeded:  # what failed may have burned all it was given, to be given more
                self._chain.wallet_gas.mined(slot.wallet_code, receipt.gas_used)
            return
        before = self.gas
        if short_of_gas and ran_out(receipt.gas_used, slot.gas):
            self.gas = before.raised(len(slot.items), slot.gas)
        elif receipt.succeeded and not short_of_gas:
            self.gas = before.used(len(slot.items), receipt.gas_used)
        for kind, gas, was in (("single", self.gas.limit(1), before.limit(1)), ("batch_item", self.gas.item, before.item)):
            if gas != was:
                log.warning("gas.relearned", network=self._chain.network, kind=kind, gas=gas, before=was, tx_hash=receipt.tx_hash)
        self._tell()

    def _delay(self, blocks: int) -> None:
        """One more transaction took so many blocks."""
        self._delays.append(blocks)
        tip_wei = next_tip(self.tip_wei, self._delays, self._tips)
        if tip_wei != self.tip_wei or len(self._delays) == WINDOW:
            self._delays.clear()
        self.tip_wei = tip_wei
        self._tell()

    async def run(self) -> None:
        """Read L1 and operator fee every `l1_fee_poll_s`; both are 0 where the OP Stack's oracle is not."""
        while True:
            beat("pricing", self._chain.network)
            questions = (
                Call(to=abi.GAS_PRICE_ORACLE_ADDRESS, data=abi.l1_fee_upper_bound(_SINGLE_BYTES)),
                Call(to=abi.GAS_PRICE_ORACLE_ADDRESS, data=abi.operator_fee(self.gas.limit(1))),
            )
            facts = await self._chain.evm.answer(questions, self._chain.evm.deadline_in(_RPC_S))
            self._chain.head.observe(facts.head)
            l1_fee_wei, operator_fee_wei = ((abi.read_uint(reply.data) if reply.ok else None) or 0 for reply in facts.replies)
            self.l1_fee_wei, self.operator_fee_wei = Wei(l1_fee_wei), Wei(operator_fee_wei)
            self._tell()
            await self._clock.sleep(self._settings.l1_fee_poll_s)

    def _base_fee_next(self) -> Wei:
        head = self._chain.head.newest
        assert head is not None
        return next_base_fee(head)

    def _tell(self) -> None:
        network = self._chain.network
        PRIORITY_FEE.labels(network).set(self.tip_wei)
        GAS_LIMIT.labels(network, "single").set(self.gas.limit(1))
        GAS_LIMIT.labels(network, "batch_item").set(self.gas.item)
        if self._chain.head.newest is not None:
            PAYMENT_COST.labels(network).set(self.payment_cost_wei())
