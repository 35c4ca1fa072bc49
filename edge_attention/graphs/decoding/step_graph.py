"""A decoder's file as it is being rewritten: who makes and who reads what, and what a value depends on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnx.inliner import inline_local_functions

from edge_attention.core.errors import FailedPrecondition, InvalidGraph
from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.joined_inputs import joined_along
from edge_attention.graphs.axes.model_reading import OpenModel
from edge_attention.graphs.decoding.fused_pasts import joined_before
from edge_attention.graphs.onnx_file import first_line
from edge_attention.graphs.reading.needed import reads

__all__ = ["ATTENTION", "BESIDE", "DOMAIN", "ONE_GRAPH", "DecoderInputs", "StepGraph", "both_in_one", "label"]

DOMAIN, ATTENTION = "edge_attention", "CachedAttention"
"""The operator that stands for attention over what is stored. No segment that nodes are sent has it."""

BESIDE = "a decoder beside an encoder is deployed with that: edge-attention deploy ENCODER --decoder FILE"
ONE_GRAPH = (
    "it is an encoder and its decoder in one graph: export them as two, the decoder with a past "
    "(`optimum-cli export onnx --task text2text-generation-with-past`, or "
    "automatic-speech-recognition-with-past), and deploy them by edge-attention deploy ENCODER --decoder FILE"
)
POSITIONS = "position_ids"
_COUNTED = ("position", "past", "offset", "start", "len")
_SIZES = ("Shape", "Size")


@dataclass(frozen=True)
class DecoderInputs:
    """What the inputs of a decoder are. Empty: it has none of that kind.

    Attributes:
        where: the input that has positions once it is rewritten, `positions` where there is one.
        states: what an encoder made, f32 [batch, tokens, width], and `states_mask`, which of it is padding.
        along: by past the axis that has tokens.
    """

    ids: str
    positions: str
    where: str
    mask: str
    pasts: tuple[str, ...]
    states: str = ""
    states_mask: str = ""
    along: Mapping[str, int] = field(default_factory=dict)

    def counts(self, name: str, rank: int) -> bool:
        """Whether an input of whole numbers says how many tokens there are before: positions, or by its name
        a number, or a row of them, for all of a batch."""
        return name == self.positions or (rank < 2 and any(word in name for word in _COUNTED))


@dataclass(eq=False)
class StepGraph:
    """The nodes of a model's graph, which change; `opened` is the model as it was read.

    `written`: pasts that have places, in which new keys and values are written: nothing is joined to them.
    """

    opened: OpenModel
    model: ModelProto
    nodes: list[NodeProto] = field(default_factory=list)
    made: int = 0
    added: dict[str, Array] = field(default_factory=dict)
    written: frozenset[str] = frozenset()

    @classmethod
    def of(cls, opened: OpenModel) -> StepGraph:
        """Raises InvalidGraph: its functions cannot be inlined."""
        model = ModelProto()
        model.CopyFrom(opened.model)
        if model.functions:
            try:
                model = inline_local_functions(model)
            except Exception as error:  # whatever its C++ half raises
                raise InvalidGraph(f"the model's functions cannot be inlined: {first_line(error)}") from None
        for node in model.graph.node:
            node.domain = "" if node.domain == "ai.onnx" else node.domain
        graph = cls(opened, model, _without_passing(model.graph))
        inputs = set(graph.inputs)
        plain = [
            one for node in graph.nodes for one in joined_before(node, inputs, graph.constant, graph.name)
        ]
        if len(plain) > len(graph.nodes):
            graph.nodes = plain
            read = ModelProto()
            read.CopyFrom(graph.model)
            del read.graph.node[:]
            read.graph.node.extend(plain)
            graph.opened = replace(opened, model=read)
        return graph

    @property
    def inputs(self) -> dict[str, ValueInfoProto]:
        """By name, without those that have a value in the file."""
        held = self.initializers
        return {value.name: value for value in self.model.graph.input if value.name not in held}

    @property
    def initializers(self) -> set[str]:
        return {tensor.name for tensor in self.model.graph.initializer}

    @property
    def outputs(self) -> list[str]:
        return [value.name for value in self.model.graph.output]

    def makers(self) -> dict[str, NodeProto]:
        return {name: node for node in self.nodes for name in node.output if name}

    def shape(self, name: str) -> tuple[int, ...]:
        """Of an input; what is open is 0."""
        return tuple(dim.dim_value for dim in self.inputs[name].type.tensor_type.shape.dim)

    def places(self, left_open: int) -> int:
        """Of pasts that are written in: as many as the file fixes, or `left_open`."""
        return next((size for name in sorted(self.written) if (size := self.shape(name)[2])), left_open)

    def tokens_at(self) -> dict[str, int]:
        """By input the axis along which something is joined to it: of tokens."""
        sizes = {name: self.shape(name) for name in self.inputs}
        return joined_along(self.nodes, sizes)

    def read(self, name: str) -> Array:
        """All of an initializer, of the file or added since."""
        added = self.added.get(name)
        return self.opened.read(name) if added is None else added

    def decoder_inputs(self) -> DecoderInputs:
        """What its inputs are, by type, rank and, of whole numbers, by name.

        Raises:
            FailedPrecondition: it is no decoder with a past, or has inputs that are not known here.
        """
        if both_in_one(self.inputs):
            raise FailedPrecondition(ONE_GRAPH)
        pasts, numbers, states, masks = [], [], [], list[str]()
        for name, value in self.inputs.items():
            dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
            rank = len(value.type.tensor_type.shape.dim)
            if rank == 4 and "mask" in name:
                masks.append(name)
            elif dtype in (np.float32, np.float16) and rank == 4:
                pasts.append(name)
            elif rank == 4:
                raise FailedPrecondition(
                    f"what {name[:80]!r} has from before is {dtype.name}, and keys and values are stored "
                    "that are float32 or float16: bring the file in one of them"
                )
            elif dtype in (np.float32, np.float16) and rank == 3:
                states.append(name)
            elif dtype.kind in "ib":
                numbers.append(name)
        along = self.tokens_at()
        others = [one for one in along if len(self.shape(one)) in (3, 5) and one not in numbers]
        if others and not pasts:
            raise FailedPrecondition(
                f"its past {others[0][:80]!r} has {len(self.shape(others[0]))} dimensions: sessions take "
                "keys apart from values, of four, in which heads have an axis (as [batch, heads, tokens, "
                "width]); export it so"
            )
        if not pasts:
            remedy = f"; {BESIDE}" if states else ""
            raise FailedPrecondition(f"it has no inputs of keys and values of earlier tokens{remedy}")
        flat = [name for name in numbers if len(self.shape(name)) == 2]
        if len(states) > 1:
            raise FailedPrecondition(f"of {', '.join(states)[:160]} one may be what an encoder made")
        beside = [name for name in flat if states and "mask" in name and "encoder_" in _plain(name)]
        flat = [name for name in flat if name not in beside]
        masks += [name for name in flat if "mask" in name]
        positions = [name for name in flat if "position" in name]
        ids = [name for name in flat if name not in masks and name not in positions]
        if states and not ids:
            raise FailedPrecondition(
                f"it takes {states[0][:80]!r} in place of token ids, and sessions give tokens: put the "
                "model's embeddings (embed_tokens.onnx) before it in one file, by onnx.compose.merge_models"
            )
        if len(ids) != 1 or len(positions) > 1 or len(masks) > 1 or len(beside) > 1:
            raise FailedPrecondition(
                f"it takes {', '.join(dict.fromkeys((*flat, *masks)))[:160]}: one of them must have the "
                "tokens, and of positions and masks there may be one each"
            )
        grouped = any(node.op_type == "GroupQueryAttention" for node in self.nodes)
        self.written = frozenset(() if grouped else pasts) - along.keys()
        made = {name for node in self.nodes for name in node.output}
        where = "".join(positions) or POSITIONS
        while not positions and (where in made or where in self.initializers):
            where += "~"
        return DecoderInputs(
            ids[0], "".join(positions), where, "".join(masks), tuple(pasts), "".join(states), "".join(beside),
            {name: along.get(name, 2) for name in pasts},
        )  # fmt: skip

    # What depends on what

    def behind(self, names: Iterable[str]) -> set[str]:
        """The values that are computed from what `names` hold, not only from their sizes; these included."""
        found = set(names)
        for node in self.nodes:
            if node.op_type not in _SIZES and reads(node) & found:
                found.update(name for name in node.output if name)
        return found

    def before(self, names: Iterable[str], stops: Collection[str] = ()) -> list[NodeProto]:
        """The nodes that `names` are computed with, in order, but for what is before `stops`."""
        needed, kept = set(names) - set(stops), []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed |= reads(node) - set(stops)
        kept.reverse()
        return kept

    def prune(self, outputs: Collection[str]) -> None:
        """Only `outputs` are outputs from now on, and what they do not need is gone."""
        self.nodes = self.before(outputs)
        kept = [value for value in self.model.graph.output if value.name in outputs]
        del self.model.graph.output[:]
        self.model.graph.output.extend(kept)

    def needed_inputs(self) -> list[str]:
        """The inputs that nodes read."""
        read = {name for node in self.nodes for name in reads(node)}
        return [name for name in self.inputs if name in read]

    def in_reading_order(self, outputs: Sequence[str]) -> None:
        """Nodes stand behind what they read, and no earlier than that: what only the memory's attention reads
        stands in its layer, wherever the file had it."""
        makers, order, done = self.makers(), dict[int, NodeProto](), set[int]()
        rest = [makers[name] for name in reversed(outputs) if name in makers]
        while rest:
            node = rest[-1]
            names = [*node.input, *sorted(reads(node) - set(node.input))]
            before = [makers[n] for n in names if n in makers and id(makers[n]) not in done]
            if id(node) in done or not before:
                rest.pop()
                if id(node) not in done:
                    done.add(id(node))
                    order[id(node)] = node
                continue
            rest += reversed(before)
        self.nodes = list(order.values())

    # Changes

    def name(self, like: str) -> str:
        """A new name."""
        self.made += 1
        return f"{like}~s{self.made}"

    def constant(self, value: Array) -> str:
        """A new constant's name."""
        name = self.name("constant")
        self.added[name] = np.asarray(value)
        self.model.graph.initializer.append(numpy_helper.from_array(self.added[name], name))
        return name

    def reshaped(self, nodes: list[NodeProto], value: str, *shape: int, out: str = "") -> str:
        """Add a Reshape of `value` to `nodes`; its result's name."""
        out = out or self.name("rows")
        sizes = self.constant(np.array(shape, np.int64))
        nodes.append(helper.make_node("Reshape", [value, sizes], [out], name=out))
        return out

    def attend(
        self,
        nodes: list[NodeProto],
        queries: str,
        keys: str,
        values: str,
        groups: int,
        shared: int,
        widths: tuple[int, int],
        scale: float,
        window: int,
        memory: bool = False,
        bias: Array | None = None,
        cap: float = 0.0,
        sinks: str = "",
    ) -> str:
        """Add attention over what is stored: of queries, keys and values with one row a token, f32.

        Args:
            memory: over the session's memory, whose rows the keys and values are.
            bias: what is added to scores by distance, f32 [groups, shared, distances].
            cap: c of c tanh(score / c); 0: none.
            sinks: by head a score that takes part in the softmax and has no value, f32 [groups, shared, 1].
        """
        key_width, value_width = widths
        q = self.reshaped(nodes, queries, -1, groups, shared, key_width)
        k = self.reshaped(nodes, keys, -1, groups, key_width)
        v = self.reshaped(nodes, values, -1, groups, value_width)
        out = self.name("attended")
        biases = [] if bias is None else [self.constant(bias)]
        lse = [self.name("lse")] if sinks else []
        nodes.append(
            helper.make_node(
                ATTENTION, [q, k, v, *biases], [out, *lse], name=out, domain=DOMAIN,
                scale=float(scale), window=int(window), memory=int(memory), cap=float(cap),
            )
        )  # fmt: skip
        if not sinks:
            return out
        # exp(lse) of exp(lse) + exp(sink) is what tokens have of the weights, wherever they are stored.
        over, share, less = (self.name(word) for word in ("over", "share", "attended"))
        nodes += [
            helper.make_node("Sub", [*lse, sinks], [over], name=over),
            helper.make_node("Sigmoid", [over], [share], name=share),
            helper.make_node("Mul", [out, share], [less], name=less),
        ]
        return less

    def cast(self, nodes: list[NodeProto], value: str, dtype: str, to: str, out: str = "") -> str:
        """`value`, of `dtype`, in another one: its name. Nothing is added where they are the same."""
        if dtype == to and not out:
            return value
        out = out or self.name(to)
        number = int(helper.np_dtype_to_tensor_dtype(np.dtype(to)))
        nodes.append(helper.make_node("Cast", [value], [out], name=out, to=number))
        return out

    def dtype(self, name: str) -> str:
        """Of an input's elements."""
        kind = self.inputs[name].type.tensor_type.elem_type
        return str(np.dtype(helper.tensor_dtype_to_np_dtype(kind)).name)

    def take_float32(self, name: str) -> None:
        """An input is float32 from now on, and rounded to what it was before it is used."""
        value = next(one for one in self.model.graph.input if one.name == name)
        kind = value.type.tensor_type.elem_type
        value.type.tensor_type.elem_type = TensorProto.FLOAT
        rounded = self.name(name)
        for node in self.nodes:
            for position, read in enumerate(node.input):
                if read == name:
                    node.input[position] = rounded
        self.nodes.insert(0, helper.make_node("Cast", [name], [rounded], name=rounded, to=kind))

    def replace(self, node: NodeProto, instead: list[NodeProto]) -> None:
        """`instead` stands in the node's place."""
        at = next(index for index, one in enumerate(self.nodes) if one is node)
        self.nodes[at : at + 1] = instead

    def finished(self, inputs: Mapping[str, tuple[int | str, ...]]) -> OpenModel:
        """The model with these inputs, all int64 or as they were, and with the nodes as they are now."""
        graph = self.model.graph
        known = self.inputs
        kept = []
        for name, dims in inputs.items():
            dtype = known[name].type.tensor_type.elem_type if name in known else numpy_type()
            kept.append(helper.make_tensor_value_info(name, dtype, list(dims)))
        read = {name for node in self.nodes for name in reads(node)}
        tensors = [tensor for tensor in graph.initializer if tensor.name in read]
        del graph.input[:]
        graph.input.extend(kept)
        constants = [TensorProto.FromString(tensor.SerializeToString()) for tensor in tensors]
        del graph.initializer[:]
        graph.initializer.extend(constants)
        del graph.node[:]
        graph.node.extend(self.nodes)
        del graph.value_info[:]
        for value in graph.output:
            value.type.tensor_type.ClearField("shape")
        self.model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
        places = {name: place for name, place in self.opened.places.items() if name in read}
        return OpenModel(self.opened.path, self.model, places)


