"""Reports habits of language that readers stumble over: `python docs/prose.py [FILE ...]`.

Checks the prose of Markdown pages, and the docstrings, comments and messages of Python files,
against docs/vocabulary.toml. Code blocks, `code` and addresses are not prose. Exits with 1 if it finds
anything. CONTRIBUTING.md, "Language", has the rules behind the patterns.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
VOCABULARY = ROOT / "docs/vocabulary.toml"
CHECKED = (
    "*.md",
    "docs/**/*.md",
    "docs/**/*.py",
    "benchmarks/*.md",
    "benchmarks/**/*.py",
    "elsewhere/*.py",
    "examples/*.py",
    "noxfile.py",
    "src/**/*.py",
    "tests/**/*.py",
)

# Three words in a string make it a message.
MESSAGE = re.compile(r"(?:[A-Za-z'-]{2,}[ ,.:;]+){2,}[A-Za-z'-]{2,}")

# What is not prose, in a page and in a docstring.
NOT_PROSE = re.compile(
    r"^```.*?^```"  # a block of code
    r"|<!-- prose: off -->.*?<!-- prose: on -->"
    r"|``[^`]+``|`[^`]+`"
    r"|\]\([^)]*\)|\]\[[^]]*\]|^\[[^]]*\]: .*?$|<[^>\n]*>"  # where a link leads, a comment
    r"|(?<=\n\n)(?: {4,}[^\n]*\n|\n)+",  # what a docstring indents
    re.MULTILINE | re.DOTALL,
)


def habits() -> dict[re.Pattern[str], str]:
    """What to look for, and what to write instead."""
    sections: dict[str, dict[str, str] | list[str]] = tomllib.loads(
        VOCABULARY.read_text(encoding="utf-8")
    )
    found: dict[re.Pattern[str], str] = {}
    for section in sections.values():
        if isinstance(section, dict):
            for pattern, better in section.items():
                spaced = pattern.replace(" ", r"\s+")
                found[re.compile(rf"(?<!\w)(?:{spaced})(?!\w)", re.IGNORECASE)] = better
    return found


def files() -> list[Path]:
    """What is checked if no file is named."""
    return sorted({file for pattern in CHECKED for file in ROOT.glob(pattern)})


def blank(text: str) -> str:
    """As many lines of nothing."""
    return re.sub(r"[^\n]", " ", text)


def prose_of_page(text: str) -> str:
    """A page without what is not prose; everything stays on its line."""
    return NOT_PROSE.sub(lambda found: blank(found[0]), text)


def prose_of_python(source: str) -> str:
    """Docstrings, comments and messages alone; everything stays on its line."""
    lines = [""] * (source.count("\n") + 1)
    docstrings: set[ast.expr] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not re.match(
            r"#\s*(?:noqa|pyright|type):", token.string
        ):
            lines[token.start[0] - 1] += token.string.lstrip("# ")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            text = node.value.value
            docstrings.add(node.value)
            if isinstance(text, str):
                indent = " " * node.col_offset
                dedented = re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)
                for number, line in enumerate(prose_of_docstring(dedented).split("\n")):
                    lines[node.lineno - 1 + number] += line
        elif isinstance(node, ast.Constant) and node not in docstrings:
            text = node.value
            if isinstance(text, str) and is_message(text):
                lines[node.lineno - 1] += f" | {text} "
    return "\n".join(re.sub(r"``[^`]+``|`[^`]+`", blank_code, line) for line in lines)


def is_message(text: str) -> bool:
    """Whether a string is a text for readers: one line, with words."""
    return "\n" not in text and MESSAGE.search(text) is not None


def prose_of_docstring(text: str) -> str:
    """A docstring without its examples: what is indented, outside of a section."""
    in_section = False
    kept: list[str] = []
    for line in text.split("\n"):
        if line and not line[0].isspace():
            in_section = re.fullmatch(r"[A-Z][a-z]+:", line) is not None
        if in_section:
            kept.append(line.strip())  # indented, and prose
        else:
            kept.append("" if line[:4].isspace() else line)
    return prose_of_page("\n".join(kept))


def blank_code(found: re.Match[str]) -> str:
    """As much of nothing."""
    return blank(found[0])


def findings(file: Path, patterns: dict[re.Pattern[str], str]) -> Iterator[str]:
    """A line for each habit found in a file."""
    shown = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file
    text = file.read_text(encoding="utf-8")
    prose = prose_of_python(text) if file.suffix == ".py" else prose_of_page(text)
    for pattern, better in patterns.items():
        for found in pattern.finditer(prose):
            line = prose.count("\n", 0, found.start()) + 1
            words = " ".join(found[0].split())
            yield f"{shown}:{line}: {words!r}: better: {better}"


def main(names: list[str]) -> int:
    """Print what is found in the files named, or in all."""
    patterns = habits()
    chosen = [Path(name).resolve() for name in names] or files()
    found = [line for file in chosen for line in findings(file, patterns)]
    print("\n".join(found) or f"{len(chosen)} files: nothing found")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
