"""An exchange drawn as SVG: time runs down, and each arrow is something that one side sent."""

from __future__ import annotations

from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING

from .formatting import duration
from .timeline import Side

if TYPE_CHECKING:
    from .timeline import Arrow, Event, Exchange

# All in pixels. Events at about the same time are drawn at least the shortest gap apart, so
# that their texts do not overlap. A time without events is drawn as at most the longest gap.
_SHORTEST_GAP = 20.0
_LONGEST_GAP = 54.0
_PER_SECOND = 1100.0

_WIDTH = 820
_LIFELINE = {Side.SERVER: 296.0, Side.CLIENT: 576.0}
_TOP = 96.0
_LABELS_AT = (84.0, 190.0, 140.0, 230.0, 60.0)  # from the sender's lifeline, best first
_PER_LETTER = {True: 8.4, False: 6.2}  # capitals are wide
_BELOW = 52.0

# Colours that can be distinguished in both themes, and by readers who cannot distinguish red
# from green.
STYLE = """
    text { font: 12px system-ui, sans-serif; fill: #1f2937 }
    .title { font-size: 15px; font-weight: 600 }
    .who { font-weight: 600; text-anchor: middle }
    .time, .kernel, .note { font-size: 10.5px; fill: #4b5563 }
    .time { text-anchor: end }
    .label { text-anchor: middle; font-size: 11.5px; paint-order: stroke; stroke: #ffffff;
             stroke-width: 4px; stroke-linejoin: round }
    .life { stroke: #9ca3af; stroke-width: 1.5 }
    .gap { stroke: #ffffff; stroke-width: 4; stroke-dasharray: 2 5 }
    .shaft { stroke: #2563eb; stroke-width: 1.6 } .head { fill: #2563eb }
    .fin .shaft { stroke: #047857 } .fin .head { fill: #047857 }
    .rst .shaft { stroke: #c2410c; stroke-width: 2.2 } .rst .head { fill: #c2410c }
    .ack .shaft { stroke: #9ca3af } .ack .head { fill: #9ca3af }
    .fin text, .rst text { font-weight: 600 }
    .unseen .shaft { stroke-dasharray: 5 4 }
    .cross { stroke: #c2410c; stroke-width: 2 }
    .said { font-size: 11px }
    .event { fill: #fef3c7; stroke: #d97706; stroke-width: .8 }
    .ground { fill: #ffffff }
    @media (prefers-color-scheme: dark) {
        text { fill: #e5e7eb } .time, .kernel, .note { fill: #9ca3af }
        .ground { fill: #131416 } .label, .gap { stroke: #131416 }
        .shaft { stroke: #60a5fa } .head { fill: #60a5fa }
        .fin .shaft { stroke: #34d399 } .fin .head { fill: #34d399 }
        .rst .shaft { stroke: #fb923c } .rst .head { fill: #fb923c }
        .ack .shaft { stroke: #6b7280 } .ack .head { fill: #6b7280 }
        .cross { stroke: #fb923c }
        .event { fill: #3b2f12; stroke: #b45309 }
    }
"""

_NOTES = {
    True: "On loopback: what the programs called, what their calls returned, and the packets "
    "as they arrived.",
    False: "On loopback, without packets: what the programs' calls returned, and the kernel's "
    "list of connections.",
}
_UNSEEN = "A cross: the receiving program never saw it."


def picture(title: str, exchange: Exchange) -> str:
    """Draw one experiment, for light and dark themes.

    Args:
        title: The title of the picture.
        exchange: What happened; it has at least one event.
    """
    level = _levels(exchange)
    bottom = max(level.values()) + 30
    height = bottom + _BELOW
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}"',
        f' width="{_WIDTH}" height="{height:.0f}" role="img" aria-label="{escape(title)}">',
        f"<style>{STYLE}</style>",
        '<rect class="ground" width="100%" height="100%"/>',
        f'<text class="title" x="20" y="28">{escape(title)}</text>',
    ]
    for side, x in _LIFELINE.items():
        parts += [
            f'<text class="who" x="{x:.0f}" y="64">{side.value}</text>',
            f'<line class="life" x1="{x:.0f}" x2="{x:.0f}" y1="72" y2="{bottom:.0f}"/>',
        ]
    parts += _gaps(level)
    parts += [_arrow(arrow, level) for arrow in exchange.arrows]
    parts += _labels(exchange.arrows, level)
    parts += [_event(event, level) for event in exchange.events]
    parts += _clock(exchange.events, level)
    parts.append(
        f'<text class="note" x="20" y="{bottom + 20:.0f}">{_NOTES[exchange.on_wire]}</text>'
    )
    if any(arrow.seen_at is None for arrow in exchange.arrows):
        parts.append(f'<text class="note" x="20" y="{bottom + 36:.0f}">{_UNSEEN}</text>')
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _levels(exchange: Exchange) -> dict[float, float]:
    """Return the vertical position of each moment."""
    moments = {event.at for event in exchange.events}
    for arrow in exchange.arrows:
        moments |= {arrow.sent_at} | ({arrow.seen_at} if arrow.seen_at is not None else set())
    level: dict[float, float] = {}
    y, before = _TOP, min(moments)
    for at in sorted(moments):
        if at > before:
            y += min(max((at - before) * _PER_SECOND, _SHORTEST_GAP), _LONGEST_GAP)
        level[at] = y
        before = at
    return level


