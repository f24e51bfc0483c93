"""The code blocks of the README and the docs run, each one separately."""

from __future__ import annotations

import builtins
import dis
import re
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from streams import await_reset, connect, meanwhile, read_all, read_and_close, reset

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
HOW_TO = ROOT / "docs/how-to.md"


def python_blocks(page: Path) -> dict[int, str]:
    """Return the Python blocks of a page, by line."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return {text.count("\n", 0, match.start(1)): match[1] for match in found}


def run_block(page: Path, line: int) -> dict[str, Any]:
    """Run only the block that begins at this line."""
    names: dict[str, Any] = {"__name__": page.stem}
    source = "\n" * line + python_blocks(page)[line]
    exec(compile(source, str(page), "exec", dont_inherit=True), names)
    return names


def run_page(page: Path) -> dict[str, Any]:
    """Run every block of the page, one after the other."""
    names: dict[str, Any] = {"__name__": page.stem}
    for line, block in python_blocks(page).items():
        exec(compile("\n" * line + block, str(page), "exec", dont_inherit=True), names)
    return names


def block_of(page: Path, name: str) -> dict[str, Any]:
    """Run the one block that defines a name."""
    definition = re.compile(rf"^(async def|def|class) {name}\b|^{name} = ", re.MULTILINE)
    [line] = [line for line, source in python_blocks(page).items() if definition.search(source)]
    return run_block(page, line)


def globals_of(code: CodeType) -> set[str]:
    """Return the global names that a block and its functions use."""
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    used = {one.argval for one in dis.get_instructions(code) if one.opname == "LOAD_GLOBAL"}
    return used.union(*map(globals_of, inner))


# pyftpdlib imports these modules on Python 3.11.
@pytest.mark.filterwarnings("ignore:The asyn(core|chat) module:DeprecationWarning")
@pytest.mark.parametrize(
    ("page", "line"),
    [(page, line) for page in PAGES for line in python_blocks(page)],
    ids=lambda value: value.name if isinstance(value, Path) else str(value),
)
def test_each_block_runs_separately(page: Path, line: int) -> None:
    try:
        names = run_block(page, line)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("graceful_close"):
            raise
        pytest.skip(f"needs {error.name}")
    used = globals_of(compile(python_blocks(page)[line], str(page), "exec", dont_inherit=True))
    assert used - set(names) - set(dir(builtins)) == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_to_existing_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_clients_get_the_reply_of_the_server_in_the_readme(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with connect("tcp4") as (ours, peer):

        def upload() -> bytes:
            peer.sendall(bytes(5_000_000))
            return read_and_close(peer)

        with meanwhile(upload) as replies:
            block_of(ROOT / "README.md", "refuse")["refuse"](ours)
    assert replies[0].startswith(b"HTTP/1.1 413 ")
    assert "peer closed after" in capsys.readouterr().out


def test_the_confirmation_in_the_how_to_is_true_when_the_peer_closes() -> None:
    with connect("tcp4") as (ours, peer):
        assert block_of(HOW_TO, "send_and_confirm")["send_and_confirm"](ours, b"news")
        assert read_all(peer) == b"news"


def test_the_confirmation_in_the_how_to_is_false_when_the_peer_resets() -> None:
    with connect("tcp4") as (ours, peer):
        reset(peer)
        await_reset(ours)
        assert not block_of(HOW_TO, "send_and_confirm")["send_and_confirm"](ours, b"news")
        assert ours.fileno() == -1
