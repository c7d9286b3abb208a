"""Charts as SVG text that the server makes: no script draws them. Pure.

Heights are pixels and widths percentages, so a chart fits any width and its letters keep their size. Colours are classes of
the style sheet. Beside each chart stands a table with the same figures: the chart is for the eye, the table for everybody.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

HEIGHT: Final = 184
"""Pixels of a bar chart, the line of labels below included."""
_TOP: Final = 14
_FLOOR: Final = HEIGHT - 24
_MILLI: Final = 1_000
_GRID_LINES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One column."""

    label: str
    """What it stands for, in full."""
    tick: str
    """What stands below it; empty for most when there are many."""
    value: int
    text: str
    """The value as people read it, with its unit."""
    unfinished: bool = False
    """More may be added to it yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a whole."""

    label: str
    value: int
    kind: str
    """A class of the style sheet: `good`, `warn`, `bad` or `idle`."""


def bars(name: str, title: str, description: str, columns: Sequence[Bar], axis: "Axis") -> Markup:
    """A bar chart; `name` is unique on its page."""
    slot = 100 * _MILLI // max(len(columns), 1)
    drawn = [
        Markup('<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>').format(y=_height(step, axis.top)) for step in axis.steps if step
    ]
    for index, column in enumerate(columns):
        left, middle = index * slot + slot * 14 // 100, index * slot + slot // 2
        y = _height(column.value, axis.top)
        if column.value:
            y = min(y, _FLOOR - 2)  # what is not nothing can be seen
        drawn.append(
            Markup(
                '<rect class="bar{more}" x="{x}%" width="{width}%" y="{y}" height="{height}"><title>{label}: {text}</title></rect>'
            ).format(
                more=" unfinished" if column.unfinished else "",
                x=_percent(left),
                width=_percent(slot * 72 // 100),
                y=y,
                height=_FLOOR - y,
                label=column.label,
                text=column.text,
            )
        )
        if column.tick:
            last = index == len(columns) - 1  # it ends where the chart ends
            drawn.append(
                Markup('<text class="tick{more}" x="{x}%" y="{y}" text-anchor="{anchor}">{tick}</text>').format(
                    more=" even" if sum(bool(later.tick) for later in columns[index:]) % 2 == 0 else "",  # left out on narrow screens
                    x=_percent(100 * _MILLI if last else middle),
                    y=HEIGHT - 7,
                    anchor="end" if last else "middle",
                    tick=column.tick,
                )
            )
    labels = [
        Markup('<text class="tick" x="100%" y="{y}" text-anchor="end">{text}</text>').format(y=_height(step, axis.top) + 4, text=text)
        for step, text in zip(axis.steps, axis.texts, strict=True)
    ]
    return Markup(
        '<div class="chart"><svg class="axis" width="{wide}" height="{high}" aria-hidden="true">{labels}</svg>'
        '<svg class="plot" height="{high}" role="img" aria-labelledby="{name}-title {name}-description">'
        '<title id="{name}-title">{title}</title><desc id="{name}-description">{description}</desc>{drawn}'
        '<line class="floor" x1="0" x2="100%" y1="{floor}" y2="{floor}"/></svg></div>'
    ).format(
        wide=8 + 7 * max(map(len, axis.texts)),
        high=HEIGHT,
        labels=Markup("").join(labels),
        name=name,
        title=title,
        description=description,
        drawn=Markup("").join(drawn),
        floor=_FLOOR,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """Where the lines of a chart stand, and what is written there."""

    steps: Sequence[int]
    """From 0 up."""
    texts: Sequence[str]

    @property
    def top(self) -> int:
        """What the highest line stands for."""
        return self.steps[-1]


def steps_to(highest: int) -> list[int]:
    """Round numbers from 0 to at least `highest`, at most five of them: their step is 1, 2 or 5 and noughts."""
    step = 1
    while step * _GRID_LINES < highest:
        step = step * 5 // 2 if str(step)[0] == "2" else step * 2
    return [step * number for number in range(-(-max(highest, 1) // step) + 1)]


def shares(name: str, title: str, parts: Sequence[Part]) -> Markup:
    """One bar that is divided as the parts divide the whole."""
    whole = sum(part.value for part in parts)
    drawn, left = [], 0
    for part in parts:
        wide = part.value * 100 * _MILLI // whole if whole else 0
        drawn.append(
            Markup('<rect class="{kind}" x="{x}%" y="0" width="{wide}%" height="10"><title>{label}: {value}</title></rect>').format(
                kind=part.kind, x=_percent(left), wide=_percent(wide), label=part.label, value=f"{part.value:,}"
            )
        )
        left += wide
    return Markup(
        '<svg class="shares" height="10" role="img" aria-labelledby="{name}-title"><title id="{name}-title">{title}</title>{drawn}</svg>'
    ).format(name=name, title=title, drawn=Markup("").join(drawn))


def _height(value: int, top: int) -> int:
    """The y of a value."""
    return _FLOOR - value * (_FLOOR - _TOP) // top


def _percent(milli: int) -> str:
    return f"{milli // _MILLI}.{milli % _MILLI:03}"
