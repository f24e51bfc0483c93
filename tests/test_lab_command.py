"""The command line of `graceful-close`: its commands, and when their modules are loaded."""

from __future__ import annotations

import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from graceful_close_lab.command import COMMANDS
from graceful_close_lab.documentation import SITE
from lab_program import THE_LAB, exits, run

ROOT = Path(__file__).parent.parent

# Next to the interpreter, if the package was installed for it.
SCRIPT = Path(sys.executable).with_name(
    "graceful-close.exe" if sys.platform == "win32" else "graceful-close"
)


is_installed = pytest.mark.skipif(not SCRIPT.exists(), reason="it runs from the sources here")


@is_installed
def test_the_script_and_the_module_are_the_same_program() -> None:
    by_script, by_module = run(str(SCRIPT), "--help"), run(*THE_LAB, "--help")
    assert by_script.returncode == by_module.returncode == 0
    assert by_script.stdout.startswith("usage: graceful-close [-h]")
    assert by_module.stdout.startswith("usage: python -m graceful_close [-h]")
    assert by_script.stdout.split()[2:] == by_module.stdout.split()[4:]


@is_installed
def test_the_version_is_that_of_the_distribution() -> None:
    version = metadata.version("graceful-close")
    assert exits(0, "--version") == f"graceful-close {version}\n"


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_the_help_lists_every_exit_code(command: list[str]) -> None:
    output = exits(0, *command, "--help")
    codes = output[output.index("exit codes:") :].splitlines()[1:]
    listed = [int(line.split()[0]) for line in codes if line[2] != " "]
    assert {0, 2, 130, 141} <= set(listed)
    assert listed == sorted(listed)


def test_the_help_lists_every_command() -> None:
    output = exits(0, "--help")
    assert all(f"\n    {name} " in output for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("columns", ["60", "80", "120"])
def test_the_help_fits_its_terminal(
    columns: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys, "argv", ["__main__.py"])  # the longest name of the program
    lines = exits(0, name, "--help").splitlines()
    assert max(map(len, lines)) <= int(columns)


def test_an_unknown_command_is_rejected_with_a_list_of_commands() -> None:
    output = exits(2, "chekc")
    assert all(name in output for name in COMMANDS)


def test_options_without_a_command_are_those_of_the_lab() -> None:
    assert exits(0, "--list") == exits(0, "lab", "--list")


def test_list_names_every_experiment_and_runs_none() -> None:
    from graceful_close_lab.experiments import ALL

    output = exits(0, "lab", "--list")
    assert all(f"\n{experiment.name} " in output for experiment in ALL)


def test_a_quiet_lab_prints_nothing_if_everything_went_as_expected() -> None:
    assert exits(0, "lab", "--only", "linger-abort", "--quiet") == ""


@pytest.mark.parametrize(
    ("arguments", "used"),
    [(["--help"], set[str]()), (["check", "--help"], {COMMANDS["check"].module})],
    ids=["no command", "check"],
)
def test_only_the_command_in_use_is_loaded(arguments: list[str], used: set[str]) -> None:
    code = """
import sys
from graceful_close_lab.command import main
try:
    main(sys.argv[1:])
except SystemExit:
    print(*sys.modules)
"""
    loaded = run(sys.executable, "-c", code, *arguments).stdout.splitlines()[-1].split()
    assert {command.module for command in COMMANDS.values()} & set(loaded) == used


def test_a_program_that_closes_connections_loads_no_part_of_the_lab() -> None:
    code = """
import importlib, pkgutil, socket, sys
import graceful_close
for module in pkgutil.walk_packages(graceful_close.__path__, "graceful_close."):
    try:
        importlib.import_module(module.name)
    except ImportError as missing:  # the package that it integrates is not installed
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


def test_the_address_of_the_documentation_is_that_of_the_distribution() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project.get("urls", {}).get("Documentation", SITE) == SITE
