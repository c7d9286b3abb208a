"""What payments are held against: files that change, oracles that fall silent, and how long either is believed."""

import asyncio
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from facilitator.clock import SystemClock
from facilitator.domain.facts import Facts, Head, Reply
from facilitator.domain.screening import Screening
from facilitator.errors import ConfigFault, ScreeningFault
from facilitator.protocol.messages import Authorization
from facilitator.protocol.reasons import Reason, Refusal
from facilitator.settlement.screening import ListFile, Screen, Settings
from facilitator.units import Address, BlockHash, UnixSeconds, Wei
from tests.fixtures.payments import BASE_SEPOLIA, authorization
from tests.fixtures.sanctions import KNOWN_LISTED, write_list

PAYER, PAYEE, OTHER = (Address("0x" + digit * 40) for digit in "123")
ORACLE = Address("0x" + "4" * 40)
WRITTEN = 1_800_000_000


@dataclass
class HandClock(SystemClock):
    """Time as the test says."""

    at: float = float(WRITTEN)
    slept: list[float] = field(default_factory=list)

    def now(self) -> UnixSeconds:
        return UnixSeconds(int(self.at))

    def monotonic(self) -> float:
        return self.at


def payment(payer: Address = PAYER, pay_to: Address = PAYEE) -> Authorization:
    return authorization(payer=payer, pay_to=pay_to)


def facts(*words: int | None, block: int = 7) -> Facts:
    head = Head(number=block, block_hash=BlockHash("0x" + "00" * 32), timestamp=UnixSeconds(0), base_fee_wei=Wei(0))
    replies = [Reply(ok=word is not None, data=b"" if word is None else word.to_bytes(32, "big")) for word in words]
    return Facts(head=head, replies=tuple(replies))


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "list.txt"


def dated(path: Path, written: float = WRITTEN) -> Path:
    os.utime(path, (written, written))
    return path


@pytest.fixture
def list_file(path: Path, clock: HandClock) -> Callable[..., ListFile]:
    def make(**changes: float) -> ListFile:
        return ListFile(Settings(known_listed=KNOWN_LISTED, list_file=str(path), list_age_max_s=100.0, **changes), clock)  # type: ignore[arg-type]

    return make


def screen(clock: HandClock, file: ListFile | None = None, oracle: Address | None = None, accounts_max: int = 100) -> Screen:
    settings = Settings(known_listed=KNOWN_LISTED, oracle_age_max_s=60.0, accounts_max=accounts_max)
    return Screen(BASE_SEPOLIA, settings, file, oracle, clock)


def judged(on: Screen, asked: Authorization | None = None, *, accept_unscreened: bool = False) -> Screening:
    found = on.judge(asked or payment(), accept_unscreened=accept_unscreened)
    assert isinstance(found, Screening), found
    return found


# --- the file ---


async def test_a_file_is_read_again_when_it_was_replaced(path: Path, list_file: Callable[..., ListFile]) -> None:
    dated(write_list(path))
    file = list_file()
    first = await file.load()
    assert await file.load() is first, "it was read again for nothing"
    dated(write_list(path, PAYER), WRITTEN + 1)
    second = await file.load()
    assert PAYER in second.addresses
    assert second.version != first.version
    assert file.written_at == WRITTEN + 1


@pytest.mark.parametrize(
    ("text", "finding"),
    [
        (f"{KNOWN_LISTED}\nnonsense\n", "line 2"),
        ("", "no address"),
        (f"{PAYER}\n", "does not name screening.known_listed"),
        (f"{KNOWN_LISTED}\n" + "#" * 2000, "larger than"),
    ],
)
async def test_a_file_that_is_no_list_leaves_the_old_one(path: Path, list_file: Callable[..., ListFile], text: str, finding: str) -> None:
    dated(write_list(path, PAYER))
    file = list_file(list_bytes_max=1000)
    before = await file.load()
    path.write_text(text, "utf-8")
    for _ in range(2):
        with pytest.raises(ConfigFault, match=finding):
            await file.load()
    assert file.current is before
    path.unlink()
    with pytest.raises(ConfigFault, match="list_file"):
        await file.load()
    assert file.current is before


async def test_a_file_touched_in_time_stays_fresh(path: Path, list_file: Callable[..., ListFile], clock: HandClock) -> None:
    file = list_file()
    assert file.stale
    dated(write_list(path))
    await file.load()
    clock.at += 100
    assert not file.stale
    clock.at += 1
    assert file.stale
    dated(path, clock.at)
    await file.load()
    assert not file.stale


# --- what is judged by it ---


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (payment(payer=OTHER), Reason.PAYER_SCREENED),
        (payment(pay_to=OTHER), Reason.PAY_TO_SCREENED),
        (payment(payer=OTHER, pay_to=OTHER), Reason.PAYER_SCREENED),
    ],
)
@pytest.mark.parametrize("accept_unscreened", [False, True])
async def test_who_is_listed_is_refused_in_words_that_tell_nothing_of_the_list(
    path: Path,
    list_file: Callable[..., ListFile],
    clock: HandClock,
    asked: Authorization,
    reason: Reason,
    accept_unscreened: bool,  # noqa: FBT001
) -> None:
    dated(write_list(path, OTHER))
    file = list_file()
    await file.load()
    on = screen(clock, file)
    clock.at += 10_000  # stale: who is on an old list is on it all the same
    found = on.judge(asked, accept_unscreened=accept_unscreened)
    assert isinstance(found, Refusal)
    assert found.reason is reason
    assert not any(word in found.message.lower() for word in ("list", "sanction", "sha256", str(path), OTHER))
    assert found.evidence == {}


