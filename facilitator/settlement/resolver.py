"""Who used this authorization, if anybody? The resolver of doubt: chain facts only, and an error is never an absence."""

from typing import Final

from facilitator.chain.evm import Receipt
from facilitator.domain import abi
from facilitator.domain.abi import Canceled, PaymentProof, UsedOtherwise
from facilitator.domain.facts import Call, Facts, Head
from facilitator.domain.states import State
from facilitator.errors import ChainFault
from facilitator.protocol.messages import Authorization
from facilitator.protocol.reasons import Reason, Refusal
from facilitator.schemes.scheme import Registry
from facilitator.settlement.network import ServedNetwork
from facilitator.settlement.slots import Item, NoRuling, Ruling, external, included, refused
from facilitator.store import relayers
from facilitator.store.db import Db
from facilitator.store.settlements import Answer

_RPC_S: Final = 5.0
"""Deadline of one look at the chain."""
_LOG_RANGE: Final = 2000
"""Blocks asked for in one `eth_getLogs`."""
_LOOK_BACK: Final = 10
"""Blocks before admission that are searched too: our head may have been ahead of another node's."""


class Resolver:
    """Rules on single settlements of one network."""

    def __init__(self, chain: ServedNetwork, registry: Registry, db: Db) -> None:
        self._chain = chain
        self._registry = registry
        self._db = db

    async def rule(self, item: Item, mined: Receipt | None, *, again: bool = False) -> Ruling | NoRuling:
        """The resolver: who used this authorization, if anybody?

        `mined` is a transaction of ours that was mined without paying it; then an unused authorization means *failed*,
        unless it may be tried `again` and would be paid now.
        """
        authorization = item.authorization
        found = await self._search(item)
        if isinstance(found, PaymentProof):
            if await relayers.our_transactions(self._db, [found.log.tx_hash]):
                return included(found.log)
            return external(found.log, item)
        if isinstance(found, Canceled):
            return refused(State.CANCELLED, Reason.AUTHORIZATION_CANCELED, "the payer cancelled this authorization", found.log)
        if isinstance(found, UsedOtherwise) and await relayers.our_transactions(self._db, [found.log.tx_hash]):
            return refused(
                State.CONFLICT, Reason.TRANSFER_EVENT_MISMATCH, "the token did not move the money that it was told to", found.log
            )
        if isinstance(found, UsedOtherwise):
            return refused(State.CONFLICT, Reason.AUTHORIZATION_CONFLICT, "this nonce was used with other terms", found.log)
        used, refusal, head = await self._ask(authorization)
        if used is not False or (mined is not None and head.number < mined.block_number):
            return NoRuling.UNTOLD  # used, but its log is not to be seen yet; or this node has not come to that block
        if refusal is None and (mined is None or again):
            return NoRuling.UNUSED
        tx_hash = mined.tx_hash if mined else None
        reason = refusal.reason if refusal else Reason.TRANSACTION_FAILED
        message = refusal.message if refusal else f"transaction {tx_hash} was mined but did not move the money"
        expired = mined is None and reason is Reason.EXPIRED and await self._finally_past(authorization)
        return Ruling(
            state=State.EXPIRED if expired else State.FAILED,
            reason=reason,
            tx_hash=tx_hash,
            answer=Answer(success=False, reason=reason.name, message=message, tx_hash=tx_hash),
        )

    async def _ask(self, authorization: Authorization) -> tuple[bool | None, Refusal | None, Head]:
        """Is it used, and would it be paid now? Time alone answers neither here: what has expired may have been used before."""
        scheme = self._registry.find(authorization.scheme)
        assert scheme is not None
        state = Call(to=authorization.asset, data=abi.authorization_state(authorization.payer, authorization.auth_nonce))
        facts = await self._chain.evm.answer((state, *scheme.ask(authorization)), self._deadline())
        self._chain.head.observe(facts.head)
        now = self._chain.head.now()
        assert now is not None
        used = abi.read_bool(facts.replies[0].data) if facts.replies[0].ok else None
        judged = scheme.judge(authorization, Facts(head=facts.head, replies=facts.replies[1:]))
        return used, scheme.check_time(authorization, now) or judged, facts.head

    async def _finally_past(self, authorization: Authorization) -> bool:
        """Is its time over by a block that cannot be reorganised away?"""
        try:
            final = await self._chain.evm.block_at("finalized", self._deadline())
        except ChainFault as fault:
            if fault.kind != "no_block":
                raise
            return False
        return final.timestamp >= authorization.valid_before

    async def _search(self, item: Item) -> PaymentProof | UsedOtherwise | Canceled | None:
        """Look for the authorization's own log since it was admitted; the receipt around it tells what it did.

        Asked by auth nonce: one log at most, however much else the payer moves.
        """
        authorization = item.authorization
        head = await self._chain.evm.head(self._deadline())
        self._chain.head.observe(head)
        start = max(0, item.admitted_block - _LOOK_BACK)
        while start <= head.number:
            end = min(start + _LOG_RANGE - 1, head.number)
            logs = await self._chain.evm.logs(
                self._deadline(),
                addresses=[authorization.asset],
                topics=(
                    (abi.AUTHORIZATION_USED_TOPIC, abi.AUTHORIZATION_CANCELED_TOPIC),
                    abi.topic_of(authorization.payer),
                    authorization.auth_nonce,
                ),
                from_block=start,
                to_block=end,
            )
            for found in logs:
                [receipt] = await self._chain.evm.receipts([found.tx_hash], self._deadline())
                if receipt is None or not receipt.sealed:
                    raise ChainFault(
                        "no_receipt", "the node has a log of a transaction whose receipt it does not have", tx_hash=found.tx_hash
                    )
                if (proof := abi.find_payment(receipt.logs, authorization)) is not None:
                    return proof
            start = end + 1
        return None

    def _deadline(self) -> float:
        return self._chain.evm.deadline_in(_RPC_S)
