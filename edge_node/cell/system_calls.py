"""Which system calls a confined process may make, as a seccomp filter for x86_64 and aarch64.

Everything that is not listed fails with EPERM. Files, sockets, processes and other processes' memory cannot
be had: what a confined process works with is what it was handed, and what others send it.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["MACHINES", "allow_listed", "deny_listed"]


class _Machine(NamedTuple):
    """`audit`: the kernel's number of the architecture. `column`: of the tables below."""

    audit: int
    column: int


MACHINES = {"x86_64": _Machine(0xC000003E, 0), "aarch64": _Machine(0xC00000B7, 1)}
"""What `platform.machine()` says -> where its numbers are."""

# Numbers on x86_64 and aarch64; None: there is no such call. From the kernel's asm/unistd.h.
_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # Descriptors it has.
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66),
    "pread64": (17, 67), "pwrite64": (18, 68), "close": (3, 57), "lseek": (8, 62),
    "fstat": (5, 80), "newfstatat": (262, 79), "statx": (332, 291), "fcntl": (72, 25),
    "dup": (32, 23), "dup3": (292, 24), "poll": (7, None), "ppoll": (271, 73),
    "select": (23, None), "pselect6": (270, 72), "epoll_create1": (291, 20), "epoll_ctl": (233, 21),
    "epoll_wait": (232, None), "epoll_pwait": (281, 22), "eventfd2": (290, 19), "pipe2": (293, 59),
    "recvmsg": (47, 212), "sendmsg": (46, 211), "recvfrom": (45, 207), "sendto": (44, 206),
    "shutdown": (48, 210), "getsockopt": (55, 209),
    # Memory. None that is shared, but what was handed over: no limit of the process counts it.
    "munmap": (11, 215), "mremap": (25, 216), "madvise": (28, 233), "brk": (12, 214),
    "msync": (26, 227), "mincore": (27, 232),
    # Signals of its own, threads, waiting, time.
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132), "restart_syscall": (219, 128), "futex": (202, 98), "futex_waitv": (449, 449),
    "set_robust_list": (273, 99), "get_robust_list": (274, 100), "rseq": (334, 293),
    "set_tid_address": (218, 96), "membarrier": (324, 283), "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123), "sched_setaffinity": (203, 122), "sched_getparam": (143, 121),
    "sched_getscheduler": (145, 120), "getcpu": (309, 168), "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153),
    "exit": (60, 93), "exit_group": (231, 94),
    # What it is.
    "gettid": (186, 178), "getpid": (39, 172), "getppid": (110, 173), "getuid": (102, 174),
    "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "getrandom": (318, 278),
    "getrusage": (98, 165), "sysinfo": (99, 179), "uname": (63, 160), "getrlimit": (97, 163),
    "arch_prctl": (158, None),
}  # fmt: skip

# Allowed by their arguments, in `allow_listed`.
_CLONE, _CLONE3 = (56, 220), (435, 435)
_MMAP, _MPROTECT = (9, 222), (10, 226)
_PRCTL, _TGKILL, _PRLIMIT, _IOCTL = (157, 167), (234, 131), (302, 261), (16, 29)

# For processes that need devices, whose drivers make calls of their own: these fail, all others are allowed.
_DENIED: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242), "socketpair": (53, 199),
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kill": (62, 129), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "setns": (308, 268), "unshare": (272, 97), "init_module": (175, 105),
    "finit_module": (313, 273), "kexec_load": (246, 104), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "open_by_handle_at": (304, 265), "reboot": (169, 142), "swapon": (167, 224),
}  # fmt: skip

_CLONE_THREAD = 0x00010000
_PROT_EXEC = 4
_MAP_SHARED, _MAP_ANONYMOUS, _MAP_GROWSDOWN = 0x01, 0x20, 0x100
_PR_SET_NAME, _PR_SET_VMA = 15, 0x53564D41
_FIONBIO = 0x5421

# struct sock_filter, and struct seccomp_data: nr, arch, instruction pointer, six arguments of eight bytes.
_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN, _AND = 0x20, 0x15, 0x45, 0x35, 0x06, 0x54
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_X32 = 0x40000000  # calls of x86_64 by other numbers

_Instruction = tuple[int, int, int, int]


def allow_listed(machine: str, pid: int) -> bytes:
    """The filter of a process `pid` that works on what it has. KeyError for a machine not in MACHINES."""
    column = MACHINES[machine].column
    refuse = _give(_ERROR | errno.EPERM)
    program = _head(machine)
    for numbers in _ALLOWED.values():
        program += _if(numbers[column], [_give(_ALLOW)])
    program += _if(_CLONE[column], [*_argument(0, _ANY_BIT, _CLONE_THREAD), refuse])
    # Its flags lie in memory, where a filter cannot look: who gets this answer uses clone.
    program += _if(_CLONE3[column], [_give(_ERROR | errno.ENOSYS)])
    # No memory that can be run: what it runs was there before.
    # Nor memory that RLIMIT_DATA does not count: of no file and shared, or a stack of its own.
    uncounted = [
        *_argument(3, _ANY_BIT, _MAP_GROWSDOWN, refuse),
        (_AND, 0, 0, _MAP_SHARED | _MAP_ANONYMOUS),
        (_EQUAL, 0, 1, _MAP_SHARED | _MAP_ANONYMOUS),
        refuse,
    ]
    program += _if(_MMAP[column], [*_argument(2, _ANY_BIT, _PROT_EXEC, refuse), *uncounted, _give(_ALLOW)])
    program += _if(_MPROTECT[column], [*_argument(2, _ANY_BIT, _PROT_EXEC, refuse), _give(_ALLOW)])
    names = [*_argument(0, _EQUAL, _PR_SET_NAME), *_argument(0, _EQUAL, _PR_SET_VMA)]
    program += _if(_PRCTL[column], [*names, refuse])
    program += _if(_TGKILL[column], [*_argument(0, _EQUAL, pid), refuse])  # abort() does this
    program += _if(_PRLIMIT[column], [*_argument(0, _EQUAL, 0), refuse])
    program += _if(_IOCTL[column], [*_argument(1, _EQUAL, _FIONBIO), refuse])
    return _assemble([*program, refuse])


def deny_listed(machine: str) -> bytes:
    """The filter of a process that needs devices. KeyError for a machine not in MACHINES."""
    column = MACHINES[machine].column
    refuse = _give(_ERROR | errno.EPERM)
    program = _head(machine)
    for numbers in _DENIED.values():
        program += _if(numbers[column], [refuse])
    program += _if(_CLONE[column], [*_argument(0, _ANY_BIT, _CLONE_THREAD), refuse])
    program += _if(_CLONE3[column], [_give(_ERROR | errno.ENOSYS)])
    return _assemble([*program, _give(_ALLOW)])


def _head(machine: str) -> list[_Instruction]:
    return [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, MACHINES[machine].audit),
        _give(_KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        _give(_KILL),
    ]


def _give(what: int) -> _Instruction:
    return (_RETURN, 0, 0, what)


def _if(number: int | None, then: Sequence[_Instruction]) -> list[_Instruction]:
    """`then`, which returns in the end, for the call `number`; the number is loaded."""
    return [] if number is None else [(_EQUAL, 0, len(then), number), *then]


def _argument(
    index: int, test: int, value: int, then: _Instruction = (_RETURN, 0, 0, _ALLOW)
) -> list[_Instruction]:
    """`then` if the lower half of an argument passes `test`; else it goes on."""
    return [(_LOAD, 0, 0, _ARGUMENTS + 8 * index), (test, 0, 1, value), then]


def _assemble(program: Sequence[_Instruction]) -> bytes:
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)
