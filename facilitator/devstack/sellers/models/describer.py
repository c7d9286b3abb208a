"""Describes a picture by what can be measured of it: size, colours, kind, and its text where tesseract is installed.

It recognises no objects and invents nothing: what cannot be measured is left empty, and named.
"""

import asyncio
import contextlib
import io
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from PIL import Image, ImageChops, ImageFilter, UnidentifiedImageError

from facilitator.devstack.sellers.models.model import Description, Kind, ModelFault

SERVED_BY: Final = "local-measurer (measured with Pillow, nothing recognised)"
FORMATS: Final = ("JPEG", "PNG", "GIF", "WEBP")

_PIXELS_MAX: Final = 40_000_000
"""A megabyte can hold more than memory does."""
_SAMPLE_SIDE: Final = 256
_CROP_SIDE: Final = 1024
_TEXT_TIMEOUT_S: Final = 5.0
_POOL: Final = ThreadPoolExecutor(max_workers=2, thread_name_prefix="describer")
_NAMED: Final = {
    "black": (0, 0, 0),
    "dark grey": (70, 70, 70),
    "grey": (135, 135, 135),
    "light grey": (200, 200, 200),
    "white": (255, 255, 255),
    "red": (205, 40, 40),
    "orange": (235, 140, 40),
    "brown": (125, 80, 45),
    "yellow": (235, 215, 60),
    "green": (60, 150, 60),
    "teal": (35, 145, 145),
    "blue": (50, 90, 195),
    "light blue": (140, 190, 235),
    "purple": (125, 60, 165),
    "pink": (235, 150, 185),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """Numbers about a picture."""

    width: int
    height: int
    format: str
    frames: int
    shares: tuple[tuple[tuple[int, int, int], float], ...]
    """Dominant colours and the share of the picture that each has, the most frequent first."""
    colours: int
    """Distinct colours of four bits a channel."""
    flat: float
    """Share of pixels that equal their left neighbour."""
    saturation: float
    brightness: float
    edges: float
    """Share of pixels at an edge."""


async def describe(picture: bytes, instruction: str | None) -> Description:
    """Measure a picture. Raises ModelFault for one that cannot be opened."""
    return await asyncio.get_running_loop().run_in_executor(_POOL, _describe, picture, instruction)


def measure(image: Image.Image) -> Measures:
    """Measure an opened picture."""
    rgb = image.convert("RGBA")
    rgb = Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgb).convert("RGB")
    small = rgb.resize((min(_SAMPLE_SIDE, rgb.width), min(_SAMPLE_SIDE, rgb.height)), Image.Resampling.NEAREST)
    pixels = small.width * small.height
    coarse = small.point(lambda value: value & 0xF0)
    hue_saturation_value = small.convert("HSV")
    crop = rgb.crop((0, 0, min(rgb.width, _CROP_SIDE), min(rgb.height, _CROP_SIDE)))
    step = ImageChops.difference(crop, ImageChops.offset(crop, 1, 0)).convert("L").histogram()
    edges = small.convert("L").filter(ImageFilter.FIND_EDGES).histogram()
    return Measures(
        width=image.width,
        height=image.height,
        format=image.format or "unknown",
        frames=getattr(image, "n_frames", 1),
        shares=_dominant(small, pixels),
        colours=len(coarse.getcolors(pixels) or ()),
        flat=step[0] / sum(step),
        saturation=_mean(hue_saturation_value.getchannel("S")) / 255,
        brightness=_mean(hue_saturation_value.getchannel("V")) / 255,
        edges=sum(edges[48:]) / pixels,
    )


