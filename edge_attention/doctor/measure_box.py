"""Measures this machine for the doctor: packages, ONNX Runtime, accelerators, who keeps the clock."""

from __future__ import annotations

import ctypes
import importlib.metadata
import logging
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge_attention import box
from edge_attention.core.errors import EdgeAttentionError
from edge_attention.core.printable import RUNTIME_WORDS
from edge_attention.doctor.box_findings import Trial
from edge_attention.graphs.attention import library

_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)[\s(]*([<>=!~0-9.,\s]*)")
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
_UNSYNCHRONISED = 0x0040  # STA_UNSYNC


def required() -> dict[str, str]:
    """Versions of `box.PACKAGES` that this release needs, from its own metadata: as `>=6.31.1,<8`."""
    found = {}
    for requirement in importlib.metadata.requires("edge-attention") or ():
        match = _REQUIREMENT.match(requirement.partition(";")[0])
        if match is not None and match[1] in box.PACKAGES and "extra ==" not in requirement:
            found[match[1]] = "".join(match[2].split())
    return found


def devices(root: Path = Path("/")) -> tuple[str, ...]:
    """Accelerators the machine is seen to have, whatever is installed for them."""
    nvidia = ("dev/nvidiactl", "dev/nvidia0", "dev/nvhost-gpu")
    return ("nvidia",) if any((root / name).exists() for name in nvidia) else ()


def try_runtime(wanted: str) -> Trial:
    """Run a query over three tokens through the attention graph, on the provider a node would choose."""
    try:
        import onnxruntime as ort

        from edge_attention.providers import available, choose_provider
    except ImportError as error:
        return Trial(wanted, problem=f"onnxruntime cannot be imported: {error}")
    there = available()
    logger = logging.getLogger(choose_provider.__module__)
    before, logger.disabled = logger.disabled, True  # what it would warn of is a finding
    try:
        chosen = choose_provider(wanted, there)
    except EdgeAttentionError:
        return replace(try_runtime("cpu"), wanted=wanted, known=False)
    finally:
        logger.disabled = before
    random = np.random.default_rng(0)
    q = random.standard_normal((1, 2, 8), np.float32)
    keys, values = np.zeros((2, 1, 1, library.TILE, 8), np.float32)
    keys[0, 0, :3], values[0, 0, :3] = random.standard_normal((2, 3, 8), np.float32)
    feeds = {
        "q": q,
        "keys": keys,
        "values": values,
        "scale": np.asarray(0.5, np.float32),
        "lo": np.zeros(1, np.int64),
        "hi": np.full(1, 3, np.int64),
    }
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    began = time.perf_counter()
    try:
        providers = list(dict.fromkeys([chosen, "CPUExecutionProvider"]))
        session = ort.InferenceSession(library.load("attention_decode"), options, providers=providers)
        out, lse = session.run(["out", "lse"], feeds)
    except Exception as error:
        return Trial(wanted, chosen, available=there, problem=" ".join(str(error).split())[:RUNTIME_WORDS])
    scores = 0.5 * q[0] @ keys[0, 0, :3].T
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    right = (weights / weights.sum(-1, keepdims=True)) @ values[0, 0, :3]
    right_lse = np.log(weights.sum(-1)) + scores.max(-1)
    off = max(float(np.abs(out[0] - right).max()), float(np.abs(lse[0] - right_lse).max()))
    used = session.get_providers()[0]
    return Trial(wanted, chosen, used, there, time.perf_counter() - began, off)


class _Timex(ctypes.Structure):
    """struct timex of adjtimex(2), as far as it is read; what follows is room for the rest."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    )


def clock_source() -> tuple[bool | None, float | None]:
    """Whether a time server keeps the kernel's clock, and its largest error in seconds; None: not told."""
    state = _Timex()
    try:
        answer = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(state))
    except (OSError, AttributeError):
        return None, None
    if answer < 0:
        return None, None
    synchronised = answer != _TIME_ERROR and not state.status & _UNSYNCHRONISED
    return synchronised, state.maxerror / 1e6 if synchronised else None
