"""The chart of the table: two bars for each server in each place, before and after."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from .summary import percent, shown, size
from .table import SIDES

if TYPE_CHECKING:
    from .matrix import Cell

# Pixels.
_WIDTH = 480
_NAMES = 132  # the column of names
_GAP = 12  # between two places
_ROW = 27
_BAR = 9
_TOP = 104
_NUMBER = 42  # the width of a number beside a bar

# The colours of docs/pictures and of the other plots.
_STYLE = """<style>
    text { font: 12px system-ui, sans-serif; fill: #1f2937 }
    .title { font-size: 15px; font-weight: 600 }
    .note, .number { font-size: 10.5px; fill: #6b7280 }
    .place { font-weight: 600 }
    .server { text-anchor: end }
    .before { fill: #9ca3af } .after { fill: #2563eb }
    .whole { fill: #e5e7eb }
    .ground { fill: #fff }
    @media (prefers-color-scheme: dark) {
        text { fill: #e5e7eb } .note, .number { fill: #9ca3af }
        .before { fill: #6b7280 } .after { fill: #60a5fa }
        .whole { fill: #26292e }
        .ground { fill: #131416 }
    }
</style>"""

_PLACES = {"loopback": "on loopback", "wire": "link, 20 ms of delay"}


def draw(cells: list[Cell]) -> str:
    """Return an SVG of the cells with the largest reply; there must be at least one cell."""
    reply = max(cell.reply for cell in cells if cell.reply is not None)
    drawn = [cell for cell in cells if cell.reply in (reply, None)]
    servers = list(dict.fromkeys(cell.server for cell in drawn))
    places = list(dict.fromkeys(cell.where for cell in drawn))
    uploads = sorted({cell.upload for cell in drawn})
    clients = len({cell.client for cell in drawn})
    height = _TOP + _ROW * len(servers) + 8
    title = f"Early replies of {size(reply)} that arrive whole"
    note = f"{clients} clients, uploads of {' to '.join(size(end) for end in _ends(uploads))}"
    own = list(dict.fromkeys(cell.server for cell in drawn if cell.reply is None))
    note += f"; {' and '.join(own)}: a short reply of its own" if own else ""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" viewBox="0 0 {_WIDTH} {height}"',
        f' role="img" aria-label="{escape(title)}, by server, before and after">',
        _STYLE,
        '<rect class="ground" width="100%" height="100%"/>',
        f'<text class="title" x="8" y="24">{escape(title)}</text>',
        f'<text class="note" x="8" y="42">{escape(note)}</text>',
        *_legend(),
    ]
    wide = (_WIDTH - _NAMES - 20 - _GAP * (len(places) - 1)) / len(places)
    for column, place in enumerate(places):
        left = _NAMES + column * (wide + _GAP)
        lines.append(
            f'<text class="place" x="{left:g}" y="{_TOP - 12}">{_PLACES[place]}</text>'
        )
        for row, name in enumerate(servers):
            here = [cell for cell in drawn if (cell.server, cell.where) == (name, place)]
            lines += _bars(here, left, _TOP + row * _ROW, wide - _NUMBER)
    lines += [
        f'<text class="server" x="{_NAMES - 12}" y="{_TOP + row * _ROW + 13}">{name}</text>'
        for row, name in enumerate(servers)
    ]
    return "\n".join([*lines, "</svg>"]) + "\n"


def _bars(cells: list[Cell], left: float, top: float, full: float) -> list[str]:
    """Draw the two bars of one server in one place, each on a bar of 100 %."""
    lines: list[str] = []
    for line, side in enumerate(SIDES):
        share = percent(cell for cell in cells if cell.side == side)
        if share is None:
            continue
        y = top + line * (_BAR + 1)
        for kind, length in (("whole", full), (side, full * share / 100)):
            lines.append(
                f'<rect class="{kind}" x="{left:g}" y="{y:g}" width="{length:.1f}" '
                f'height="{_BAR}"/>'
            )
        lines.append(
            f'<text class="number" x="{left + full + 6:.1f}" y="{y + _BAR - 0.5:g}">'
            f"{escape(shown(share))}</text>"
        )
    return lines


def _legend() -> list[str]:
    lines: list[str] = []
    for x, side, says in ((8, "before", "as shipped"), (108, "after", "made graceful")):
        lines += [
            f'<rect class="{side}" x="{x}" y="56" width="14" height="{_BAR}"/>',
            f'<text x="{x + 20}" y="65">{says}</text>',
        ]
    return lines


def _ends(sizes: list[int]) -> list[int]:
    return sorted({sizes[0], sizes[-1]})
