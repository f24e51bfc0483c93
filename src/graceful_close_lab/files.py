"""The report as SVG files: a sequence diagram of each experiment, and the tables."""

from __future__ import annotations

import io
from html import escape
from typing import TYPE_CHECKING

from .layout import lay_out
from .picture import picture
from .tables import tables

if TYPE_CHECKING:
    from pathlib import Path

    from .report import Report
    from .tables import Table

_WIDTH = 80  # characters

# The frame of rich loads a font from the network when the file is viewed.
_FRAME = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 22 {width} {height}" \
width="{width}" height="{height}" role="img" aria-label="NAME">
<style>
    .ground {{ fill: LIGHT }}
    .{unique_id}-matrix {{
        font: {char_height}px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace
    }}
    {styles}
    @media (prefers-color-scheme: dark) {{ .ground {{ fill: DARK }} OTHER_STYLES }}
</style>
<defs>{lines}</defs>
<rect class="ground" y="22" width="100%" height="100%"/>
<g transform="translate({terminal_x}, {terminal_y})">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def write(report: Report, folder: Path) -> list[Path]:
    """Write everything that can be drawn of a report into an existing folder.

    Returns:
        The written files, tables last. Existing files are replaced.

    Raises:
        OSError: A file cannot be written.
    """
    drawings = {
        run.name: picture(f"{part}: {run.way}", run.exchange)
        for part, runs in (
            ("unsent output", report.linger_experiments),
            ("unread input", report.lost_reply),
        )
        for run in runs
    }
    drawings |= {table.name: table_picture(table) for table in tables(report)}
    written: list[Path] = []
    for name, drawing in drawings.items():
        file = folder / f"{name}.svg"
        file.write_text(drawing, encoding="utf-8")
        written.append(file)
    return written


def table_picture(table: Table) -> str:
    """Draw a table as SVG, for light and dark themes."""
    from rich.console import Console
    from rich.terminal_theme import TerminalTheme
    from rich.text import Text

    from .rich_text import text_of

    lines = [text_of(line) for line in lay_out(table, _WIDTH)]
    width = max(line.cell_len for line in lines)
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    for line in [*lines, Text()]:  # rich clips every line except the last
        console.print(line)
    black, white = (31, 41, 55), (255, 255, 255)
    # black, red, green, yellow, blue, magenta, cyan, white
    light = TerminalTheme(
        white,
        black,
        [black, (194, 65, 12), (4, 120, 87), *[black] * 5],
    )
    black, white = (19, 20, 22), (229, 231, 235)
    dark = TerminalTheme(
        black,
        white,
        [white, (251, 146, 60), (52, 211, 153), *[white] * 5],
    )
    name = table.name
    # In most monospaced fonts a letter is six tenths as wide as it is high.
    other = console.export_svg(
        theme=dark, code_format="{styles}", font_aspect_ratio=0.6, unique_id=name, clear=False
    )
    frame = _FRAME.replace("NAME", escape(table.title).replace("{", "{{").replace("}", "}}"))
    return (
        console.export_svg(
            theme=light, code_format=frame, font_aspect_ratio=0.6, unique_id=name
        )
        .replace("OTHER_STYLES", other)
        .replace("LIGHT", light.background_color.hex)
        .replace("DARK", dark.background_color.hex)
    )
