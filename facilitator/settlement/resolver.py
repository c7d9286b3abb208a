"""Who used this authorization, if anybody? The resolver of doubt: chain facts only, and an error is never an absence."""

import asyncio
from typing import Final

import structlog

from facilitator.chain.evm import EvmClient, Receipt
from facilitator.chain.rpc import NodeError
from facilitator.domain import abi
from facilitator.domain.abi import Canceled, PaymentProof, UsedOtherwise
from facilitator.domain.facts import Call, Head
from facilitator.domain.states import State
from facilitator.errors import ChainFault
from facilitator.metrics import RPC_DISAGREEMENTS
from facilitator.protocol.messages import Authorization
from facilitator.protocol.reasons import Reason, Refusal
from facilitator.schemes.scheme import Registry
from facilitator.settlement.network import ServedNetwork
from facilitator.settlement.slots import Item, NoRuling, Ruling, external, included, refused
from facilitator.settlement.verification import judge_facts
from facilitator.store import relayers
from facilitator.store.db import Db
from facilitator.store.settlements import Answer

_RPC_S: Final = 5.0
"""Deadline of one look at the chain."""
_LOG_RANGE: Final = 2000
"""Blocks asked for in one `eth_getLogs`."""
_LOOK_BACK: Final = 10
"""Blocks before admission that are searched too: our head may have been ahead of another node's."""

log = structlog.get_logger(__name__)


