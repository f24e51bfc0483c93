"""`graceful-close`, the command line itself: which commands there are, and what is loaded when."""

from __future__ import annotations

import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from graceful_close_lab.command import COMMANDS, main
from graceful_close_lab.documentation import SITE
from lab_program import THE_LAB, run

ROOT = Path(__file__).parent.parent

# Beside the interpreter, if the package was installed for it.
SCRIPT = Path(sys.executable).with_name(
    "graceful-close.exe" if sys.platform == "win32" else "graceful-close"
)


def test_the_script_and_the_module_are_the_same_program() -> None:
    by_script, by_module = run(str(SCRIPT), "--help"), run(*THE_LAB, "--help")
    assert by_script.returncode == by_module.returncode == 0
    assert by_script.stdout.startswith("usage: graceful-close [-h]")
    assert by_module.stdout.startswith("usage: python -m graceful_close [-h]")
    assert by_script.stdout.split()[2:] == by_module.stdout.split()[4:]


def test_the_version_is_the_distributions(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    version = metadata.version("graceful-close")
    assert capsys.readouterr().out == f"graceful-close {version}\n"


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_the_help_tells_every_exit_code(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--help"])
    said = capsys.readouterr().out
    codes = said[said.index("exit codes:") :].splitlines()[1:]
    told = [int(line.split()[0]) for line in codes if line[2] != " "]
    assert {0, 2, 130, 141} <= set(told)
    assert told == sorted(told)


def test_the_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(f"\n    {name} " in said for name in COMMANDS)


@pytest.mark.parametrize("columns", ["60", "80", "120"])
def test_the_help_fits_its_terminal(
    columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit, match="0"):
        main(["check", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= int(columns)


def test_a_command_that_there_is_not_is_refused_with_those_that_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["chekc"])
    said = capsys.readouterr().err
    assert all(name in said for name in COMMANDS)


def test_options_without_a_command_are_the_labs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == main(["lab", "--list"]) == 0
    said = capsys.readouterr().out
    assert said[: len(said) // 2] == said[len(said) // 2 :]


def test_a_list_names_every_experiment_and_runs_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from graceful_close_lab.experiments import ALL

    assert main(["lab", "--list"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n{experiment.name} " in said for experiment in ALL)


def test_a_quiet_lab_says_nothing_where_all_went_as_expected(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["lab", "--only", "linger-abort", "--quiet"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")


def test_a_command_is_loaded_when_it_is_asked_for_and_no_other() -> None:
    code = """
import sys
from graceful_close_lab.command import main
try:
    main(["check", "--help"])
except SystemExit:
    print(*(name for name in sys.modules if name.startswith("graceful_close_lab")))
"""
    loaded = run(sys.executable, "-c", code).stdout.splitlines()[-1].split()
    assert "graceful_close_lab.check.command" in loaded
    assert "graceful_close_lab.lab_command" not in loaded


def test_help_loads_no_command_at_all() -> None:
    code = """
import sys
from graceful_close_lab.command import main
try:
    main(["--help"])
except SystemExit:
    print(*(name for name in sys.modules if name.startswith("graceful_close_lab")))
"""
    loaded = run(sys.executable, "-c", code).stdout.splitlines()[-1].split()
    assert not {command.module for command in COMMANDS.values()} & set(loaded)


def test_a_program_that_closes_loads_nothing_of_the_lab() -> None:
    code = """
import importlib, pkgutil, socket, sys
import graceful_close
for module in pkgutil.walk_packages(graceful_close.__path__, "graceful_close."):
    try:
        importlib.import_module(module.name)
    except ImportError as missing:  # what it serves is not installed
        assert "graceful_close" not in str(missing.name)
ours, peer = socket.socketpair()
peer.close()
graceful_close.graceful_close(ours)
print(*(name for name in sys.modules if name.startswith("graceful_close")))
"""
    loaded = run(sys.executable, "-c", code)
    assert loaded.returncode == 0, loaded.stderr
    names = loaded.stdout.split()
    assert "graceful_close.__main__" in names
    assert not [name for name in names if name.startswith("graceful_close_lab")]


def test_the_address_of_the_documentation_is_the_distributions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project.get("urls", {}).get("Documentation", SITE) == SITE
