"""Screening: payer and payee of every payment against sanctions lists, before it is judged payable and again before it is signed.

Lists are a file, read again when it changes, and a contract on the network itself, asked in the request that judges the
payment anyway. What they said is kept in memory, so that whoever signs, bids again or takes a transaction over asks
without waiting. What is known to be listed is never signed for; what cannot be told is the tenant's own risk or nobody's.
"""

import asyncio
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Final, TypeVar

import structlog

from facilitator.clock import Clock
from facilitator.domain.facts import Call, Facts
from facilitator.domain.screening import AddressList, Screening, is_sanctioned, parse_list, read_sanctioned
from facilitator.errors import ConfigFault, ScreeningFault
from facilitator.metrics import SCREENING_DECISIONS, SCREENING_LIST_AGE_MAX, SCREENING_LIST_TIMESTAMP
from facilitator.protocol.messages import Authorization
from facilitator.protocol.reasons import Reason, Refusal
from facilitator.settlement.tasks import beat
from facilitator.units import Address, Network

SCREENED_OUT: Final = frozenset({Reason.PAYER_SCREENED, Reason.PAY_TO_SCREENED})
"""Refusals that a list gives."""

Read = TypeVar("Read")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The `[screening]` table; absent: nobody is screened. Oracles are the networks' own: `networks[].screening_oracle`."""

    known_listed: Address
    """An account that every list must name, file and oracles alike: a list that does not is refused, and `doctor` fails."""
    list_file: str | None = None
    """A file with an address a line, or a CSV with the address first. Read again when it changes; its SHA-256 is its version."""
    list_age_max_s: float = 172_800.0
    """How long after the file was last written it is believed: whoever keeps it touches it also when nothing changed."""
    list_bytes_max: int = 33_554_432
    """Largest list file."""
    reload_s: float = 5.0
    """How often the file is looked at."""
    oracle_age_max_s: float = 60.0
    """How long an oracle's word that an account is not listed is believed; that it is listed holds until it says otherwise."""
    accounts_max: int = 100_000
    """Accounts whose oracle's word is kept in memory; the one unused for longest goes first."""


async def _apart(read: Callable[[], Read]) -> Read:
    """Run it on a thread that nobody waits for at the end: a file system may never answer, and the process must stop all the same."""
    done: Future[Read] = Future()
    done.set_running_or_notify_cancel()

    def run() -> None:
        try:
            done.set_result(read())
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller hears it
            done.set_exception(error)

    Thread(target=run, daemon=True).start()
    return await asyncio.wrap_future(done)


