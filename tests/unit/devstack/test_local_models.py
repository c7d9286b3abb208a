"""The models that come with the sample sellers: drawn by seed, measured, and counted in true tokens."""

import asyncio
import io
import os
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from facilitator.devstack.sellers.models import describer, renderer, rules, tokens
from facilitator.devstack.sellers.models.model import Conversation, ModelFault, Order, Said

ORDER = Order(model="flux-schnell", prompt="a lighthouse", width=160, height=96, seed=7)


def drawn(order: Order) -> tuple[bytes, ...]:
    return asyncio.run(renderer.draw(order)).pictures


def opened(picture: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(picture))
    image.load()
    return image


def saved(image: Image.Image, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


# ---- renderer


def test_the_same_order_with_the_same_seed_is_the_same_picture() -> None:
    assert drawn(ORDER) == drawn(ORDER)
    assert drawn(replace(ORDER, count=3))[:1] == drawn(ORDER)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 8},
        {"prompt": "a boat"},
        {"model": "sdxl"},
        {"details": 12},
        {"background": "transparent"},
        {"wishes": {"negative_prompt": "fog"}},
    ],
    ids=str,
)
def test_another_order_is_another_picture(change: dict[str, object]) -> None:
    assert drawn(replace(ORDER, **change)) != drawn(ORDER)  # type: ignore[arg-type]


def test_the_pictures_of_one_order_differ() -> None:
    assert len(set(drawn(replace(ORDER, count=4)))) == 4


def test_without_a_seed_no_two_are_alike() -> None:
    assert drawn(replace(ORDER, seed=None)) != drawn(replace(ORDER, seed=None))


@pytest.mark.parametrize("size", [(64, 64), (2048, 64), (128, 2048), (1024, 1024)])
@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_size_and_format_are_as_ordered(size: tuple[int, int], form: str) -> None:
    picture = opened(drawn(replace(ORDER, width=size[0], height=size[1], format=form))[0])  # type: ignore[arg-type]
    assert (picture.size, picture.format, picture.mode) == (size, form.upper(), "RGB")


@pytest.mark.parametrize("form", ["png", "webp"])
def test_a_transparent_background_is_transparent(form: str) -> None:
    picture = opened(drawn(replace(ORDER, background="transparent", format=form, details=3))[0])  # type: ignore[arg-type]
    assert picture.mode == "RGBA"
    assert picture.getchannel("A").getextrema() == (0, 255)


# ---- describer


def photograph() -> Image.Image:
    chance = random.Random(1)  # noqa: S311 - it is to be foreseen
    image = Image.new("RGB", (160, 120))
    for x in range(160):
        for y in range(120):
            image.putpixel((x, y), tuple(min(255, max(0, base + chance.randrange(-12, 13))) for base in (x, y, 200 - x)))
    return image


def document() -> Image.Image:
    image = Image.new("RGB", (600, 800), "white")
    canvas = ImageDraw.Draw(image)
    for y in range(30, 780, 14):
        canvas.text((30, y), "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor.", fill="black")
    return image


def diagram() -> Image.Image:
    image = Image.new("RGB", (640, 480), "white")
    canvas = ImageDraw.Draw(image)
    for x in (60, 360):
        canvas.rectangle((x, 180, x + 180, 300), outline="black", fill="#ffcc00", width=3)
    canvas.line((240, 240, 360, 240), fill="black", width=3)
    return image


def screenshot() -> Image.Image:
    chance = random.Random(1)  # noqa: S311 - it is to be foreseen
    image = Image.new("RGB", (1280, 720), "#f0f0f0")
    canvas = ImageDraw.Draw(image)
    canvas.rectangle((0, 0, 1280, 60), fill="#203040")
    for number in range(160):  # many coloured controls on one ground
        x, y = number % 20 * 60 + 40, number // 20 * 80 + 80
        canvas.rectangle((x, y, x + 30, y + 50), fill=tuple(chance.randrange(256) for _ in range(3)))
    return image


