"""Shows the whole ledger's open work as gauges. Every replica shows the same figures, so that none of them is needed for it."""

from collections.abc import Sequence
from typing import Final

from facilitator.clock import Clock
from facilitator.metrics import OLDEST_SETTLEMENT, OPEN_INCIDENTS, OPEN_SETTLEMENTS, PAST_DEADLINE
from facilitator.settlement.network import ServedNetwork
from facilitator.settlement.settings import Settings
from facilitator.settlement.tasks import beat
from facilitator.store import survey
from facilitator.store.db import Db
from facilitator.units import Network

_STATES: Final = ("queued", "submitted")


class Surveyor:
    """The gauges of open settlements and incidents."""

    def __init__(self, chains: Sequence[ServedNetwork], db: Db, clock: Clock, settings: Settings) -> None:
        self._networks = tuple(chain.network for chain in chains)
        self._db = db
        self._clock = clock
        self._settings = settings
        self._incidents: set[tuple[Network, str]] = set()

    async def run(self) -> None:
        """Look every `survey_s`."""
        while True:
            beat("survey")
            await self._clock.sleep(self._settings.survey_s)
            await self.look()

    async def look(self) -> None:
        """Read the ledger once and set every gauge, also those that are zero. Raises StoreFault."""
        found = {(row.network, row.state): row for row in await survey.open_settlements(self._db, self._networks)}
        unfinal = {row.network: row.oldest_at for row in await survey.oldest_unfinal(self._db, self._networks)}
        incidents = {(row.network, row.kind): row.incidents for row in await survey.open_incidents(self._db)}
        for network in self._networks:
            for state in _STATES:
                row = found.get((network, state))
                OPEN_SETTLEMENTS.labels(network, state).set(row.settlements if row else 0)
                OLDEST_SETTLEMENT.labels(network, state).set(row.oldest_at if row else 0)
            OLDEST_SETTLEMENT.labels(network, "unfinal").set(unfinal.get(network, 0))
            PAST_DEADLINE.labels(network).set(sum(row.past_deadline for row in found.values() if row.network == network))
        self._incidents |= set(incidents)
        for network, kind in self._incidents:
            OPEN_INCIDENTS.labels(network, kind).set(incidents.get((network, kind), 0))
