"""Watches authorizations whose settlements failed or were withdrawn: anybody may still execute them.

Each is looked at until it is used, or its time is over by final chain time. A late use moves the settlement and opens an
incident; what was told stays told. Replicas share the work, and what a round did not reach is first in the next.
"""

from collections.abc import Sequence
from typing import Final

import structlog

from facilitator.clock import Clock
from facilitator.domain import abi
from facilitator.domain.facts import Call, Head
from facilitator.domain.states import State, move
from facilitator.errors import ChainFault
from facilitator.metrics import INCIDENTS, WATCHED_AUTHORIZATIONS
from facilitator.settlement.network import ServedNetwork
from facilitator.settlement.resolver import Resolver
from facilitator.settlement.settings import Settings
from facilitator.settlement.slots import Ruling, item_of
from facilitator.settlement.tasks import beat
from facilitator.store import relayers, settlements
from facilitator.store.db import Db
from facilitator.store.settlements import Outcome, Settlement

_RPC_S: Final = 5.0
"""Deadline of one look at the chain."""

log = structlog.get_logger(__name__)


class Aftermath:
    """One network's ends that may not be the end."""

    def __init__(self, chain: ServedNetwork, resolver: Resolver, db: Db, clock: Clock, settings: Settings) -> None:
        self._chain = chain
        self._resolver = resolver
        self._db = db
        self._clock = clock
        self._settings = settings

    async def run(self) -> None:
        """A round every `finality_poll_s`."""
        while True:
            beat("aftermath", self._chain.network)
            await self.check()
            await self._clock.sleep(self._settings.finality_poll_s)

    async def check(self) -> None:
        """Look at up to `watched_max` authorizations, and at tx_nonces that strangers consumed."""
        network = self._chain.network
        WATCHED_AUTHORIZATIONS.labels(network).set(await settlements.count_watched(self._db, network))
        await self._close_consumed()
        watched = await settlements.take_watched(self._db, network, self._settings.finality_poll_s, self._settings.watched_max)
        if not watched:
            return
        final = await self._finalized()
        size = self._chain.evm.rpc.settings.batch_max - 1  # the head is a call too
        for start in range(0, len(watched), size):
            await self._look(watched[start : start + size], final)

    async def _look(self, watched: Sequence[Settlement], final: Head | None) -> None:
        """Ask the token about all of these in one request."""
        asked = [_state_of(record) for record in watched]
        facts = await self._chain.evm.answer(asked, self._chain.evm.deadline_in(_RPC_S))
        self._chain.head.observe(facts.head)
        used = [abi.read_bool(reply.data) if reply.ok else None for reply in facts.replies]
        if final is not None and final.number <= facts.head.number:
            over = [
                record for record, is_used in zip(watched, used, strict=True) if is_used is False and record.valid_before <= final.timestamp
            ]
            if over and (over := await self._over_by_all(over)):
                await settlements.close_watched(self._db, over)
        for record in [record for record, is_used in zip(watched, used, strict=True) if is_used]:
            try:
                await self._used(record)
            except ChainFault as fault:  # the others do not wait for this one; it is looked at again in the next round
                log.warning("settlement.undecided", settlement_id=str(record.settlement_id), kind=fault.kind, fault=str(fault))

    async def _over_by_all(self, records: Sequence[Settlement]) -> list[Settlement]:
        """Those that by the word of every endpoint are unused and whose time is finally over (ADR 18); none while one does not say."""
        over = list(records)
        for evm in self._chain.evm.witnesses():
            try:
                final = await evm.block_at("finalized", evm.deadline_in(_RPC_S))
                facts = await evm.answer([_state_of(record) for record in over], evm.deadline_in(_RPC_S))
            except ChainFault as fault:
                log.warning("settlement.not_closed", network=self._chain.network, kind=fault.kind, fault=str(fault))
                return []
            unused = [reply.ok and abi.read_bool(reply.data) is False for reply in facts.replies]
            over = [
                record
                for record, is_unused in zip(over, unused, strict=True)
                if is_unused and final.number <= facts.head.number and record.valid_before <= final.timestamp
            ]
        return over

    async def _used(self, record: Settlement) -> None:
        """Who used it, and how? Commit that."""
        ruling = await self._resolver.rule(item_of(record), None)
        if not isinstance(ruling, Ruling) or ruling.log is None:
            return
        state = State(record.state)
        outcome = Outcome(
            settlement_id=record.settlement_id,
            from_state=state,
            to_state=move(state, ruling.state),
            answer=ruling.answer,
            phase=None,
            reason=ruling.reason.name if ruling.reason else None,
            tx_hash=ruling.tx_hash,
            log_index=ruling.log.log_index,
            block_number=ruling.log.block_number,
            block_hash=ruling.log.block_hash,
        )
        if await settlements.resolve_late(self._db, record, outcome):
            INCIDENTS.labels("used_late").inc()
            log.error(
                "settlement.used_late",
                settlement_id=str(record.settlement_id),
                state=ruling.state.value,
                network=record.network,
                payer=record.payer,
                tx_hash=ruling.tx_hash,
            )

    async def _close_consumed(self) -> None:
        """Tx_nonces that strangers' transactions consumed: final once the chain's final word says that they are used."""
        slots = await relayers.consumed_slots(self._db, self._chain.network, self._settings.watched_max)
        for relayer in dict.fromkeys(slot.relayer for slot in slots):
            try:
                used = await self._chain.evm.transaction_count(relayer, "finalized", self._chain.evm.deadline_in(_RPC_S))
            except ChainFault as fault:
                log.warning("relayer.final_nonce_unknown", relayer=relayer, kind=fault.kind, fault=str(fault))
                continue
            if over := [slot.slot_id for slot in slots if slot.relayer == relayer and slot.tx_nonce < used]:
                await relayers.close_consumed(self._db, over)

    async def _finalized(self) -> Head | None:
        try:
            return await self._chain.evm.block_at("finalized", self._chain.evm.deadline_in(_RPC_S))
        except ChainFault as fault:
            if fault.kind != "no_block":
                raise
            return None


def _state_of(record: Settlement) -> Call:
    """The question to the token whether this authorization is used."""
    return Call(to=record.asset, data=abi.authorization_state(record.payer, record.auth_nonce))