class Resolver:
    """Rules on single settlements of one network."""

    def __init__(self, chain: ServedNetwork, registry: Registry, db: Db, receipt_witnesses: int) -> None:
        self._chain = chain
        self._registry = registry
        self._db = db
        self._receipt_witnesses = receipt_witnesses

    async def rule(self, item: Item, mined: Receipt | None, *, again: bool = False) -> Ruling | NoRuling:
        """The resolver: who used this authorization, if anybody?

        `mined` is a transaction of ours that was mined without paying it; then an unused authorization means *failed*,
        unless it may be tried `again` and would be paid now. Every endpoint that answers is asked, each alone: that we paid needs
        the proof of `receipt_witnesses` of them, anything else needs them all to say the same, at that transaction's block, or the
        newest one seen here, or later.
        """
        newest = self._chain.head.newest
        needed = mined.block_number if mined else newest.number if newest else 0
        witnesses = self._chain.evm.witnesses()
        told = await asyncio.gather(*(self._rule_by(evm, item, mined, needed, again=again) for evm in witnesses), return_exceptions=True)
        proofs = [ruling for ruling in told if isinstance(ruling, Ruling) and ruling.state is State.INCLUDED]
        for proof in proofs:
            if sum(_essence(other) == _essence(proof) for other in proofs) >= self._receipt_witnesses:
                return proof
        rulings: list[Ruling | NoRuling] = []
        for ruling in told:
            if isinstance(ruling, BaseException):
                raise ruling
            rulings.append(ruling)
        if proofs or len({_essence(ruling) for ruling in rulings}) > 1:
            RPC_DISAGREEMENTS.labels(self._chain.network, "authorization").inc()
            log.warning(
                "settlement.disputed",
                settlement_id=str(item.settlement_id),
                endpoints=[evm.rpc.endpoints[0] for evm in witnesses],
                rulings=[ruling.value if isinstance(ruling, NoRuling) else ruling.state.value for ruling in rulings],
            )
            return NoRuling.UNTOLD
        return rulings[0]

    async def _rule_by(self, evm: EvmClient, item: Item, mined: Receipt | None, needed: int, *, again: bool) -> Ruling | NoRuling:
        """The ruling by one endpoint's word."""
        authorization = item.authorization
        head = await evm.head(self._deadline())
        self._chain.head.observe(head)
        found = await self._search(evm, item, head)
        if found is not None:
            return await self._rule_found(item, found)
        if head.number < needed or await self._used(evm, authorization, head) is not False:
            return NoRuling.UNTOLD  # used, but its log is not to be seen yet; or this node has not come to that block
        if mined is not None:
            [own] = await evm.receipts([mined.tx_hash], self._deadline())
            if own is None or own.proof != mined.proof:
                return NoRuling.UNTOLD  # a receipt that not every node has ends nothing: the transaction may still be mined, and pay
        refusal, judged_at = await self._refusal(evm, authorization)
        if judged_at.number < needed:
            return NoRuling.UNTOLD
        if refusal is None and (mined is None or again):
            return NoRuling.UNUSED
        tx_hash = mined.tx_hash if mined else None
        reason = refusal.reason if refusal else Reason.TRANSACTION_FAILED
        message = refusal.message if refusal else f"transaction {tx_hash} was mined but did not move the money"
        expired = mined is None and reason is Reason.EXPIRED and await self._finally_past(evm, authorization)
        return Ruling(
            state=State.EXPIRED if expired else State.FAILED,
            reason=reason,
            tx_hash=tx_hash,
            answer=Answer(success=False, reason=reason.name, message=message, tx_hash=tx_hash),
        )

    async def _rule_found(self, item: Item, found: PaymentProof | UsedOtherwise | Canceled) -> Ruling:
        """The ruling on an authorization that the chain shows used or cancelled."""
        ours = bool(await relayers.our_transactions(self._db, [found.log.tx_hash]))
        if isinstance(found, PaymentProof) and ours:
            await relayers.carry(self._db, found.log.tx_hash, item.settlement_id)  # its record may have been lost in a failover
            return included(found.log)
        if isinstance(found, PaymentProof):
            return external(found.log, item)
        if isinstance(found, Canceled):
            return refused(State.CANCELLED, Reason.AUTHORIZATION_CANCELED, "the payer cancelled this authorization", found.log)
        if ours:
            return refused(
                State.CONFLICT, Reason.TRANSFER_EVENT_MISMATCH, "the token did not move the money that it was told to", found.log
            )
        return refused(State.CONFLICT, Reason.AUTHORIZATION_CONFLICT, "this nonce was used with other terms", found.log)

    async def _used(self, evm: EvmClient, authorization: Authorization, head: Head) -> bool | None:
        """Is it used or cancelled as of this very block? None: the token does not tell."""
        state = Call(to=authorization.asset, data=abi.authorization_state(authorization.payer, authorization.auth_nonce))
        reply = await evm.call_at(state, head.number, self._deadline())
        return abi.read_bool(reply.data) if reply.ok else None

    async def _refusal(self, evm: EvmClient, authorization: Authorization) -> tuple[Refusal | None, Head]:
        """Why it would not be paid now, if it would not. Time alone does not tell: what has expired may have been used before."""
        scheme = self._registry.find(authorization.scheme)
        assert scheme is not None
        facts, judged, _ = await judge_facts(evm, scheme, authorization, None, self._deadline())
        self._chain.head.observe(facts.head)
        now = self._chain.head.now()
        assert now is not None
        return scheme.check_time(authorization, now) or judged, facts.head

    async def _finally_past(self, evm: EvmClient, authorization: Authorization) -> bool:
        """Is its time over by a block that cannot be reorganised away?"""
        try:
            final = await evm.block_at("finalized", self._deadline())
        except ChainFault as fault:
            if fault.kind != "no_block":
                raise
            return False
        return final.timestamp >= authorization.valid_before

    async def _search(self, evm: EvmClient, item: Item, head: Head) -> PaymentProof | UsedOtherwise | Canceled | None:
        """Look for the authorization's own log since it was admitted; the receipt around it tells what it did.

        Asked by auth nonce: one log at most, however much else the payer moves.
        """
        authorization = item.authorization
        start, step = max(0, item.admitted_block - _LOOK_BACK), _LOG_RANGE
        while start <= head.number:
            end = min(start + step - 1, head.number)
            try:
                logs = await evm.logs(
                    self._deadline(),
                    addresses=[authorization.asset],
                    topics=abi.nonce_topics(authorization.payer, authorization.auth_nonce),
                    from_block=start,
                    to_block=end,
                )
            except ChainFault as fault:
                if fault.kind != NodeError.RANGE_TOO_LARGE.value or end == start:
                    raise
                step = (end - start + 1) // 2  # this node tells of fewer blocks at once
                continue
            for found in logs:
                [receipt] = await evm.receipts([found.tx_hash], self._deadline())
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


def _essence(ruling: Ruling | NoRuling) -> object:
    """What endpoints must agree on: the end and its proof. Why a payment would fail now may change from block to block."""
    if isinstance(ruling, NoRuling):
        return ruling
    return ruling.state, ruling.tx_hash, ruling.log and (ruling.log.block_hash, ruling.log.log_index)
