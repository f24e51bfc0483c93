"""Draw a recorded exchange as a sequence diagram: time goes down, each arrow is a packet."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from typing import Literal

Side = Literal["left", "right"]

_OTHER: dict[Side, Side] = {"left": "right", "right": "left"}

# All in pixels. Two things that happen at about the same time stand this far apart, so that both can be
# read; and however long nothing happens, it takes no more than the longest gap.
_SHORTEST_GAP = 19.0
_LONGEST_GAP = 54.0
_PER_SECOND = 1100.0

# A phone shows the whole width, and its letters are still large enough.
_WIDTH = 480.0
_SHOWN = 560  # where there is room
_TOP = 78.0
_CLOCK = 38.0  # of the column with the times
_LABEL_AT = 42.0
_LOST_AT = 0.65  # of the way; the label ends before it
_LETTER, _CAPITAL = 6.0, 7.4  # capitals and digits; in the widest of the usual fonts
_LINE = 13.0
_BESIDE = 8.0  # between a lifeline and what stands beside it
_LONGEST_LINE = 18  # letters; a longer text continues on a second line, after a comma

# Colours that differ in both modes, and for readers with red-green colour blindness.
_STYLE = """
    text { font: 12px system-ui, sans-serif; fill: #1f2937 }
    .title { font-size: 14px; font-weight: 600 }
    .who { font-weight: 600; text-anchor: middle }
    .time, .state { font-size: 10.5px; fill: #6b7280 }
    .state { letter-spacing: .02em }
    .label { text-anchor: middle; font-size: 11.5px; paint-order: stroke; stroke: #fff;
             stroke-width: 4px; stroke-linejoin: round }
    .life { stroke: #9ca3af; stroke-width: 1.5 }
    .gap { stroke: #fff; stroke-width: 4; stroke-dasharray: 2 5 }
    .arrow { stroke: #2563eb; stroke-width: 1.6; fill: none }
    .head { fill: #2563eb }
    .fin .arrow { stroke: #047857 } .fin .head { fill: #047857 }
    .rst .arrow { stroke: #c2410c; stroke-width: 2.2 } .rst .head { fill: #c2410c }
    .ack .arrow { stroke: #9ca3af } .ack .head { fill: #9ca3af }
    .fin text, .rst text { font-weight: 600 }
    .lost .arrow { stroke-dasharray: 5 4 }
    .said { font-size: 11px }
    .doing { fill: #fef3c7; stroke: #d97706; stroke-width: .8 }
    .ground { fill: #fff }
    @media (prefers-color-scheme: dark) {
        text { fill: #e5e7eb } .time, .state { fill: #9ca3af }
        .ground { fill: #131416 } .label { stroke: #131416 } .gap { stroke: #131416 }
        .arrow { stroke: #60a5fa } .head { fill: #60a5fa }
        .fin .arrow { stroke: #34d399 } .fin .head { fill: #34d399 }
        .rst .arrow { stroke: #fb923c } .rst .head { fill: #fb923c }
        .doing { fill: #3b2f12; stroke: #b45309 }
    }
"""


@dataclass(frozen=True)
class Arrow:
    """One packet.

    Attributes:
        left_at: When it left, in seconds.
        arrived_at: When it was there; None: it never was.
        from_: The side that sent it.
        label: What it says.
        kind: "data", "ack", "fin" or "rst".
    """

    left_at: float
    arrived_at: float | None
    from_: Side
    label: str
    kind: str


@dataclass(frozen=True)
class Doing:
    """A call of a program or its return, at one time."""

    at: float
    side: Side
    text: str


@dataclass(frozen=True)
class State:
    """A side's TCP state, from a moment on."""

    at: float
    side: Side
    name: str


@dataclass
class Exchange:
    """Everything in one picture."""

    title: str
    left: str
    right: str
    arrows: list[Arrow] = field(default_factory=list[Arrow])
    doings: list[Doing] = field(default_factory=list[Doing])
    states: list[State] = field(default_factory=list[State])


def draw(exchange: Exchange) -> str:
    """The picture, as SVG."""
    level, at = _levels(exchange), _lifelines(exchange)
    bottom = max(level.values()) + 26
    height = bottom + 14
    title = escape(exchange.title)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_SHOWN}" ',
        f'viewBox="0 0 {_WIDTH:.0f} {height:.0f}"',
        f' role="img" aria-label="{title}">',
        f"<style>{_STYLE}</style>",
        '<rect class="ground" width="100%" height="100%"/>',
        f'<text class="title" x="8" y="24">{title}</text>',
    ]
    whose: dict[Side, str] = {"left": exchange.left, "right": exchange.right}
    for side, who in whose.items():
        x = at[side]
        parts.append(f'<text class="who" x="{x:.0f}" y="56">{escape(who)}</text>')
        parts.append(
            f'<line class="life" x1="{x:.0f}" x2="{x:.0f}" y1="64" y2="{bottom:.0f}"/>'
        )
    parts += _gaps(level, at)
    parts += [_arrow(arrow, level, at) for arrow in exchange.arrows]
    parts += [_state(state, level, at) for state in exchange.states]
    parts += [_doing(doing, level, at) for doing in exchange.doings]
    parts += _clock(exchange, level)
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _lifelines(exchange: Exchange) -> dict[Side, float]:
    """How far from the left each side stands: there is room for what stands beside it."""
    widths: dict[Side, float] = {"left": 0, "right": _width(exchange.right)}
    for doing in exchange.doings:
        widths[doing.side] = max(widths[doing.side], _box_width(doing))
    for state in exchange.states:
        widths[state.side] = max(widths[state.side], _width(state.name))
    left = _CLOCK + widths["left"] + 2 * _BESIDE
    return {"left": left, "right": _WIDTH - widths["right"] - 2 * _BESIDE}


def _levels(exchange: Exchange) -> dict[float, float]:
    """How far down each moment stands."""
    moments = {arrow.left_at for arrow in exchange.arrows}
    moments |= {arrow.arrived_at for arrow in exchange.arrows if arrow.arrived_at is not None}
    moments |= {doing.at for doing in exchange.doings}
    moments |= {state.at for state in exchange.states}
    more = {doing.at: _LINE * (len(_lines(doing.text)) - 1) for doing in exchange.doings}
    level: dict[float, float] = {}
    y, before = _TOP, min(moments)
    for moment in sorted(moments):
        if moment > before:
            y += min(max((moment - before) * _PER_SECOND, _SHORTEST_GAP), _LONGEST_GAP)
            y += more.get(before, 0.0)
        level[moment] = y
        before = moment
    return level


def _gaps(level: dict[float, float], at: dict[Side, float]) -> list[str]:
    """Break the lifelines where more time went by than there is room for."""
    moments = sorted(level)
    parts: list[str] = []
    for before, after in pairwise(moments):
        if (after - before) * _PER_SECOND > 2 * _LONGEST_GAP:
            middle = (level[before] + level[after]) / 2
            parts += [
                f'<line class="gap" x1="{x:.0f}" x2="{x:.0f}" y1="{middle - 12:.0f}" '
                f'y2="{middle + 12:.0f}"/>'
                for x in at.values()
            ]
    return parts


def _arrow(arrow: Arrow, level: dict[float, float], at: dict[Side, float]) -> str:
    x1, y1 = at[arrow.from_], level[arrow.left_at]
    x2 = at[_OTHER[arrow.from_]]
    kind = arrow.kind
    if arrow.arrived_at is None:
        x2, y2, kind = x1 + (x2 - x1) * _LOST_AT, y1 + 24, f"{kind} lost"
        end = f'<text class="label" x="{x2:.0f}" y="{y2 + 4:.0f}">&#10005;</text>'
    else:
        y2 = level[arrow.arrived_at]
        back = 7 if x2 < x1 else -7
        slope = (y2 - y1) / (x2 - x1)
        tip = f"{x2:.1f},{y2:.1f}"
        wing = [f"{x2 + back:.1f},{y2 + back * slope + rise:.1f}" for rise in (-3.5, 3.5)]
        end = f'<polygon class="head" points="{tip} {" ".join(wing)}"/>'
    # Near to where it comes from, where the arrows of one side are as far apart as can be.
    x = x1 + _LABEL_AT * (1 if x2 > x1 else -1)
    y = y1 + (y2 - y1) * (x - x1) / (x2 - x1) - 3
    return (
        f'<g class="{kind}"><line class="arrow" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" '
        f'y2="{y2:.1f}"/>{end}<text class="label" x="{x:.0f}" y="{y:.1f}">'
        f"{escape(arrow.label)}</text></g>"
    )


def _state(state: State, level: dict[float, float], at: dict[Side, float]) -> str:
    outwards = -_BESIDE if state.side == "left" else _BESIDE
    anchor = "end" if state.side == "left" else "start"
    return (
        f'<text class="state" text-anchor="{anchor}" x="{at[state.side] + outwards:.0f}" '
        f'y="{level[state.at] + 4:.1f}">{escape(state.name)}</text>'
    )


def _lines(text: str) -> list[str]:
    """A text in one line, or in two if it is long."""
    if len(text) <= _LONGEST_LINE:
        return [text]
    first, comma, second = text.partition(", ")
    return [first + comma.rstrip(), second] if comma else [text]


def _box_width(doing: Doing) -> float:
    return max(map(_width, _lines(doing.text))) + 12


def _width(line: str) -> float:
    return sum(_CAPITAL if letter.isupper() or letter.isdigit() else _LETTER for letter in line)


def _doing(doing: Doing, level: dict[float, float], at: dict[Side, float]) -> str:
    lines = _lines(doing.text)
    width = _box_width(doing)
    height = 16 + _LINE * (len(lines) - 1)
    x = at[doing.side] + (-width - _BESIDE if doing.side == "left" else _BESIDE)
    y = level[doing.at]
    texts = "".join(
        f'<text class="said" x="{x + 6:.0f}" y="{y + 4 + _LINE * number:.1f}">{escape(line)}</text>'
        for number, line in enumerate(lines)
    )
    return (
        f'<rect class="doing" x="{x:.0f}" y="{y - 8:.1f}" width="{width:.0f}" '
        f'height="{height:.0f}" rx="4"/>{texts}'
    )


def _clock(exchange: Exchange, level: dict[float, float]) -> list[str]:
    """The time, where something happened on the left."""
    start = min(level)
    moments = {doing.at for doing in exchange.doings}
    parts: list[str] = []
    last = 0.0
    for moment in sorted(moments):
        if level[moment] - last >= 13:
            last = level[moment]
            parts.append(
                f'<text class="time" x="2" y="{last + 4:.1f}">'
                f"{(moment - start) * 1000:.0f} ms</text>"
            )
    return parts
