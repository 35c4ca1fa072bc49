"""What a trained model says of rows: run here, on rows that are here; or asked of the nodes with the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edge_attention.core.arrays import as_numbers
from edge_attention.core.errors import InvalidArgument, InvalidGraph, InvalidTensor
from edge_attention.core.keywords import hint
from edge_attention.core.messages.training import PredictResponse
from edge_attention.core.printable import RUNTIME_WORDS
from edge_attention.core.tensors import Array
from edge_attention.jobs import values

__all__ = ["Prediction", "Rows", "flattened", "joined", "outputs_told", "predicted"]

Rows = Mapping[str, Array | Mapping[str, Array]]
"""Input -> array, a row a sample; of a fusion run also node -> input -> array."""
CHUNK = 1024
"""Rows that run through the model at a time."""
PRESENT = "/present"
"""Ends the name of an input that says whether a sample has what a node has (graphs/models/fused_model.py)."""
_TYPES: Mapping[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


class Prediction(dict[str, Array]):
    """A model's outputs by name, a row a sample.

    Attributes:
        version: of the parameters.
        mass: of samples on nodes: the share of attention that each node's tokens received, the mean.
        absent: how many of the samples a node lacks, of those that lack some.
    """

    def __init__(
        self,
        outputs: Mapping[str, Array],
        version: int,
        mass: Mapping[str, float] | None = None,
        absent: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(outputs)
        self.version = version
        self.mass = dict(mass or {})
        self.absent = dict(absent or {})

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in self.items())
        return f"<Prediction of version {self.version}: {shapes}>"


def joined(parts: Sequence[tuple[int, PredictResponse]]) -> Prediction:
    """What several calls have answered, as one; each with the number of its samples.

    Raises:
        InvalidArgument: meanwhile another version became the latest.
    """
    first = parts[0][1]
    if {reply.version for _, reply in parts} != {first.version}:
        raise InvalidArgument("a new version was committed meanwhile; choose one by its number")
    total = sum(count for count, _ in parts)
    outputs = {name: np.concatenate([reply.outputs[name] for _, reply in parts]) for name in first.outputs}
    mass = {n: sum(c * reply.mass.get(n, 0.0) for c, reply in parts) / total for n in first.mass}
    absent: dict[str, int] = {}
    for _, reply in parts:
        for node, count in reply.absent.items():
            absent[node] = absent.get(node, 0) + count
    return Prediction(outputs, first.version, mass, absent)


def predicted(model: bytes, rows: Rows) -> dict[str, Array]:
    """The outputs of the ONNX file `model` for `rows`. Blocks.

    Outputs that need an input which `rows` lack, as a loss needs labels, are left out where others do not.

    Raises:
        InvalidArgument: an input lacks that all outputs need, or there is none of that name.
        InvalidTensor: an array is not what its input takes.
        InvalidGraph: the file cannot be run here.
    """
    from edge_attention.graphs.reading import read_graph, read_needed

    checked = read_graph(model, "the trained model")
    session = _session(checked.data)
    takes = session.get_inputs()
    feeds = _feeds(takes, rows)
    if lacking := [value.name for value in takes if value.name not in feeds]:
        needs = outputs_told(checked.data)
        told = [name for name, inputs in needs.items() if inputs and inputs.isdisjoint(lacking)]
        if not told:
            raise InvalidArgument(
                f"rows lack {', '.join(lacking)}, which the model takes besides, for all that it says"
            )
        session = _session(read_needed(checked.data, "the trained model", lambda outputs: told)[0])
        feeds = {value.name: feeds[value.name] for value in session.get_inputs()}
    count = len(next(iter(feeds.values())))
    names = [value.name for value in session.get_outputs()]
    try:
        found: list[list[Any]] = [
            session.run(names, {name: array[at : at + CHUNK] for name, array in feeds.items()})
            for at in range(0, count, CHUNK)
        ]
    except Exception as error:
        raise InvalidTensor(
            f"the trained model cannot be run on these rows: {str(error)[:RUNTIME_WORDS]}"
        ) from None
    return {name: np.concatenate([np.atleast_1d(part[i]) for part in found]) for i, name in enumerate(names)}


def outputs_told(model: bytes) -> dict[str, frozenset[str]]:
    """Of each output of a file that was read the inputs that it needs."""
    from edge_attention.graphs.reading.fields import new_model
    from edge_attention.graphs.reading.needed import inputs_by_output

    parsed = new_model()
    parsed.ParseFromString(model)
    return inputs_by_output(parsed.graph)


def _session(model: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise InvalidGraph(f"ONNX Runtime refused the trained model: {str(error)[:RUNTIME_WORDS]}") from None


def flattened(rows: Rows) -> dict[str, Array]:
    """`rows` as arrays by the model's inputs, of a node `<node>/<input>`.

    Raises:
        InvalidArgument: what is to be a name is none.
        InvalidTensor: what is to be an array is none.
    """
    given: dict[str, Any] = {}
    for name, value in rows.items():
        called = values.text(name, "a name in rows")
        if isinstance(value, Mapping):
            within = f"a name in rows[{called!r}]"
            given |= {f"{called}/{values.text(key, within)}": each for key, each in value.items()}
        else:
            given[called] = value
    return {name: as_numbers(value, f"rows[{name!r}]") for name, value in given.items()}


def _feeds(inputs: Sequence[Any], rows: Rows) -> dict[str, Array]:
    """What of the session's inputs `rows` give, all of one length."""
    given = flattened(rows)
    takes = {value.name: value for value in inputs}
    for name in given:
        if name not in takes:
            wanted = ", ".join(n for n in takes if not n.endswith(PRESENT))
            raise InvalidArgument(
                f"rows[{name!r}]: the model has no input {name!r}{hint(name, takes)}; it takes {wanted}"
            )
    if not given:
        raise InvalidArgument(f"there are no rows; the model takes {', '.join(takes)}")
    feeds = {name: _array(name, takes[name], value) for name, value in given.items()}
    counts = {name: len(array) for name, array in feeds.items()}
    if len(set(counts.values())) != 1:
        shown = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        raise InvalidTensor(f"the inputs have several numbers of rows ({shown}); give a row a sample in each")
    count = next(iter(counts.values()))
    if not count:
        raise InvalidTensor("the inputs have no rows")
    return _with_absent(takes, feeds, count)


