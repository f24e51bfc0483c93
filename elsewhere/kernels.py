"""Another Linux, booted under qemu's software emulation: a minute or two for the promises."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from . import packages, room

_PROCESSOR = "amd64"
_GUEST = [
    "python3",
    "dash",
    "coreutils",
    "libc-bin",
    "busybox-static",
    "python3-typing-extensions",
]

# The first program of the guest. Its root is in memory, and gone when it halts.
_INIT = """#!/bin/busybox sh
export PATH=/usr/sbin:/usr/bin HOME=/root LANG=C.UTF-8 PYTHONPATH=/project/src:/site
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mkdir -p /dev/shm /tmp
/bin/busybox ip link set lo up
cd /project
{command}
echo "exit code: $?"
/bin/busybox poweroff -f
"""


def run(
    work: Path, suite: str, command: list[str], site: Path | None, limit: float = 500
) -> int:
    """Run a command on the kernel of one of Debian's releases.

    Args:
        work: The folder for all that is made.
        suite: Whose kernel: "bullseye" has 5.10, "bookworm" 6.1.
        command: And its arguments.
        site: A folder with Python packages.
        limit: Seconds until the guest is killed.

    Returns:
        Its exit code; 1 if the guest did not come so far.
    """
    kernel = packages.tree(work, suite, _PROCESSOR, ["linux-image-cloud-amd64"])
    guest = packages.tree(work, "trixie", _PROCESSOR, _GUEST)
    emulator = packages.tree(
        work, "trixie", _PROCESSOR, ["qemu-system-x86", "coreutils", "dash"]
    )
    with tempfile.TemporaryDirectory(dir=work) as folder:
        boot = Path(folder)
        (vmlinuz,) = (kernel / "boot").glob("vmlinuz-*")
        shutil.copy(vmlinuz, boot / "vmlinuz")
        _pack(guest, command, site, boot)
        machine = [
            "-accel",
            "tcg",
            "-cpu",
            "max",
            "-smp",
            "2",
            "-m",
            "3G",
            "-nodefaults",
            "-no-reboot",
        ]
        files = ["-kernel", "/site/vmlinuz", "-initrd", "/site/initrd"]
        console = ["-display", "none", "-serial", "file:/site/console"]
        words = ["-append", "console=ttyS0 quiet panic=-1"]
        qemu = ["qemu-system-x86_64", *machine, *files, *console, *words]
        room.run(emulator, qemu, site=boot, limit=limit)
        said = (boot / "console").read_text(errors="replace")
    print(said.replace("\r\n", "\n"), end="", flush=True)
    code = re.search(r"^exit code: (\d+)", said, re.MULTILINE)
    return 1 if code is None else int(code[1])


def _pack(guest: Path, command: list[str], site: Path | None, boot: Path) -> None:
    """All that the guest has, as the archive that its kernel unpacks into memory."""
    root = boot / "root"
    shutil.copytree(
        guest, root, symlinks=True, ignore=shutil.ignore_patterns("doc", "man", "locale")
    )
    for name in ("proc", "dev", "tmp", "root", "project", "site"):
        (root / name).mkdir(exist_ok=True)
    shutil.copytree(room.PROJECT / "src", root / "project" / "src")
    if site is not None:
        shutil.copytree(site, root / "site", dirs_exist_ok=True)
    init = root / "init"
    init.write_text(_INIT.format(command=" ".join(command)))
    init.chmod(0o755)
    with (boot / "initrd").open("wb") as archive:
        command = [str(guest / "usr/bin/busybox"), "cpio", "-o", "-H", "newc"]
        names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
        subprocess.run(
            command,
            input=names.encode(),
            stdout=archive,
            stderr=subprocess.DEVNULL,
            cwd=root,
            check=True,
        )
    shutil.rmtree(root)
