"""One chain as the loops see it: its client, its relayer keys, its newest block, and whether it may be served."""

from collections import deque
from collections.abc import Container, Sequence
from typing import Final

from coincurve import PrivateKey

from facilitator.chain.evm import EvmClient
from facilitator.chain.sharing import Settings as SharingSettings
from facilitator.chain.sharing import SharedAnswers
from facilitator.chain.signer import Signer
from facilitator.clock import Clock
from facilitator.domain.deadlines import LIFE_MIN_S, life_min_s
from facilitator.domain.facts import Head, Now
from facilitator.domain.wallets import WalletGas
from facilitator.metrics import HEAD_AGE_SECONDS, HEAD_BLOCK, LIFE_MIN_SECONDS
from facilitator.settlement.screening import Screen
from facilitator.units import Address, Network

_MOVING_S: Final = 10.0
"""Two blocks seen within this time mean that the head moves by itself."""
_GAPS: Final = 8
"""Gaps between blocks that are remembered."""
_EARLY: Final = 0.75
"""Part of a gap after which to look: a block is seen a little late, and waiting a whole gap from there would stay late."""
_INCLUSIONS: Final = 256
"""Inclusions that are remembered."""
_INCLUSIONS_S: Final = 60.0
"""How long: a chain that was slow and takes nothing more is tried again after that."""
_RECKONED_S: Final = 1.0
"""How often they are summed up."""
_DOUBTS_MAX: Final = SharingSettings(requests_max=4)
"""Requests under way at once that may run payers' code: each keeps a node busy for as long as that code likes, within its gas."""
_GAP_MAX_S: Final = 2.0
"""Never wait longer than this for a block without looking."""


class HeadClock:
    """The newest block ever seen here, and the time that payments are judged at (docs/architecture.md decision 8).

    A node that lags never turns the clock back. The wall clock is not believed while it runs more than
    `wall_skew_max_s` from a head that moves; an idle chain that mines on demand does not move.
    """

    def __init__(self, network: Network, clock: Clock, wall_skew_max_s: int) -> None:
        self._network = network
        self._clock = clock
        self._wall_skew_max_s = wall_skew_max_s
        self._seen_at = float("-inf")
        self._gaps: deque[float] = deque(maxlen=_GAPS)
        self._inclusions: deque[tuple[float, float]] = deque(maxlen=_INCLUSIONS)
        self._life_min_s = LIFE_MIN_S
        self._reckoned_at = float("-inf")
        self.newest: Head | None = None
        self.wall_trusted = True
        self.pushed = False
        """New heads come by subscription; polling is only the safety net."""
        HEAD_AGE_SECONDS.labels(network).set_function(self._age_s)
        LIFE_MIN_SECONDS.labels(network).set_function(self.life_min_s)

    def observe(self, head: Head, *, pushed: bool = False) -> None:
        """Take note of a head that a node answered with, or `pushed` to us."""
        self.pushed = self.pushed or pushed
        if self.newest is not None and head.number <= self.newest.number:
            return
        seen_at, wall = self._clock.monotonic(), self._clock.now()
        if self.newest is not None and seen_at - self._seen_at <= _MOVING_S:
            self.wall_trusted = abs(wall - head.timestamp) <= self._wall_skew_max_s
        if self.newest is not None:
            self._gaps.append((seen_at - self._seen_at) / (head.number - self.newest.number))
        self.newest, self._seen_at = head, seen_at
        HEAD_BLOCK.labels(self._network).set(head.number)

    def _age_s(self) -> float:
        """Wall time less the newest block's timestamp, as the metric reads it."""
        return float("nan") if self.newest is None else float(self._clock.now() - self.newest.timestamp)

    @property
    def silent_s(self) -> float:
        """How long no new block has been seen; an idle chain that mines on demand is silent too."""
        return self._clock.monotonic() - self._seen_at

    def next_block_in_s(self) -> float:
        """How long the next block should still take, by the shortest of the last gaps; 0 when it is due or unknown."""
        if self.pushed:
            return _GAP_MAX_S
        if not self._gaps:
            return 0.0
        return max(0.0, self._seen_at + _EARLY * min(*self._gaps, _GAP_MAX_S) - self._clock.monotonic())

    def included_after(self, seconds: float) -> None:
        """A payment was included that long after it was recorded."""
        self._inclusions.append((self._clock.monotonic(), seconds))

    def life_min_s(self) -> int:
        """Seconds that a payment must have left, by what inclusion took in the last minute."""
        now = self._clock.monotonic()
        if now - self._reckoned_at >= _RECKONED_S:
            while self._inclusions and now - self._inclusions[0][0] > _INCLUSIONS_S:
                self._inclusions.popleft()
            self._life_min_s, self._reckoned_at = life_min_s([took_s for _, took_s in self._inclusions]), now
        return self._life_min_s

    def now(self) -> Now | None:
        """The time to judge at; None before the first block was seen."""
        if self.newest is None:
            return None
        wall = self._clock.now() if self.wall_trusted else None
        return Now(head=self.newest.timestamp, wall=wall, life_min_s=self.life_min_s())


class ServedNetwork:
    """A chain, its relayers' keys, and the findings that keep it off the list, if any."""

    def __init__(
        self,
        network: Network,
        evm: EvmClient,
        signers: Sequence[Signer],
        head: HeadClock,
        ws_url: str | None = None,
        canary: PrivateKey | None = None,
    ) -> None:
        self.network: Final = network
        self.evm: Final = evm
        self.answers: Final = SharedAnswers(evm)
        """Answers to verifications, shared by those that run side by side. Loops that rule alone ask `evm`."""
        self.doubts: Final = SharedAnswers(evm, _DOUBTS_MAX)
        """The same for what may run a payer's own code, in requests of its own: none of that code keeps a plain payment waiting."""
        self.signers = tuple(signers)
        self.head: Final = head
        self.ws_url: Final = ws_url
        """Where to subscribe to new heads; None: poll."""
        self.screen: Screen | None = None
        """The sanctions lists that its payments are held against."""
        self.canary: Final = canary
        """Key of the account that pays itself to see whether payments are made; None: nobody does."""
        self.findings: tuple[str, ...] = ()
        """Why the network is not served at all: another chain id, or no token that is what the configuration says."""
        self.withdrawn: dict[Address, str] = {}
        """Tokens that are not served, and why: no code, another domain, or an upgrade that is not looked at yet."""
        self.wallet_gas: Final = WalletGas()
        """What smart wallets' transactions may take."""

    @property
    def signers(self) -> tuple[Signer, ...]:
        """Keys that this process signs with; more may come and some may go while it runs."""
        return self._signers

    @signers.setter
    def signers(self, signers: tuple[Signer, ...]) -> None:
        self._signers = signers
        self._accounts = frozenset(signer.address for signer in signers)

    @property
    def relayers(self) -> tuple[Address, ...]:
        """Accounts that pay for gas."""
        return tuple(signer.address for signer in self.signers)

    def pays_gas_from(self, account: object) -> bool:
        """Whether this is one of the relayers: every payment asks."""
        return account in self._accounts

    async def close(self) -> None:
        """Close connections to the chain and to key services."""
        await self.evm.close()
        for signer in self.signers:
            await signer.close()


class OwnAccounts(Container[Address]):
    """The relayers of all networks, as of the moment of asking: no payment may be drawn on them."""

    def __init__(self, chains: Sequence[ServedNetwork]) -> None:
        self._chains = chains

    def __contains__(self, address: object) -> bool:
        """Is it one of ours?"""
        return any(chain.pays_gas_from(address) for chain in self._chains)
