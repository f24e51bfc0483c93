"""Count the changes of the library that its tests notice: `python -m mutation _teardown`."""

from __future__ import annotations

import argparse
import ast
import configparser
import difflib
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parent.parent
PACKAGE = Path("src", "graceful_close")
_WORK = PROJECT / "build" / "mutation"

_SETTINGS = {
    "source_paths": "src",
    # A mutant has `multiplier * (seconds of its tests + constant)`.
    "timeout_multiplier": "2",
    "timeout_constant": "5",
    # mutmut then shows what pytest prints, such as a test that fails without a change.
    "debug": "true",
    # No test runs before the fork, because a cache would keep what was made without the change.
    "process_isolation": "forkserver",
}
# Seconds. Many changes make a test wait for what does not come.
_DEADLINE = "5"
_PYTEST = ("--hypothesis-seed=0", "-p", "no:cacheprovider")
# mutmut writes all mutants of a function into one file, and their annotations meet there. It renames
# __init__, in which mypy then looks for no attributes.
_MYPY = (
    "-m",
    "mypy",
    "--output=json",
    "--disable-error-code=no-redef",
    "--disable-error-code=no-any-return",
    "--no-warn-unused-ignores",
)

_ILL_TYPED = "caught by type check"
_SURVIVED = {"survived", "no tests"}
_UNNOTICED = {*_SURVIVED, "not checked"}


@dataclass
class Outcome:
    """What came of the mutants of one module.

    Attributes:
        mutants: How many there are.
        ill_typed: How many mypy rejects; the tests do not run for these.
        equivalent: How many change nothing that can be noticed.
        killed: How many made a test fail,
        late: and how many of these made the tests run into their timeout.
        survivors: The changes that no test noticed.
    """

    module: str
    least: int
    mutants: int = 0
    ill_typed: int = 0
    equivalent: int = 0
    killed: int = 0
    late: int = 0
    survivors: list[str] = field(default_factory=list[str])

    @property
    def percent(self) -> float:
        """The part that was killed of those that a test can kill."""
        fair = self.killed + len(self.survivors)
        return 100 * self.killed / fair if fair else 100.0

    def __str__(self) -> str:
        return _line(
            self.module,
            self.mutants,
            self.ill_typed,
            self.equivalent,
            self.killed,
            self.late,
            len(self.survivors),
            f"{self.percent:.1f}",
        )


def _line(module: str, *columns: object) -> str:
    return f"{module:16}" + "".join(f"{column!s:>11}" for column in columns)


HEADING = _line(
    "module",
    "mutants",
    "ill-typed",
    "equivalent",
    "killed",
    "(timeout)",
    "survived",
    "% killed",
)


