"""A process that confines itself as told and says in JSON what it can still do. See test_confinement.py."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import onnxruntime as ort

from edge_node.cell import confinement
from edge_node.cell.confinement import Limits, confine

LIBC = ctypes.CDLL(None, use_errno=True)
PARENT = os.getppid()


def says(call):
    status = call()
    if status is not None and status < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def connect(family, address):
    with socket.socket(family) as found:
        found.connect(address)


def fork():
    if os.fork() == 0:
        os._exit(0)


def memory(size):
    held = np.ones(size, np.uint8)
    return int(held[-1])


ATTEMPTS = {
    "open": lambda: os.close(os.open("/etc/passwd", os.O_RDONLY)),
    "open proc": lambda: os.close(os.open("/proc/self/environ", os.O_RDONLY)),
    "open here": lambda: os.close(os.open(".", os.O_RDONLY)),
    "write": lambda: os.close(os.open("here", os.O_WRONLY | os.O_CREAT)),
    "list": lambda: os.listdir("/"),
    "mkdir": lambda: os.mkdir("/tmp/edge-node-was-here"),
    "inet": lambda: connect(socket.AF_INET, ("127.0.0.1", 9)),
    "unix": lambda: connect(socket.AF_UNIX, "\0edge-node-test"),
    "udp": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9)),
    "fork": fork,
    "run": lambda: subprocess.run(["/bin/true"], check=True),
    "kill": lambda: os.kill(PARENT, signal.SIGCONT),
    "ptrace": lambda: says(lambda: LIBC.ptrace(16, PARENT, 0, 0)),
    "read memory": lambda: says(lambda: LIBC.process_vm_readv(PARENT, None, 0, None, 0, 0)),
    "limits of others": lambda: resource.prlimit(PARENT, resource.RLIMIT_NOFILE),
    "raise a limit": lambda: resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY,) * 2),
    "run memory": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
    "shared memory": lambda: uncounted(mmap.MAP_SHARED | mmap.MAP_ANONYMOUS),
    "a stack": lambda: uncounted(mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x100),
    "a file of memory": lambda: os.close(os.memfd_create("x")),
    "user": lambda: os.setuid(0),
    "import": lambda: __import__("wave"),
}


def uncounted(flags):
    LIBC.mmap.restype = ctypes.c_void_p
    if LIBC.mmap(None, ctypes.c_size_t(1 << 20), 3, flags, -1, 0) == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "no memory")


def works(threads, model, handed):
    """What a confined process is for still goes: threads, shared memory, graphs."""
    ran = []
    thread = threading.Thread(target=lambda: ran.append(1))
    thread.start()
    thread.join()
    with mmap.mmap(handed, 1 << 20) as shared:
        shared[:3] = b"abc"
        assert shared[:3] == b"abc"
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.arange(4, dtype=np.float32)})
    return bool(ran) and found.tolist() == [0, 2, 4, 6]


def main():
    told = json.loads(sys.argv[1])
    for layer in told.get("without", ()):
        nothing = {"_landlock": 0, "_become_own_user": None}.get(layer, False)
        setattr(confinement, layer, lambda *_, nothing=nothing: nothing)
    if told.get("refused"):
        # As in a container, or a unit with a filter of its own: these calls fail.
        found = ctypes.CDLL
        ctypes.CDLL = lambda *a, **k: Refusing(found(*a, **k), told["refused"])
    if told.get("thread"):
        threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
    model = bytes.fromhex(told["model"])
    if "user" in told:
        os.setgroups([])
        os.setresgid(*[told["user"]] * 3)
        os.setresuid(*[told["user"]] * 3)
    kept, other = os.dup(1), os.dup(1)
    handed = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.ftruncate(handed, 1 << 20)
    limits = Limits(
        told.get("memory", 256 << 20),
        64,
        frozenset({kept, handed}),
        told.get("seconds"),
        told.get("devices", False),
    )
    report = confine(limits)
    if told.get("spin"):
        while True:
            pass
    answer = {"report": vars(report), "describe": report.describe(), "can": [], "uid": os.getuid()}
    # Where nothing is shut, some of them would do what they try: attach to the parent, for one.
    tried = told.get("tries", list(ATTEMPTS))
    for name, attempt in ((name, ATTEMPTS[name]) for name in tried):
        try:
            attempt()
            answer["can"].append(name)
        except (OSError, ImportError, ValueError, subprocess.SubprocessError):
            pass
    answer["works"] = works(told.get("threads", 2), model, handed)
    try:
        memory(1 << 30)
        answer["can"].append("memory")
    except MemoryError:
        pass
    answer["open"] = [d for d in (kept, other) if _is_open(d)] == [kept]
    os.write(kept, json.dumps(answer).encode())


class Refusing:
    def __init__(self, libc, names):
        self._libc, self._names = libc, names

    def __getattr__(self, name):
        return (lambda *_: -1) if name in self._names else getattr(self._libc, name)


def _is_open(descriptor):
    try:
        os.fstat(descriptor)
        return True
    except OSError:
        return False


if __name__ == "__main__":
    main()
