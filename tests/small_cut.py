"""A small model, cut by hand: layers of `h + relu(h A) B`, by the inner axis (SUM) or by rows (GATHER)."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
from onnx import TensorProto, helper

from edge_attention.core.schedule.extents import AxisSpan, take
from edge_attention.core.schedule.schedule import (
    Boundary,
    Collective,
    Constant,
    ConstantSpec,
    Contributed,
    Delivery,
    Kept,
    ModelInput,
    ModelSegment,
    Schedule,
    Step,
    TensorForm,
    Weight,
)

FLOAT = TensorProto.FLOAT
ROWS, WIDTH, INNER = 6, 8, 12


class SmallCut:
    """The model's weights, its schedule over `parts`, and its files: what the runner takes as CutFiles.

    `stages`: layers go to the parts in turn, whole, in place of being shared by all of them.
    """

    def __init__(self, folder, parts=2, layers=3, seed=0, rows=ROWS, inner=INNER, stages=False):
        rng = np.random.default_rng(seed)
        self.folder = folder
        self.folder.mkdir(exist_ok=True)
        self.layers, self.rows, self.inner = layers, rows, inner
        self.weights = {}
        for layer in range(layers):
            self.weights[f"a{layer}"] = (rng.standard_normal((WIDTH, inner)) / 3).astype(np.float32)
            self.weights[f"b{layer}"] = (rng.standard_normal((inner, WIDTH)) * 4 / inner).astype(np.float32)
        self.bias = rng.standard_normal((rows, WIDTH)).astype(np.float32)
        self.graphs, self.constants = {}, {}
        self.schedule = self._stages(parts) if stages else self._shared(parts)

    # CutFiles

    def graph(self, digest):
        return self.folder / digest

    def constant(self, digest):
        return self.folder / digest

    def weight(self, weight):
        return take(self.weights[weight.name], weight.extent)

    # The truth

    def feeds(self, seed=0):
        return {"x": np.random.default_rng(seed).standard_normal((self.rows, WIDTH)).astype(np.float32)}

    def whole(self, feeds):
        h = feeds["x"].astype(np.float64) + self.bias
        for layer in range(self.layers):
            h = h + np.maximum(h @ self.weights[f"a{layer}"], 0) @ self.weights[f"b{layer}"]
        return h

    # The schedule

    def _shared(self, parts):
        """Each layer: the parts share the inner axis, sum, and keep h. At the end each gives some rows."""
        ends = np.linspace(0, self.inner, parts + 1).astype(int)
        rows = np.linspace(0, self.rows, parts + 1).astype(int)
        inner = [
            ((AxisSpan(1, a, b, self.inner),), (AxisSpan(0, a, b, self.inner),))
            for a, b in pairwise(ends.tolist())
        ]
        form = TensorForm("float32", (self.rows, WIDTH))
        bias = self._constant("c0", self.bias)
        first = self._graph("first", [("Add", "x c", "h")], "xcab", "h s")
        middle = self._graph("middle", [("Add", "h s", "g")], "hsab", "g s2")
        steps, boundaries = [], {}
        for layer in range(self.layers):
            boundaries[f"s{layer}"] = Boundary(form, Collective.SUM)
            segments = []
            for part, (a, b) in enumerate(inner):
                weights = {"a": Weight(f"a{layer}", a), "b": Weight(f"b{layer}", b)}
                if layer == 0:
                    inputs = {"x": ModelInput("x"), "c": Constant("c0"), **weights}
                    graph, kept, output = first, {"h": "h0"}, "s"
                else:
                    inputs = {"h": Kept(f"h{layer - 1}"), "s": Delivery(f"s{layer - 1}"), **weights}
                    graph, kept, output = middle, {"g": f"h{layer}"}, "s2"
                segments.append(ModelSegment(part, graph, inputs, kept, (Contributed(output, f"s{layer}"),)))
            steps.append(Step(tuple(segments)))
        boundaries["y"] = Boundary(form)
        segments = []
        for part, (start, stop) in enumerate(pairwise(rows.tolist())):
            extent = (AxisSpan(0, start, stop, self.rows),)
            inputs = {"h": Kept(f"h{self.layers - 1}"), "s": Delivery(f"s{self.layers - 1}")}
            cut = self._graph(f"last{part}", [("Add", "h s", "t")], "hs", "y", (start, stop))
            segments.append(ModelSegment(part, cut, inputs, {}, (Contributed("y", "y", extent),)))
        steps.append(Step(tuple(segments)))
        return Schedule(parts, {"x": form}, {"out": "y"}, boundaries, tuple(steps), self.graphs, {"c0": bias})

    def _stages(self, parts):
        form = TensorForm("float32", (self.rows, WIDTH))
        bias = self._constant("c0", self.bias)
        first = self._graph("whole0", [("Add", "x c", "h")], "xcab", "y", whole=True)
        middle = self._graph("whole1", [("Identity", "h", "g")], "hab", "y", whole=True)
        steps, boundaries = [], {}
        for layer in range(self.layers):
            boundaries[f"h{layer}"] = Boundary(form)
            weights = {"a": Weight(f"a{layer}"), "b": Weight(f"b{layer}")}
            if layer == 0:
                inputs, graph = {"x": ModelInput("x"), "c": Constant("c0"), **weights}, first
            else:
                inputs, graph = {"h": Delivery(f"h{layer - 1}"), **weights}, middle
            made = (Contributed("y", f"h{layer}"),)
            steps.append(Step((ModelSegment(layer % parts, graph, inputs, {}, made),)))
        results = {"out": f"h{self.layers - 1}"}
        return Schedule(parts, {"x": form}, results, boundaries, tuple(steps), self.graphs, {"c0": bias})

    def _constant(self, name, array):
        data = array.tobytes()
        digest = hashlib.sha256(data).hexdigest()
        (self.folder / digest).write_bytes(data)
        return ConstantSpec(digest, TensorForm(array.dtype.name, array.shape))

    def _graph(self, name, head, letters, outputs, rows=None, whole=False):
        """A graph of `head`, which makes h or g of its inputs, and of relu(. A) B where it takes a and b."""
        made = head[0][2]
        nodes = [helper.make_node(kind, ins.split(), [out]) for kind, ins, out in head]
        if "a" in letters:
            last = outputs.split()[-1]
            product = "m" if whole else last
            nodes += [
                helper.make_node("MatMul", [made, "a"], ["u"]),
                helper.make_node("Relu", ["u"], ["r"]),
                helper.make_node("MatMul", ["r", "b"], [product]),
            ]
            if whole:
                nodes.append(helper.make_node("Add", [made, "m"], [last]))
        initializers = []
        if rows is not None:
            ends = [
                helper.make_tensor(n, TensorProto.INT64, [1], [v]) for n, v in zip("ef", rows, strict=True)
            ]
            axes = helper.make_tensor("axes", TensorProto.INT64, [1], [0])
            nodes.append(helper.make_node("Slice", [made, "e", "f", "axes"], [outputs]))
            initializers = [*ends, axes]
        graph = helper.make_graph(
            nodes,
            "segment",
            [
                helper.make_tensor_value_info(n, FLOAT, ["p", "q"] if n in "ab" else ["n", WIDTH])
                for n in letters
            ],
            [helper.make_tensor_value_info(n, FLOAT, ["rows", WIDTH]) for n in outputs.split()],
            initializers,
        )
        opsets = [helper.make_opsetid("", 21)]
        data = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
        digest = hashlib.sha256(data).hexdigest()
        (self.folder / digest).write_bytes(data)
        self.graphs[name] = digest
        return name