class ListFile:
    """The list in a file, as last read. What cannot be read, or does not name `known_listed`, leaves the old one in place."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        assert settings.list_file is not None
        self._path = Path(settings.list_file)
        self._settings = settings
        self._clock = clock
        self._seen: tuple[int, int, int] | None = None
        self.current: AddressList | None = None
        self.written_at = 0.0
        """When the file that was read was last written."""
        SCREENING_LIST_AGE_MAX.set(settings.list_age_max_s)

    @property
    def stale(self) -> bool:
        """Is there none that may be believed?"""
        return self.current is None or self._clock.now() - self.written_at > self._settings.list_age_max_s

    async def load(self) -> AddressList:
        """Read the file if it has changed. Raises ConfigFault: what is wrong with it."""
        try:
            found = await _apart(self._read)
        except (OSError, ValueError) as error:
            raise ConfigFault("list_unreadable", f"screening.list_file {self._path}: {error}") from None
        if found is not None:
            self.current, self._seen, self.written_at = found
            log.info("screening_list.loaded", version=self.current.version, addresses=len(self.current.addresses))
            SCREENING_LIST_TIMESTAMP.set(self.written_at)
        assert self.current is not None
        return self.current

    def _read(self) -> tuple[AddressList, tuple[int, int, int], float] | None:
        """The list, what tells that file from the next one, and when it was written. None: it is the one that was read."""
        with self._path.open("rb") as file:
            facts = os.fstat(file.fileno())
            seen = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
            if seen == self._seen:
                return None
            text = file.read(self._settings.list_bytes_max + 1)
        if len(text) > self._settings.list_bytes_max:
            raise ValueError(f"it is larger than screening.list_bytes_max = {self._settings.list_bytes_max}")
        found = parse_list(text)
        if self._settings.known_listed not in found.addresses:
            raise ValueError(f"it does not name screening.known_listed = {self._settings.known_listed}")
        return found, seen, facts.st_mtime

    async def run(self) -> None:
        """Keep the list fresh, until cancelled."""
        told: str | None = None
        while True:
            beat("screening")
            wrong = await self._reload()
            if wrong is not None and wrong != told:
                log.error("screening_list.refused", finding=wrong, version=self.current and self.current.version)
            told = wrong
            await self._clock.sleep(self._settings.reload_s)

    async def _reload(self) -> str | None:
        """`load`, but the old list stays when it raises: what is wrong with the new one."""
        try:
            await self.load()
        except ConfigFault as fault:
            return str(fault)
        return None


@dataclass(frozen=True, slots=True)
class _Word:
    """What an oracle said of an account."""

    listed: bool
    block: int
    heard_at: float


class Screen:
    """What one network's payments are held against. Its judgements wait for nothing."""

    def __init__(self, network: Network, settings: Settings, file: ListFile | None, oracle: Address | None, clock: Clock) -> None:
        self._network = network
        self._settings = settings
        self._file = file
        self._oracle = oracle
        self._clock = clock
        self._words: OrderedDict[Address, _Word] = OrderedDict()

    def questions(self, authorization: Authorization) -> tuple[Call, ...]:
        """What the oracle is to be asked about this payment."""
        if self._oracle is None:
            return ()
        return tuple(is_sanctioned(self._oracle, account) for account in _parties(authorization))

    def hear(self, authorizations: Iterable[Authorization], facts: Facts, start: int = 0) -> None:
        """Take note of the answers to `questions`, which begin at `start`. What is no answer leaves what was said before."""
        if self._oracle is None:
            return
        accounts = [account for authorization in authorizations for account in _parties(authorization)]
        for account, reply in zip(accounts, facts.replies[start:], strict=True):
            listed = read_sanctioned(reply)
            if listed is None:
                continue
            self._words[account] = _Word(listed, facts.head.number, self._clock.monotonic())
            self._words.move_to_end(account)
            if len(self._words) > self._settings.accounts_max:
                self._words.popitem(last=False)

    def named(self, authorization: Authorization) -> Refusal | None:
        """Is one of the two in the file? Then nobody else needs to be asked."""
        addresses = self._file.current.addresses if self._file is not None and self._file.current is not None else frozenset()
        return self._refused([account in addresses for account in _parties(authorization)])

    def listed(self, authorization: Authorization) -> Refusal | None:
        """Is one of the two listed, by what is known here and now? However old that is: doubt never clears anybody."""
        words = [self._words.get(account) for account in _parties(authorization)]
        return self.named(authorization) or self._refused([word is not None and word.listed for word in words])

    def _refused(self, listed: Sequence[bool]) -> Refusal | None:
        """The refusal of the first of the two that is listed."""
        if True not in listed:
            return None
        SCREENING_DECISIONS.labels(self._network, "listed").inc()
        index = listed.index(True)
        message = f"{_FIELDS[index]}: expected an account that this facilitator may deal with, got another"
        return Refusal(reason=_REASONS[index], message=message)

    def judge(self, authorization: Authorization, *, accept_unscreened: bool) -> Screening | Refusal:
        """What is to be kept with the payment if it is signed now, or why it is not to be.

        Raises ScreeningFault when a list is stale or the oracle has not answered, and the tenant does not accept that.
        """
        if (refusal := self.listed(authorization)) is not None:
            return refusal
        versions: list[str] = []
        missing: list[str] = []
        if self._file is not None:
            (missing if self._file.stale else versions).append(self._file.current.version if self._file.current else "list")
        if self._oracle is not None:
            words = [self._words.get(account) for account in _parties(authorization)]
            young = self._clock.monotonic() - self._settings.oracle_age_max_s
            blocks = [word.block for word in words if word is not None and word.heard_at >= young]
            if len(blocks) == len(words):
                versions.append(f"{self._oracle}@{min(blocks)}")
            else:
                missing.append(self._oracle)
        if missing and not accept_unscreened:
            SCREENING_DECISIONS.labels(self._network, "unavailable").inc()
            raise ScreeningFault("screening_unavailable", "a sanctions list is stale or cannot be read; nothing was signed; ask again")
        decision: Final = "unscreened" if missing else "clear"
        SCREENING_DECISIONS.labels(self._network, decision).inc()
        return Screening(decision=decision, lists=tuple(versions), at=int(self._clock.now()), accept_unscreened=accept_unscreened)


_REASONS: Final = (Reason.PAYER_SCREENED, Reason.PAY_TO_SCREENED)
_FIELDS: Final = ("payload.authorization.from", "payload.authorization.to")


def _parties(authorization: Authorization) -> Sequence[Address]:
    """Who pays, and who is paid."""
    return authorization.payer, authorization.pay_to
