"""Draw the figures: `python -m benchmarks.plots figures.json docs/plots`.

The same figures give the same files, byte by byte.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure as Drawing

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes

    Figures = list[dict[str, Any]]

# The colours of docs/pictures, which can be distinguished in both themes, and by readers who
# cannot distinguish red from green. The second of each pair is for a dark background.
INK = ("#1f2937", "#e5e7eb")
FAINT = ("#6b7280", "#9ca3af")
GROUND = ("#ffffff", "#131416")
OURS = ("#2563eb", "#60a5fa")
THEIRS = ("#9ca3af", "#6b7280")
TARGET = ("#c2410c", "#fb923c")
TITLE_SIZE = 10.5
_COLOURS = (INK, FAINT, GROUND, OURS, THEIRS, TARGET)

# Inches. On a phone the letters are still large enough.
_WIDTH = 5.2

SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "graceful-close",  # and ids the same from one run to the next
    "font.family": "DejaVu Sans",  # included in matplotlib, and wider than the displayed font
    "font.size": 10,
    "text.color": INK[0],
    "axes.edgecolor": FAINT[0],
    "axes.labelcolor": INK[0],
    "axes.titlesize": TITLE_SIZE,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT[0],
    "xtick.labelcolor": INK[0],
    "ytick.color": FAINT[0],
    "ytick.labelcolor": INK[0],
    "legend.frameon": False,
}


def many(figures: Figures) -> Drawing:
    """Draw the CPU per connection, for each way to close many."""
    drawing, (axes,) = drawing_of(1, height=3.0)
    ways = {"close_all": figures[0]["ours"]}
    ways |= {figure["against"]: figure["theirs"] for figure in figures}
    _bars(axes, dict(sorted(ways.items(), key=lambda way: way[1])), "close_all", "{:.1f}")
    count = figures[0]["details"]["connections"]
    axes.set_title(f"Closing {count:,} connections:\nµs of CPU for each (less is better)")
    return drawing


def scaling(figures: Figures) -> Drawing:
    """Draw the CPU per connection, by the number of connections."""
    drawing, (axes,) = drawing_of(1, height=3.2)
    (growth,) = (figure for figure in figures if figure["unit"] == "exponent")
    points = growth["details"]
    counts = points["connections"]
    lines = (("close_all", "ours", OURS), ("C program, epoll", "theirs", THEIRS))
    for name, side, colour in lines:
        axes.plot(counts, points[side], color=colour[0], marker="o", linewidth=1.8)
        axes.annotate(
            f"{name}: n^{growth[side]:.3f}",
            (counts[0], points[side][0]),
            xytext=(0, 9),
            textcoords="offset points",
        )
    axes.set_xscale("log")
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.tick_params(axis="x", labelsize=8.5)
    axes.minorticks_off()
    axes.set_ylim(0, max(points["ours"] + points["theirs"]) * 1.25)
    axes.set_xlabel("connections closed together")
    axes.set_title("µs of CPU for each connection (flat is good)")
    return drawing


def silent_peers(figures: Figures) -> Drawing:
    """Draw the time and the CPU if 1 % of the peers never answer."""
    drawing, (time, cpu) = drawing_of(2, height=2.3)
    drawing.set_layout_engine("constrained", wspace=0.1)
    wall, spent = figures[0], figures[1]
    details = wall["details"]
    short, long = details["deadline"], details["longer_deadline"]
    _bars(
        time, {"close_all": wall["ours"], "32 threads": wall["theirs"]}, "close_all", "{:.2f}"
    )
    time.axvline(short, color=TARGET[0], linestyle="--", linewidth=1)
    time.set_title(f"Seconds; the deadline is {short:g}")
    _bars(
        cpu,
        {f"within {short:g} s": spent["theirs"], f"within {long:g} s": spent["ours"]},
        None,
        "{:.0f}",
    )
    cpu.set_title("close_all: ms of CPU")
    drawing.suptitle(
        f"Closing {details['connections']:,} connections, {details['silent']} silent for good",
        x=0.01,
        ha="left",
        fontsize=TITLE_SIZE,
        fontweight="bold",
    )
    return drawing


def drain(figures: Figures) -> Drawing:
    """Draw the bytes discarded in a second of CPU."""
    drawing, (axes,) = drawing_of(1, height=2.0)
    rates = [figure for figure in figures if figure["unit"] == "GB"]
    ways = {"graceful_close": rates[0]["ours"]}
    ways |= {figure["against"]: figure["theirs"] for figure in rates}
    _bars(axes, ways, "graceful_close", "{:.1f}")
    axes.set_title("Unread input discarded:\nGB in a second of CPU (more is better)")
    return drawing


# For each benchmark: the name of the file, and the alternative text of the drawing.
_PLOTS: dict[str, tuple[str, str, Callable[[Figures], Drawing]]] = {
    "many": ("cpu-of-many", "CPU of closing many connections", many),
    "scaling": ("scaling", "CPU by number of connections", scaling),
    "silent_peers": ("silent-peers", "time and CPU with silent peers", silent_peers),
    "drain": ("drain", "unread input discarded in a second of CPU", drain),
}


def drawing_of(columns: int, height: float) -> tuple[Drawing, list[Axes]]:
    """Make an empty drawing of `height` inches."""
    drawing = Drawing(figsize=(_WIDTH, height), layout="constrained", facecolor=GROUND[0])
    return drawing, [
        drawing.add_subplot(1, columns, column + 1, facecolor="none")
        for column in range(columns)
    ]


def _bars(axes: Axes, lengths: dict[str, float], ours: str | None, shape: str) -> None:
    """Draw horizontal bars, the first on top, with their numbers at their ends."""
    colours = [OURS[0] if ours in (None, name) else THEIRS[0] for name in lengths]
    bars = axes.barh(list(lengths), list(lengths.values()), color=colours, height=0.62)
    axes.bar_label(bars, [shape.format(length) for length in lengths.values()], padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks([])


def svg(drawing: Drawing, title: str) -> str:
    """Return the drawing as SVG, with a dark theme, which matplotlib does not support."""
    file = io.StringIO()
    drawing.savefig(
        file, format="svg", metadata={"Title": title, "Date": None, "Creator": None}
    )
    rules = "".join(
        f'[style*="{what}: {light}"] {{ {what}: {dark} !important }}\n'
        for light, dark in _COLOURS
        for what in ("fill", "stroke")
    )
    style = (
        "<style>text { font-family: system-ui, sans-serif !important }\n"
        f"@media (prefers-color-scheme: dark) {{\n{rules}}}</style>\n"
    )
    head, tag, rest = file.getvalue().partition("<defs>")
    return "\n".join(line.rstrip() for line in (head + style + tag + rest).splitlines()) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plots", description="Draw what the benchmarks measured."
    )
    parser.add_argument(
        "figures", type=Path, help="the file that --json of the benchmarks wrote"
    )
    parser.add_argument("folder", type=Path, help="the folder for the drawings")
    given = parser.parse_args()
    measured: dict[str, Figures] = json.loads(given.figures.read_text())["figures"]
    given.folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(SETTINGS):
        for name, (file, title, draw) in _PLOTS.items():
            if measured.get(name):
                path = given.folder / f"{file}.svg"
                path.write_text(svg(draw(measured[name]), title), encoding="utf-8")
                print(path)


if __name__ == "__main__":
    main()
