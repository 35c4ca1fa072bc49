"""An attention of a file, taken out of it and run on numbers: in float32, whatever the file computes in."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import onnxruntime
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from edge_attention.core.errors import FailedPrecondition
from edge_attention.core.tensors import Array
from edge_attention.graphs.decoding.cores import AttentionCore
from edge_attention.graphs.decoding.numbers_fed import NEAR, number_feed, sizes_at
from edge_attention.graphs.decoding.step_graph import DecoderInputs, StepGraph, label
from edge_attention.graphs.decoding.written_pasts import WrittenPast
from edge_attention.graphs.onnx_builder import IR_VERSION
from edge_attention.graphs.onnx_file import first_line
from edge_attention.graphs.reading.needed import reads

__all__ = ["CoreTrial"]

_MOST_NODES = 4096
_UNSEEN = 3.0
"""What is in places of a past that no token has, yet: attention that sees them is found out."""


class CoreTrial:
    """One core of one model, run on numbers.

    Each run is of one row of a batch and one new token, behind as many tokens as the run says.

    Args:
        inputs: which inputs of the model are its ids, positions, mask and past.
    """

    def __init__(self, graph: StepGraph, inputs: DecoderInputs, core: AttentionCore) -> None:
        self._graph = graph
        self._inputs = inputs
        self._core = core
        stops = (core.queries, core.keys, core.values)
        nodes = [_widened(node) for node in graph.before([core.out], stops)]
        if len(nodes) > _MOST_NODES:
            raise FailedPrecondition(f"{label(core.node)}: its mask takes more than {_MOST_NODES} nodes")
        read = {name for node in nodes for name in reads(node)} | {core.out}
        known = graph.inputs
        self._feeds = [name for name in known if name in read]
        infos = [_wide_info(known[name]) for name in self._feeds]
        infos += [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in stops if name in read
        ]
        self._given = [name for name in stops if name in read]
        held = graph.opened.places
        tensors = [
            _wide_tensor(
                numpy_helper.from_array(graph.read(tensor.name), tensor.name)
                if tensor.name in held
                else tensor
            )
            for tensor in graph.model.graph.initializer
            if tensor.name in read
        ]
        out = helper.make_tensor_value_info(core.out, TensorProto.FLOAT, None)
        model = helper.make_model(
            helper.make_graph(nodes, "core", infos, [out], tensors),
            opset_imports=list(graph.model.opset_import),
            ir_version=min(graph.model.ir_version, IR_VERSION),
        )
        self._model = model
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        except Exception as error:
            raise FailedPrecondition(f"{label(core.node)} cannot be tried: {first_line(error)}") from None

    @property
    def signature(self) -> bytes:
        """What it computes, whatever its values are called: layers alike have the same."""
        graph = self._model.graph
        made = {name: node for node in graph.node for name in node.output}
        held = {tensor.name: tensor for tensor in graph.initializer}
        given = (self._core.queries, self._core.keys, self._core.values)
        roles = {self._inputs.mask: "mask", self._inputs.positions: "positions", self._inputs.ids: "ids"}
        roles |= {name: f"given {at}" for at, name in enumerate(given)}
        numbers: dict[str, int] = {}
        said: list[bytes] = []
        rest = [self._core.out]
        while rest:
            name = rest[-1]
            node = made.get(name)
            read = [*node.input, *sorted(reads(node) - set(node.input))] if node is not None else []
            lacking = [one for one in dict.fromkeys(read) if one and one not in numbers]
            if name not in numbers and lacking:
                rest += lacking
                continue
            rest.pop()
            if name in numbers:
                continue
            numbers[name] = len(numbers)
            if node is None:
                tensor = held.get(name)
                value = numpy_helper.to_array(tensor) if tensor is not None else None
                told = roles.get(name, "past") if value is None else f"{value.dtype}{value.shape}"
                said.append(told.encode() + (b"" if value is None else value.tobytes()))
                continue
            plain = NodeProto()
            plain.CopyFrom(node)
            plain.name = ""
            for at, one in enumerate(plain.input):
                plain.input[at] = str(numbers[one]) if one else ""
            which = list(node.output).index(name)
            del plain.output[:]
            said.append(plain.SerializeToString(deterministic=True) + str(which).encode())
        found = sha256()
        for part in said:  # with its length: what two say must not read as what others say together
            found.update(len(part).to_bytes(8, "little") + part)
        return found.digest()

    def run(self, queries: Array, keys: Array, values: Array) -> Array:
        """What comes of keys [1, groups, tokens, width] and values for the last token's queries."""
        memory, past = (keys.shape[2], NEAR) if self._core.memory else (NEAR, keys.shape[2] - 1)
        feeds = {name: self._feed(name, past, memory) for name in self._feeds}
        laid = [np.moveaxis(a, 2, along) for a, along in zip((keys, values), self._core.along, strict=True)]
        if self._core.laid:
            laid = [self._in_places(*one, past) for one in zip(self._core.laid, (keys, values), strict=True)]
        feeds |= dict(zip((self._core.queries, self._core.keys, self._core.values),
                          (queries, *laid), strict=True))  # fmt: skip
        feeds = {name: feeds[name] for name in (*self._feeds, *self._given)}
        try:
            (out,) = self._session.run(None, feeds)
        except Exception as error:
            raise FailedPrecondition(
                f"{label(self._core.node)} cannot be tried with {keys.shape[2]} tokens: {first_line(error)}"
            ) from None
        return np.asarray(out)

    def _in_places(self, written: WrittenPast, rows: Array, past: int) -> Array:
        """Keys or values [1, groups, tokens, width] in a past of more places, laid as where it is written."""
        open_sizes = sizes_at(self._graph, self._inputs, past)
        places = self._graph.places(open_sizes.get(f"{written.past}.2", 0))
        tokens, shape, along = rows.shape[2], list(written.shape), written.along
        if tokens > places:
            raise FailedPrecondition(f"{written.past[:80]!r} has {places} places, and {tokens} are asked for")
        filled = np.full((places, rows.size // tokens), _UNSEEN, np.float32)
        filled[:tokens] = np.moveaxis(rows, 2, 0).reshape(tokens, -1)
        del shape[along]
        return np.moveaxis(filled.reshape(places, *shape), 0, along)

    def _feed(self, name: str, past: int, memory: int) -> Array:
        fed = number_feed(self._graph, self._inputs, name, past, memory)
        return fed.astype(np.float32) if fed.dtype == np.float16 else fed


_WIDE: dict[int, int] = {TensorProto.FLOAT16: TensorProto.FLOAT, TensorProto.BFLOAT16: TensorProto.FLOAT}
"""A core is tried in float32 whatever it computes in: what it is shows to more digits."""


def _widened(node: NodeProto) -> NodeProto:
    """The node, and graphs inside it, of float32 where it is of float16."""
    wide = NodeProto()
    wide.CopyFrom(node)
    for attribute in wide.attribute:
        if attribute.name in ("to", "dtype") and attribute.i in _WIDE:
            attribute.i = _WIDE[attribute.i]
        if attribute.HasField("t"):
            attribute.t.CopyFrom(_wide_tensor(attribute.t))
        if attribute.HasField("g"):
            inner = [_widened(one) for one in attribute.g.node]
            del attribute.g.node[:]
            attribute.g.node.extend(inner)
            tensors = [_wide_tensor(one) for one in attribute.g.initializer]
            del attribute.g.initializer[:]
            attribute.g.initializer.extend(tensors)
            del attribute.g.value_info[:]
            for value in (*attribute.g.input, *attribute.g.output):
                value.CopyFrom(_wide_info(value))
    return wide


def _wide_tensor(tensor: TensorProto) -> TensorProto:
    if tensor.data_type not in _WIDE:
        return tensor
    return numpy_helper.from_array(np.asarray(numpy_helper.to_array(tensor)).astype(np.float32), tensor.name)


def _wide_info(value: ValueInfoProto) -> ValueInfoProto:
    wide = ValueInfoProto()
    wide.CopyFrom(value)
    kind = value.type.tensor_type.elem_type
    if kind in _WIDE:
        wide.type.tensor_type.elem_type = _WIDE[kind]
    return wide
