"""What an attention of a file computes, found by trying it.

What is between keys, values and queries has no weights but biases by distance. It is run on numbers, and what
it gives is held against attention as a node computes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import onnxruntime
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edge_attention.core.errors import FailedPrecondition
from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.bind import bind
from edge_attention.graphs.axes.bound import BoundGraph
from edge_attention.graphs.decoding.cores import MEMORY, AttentionCore
from edge_attention.graphs.decoding.step_graph import DecoderInputs, StepGraph, label
from edge_attention.graphs.onnx_builder import IR_VERSION
from edge_attention.graphs.onnx_file import first_line
from edge_attention.graphs.reading.needed import reads

__all__ = ["FAR", "CoreForm", "CoreTrial", "bound_alone", "form_of", "sizes_at"]

FAR = 8192
"""Tokens before a row among which a window is looked for: nobody knows what the file sees beyond."""
_FAR_BYTES = 256 * 1024 * 1024
_NEAR = 9
_BIASED_FAR = 2048
"""The same of biases by distance: some files make a table of all tokens by all tokens, and others add numbers
to scores that grow with the place, and are rounded."""
_BIASED = 1024
"""Distances that have biases of their own at most, but for those that fall with each token."""
_LEANS = 1e-3
"""By so much one of two tokens alike outweighs the other where there is a bias."""
_TOLD = 12.0
"""How much less likely a token may be, as a logarithm, for its weight to be read off a softmax."""
_MOST_NODES = 4096
_CLOSE = 2e-4
"""Of what is tried on random numbers, relative to the largest: a wrong mask or scale is off by far more."""


class CoreTrial:
    """One core of one model, run on numbers.

    `inputs`: of the model. A row of the batch, a new token, and as many before it as each run says.
    """

    def __init__(self, graph: StepGraph, inputs: DecoderInputs, core: AttentionCore) -> None:
        self._graph = graph
        self._inputs = inputs
        self._core = core
        stops = (core.queries, core.keys, core.values)
        nodes = graph.before([core.out], stops)
        if len(nodes) > _MOST_NODES:
            raise FailedPrecondition(f"{label(core.node)}: its mask takes more than {_MOST_NODES} nodes")
        read = {name for node in nodes for name in reads(node)} | {core.out}
        known = graph.inputs
        self._feeds = [name for name in known if name in read]
        infos = [known[name] for name in self._feeds]
        infos += [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in stops if name in read
        ]
        self._given = [name for name in stops if name in read]
        held = graph.opened.places
        tensors = [
            numpy_helper.from_array(graph.read(tensor.name), tensor.name) if tensor.name in held else tensor
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
        memory, past = (keys.shape[2], _NEAR) if self._core.memory else (_NEAR, keys.shape[2] - 1)
        feeds = {name: self._feed(name, past, memory) for name in self._feeds}
        feeds |= dict(zip((self._core.queries, self._core.keys, self._core.values),
                          (queries, keys, values), strict=True))  # fmt: skip
        feeds = {name: feeds[name] for name in (*self._feeds, *self._given)}
        try:
            (out,) = self._session.run(None, feeds)
        except Exception as error:
            raise FailedPrecondition(
                f"{label(self._core.node)} cannot be tried with {keys.shape[2]} tokens: {first_line(error)}"
            ) from None
        return np.asarray(out)

    def _feed(self, name: str, past: int, memory: int) -> Array:
        sizes = sizes_at(self._graph, self._inputs, past, memory)
        value = self._graph.inputs[name]
        shape = [sizes.get(f"{name}.{axis}", dim.dim_value)
                 for axis, dim in enumerate(value.type.tensor_type.shape.dim)]  # fmt: skip
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if name in (self._inputs.mask, self._inputs.states_mask):
            return np.ones(shape, dtype)
        return np.full(shape, past if name == self._inputs.positions else 0, dtype)


def sizes_at(graph: StepGraph, inputs: DecoderInputs, past: int, memory: int = _NEAR) -> dict[str, int]:
    """What each open dimension of the inputs is for one new token, with `past` before it, and so many of the
    memory."""
    sizes: dict[str, int] = {}
    for name, value in graph.inputs.items():
        dims = value.type.tensor_type.shape.dim
        for axis, dim in enumerate(dims):
            if dim.dim_value:
                continue
            size = 1
            if name in inputs.pasts and axis == 2:
                size = past
            elif name in (inputs.states, inputs.states_mask) and axis == 1:
                size = memory
            elif name == inputs.mask and axis == len(dims) - 1:
                size = past + 1
            sizes[f"{name}.{axis}"] = size
    return sizes


@dataclass(frozen=True, eq=False)
class CoreForm:
    """What a core is: attention of so many query heads a key head, seen at distances up to `length`."""

    shared: int
    scale: float
    window: int
    length: int
    out: tuple[int, ...]
    """The shape of what it makes for one row."""
    bias: Array | None = None
    """What is added to scores by distance, f32 [groups, shared, distances]; the last is for all beyond."""


def bound_alone(graph: StepGraph, inputs: DecoderInputs) -> BoundGraph:
    """The model for one row of one new token: shapes of what is in it."""
    sizes = sizes_at(graph, inputs, _NEAR, MEMORY)
    return bind(graph.opened.model, sizes, graph.opened.read, fused=True)


def form_of(
    graph: StepGraph,
    inputs: DecoderInputs,
    core: AttentionCore,
    queries: Sequence[int],
    known: dict[bytes, CoreForm],
) -> CoreForm:
    """Find out what a core computes.

    Args:
        queries: the shape of its queries, for one row.
        known: of cores that were tried before; gets this one.

    Raises:
        FailedPrecondition: it is not attention over all tokens before, or over a window of them.
    """
    elements = math.prod(queries)
    if elements % (core.groups * core.widths[0]):
        raise FailedPrecondition(
            f"{label(core.node)}: queries {list(queries)} are not of heads of {core.widths[0]}"
        )
    shared = elements // (core.groups * core.widths[0])
    trial = CoreTrial(graph, inputs, core)
    signature = trial.signature + repr((list(queries), core.groups, core.widths, core.memory)).encode()
    if signature not in known:
        known[signature] = _Finding(core, trial, tuple(queries), shared).form()
    return known[signature]


class _Finding:
    """What one core computes, as it is found out by trying."""

    def __init__(self, core: AttentionCore, trial: CoreTrial, queries: tuple[int, ...], shared: int) -> None:
        self._core, self._trial = core, trial
        self._queries, self._shared = queries, shared
        self._rng = np.random.default_rng(7)

    def form(self) -> CoreForm:
        core = self._core
        scale, leans = self._scale()
        if leans:
            if core.memory:
                raise FailedPrecondition(f"{label(core.node)} favours some tokens of what the encoder made")
            far = self._most(_BIASED_FAR)
            bias = self._bias(far)
            count = bias.shape[-1]
            out = self._tried(scale, 0, {2, _NEAR, min(count, far), min(count + 1, far), far}, bias)
            return CoreForm(self._shared, scale, 0, far, out, bias)
        most = _FAR_BYTES // (4 * core.groups * sum(core.widths))
        far = core.tokens or self._most(max(min(FAR, most), _NEAR))
        window = self._window(far)
        if core.memory and window:
            raise FailedPrecondition(f"{label(core.node)} does not see all of what the encoder made")
        lengths = {core.tokens or 2, core.tokens or _NEAR, max(window, 1), min(window + 1, far), far}
        out = self._tried(scale, window, lengths)
        return CoreForm(self._shared, scale, window, far, out)

    def _most(self, far: int) -> int:
        """How many tokens it can be tried with, `far` at most: a file may have a mask of so many."""
        core = self._core

        def runs(tokens: int) -> bool:
            q, k, v = (
                np.zeros(shape, np.float32)
                for shape in (
                    self._queries,
                    (1, core.groups, tokens, core.widths[0]),
                    (1, core.groups, tokens, core.widths[1]),
                )
            )
            try:
                self._trial.run(q, k, v)
            except FailedPrecondition:
                return False
            return True

        if runs(far):
            return far
        low, high = 2, far  # with 2 it ran: the scale was found so
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if runs(middle) else (low, middle)
        # One beyond its table a file may run, with one number of it for all.
        beyond = low > 2 and not np.allclose(self._leaning(low), self._leaning(2), atol=_LEANS)
        return low - beyond

    def _leaning(self, tokens: int) -> Array:
        """By how much the last of so many tokens outweighs the one before, f64 [groups, shared]."""
        weights = np.concatenate(list(self._weights(tokens)), axis=-1)[..., -2:]
        return np.asarray(np.diff(np.log(np.maximum(weights, 1e-30)))[..., 0])

    def _tried(
        self, scale: float, window: int, lengths: set[int], bias: Array | None = None
    ) -> tuple[int, ...]:
        """Hold it against attention over so many tokens each; the shape of what it makes."""
        core = self._core
        at = f"{label(core.node)}"
        found = np.zeros(0)
        for tokens in sorted(n for n in lengths if n > 1 and core.tokens in (0, n)):
            q, k, v = self._random(tokens)
            wanted, found = self._attended(q, k, v, scale, window, bias), self._trial.run(q, k, v)
            if found.size != wanted.size:
                raise FailedPrecondition(f"{at} makes {list(found.shape)}, no row a query head")
            off = np.abs(found.reshape(wanted.shape) - wanted).max() / np.abs(wanted).max()
            if not off <= _CLOSE:
                raise FailedPrecondition(
                    f"{at} is not attention over all tokens before or over a window of them: tried with "
                    f"{tokens} tokens it is off by {off:.2g} (caps, sinks, or a bias that neither ends nor "
                    "falls alike with each token would be)"
                )
        return tuple(found.shape)

    def _attended(self, q: Array, k: Array, v: Array, scale: float, window: int, bias: Array | None) -> Array:
        core, tokens = self._core, k.shape[2]
        rows = q.reshape(core.groups, self._shared, core.widths[0]).astype(np.float64)
        scores = scale * np.einsum("gsd,gtd->gst", rows, k[0].astype(np.float64))
        if bias is not None:
            scores += bias[..., np.minimum(np.arange(tokens)[::-1], bias.shape[-1] - 1)]
        if window:
            scores[..., : max(tokens - window, 0)] = -np.inf
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        return np.asarray(np.einsum("gst,gte->gse", p, v[0].astype(np.float64)))

    def _random(self, tokens: int) -> tuple[Array, Array, Array]:
        groups, (key_width, value_width) = self._core.groups, self._core.widths
        shapes = (self._queries, (1, groups, tokens, key_width), (1, groups, tokens, value_width))
        q, k, v = (self._rng.normal(size=shape).astype(np.float32) for shape in shapes)
        return q * np.float32(2.0), k, v

    def _scale(self) -> tuple[float, bool]:
        """By what scores are multiplied; and whether tokens alike weigh differently.

        Of two tokens (or of as many as there are), how much one outweighs the others, as its key is along
        the query or against it.
        """
        core, tokens = self._core, self._core.tokens or 2
        key_width, value_width = core.widths
        one = self._rng.normal(size=key_width)
        one /= np.linalg.norm(one)
        q = np.tile(one, core.groups * self._shared).reshape(self._queries).astype(np.float32)
        k = np.zeros((1, core.groups, tokens, key_width), np.float32)
        v = np.zeros((1, core.groups, tokens, value_width), np.float32)
        v[:, :, 1] = 1
        odds = []
        for sign in (2, -2):
            k[:, :, 1] = sign * one
            weight = self._trial.run(q, k, v).astype(np.float64).reshape(-1)
            if not ((weight > 0) & (weight < 1)).all():
                raise FailedPrecondition(f"{label(core.node)} does not weigh tokens: it is no attention")
            odds.append(np.log(weight / (1 - weight) * (tokens - 1)))
        scales, leanings = (odds[0] - odds[1]) / 4, (odds[0] + odds[1]) / 2
        scale = float(np.median(scales))
        if np.ptp(scales) > 1e-3 * abs(scale) + 1e-6:
            raise FailedPrecondition(f"{label(core.node)} has heads with scales of their own")
        leans = bool(np.abs(leanings).max() > _LEANS)
        for known in (1 / math.sqrt(key_width), 1.0, key_width**-0.25, 1 / key_width):
            if math.isclose(scale, known, rel_tol=1e-4):
                return float(np.float32(known)), leans
        return float(np.float32(scale)), leans

    def _bias(self, far: int) -> Array:
        """Biases by distance, f32 [groups, shared, distances]: those of each distance, where they end; or
        those that fall alike with each token (ALiBi)."""
        tokens = min(_BIASED, far)
        weights = np.concatenate(list(self._weights(tokens)), axis=-1)
        if (weights > 0).all():
            by_distance = np.log(weights)[..., ::-1]
            by_distance = by_distance - by_distance[..., -1:]
            own = np.flatnonzero((np.abs(by_distance) > 1e-5).any(axis=(0, 1)))
            count = int(own[-1]) + 2 if own.size else 1
            if count < tokens:
                return np.ascontiguousarray(by_distance[..., :count].astype(np.float32))
        away = self._slopes(far)[..., None] * np.arange(far)
        return np.ascontiguousarray(-away.astype(np.float32))

    def _weights(self, tokens: int) -> Iterator[Array]:
        """What tokens weigh that are alike but for their distance, [groups, shared, some], by parts."""
        core, width = self._core, self._core.widths[1]
        q = np.zeros(self._queries, np.float32)
        k = np.zeros((1, core.groups, tokens, core.widths[0]), np.float32)
        for start in range(0, tokens, width):
            count = min(width, tokens - start)
            v = np.zeros((1, core.groups, tokens, width), np.float32)
            v[:, :, np.arange(start, start + count), np.arange(count)] = 1
            found = self._trial.run(q, k, v).reshape(core.groups, self._shared, width)
            yield found[..., :count].astype(np.float64)

    def _slopes(self, far: int) -> Array:
        """By how much a score falls with each token that is further away, f64 [groups, shared].

        Of the first and the last of so many tokens that the first still weighs something.
        """
        core, found, tokens = self._core, np.full((self._core.groups, self._shared), np.nan), 2
        q = np.zeros(self._queries, np.float32)
        while tokens <= far:
            k = np.zeros((1, core.groups, tokens, core.widths[0]), np.float32)
            ends = []
            for place in (0, tokens - 1):
                v = np.zeros((1, core.groups, tokens, core.widths[1]), np.float32)
                v[:, :, place] = 1
                weight = self._trial.run(q, k, v).reshape(core.groups, self._shared, core.widths[1])
                ends.append(np.log(np.maximum(weight[..., 0].astype(np.float64), 1e-30)))
            falls = ends[1] - ends[0]
            told = np.abs(falls) < _TOLD
            if not told.any():
                break
            found = np.where(told, falls / (tokens - 1), found)
            tokens *= 2
        if np.isnan(found).any():
            raise FailedPrecondition(
                f"{label(core.node)} favours some tokens so much that others weigh nothing: it is no "
                "attention"
            )
        return found

    def _window(self, far: int) -> int:
        """How many tokens a row sees of `far`; 0: all of them. By the mean of their numbers."""
        key_width, value_width = self._core.widths
        k = np.zeros((1, self._core.groups, far, key_width), np.float32)
        numbers = (np.arange(far, dtype=np.float32) / far)[:, None]
        v = np.broadcast_to(numbers, (1, self._core.groups, far, value_width))
        given = np.zeros(self._queries, np.float32), k, np.ascontiguousarray(v)
        mean = self._trial.run(*given).astype(np.float64) * far
        seen = round(2 * (far - 1 - float(mean.mean())) + 1)
        return 0 if seen >= far else max(seen, 1)