def _gaps(level: dict[float, float]) -> list[str]:
    """Break the lifelines where a gap stands for more time than its length shows."""
    parts: list[str] = []
    for before, after in pairwise(sorted(level)):
        if (after - before) * _PER_SECOND > 2 * _LONGEST_GAP:
            y = (level[before] + level[after]) / 2
            parts += [
                f'<line class="gap" x1="{x:.0f}" x2="{x:.0f}" y1="{y - 12:.0f}" y2="{y + 12:.0f}"/>'
                for x in _LIFELINE.values()
            ]
    return parts


def _ends(arrow: Arrow, level: dict[float, float]) -> tuple[float, float, float, float]:
    """Return where an arrow begins and ends: x and y of each."""
    other = Side.CLIENT if arrow.sender is Side.SERVER else Side.SERVER
    x1, y1, x2 = _LIFELINE[arrow.sender], level[arrow.sent_at], _LIFELINE[other]
    if arrow.seen_at is None:
        return x1, y1, x1 + (x2 - x1) * 0.78, y1 + 10
    return x1, y1, x2, level[arrow.seen_at]


def _class(arrow: Arrow) -> str:
    unseen = " unseen" if arrow.seen_at is None else ""
    return arrow.kind.value.lower() + unseen


def _arrow(arrow: Arrow, level: dict[float, float]) -> str:
    x1, y1, x2, y2 = _ends(arrow, level)
    end = _cross(x2, y2) if arrow.seen_at is None else _head(x1, y1, x2, y2)
    return (
        f'<g class="{_class(arrow)}"><line class="shaft" x1="{x1:.1f}" y1="{y1:.1f}" '
        f'x2="{x2:.1f}" y2="{y2:.1f}"/>{end}</g>'
    )


def _labels(arrows: tuple[Arrow, ...], level: dict[float, float]) -> list[str]:
    """Place the labels of the arrows, if possible so that no two overlap."""
    parts: list[str] = []
    taken: list[tuple[float, float, float]] = []  # x, y and half the width
    for arrow in arrows:
        x1, y1, x2, y2 = _ends(arrow, level)
        half = _width(arrow.text) / 2
        places: list[tuple[float, float, float]] = []
        for far in _LABELS_AT:
            x = x1 + far * (1 if x2 > x1 else -1)
            places.append((x, y1 + (y2 - y1) * (x - x1) / (x2 - x1), half))
        place = next((place for place in places if not _meets(place, taken)), places[0])
        taken.append(place)
        parts.append(
            f'<g class="{_class(arrow)}"><text class="label" x="{place[0]:.0f}" '
            f'y="{place[1] + 4:.1f}">{escape(arrow.text)}</text></g>'
        )
    return parts


def _meets(place: tuple[float, float, float], taken: list[tuple[float, float, float]]) -> bool:
    x, y, half = place
    return any(abs(y - y2) < 15 and abs(x - x2) < half + half2 for x2, y2, half2 in taken)


def _width(text: str) -> float:
    """Estimate the width of a text: fonts differ between systems."""
    return sum(_PER_LETTER[letter.isupper() or letter == "_"] for letter in text)


def _cross(x: float, y: float) -> str:
    return "".join(
        f'<line class="cross" x1="{x - 5:.0f}" x2="{x + 5:.0f}" y1="{y - rise:.1f}" '
        f'y2="{y + rise:.1f}"/>'
        for rise in (5, -5)
    )


def _head(x1: float, y1: float, x2: float, y2: float) -> str:
    length = ((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5
    along, across = (x2 - x1) / length, (y2 - y1) / length
    x, y = x2 - 8 * along, y2 - 8 * across  # the middle of the arrowhead's base
    points = (
        (x2, y2),
        (x - 3.6 * across, y + 3.6 * along),
        (x + 3.6 * across, y - 3.6 * along),
    )
    corners = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
    return f'<polygon class="head" points="{corners}"/>'


def _event(event: Event, level: dict[float, float]) -> str:
    y, x = level[event.at], _LIFELINE[event.side]
    left = event.side is Side.SERVER
    text = escape(event.text)
    if event.kernel:
        anchor = "end" if left else "start"
        return (
            f'<text class="kernel" text-anchor="{anchor}" x="{x - 10 if left else x + 10:.0f}" '
            f'y="{y + 4:.1f}">kernel: {text}</text>'
        )
    width = _width(event.text) + 12
    start = x - width - 8 if left else x + 8
    return (
        f'<rect class="event" x="{start:.0f}" y="{y - 8.5:.1f}" width="{width:.0f}" height="17" '
        f'rx="4"/><text class="said" text-anchor="middle" x="{start + width / 2:.0f}" '
        f'y="{y + 4:.1f}">{text}</text>'
    )


def _clock(events: tuple[Event, ...], level: dict[float, float]) -> list[str]:
    """Return the times of the events."""
    return [
        f'<text class="time" x="62" y="{level[at] + 4:.1f}">{duration(at)}</text>'
        for at in sorted({event.at for event in events})
    ]
