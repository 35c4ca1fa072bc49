"""What is said of a machine: its software, its ONNX Runtime, its processors, memory, clock and proxy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from edge_attention.core.messages.box import Box
from edge_attention.doctor.finding import Finding, failed, ok, size, skipped, warning

BASE = 150 * 1024 * 1024
"""Bytes a node takes besides what it stores: 68 MiB after its imports, graphs, messages under way."""

TOLERANCE = 1e-4
"""The largest error the tiny graph's answer may have."""


@dataclass(frozen=True)
class Trial:
    """ONNX Runtime was asked to run a tiny attention graph.

    `wanted` is the provider asked for as on the command line, `chosen` ONNX Runtime's name of what a node
    would choose, `used` of what ONNX Runtime then ran on. `error` is the answer's largest error; `problem`
    what was raised instead of an answer.
    """

    wanted: str
    chosen: str = ""
    used: str = ""
    available: tuple[str, ...] = ()
    seconds: float = 0.0
    error: float = 0.0
    problem: str = ""
    known: bool = True
    """Whether there is a provider called so; if not, the CPU was tried."""


def short(provider: str) -> str:
    """`CUDAExecutionProvider` as the command line calls it: `cuda`."""
    return provider.removesuffix("ExecutionProvider").lower()


def packages(subject: str, versions: Mapping[str, str], required: Mapping[str, str]) -> Finding:
    """Whether the installed packages are of the versions this release needs (`required`: as `>=1.22,<2`)."""
    bad = {
        name: f"{versions.get(name) or 'none'} (needs {wanted})"
        for name, wanted in required.items()
        if not fits(versions.get(name, ""), wanted)
    }
    said = ", ".join(f"{name} {found}" for name, found in sorted(versions.items()))
    if not versions:
        return skipped("packages", subject, "it does not say what it has installed: its software is older")
    if bad:
        wrong = ", ".join(f"{name} {found}" for name, found in bad.items())
        fix = "install what this release needs there: pip install --upgrade edge-attention"
        return failed("packages", subject, wrong, fix, versions=dict(versions))
    return ok("packages", subject, said, versions=dict(versions))


def fits(version: str, wanted: str) -> bool:
    """Whether `version` satisfies `wanted`, a list of `>=` and `<` with commas."""
    have = _numbers(version)
    for term in filter(None, wanted.split(",")):
        limit = _numbers(term)
        if not have or (term.startswith(">=") and have < limit) or (term.startswith("<") and have >= limit):
            return False
    return True


def _numbers(text: str) -> tuple[int, ...]:
    found = re.search(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, found[0].split("."))) if found else ()


def runtime(subject: str, trial: Trial) -> Finding:
    """Whether ONNX Runtime computes a tiny attention graph, and rightly."""
    data = {"provider": trial.used, "seconds": trial.seconds, "error": trial.error}
    if trial.problem:
        fix = "reinstall it: pip install --force-reinstall onnxruntime"
        return failed("runtime", subject, f"ONNX Runtime cannot run a graph: {trial.problem}", fix, **data)
    if not trial.error <= TOLERANCE:
        fix = f"run nodes with --provider cpu here, and report the driver of {short(trial.used)}"
        return failed("runtime", subject, f"a tiny graph's answer is off by {trial.error:.1e}", fix, **data)
    return ok(
        "runtime", subject, f"a tiny graph is right to {trial.error:.0e} on {short(trial.used)}", **data
    )


def provider(
    subject: str, wanted: str, used: str, available: Sequence[str], devices: Sequence[str] = ()
) -> Finding:
    """Whether graphs run on what was asked for. `devices` are accelerators the machine is seen to have."""
    built = ", ".join(map(short, available)) or "not known"
    data = {"asked": wanted, "used": used, "available": list(available), "devices": list(devices)}
    if wanted in ("", "auto"):
        if "nvidia" in devices and short(used) == "cpu":
            fix = "install a build of ONNX Runtime that uses it: pip install onnxruntime-gpu"
            return warning(
                "provider",
                subject,
                f"there is an NVIDIA GPU, and graphs run on cpu (built in: {built})",
                fix,
                **data,
            )
        return ok("provider", subject, f"graphs run on {short(used)} (built in: {built})", **data)
    if wanted.lower() == short(used):
        return ok("provider", subject, f"graphs run on {short(used)}, as asked", **data)
    there = wanted.lower() in map(short, available)
    why = "its libraries or its device cannot be loaded" if there else f"this build has {built}"
    fix = (
        f"install the libraries and driver of {wanted}, or start the node with --provider {short(used)}"
        if there
        else f"install an ONNX Runtime that has {wanted}, or start the node with --provider {short(used)}"
    )
    return failed(
        "provider", subject, f"{wanted} was asked for and {short(used)} is used: {why}", fix, **data
    )


def no_such_provider(subject: str, wanted: str, available: Sequence[str]) -> Finding:
    """`wanted` is the name of none at all: a node would not start."""
    built = ", ".join(map(short, available))
    fix = "correct --provider (EDGE_NODE_PROVIDER): auto, or one of these, serves"
    said = f"no provider is called {wanted!r}; built in are {built}"
    return failed("provider", subject, said, fix, asked=wanted, available=list(available))


