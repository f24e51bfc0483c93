"""The chart: two bars for each server and each proxy, before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl

from benchmarks.plots import (
    FAINT,
    OURS,
    SETTINGS,
    TARGET,
    THEIRS,
    TITLE_SIZE,
    drawing_of,
    svg,
)

from .measure import SIDES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .measure import Cell

_TITLE = "Early replies to uploads of 5 MB, behind a proxy: % that arrive"


def draw(cells: list[Cell]) -> str:
    """Return the chart as SVG."""
    uwsgi_pass = "nginx, uwsgi_pass"
    servers = list(dict.fromkeys(cell.upstream for cell in cells))
    # Servers that speak uwsgi are in the column of nginx, because no other proxy has them.
    by_proxy = {
        proxy: [
            cell
            for cell in cells
            if cell.proxy == proxy or (proxy == "nginx" and cell.proxy == uwsgi_pass)
        ]
        for proxy in dict.fromkeys(cell.proxy for cell in cells)
        if proxy != uwsgi_pass or len({cell.proxy for cell in cells}) == 1
    }
    with mpl.rc_context(SETTINGS):
        drawing, columns = drawing_of(len(by_proxy), height=1.1 + 0.34 * len(servers))
        for axes, (proxy, here) in zip(columns, by_proxy.items(), strict=True):
            _column(axes, here, servers)
            axes.set_title(proxy.replace(", ", ",\n"), fontsize=8.5)
            if axes is not columns[0]:
                axes.set_yticks([])
        drawing.suptitle(_TITLE, x=0.01, ha="left", fontsize=TITLE_SIZE, fontweight="bold")
        drawing.text(
            0.01, 0.005, "of each pair, as started and below it graceful; orange: 502",
            fontsize=8.5, color=FAINT[0],
        )  # fmt: skip
        drawing.set_layout_engine("constrained", rect=(0, 0.04, 1, 0.96))
        return svg(drawing, _TITLE)


def _column(axes: Axes, cells: list[Cell], servers: list[str]) -> None:
    for cell in cells:
        row = servers.index(cell.upstream)
        after = cell.side == SIDES[1]
        y = row + (0.2 if after else -0.2)
        right = 100 * cell.right / cell.tries
        bad = 100 * cell.ends["502"] / cell.tries
        axes.barh(y, right, height=0.36, color=(OURS if after else THEIRS)[0])
        axes.barh(y, bad, left=right, height=0.36, color=TARGET[0])
    names = [name.replace(" -k ", "\n-k ") for name in servers]
    axes.set_yticks(range(len(servers)), names)
    axes.set_ylim(len(servers) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xticks([0, 100])
    axes.tick_params(axis="y", length=0, labelsize=8.5)
