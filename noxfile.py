"""What a change must pass, one session each: `nox -l` lists them, `nox -s lint` runs one.

`.ci/run` and the workflows run these sessions. What follows `--` goes to the program that the
session runs: `nox -s tests-3.13 -- -k reset -x`.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.needs_version = ">=2026.7.11"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"  # a Python that is not there is named, and passed over
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["lint", "types", "docs", "tests"]

PYTHONS = ["3.11", "3.12", "3.13", "3.14", "3.15", "3.14t", "pypy3.11"]
OLDEST = PYTHONS[0]

# pyenv's `python3.12` works only if it is enabled; the interpreter behind it always works.
PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
os.environ["PATH"] = os.pathsep.join([*map(str, PYENV.glob("3.*/bin")), os.environ["PATH"]])


# Tests mostly wait, so more of them run at a time than there are processors. A worker that has no
# more tests takes those of another, because some of them take long.
PYTEST = ("pytest", "-n", "6", "--dist", "worksteal")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The suite, on each Python that is found."""
    session.install("-e", ".[test]")
    session.run(*PYTEST, *session.posargs)


@nox.session(python=OLDEST, venv_backend="uv")
def lowest(session: nox.Session) -> None:
    """The suite, with the oldest of everything that we say we work with."""
    session.install("--resolution=lowest-direct", "-e", ".[test]")
    session.run(*PYTEST, *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """The suite, and which branches it does not take: fewer than 5 % of them."""
    session.install("-e", ".[test]")
    session.run(*PYTEST, "--cov", "--cov-fail-under=95", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and format of the sources, habits of language, and what is unsafe in the workflows."""
    session.install("-e", ".[lint]")
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")
    session.run("python", "docs/prose.py")
    session.run("zizmor", "--offline", "--pedantic", "--quiet", ".")


@nox.session
def types(session: nox.Session) -> None:
    """The types: mypy and pyright over everything, pyrefly over what users write."""
    session.install("-e", ".[dev]")
    for platform in ("darwin", "win32"):
        session.run("mypy", "--platform", platform, "src", "tests/typed")
    session.run("mypy", "--platform", "linux")
    session.run("pyright")
    session.run("pyrefly", "check", "--preset", "strict", "tests/typed")


@nox.session
def docs(session: nox.Session) -> None:
    """The site, in build/docs, with every warning an error."""
    session.install("-e", ".[docs]")
    session.run(
        "sphinx-build", "-n", "-W", "--keep-going", "docs", "build/docs", *session.posargs
    )


@nox.session
def build(session: nox.Session) -> None:
    """A new dist/ (the sdist, and the wheel that is made from it), and build/sbom.cdx.json."""
    shutil.rmtree("dist", ignore_errors=True)
    session.install("build", "check-wheel-contents", "twine")
    session.run("python", "-m", "build")
    session.run("twine", "check", "--strict", *map(str, Path("dist").iterdir()))
    session.run("check-wheel-contents", "dist")
    write_sbom(session)


def write_sbom(session: nox.Session) -> None:
    """Write build/sbom.cdx.json: what is installed with the wheel of dist/, as CycloneDX."""
    [made] = Path("dist").glob("*.whl")
    session.install("cyclonedx-bom")
    folder = Path(session.create_tmp(), "with-the-wheel-alone")
    session.run("python", "-m", "venv", "--clear", "--without-pip", str(folder))
    [python] = [*folder.glob("bin/python"), *folder.glob("Scripts/python.exe")]
    # pip of another environment, so that this one has nothing but the wheel and what it needs.
    session.install("pip")
    session.run("python", "-m", "pip", "--python", str(python), "install", "--quiet", str(made))
    Path("build").mkdir(exist_ok=True)
    session.run(
        "cyclonedx-py", "environment", str(python), "--pyproject", "pyproject.toml",
        "--mc-type", "library", "--output-reproducible", "--output-file", "build/sbom.cdx.json",
    )  # fmt: skip


@nox.session(python=PYTHONS)
def wheel(session: nox.Session) -> None:
    """The wheel of dist/ is whole: its types are complete, and it passes the sdist's tests."""
    (made,), (sdist,) = (list(Path("dist").glob(f"*{end}")) for end in (".whl", ".tar.gz"))
    session.install(f"{made.resolve()}[test]", "pyright[nodejs]")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        with session.chdir(Path(folder, sdist.name.removesuffix(".tar.gz"))):
            shutil.rmtree("src")  # nothing but the wheel can be imported
            session.run("pyright", "--verifytypes", "graceful_close", "--ignoreexternal")
            session.run(*PYTEST, *session.posargs)


# Other kernels, processors and Pythons (see elsewhere/__init__.py), and the tests that run there
# after the promises. These sessions need root on Debian. A place that cannot be had is skipped.
UNAVAILABLE = 77
CONTRACT = ["tests/contract"]
# All but the tests of the state machine and of combinations, which take an hour on PyPy.
SUITE = ["tests", "--ignore=tests/situations", "--ignore=tests/test_teardown_exhaustive.py"]
THREADS = [
    *map(str, Path("tests").glob("test_reaper*.py")),
    "tests/test_interrupted_asker.py",
    "tests/test_importing.py",
]
ELSEWHERE = {
    "gvisor": CONTRACT,
    "i386": CONTRACT,
    "armhf": [],
    "arm64": [],
    "riscv64": [],
    "s390x": CONTRACT,
    "ppc64el": [],
    "mips64el": [],
    "python-3.14": CONTRACT,
    "python-3.15": CONTRACT,
    "free-threaded": [*CONTRACT, *THREADS, "--soak=50000"],
    "pypy": SUITE,
    "linux-5.10": [],
    "linux-6.1": [],
    "linux-6.12": [],
    "linux-sid": [],
}


def elsewhere(session: nox.Session) -> None:
    """The promises of the library in another place, and there also the tests of ELSEWHERE."""
    session.install("-e", ".[anyio,trio]", "pip", "pytest>=9", "pytest-xdist")
    there = ("python", "-m", "elsewhere", "--work", session.create_tmp(), session.name)
    try:
        session.run(*there)
    except CommandFailed as failed:
        if failed.return_code == UNAVAILABLE:
            session.skip("it cannot be had here, for the reason above")
        raise
    tests = session.posargs or ELSEWHERE[session.name]
    if tests:
        # Emulated processors and traced functions of PyPy are slow.
        session.run(*there, *PYTEST, "-q", "-o", "faulthandler_timeout=600", *tests)


for place in ELSEWHERE:
    nox.session(name=place)(elsewhere)


@nox.session
def pyodide(session: nox.Session) -> None:
    """The answers of the library on Emscripten, which has no connections. This session needs npm."""
    session.install("-e", ".")
    folder = session.create_tmp()
    session.run("npm", "install", "--silent", "--prefix", folder, "pyodide", external=True)
    (found,) = Path(session.virtualenv.location).glob("**/typing_extensions.py")
    there = ("elsewhere/pyodide.mjs", folder, "src", str(found))
    session.run("node", *there, external=True)


@nox.session
def mutants(session: nox.Session) -> None:
    """Which changes of the library its tests notice: `nox -s mutants -- _teardown`. It takes hours."""
    session.install("-e", ".[test]", "mutmut>=3.8,<4", "mypy")
    session.run("python", "-m", "mutation", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """What it costs: `nox -s bench -- one_close drain`. These are not tests."""
    session.install("-e", ".[bench]")
    session.run("python", "-m", "benchmarks", *session.posargs)
