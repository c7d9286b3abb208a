"""Draws pictures without a model: shapes in colours that come from the prompt, by a seed. The same order, the same bytes.

It understands nothing of the prompt, and says so in `served_by` and in the picture.
"""

import asyncio
import hashlib
import io
import random
import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from PIL import Image, ImageDraw

from facilitator.devstack.sellers.models.model import Drawn, Format, Order

SERVED_BY: Final = "local-renderer (seeded shapes drawn with Pillow, not the model that was named)"

_POOL: Final = ThreadPoolExecutor(max_workers=2, thread_name_prefix="renderer")
"""Pictures are large: no more than two orders are drawn at a time."""
_LABEL: Final = "local-renderer"
_LABEL_SIDE_MIN: Final = 96
"""Pictures with a shorter side have no room for the label."""

Colour = tuple[int, int, int, int]


async def draw(order: Order) -> Drawn:
    """Draw what was ordered."""
    seed = secrets.randbits(63) if order.seed is None else order.seed
    pictures = await asyncio.get_running_loop().run_in_executor(_POOL, _render_all, order, seed)
    return Drawn(pictures=pictures, served_by=SERVED_BY)


def _render_all(order: Order, seed: int) -> tuple[bytes, ...]:
    return tuple(_render(order, seed, index) for index in range(order.count))


def _render(order: Order, seed: int, index: int) -> bytes:
    chance = random.Random(f"{seed} {index} {order.model}")  # noqa: S311 - it is to be foreseen
    palette = _palette(order)
    width, height = order.width, order.height
    clear = order.background == "transparent"
    image = Image.new("RGBA", (width, height), (0, 0, 0, 0) if clear else palette[0])
    canvas = ImageDraw.Draw(image, "RGBA")
    if not clear:
        for row in range(height):  # a sky that darkens downwards
            share = row / height
            canvas.line([(0, row), (width, row)], fill=_between(palette[0], palette[1], share))
    for _ in range(order.details):
        _shape(canvas, chance, palette, width, height)
    if min(width, height) >= _LABEL_SIDE_MIN:
        canvas.rectangle((0, height - 16, width, height), fill=(0, 0, 0, 160))
        canvas.text((4, height - 14), f"{_LABEL} seed {seed}", fill=(255, 255, 255, 255))
    return _encode(image if clear else image.convert("RGB"), order.format)


def _palette(order: Order) -> list[Colour]:
    """Six colours by the words of the prompt, and by whatever else was wished."""
    told = repr((order.prompt, sorted((name, str(wish)) for name, wish in order.wishes.items())))
    digest = hashlib.sha256(told.encode("utf-8", "surrogatepass")).digest()
    return [(digest[at], digest[at + 1], digest[at + 2], 255) for at in range(0, 18, 3)]


def _shape(canvas: ImageDraw.ImageDraw, chance: random.Random, palette: list[Colour], width: int, height: int) -> None:
    red, green, blue, _ = chance.choice(palette[2:])
    fill = (red, green, blue, chance.randrange(90, 256))
    x, y = chance.randrange(width), chance.randrange(height)
    reach = max(4, min(width, height) // chance.randrange(3, 12))
    match chance.randrange(3):
        case 0:
            canvas.ellipse((x - reach, y - reach, x + reach, y + reach), fill=fill)
        case 1:
            canvas.rectangle((x - reach, y - reach // 2, x + reach, y + reach // 2), fill=fill)
        case _:
            corners = [(x + chance.randrange(-reach, reach), y + chance.randrange(-reach, reach)) for _ in range(3)]
            canvas.polygon(corners, fill=fill)


def _between(one: Colour, other: Colour, share: float) -> Colour:
    red, green, blue, _ = (int(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue, 255


def _encode(image: Image.Image, wanted: Format) -> bytes:
    file = io.BytesIO()
    if wanted == "png":
        image.save(file, "PNG", compress_level=3)
    elif wanted == "webp":
        image.save(file, "WEBP", lossless=True, method=0)
    else:
        image.save(file, "JPEG", quality=90)
    return file.getvalue()
