"""What a sample seller asks of a model: pictures, a description, a chat answer. Two sets of models give it: `local` and `upstream`.

Every answer says in `served_by` who really made it, so that nobody takes a drawing program for the model that he named.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Background = Literal["opaque", "transparent"]
Format = Literal["png", "jpeg", "webp"]
Kind = Literal["photograph", "illustration", "screenshot", "diagram", "document", "mixed", "other"]


class ModelFault(Exception):
    """A model gave nothing that can be sold. The buyer is told so, and is not charged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One order of pictures, checked."""

    model: str
    prompt: str
    width: int
    height: int
    count: int = 1
    seed: int | None = None
    """The same order with the same seed gets the same bytes; None: no two are alike."""
    background: Background = "opaque"
    format: Format = "png"
    details: int = 24
    """How much is to be drawn."""
    wishes: Mapping[str, object] = field(default_factory=dict)
    """What the buyer asked besides, by the names of the API that he asked: an upstream gets it as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """Pictures, each a whole file."""

    pictures: tuple[bytes, ...]
    served_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What there is to say about a picture. What was not found out is empty, and named in `not_measured`."""

    alt_text: str
    """5 to 15 words."""
    description: str
    """2 or 3 sentences."""
    kind: Kind
    text: str
    """What is written in it, verbatim."""
    main_objects: tuple[str, ...]
    dominant_colors: tuple[str, ...]
    """`#rrggbb`, the most frequent first."""
    served_by: str
    not_measured: Mapping[str, str] = field(default_factory=dict)
    """Name of what is left empty, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A chat order, checked."""

    model: str
    messages: Sequence[Said]
    max_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A chat answer with its counts of tokens."""

    content: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    tokenizer: str
    """Whose tokens they are."""
    served_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """A set of models. Each raises ModelFault when it has nothing to sell."""

    draw: Callable[[Order], Awaitable[Drawn]]
    describe: Callable[[bytes, str | None], Awaitable[Description]]
    """Given the picture, and what the buyer wants to know in particular."""
    chat: Callable[[Conversation], Awaitable[Reply]]
    served_by: Mapping[Literal["draw", "describe", "chat"], str]
    """Who serves, for lists of what is sold."""
