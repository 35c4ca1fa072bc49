"""Shuts a process in with what it has: no files, no network, no other processes, bounded memory and time.

For the process in which graphs run that somebody else has sent. Each of these is done where the kernel and
the daemon's rights allow it, and any of the first three by itself keeps files away:

    empty root     chroot into a folder that is empty and gone; as root, or in a user namespace of its own
    Landlock       no file (Linux 5.13), no TCP (6.7), no signal or abstract socket to outside (6.12)
    seccomp        only the calls in `system_calls.py`: none that opens, connects, or starts a process
    own user       where the daemon is root: an id of this process alone, without capabilities
    namespaces     no network interface, no shared memory of others
    rlimits        memory, processor time, descriptors; no core file

What was loaded stays usable; nothing else can be loaded afterwards, not even a Python module.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import secrets
import socket
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_node.cell import system_calls

__all__ = ["OPEN", "Confinement", "Limits", "confine"]

OPEN = "open"
"""How the description of a process that is not shut in begins."""

_OWN_USERS = 1_900_000_000
"""The own user of process p is this plus p: ids that nobody has, nor systemd or containers give out."""
_NOBODY = 65_534
_THREADS = 1_024
"""Of a process with its own user. ONNX Runtime starts some for each graph."""

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWNET = 0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x40000000
_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 4, 22, 38
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # Landlock's: the same on every architecture
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_FILTER, _TSYNC, _MODE_FILTER = 1, 1, 2

# Landlock: rights over files by the version that has them; the network's and the scopes' come later.
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
_NETWORK_RIGHTS, _SCOPES = 0b11, 0b11
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_IOCTL_DEVICE = 1 << 15

# What drivers of accelerators read and use.
_READABLE = ("/usr", "/lib", "/lib64", "/opt", "/etc/ld.so.cache", "/etc/OpenCL", "/sys", "/proc")
_DEVICES = (
    "/dev/nvidia",
    "/dev/dri",
    "/dev/kfd",
    "/dev/accel",
    "/dev/null",
    "/dev/zero",
    "/dev/urandom",
    "/dev/shm",
)


@dataclass(frozen=True)
class Limits:
    """What a confined process may use.

    Attributes:
        memory: bytes it may allocate besides what it has; shared memory that it is handed does not count.
        descriptors: how many it may have open.
        keep: those that stay open; 0, 1 and 2 do in any case.
        processor_seconds: of all its threads together, then the kernel ends it; None: no limit.
        devices: it uses an accelerator, whose driver opens devices and libraries as it goes. Then the root
            stays, Landlock lets those be read, and seccomp refuses what is known to be harmful instead of all
            but what is needed.
    """

    memory: int
    descriptors: int
    keep: frozenset[int]
    processor_seconds: int | None = None
    devices: bool = False


@dataclass(frozen=True)
class Confinement:
    """What holds. `landlock` is the version in force, 0 for none; `user` the own user, None for the daemon's.

    `shut`: tried from inside, no file could be opened and no socket made.
    """

    empty_root: bool
    namespaces: bool
    landlock: int
    seccomp: bool
    user: int | None
    shut: bool

    def describe(self) -> str:
        """What holds, and what does not, in a line; begins with OPEN if files or sockets can be had."""
        parts = {
            "empty root": self.empty_root,
            "namespaces": self.namespaces,
            f"Landlock {self.landlock or ''}".strip(): self.landlock > 0,
            "seccomp": self.seccomp,
            "own user": self.user is not None,
        }
        held = ", ".join(name for name, holds in parts.items() if holds) or "nothing"
        missing = ", ".join(name for name, holds in parts.items() if not holds)
        said = held + (f" (not here: {missing})" if missing else "")
        return said if self.shut else f"{OPEN}: files and sockets can be had; {said}"


def confine(limits: Limits) -> Confinement:
    """Shut this process in, for good. Call it once, when everything is loaded, and before there are threads.

    Threads that are there already, as a library may have started, are held by seccomp and the own user alone.

    Raises:
        RuntimeError: there are other threads, and no seccomp: they would stay free.
        OSError: a limit could not be set.
    """
    alone = len(os.listdir("/proc/self/task")) == 1
    libc = ctypes.CDLL(None, use_errno=True)
    machine = platform.machine()
    os.umask(0o077)
    _close_others(limits.keep)
    _limit(limits)
    root = os.geteuid() == 0
    own = _NEWNS | _NEWUTS | _NEWIPC | _NEWNET
    namespaces = not limits.devices and _done(libc.unshare(own if root else own | _NEWUSER))
    empty_root = not limits.devices and _enter_empty_root()
    user = _become_own_user() if root and not limits.devices else None
    if user is not None and user != _NOBODY:
        # Counted by user: of one that others have, it would be theirs, too.
        resource.setrlimit(resource.RLIMIT_NPROC, (_THREADS, _THREADS))
    # Neither looked into by others of its user, nor written to the disk when it ends.
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    landlock = _landlock(libc, limits.devices)
    seccomp = _seccomp(libc, machine, limits.devices, alone)
    if not alone:
        if not seccomp:
            raise RuntimeError("this process has other threads already, which nothing here would hold")
        empty_root, namespaces, landlock = False, False, 0  # in force for this thread and those it starts
    return Confinement(empty_root, namespaces, landlock, seccomp, user, _is_shut())


def _done(status: int) -> bool:
    return status == 0


def _close_others(keep: frozenset[int]) -> None:
    kept = sorted({0, 1, 2} | keep)
    for below, above in zip(kept, [*kept[1:], resource.getrlimit(resource.RLIMIT_NOFILE)[0]], strict=True):
        os.closerange(below + 1, above)


def _limit(limits: Limits) -> None:
    """Memory by RLIMIT_DATA: it counts what is writable and its own, not what only is address space."""
    have = _status("VmData")
    wanted = {
        resource.RLIMIT_DATA: have + limits.memory,
        resource.RLIMIT_NOFILE: limits.descriptors,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if limits.processor_seconds is not None:
        wanted[resource.RLIMIT_CPU] = limits.processor_seconds
    for which, most in wanted.items():
        _, hard = resource.getrlimit(which)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (most, most))


def _status(field: str) -> int:
    """Bytes that /proc/self/status gives for `field`; 0 where it does not."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    return 0