async def test_who_is_not_is_clear_by_that_version(path: Path, list_file: Callable[..., ListFile], clock: HandClock) -> None:
    dated(write_list(path, OTHER))
    file = list_file()
    version = (await file.load()).version
    found = judged(screen(clock, file))
    assert found == Screening(decision="clear", lists=(version,), at=WRITTEN, accept_unscreened=False)


async def test_a_stale_file_is_the_tenants_risk_or_nobodys(path: Path, list_file: Callable[..., ListFile], clock: HandClock) -> None:
    dated(write_list(path, OTHER))
    file = list_file()
    await file.load()
    on = screen(clock, file)
    clock.at += 101
    with pytest.raises(ScreeningFault):
        on.judge(payment(), accept_unscreened=False)
    found = judged(on, accept_unscreened=True)
    assert (found.decision, found.lists, found.accept_unscreened) == ("unscreened", (), True)


# --- the oracle ---


def test_an_oracle_is_asked_about_both(clock: HandClock) -> None:
    assert [call.to for call in screen(clock, oracle=ORACLE).questions(payment())] == [ORACLE, ORACLE]
    assert screen(clock).questions(payment()) == ()


def test_an_oracles_word_holds_for_a_while(clock: HandClock) -> None:
    on = screen(clock, oracle=ORACLE)
    with pytest.raises(ScreeningFault):
        on.judge(payment(), accept_unscreened=False)
    on.hear([payment()], facts(None, 0, 0, block=9), start=1)
    assert judged(on).lists == (f"{ORACLE}@9",)
    clock.at += 60
    assert judged(on).decision == "clear"
    clock.at += 1
    with pytest.raises(ScreeningFault):
        on.judge(payment(), accept_unscreened=False)
    assert judged(on, accept_unscreened=True).decision == "unscreened"


@pytest.mark.parametrize("words", [(1, 0), (0, 1)])
def test_that_an_account_is_listed_holds_until_the_oracle_says_otherwise(clock: HandClock, words: tuple[int, int]) -> None:
    on = screen(clock, oracle=ORACLE)
    on.hear([payment()], facts(*words))
    clock.at += 1e6
    on.hear([payment()], facts(None, None))
    assert isinstance(on.judge(payment(), accept_unscreened=True), Refusal)
    on.hear([payment()], facts(0, 0))
    assert judged(on).decision == "clear"


@pytest.mark.parametrize("words", [(None, 0), (0, None), (0, 7)])
def test_half_an_answer_is_none(clock: HandClock, words: tuple[int | None, int | None]) -> None:
    on = screen(clock, oracle=ORACLE)
    on.hear([payment()], facts(*words))
    with pytest.raises(ScreeningFault):
        on.judge(payment(), accept_unscreened=False)


async def test_both_lists_must_clear(path: Path, list_file: Callable[..., ListFile], clock: HandClock) -> None:
    dated(write_list(path, OTHER))
    file = list_file()
    version = (await file.load()).version
    on = screen(clock, file, ORACLE)
    with pytest.raises(ScreeningFault):
        on.judge(payment(), accept_unscreened=False)
    assert judged(on, accept_unscreened=True).lists == (version,)
    on.hear([payment()], facts(0, 0))
    assert judged(on).lists == (version, f"{ORACLE}@7")
    on.hear([payment(payer=OTHER)], facts(0, 0))
    assert isinstance(on.judge(payment(payer=OTHER), accept_unscreened=True), Refusal)


def test_accounts_kept_in_memory_have_a_bound(clock: HandClock) -> None:
    on = screen(clock, oracle=ORACLE, accounts_max=2)
    on.hear([payment()], facts(0, 0))
    on.hear([payment(payer=OTHER)], facts(0, 0))
    assert judged(on, payment(payer=OTHER)).decision == "clear"
    with pytest.raises(ScreeningFault):
        on.judge(payment(), accept_unscreened=False)
    assert len(on._words) == 2


async def test_a_file_system_that_never_answers_keeps_no_process_from_its_end(path: Path, clock: HandClock) -> None:
    os.mkfifo(path)  # opening it for reading waits for somebody who writes
    before = set(threading.enumerate())
    reading = asyncio.create_task(ListFile(Settings(known_listed=KNOWN_LISTED, list_file=str(path)), clock).load())
    while not (threads := set(threading.enumerate()) - before):
        await asyncio.sleep(0)
    assert all(thread.daemon for thread in threads), "the interpreter waits for all others when it ends"
    assert not reading.done()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    path.open("wb").close()  # lets the thread go
    for thread in threads:
        await asyncio.to_thread(thread.join)