KINDS = {
    "photograph": photograph,
    "document": document,
    "diagram": diagram,
    "screenshot": screenshot,
    "illustration": lambda: opened(drawn(replace(ORDER, width=512, height=384))[0]),
    "other": lambda: Image.new("RGB", (8, 8), "red"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_is_told_from_measures(kind: str) -> None:
    assert describer.kind_of(describer.measure(KINDS[kind]())) == kind


@pytest.mark.parametrize("kind", KINDS)
def test_the_words_keep_to_their_bounds(kind: str) -> None:
    image = KINDS[kind]()
    found = asyncio.run(describer.describe(saved(image), None))
    assert 5 <= len(found.alt_text.split()) <= 15, found.alt_text
    assert 2 <= found.description.count(". ") + 1 <= 3, found.description
    assert f"{image.width} by {image.height}" in found.alt_text
    assert found.kind == kind
    assert found.main_objects == ()
    assert "mainObjects" in found.not_measured


def test_the_dominant_colours_are_those_of_the_picture_in_order() -> None:
    image = Image.new("RGB", (100, 100), "#ff0000")
    image.paste("#0000ff", (0, 0, 30, 100))
    image.paste("#00ff00", (0, 0, 1, 1))
    found = asyncio.run(describer.describe(saved(image), None))
    assert found.dominant_colors == ("#ff0000", "#0000ff")
    assert "70%" in found.description
    assert "red and blue" in found.alt_text


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP"])
def test_every_format_that_is_taken_is_measured(form: str) -> None:
    found = asyncio.run(describer.describe(saved(Image.new("RGB", (40, 30), "white"), form), None))
    assert f"stored as {form}" in found.description
    assert found.dominant_colors[0] in {"#ffffff", "#fefefe"}


def test_what_shines_through_is_measured_on_white() -> None:
    found = asyncio.run(describer.describe(saved(Image.new("RGBA", (40, 30), (0, 0, 0, 0))), None))
    assert found.dominant_colors == ("#ffffff",)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"<svg/>", saved(Image.new("RGB", (40, 30)), "BMP")])
def test_what_cannot_be_decoded_is_a_fault(content: bytes) -> None:
    with pytest.raises(ModelFault, match="decoded"):
        asyncio.run(describer.describe(content, None))


