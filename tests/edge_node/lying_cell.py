"""A cell that was taken over: it speaks the protocol but for one lie: `python lying_cell.py LIE SETTINGS`."""

from __future__ import annotations

import array
import json
import os
import socket
import struct
import sys
import time

import numpy as np

from edge_node.cell.messages import HEAD, WINDOW, CellKind, Channel
from edge_node.shared_memory import Region

X = [["x", "float32", ["n", 2]]]
Y = [["y", "float32", ["n", 2]], ["z", "float32", []]]
FITS = ["float32", [2, 2], -1, HEAD]
LOADED = {
    "loaded: nothing": {},
    "loaded: a type that does not travel": {"in": [["x", "complex64", []]], "out": Y},
    "loaded: object": {"in": [["x", "object", []]], "out": Y},
    "loaded: a name twice": {"in": X + X, "out": Y},
    "loaded: a name too long": {"in": [["x" * 5000, "float32", []]], "out": Y},
    "loaded: dimensions": {"in": [["x", "float32", [1.5]]], "out": Y},
    "loaded: too many": {"in": [[f"x{n}", "float32", []] for n in range(20_000)], "out": Y},
}
DONE = {
    "done: of another number": [FITS, FITS],
    "done: before the window": [["float32", [2, 2], -1, 0]],
    "done: behind the window": [["float32", [2, 2], -1, WINDOW - 8]],
    "done: far behind": [["float32", [2, 2], -1, 1 << 40]],
    "done: a negative place": [["float32", [2, 2], -1, -64]],
    "done: not aligned": [["float32", [2, 2], -1, HEAD + 1]],
    "done: in a descriptor": [["float32", [2, 2], 3, 0]],
    "done: a negative size": [["float32", [2, -2], -1, HEAD]],
    "done: a size that is true": [["float32", [True, 2], -1, HEAD]],
    "done: overflow": [["float32", [1 << 40, 1 << 40], -1, HEAD]],
    "done: many dimensions": [["float32", [1] * 40, -1, HEAD]],
    "done: nothing of a size that cannot be": [["float32", [0, 1 << 47, 1 << 47], -1, HEAD]],
    "done: an object": [["object", [2, 2], -1, HEAD]],
    "done: on top of each other": [["uint8", [6 << 20], -1, HEAD]] * 2,
    "done: a list": [["float32", "22", -1, HEAD]],
    "done: nothing": None,
}


def answer_load(lie, channel):
    channel.send(CellKind.LOADED, LOADED.get(lie, {"in": X, "out": Y}))


FRAME = struct.Struct("<4sIIQ")  # magic, kind, bytes of the head, job


def raw(channel, text, frame=None):
    channel.writes[: len(text)] = np.frombuffer(text, np.uint8)
    channel.socket.send(frame or FRAME.pack(b"EAC1", 5, len(text), 0))


def answer_run(lie, channel, control):
    if lie in DONE:
        channel.send(CellKind.DONE, {"out": DONE[lie]})
    elif lie == "kind":
        channel.send(CellKind.LOADED, {"in": X, "out": Y})
    elif lie == "a kind that is none":
        raw(channel, b"{}", FRAME.pack(b"EAC1", 77, 2, 0))
    elif lie == "magic":
        raw(channel, b"{}", FRAME.pack(b"EACX", 5, 2, 0))
    elif lie == "a frame too short":
        raw(channel, b"{}", b"EAC1")
    elif lie == "a frame too long":
        raw(channel, b"{}", b"EAC1" * 100)
    elif lie == "a head too long":
        raw(channel, b"{}", FRAME.pack(b"EAC1", 5, 1 << 30, 0))
    elif lie == "no JSON":
        raw(channel, b"\xff{")
    elif lie == "a list":
        raw(channel, b"[]")
    elif lie == "deep":
        raw(channel, b"[" * 500_000)
    elif lie == "an error of its own":
        channel.send(CellKind.FAILED, {"error": "PermissionDenied", "text": "no"})
    elif lie == "an error without words":
        channel.send(CellKind.FAILED, {"error": "InvalidProgram", "text": 7})
    elif lie == "stopped by nobody":
        channel.send(CellKind.FAILED, {"error": "Stopped", "text": ""})
    elif lie == "descriptors":
        rights = array.array("i", [0, 1, 2])
        channel.send(CellKind.DONE, {"out": [FITS]}, rights)
    elif lie == "descriptors without end":
        rights = array.array("i", [0] * 250)
        frame = FRAME.pack(b"EAC1", 5, 2, 0)
        channel.socket.sendmsg([frame], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    elif lie == "need: negative":
        channel.send(CellKind.NEED, {"out": [["float32", [-1, 1 << 20]]]})
    elif lie == "need: all memory":
        channel.send(CellKind.NEED, {"out": [["float32", [1 << 44]]]})
        channel.receive()
        channel.send(CellKind.DONE, {})
    elif lie == "need: goes on writing":
        channel.send(CellKind.NEED, {"out": [["float32", [1 << 20]]]})
        message = channel.receive()
        keep = [Region(fd, os.fstat(fd).st_size, writable=True) for fd in message.descriptors]
        channel.send(CellKind.DONE, {})
        time.sleep(600)
        del keep
    elif lie == "made what nobody made":
        channel.send(CellKind.DONE, {"out": [["float32", [1 << 20], -1, 0]], "made": True})
    elif lie == "silent":
        time.sleep(600)
    elif lie == "threads without number":
        control.send(b'{"ready": "x", "threads": [Infinity, 1, 2, 3]}')
        time.sleep(600)
    elif lie == "gone":
        os._exit(0)
    else:
        raise AssertionError(lie)


def main():
    lie, said = sys.argv[1], json.loads(sys.argv[2])
    control = socket.socket(fileno=said["control"])
    connection, reads, writes = said["lanes"][0]
    channel = Channel(
        socket.socket(fileno=connection),
        np.asarray(Region(reads, WINDOW, writable=False)),
        np.asarray(Region(writes, WINDOW, writable=True)),
    )
    threads = [os.getpid()] * len(said["lanes"])
    if lie == "not ready":
        control.send(b"\xff")
    elif lie == "ready: other threads":
        control.send(json.dumps({"ready": "x", "threads": ["a"]}).encode())
    else:
        control.send(json.dumps({"ready": "nothing\x1b[31m\nat all" * 100, "threads": threads}).encode())
    print("words\x1b[2J of a cell " * 100, file=sys.stderr, flush=True)
    while message := channel.receive():
        if message.kind is CellKind.LOAD:
            answer_load(lie, channel)
        else:
            answer_run(lie, channel, control)


if __name__ == "__main__":
    main()
