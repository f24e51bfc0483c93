"""Debian's packages of any suite and processor, unpacked into a folder and not installed."""

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

# The folders that Debian replaced by links into /usr (file-hierarchy(7)).
_MERGED = ("bin", "sbin", "lib", "lib32", "lib64")


def tree(work: Path, suite: str, processor: str, packages: list[str]) -> Path:
    """Unpack packages and their dependencies into a folder, as a root to run programs in.

    No script of a package runs, so packages for any processor can be unpacked.

    Args:
        work: The folder in which the tree is made, unless the tree exists.
        suite: Debian's name of the suite: "trixie", "sid".
        processor: Debian's name of the processor: "amd64", "s390x".
        packages: The names of the packages.

    Returns:
        The folder.
    """
    root = work / f"{suite}-{processor}-{packages[0]}"
    if not _is_made(root, packages):
        for name in _MERGED:
            (root / "usr" / name).mkdir(parents=True, exist_ok=True)
            if not (root / name).is_symlink():
                (root / name).symlink_to(f"usr/{name}")
        archive = _Archive(work / "apt" / f"{suite}-{processor}", suite, processor)
        for deb in archive.fetch(packages[0], "install", "--yes", "--download-only", *packages):
            _unpack(deb, root)
        _note_made(root, packages)
    return root


def one(work: Path, suite: str, processor: str, package: str) -> Path:
    """Unpack one package without its dependencies, for programs that are linked statically."""
    root = work / f"{suite}-{processor}-{package}"
    if not _is_made(root, [package]):
        root.mkdir(parents=True, exist_ok=True)
        archive = _Archive(work / "apt" / f"{suite}-{processor}", suite, processor)
        for deb in archive.fetch(package, "download", package):
            _unpack(deb, root)
        _note_made(root, [package])
    return root


def source(work: Path, suite: str, package: str) -> Path:
    """Download the archive that the upstream project of a source package has published."""
    archive = _Archive(work / "apt" / f"{suite}-source", suite, kind="deb-src")
    fetched = archive.fetch(package, "source", "--download-only", "--tar-only", package)
    (found,) = (path for path in fetched if ".orig.tar." in path.name and path.suffix != ".asc")
    return found


class _Archive:
    """Debian's archive, for one suite and processor, with a state of apt that is separate."""

    def __init__(
        self, state: Path, suite: str, processor: str = "amd64", kind: str = "deb"
    ) -> None:
        self.state = state
        for folder in ("lists/partial", "archives/partial", "parts", "preferences.d"):
            (state / folder).mkdir(parents=True, exist_ok=True)
        (state / "status").touch()  # apt then regards no package as installed
        (state / "sources.list").write_text(
            f"{kind} [signed-by={KEYRING}] {mirror()} {suite} main\n"
        )
        settings = state / "apt.conf"
        settings.write_text(
            f'Dir::Etc "{state}"; Dir::Etc::parts "{state}/parts"; Dir::State "{state}";\n'
            f'Dir::State::status "{state}/status"; Dir::Cache "{state}"; Dir::Log "{state}";\n'
            f'APT::Architecture "{processor}"; APT::Architectures {{ "{processor}"; }};\n'
            'APT::Sandbox::User "root"; APT::Install-Recommends "false";\n'
            'Acquire::Languages "none"; Acquire::Check-Valid-Until "false";\n'
            'Acquire::Retries "3"; Acquire::http::Timeout "20"; APT::Update::Error-Mode "any";\n'
        )
        self.environment = os.environ | {"APT_CONFIG": str(settings)}

    def fetch(self, name: str, *request: str) -> list[Path]:
        """Run a request of apt-get, and return the files that it has downloaded."""
        files = self.state / "files" / name
        (files / "partial").mkdir(parents=True, exist_ok=True)
        if not (self.state / "updated").exists():
            self._run("update")
            (self.state / "updated").touch()
        # "install" downloads into the cache, the other requests into the current folder.
        self._run("-o", f"Dir::Cache::archives={files}", *request, folder=files)
        return sorted(path for path in files.iterdir() if path.is_file())

    def _run(self, *request: str, folder: Path | None = None) -> None:
        subprocess.run(
            ["apt-get", "-qq", *request],
            check=True,
            env=self.environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            timeout=600,
        )


def _is_made(root: Path, packages: list[str]) -> bool:
    """Whether all of these packages have been unpacked."""
    note = root.with_name(f"{root.name}.made")
    return note.exists() and note.read_text() == " ".join(packages)


def _note_made(root: Path, packages: list[str]) -> None:
    root.with_name(f"{root.name}.made").write_text(" ".join(packages))


def _unpack(deb: Path, root: Path) -> None:
    if deb.suffix != ".deb":
        return  # apt's lock file
    # dpkg-deb -x would replace the links of _MERGED by folders.
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as tar:
        command = ["tar", "-x", "--keep-directory-symlink", "-C", str(root)]
        subprocess.run(command, stdin=tar.stdout, check=True)
    if tar.returncode:
        raise subprocess.CalledProcessError(tar.returncode, tar.args)


def mirror() -> str:
    """The address from which this machine downloads Debian's packages."""
    for source_list in map(Path, _SOURCES):
        if source_list.exists():
            found = re.search(r"https?://\S+/debian(?=/?\s)", source_list.read_text())
            if found:
                return found[0]
    return _ANYWHERE