def test_half_a_picture_is_a_fault() -> None:
    whole = saved(photograph())
    with pytest.raises(ModelFault, match="decoded"):
        asyncio.run(describer.describe(whole[: len(whole) // 2], None))


def test_a_picture_that_would_fill_the_memory_is_not_opened() -> None:
    bomb = saved(Image.new("1", (7_000, 6_000)))
    assert len(bomb) < 1024 * 1024
    with pytest.raises(ModelFault, match="more than 40,000,000"):
        asyncio.run(describer.describe(bomb, None))


def test_without_tesseract_there_is_no_text_and_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = asyncio.run(describer.describe(saved(document()), None))
    assert (found.text, found.not_measured["text"]) == ("", "tesseract is not installed")


@pytest.mark.parametrize(("status", "text", "why"), [(0, "THE SIGN\nSAYS", None), (1, "", "tesseract failed")])
def test_with_tesseract_its_text_is_taken_verbatim(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int, text: str, why: str | None
) -> None:
    """With a program of that name that reads the same way; the real one is tried where it is installed."""
    program = tmp_path / "tesseract"
    read = "import sys; picture = sys.stdin.buffer.read(); assert picture.startswith(b'\\x89PNG') and sys.argv[1:] == ['stdin', 'stdout']"
    program.write_text(f"#!{sys.executable}\n{read}\nprint('THE SIGN\\nSAYS\\n\\x0c')\nsys.exit({status})\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = asyncio.run(describer.describe(saved(document()), None))
    assert (found.text, found.not_measured.get("text")) == (text, why)
    assert ("It holds 3 words of text." in found.description) == (why is None)


@pytest.mark.skipif(not any((Path(part) / "tesseract").exists() for part in os.get_exec_path()), reason="tesseract is not installed")
def test_tesseract_reads_what_is_written() -> None:
    image = Image.new("RGB", (400, 100), "white")
    ImageDraw.Draw(image).text((20, 20), "INVOICE 42", fill="black", font_size=48)
    assert "INVOICE 42" in asyncio.run(describer.describe(saved(image), None)).text


# ---- chat


def reply(content: str, *, max_tokens: int = 1024, stop: tuple[str, ...] = ()) -> tuple[str, str, int]:
    conversation = Conversation(model="m", messages=[Said(role="user", content=content)], max_tokens=max_tokens, stop=stop)
    told = asyncio.run(rules.chat(conversation))
    assert told.tokenizer == "cl100k_base"
    return told.content, told.finish_reason, told.completion_tokens


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("What is 6 * 7?", "6 * 7 = 42"),
        ("12 - 30", "12 - 30 = -18"),
        ("add 2+3 please", "2 + 3 = 5"),
        ("Please count to 5", "1, 2, 3, 4, 5"),
        ("Count the words in: one two three", "3 words"),
        ("reverse: abc", "cba"),
        ("say: Guten Tag", "Guten Tag"),
    ],
)
def test_each_rule_answers(asked: str, said: str) -> None:
    assert reply(asked)[0] == said


def test_whatever_else_is_asked_it_says_what_it_is_and_what_it_heard() -> None:
    said, finish, _ = reply("Who are you?")
    assert "not a language model" in said
    assert "3 words" in said
    assert said.endswith("Who are you?")
    assert finish == "stop"


@pytest.mark.parametrize("max_tokens", [1, 2, 17, 100])
def test_max_tokens_ends_an_answer_and_says_so(max_tokens: int) -> None:
    said, finish, used = reply("count to 2000", max_tokens=max_tokens)
    assert (finish, used) == ("length", max_tokens)
    assert tokens.count(said) == max_tokens
    assert ", ".join(map(str, range(1, 2001))).startswith(said)


def test_an_answer_that_just_fits_is_whole() -> None:
    whole, _, used = reply("count to 50")
    assert reply("count to 50", max_tokens=used) == (whole, "stop", used)
    assert reply("count to 50", max_tokens=used - 1)[1:] == ("length", used - 1)


def test_half_a_character_is_not_handed_over() -> None:
    said, finish, used = reply("say: \N{VULGAR FRACTION FIVE EIGHTHS}\N{LATIN SMALL LETTER ETH}\N{OLD ITALIC LETTER A}", max_tokens=1)
    assert (finish, used) == ("length", 1)
    assert "\N{REPLACEMENT CHARACTER}" not in said


@pytest.mark.parametrize(("stop", "said"), [((", 4",), "1, 2, 3"), (("5", "3"), "1, 2, "), (("none",), "1, 2, 3, 4, 5, 6"), (("1",), "")])
def test_the_first_stop_ends_an_answer_and_is_left_out(stop: tuple[str, ...], said: str) -> None:
    content, finish, used = reply("count to 6", stop=stop)
    assert (content, finish, used) == (said, "stop", tokens.count(said))


def test_the_counts_are_those_of_cl100k_base() -> None:
    """Token ids as OpenAI's cookbook and tiktoken's own tests have them."""
    assert tokens.encoding().encode_ordinary("hello world") == [15339, 1917]
    assert tokens.encoding().encode_ordinary("tiktoken is great!") == [83, 1609, 5963, 374, 2294, 0]
    assert tokens.count("antidisestablishmentarianism") == 6
    assert tokens.count("2 + 2 = 4") == 7
    assert tokens.count("お誕生日おめでとう") == 9
    assert tokens.count("<|endoftext|>") == 7  # what a buyer writes is text
    assert tokens.count("") == 0


def test_a_conversation_is_counted_whole() -> None:
    said = [Said(role="system", content="hello world"), Said(role="user", content="hello world")]
    told = asyncio.run(rules.chat(Conversation(model="m", messages=said, max_tokens=5)))
    assert told.prompt_tokens == 4
    assert "few rules" in told.served_by


def test_another_vocabulary_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="not cl100k_base's"):
        tokens.encoding.__wrapped__()