class Room:
    """A copy of the project in which mutmut changes one module.

    Args:
        folder: Where; what an earlier run found in it is kept for functions that are the same.
        module: Its name in the package, or the name of a package inside.
        tests: pytest's arguments that choose the tests.
    """

    def __init__(self, folder: Path, module: str, tests: list[str]) -> None:
        self._folder = folder
        self._sources: dict[str, dict[str, str]] = {}
        # Otherwise Python remembers that it was missing, and imports the original from elsewhere.
        mutated = folder / "mutants" / "src"
        mutated.mkdir(parents=True, exist_ok=True)
        for name in ("src", "tests"):
            shutil.rmtree(folder / name, ignore_errors=True)
            # With the times of the files: by these mutmut finds what has changed.
            shutil.copytree(
                PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        shutil.rmtree(folder / "mutants" / "tests", ignore_errors=True)
        shutil.copy2(PROJECT / "pyproject.toml", folder)
        is_package = (PROJECT / PACKAGE / module).is_dir()
        sources = PACKAGE / (f"{module}/*.py" if is_package else f"{module}.py")
        settings = configparser.ConfigParser(interpolation=None)
        settings["mutmut"] = {
            **_SETTINGS,
            "only_mutate": str(sources),
            "type_check_command": _lines(sys.executable, *_MYPY, str(PACKAGE)),
            "pytest_add_cli_args": _lines(*_PYTEST),
            "pytest_add_cli_args_test_selection": _lines(*tests),
        }
        with (folder / "setup.cfg").open("w", encoding="utf-8") as file:
            settings.write(file)
        # Also for the programs that tests start.
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(mutated),
            "TESTS_DEADLINE": _DEADLINE,
        }

    def mutmut(self, *arguments: str) -> str:
        """Run mutmut, and return what it printed."""
        ran = subprocess.run(
            [Path(sys.executable).with_name("mutmut"), *arguments],
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            text=True,
        )
        if ran.returncode:
            sys.exit(ran.stdout[-5000:])
        return ran.stdout

    def statuses(self) -> dict[str, str]:
        """Each mutant's name, and what came of it."""
        lines = self.mutmut("results", "--all", "true").splitlines()
        return dict(line.strip().split(": ", 1) for line in lines if "__mutmut_" in line)

    def survived(self) -> set[str]:
        """The names of the mutants that were tried, and that no test noticed."""
        return {name for name, status in self.statuses().items() if status in _SURVIVED}

    def change(self, mutant: str) -> str:
        """Return a mutant's function, the lines before the change, and the lines after it."""
        module, _, mangled = mutant.rpartition(".")
        stem = mangled.rpartition("__mutmut_")[0]
        function = stem.removeprefix("x").removeprefix("ǁ").removeprefix("_").replace("ǁ", ".")
        source = self._source_of(module)
        before, after = (
            source[name].replace(name, function.rpartition(".")[2]).splitlines()
            for name in (f"{stem}__mutmut_orig", mangled)
        )
        told = list(difflib.unified_diff(before, after, n=0, lineterm=""))[2:]
        removed, added = (
            " ".join(line[1:].strip() for line in told if line[0] == sign) for sign in "-+"
        )
        return f"{function}: {removed} -> {added}"

    def _source_of(self, module: str) -> dict[str, str]:
        """Return the functions that mutmut wrote: the originals and the mutants."""
        if module not in self._sources:
            path = self._folder.joinpath("mutants", "src", *module.split("."))
            source = path.with_suffix(".py").read_text(encoding="utf-8")
            lines = source.splitlines(keepends=True)
            self._sources[module] = {
                node.name: "".join(lines[node.lineno - 1 : node.end_lineno])
                for node in ast.walk(ast.parse(source))
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                and "__mutmut_" in node.name
            }
        return self._sources[module]


def _lines(*entries: str) -> str:
    return "\n".join(("", *entries))


def _examine(work: Path, module: str, chosen: dict[str, Any], equivalents: set[str]) -> Outcome:
    tests: list[str] = chosen["tests"]
    if "without" in chosen:
        tests = [*tests, "-k=" + " and ".join(f"not {word}" for word in chosen["without"])]
    room = Room(work / module, module, tests)
    before = room.survived()
    room.mutmut("run", "--max-children", "1")

    def is_equivalent(change: str) -> bool:
        return bool(equivalents & {change, change.partition(" -> ")[0]})

    # mutmut tries again what has changed in the module, but not if the tests have changed.
    again = [name for name in before & room.survived() if not is_equivalent(room.change(name))]
    if again:
        room.mutmut("run", "--max-children", "1", *again)
    outcome = Outcome(module, chosen.get("least", 85))
    for name, status in room.statuses().items():
        outcome.mutants += 1
        change = room.change(name) if status in _UNNOTICED else ""
        if status == _ILL_TYPED:
            outcome.ill_typed += 1
        elif is_equivalent(change):
            outcome.equivalent += 1
        elif change:
            outcome.survivors.append(change)
        else:
            outcome.killed += 1
            outcome.late += status == "timeout"
    return outcome


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))


def main() -> int:
    """Examine the modules, and print the table and the survivors.

    Returns:
        1 if the tests notice fewer changes of a module than they should.
    """
    modules = _read("modules.toml")
    parser = argparse.ArgumentParser(prog="python -m mutation", description=__doc__)
    parser.add_argument(
        "modules", nargs="*", metavar="MODULE", help=f"of {', '.join(modules)}; none: all"
    )
    parser.add_argument("--work", type=Path, default=_WORK, help="the folder for the copies")
    given = parser.parse_args()
    for module in given.modules:
        if module not in modules:
            parser.error(f"{module} is not in mutation/modules.toml")

    equivalents = _read("equivalents.toml")
    outcomes: list[Outcome] = []
    for module in given.modules or modules:
        print(f"{module} ...", flush=True)
        same = {change for kind in equivalents.get(module, ()) for change in kind["changes"]}
        work: Path = given.work.resolve()
        outcome = _examine(work, module, modules[module], same)
        outcomes.append(outcome)
        for survivor in outcome.survivors:
            print(f"  {survivor}")
    print(f"\n{HEADING}", *outcomes, sep="\n")
    return any(outcome.percent < outcome.least for outcome in outcomes)


if __name__ == "__main__":
    sys.exit(main())
