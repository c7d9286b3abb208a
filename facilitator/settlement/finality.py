"""Holds what blocks proved against the canonical chain until it is final, and opens again what a reorganisation took away."""

from collections.abc import Sequence
from typing import Final

import structlog

from facilitator.chain.evm import Tag
from facilitator.clock import Clock
from facilitator.errors import ChainFault
from facilitator.metrics import INCIDENTS, STAGE_SECONDS
from facilitator.settlement.network import ServedNetwork
from facilitator.settlement.settings import Settings
from facilitator.settlement.tasks import beat
from facilitator.store import settlements
from facilitator.store.db import Db
from facilitator.store.settlements import Block
from facilitator.units import UnixSeconds

_RPC_S: Final = 5.0
"""Deadline of one look at the chain."""
_FAULTS_MAX: Final = 3
"""Blocks that could not be read before the comparison with the canonical chain is left for the next time."""

log = structlog.get_logger(__name__)


class Finality:
    """One network's way from included over safe to finalized."""

    def __init__(self, chain: ServedNetwork, db: Db, clock: Clock, settings: Settings) -> None:
        self._chain = chain
        self._db = db
        self._clock = clock
        self._settings = settings
        STAGE_SECONDS.labels(chain.network, "finality")  # shown as 0 before the first

    async def run(self) -> None:
        """Hold included blocks against the chain's safe and finalized ones, every `finality_poll_s`."""
        while True:
            beat("finality", self._chain.network)
            await self.check()
            await self._clock.sleep(self._settings.finality_poll_s)

    async def check(self) -> None:
        """Move on what is safe or final; open again what a reorganisation took away."""
        head = await self._chain.evm.head(self._deadline())
        self._chain.head.observe(head)
        blocks = await settlements.unfinal_blocks(self._db, self._chain.network, head.number)
        if not blocks:
            return
        safe, finalized = await self._number("safe"), await self._number("finalized")
        canonical, gone = await self._compare(blocks)
        if final := [block for block in canonical if block.block_number <= finalized]:
            await settlements.finalize(self._db, self._chain.network, final)
            for block in final:
                STAGE_SECONDS.labels(self._chain.network, "finality").observe(max(0, self._clock.now() - canonical[block]))
        if deeper := [block for block in canonical if finalized < block.block_number <= safe]:
            await settlements.make_safe(self._db, self._chain.network, deeper)
        if gone:
            reopened = await settlements.reopen(self._db, self._chain.network, gone)
            INCIDENTS.labels("reorganised").inc(len(reopened))
            log.error("block.reorganised", blocks=[block.block_number for block in gone], settlements=len(reopened))

    async def _number(self, tag: Tag) -> int:
        """How far the chain is safe or finalized; -1 on a chain too young for that."""
        try:
            return (await self._chain.evm.block_at(tag, self._deadline())).number
        except ChainFault as fault:
            if fault.kind != "no_block":
                raise
            return -1

    async def _compare(self, blocks: Sequence[Block]) -> tuple[dict[Block, UnixSeconds], list[Block]]:
        """Which of the blocks are canonical, with their times, and which are no more. What is known of some does not wait for others."""
        canonical_blocks: dict[Block, UnixSeconds] = {}
        gone: list[Block] = []
        faults = 0
        for block in sorted(blocks, key=lambda block: block.block_number):
            try:
                canonical = await self._chain.evm.block(block.block_number, self._deadline())
            except ChainFault as fault:
                log.warning("block.unknown", block_number=block.block_number, kind=fault.kind, fault=str(fault))
                faults += 1
                if faults >= _FAULTS_MAX:
                    break
                continue
            if canonical is not None and canonical.block_hash != block.block_hash:
                gone.append(block)
            elif canonical is not None:
                canonical_blocks[block] = canonical.timestamp
        return canonical_blocks, gone

    def _deadline(self) -> float:
        return self._chain.evm.deadline_in(_RPC_S)
