"""Where this process's log goes, for a person who wants to read it: what was set up, not what was logged."""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Mapping
from pathlib import Path

from edge_attention.core.printable import shown

PLACE_WORDS = 200
"""Characters of it, as of a long path."""
_UNIT = re.compile(r"/([^/\n]+\.service)$", re.MULTILINE)


def log_place(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> str:
    """How to read what this process writes to stderr: a command, or a file."""
    name = socket.gethostname()
    try:
        out = os.fstat(2)
        if environment.get("JOURNAL_STREAM") == f"{out.st_dev}:{out.st_ino}":
            found = _UNIT.search((root / "proc/self/cgroup").read_text("utf-8", "replace"))
            unit = found[1].removesuffix(".service") if found else "edge-node"
            return shown(f"journalctl -u {unit}, on {name}", PLACE_WORDS)
        if stat.S_ISREG(out.st_mode):
            return shown(f"the file {os.readlink(root / 'proc/self/fd/2')}, on {name}", PLACE_WORDS)
    except OSError:
        pass
    try:
        first = os.stat(root / "proc/1/fd/2")
        contained = os.path.samestat(first, os.fstat(2))  # else somebody in the container reads it
    except OSError:
        contained = True
    if contained and "KUBERNETES_SERVICE_HOST" in environment:
        return f"kubectl logs {name}"
    if contained and any((root / mark).exists() for mark in (".dockerenv", "run/.containerenv")):
        return f"docker logs {name}"
    return f"what edge-node prints, on {name}"
