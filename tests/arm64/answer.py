"""An aggregator on this processor, a node on another, and an attend that must equal float64."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_attention import Client
from edge_attention.cli.local_fleet import Child
from tests import reference
from tests.compose.console import Failed, run, say, tail, wait_for

SPEC = {"query_heads": 4, "key_heads": 2, "key_dim": 64, "value_dim": 32}
TOKENS = 5_000
QUERIES = (1, 4, 24)
"""One query, few and many run different kernels."""
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Aggregator:
    """One that runs, with TLS, and what it takes to come in."""

    address: str
    join_token: str
    user_token: str


@contextmanager
def aggregator(folder: Path) -> Iterator[Aggregator]:
    state = folder / "state"
    flags = ["--listen", "127.0.0.1:0", "--tls", "--state", str(state), "--bootstrap", str(folder / "trust")]
    child = Child("aggregator", "aggregator.main", [*flags, "--lease", "60"], None)
    try:
        address = f"127.0.0.1:{child.wait_for(r'listening on .*:([0-9]+)')[1]}"
        join = (folder / "trust/join-token").read_text().strip()
        operator = (folder / "trust/operator-token").read_text().strip()
        yield Aggregator(address, join, operator)
    finally:
        child.terminate()


def must_answer(host: Aggregator, name: str, seconds: float) -> None:
    """The node enrols, registers, stores what it is sent and answers what float64 says."""
    began = time.monotonic()
    with Client(host.address, token=host.user_token) as client:

        def ready() -> bool:
            return any(node.name == name and node.state.value == "ready" for node in client.nodes())

        wait_for(f"node {name} to enrol and register", ready, seconds)
        (node,) = client.nodes()
        took = time.monotonic() - began
        say(f"  {name} registered after {took:.0f} s: {node.provider}, {node.threads} threads")
        random = np.random.default_rng(7)
        keys, values, asked = (
            random.standard_normal(shape).astype(np.float32)
            for shape in (
                (TOKENS, SPEC["key_heads"], SPEC["key_dim"]),
                (TOKENS, SPEC["key_heads"], SPEC["value_dim"]),
                (max(QUERIES), SPEC["query_heads"], SPEC["key_dim"]),
            )
        )
        context = client.create_context("arm64", **SPEC)
        context.append(keys, values, node=name)
        for count in QUERIES:
            began = time.monotonic()
            answer = context.attend(asked[:count], deadline=300)
            took = time.monotonic() - began
            out, lse = reference.attend(
                reference.scores(asked[:count], keys, SPEC["key_dim"] ** -0.5), values
            )
            error = max(float(np.abs(answer.out - out).max()), float(np.abs(answer.lse - lse).max()))
            if not answer.exact or not error <= TOLERANCE:
                raise Failed(f"{count} queries: exact {answer.exact}, {error:.1e} from float64")
            say(f"  {count} queries over {TOKENS} tokens: exact, {error:.1e} from float64, {took:.2f} s")
        context.drop()


@contextmanager
def process(command: list[str], folder: Path, env: dict[str, str]) -> Iterator[None]:
    """A node as a child, ended by SIGTERM; it must then drain and leave with 0."""
    log = folder / "node.log"
    with log.open("wb") as out:
        child = subprocess.Popen(command, env=env, stdout=out, stderr=out, start_new_session=True)
    try:
        yield
        child.terminate()
        code = child.wait(300)
        if code or "left" not in log.read_text():
            raise Failed(f"after SIGTERM the node ended with {code}")
    except BaseException:
        say(f"the node said:\n{tail(log.read_text(errors='replace'))}")
        raise
    finally:
        if child.poll() is None:
            child.kill()
            child.wait(60)


def machine_of(command: list[str], env: dict[str, str] | None = None) -> str:
    """The processor a Python sees; fails if it is not arm64's."""
    code = "import platform as p, onnxruntime as o; print(p.machine(), p.python_version(), o.__version__)"
    said = run([*command, "-c", code], env=env, deadline=120).strip().splitlines()[-1]
    if not said.startswith("aarch64 "):
        raise Failed(f"this Python is not arm64's: {said}")
    return said
