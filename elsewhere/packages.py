"""Debian's packages of any suite and processor, unpacked into a folder and installed nowhere."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SOURCES = (
    "/etc/apt/sources.list.d/debian.sources",
    "/etc/apt/sources.list",
)
_ANYWHERE = "http://deb.debian.org/debian"

# What a tree has in the place of folders since Debian merged them (file-hierarchy(7)).
_MERGED = ("bin", "sbin", "lib", "lib32", "lib64")


def tree(work: Path, suite: str, processor: str, packages: list[str]) -> Path:
    """A folder with packages and all that they need, as a root to run programs in.

    No script of a package's is run, so that any processor's can be unpacked.

    Args:
        work: Where it is made, if it is not there yet.
        suite: Of Debian: "trixie", "sid".
        processor: As Debian calls it: "amd64", "s390x".
        packages: Their names.
    """
    root = work / f"{suite}-{processor}-{packages[0]}"
    if not _is_made(root, packages):
        for name in _MERGED:
            (root / "usr" / name).mkdir(parents=True, exist_ok=True)
            if not (root / name).is_symlink():
                (root / name).symlink_to(f"usr/{name}")
        for deb in _download(work, suite, processor, "install", packages):
            _unpack(deb, root)
        _is_made(root, packages, now=True)
    return root


def one(work: Path, suite: str, processor: str, package: str) -> Path:
    """A folder with one package alone, for programs that need nothing."""
    root = work / f"{suite}-{processor}-{package}"
    if not _is_made(root, [package]):
        root.mkdir(parents=True, exist_ok=True)
        for deb in _download(work, suite, processor, "download", [package]):
            _unpack(deb, root)
        _is_made(root, [package], now=True)
    return root


def _is_made(root: Path, packages: list[str], *, now: bool = False) -> bool:
    """Whether these packages were unpacked to the end; `now`: they are."""
    note = root.with_name(f"{root.name}.made")
    if now:
        note.write_text(" ".join(packages))
    return note.exists() and note.read_text() == " ".join(packages)


def _download(
    work: Path, suite: str, processor: str, how: str, packages: list[str]
) -> list[Path]:
    """Packages; for "install" with all that they need, for "download" alone."""
    state = work / "apt" / f"{suite}-{processor}"
    debs = state / "debs" / packages[0]
    for folder in ("lists/partial", "archives/partial", "parts", "preferences.d"):
        (state / folder).mkdir(parents=True, exist_ok=True)
    debs.mkdir(parents=True, exist_ok=True)
    (state / "status").touch()  # nothing is installed
    (state / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror()} {suite} main\n")
    settings = state / "apt.conf"
    settings.write_text(
        f'Dir::Etc "{state}"; Dir::Etc::parts "{state}/parts"; Dir::State "{state}";\n'
        f'Dir::State::status "{state}/status"; Dir::Cache "{state}";\n'
        f'Dir::Cache::archives "{debs}"; Dir::Log "{state}";\n'
        f'APT::Architecture "{processor}"; APT::Architectures {{ "{processor}"; }};\n'
        'APT::Sandbox::User "root"; APT::Install-Recommends "false";\n'
        'Acquire::Languages "none"; Acquire::Check-Valid-Until "false"; Acquire::Retries "3";\n'
    )
    environment = os.environ | {"APT_CONFIG": str(settings)}
    if not (state / "updated").exists():
        _run(["apt-get", "-qq", "update"], environment)
        (state / "updated").touch()
    if how == "install":
        _run(["apt-get", "-qq", "--yes", "--download-only", how, *packages], environment)
    else:
        _run(["apt-get", "-qq", how, *packages], environment, debs)
    return sorted(debs.glob("*.deb"))


def _unpack(deb: Path, root: Path) -> None:
    # dpkg-deb -x would put folders in the place of the links to merged ones.
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as tar:
        command = ["tar", "-x", "--keep-directory-symlink", "-C", str(root)]
        subprocess.run(command, stdin=tar.stdout, check=True)
    if tar.returncode:
        raise subprocess.CalledProcessError(tar.returncode, tar.args)


def _run(command: list[str], environment: dict[str, str], folder: Path | None = None) -> None:
    subprocess.run(command, check=True, env=environment, cwd=folder, stdin=subprocess.DEVNULL)


def mirror() -> str:
    """Where this machine gets Debian's packages from."""
    for source in map(Path, _SOURCES):
        if source.exists():
            found = re.search(r"https?://\S+/debian(?=/?\s)", source.read_text())
            if found:
                return found[0]
    return _ANYWHERE