def _enter_empty_root() -> bool:
    """Have a folder that is empty, and removed, for a root. False where that is not allowed."""
    parent = -1
    try:
        folder = tempfile.gettempdir()
        parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        name = f"edge-node-empty-{secrets.token_hex(8)}"
        os.mkdir(name, 0o500, dir_fd=parent)
        try:
            os.chroot(f"{folder}/{name}")
            os.chdir("/")
        finally:
            os.rmdir(name, dir_fd=parent)
        return True
    except OSError:
        return False
    finally:
        if parent >= 0:
            os.close(parent)


def _become_own_user() -> int | None:
    """Leave root for an id of this process alone; None where no other id can be had."""
    for user in (_OWN_USERS + os.getpid(), _NOBODY):
        with contextlib.suppress(OSError):
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            return user
    return None


def _landlock(libc: ctypes.CDLL, devices: bool) -> int:
    """Landlock's version in force, 0 for none."""
    version = int(libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(1)))
    if version < 1:
        return 0
    files = sum(rights for since, rights in _FILE_RIGHTS.items() if since <= version)
    network = _NETWORK_RIGHTS if version >= 4 else 0
    scopes = _SCOPES if version >= 6 else 0
    words = [files, network, scopes][: 1 if version < 4 else 2 if version < 6 else 3]
    attributes = struct.pack(f"<{len(words)}Q", *words)
    ruleset = int(
        libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0))
    )
    if ruleset < 0:
        return 0
    try:
        if devices:
            _allow_devices(libc, ruleset, files)
        restricted = libc.syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint(0))
        return version if restricted == 0 else 0
    finally:
        os.close(ruleset)


def _allow_devices(libc: ctypes.CDLL, ruleset: int, files: int) -> None:
    read = _EXECUTE | _READ_FILE | _READ_DIR
    rules = dict.fromkeys(_READABLE, read)
    for entry in Path("/dev").iterdir():
        if str(entry).startswith(_DEVICES):
            rules[str(entry)] = _READ_FILE | _WRITE_FILE | _READ_DIR | _IOCTL_DEVICE
    for path, rights in rules.items():
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            if not os.path.isdir(path):
                rights &= ~_READ_DIR
            rule = struct.pack("<Qi", rights & files, descriptor)
            libc.syscall(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint(0))
            os.close(descriptor)


def _seccomp(libc: ctypes.CDLL, machine: str, devices: bool, alone: bool) -> bool:
    if machine not in system_calls.MACHINES:
        return False
    code = system_calls.deny_listed(machine) if devices else system_calls.allow_listed(machine, os.getpid())
    buffer = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: how many instructions, and where.
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
    arguments = (ctypes.c_uint(_FILTER), ctypes.c_uint(_TSYNC), program)
    if _done(libc.syscall(_SECCOMP[machine], *arguments)):
        return True
    # The older call, for this thread alone: some filters around a service let only this one through.
    return alone and _done(libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, program, 0, 0))


def _is_shut() -> bool:
    """Whether no file can be opened and no socket made: what is promised, tried."""

    def refused(attempt: Callable[[], object]) -> bool:
        try:
            attempt()
        except OSError:
            return True
        return False

    return refused(lambda: os.open("/", os.O_RDONLY)) and refused(lambda: socket.socket(socket.AF_INET))
