"""The manual page and the completion scripts have what the parser reads."""

from __future__ import annotations

import argparse
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from graceful_close_lab.command import COMMANDS, make_parser
from graceful_close_lab.parsing import Parser
from lab_program import exits
from serving import check, keeps, serving

DOCS = Path(__file__).parent.parent / "docs"


def every_parser() -> Iterator[Parser]:
    whole = make_parser()
    yield whole
    for action in whole._actions:
        if isinstance(action, argparse._SubParsersAction):  # pyright: ignore[reportPrivateUsage]
            yield from action.choices.values()  # pyright: ignore[reportUnknownMemberType]


def every_option() -> set[str]:
    return {
        name
        for parser in every_parser()
        for action in parser._actions
        for name in action.option_strings
    }


def test_the_manual_page_is_up_to_date() -> None:
    written = runpy.run_path(str(DOCS / "manual.py"))["page"]()
    kept = (DOCS / "graceful-close.1").read_text(encoding="utf-8")
    assert kept == written, "run: python docs/manual.py"


def test_the_manual_page_has_every_command_option_and_exit_code() -> None:
    page = (DOCS / "graceful-close.1").read_text(encoding="utf-8").replace("\\-", "-")
    for name in COMMANDS:
        assert f"\n.SS {name}\n" in page
    for option in every_option():
        assert f"\\fB{option}\\fR" in page
    assert "... \\fICOMMAND\\fR [\\fIARGUMENTS\\fR]\n" in page
    assert "\n\n" not in page, "an operand or an option has no help"
    for parser in every_parser():
        for code, _ in parser.all_exit_codes:
            assert f"\n.B {code}\n" in page


def test_every_option_is_in_the_documentation() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in DOCS.glob("*.md"))
    missing = {
        name for name in every_option() if not re.search(f"[ `]{re.escape(name)}[ `]", pages)
    }
    assert missing <= {"-h", "--help", "-q"}


def keys_of(found: Any) -> set[str]:
    """Return every key of a JSON value, except the keys of results and errors."""
    if isinstance(found, list):
        return {key for each in found for key in keys_of(each)}  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(found, dict):
        return set()
    members: dict[str, Any] = found  # pyright: ignore[reportUnknownVariableType]
    inner = {key for name in members if name not in ("lost", "result")
             for key in keys_of(members[name])}  # fmt: skip
    return ({*members} - {"schema_version", "ok"}) | inner


def test_every_key_of_the_json_is_documented() -> None:
    page = (DOCS / "lab.md").read_text(encoding="utf-8")
    of_the_lab = keys_of(
        json.loads(exits(0, "lab", "--only", "reply-close,linger-abort", "--json"))
    )
    with serving(keeps) as address:
        _, found = check(address, tries=1)
    assert {key for key in of_the_lab | keys_of(found) if f"`{key}`" not in page} == set()


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh", "fish"])
def test_a_completion_script_has_every_option(shell: str) -> None:
    pytest.importorskip("shtab")
    script = exits(0, "--print-completion", shell)
    assert all(option.lstrip("-") in script for option in every_option())


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_an_option() -> None:
    pytest.importorskip("shtab")
    script = exits(0, "--print-completion", "bash")
    commands = """
COMP_WORDS=(graceful-close check --conn) COMP_CWORD=2
"$(complete -p graceful-close | sed 's/.* -F \\([^ ]*\\) .*/\\1/')"
echo "${COMPREPLY[*]}"
"""
    bash = subprocess.run(
        ["bash"],
        input=script + commands,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert bash.stdout == "--connect-to\n"


def test_an_unknown_shell_is_rejected() -> None:
    pytest.importorskip("shtab")
    errors = exits(2, "--print-completion", "ksh")
    assert "unknown shell 'ksh' (choose from bash, zsh, tcsh, fish)" in errors


def test_completion_without_shtab_names_the_extra_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    monkeypatch.delitem(sys.modules, "graceful_close_lab.completion", raising=False)
    errors = exits(2, "--print-completion", "bash")
    assert "needs shtab: pip install 'graceful-close[lab]'" in errors
