"""Pasts of a fixed number of places, in which new keys and values are written: static caches.

    past [batch, heads, places, width], new [batch, heads, 1, width], where ──> the past, with what is new

Exporters write this by ScatterND behind turned axes, ScatterElements, slices or masks. So it is not read but
tried: the part of the graph between a past, what is new and where it goes is run on numbers, and what comes
of it must be the past with one row written over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnxruntime
from onnx import NodeProto, ValueInfoProto, helper, numpy_helper

from edge_attention.core.errors import FailedPrecondition
from edge_attention.graphs.axes.bound import BoundGraph
from edge_attention.graphs.decoding.numbers_fed import bound_alone, number_feed
from edge_attention.graphs.decoding.step_graph import BESIDE, DecoderInputs, StepGraph, label
from edge_attention.graphs.onnx_builder import IR_VERSION
from edge_attention.graphs.onnx_file import first_line
from edge_attention.graphs.reading.needed import reads

__all__ = ["WrittenPast", "written_pasts"]

_MOVES = frozenset({"Cast", "Expand", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_PLACES = (0, 3, 7)
"""Where it is tried that a row is written."""


@dataclass(frozen=True)
class WrittenPast:
    """What comes of a past with a row written.

    Attributes:
        past: the input.
        new: what is written, of one token for each row of a batch, heads before widths.
        value: the past with it.
        shape: of that, with so many places as it was tried with.
        along: its axis of places.
    """

    past: str
    new: str
    value: str
    shape: tuple[int, ...]
    along: int


def written_pasts(graph: StepGraph, inputs: DecoderInputs) -> dict[str, WrittenPast]:
    """By the value that has what is new. Raises FailedPrecondition: something else is done with a past."""
    if not graph.written:
        return {}
    bound = bound_alone(graph, inputs)
    found = [_Writing(graph, inputs, past, bound).found() for past in inputs.pasts if past in graph.written]
    return {one.value: one for one in found}


class _Writing:
    """How one past is written, as it is found out."""

    def __init__(self, graph: StepGraph, inputs: DecoderInputs, past: str, bound: BoundGraph) -> None:
        self._graph, self._inputs, self._past = graph, inputs, past
        self._bound = bound
        self._rng = np.random.default_rng(7)
        self._tokens = graph.behind([inputs.ids])
        self._of_past = {past}
        """The past, moved about."""
        self._node = self._meeting()

    def _meeting(self) -> NodeProto:
        """The first node that makes something of the past's numbers and of new tokens'."""
        for node in self._graph.nodes:
            if node.op_type in ("Shape", "Size") or not reads(node) & self._of_past:
                continue
            if len(node.output) == 1 and self._tokens & set(node.output):
                return node
            self._of_past.update(node.output)
        raise FailedPrecondition(f"what {self._past[:80]!r} is for is not known: nothing meets it")

    def found(self) -> WrittenPast:
        said = ""
        for new in self._candidates():
            try:
                shape, along = self._tried(new)
            except FailedPrecondition as error:
                said = said or error.message
                continue
            return WrittenPast(self._past, new, self._node.output[0], shape, along)
        of_encoder = any("encoder" in name.replace("decoder", "") for name in self._inputs.pasts)
        beside = f"; {BESIDE}" if of_encoder else ""
        raise FailedPrecondition(
            f"{label(self._node)} takes the past {self._past[:80]!r}: only pasts are known that new keys and "
            "values are joined to by a Concat over tokens, that GroupQueryAttention takes, or in which one "
            f"row is written, the token's, of [batch, heads, places, width] ({said or 'nothing is'}){beside}"
        )

    def _candidates(self) -> Iterator[str]:
        """What may be new: what the node is given of tokens, and what that was before it was moved about."""
        makers = self._graph.makers()
        (name, *more) = sorted(reads(self._node) & self._tokens - self._of_past) or [""]
        found = [] if more or not name else [name]
        while found:
            maker = makers.get(found[-1])
            before = reads(maker) & self._tokens if maker is not None else set()
            if maker is None or maker.op_type not in _MOVES or len(before) != 1:
                break
            found += before
        yield from reversed(found)

    def _tried(self, new: str) -> tuple[tuple[int, ...], int]:
        """The shape of the past with `new` written, and its axis of places."""
        graph, inputs = self._graph, self._inputs
        value = self._node.output[0]
        shape = self._bound.shape(new) if new in self._bound.specs else ()
        if math.prod(shape) != math.prod(graph.shape(self._past)[axis] for axis in (1, 3)):
            raise FailedPrecondition(f"{new[:80]!r} is not of one token's keys or values")
        nodes = graph.before([value], [new])
        read = {name for node in nodes for name in reads(node)}
        given = [one for name, one in graph.inputs.items() if name in read]
        if self._past not in read or {one.name for one in given} & {*inputs.pasts} - {self._past}:
            raise FailedPrecondition("it is of several pasts")
        kind = graph.inputs[self._past].type.tensor_type.elem_type
        model = helper.make_model(
            helper.make_graph(
                nodes, "written", [*given, helper.make_tensor_value_info(new, kind, None)],
                [ValueInfoProto(name=value)],
                [
                    numpy_helper.from_array(graph.read(tensor.name), tensor.name)
                    for tensor in graph.model.graph.initializer
                    if tensor.name in read
                ],
            ),
            opset_imports=list(graph.model.opset_import),
            ir_version=min(graph.model.ir_version, IR_VERSION),
        )  # fmt: skip
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        try:
            session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        except Exception as error:
            raise FailedPrecondition(first_line(error)) from None
        shapes = set()
        for place in _PLACES:
            feeds = {one.name: number_feed(graph, inputs, one.name, place) for one in given}
            past = feeds[self._past]
            _, heads, places, width = past.shape
            if place >= places:
                continue
            # Whole numbers that float16 has, too.
            feeds[self._past] = self._rng.integers(-1000, 1000, past.shape).astype(past.dtype)
            rows = self._rng.integers(-1000, 1000, heads * width).astype(past.dtype)
            wanted = np.moveaxis(feeds[self._past], 2, 0).reshape(places, -1).copy()
            wanted[place] = rows
            try:
                (out,) = session.run(None, feeds | {new: rows.reshape(shape)})
            except Exception as error:
                raise FailedPrecondition(first_line(error)) from None
            along = [
                axis
                for axis, size in enumerate(np.shape(out))
                if size == places and np.array_equal(np.moveaxis(out, axis, 0).reshape(places, -1), wanted)
            ]
            if not along:
                raise FailedPrecondition(f"it does not make the past with row {place} written over")
            shapes.add((tuple(map(int, np.shape(out))), along[0]))
        if len(shapes) != 1:
            raise FailedPrecondition("it has no places, or they are elsewhere for another token")
        return shapes.pop()
