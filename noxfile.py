"""What a change must pass, one session each: `nox -l` lists them, `nox -s lint` runs one.

The workflows run these sessions; `.ci/run` does the same by itself. What follows `--` goes to
the program that the session runs: `nox -s tests-3.13 -- -k reset -x`.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"  # a Python that is not there is named, and passed over
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["lint", "types", "docs", "tests"]

PYTHONS = ["3.11", "3.12", "3.13", "3.14", "3.14t", "pypy3.11"]
OLDEST = PYTHONS[0]

# pyenv's own `python3.12` only answers if it is told to; what it stands for always does.
PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
os.environ["PATH"] = os.pathsep.join([*map(str, PYENV.glob("3.*/bin")), os.environ["PATH"]])


def install(session: nox.Session, extra: str, *options: str) -> None:
    """The sources, editable; or the built wheel that WHEEL names."""
    wheel = os.environ.get("WHEEL")
    package = [f"{Path(wheel).resolve()}[{extra}]"] if wheel else ["-e", f".[{extra}]"]
    session.install(*options, *package)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The suite, on each Python that is found."""
    install(session, "test")
    session.run("pytest", *session.posargs)


@nox.session(python=OLDEST, venv_backend="uv")
def lowest(session: nox.Session) -> None:
    """The suite, with the oldest of everything that we say we work with."""
    install(session, "test", "--resolution=lowest-direct")
    session.run("pytest", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """The suite, and which branches it does not take: fewer than 5 % of them."""
    install(session, "test")
    session.run("pytest", "--cov", "--cov-fail-under=95", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and format of the sources, and what is unsafe in the workflows."""
    install(session, "lint")
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")
    session.run("zizmor", "--offline", "--pedantic", "--quiet", ".")


@nox.session
def types(session: nox.Session) -> None:
    """The types: mypy and pyright over everything, pyrefly over what users write."""
    install(session, "dev")
    for platform in ("linux", "darwin", "win32"):
        session.run("mypy", "--platform", platform, "src", "tests/typed")
    session.run("mypy")
    session.run("pyright")
    session.run("pyrefly", "check", "--preset", "strict", "tests/typed")


@nox.session
def docs(session: nox.Session) -> None:
    """The site, in build/docs, with every warning an error."""
    install(session, "docs")
    session.run("sphinx-build", "-W", "--keep-going", "docs", "build/docs", *session.posargs)


def built(session: nox.Session, folder: Path) -> tuple[Path, Path]:
    """A wheel and the sdist that it was made from, as the package index wants them."""
    session.install("build", "check-wheel-contents", "twine")
    session.run("python", "-m", "build", "--outdir", str(folder))
    (made,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    session.run("twine", "check", "--strict", str(made), str(sdist))
    session.run("check-wheel-contents", str(made))
    return made.resolve(), sdist.resolve()


@nox.session
def build(session: nox.Session) -> None:
    """A new dist/: the sdist, and the wheel that is made from it."""
    shutil.rmtree("dist", ignore_errors=True)
    built(session, Path("dist"))


@nox.session
def wheel(session: nox.Session) -> None:
    """A wheel is whole: its types are complete, and it passes the tests of its sdist."""
    with tempfile.TemporaryDirectory() as folder:
        made, sdist = built(session, Path(folder))
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        session.install(f"{made}[test]", "pyright[nodejs]")
        with session.chdir(Path(folder, sdist.name.removesuffix(".tar.gz"))):
            shutil.rmtree("src")  # nothing but the wheel can be imported
            session.run("pyright", "--verifytypes", "graceful_close", "--ignoreexternal")
            session.run("pytest", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """What it costs: `nox -s bench -- one_close drain`. These are not tests."""
    install(session, "bench")
    session.run("python", "-m", "benchmarks", *session.posargs)
