"""Reads what coins are worth from a Chainlink feed on their chain or from a file, and records it with source, round and time."""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog

from facilitator.chain.evm import EvmClient
from facilitator.clock import Clock
from facilitator.domain.abi import DECIMALS, LATEST_ROUND_DATA, read_uint
from facilitator.domain.facts import Call
from facilitator.domain.rates import RATE_DECIMALS, Rate, read_round
from facilitator.errors import ChainFault, ConfigFault, Fault
from facilitator.finance.settings import Settings
from facilitator.metrics import RATE_TIMESTAMP
from facilitator.store import rates
from facilitator.store.db import Db
from facilitator.units import Address, Network

_RPC_S: Final = 10.0
_USD: Final = re.compile(r"(0|[1-9][0-9]{0,11})(?:\.([0-9]{1,8}))?", re.ASCII)
log = structlog.get_logger(__name__)


async def read_feed(evm: EvmClient, feed: Address) -> Rate:
    """The feed's newest round. Raises ChainFault when there is none to be had."""
    questions = (Call(to=feed, data=LATEST_ROUND_DATA), Call(to=feed, data=DECIMALS))
    words, places = (await evm.answer(questions, evm.deadline_in(_RPC_S))).replies
    decimals = read_uint(places.data) if places.ok else None
    if not words.ok or decimals is None or decimals > 36:
        raise ChainFault("no_rate", f"{feed} on {evm.network} does not answer as a Chainlink feed", network=evm.network)
    try:
        return read_round(f"chainlink:{feed}", words.data, decimals)
    except ValueError as error:
        raise ChainFault("no_rate", str(error), network=evm.network) from None


def read_file(path: Path) -> Rate:
    """`{"usd": "3120.55", "quoted_at": "2026-11-21T08:00:00Z"}`. Raises ConfigFault that says what is wrong with it."""
    try:
        found = json.loads(path.read_text("utf-8"))
        usd, quoted_at = _USD.fullmatch(found["usd"]), datetime.fromisoformat(found["quoted_at"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigFault("bad_rate_file", f"rate_file {path}: expected usd and quoted_at as text: {error!r}") from None
    if usd is None or quoted_at.tzinfo is None:
        raise ConfigFault("bad_rate_file", f"rate_file {path}: expected usd such as 3120.55 and quoted_at with its offset")
    usd_e8 = int(usd[1] + (usd[2] or "").ljust(RATE_DECIMALS, "0"))
    if usd_e8 == 0:
        raise ConfigFault("bad_rate_file", f"rate_file {path}: a coin is worth nothing there")
    return Rate(source=f"file:{path.name}", round=quoted_at.isoformat(), quoted_at=quoted_at, usd_e8=usd_e8)


class RateKeeper:
    """Records a network's rate again and again."""

    def __init__(self, db: Db, clock: Clock, settings: Settings, sources: Mapping[Network, tuple[EvmClient, Address] | Path]) -> None:
        self._db = db
        self._clock = clock
        self._settings = settings
        self._sources = sources

    async def run(self) -> None:
        """One look at each source every `rate_poll_s`; one that fails is looked at again, and keeps no other waiting."""
        while True:
            for network, source in self._sources.items():
                await self._look(network, source)
            await self._clock.sleep(self._settings.rate_poll_s)

    async def _look(self, network: Network, source: tuple[EvmClient, Address] | Path) -> None:
        try:
            rate = read_file(source) if isinstance(source, Path) else await read_feed(*source)
            await rates.record(self._db, network, rate)
        except Fault as fault:
            log.warning("rate.missed", network=network, fault=fault.kind, detail=str(fault))
        else:
            RATE_TIMESTAMP.labels(network).set(rate.quoted_at.timestamp())
