"""Charts: well-formed, within their frame, true to the figures, and told to those who do not see them."""

from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facilitator.console import charts
from facilitator.console.charts import Axis, Bar, Part

_VALUES = st.lists(st.integers(0, 2**90), min_size=1, max_size=90)


def draw(values: list[int], **more: str) -> ET.Element:
    """The chart as a parser of XML reads it; its plot."""
    columns = [Bar(label=f"day {index}", tick=str(index), value=value, text=f"{value} coins") for index, value in enumerate(values)]
    steps = charts.steps_to(max(values))
    told = {"title": "Paid per day", "description": "A bar for each day.", **more}
    text = charts.bars("paid", told["title"], told["description"], columns, Axis(steps=steps, texts=[str(step) for step in steps]))
    _axis, plot = list(ET.fromstring(text))  # noqa: S314 - our own
    return plot


@given(_VALUES)
def test_bars_stay_in_the_frame_and_grow_with_their_values(values: list[int]) -> None:
    rects = draw(values).findall("rect")
    assert len(rects) == len(values)
    heights = [int(rect.attrib["height"]) for rect in rects]
    for rect in rects:
        left, wide = (float(rect.attrib[name].removesuffix("%")) for name in ("x", "width"))
        assert 0 <= left < left + wide <= 100
        assert 0 <= int(rect.attrib["y"]) <= int(rect.attrib["y"]) + int(rect.attrib["height"]) <= charts.HEIGHT
    by_value = [height for _, height in sorted(zip(values, heights, strict=True))]
    assert by_value == sorted(by_value)
    assert all((height > 0) == (value > 0) for value, height in zip(values, heights, strict=True))


def test_each_bar_says_what_it_is() -> None:
    titles = [title.text for title in draw([5, 0, 7]).iterfind("rect/title")]
    assert titles == ["day 0: 5 coins", "day 1: 0 coins", "day 2: 7 coins"]


def test_the_chart_has_a_name_and_a_description() -> None:
    plot = draw([1])
    assert plot.attrib["role"] == "img"
    named = {element.attrib["id"]: element.text for element in plot if "id" in element.attrib}
    assert [named[name] for name in plot.attrib["aria-labelledby"].split()] == ["Paid per day", "A bar for each day."]


def test_what_comes_from_outside_is_no_markup() -> None:
    plot = draw([1], title="<script>", description='"><b>')
    assert (plot.findtext("title"), plot.findtext("desc")) == ("<script>", '"><b>')


def test_a_day_that_is_not_over_looks_otherwise() -> None:
    column = Bar(label="today", tick="", value=1, text="1", unfinished=True)
    assert 'class="bar unfinished"' in charts.bars("paid", "t", "d", [column], Axis(steps=[0, 1], texts=["0", "1"]))


@given(st.integers(0, 2**120))
def test_steps_are_round_few_and_reach_the_highest(highest: int) -> None:
    steps = charts.steps_to(highest)
    assert steps[0] == 0
    assert highest <= steps[-1]
    assert 2 <= len(steps) <= 5
    step = steps[1]
    assert steps == [step * number for number in range(len(steps))]
    assert str(step).rstrip("0") in {"1", "2", "5"}


@pytest.mark.parametrize(
    ("highest", "steps"), [(0, [0, 1]), (1, [0, 1]), (7, [0, 2, 4, 6, 8]), (19, [0, 5, 10, 15, 20]), (100, [0, 50, 100])]
)
def test_steps_as_people_expect_them(highest: int, steps: list[int]) -> None:
    assert charts.steps_to(highest) == steps


@given(st.lists(st.integers(0, 2**60), min_size=1, max_size=4))
def test_shares_fill_the_bar_and_no_more(values: list[int]) -> None:
    parts = [Part(label=str(value), value=value, kind="good") for value in values]
    whole = ET.fromstring(charts.shares("ends", "How they ended", parts))  # noqa: S314 - our own
    wide = [float(rect.attrib["width"].removesuffix("%")) for rect in whole.findall("rect")]
    assert sum(wide) <= 100.0001
    if sum(values):
        assert sum(wide) > 100 - 0.001 * len(values) - 0.0001
