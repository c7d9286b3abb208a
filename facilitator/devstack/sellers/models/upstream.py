"""Models of somebody else, by the OpenAI-compatible API that most servers of models speak: a URL and a key.

What comes back is believed only as far as it has the shape that was asked for; anything else is a ModelFault, and so is
silence. The key goes into the one header that needs it and nowhere else.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Annotated, Final, Literal, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec

from facilitator.devstack.sellers.models.model import Conversation, Description, Drawn, Kind, ModelFault, Models, Order, Reply

_T = TypeVar("_T")

_TIMEOUT_S: Final = 120.0
"""Well under the time for which a buyer's authorization is good."""
_ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
_VISION: Final = (
    "Describe the picture as JSON with exactly these members: altText (5 to 15 words), description (2 or 3 sentences), contentType (one of "
    "photograph, illustration, screenshot, diagram, document, mixed, other), text (verbatim, empty if there is none), mainObjects (list of "
    "words), dominantColors (list of #rrggbb). Answer with the JSON alone."
)
_MAGIC: Final = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png", b"GIF8": "image/gif", b"RIFF": "image/webp"}


class _Picture(msgspec.Struct):
    b64_json: str


class _Pictures(msgspec.Struct):
    data: Annotated[list[_Picture], msgspec.Meta(min_length=1)]


class _Message(msgspec.Struct):
    content: str


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Completion(msgspec.Struct):
    choices: Annotated[list[_Choice], msgspec.Meta(min_length=1)]
    usage: _Usage


_Colour = Annotated[str, msgspec.Meta(pattern="^#[0-9a-fA-F]{6}$")]


class _Seen(msgspec.Struct, rename="camel"):
    alt_text: str
    description: str
    content_type: Kind
    text: str = ""
    main_objects: list[str] = []
    dominant_colors: list[_Colour] = []


class Upstream:
    """One server of models. `models` are its; `close` it in the end."""

    def __init__(self, url: str, key: str, *, vision_model: str = "gpt-4o-mini") -> None:
        """`url` with its version, such as `https://api.openai.com/v1`. Raises ValueError.

        `key` may be empty; `vision_model` looks at pictures.
        """
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("expected the URL of an OpenAI-compatible API: https://…/v1")
        self._url = url.rstrip("/")
        self._key = key
        self._vision_model = vision_model
        self._host = parts.hostname
        self._session: aiohttp.ClientSession | None = None

    @property
    def models(self) -> Models:
        """All three."""
        by = f"{self._host} (OpenAI-compatible upstream)"
        return Models(draw=self._draw, describe=self._describe, chat=self._chat, served_by={"draw": by, "describe": by, "chat": by})

    async def close(self) -> None:
        """Close its connections."""
        if self._session is not None:
            await self._session.close()

    async def _draw(self, order: Order) -> Drawn:
        asked = {"model": order.model, "prompt": order.prompt, "n": order.count, "size": f"{order.width}x{order.height}"}
        asked |= dict(order.wishes)
        asked |= {"seed": order.seed} if order.seed is not None else {}
        answer = await self._ask("images/generations", asked, _Pictures)
        if len(answer.data) != order.count:
            raise ModelFault(f"the upstream drew {len(answer.data)} pictures, not {order.count}")
        try:
            pictures = tuple(base64.b64decode(each.b64_json, validate=True) for each in answer.data)
        except binascii.Error as error:
            raise ModelFault("the upstream's pictures are no base64") from error
        if not all(picture.startswith(tuple(_MAGIC)) for picture in pictures):
            raise ModelFault("the upstream's pictures are none")
        return Drawn(pictures=pictures, served_by=self._served_by(order.model))

    async def _chat(self, conversation: Conversation) -> Reply:
        asked: dict[str, object] = {
            "model": conversation.model,
            "messages": [{"role": said.role, "content": said.content} for said in conversation.messages],
            "max_tokens": conversation.max_tokens,
            "temperature": conversation.temperature,
            "top_p": conversation.top_p,
        }
        asked |= {"stop": list(conversation.stop)} if conversation.stop else {}
        answer = await self._ask("chat/completions", asked, _Completion)
        finished: Literal["stop", "length"] = "length" if answer.choices[0].finish_reason == "length" else "stop"
        return Reply(
            content=answer.choices[0].message.content,
            finish_reason=finished,
            prompt_tokens=answer.usage.prompt_tokens,
            completion_tokens=answer.usage.completion_tokens,
            tokenizer=f"as counted by {self._host}",
            served_by=self._served_by(conversation.model),
        )

    async def _describe(self, picture: bytes, instruction: str | None) -> Description:
        kind = next((kind for magic, kind in _MAGIC.items() if picture.startswith(magic)), "application/octet-stream")
        shown = {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{base64.b64encode(picture).decode('ascii')}"}}
        wanted = f"{_VISION} Attend to this in particular: {instruction}" if instruction else _VISION
        content = [{"type": "text", "text": wanted}, shown]
        asked = {"model": self._vision_model, "messages": [{"role": "user", "content": content}], "max_tokens": 1024}
        answer = await self._ask("chat/completions", asked, _Completion)
        told = answer.choices[0].message.content.strip().removeprefix("```json").removesuffix("```")
        seen = _read(told.encode(), _Seen)
        return Description(
            alt_text=seen.alt_text,
            description=seen.description,
            kind=seen.content_type,
            text=seen.text,
            main_objects=tuple(seen.main_objects),
            dominant_colors=tuple(colour.lower() for colour in seen.dominant_colors),
            served_by=self._served_by(self._vision_model),
        )

    def _served_by(self, model: str) -> str:
        return f"{model} at {self._host}"

    async def _ask(self, path: str, asked: Mapping[str, object], shape: type[_T]) -> _T:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            self._session = aiohttp.ClientSession(timeout=timeout, headers=headers)
        try:
            async with self._session.post(f"{self._url}/{path}", json=asked, allow_redirects=False) as response:
                body = await response.content.read(_ANSWER_BYTES_MAX)  # until the end or the limit, whichever comes first
                while not response.content.at_eof() and len(body) < _ANSWER_BYTES_MAX:
                    body += await response.content.read(_ANSWER_BYTES_MAX - len(body))
                if response.status != 200:
                    raise ModelFault(f"the upstream answered {response.status}")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ModelFault(f"the upstream cannot be had: {type(error).__name__}") from error
        return _read(body, shape)


def _read(body: bytes, shape: type[_T]) -> _T:
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ModelFault("the upstream answered something else than was asked") from error