def _without_passing(graph: GraphProto) -> list[NodeProto]:
    """The nodes, without those that give their input on: an Identity, a Concat of one input, or of one and
    of constants in which there is nothing, as a past has them to which none was joined yet."""
    nothing = {tensor.name for tensor in graph.initializer if 0 in tensor.dims}
    kept_names = {value.name for value in graph.output}
    kept_names |= {name for node in graph.node for name in reads(node) - set(node.input)}  # read inside
    same: dict[str, str] = {}
    nodes = []
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = same.get(name, name)
        if node.op_type == "Constant" and any(a.HasField("t") and 0 in a.t.dims for a in node.attribute):
            nothing.update(node.output)
        if node.op_type == "Concat" and not node.domain:
            some = [name for name in node.input if name not in nothing]
            if some and len(some) < len(node.input):
                del node.input[:]
                node.input.extend(some)
        passes = node.op_type == "Identity" or (node.op_type == "Concat" and len(node.input) == 1)
        if passes and not node.domain and node.output[0] not in kept_names:
            same[node.output[0]] = node.input[0]
        else:
            nodes.append(node)
    return nodes


def both_in_one(inputs: Iterable[str]) -> bool:
    """Whether a file with inputs of these names has an encoder and its decoder: both take something."""
    names = list(inputs)
    return any(name.startswith("decoder_input") for name in names) and any(
        name.startswith(("input", "pixel")) for name in names
    )


def _plain(name: str) -> str:
    """Without what has `encoder` in it and means something else."""
    return name.replace("decoder", "")


def numpy_type() -> int:
    """ONNX's number of int64."""
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(np.int64)))


def label(node: NodeProto) -> str:
    """A node, for a person."""
    return f"{node.op_type} '{node.name or node.output[0]}'"[:120]