def threads(subject: str, wanted: int, box: Box) -> Finding:
    """One node's threads against the processors it can have."""
    data = {
        "threads": wanted,
        "processors": box.processors,
        "usable": box.usable_processors,
        "limit": box.processor_limit,
    }
    if not box.cores:
        return skipped(
            "threads", subject, f"{wanted} threads; how many processors it has is not known", **data
        )
    limited = (
        f", its control group's share of {box.processors}" if 0 < box.processor_limit < box.processors else ""
    )
    said = f"{_count(wanted, 'thread')} on {_count(box.cores, 'processor')}{limited}"
    if wanted > max(box.cores, 1):
        fix = f"start the node with --threads {max(1, int(box.cores))}: more wait for each other"
        return warning("threads", subject, said, fix, **data)
    return ok("threads", subject, said, **data)


def _count(number: float, what: str) -> str:
    return f"{number:g} {what}{'' if number == 1 else 's'}"


def memory(subject: str, limit: int, box: Box, *, default: bool = False) -> Finding:
    """What a node may store against what its process can have. `default`: nobody said."""
    data = {
        "limit": limit,
        "memory": box.memory,
        "available": box.memory_available,
        "group_limit": box.memory_limit,
    }
    if not box.room:
        return skipped(
            "memory", subject, f"may store {size(limit)}; how much RAM it has is not known", **data
        )
    grouped = 0 < box.memory_limit < (box.memory or box.memory_limit + 1)
    what = f"its control group's {size(box.memory_limit)}" if grouped else f"{size(box.memory)} of RAM"
    said = f"may store {size(limit)} of {what}{' (the default: half)' if default else ''}"
    if limit + BASE > box.room:
        best = max(box.room - BASE, box.room // 4)
        fix = (
            f"start the node with --memory-limit {best // 2**20}MiB: the kernel kills it before it can refuse"
        )
        return failed("memory", subject, said, fix, **data)
    return ok("memory", subject, said, **data)


def free_memory(subject: str, limit: int, box: Box) -> Finding:
    """Whether the memory that a node on this box may fill is free now."""
    data = {"limit": limit, "available": box.memory_available}
    if not box.memory_available:
        return skipped("free memory", subject, "how much RAM is free is not known", **data)
    said = f"{size(box.memory_available)} of RAM are free; a node here may store {size(limit)}"
    if box.memory_available < BASE:
        fix = f"free some memory: a node needs {size(BASE)} before it stores anything"
        return failed("free memory", subject, said, fix, **data)
    if box.memory_available < min(limit, box.room):
        fix = "stop what holds the rest, or give the node a smaller --memory-limit"
        return warning("free memory", subject, said, fix, **data)
    return ok("free memory", subject, said, **data)


def clock_source(subject: str, synchronised: bool | None, error: float | None) -> Finding:
    """Whether the kernel's clock is kept by a time server. None: the kernel does not say."""
    data = {"synchronised": synchronised, "error_seconds": error}
    if synchronised is None:
        return skipped(
            "clock source", subject, "the kernel does not say whether a time server keeps its clock", **data
        )
    if not synchronised:
        fix = (
            "run a time service here, as systemd-timesyncd or chrony: certificates and rounds go by the clock"
        )
        return warning("clock source", subject, "no time server keeps this machine's clock", fix, **data)
    near = "" if error is None else f", within {error * 1000:.0f} ms"
    return ok("clock source", subject, f"a time server keeps the clock{near}", **data)


def proxy(subject: str, host: str, proxy_url: str, variable: str) -> Finding:
    """Whether gRPC would go through an HTTP proxy to reach `host`."""
    if not proxy_url:
        return ok("proxy", subject, f"no proxy is set for {host}")
    parts = urlsplit(proxy_url)
    where = parts.hostname or "an address that is none"
    shown = f"{where}:{parts.port}" if parts.port else where
    fix = f"unless that proxy lets long streams pass (CONNECT), exempt the host: no_grpc_proxy={host}"
    return warning(
        "proxy", subject, f"{variable} sends gRPC for {host} through {shown}", fix, variable=variable
    )


def proxy_for(host: str, environment: Mapping[str, str], *, loopback: bool) -> tuple[str, str]:
    """The proxy gRPC takes for `host` and the variable that says so; two empty texts: none.

    gRPC's own rule: the first of grpc_proxy, https_proxy, http_proxy in lower case, unless the host ends in
    an entry of no_grpc_proxy, or else no_proxy. For loopback the client goes without.
    """
    variable = next((v for v in ("grpc_proxy", "https_proxy", "http_proxy") if environment.get(v)), "")
    if not variable or loopback:
        return "", ""
    name = next((v for v in ("no_grpc_proxy", "no_proxy") if environment.get(v)), "")
    entries = [entry.strip() for entry in environment.get(name, "").split(",")]
    if any(entry and host.endswith(entry) for entry in entries):
        return "", ""
    return environment[variable], variable
