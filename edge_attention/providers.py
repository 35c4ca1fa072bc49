"""Which of ONNX Runtime's execution providers a machine uses, and for which graphs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import onnxruntime as ort

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.printable import RUNTIME_WORDS
from edge_attention.graphs.attention import library

log = logging.getLogger(__name__)

_CPU = "CPUExecutionProvider"
_PROBE = "attention_scores"
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


def working_provider(wanted: str) -> str:
    """ONNX Runtime's name of the provider to use: what `choose_provider` says, if a graph really opens on it.

    That a build has a provider does not mean that its libraries and a device are here, and ONNX Runtime then
    takes the CPU without a word that a program could read.
    """
    chosen = choose_provider(wanted, ort.get_available_providers())
    if chosen == _CPU:
        return chosen
    try:
        session = ort.InferenceSession(library.load(_PROBE), providers=[chosen, _CPU])
        why = (
            "" if chosen in session.get_providers() else "its libraries or the device are missing, see above"
        )
    except Exception as error:
        why = " ".join(str(error).split())[-RUNTIME_WORDS:]
    if not why:
        return chosen
    log.warning("provider %s does not work here (%s): using the CPU", chosen, why)
    return _CPU


def open_session(data: bytes, options: Callable[[], Any], provider: str, where: str) -> Any:
    """A session of the graph in `data` on `provider`; on the CPU, with a warning, if that refuses it.

    ONNX Runtime itself gives the CPU only what a provider leaves; some take nodes that they then cannot
    compile (OpenVINO those whose rank it cannot tell).
    """
    if provider != _CPU:
        try:
            return ort.InferenceSession(data, options(), providers=[provider, _CPU])
        except Exception as error:
            text = " ".join(str(error).split())
            log.warning("%s: %s cannot run it, the CPU does: %s", where, provider, text[-RUNTIME_WORDS:])
    return ort.InferenceSession(data, options(), providers=[_CPU])
