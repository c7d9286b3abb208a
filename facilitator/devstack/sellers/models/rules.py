"""Answers a chat by a handful of rules: sums, counting, reversing, repeating. It is no language model, and says so.

Its token counts are true, and `max_tokens` and `stop` end an answer as they would end a model's.
"""

import asyncio
import re
from collections.abc import Callable
from typing import Final, Literal

from facilitator.devstack.sellers.models import tokens
from facilitator.devstack.sellers.models.model import Conversation, Reply

SERVED_BY: Final = "local-rules (a few rules, not the model that was named)"

_COUNT_MAX: Final = 2000


async def chat(conversation: Conversation) -> Reply:
    """Answer the last thing that the user said."""
    return await asyncio.to_thread(_reply, conversation)


def _reply(conversation: Conversation) -> Reply:
    heard = next((said.content for said in reversed(conversation.messages) if said.role == "user"), "")
    content = answer(heard)
    stops = [at for stop in conversation.stop if (at := content.find(stop)) >= 0]
    content = content[: min(stops, default=len(content))]
    whole = content
    content, used = tokens.cut(content, conversation.max_tokens)
    finished: Literal["stop", "length"] = "stop" if content == whole else "length"
    return Reply(
        content=content,
        finish_reason=finished,
        prompt_tokens=sum(tokens.count(said.content) for said in conversation.messages),
        completion_tokens=used,
        tokenizer=tokens.NAME,
        served_by=SERVED_BY,
    )


def answer(heard: str) -> str:
    """What the first rule that fits says."""
    for pattern, rule in _RULES:
        found = pattern.search(heard)
        if found is not None:
            return rule(found)
    return (
        f"I am a few rules, not a language model. I can add, subtract and multiply, count to a number, count words, reverse or repeat. "
        f"You wrote {_number(len(heard.split()), 'word')}, {_number(tokens.count(heard), 'token')} of {tokens.NAME}: {heard}"
    )


def _sum(found: re.Match[str]) -> str:
    one, sign, other = int(found[1]), found[2], int(found[3])
    result = {"+": one + other, "-": one - other}.get(sign, one * other)
    return f"{one} {sign} {other} = {result}"


def _count_to(found: re.Match[str]) -> str:
    return ", ".join(str(number) for number in range(1, min(int(found[1]), _COUNT_MAX) + 1))


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


_RULES: Final[tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...]] = (
    (re.compile(r"(-?[0-9]{1,15})\s*([-+*x×])\s*(-?[0-9]{1,15})"), _sum),
    (re.compile(r"\bcount to ([0-9]{1,6})\b", re.IGNORECASE), _count_to),
    (
        re.compile(r"\bcount the words(?: of| in)?:?\s*(.+)", re.IGNORECASE | re.DOTALL),
        lambda found: _number(len(found[1].split()), "word"),
    ),
    (re.compile(r"\breverse:?\s+(.+)", re.IGNORECASE | re.DOTALL), lambda found: found[1][::-1]),
    (re.compile(r"\b(?:say|repeat):?\s+(.+)", re.IGNORECASE | re.DOTALL), lambda found: found[1]),
    (re.compile(r"^\s*(?:hello|hi|hey)\b", re.IGNORECASE), lambda _: "Hello. I am a few rules, not a language model."),
)
