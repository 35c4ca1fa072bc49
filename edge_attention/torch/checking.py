"""Whether a file answers what its module answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NotImplemented_
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from edge_attention.core.errors import InvalidArgument, InvalidGraph
from edge_attention.graphs.models.floats import to_float32
from edge_attention.graphs.onnx_file import first_line
from edge_attention.torch.trying import tensors_of

__all__ = ["NO_SAMPLES", "answer", "differs", "require_module"]

NO_SAMPLES = (
    "If axis 0 of an input does not count samples (offsets of an EmbeddingBag, say), give batch='' and name "
    "what is open in dynamic"
)


def require_module(module: Any) -> None:
    """Raises InvalidArgument where it is no module, as where it is the class of one."""
    if isinstance(module, nn.Module):
        return
    if isinstance(module, type):
        raise InvalidArgument(
            f"module is the class {module.__name__}; give one of it, as {module.__name__}()"
        )
    raise InvalidArgument(f"module is {type(module).__name__}; it must be a torch.nn.Module")


def answer(
    module: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any]
) -> tuple[list[Tensor], Any]:
    """The tensors that `module` returns, in order, and what it returns them in.

    Raises:
        InvalidGraph: it cannot be called so, or returns no tensor.
    """
    try:
        returned = module(*arguments, **keywords)
    except Exception as error:
        raise InvalidGraph(
            f"{type(module).__name__}: it cannot be called with the example: {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error
    tensors = [leaf for leaf in pytree.tree_leaves(returned) if isinstance(leaf, Tensor)]
    if not tensors:
        raise InvalidGraph(f"{type(module).__name__}: it returns no tensor; return what is to be an output")
    return tensors, returned


def differs(
    file: Path,
    module: nn.Module,
    called: tuple[tuple[Any, ...], dict[str, Any]],
    feeds: Mapping[str, Tensor],
    axes: Sequence[Mapping[int, str]],
    batch: str,
) -> float:
    """The largest difference of the file's answers and the module's, relative to the largest value.

    To the example and, where dimension 0 is open, to one with a row more: what was taken for constant shows.

    Raises:
        InvalidGraph: ONNX Runtime cannot run the file.
    """
    try:
        return _differs(str(file), module, called, feeds, axes, batch)
    except InvalidGraph:
        raise
    except Exception as error:  # ONNX Runtime's own
        # It has few operators in bfloat16, and lacks some in float64.
        if isinstance(error, NotImplemented_) and to_float32(model := onnx.load(file)):
            same, fed = pytree.tree_map_only(Tensor, _in_float32, (called, dict(feeds)))
            return _differs(model.SerializeToString(), _InFloat32(module), same, fed, axes, batch)
        raise InvalidGraph(
            f"{type(module).__name__}: ONNX Runtime cannot run the file: {first_line(error)}"
        ) from error


class _InFloat32(nn.Module):  # type: ignore[misc, unused-ignore]
    """A module with all its tensors in float32, which is how it trains."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._of = [module]  # which is not to be a part of this one
        self._tensors = {place: _in_float32(tensor) for place, tensor in tensors_of(module).items()}

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        return functional_call(self._of[0], self._tensors, arguments, keywords, tie_weights=False)


def _in_float32(tensor: Tensor) -> Tensor:
    return tensor.detach().float() if tensor.is_floating_point() else tensor.detach()


def _differs(
    source: str | bytes,
    module: nn.Module,
    called: tuple[tuple[Any, ...], dict[str, Any]],
    feeds: Mapping[str, Tensor],
    axes: Sequence[Mapping[int, str]],
    batch: str,
) -> float:
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    read = {value.name for value in session.get_inputs()}
    found = _difference(session, module, called, feeds, read)
    leaves, shape = pytree.tree_flatten(called)
    if batch and any(of.get(0) == batch for of in axes):
        longer = [
            torch.cat([leaf, leaf[:1]]) if of.get(0) == batch else leaf
            for leaf, of in zip(leaves, axes, strict=True)
        ]
        names = iter(feeds)
        more = {next(names): leaf for leaf in longer if isinstance(leaf, Tensor)}
        again = pytree.tree_unflatten(longer, shape)
        try:
            module(*again[0], **again[1])
        except Exception as error:
            raise InvalidGraph(
                f"{type(module).__name__}: axis 0 of its inputs was to be open, as '{batch}', and with a "
                f"row more than it fails: {type(error).__name__}: {first_line(error)}; look for "
                "a view, reshape or loop with the example's number, or export it fixed, with batch=''. "
                f"{NO_SAMPLES}"
            ) from error
        found = max(found, _difference(session, module, again, more, read))
    return found


def _difference(
    session: Any,
    module: nn.Module,
    called: tuple[tuple[Any, ...], dict[str, Any]],
    feeds: Mapping[str, Tensor],
    read: set[str],
) -> float:
    expected, _ = answer(module, *called)
    given = {name: _array(tensor) for name, tensor in feeds.items() if name in read}
    worst = 0.0
    for one, other in zip(session.run(None, given), expected, strict=True):
        theirs = _array(other)
        if one.shape != theirs.shape:
            return float("inf")
        if not one.size:
            continue
        ours, theirs = one.astype(np.float64), theirs.astype(np.float64)
        both = np.isfinite(ours) & np.isfinite(theirs)
        if not np.array_equal(ours[~both], theirs[~both], equal_nan=True):
            return float("inf")
        if both.any():
            scale = max(float(np.abs(theirs[both]).max()), 1e-6)
            worst = max(worst, float(np.abs(ours[both] - theirs[both]).max()) / scale)
    return worst


def _array(tensor: Tensor) -> Any:
    plain = tensor.detach().cpu()
    return (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
