"""arm64 programs on another processor: qemu's user-mode emulation, and the kernel that starts it for them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.compose.console import Failed, run, say

QEMU = ("qemu-aarch64-static", "qemu-aarch64")
KERNEL = Path("/proc/sys/fs/binfmt_misc")
# Debian's: the same program under a name that makes it take the caller's argv[0], which flag P hands over.
KEEPS_NAME = Path("/usr/libexec/qemu-binfmt/aarch64-binfmt-P")
OURS = "edge-attention-aarch64"
# An ELF header of 64 bits, little-endian, executable or shared, for machine 183 (binutils' EM_AARCH64).
MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"

PROCESSOR = """processor\t: {number}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""


def native() -> bool:
    return os.uname().machine == "aarch64"


def qemu() -> Path | None:
    """The emulator; None where there is none."""
    found = next((path for name in QEMU if (path := shutil.which(name))), None)
    return Path(found).resolve() if found else None


def write_cpuinfo(root: Path) -> None:
    """Lets arm64 programs below `root` see arm64 processors in /proc/cpuinfo.

    qemu before 8.2 shows them the machine's own, of another architecture, and ONNX Runtime's detection of
    processors dies of that by a null pointer. But qemu looks for a file in its prefix first.
    """
    emulator = qemu()
    assert emulator is not None
    said = subprocess.run([emulator, "-h"], capture_output=True, text=True).stdout
    found = re.search(r"^QEMU_LD_PREFIX\s*= (/\S+)", said, re.MULTILINE)
    if not found:
        raise Failed(f"`{emulator} -h` names no QEMU_LD_PREFIX, the folder in which it looks first")
    # Run by the kernel (in a container /proc is mounted over); run with -L.
    for prefix in (Path(found[1]), Path("/")):
        file = root / prefix.relative_to("/") / "proc/cpuinfo"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(PROCESSOR.format(number=number) for number in range(os.cpu_count() or 1)))


class Handler:
    """`with Handler():` the kernel runs arm64 programs, in containers too; afterwards as before."""

    def __init__(self) -> None:
        self._mounted = self._registered = False

    @staticmethod
    def lacking() -> str | None:
        """Why the kernel cannot be made to, with the remedy; None if it can, or does."""
        if native():
            return None
        if qemu() is None:
            return "this machine lacks qemu-aarch64-static, of the package qemu-user-static"
        if os.geteuid() != 0:
            return "telling the kernel to run arm64 programs needs root: run `sudo make test-arm64`"
        filesystems = Path("/proc/filesystems").read_text().split()
        if not KERNEL.exists() and "binfmt_misc" not in filesystems:
            return "this kernel has no binfmt_misc: `modprobe binfmt_misc`, or a kernel built with it"
        return None

    def __enter__(self) -> Handler:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _start(self) -> None:
        if native():
            return
        if not (KERNEL / "register").exists():
            run(["mount", "-t", "binfmt_misc", "binfmt_misc", KERNEL])
            self._mounted = True
        for file in KERNEL.iterdir():
            if file.name not in ("register", "status") and _serves_containers(file.read_text()):
                say(f"the kernel runs arm64 programs already ({file.name})")
                return
        emulator, flags = (KEEPS_NAME, "OPF") if KEEPS_NAME.exists() else (qemu(), "OF")
        try:
            (KERNEL / "register").write_text(f":{OURS}:M::{MAGIC}:{MASK}:{emulator}:{flags}")
        except OSError as error:
            raise Failed(f"the kernel did not take {emulator} for arm64 programs: {error.strerror}") from None
        self._registered = True
        say(f"the kernel runs arm64 programs with {emulator}, until this test ends")

    def _stop(self) -> None:
        if self._registered:
            (KERNEL / OURS).write_text("-1")
        if self._mounted:
            subprocess.run(["umount", KERNEL], capture_output=True)
        self._registered = self._mounted = False


def _serves_containers(handler: str) -> bool:
    """Whether one of the kernel's handlers is for arm64, switched on, and opened once for all (flag F)."""
    lines = handler.splitlines()
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags:")), "")
    magic = next((line.split()[1] for line in lines if line.startswith("magic ")), "")
    return lines[:1] == ["enabled"] and "F" in flags and magic[36:40] == "b700"
