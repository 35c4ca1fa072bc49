"""What every session of ONNX Runtime here has in common, in the daemon and in the cells."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from edge_attention.core import errors
from edge_attention.core.errors import EdgeAttentionError, InvalidGraph, InvalidProgram
from edge_attention.core.printable import RUNTIME_WORDS, shown
from edge_attention.core.tensors import Array, DataType

if TYPE_CHECKING:
    from edge_attention.graphs.reading import CheckedGraph

__all__ = [
    "DTYPES",
    "Inputs",
    "Values",
    "declared",
    "give",
    "input_types",
    "limit_arena",
    "output_types",
    "require_feeds",
    "require_some",
    "run_options",
    "session_options",
    "translate",
    "values_of",
]

# ONNX Runtime's names of types, which are NumPy's but for two.
DTYPES = {f"tensor({t.value})": np.dtype(t.value) for t in DataType}
DTYPES |= {"tensor(float)": np.dtype("float32"), "tensor(double)": np.dtype("float64")}

_NO_MEMORY = ("allocate memory", "Available memory of", "bad_alloc")

FOLDED = 256 << 20
"""Bytes of one result computed from constants when a graph is loaded; what is larger waits for a run."""

# Their numbers in ONNX.
_ONNX_TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64",
}  # fmt: skip

Inputs = dict[str, tuple[np.dtype[Any], tuple[Any, ...]]]
"""Name -> dtype and shape; a dimension is a size, a name, or None."""


def limit_arena(limit: int) -> None:
    """Bound what all graphs together allocate by `limit`. Once a process, which has one allocator."""
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(info, ort.OrtArenaCfg(limit, 0, -1, -1))


def session_options(threads: int, shared_arena: bool) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # it holds each graph's whole memory, beside the arena's
    options.log_severity_level = 4  # what fails is raised, and answered to whom it concerns
    options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", str(FOLDED))
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if shared_arena:
        options.add_session_config_entry("session.use_env_allocators", "1")
    return options


Values = dict[str, Any]
"""Constants that are not in a graph's file, by name, as ONNX Runtime takes them: as they lie, not copied."""


def values_of(constants: Mapping[str, Array]) -> Values:
    return {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in constants.items()}


def give(options: Any, values: Values) -> Any:
    """`options` of a graph whose file lacks these constants, which are to stay as long as its session."""
    if values:
        options.add_external_initializers(list(values), list(values.values()))
    return options


def run_options() -> Any:
    """Options of runs; `terminate` ends the one under way."""
    options = ort.RunOptions()
    # ONNX Runtime's default. Unsaid, `run_with_iobinding` looks for it with an exception, which takes 30 us.
    options.add_run_config_entry("gpu_graph_id", "0")
    return options


def input_types(session: Any, where: str) -> Inputs:
    """What the session's graph takes. Raises InvalidGraph for what no tensor here can be."""
    inputs: Inputs = {}
    for node in session.get_inputs():
        if node.type not in DTYPES:
            raise InvalidGraph(f"{where}: nothing here is {node.type}, as its {node.name!r}")
        inputs[node.name] = (DTYPES[node.type], tuple(node.shape))
    return inputs


def declared(graph: CheckedGraph) -> Inputs:
    """What the graph takes, as its file says. Types that no tensor here has are left out."""
    types = {number: np.dtype(name) for number, name in _ONNX_TYPES.items()}
    return {name: (types[number], shape) for name, (number, shape) in graph.types.items() if number in types}


def translate(error: Exception, where: str, cls: type[EdgeAttentionError]) -> EdgeAttentionError:
    """What ONNX Runtime raised, as an error of the catalogue: `cls`, or OutOfMemory if it says that."""
    text = " ".join(str(error).split()).removeprefix("[ONNXRuntimeError] : ")
    if isinstance(error, MemoryError) or any(word in text for word in _NO_MEMORY):
        cls = errors.OutOfMemory
    return cls(f"{where}: ONNX Runtime refused it: {shown(text, RUNTIME_WORDS)}")


def output_types(session: Any) -> Inputs:
    """What the session's graph gives, as far as it is tensors."""
    known = [node for node in session.get_outputs() if node.type in DTYPES]
    return {node.name: (DTYPES[node.type], tuple(node.shape)) for node in known}


def require_feeds(
    digest: str,
    inputs: Inputs,
    outputs: Collection[str],
    feeds: Mapping[str, Array],
    wanted: Sequence[str],
    unsaid: Container[str] = (),
) -> None:
    """Raises InvalidProgram unless `feeds` are what the graph takes and `wanted` what it gives.

    Shapes of inputs `unsaid` may be any.
    """
    where = f"graph {digest[:12]}"
    for name, (dtype, shape) in inputs.items():
        array = feeds.get(name)
        if array is None:
            raise InvalidProgram(f"{where}: input {name!r} is not bound")
        if array.dtype != dtype or not (name in unsaid or _fits(array.shape, shape)):
            want, have = f"{dtype} {_dims(shape)}", "" if name in unsaid else f" {_dims(array.shape)}"
            raise InvalidProgram(f"{where}: input {name!r} must be {want}; it is {array.dtype}{have}")
    if len(feeds) > len(inputs):
        unknown = ", ".join(sorted(set(feeds) - set(inputs)))
        raise InvalidProgram(f"{where} has no input {unknown[:200]}; it has {', '.join(inputs)}")
    if not set(wanted) <= set(outputs):
        unknown = ", ".join(sorted(set(wanted) - set(outputs)))
        raise InvalidProgram(f"{where} has no output {unknown[:200]}; it has {', '.join(outputs)}")


def require_some(digest: str, inputs: Inputs, feeds: Mapping[str, Array]) -> None:
    """Raises InvalidProgram unless each of `feeds` is what the graph takes; it may take more."""
    known = {name: inputs[name] for name in feeds if name in inputs}
    require_feeds(digest, known, (), feeds, ())


def _fits(have: tuple[int, ...], want: tuple[Any, ...]) -> bool:
    fixed = [n if isinstance(size, int) else size for n, size in zip(have, want, strict=False)]
    return len(have) == len(want) and fixed == list(want)


def _dims(shape: tuple[Any, ...]) -> str:
    return "[" + ", ".join("?" if size is None else str(size)[:40] for size in shape) + "]"
