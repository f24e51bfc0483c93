"""How the site is built: `sphinx-build -W --keep-going -b html docs build/docs`."""

from __future__ import annotations

import enum
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "graceful-close"
author = "the graceful-close authors"
release = metadata.version("graceful-close")

# Nothing is fetched: no intersphinx, no fonts, no scripts of others.
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

exclude_patterns = ["_build", "measured"]  # which pages include

# Markdown: the same links lead somewhere on GitHub, which makes anchors of all headings.
myst_heading_anchors = 3

# Docstrings are written to be read in help(): `like this` is code, and a link if it can be one.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 66
napoleon_numpy_docstring = False
napoleon_use_ivar = False

html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False


def mark_code(
    app: Sphinx, what: str, name: str, it: object, options: object, lines: list[str]
) -> None:
    """Docstrings indent their code, as for help(). To Sphinx that would be a quotation."""
    in_section = in_code = False
    marked: list[str] = []
    for line in lines:
        if line and not line[0].isspace():
            in_section, in_code = re.fullmatch("[A-Z][a-z]+:", line) is not None, False
        elif line and not in_section and not in_code:
            in_code = True
            marked += [".. code-block:: python", ""]
        marked.append(line)
    lines[:] = marked


def keep_colons(
    app: Sphinx, what: str, name: str, it: object, options: object, lines: list[str]
) -> None:
    """Have a first line of one word, where napoleon takes what is before a colon for a type."""
    if what in {"attribute", "property"}:
        first = 0
    elif "Returns:" in lines:
        first = lines.index("Returns:") + 1
    else:
        return
    word = re.match(r"(\s*)\S+ ", lines[first])
    if word is not None:
        lines[first : first + 1] = [word[0], word[1] + lines[first][word.end() :]]


def spell_out(
    app: Sphinx,
    what: str,
    name: str,
    it: object,
    options: object,
    arguments: str | None,
    returns: str | None,
) -> tuple[str, str | None] | None:
    """Say what a Stream is where a function takes one: its name is for type checkers alone."""
    module = sys.modules.get(name.rpartition(".")[0])
    if isinstance(it, type) and issubclass(it, enum.Enum):
        return "", returns  # nobody makes one
    if not arguments or module is None or module.__file__ is None:
        return None
    source = Path(module.__file__).read_text(encoding="utf-8")
    alias = re.search(r"^    Stream = (.+)$", source, re.MULTILINE)
    if alias is None:
        return None
    return re.sub(r"\b(Stream|S)\b", alias[1], arguments), returns


def offer_files(app: Sphinx, name: str, source: list[str]) -> None:
    """What is outside this folder is a file to MyST, unless it is Markdown or a folder."""
    source[0] = re.sub(r"\]\((\.\./[^)]*\.md)\)", r"](path:\1)", source[0])
    source[0] = re.sub(r"\[([^]]*)\]\(\.\./[^).]*\)", r"\1", source[0])


def setup(app: Sphinx) -> None:
    app.connect("source-read", offer_files)
    app.connect("autodoc-process-signature", spell_out)
    # Before napoleon, which makes sections of what it finds.
    app.connect("autodoc-process-docstring", mark_code, priority=400)
    app.connect("autodoc-process-docstring", keep_colons, priority=401)
