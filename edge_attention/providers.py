"""Which of ONNX Runtime's execution providers a machine uses."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import onnxruntime as ort

from edge_attention.core.errors import InvalidArgument

log = logging.getLogger(__name__)

_CPU = "CPUExecutionProvider"
_AUTO = ("cuda", "migraphx", "coreml")


def available() -> tuple[str, ...]:
    """ONNX Runtime's names of the execution providers it was built with."""
    return tuple(ort.get_available_providers())


def choose_provider(wanted: str, available: Sequence[str]) -> str:
    """ONNX Runtime's name of the execution provider to use; the CPU, with a warning, if it is not there."""
    every: list[str] = ort.get_all_providers()
    known = {name.removesuffix("ExecutionProvider").lower(): name for name in every}
    if wanted == "auto":
        return next((known[p] for p in _AUTO if known.get(p) in available), _CPU)
    if wanted not in known:
        raise InvalidArgument(f"no provider is called {wanted!r}; use auto, {', '.join(known)}")
    if known[wanted] in available:
        return known[wanted]
    have = ", ".join(available)
    log.warning("provider %s is not in this build of onnxruntime (it has %s): using the CPU", wanted, have)
    return _CPU
