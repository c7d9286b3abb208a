"""Shared look-ups with an endpoint that answers when the test says so: who goes out with whom, and who hears what."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from facilitator.chain.sharing import Settings, SharedAnswers
from facilitator.domain.facts import Call, Facts, Question, Reply
from facilitator.errors import ChainFault
from facilitator.units import Address
from tests.fixtures.payments import head

FAR = 60.0


@dataclass
class Asked:
    """One request as the endpoint got it, and where its answer goes."""

    callers: tuple[tuple[Question, ...], ...]
    deadline: float
    answer: asyncio.Future[list[Facts | ChainFault]]

    @property
    def names(self) -> list[str]:
        return ["".join(chr(question.data[0]) for question in questions if isinstance(question, Call)) for questions in self.callers]

    def answer_all(self) -> None:
        self.answer.set_result([facts_for(questions) for questions in self.callers])


class Endpoint:
    """What `SharedAnswers` needs of an `EvmClient`; each question weighs one call."""

    def __init__(self, batch_max: int = 100) -> None:
        self.rpc = SimpleNamespace(settings=SimpleNamespace(batch_max=batch_max))
        self.requests: list[Asked] = []

    def deadline_in(self, seconds: float) -> float:
        return 1_000.0 + seconds

    def weigh(self, questions: Sequence[Question]) -> int:
        return len(questions)

    async def answer_each(self, asked: Sequence[tuple[Question, ...]], deadline: float) -> list[Facts | ChainFault]:
        request = Asked(tuple(asked), deadline, asyncio.get_running_loop().create_future())
        self.requests.append(request)
        return await request.answer


def questions_of(name: str) -> tuple[Question, ...]:
    """A question for each letter."""
    return tuple(Call(to=Address("0x" + "11" * 20), data=letter.encode()) for letter in name)


def facts_for(questions: Sequence[Question]) -> Facts:
    """An answer that tells to whom it belongs."""
    return Facts(head=head(), replies=tuple(Reply(ok=True, data=question.data) for question in questions if isinstance(question, Call)))


def shared(endpoint: Endpoint, **changes: int) -> SharedAnswers:
    return SharedAnswers(endpoint, Settings(**changes))  # type: ignore[arg-type]


def ask(answers: SharedAnswers, name: str, within_s: float = FAR) -> asyncio.Task[Facts]:
    return asyncio.create_task(answers.answer(questions_of(name), 1_000.0 + within_s))


async def settle_down() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_lone_caller_goes_out_at_once_and_alone() -> None:
    endpoint = Endpoint()
    task = ask(shared(endpoint), "ab")
    await settle_down()
    (request,) = endpoint.requests
    assert request.names == ["ab"]
    assert request.deadline == 1_000.0 + FAR
    request.answer_all()
    assert await task == facts_for(questions_of("ab"))


async def test_callers_of_one_turn_share_a_request_and_each_hears_its_own_answer() -> None:
    endpoint = Endpoint()
    answers = shared(endpoint)
    tasks = [ask(answers, name) for name in ("a", "bc", "d")]
    await settle_down()
    (request,) = endpoint.requests
    assert request.names == ["a", "bc", "d"]
    request.answer_all()
    assert await asyncio.gather(*tasks) == [facts_for(questions_of(name)) for name in ("a", "bc", "d")]


async def test_a_caller_does_not_wait_while_another_request_is_under_way() -> None:
    endpoint = Endpoint()
    answers = shared(endpoint, requests_max=2)
    tasks = []
    for name in "ab":
        tasks.append(ask(answers, name))
        await settle_down()
    assert [request.names for request in endpoint.requests] == [["a"], ["b"]]
    for request in endpoint.requests:
        request.answer_all()
    await asyncio.gather(*tasks)


async def test_above_the_bound_callers_wait_and_then_go_together_first_come_first_served() -> None:
    endpoint = Endpoint()
    answers = shared(endpoint, requests_max=2, callers_max=3)
    tasks = []
    for name in "abcdefg":
        tasks.append(ask(answers, name))
        await settle_down()
    assert [request.names for request in endpoint.requests] == [["a"], ["b"]]
    endpoint.requests[1].answer_all()
    await settle_down()
    assert endpoint.requests[2].names == ["c", "d", "e"]
    endpoint.requests[0].answer_all()
    await settle_down()
    assert endpoint.requests[3].names == ["f", "g"]
    for request in endpoint.requests[2:]:
        request.answer_all()
    assert await asyncio.gather(*tasks) == [facts_for(questions_of(name)) for name in "abcdefg"]


async def test_no_request_is_larger_than_the_endpoint_takes_and_no_caller_is_split() -> None:
    endpoint = Endpoint(batch_max=6)  # four, the head, and the trials that share
    answers = shared(endpoint)
    tasks = [ask(answers, name) for name in ("abc", "de", "fg", "hijklm", "n")]
    await settle_down()
    assert [request.names for request in endpoint.requests] == [["abc"], ["de", "fg"], ["hijklm"], ["n"]]
    for request in endpoint.requests:
        request.answer_all()
    await asyncio.gather(*tasks)


async def test_an_endpoint_that_takes_smaller_batches_gets_smaller_ones_from_then_on() -> None:
    endpoint = Endpoint()
    answers = shared(endpoint, requests_max=1)
    tasks = [ask(answers, name) for name in "abcd"]
    await settle_down()
    endpoint.requests[0].answer.set_exception(ChainFault("batch_too_large", "at most 2 calls"))
    await settle_down()
    assert endpoint.requests[1].names == ["a", "b"]
    endpoint.requests[1].answer_all()
    await settle_down()
    assert endpoint.requests[2].names == ["c", "d"]
    endpoint.requests[2].answer_all()
    await asyncio.gather(*tasks)
    lone = ask(answers, "e")
    await settle_down()
    endpoint.requests[3].answer.set_exception(ChainFault("batch_too_large", "at most 1 call"))
    with pytest.raises(ChainFault, match="at most 1 call"):
        await lone


async def test_the_same_questions_are_asked_once() -> None:
    endpoint = Endpoint()
    answers = shared(endpoint)
    tasks = [ask(answers, name) for name in ("ab", "c", "ab")]
    await settle_down()
    (request,) = endpoint.requests
    assert request.names == ["ab", "c"]
    request.answer_all()
    assert await asyncio.gather(*tasks) == [facts_for(questions_of(name)) for name in ("ab", "c", "ab")]


async def test_a_caller_whose_deadline_passes_hurts_nobody_else() -> None:
    endpoint = Endpoint()
    answers = shared(endpoint)
    patient, hasty = ask(answers, "a"), ask(answers, "b", within_s=1e-9)
    with pytest.raises(ChainFault) as late:
        await hasty
    assert late.value.kind == "timeout"
    (request,) = endpoint.requests
    assert request.deadline == 1_000.0 + FAR  # the latest of both
    request.answer_all()
    assert await patient == facts_for(questions_of("a"))


async def test_a_caller_without_time_left_is_not_asked_for() -> None:
    endpoint = Endpoint()
    with pytest.raises(ChainFault) as late:
        await ask(shared(endpoint), "a", within_s=0.0)
    assert late.value.kind == "timeout"
    await settle_down()
    assert endpoint.requests == []


async def test_a_caller_whose_time_is_up_before_its_turn_is_never_asked_for() -> None:
    endpoint = Endpoint()
    answers = shared(endpoint, requests_max=1)
    first = ask(answers, "a")
    await settle_down()
    late, last = ask(answers, "b", within_s=1e-9), ask(answers, "c")
    with pytest.raises(ChainFault):
        await late
    endpoint.requests[0].answer_all()
    await settle_down()
    assert endpoint.requests[1].names == ["c"]
    endpoint.requests[1].answer_all()
    await asyncio.gather(first, last)


async def test_a_cancelled_caller_does_not_cancel_what_others_wait_for() -> None:
    endpoint = Endpoint()
    answers = shared(endpoint)
    staying, leaving = ask(answers, "a"), ask(answers, "b")
    await settle_down()
    leaving.cancel()
    await settle_down()
    assert leaving.cancelled()
    (request,) = endpoint.requests
    request.answer_all()
    assert await staying == facts_for(questions_of("a"))


async def test_a_request_that_nobody_waits_for_any_more_ends_and_makes_room() -> None:
    endpoint = Endpoint()
    answers = shared(endpoint, requests_max=1)
    leaving = [ask(answers, name) for name in "ab"]
    await settle_down()
    waiting = ask(answers, "c")
    for task in leaving:
        task.cancel()
    await settle_down()
    assert endpoint.requests[0].answer.cancelled()
    assert endpoint.requests[1].names == ["c"]
    endpoint.requests[1].answer_all()
    await waiting


async def test_a_fault_of_the_request_reaches_all_its_callers_and_nobody_else() -> None:
    endpoint = Endpoint()
    answers = shared(endpoint, requests_max=1)
    unlucky = [ask(answers, name) for name in "ab"]
    await settle_down()
    later = ask(answers, "c")
    await settle_down()
    endpoint.requests[0].answer.set_exception(ChainFault("unreachable", "nobody there", endpoint="node:1"))
    faults = await asyncio.gather(*unlucky, return_exceptions=True)
    for fault in faults:
        assert isinstance(fault, ChainFault)
        assert (fault.kind, fault.message, fault.evidence) == ("unreachable", "nobody there", {"endpoint": "node:1"})
    assert faults[0] is not faults[1]
    endpoint.requests[1].answer_all()
    await later


async def test_a_fault_of_one_caller_is_no_other_callers() -> None:
    endpoint = Endpoint()
    answers = shared(endpoint)
    lucky, unlucky = ask(answers, "a"), ask(answers, "b")
    await settle_down()
    endpoint.requests[0].answer.set_result([facts_for(questions_of("a")), ChainFault("out_of_gas", "all burned")])
    assert await lucky == facts_for(questions_of("a"))
    with pytest.raises(ChainFault, match="all burned"):
        await unlucky


async def test_a_bug_while_asking_is_raised_in_every_caller_and_the_next_is_served() -> None:
    endpoint = Endpoint()
    answers = shared(endpoint, requests_max=1)
    tasks = [ask(answers, name) for name in "ab"]
    await settle_down()
    endpoint.requests[0].answer.set_exception(AssertionError("a bug"))
    for task in tasks:
        with pytest.raises(AssertionError, match="a bug"):
            await task
    again = ask(answers, "c")
    await settle_down()
    endpoint.requests[1].answer_all()
    await again


async def test_callers_whose_deadlines_pass_beside_each_other_each_hear_of_their_own() -> None:
    endpoint = Endpoint()
    answers = shared(endpoint)
    hasty = [ask(answers, "a", within_s=1e-9) for _ in range(3)]
    heard = await asyncio.gather(*hasty, return_exceptions=True)
    assert [error.kind for error in heard if isinstance(error, ChainFault)] == ["timeout"] * 3
    assert len({id(error) for error in heard}) == 3
    assert answers._timeouts._open == set(), "nobody is watched any more"
    (request,) = endpoint.requests
    request.answer_all()  # nobody waits for it
    await settle_down()


async def test_a_caller_who_goes_away_is_watched_no_more() -> None:
    endpoint = Endpoint()
    answers = shared(endpoint)
    gone = ask(answers, "a")
    await settle_down()
    assert len(answers._timeouts._open) == 1
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert answers._timeouts._open == set()
