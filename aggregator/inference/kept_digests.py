"""Digests of a model's weights, kept beside its deployment: nothing is hashed again after a restart.

    <deployment>/digests.json   {"files": {path: [bytes, nanoseconds of its last change]}, "weights": [...]}

They count as long as the model's files are those that were hashed. A node compares what it is sent with its
digest anyway: one that is wrong is a delivery that fails, never another weight. Blocks on the disk.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aggregator.inference.calls import KnownWeight
from aggregator.store.deployments import DeploymentFolder
from aggregator.store.folder import write_durably
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.schedule.extents import AxisSpan
from edge_attention.core.schedule.schedule import TensorForm, Weight
from edge_attention.core.tensors import DataType

__all__ = ["read_digests", "write_digests"]

FILE = "digests.json"
MOST_BYTES = 64 * 1024 * 1024
"""Of the file; one that is larger is of no use. A model of 100,000 pieces has 20 MB."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


def read_digests(folder: DeploymentFolder) -> dict[Weight, KnownWeight]:
    """What is known of the weights; nothing, where the model's files have changed, or the file is damaged."""
    try:
        path = folder.path / FILE
        if path.stat().st_size > MOST_BYTES:
            return {}
        data = json.loads(path.read_bytes())
        if data["files"] != _files(folder):
            return {}
        return dict(map(_read, data["weights"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def write_digests(folder: DeploymentFolder, known: Mapping[Weight, KnownWeight]) -> None:
    """Keep them. A full disk is no reason to end anything."""
    with contextlib.suppress(OSError, EdgeAttentionError):
        text = json.dumps({"files": _files(folder), "weights": [_row(*one) for one in known.items()]})
        if len(text) <= MOST_BYTES:
            write_durably(folder.path / FILE, text.encode())


def _files(folder: DeploymentFolder) -> dict[str, list[int]]:
    base = folder.model.parent
    found = {str(path.relative_to(base)): path.stat() for path in _below(base)}
    return {name: [one.st_size, one.st_mtime_ns] for name, one in found.items()}


def _below(base: Path) -> list[Path]:
    return sorted(path for path in base.rglob("*") if path.is_file())


def _row(weight: Weight, known: KnownWeight) -> list[Any]:
    spans = [[s.axis, s.start, s.stop, s.size, s.outer, s.inner] for s in weight.extent]
    return [weight.name, spans, known.digest, known.form.dtype, list(known.form.shape)]


def _read(row: Any) -> tuple[Weight, KnownWeight]:
    name, spans, digest, dtype, shape = row
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"{digest!r} is no digest")
    extent = tuple(AxisSpan(*map(int, span)) for span in spans)
    form = TensorForm(DataType(dtype).value, tuple(map(int, shape)))
    return Weight(str(name), extent), KnownWeight(digest, form)
