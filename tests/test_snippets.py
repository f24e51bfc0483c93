"""What the README and the docs show is run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from streams import connect, meanwhile, read_all, read_and_close

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def run_page(page: Path) -> dict[str, Any]:
    """Run the page's Python blocks, one after the other, as one module."""
    names: dict[str, Any] = {"__name__": page.stem}
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, match.start(1))
        exec(compile("\n" * line + match[1], str(page), "exec"), names)
    return names


# pyftpdlib loads them up to Python 3.11.
@pytest.mark.filterwarnings("ignore:The asyn(core|chat) module:DeprecationWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_on_this_page_runs(page: Path) -> None:
    run_page(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_to_files_on_this_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_readmes_server_is_heard(capsys: pytest.CaptureFixture[str]) -> None:
    with connect("tcp4") as (ours, peer):

        def upload() -> bytes:
            peer.sendall(bytes(5_000_000))
            return read_and_close(peer)

        with meanwhile(upload) as replies:
            run_page(ROOT / "README.md")["refuse"](ours)
    assert replies[0].startswith(b"HTTP/1.1 413 ")
    assert "peer closed after" in capsys.readouterr().out


def test_the_how_tos_confirmation_confirms() -> None:
    with connect("tcp4") as (ours, peer):
        assert run_page(ROOT / "docs/how-to.md")["send_and_confirm"](ours, b"news")
        assert read_all(peer) == b"news"
