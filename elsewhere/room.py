"""Running a command in another root, with another processor's programs if need be."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PROJECT = Path(__file__).parent.parent

# What is mounted is seen by the command alone, in its own namespace, and is gone with it. There
# binfmt_misc is private too (Linux 6.7), if the namespace of users is one's own.
_ENTER = r"""
set -e
root=$1 project=$2 site=$3 emulator=$4; shift 4
mkdir -p "$root/proc" "$root/dev" "$root/tmp" "$root/root" "$root/project" "$root/site"
if [ -n "$emulator" ]; then
    mkdir -p "$root/formats"; mount -t binfmt_misc none "$root/formats"
    printf '%s' "$emulator" > "$root/formats/register"
fi
mount -t proc proc "$root/proc"; mount --rbind /dev "$root/dev"
mount -t tmpfs shm "$root/dev/shm"; mount -t tmpfs tmp "$root/tmp"
mount --bind "$project" "$root/project"
[ -z "$site" ] || mount --bind "$site" "$root/site"
# Found even by a program that a test starts with a PYTHONPATH of its own.
mkdir -p "$root/usr/lib/python3/dist-packages"
printf '/project/src\n/site\n' > "$root/usr/lib/python3/dist-packages/elsewhere.pth"
exec chroot "$root" env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin HOME=/root \
    LANG=C.UTF-8 TERM=dumb PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/project/src:/site \
    sh -c 'cd /project && exec "$@"' sh "$@"
"""


@dataclass(frozen=True)
class Emulator:
    """Whose programs are run by whom.

    Attributes:
        program: qemu's, which is linked statically.
        machine: e_machine of an ELF header (elf(5)).
        bits: 32 or 64.
        big: It is big-endian.
    """

    program: Path
    machine: int
    bits: int
    big: bool = False

    def entry(self) -> str:
        """A line for binfmt_misc's register: the beginning of an ELF header, and a mask."""
        order: Literal["big", "little"] = "big" if self.big else "little"
        header = b"\x7fELF" + bytes([2 if self.bits == 64 else 1, 2 if self.big else 1, 1])
        header += bytes(9) + (2).to_bytes(2, order) + self.machine.to_bytes(2, order)
        # Any ABI's (but one), and position-independent or not: types 2 and 3 differ in a bit.
        kind = b"\xff\xfe" if self.big else b"\xfe\xff"
        mask = b"\xff" * 7 + b"\x00" + b"\xff" * 8 + kind + b"\xff\xff"
        # O: opened as a file by the kernel; C: with the program's rights; F: now, from this root.
        return f":elsewhere:M::{_escaped(header)}:{_escaped(mask)}:{self.program}:OCF"


def _escaped(raw: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in raw)


def run(
    root: Path,
    command: list[str],
    *,
    emulator: Emulator | None = None,
    site: Path | None = None,
    limit: float = 600,
) -> int:
    """Run a command in another root, where the project is /project.

    Args:
        root: It.
        command: And its arguments.
        emulator: What runs its programs, if this processor does not.
        site: A folder of Python packages.
        limit: Seconds until it is killed.

    Returns:
        Its exit code.
    """
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    if emulator is not None:
        unshare += ["--user", "--map-root-user"]
    entry = "" if emulator is None else emulator.entry()
    arguments = [str(root), str(PROJECT), str(site or ""), entry, *command]
    return subprocess.run(
        ["timeout", "-s", "KILL", str(limit), *unshare, "sh", "-c", _ENTER, "sh", *arguments],
        check=False,
        stdin=subprocess.DEVNULL,
    ).returncode
