"""The prose linter checks pages, docstrings, comments and messages, and no code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def check(file: Path, text: str) -> list[str]:
    file.write_text(text, encoding="utf-8")
    checked = subprocess.run(
        [sys.executable, ROOT / "docs/prose.py", file],
        capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip
    lines = checked.stdout.splitlines()
    assert checked.returncode == (0 if lines[-1].endswith("nothing found") else 1)
    return [line.split(": better")[0].removeprefix(f"{file}:") for line in lines]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("page.md", "A page.\n\nThe wait\ngoes on for ever.\n"),
        ("module.py", '"""A module.\n\nThe wait\ngoes on for ever.\n"""\n'),
        ("module.py", "x = 1\n\n# The wait\n# goes on for ever.\n"),
    ],
    ids=["page", "docstring", "comment"],
)
def test_a_habit_is_found_with_its_line(tmp_path: Path, name: str, text: str) -> None:
    assert check(tmp_path / name, text) == ["4: 'for ever'", "4: 'goes on'"]


@pytest.mark.parametrize("quote", ['"', 'f"{x}: '])
def test_a_habit_in_a_message_is_found(tmp_path: Path, quote: str) -> None:
    text = f'x = 1\nraise ValueError(\n    {quote}the wait goes on"\n)\n'
    assert check(tmp_path / "module.py", text) == ["3: 'goes on'"]


def test_a_habit_that_spans_two_lines_is_found(tmp_path: Path) -> None:
    assert check(tmp_path / "page.md", "The wait goes\non.\n") == ["1: 'goes on'"]


def test_a_habit_is_found_in_a_later_paragraph_of_a_section(tmp_path: Path) -> None:
    notes = "Notes:\n    A fact.\n\n    The wait goes on.\n"
    assert check(tmp_path / "module.py", f'"""A module.\n\n{notes}"""\n') == ["6: 'goes on'"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("page.md", "A page.\n\n```text\nThe wait goes on.\n```\n"),
        ("page.md", "Call `goes on` or [this](goes on.md).\n"),
        ("page.md", "<!-- prose: off -->\nThe wait goes on.\n<!-- prose: on -->\n"),
        ("module.py", 'name = "goes on"\n'),
        ("module.py", '"""A module.\n\n    goes_on = goes on\n\nThat was an example.\n"""\n'),
    ],
    ids=["block", "inline", "off", "string", "example"],
)
def test_code_is_not_prose(tmp_path: Path, name: str, text: str) -> None:
    assert check(tmp_path / name, text)[0].endswith("nothing found")
