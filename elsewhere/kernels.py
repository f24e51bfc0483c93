"""Another Linux, booted under qemu's software emulation: some minutes for the promises."""

from __future__ import annotations

import lzma
import re
import shlex
import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import packages, room

if TYPE_CHECKING:
    from collections.abc import Callable

_PROCESSOR = "amd64"
_GUEST = [
    "python3", "dash", "coreutils", "libc-bin", "busybox-static", "openssl", "iproute2",
    "python3-typing-extensions",
]  # fmt: skip

# The folder of one boot is /site in the root of the emulator.
_QEMU = [
    "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "3G",
    "-nodefaults", "-no-reboot", "-display", "none", "-serial", "file:/site/console",
    "-kernel", "/site/vmlinuz", "-initrd", "/site/initrd",
    # An emulated timer is late on a busy machine; the check of it would end in a panic.
    "-append", "console=ttyS0 quiet panic=-1 no_timer_check",
]  # fmt: skip

# Kernel modules that tests need, if the kernel has them as modules; in the order of loading.
_MODULES = ("inet_diag", "tcp_diag", "tun")

# The first program of the guest. The root of the guest is in memory, and ends with the guest.
_INIT = """#!/bin/busybox sh
export PATH=/usr/sbin:/usr/bin HOME=/root LANG=C.UTF-8 TERM=dumb PYTHONPATH=/project/src:/site
export PYTHONPYCACHEPREFIX=/root/bytecode
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mkdir -p /dev/shm /dev/pts /tmp
/bin/busybox mount -t devpts pts /dev/pts
/bin/busybox ln -sf /proc/self/fd /dev/fd
for module in /modules/*.ko; do /bin/busybox insmod "$module"; done
/bin/busybox ip link set lo up
cd /project
{command}
echo "exit code: $?"
/bin/busybox poweroff -f
"""


@dataclass(frozen=True)
class _Machine:
    """A computer that is emulated.

    Attributes:
        work: A folder for temporary files.
        kernel: The root with the kernel.
        guest: The root that is copied for the kernel.
        emulator: The root in which the emulator runs.
    """

    work: Path
    kernel: Path
    guest: Path
    emulator: Path

    def run(self, command: list[str], site: Path | None) -> int:
        """Boot the kernel for one command.

        Args:
            command: The command and its arguments.
            site: A folder of Python packages.

        Returns:
            The exit code of the command; 1 if the guest did not run the command to its end.
        """
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            boot = Path(folder)
            # sid's packages have the kernel beside its modules.
            places = ("boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz")
            (vmlinuz,) = (path for place in places for path in self.kernel.glob(place))
            shutil.copy(vmlinuz, boot / "vmlinuz")
            _pack(self.guest, self.kernel, command, site, boot)
            with suppress(subprocess.TimeoutExpired):
                room.run(self.emulator, _QEMU, boot, limit=1500)
            output = (boot / "console").read_text(errors="replace")
        print(output.replace("\r\n", "\n"), end="", flush=True)
        code = re.search(r"^exit code: (\d+)", output, re.MULTILINE)
        return 1 if code is None else int(code[1])


def make(suite: str, work: Path) -> Callable[[list[str], Path | None], int]:
    """Unpack the kernel of one of Debian's suites, a root for it, and the emulator.

    Args:
        suite: The suite of the kernel: "bullseye" has 5.10, "bookworm" 6.1.
        work: The folder for everything that is unpacked.

    Returns:
        What runs a command on this kernel.
    """
    emulator = ["qemu-system-x86", "coreutils", "dash"]
    return _Machine(
        work,
        packages.tree(work, suite, _PROCESSOR, ["linux-image-cloud-amd64"]),
        packages.tree(work, "trixie", _PROCESSOR, _GUEST),
        packages.tree(work, "trixie", _PROCESSOR, emulator),
    ).run


def _pack(guest: Path, kernel: Path, command: list[str], site: Path | None, boot: Path) -> None:
    """Write the root of the guest as the archive that its kernel unpacks into memory."""
    root = boot / "root"
    shutil.copytree(
        guest, root, symlinks=True, ignore=shutil.ignore_patterns("doc", "man", "locale")
    )
    for name in ("proc", "sys", "dev", "tmp", "root", "project", "site", "modules"):
        (root / name).mkdir(exist_ok=True)
    _copy_modules(kernel, root / "modules")
    for name in ("src", "tests"):
        shutil.copytree(room.PROJECT / name, root / "project" / name)
    shutil.copy(room.PROJECT / "pyproject.toml", root / "project")
    if site is not None:
        shutil.copytree(site, root / "site", dirs_exist_ok=True)
    init = root / "init"
    init.write_text(_INIT.format(command=shlex.join(command)))
    init.chmod(0o755)
    with (boot / "initrd").open("wb") as archive:
        cpio = [str(guest / "usr/bin/busybox"), "cpio", "-o", "-H", "newc"]
        names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
        subprocess.run(
            cpio,
            input=names.encode(),
            stdout=archive,
            stderr=subprocess.DEVNULL,
            cwd=root,
            check=True,
        )
    shutil.rmtree(root)


def _copy_modules(kernel: Path, folder: Path) -> None:
    """Copy the kernel modules that tests need, decompressed and named in the order of loading."""
    for number, name in enumerate(_MODULES):
        for found in (kernel / "usr/lib/modules").rglob(f"{name}.ko*"):
            raw = found.read_bytes()
            plain = lzma.decompress(raw) if found.suffix == ".xz" else raw
            (folder / f"{number}-{name}.ko").write_bytes(plain)
