"""Holds what blocks proved against the canonical chain until it is final, and opens again what a reorganisation took away."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from facilitator.chain.evm import EvmClient, Tag
from facilitator.clock import Clock
from facilitator.errors import ChainFault
from facilitator.metrics import INCIDENTS, RPC_DISAGREEMENTS, STAGE_SECONDS
from facilitator.settlement.network import ServedNetwork
from facilitator.settlement.settings import Settings
from facilitator.settlement.tasks import beat
from facilitator.store import settlements
from facilitator.store.db import Db
from facilitator.store.settlements import Block
from facilitator.units import UnixSeconds

_RPC_S: Final = 5.0
"""Deadline of one look at the chain."""
_BLOCKS_MAX: Final = 1000
"""Blocks that are held against the canonical chain in one round."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _View:
    """What one endpoint says."""

    safe: int
    """Number of the newest block that is derived from data on L1."""
    finalized: int
    standing: Mapping[Block, tuple[bool, UnixSeconds]]
    """Whether a block is the one of its number, and the time of the one that is; those that it did not tell about are missing."""


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
        """Move on what is safe or final; open again what a reorganisation took away.

        By the word of every endpoint that answers: a block is canonical, or gone, when none of them says otherwise.
        """
        head = await self._chain.evm.head(self._deadline())
        self._chain.head.observe(head)
        blocks = sorted(
            await settlements.unfinal_blocks(self._db, self._chain.network, head.number),
            key=lambda block: (block.block_number, block.block_hash),
        )
        if len(blocks) > _BLOCKS_MAX:  # the oldest become final, the youngest are reorganised; those between have their turn
            blocks = [*blocks[: _BLOCKS_MAX // 2], *blocks[-_BLOCKS_MAX // 2 :]]
        if not blocks:
            return
        views = await asyncio.gather(*(self._view(evm, blocks) for evm in self._chain.evm.witnesses()))
        safe, finalized = min(view.safe for view in views), min(view.finalized for view in views)
        canonical = {block: views[0].standing[block][1] for block in blocks if all(_says(view, block, canonical=True) for view in views)}
        gone = [block for block in blocks if all(_says(view, block, canonical=False) for view in views)]
        if disputed := [block for block in blocks if block not in gone and any(_says(view, block, canonical=False) for view in views)]:
            RPC_DISAGREEMENTS.labels(self._chain.network, "canonical_block").inc(len(disputed))
            log.warning("block.disputed", blocks=[block.block_number for block in disputed])
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

    async def _view(self, evm: EvmClient, blocks: Sequence[Block]) -> "_View":
        """How these blocks stand by one endpoint's word, in one request for all of them."""
        safe, finalized = await self._number(evm, "safe"), await self._number(evm, "finalized")
        numbers = list(dict.fromkeys(block.block_number for block in blocks))
        found = dict(zip(numbers, await evm.blocks(numbers, self._deadline()), strict=True))
        standing: dict[Block, tuple[bool, UnixSeconds]] = {}
        for block in blocks:
            header = found[block.block_number]
            if isinstance(header, ChainFault):
                log.warning("block.unknown", block_number=block.block_number, kind=header.kind, fault=str(header))
            elif header is not None:
                standing[block] = (header.block_hash == block.block_hash, header.timestamp)
        return _View(safe, finalized, standing)

    async def _number(self, evm: EvmClient, tag: Tag) -> int:
        """How far the chain is safe or finalized; -1 on a chain too young for that."""
        try:
            return (await evm.block_at(tag, self._deadline())).number
        except ChainFault as fault:
            if fault.kind != "no_block":
                raise
            return -1

    def _deadline(self) -> float:
        return self._chain.evm.deadline_in(_RPC_S)


def _says(view: _View, block: Block, *, canonical: bool) -> bool:
    """Does this endpoint say so? One that does not tell says neither."""
    told = view.standing.get(block)
    return told is not None and told[0] is canonical