def kind_of(measures: Measures) -> Kind:
    """The kind of picture that such measures are typical of."""
    (colour, share), *_ = measures.shares
    paper = share >= 0.55 and min(colour) >= 200
    if min(measures.width, measures.height) < 16:
        return "other"
    if measures.flat < 0.3:
        return "photograph"
    if paper and measures.colours <= 48 and measures.saturation < 0.06 and measures.edges >= 0.05:
        return "document"
    if paper and measures.colours <= 48 and measures.flat >= 0.85:
        return "diagram"
    if measures.flat >= 0.75 and measures.colours > 48 and share >= 0.3:
        return "screenshot"
    return "illustration" if measures.flat >= 0.6 else "mixed"


def _describe(picture: bytes, instruction: str | None) -> Description:
    try:
        image = Image.open(io.BytesIO(picture), formats=FORMATS)
        if image.width * image.height > _PIXELS_MAX:
            raise ModelFault(f"the picture has {image.width}x{image.height} pixels: more than {_PIXELS_MAX:,} are not measured")
        image.load()
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise ModelFault("the picture cannot be decoded") from error
    found = measure(image)
    kind = kind_of(found)
    text, why_not = _read_text(image)
    colours = " and ".join(list(dict.fromkeys(_name(colour) for colour, _ in found.shares))[:2])
    shape = "square" if found.width == found.height else "landscape" if found.width > found.height else "portrait"
    noun = {"mixed": "mixed picture", "other": "tiny picture"}.get(kind, kind)
    article = "An" if noun[0] in "aeiou" else "A"
    light = "dark" if found.brightness < 0.35 else "bright" if found.brightness > 0.7 else "of middle brightness"
    sentences = [
        f"{article} {noun} in {shape} format, {found.width} by {found.height} pixels, stored as {found.format}.",
        f"It is {light} and mostly {colours}; {found.shares[0][1]:.0%} of it is {_hex(found.shares[0][0])}.",
    ]
    if text:
        sentences.append(f"It holds {len(text.split())} words of text.")
    missing = {"mainObjects": "objects are not recognised here"}
    missing |= {"text": why_not} if why_not else {}
    missing |= {"instruction": "nothing here follows instructions"} if instruction else {}
    return Description(
        alt_text=f"A {shape} {noun} of {found.width} by {found.height} pixels, mostly {colours}",
        description=" ".join(sentences),
        kind=kind,
        text=text,
        main_objects=(),
        dominant_colors=tuple(_hex(colour) for colour, _ in found.shares),
        served_by=SERVED_BY,
        not_measured=missing,
    )


def _read_text(image: Image.Image) -> tuple[str, str]:
    """What tesseract reads, and why nothing was read; both may be empty."""
    program = shutil.which("tesseract")
    if program is None:
        return "", "tesseract is not installed"
    file = io.BytesIO()
    image.convert("RGB").save(file, "PNG", compress_level=1)
    done = None
    with contextlib.suppress(subprocess.TimeoutExpired, OSError):
        done = subprocess.run(
            [program, "stdin", "stdout"], input=file.getvalue(), capture_output=True, timeout=_TEXT_TIMEOUT_S, check=False
        )
    if done is None or done.returncode != 0:
        return "", "tesseract failed"
    return done.stdout.decode("utf-8", "replace").strip(), ""


def _dominant(small: Image.Image, pixels: int) -> tuple[tuple[tuple[int, int, int], float], ...]:
    """At most five colours with at least 3 % each; always one."""
    reduced = small.quantize(8, Image.Quantize.MEDIANCUT)
    palette = reduced.getpalette() or []
    counts = sorted(reduced.getcolors() or [], reverse=True)
    shares = [((palette[3 * at], palette[3 * at + 1], palette[3 * at + 2]), count / pixels) for count, at in counts if isinstance(at, int)]
    return (shares[0], *(each for each in shares[1:5] if each[1] >= 0.03))


def _mean(channel: Image.Image) -> float:
    histogram = channel.histogram()
    return sum(value * count for value, count in enumerate(histogram)) / sum(histogram)


def _name(colour: tuple[int, int, int]) -> str:
    return min(_NAMED, key=lambda name: sum((a - b) ** 2 for a, b in zip(_NAMED[name], colour, strict=True)))


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
