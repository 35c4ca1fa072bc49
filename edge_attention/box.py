"""Measures the machine this process runs on. Linux: from /proc and /sys; elsewhere less is known."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

from edge_attention.core.messages.box import Box
from edge_attention.version import VERSION
from edge_attention.wire.methods import KEEPALIVE_SECONDS

__all__ = ["PACKAGES", "describe", "software", "usable_memory"]

PACKAGES = ("onnxruntime", "grpcio", "protobuf", "numpy")
"""Of these both ends of a connection tell each other the version."""

_MODULES = {"onnxruntime": "onnxruntime", "grpcio": "grpc", "protobuf": "google.protobuf", "numpy": "numpy"}
_ALSO = {"onnxruntime": ("onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")}


def software() -> str:
    """The version of this project."""
    return VERSION


def describe(provider_asked: str | None = None, root: Path = Path("/")) -> Box:
    """This machine, as it is now.

    `provider_asked` is what this process was told to run graphs on; None: it runs none, and does not load
    ONNX Runtime for this. `root` is where /proc and /sys lie, for tests.
    """
    providers: tuple[str, ...] = ()
    if provider_asked is not None:
        from edge_attention.providers import available

        providers = available()
    groups = list(_groups(root))
    # Linux' own word; 0 where there is none.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    return Box(
        id=_id(root),
        time_seconds=time.time(),
        processors=os.cpu_count() or 0,
        usable_processors=usable,
        processor_limit=min(filter(None, map(_processors, groups)), default=0.0),
        memory=_memory(root, "MemTotal"),
        memory_available=_memory(root, "MemAvailable"),
        memory_limit=min(filter(None, map(_limit, groups)), default=0),
        provider_asked=provider_asked or "",
        providers=providers,
        versions=_versions(),
        keepalive_seconds=KEEPALIVE_SECONDS,
    )


def usable_memory(root: Path = Path("/")) -> int:
    """Bytes this process may come to use: the machine's memory or its control groups' limit, what is less."""
    return describe(root=root).room or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@cache
def _versions() -> Mapping[str, str]:
    """Looked up once: what is installed later is not what runs."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        if (version := _loaded(package) or _installed(package)) is not None:
            found[package] = version
    return MappingProxyType(found)


def _loaded(package: str) -> str | None:
    """What the package says of itself, where this process has it loaded."""
    version = getattr(sys.modules.get(_MODULES[package]), "__version__", None)
    return version if isinstance(version, str) else None


def _installed(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version  # it reads mails: 1 MB

    for name in (package, *_ALSO.get(package, ())):
        with contextlib.suppress(PackageNotFoundError):
            return version(name)
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _number(text: str) -> int:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() else 0


def _id(root: Path) -> str:
    """Hashed: nobody needs the machine's own, and it is not to be known by it elsewhere."""
    boot = _text(root / "proc/sys/kernel/random/boot_id").strip()
    return hashlib.sha256(b"edge-attention box " + boot.encode()).hexdigest()[:16] if boot else ""


def _memory(root: Path, what: str) -> int:
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == what:
            return _number(rest.strip().removesuffix("kB")) * 1024
    return 0


def _groups(root: Path) -> Iterator[Path]:
    """The folders of this process's control groups and of those above it: the least of them is what counts.

    In a container the path in /proc is often the host's, and the container's own group lies at the top.
    """
    top = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        # Version 2 has no controllers in the line; of version 1 each has a tree of its own.
        for name in {"cpu", "memory"} & set(controllers.split(",")) if controllers else {""}:
            base = top / name
            folder = base / path.strip("/")
            while True:
                yield folder
                if folder == base or base not in folder.parents:
                    break
                folder = folder.parent


def _processors(group: Path) -> float:
    quota, _, period = _text(group / "cpu.max").strip().partition(" ")
    if not quota:
        quota, period = _text(group / "cpu.cfs_quota_us").strip(), _text(group / "cpu.cfs_period_us")
    return _number(quota) / (_number(period) or 100_000)


def _limit(group: Path) -> int:
    limit = _number(_text(group / "memory.max")) or _number(_text(group / "memory.limit_in_bytes"))
    # Version 1 writes a number near 2**63 where there is no limit.
    return limit if limit < 2**60 else 0