def _with_absent(takes: Mapping[str, Any], feeds: dict[str, Array], count: int) -> dict[str, Array]:
    """With zeros for all of a node that was left out, where the model knows of samples that lack one."""
    for name in takes:
        if not name.endswith(PRESENT) or name in feeds:
            continue
        node = name.removesuffix(PRESENT)
        own = [each for each in takes if each.startswith(f"{node}/") and each != name]
        there = any(each in feeds for each in own)
        feeds[name] = np.full(count, float(there), np.float32)
        for each in () if there else own:
            shape = [count, *(size if isinstance(size, int) else 1 for size in takes[each].shape[1:])]
            feeds[each] = np.zeros(shape, _TYPES.get(takes[each].type, np.float32))
    return feeds


def _array(name: str, takes: Any, array: Array) -> Array:
    wanted = _TYPES.get(takes.type)
    shape = tuple(takes.shape)
    if wanted is None or not shape:
        what = takes.type if wanted is None else "one number for all rows"
        raise InvalidTensor(
            f"input {name!r} takes {what}, which is not given as rows; save the model (run.save_onnx, "
            "edge-attention train export RUN --onnx FILE) and run it with ONNX Runtime"
        )
    fits = array.ndim == len(shape) and all(
        not isinstance(want, int) or want == have
        for want, have in zip(shape[1:], array.shape[1:], strict=True)
    )
    if not fits:
        inner = ", ".join(str(size) if isinstance(size, int) else "?" for size in shape[1:])
        raise InvalidTensor(
            f"rows[{name!r}] is {list(array.shape)}; the model takes [rows{', ' * bool(inner)}{inner}]"
        )
    kind = np.dtype(wanted)
    if array.dtype == kind:
        return np.ascontiguousarray(array)
    converted = array.astype(kind)
    lossless = kind.kind == "f" and array.dtype.kind in "fiub"
    if not lossless and not np.array_equal(converted, array):
        raise InvalidTensor(f"rows[{name!r}] is {array.dtype}, and not every value of it is {kind} exactly")
    return converted
