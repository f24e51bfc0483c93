"""Run a command in another root, and if necessary the programs of another processor."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PROJECT = Path(__file__).parent.parent

# The mounts belong to a namespace of the command and end with it. So does binfmt_misc (since Linux
# 6.7), if the namespace of users is new.
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
# Debian's Python finds the packages even if a test replaces PYTHONPATH.
mkdir -p "$root/usr/lib/python3/dist-packages"
printf '/project/src\n/site\n' > "$root/usr/lib/python3/dist-packages/elsewhere.pth"
[ -f "$root/etc/hosts" ] ||
    printf '127.0.0.1 localhost\n::1 localhost\n' > "$root/etc/hosts"
# A script of ca-certificates would write this file, without which PyPy's ssl has no default context.
authorities=$root/etc/ssl/certs/ca-certificates.crt
[ ! -d "$root/usr/share/ca-certificates" ] || [ -f "$authorities" ] ||
    cat "$root/usr/share/ca-certificates/mozilla/"*.crt > "$authorities"
# Packages of Debian have no bytecode: their scripts compile it.
exec chroot "$root" env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin HOME=/root \
    LANG=C.UTF-8 TERM=dumb PYTHONPYCACHEPREFIX=/root/bytecode PYTHONPATH=/project/src:/site \
    sh -c 'cd /project && exec "$@"' sh "$@"
"""


@dataclass(frozen=True)
class Emulator:
    """A program of qemu, and the programs that the kernel runs with it.

    Attributes:
        program: The emulator, which is linked statically.
        machine: The field e_machine of the programs' ELF headers (elf(5)).
        bits: 32 or 64.
        big: Whether the processor is big-endian.
    """

    program: Path
    machine: int
    bits: int
    big: bool = False

    def entry(self) -> str:
        """The line for binfmt_misc's register: the start of an ELF header, and a mask."""
        order: Literal["big", "little"] = "big" if self.big else "little"
        header = b"\x7fELF" + bytes([2 if self.bits == 64 else 1, 2 if self.big else 1, 1])
        header += bytes(9) + (2).to_bytes(2, order) + self.machine.to_bytes(2, order)
        # The mask ignores the ABI, and the bit by which types 2 and 3 differ: 3 is
        # position-independent.
        kind = b"\xff\xfe" if self.big else b"\xfe\xff"
        mask = b"\xff" * 7 + b"\x00" + b"\xff" * 8 + kind + b"\xff\xff"
        # O: the kernel opens the program; C: the rights of the program apply; F: the kernel opens
        # the emulator now, from this root.
        return f":elsewhere:M::{_escaped(header)}:{_escaped(mask)}:{self.program}:OCF"


def _escaped(raw: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in raw)


def run(
    root: Path,
    command: list[str],
    site: Path | None = None,
    *,
    emulator: Emulator | None = None,
    limit: float = 3600,
) -> int:
    """Run a command in another root, in which the project is /project.

    Args:
        root: The folder that becomes the root.
        command: The command and its arguments.
        site: A folder of Python packages.
        emulator: The emulator for the programs of the root; None if this processor can run them.
        limit: Seconds after which the command is killed.

    Returns:
        The exit code of the command.

    Raises:
        subprocess.TimeoutExpired: The command was killed.
    """
    # If this program ends, the kernel kills unshare, and so all processes of the namespace.
    unshare = ["setpriv", "--pdeathsig", "KILL", "unshare"]
    unshare += ["--mount", "--pid", "--fork", "--kill-child"]
    if emulator is not None:
        unshare += ["--user", "--map-root-user"]
    entry = "" if emulator is None else emulator.entry()
    arguments = [str(root), str(PROJECT), str(site or ""), entry, *command]
    return subprocess.run(
        [*unshare, "sh", "-c", _ENTER, "sh", *arguments],
        check=False,
        timeout=limit,
        stdin=subprocess.DEVNULL,
    ).returncode
