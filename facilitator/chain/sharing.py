"""Look-ups of one chain shared: what callers ask side by side goes out in one request, and each gets its own answer.

It must never let one caller change what another is told: whatever a caller's calls do is undone for the others (`EvmClient.answer_each`),
its deadline ends its own wait only, and its going away ends a request only when nobody else waits for it. Nor does it ever
make anyone wait for company: while fewer than `requests_max` requests are under way, whoever asks is asked for at once.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from facilitator.chain.evm import EvmClient
from facilitator.chain.rpc import NodeError
from facilitator.clock import Timeouts
from facilitator.domain.facts import Facts, Question
from facilitator.errors import ChainFault


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How much is shared."""

    requests_max: int = 8
    """Requests under way at once. With fewer, callers wait two round trips on a distant endpoint; with more, they share less."""
    callers_max: int = 50
    """Callers in one request; `rpc.batch_max` may allow fewer."""


class _Caller:
    """Somebody who waits: the questions, until when, and where the answer goes."""

    __slots__ = ("deadline", "due_at", "place", "questions", "reply", "request", "weight")

    def __init__(self, questions: tuple[Question, ...], weight: int, deadline: float, due_at: float, reply: asyncio.Future[Facts]) -> None:
        self.questions: Final = questions
        self.weight: Final = weight
        self.deadline: Final = deadline
        self.due_at = due_at
        """The same on the event loop's clock."""
        self.reply: Final = reply
        """Done by the answer, or by the caller itself when it goes away."""
        self.place = 0
        """Which of the request's answers is this caller's."""
        self.request: asyncio.Task[list[Facts | ChainFault]] | None = None

    def end(self) -> None:
        """The caller's deadline passed, whatever becomes of the request."""
        _tell(self.reply, _late())


class SharedAnswers:
    """`EvmClient.answer` for many at once, first come, first served."""

    def __init__(self, evm: EvmClient, settings: Settings | None = None) -> None:
        self._evm = evm
        self._settings = settings or Settings()
        self._weight_max = evm.rpc.settings.batch_max - 2  # the head and the shared trials are calls too
        self._waiting: deque[_Caller] = deque()
        self._under_way: dict[asyncio.Task[list[Facts | ChainFault]], Sequence[_Caller]] = {}
        self._sending = False
        self._timeouts = Timeouts()

    async def answer(self, questions: Sequence[Question], deadline: float) -> Facts:
        """Answer all questions from one request, which may carry other callers' questions too. Faults as `EvmClient.answer`."""
        remaining_s = deadline - self._evm.deadline_in(0.0)
        if remaining_s <= 0:
            raise _late()
        loop = asyncio.get_running_loop()
        caller = _Caller(tuple(questions), self._evm.weigh(questions), deadline, loop.time() + remaining_s, loop.create_future())
        self._waiting.append(caller)
        if not self._sending and len(self._under_way) < self._settings.requests_max:
            self._sending = True
            loop.call_soon(self._send)  # whoever asks in this same turn of the loop comes along
        self._timeouts.enter(caller)
        try:
            return await caller.reply
        except asyncio.CancelledError:
            self._abandon(caller)
            raise
        finally:
            self._timeouts.leave(caller)

    def _send(self) -> None:
        """Send requests for those who wait, as many as may be under way."""
        self._sending = False
        while len(self._under_way) < self._settings.requests_max and (callers := self._next_callers()):
            places: dict[tuple[Question, ...], int] = {}
            for caller in callers:
                caller.place = places.setdefault(caller.questions, len(places))  # the same payment twice is asked once
            request = asyncio.create_task(self._evm.answer_each(tuple(places), max(caller.deadline for caller in callers)))
            for caller in callers:
                caller.request = request
            self._under_way[request] = callers
            request.add_done_callback(self._answered)

    def _next_callers(self) -> list[_Caller]:
        """The longest waiting ones that fit into one request, at least one of them. Those who went away are dropped."""
        callers: list[_Caller] = []
        weight = 0
        while self._waiting and len(callers) < self._settings.callers_max:
            caller = self._waiting[0]
            if not caller.reply.done():
                weight += caller.weight
                if callers and weight > self._weight_max:
                    break
                callers.append(caller)
            self._waiting.popleft()
        return callers

    def _answered(self, request: asyncio.Task[list[Facts | ChainFault]]) -> None:
        """Hand out what a request brought, and let the next one go."""
        callers = self._under_way.pop(request)
        if request.cancelled():
            for caller in callers:
                caller.reply.cancel()
        elif (error := request.exception()) is None:
            answers = request.result()
            for caller in callers:
                _tell(caller.reply, answers[caller.place])
        elif len(callers) > 1 and isinstance(error, ChainFault) and error.kind == NodeError.BATCH_TOO_LARGE.value:
            self._weight_max = sum(caller.weight for caller in callers) // 2  # this endpoint takes less than it was believed to
            self._waiting.extendleft(reversed(callers))
        else:
            for caller in callers:
                _tell(caller.reply, error)
        self._send()

    def _abandon(self, caller: _Caller) -> None:
        """A caller was cancelled: what was asked for it alone is called off."""
        request = caller.request
        if request is not None and all(other.reply.done() for other in self._under_way.get(request, ())):
            request.cancel()


def _tell(reply: asyncio.Future[Facts], answer: Facts | BaseException) -> None:
    """Give a caller its answer, unless it went away."""
    if reply.done():
        return
    if isinstance(answer, ChainFault):
        reply.set_exception(ChainFault(answer.kind, answer.message, **answer.evidence))  # one each: raising writes into it
    elif isinstance(answer, BaseException):
        reply.set_exception(answer)
    else:
        reply.set_result(answer)


def _late() -> ChainFault:
    return ChainFault("timeout", "the chain did not answer in time")
