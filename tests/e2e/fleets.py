"""Fleets of real processes for the tests: started together, with the arithmetic to check them by."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import reference

from edge_attention import Client
from edge_attention.cli.local_fleet import AGGREGATOR, LocalFleet

SPEC = {"query_heads": 4, "key_heads": 2, "key_dim": 16, "value_dim": 8}
STARTED: list[int] = []
"""Process ids of the daemons that any Fleet has started."""
RANDOM = np.random.default_rng(0)


def tokens(count, spec=None, seed=0):
    """Random keys and values of a context of `spec`."""
    spec = spec or SPEC
    random = np.random.default_rng(seed)
    keys = random.standard_normal((count, spec["key_heads"], spec["key_dim"])).astype(np.float32)
    values = random.standard_normal((count, spec["key_heads"], spec["value_dim"])).astype(np.float32)
    return keys, values


def queries(count, spec=None, seed=1):
    spec = spec or SPEC
    random = np.random.default_rng(seed)
    return random.standard_normal((count, spec["query_heads"], spec["key_dim"])).astype(np.float32)


def truth(asked, keys, values, visible=None, scale=None):
    """(out, lse) in float64."""
    scale = asked.shape[-1] ** -0.5 if scale is None else scale
    return reference.attend(reference.scores(asked, keys, scale), values, visible)


def exact(answer, asked, keys, values, visible=None, scale=None, atol=1e-5):
    """The answer is complete and equals float64 to `atol`."""
    out, lse = truth(asked, keys, values, visible, scale)
    assert answer.exact, answer.missing
    assert answer.missing == ()
    assert answer.bound is None
    np.testing.assert_allclose(answer.out, out, atol=atol)
    np.testing.assert_allclose(answer.lse, lse, atol=1e-5)


def certified(answer, asked, keys, values):
    """The answer says that it is partial, and is no further from float64 than it says."""
    assert not answer.exact
    assert answer.missing
    assert answer.bound is not None
    out, _ = truth(asked, keys, values)
    error = np.abs(answer.out - out)
    assert (error <= answer.bound.error).all()
    return error


def until(condition, what="it", seconds=120.0):
    """Wait for `condition()`; its value."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"{what} did not happen in {seconds} s"
        time.sleep(0.02)
    return found


def states(client):
    return {node.name: node.state.value for node in client.nodes()}


class Fleet(LocalFleet):
    """A LocalFleet that starts its nodes at once, and whose children can be frozen."""

    def __init__(self, folder, *flags, state=False):
        super().__init__(folder / "state" if state else None)
        self.folder = folder
        self.start_aggregator(*flags)

    def _start(self, name, module, flags):
        child = super()._start(name, module, flags)
        if module in (
            LocalFleet.aggregator_module,
            LocalFleet.node_module,
        ):  # not a hostile one of the tests'
            STARTED.append(child.pid)
        return child

    def nodes(self, *names, flags=(), **options):
        for name in names:
            self.start_node(name, "--threads", "1", *flags, wait=False, **options)
        for name in names:
            self.wait_ready(name)

    def restart_aggregator(self, *flags):
        self.kill(AGGREGATOR)
        return self.start_aggregator(*flags)

    def freeze(self, name):
        os.kill(self.child(name).pid, signal.SIGSTOP)

    def thaw(self, name):
        os.kill(self.child(name).pid, signal.SIGCONT)

    def client(self, **options):
        return Client(self.address, **options)

    def said(self, name):
        return "\n".join(self.child(name).lines)


def command(module, *arguments, timeout=300, **options):
    """Run one of the three commands to its end."""
    code = f"from {module} import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        **options,
    )


def command_line(code, timeout=300):
    """Run Python code in a process of its own, with this environment; what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout
