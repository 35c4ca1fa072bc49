"""llama.cpp over RPC beside ONNX Runtime, by turns: two servers of one thread, layers shared between them.

The two programs come from llama.cpp's build with `-DGGML_RPC=ON` (docs/performance.md says how it is had),
and the model from its `convert_hf_to_gguf.py`. `llama-bench` loads the model anew each turn and times
only requests.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import socketserver
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.infer_models import MINILM, feeds_of, model_file, whole_session

__all__ = ["llama_cpp"]

ROUNDS, REPEATED = 5, 5
BEGIN_SECONDS = 10.0


def llama_cpp(programs: Path, gguf: Path, length: int) -> dict[str, Any]:
    """A request's milliseconds in one process and over two servers, by ONNX Runtime's too; bytes between
    processes; what servers hold; what the caller of a request sees whose server is killed.

    Args:
        programs: folder of `llama-bench` and `ggml-rpc-server`.
        gguf: a model of MiniLM's sizes, float32.
        length: tokens a request.

    Raises:
        subprocess.CalledProcessError: a program of theirs fails.
    """
    bench = [programs / "llama-bench", "-m", gguf, "-p", str(length), "-n", "0", "-t", "1", "-embd", "1"]
    with tempfile.TemporaryDirectory() as folder, _servers(programs) as servers:
        model = model_file(MINILM, Path(folder))
        feeds, whole = feeds_of(model, 1, length), whole_session(model)
        rpc = ["-ngl", "99", "--rpc", ",".join(address for address, _ in servers)]
        taken: dict[str, list[float]] = {"onnxruntime": [], "one process": [], "two servers": []}
        for _ in range(ROUNDS):
            for _ in range(REPEATED):
                began = time.perf_counter()
                whole.run(None, feeds)
                taken["onnxruntime"].append(1e3 * (time.perf_counter() - began))
            for name, more in (("one process", ["-ngl", "0"]), ("two servers", rpc)):
                said = subprocess.run([*bench, *more, "-r", str(REPEATED), "-o", "json"], **_RUN)
                taken[name] += [ns / 1e6 for ns in json.loads(said.stdout)[0]["samples_ns"]]
        # What two servers were sent and answered in 1 request and in 6: weights and beginnings cancel out.
        passed = [_passed(bench, [address for address, _ in servers], requests) for requests in (1, 6)]
        held = [round(psutil.Process(process.pid).memory_info().rss / 1e6, 1) for _, process in servers]
        medians = {name: statistics.median(all_) for name, all_ in taken.items()}
        # So many requests that the kill comes within one of them.
        asking = subprocess.Popen([*bench, *rpc, "-r", "1000"], env=_ENV, **_SILENT)
        time.sleep(3.0)
        held_while = [round(psutil.Process(process.pid).memory_info().rss / 1e6, 1) for _, process in servers]
        servers[1][1].kill()
        code = asking.wait(60.0)
        return {
            "length": length,
            "ms": medians,
            "bytes": (passed[1] - passed[0]) / 5,
            "by_onnxruntime": {name: one / medians["onnxruntime"] for name, one in medians.items()},
            "server_resident_mb": [max(pair) for pair in zip(held, held_while, strict=True)],
            "after_kill": signal.Signals(-code).name if code < 0 else f"exit status {code}",
        }


_ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
_RUN: dict[str, Any] = {"check": True, "capture_output": True, "text": True, "env": _ENV}
_SILENT: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


@contextlib.contextmanager
def _servers(programs: Path) -> Iterator[list[tuple[str, subprocess.Popen[bytes]]]]:
    """Two servers on ports of their own; ended when done."""
    found: list[tuple[str, subprocess.Popen[bytes]]] = []
    try:
        for _ in range(2):
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            command = [programs / "ggml-rpc-server", "-H", "127.0.0.1", "-p", str(port), "-t", "1"]
            found.append((f"127.0.0.1:{port}", subprocess.Popen(command, env=_ENV, **_SILENT)))
            _wait(port)
        yield found
    finally:
        for _, process in found:
            process.kill()
            process.wait()


def _passed(bench: list[Any], addresses: list[str], requests: int) -> int:
    """Bytes both ways between a process that asks and its servers, all of its life."""
    with contextlib.ExitStack() as stack:
        relays = [stack.enter_context(_Relay(address)) for address in addresses]
        rpc = ",".join(f"127.0.0.1:{relay.server_address[1]}" for relay in relays)
        subprocess.run([*bench, "-ngl", "99", "--rpc", rpc, "-r", str(requests), "-o", "json"], **_RUN)
    return sum(sum(relay.counted) for relay in relays)


class _Relay(socketserver.ThreadingTCPServer):
    """Passes on what comes to a server, and back, and counts it; ends with its connections."""

    def __init__(self, address: str) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.to = int(address.rpartition(":")[2])
        self.counted: list[int] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *raised: object) -> None:
        self.shutdown()
        self.server_close()


class _Passing(socketserver.BaseRequestHandler):
    """One connection of a relay."""

    server: _Relay

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.to)) as server:
            back = threading.Thread(target=self._pass, args=(server, self.request))
            back.start()
            self._pass(self.request, server)
            back.join()

    def _pass(self, source: socket.socket, to: socket.socket) -> None:
        with contextlib.suppress(OSError):  # whoever leaves without a word
            while data := source.recv(1 << 18):
                self.server.counted.append(len(data))
                to.sendall(data)
        with contextlib.suppress(OSError):
            to.shutdown(socket.SHUT_WR)


def _wait(port: int) -> None:
    until = time.monotonic() + BEGIN_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
            return
        except OSError as problem:
            if time.monotonic() > until:
                raise TimeoutError(f"ggml-rpc-server does not listen on port {port}") from problem
            time.sleep(0.05)
