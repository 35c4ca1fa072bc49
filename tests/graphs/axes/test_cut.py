"""Cut models, run in parts in this process, give what the whole file gives in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.schedule.extents import extent_shape
from edge_attention.core.schedule.plan import Crossing, Cut, CutPlan, Stage
from edge_attention.core.schedule.schedule import Collective, Delivery, Schedule, TensorForm
from edge_attention.core.tensors import Array
from edge_attention.graphs.axes.cut import analyse, analyse_for, cut, shared_ranges
from edge_attention.graphs.axes.cut import sizes_of as forms_sizes
from edge_attention.graphs.axes.emit import Emitted
from edge_attention.graphs.axes.in_process import InProcess, Ran
from edge_attention.graphs.axes.model_axes import Axes
from edge_attention.graphs.axes.model_reading import OpenModel, open_model
from edge_attention.graphs.axes.narrow import narrow_places
from tests.graphs.axes.random_transformers import (
    TransformerRecipe,
    feeds_of,
    recipe_of,
    sizes_of,
    transformer,
)

PLAIN = recipe_of(
    3,
    layers=2,
    batch=2,
    tokens=7,
    key_heads=3,
    group=1,
    memory=0,
    shared=False,
    mask="row",
    source="ids",
    result="hidden",
    dynamic=True,
    quantised=False,
)
SHARES = {2: (1.0, 2.0), 3: (3.0, 1.0, 2.0), 5: (1.0, 2.0, 0.0, 1.0, 3.0)}


def opened(model: onnx.ModelProto, folder: Path) -> OpenModel:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return open_model(path)


def whole(model: OpenModel, feeds: dict[str, Array]) -> dict[str, Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # It would fuse an addition with a norm, with other last bits, where the file tells it of shapes.
    session = onnxruntime.InferenceSession(
        str(model.path),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["SkipLayerNormFusion"],
    )
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, feeds), strict=True))


def ran(model: OpenModel, emitted: Emitted, feeds: dict[str, Array]) -> Ran:
    parts = InProcess(
        emitted.schedule, emitted.graphs.__getitem__, emitted.constants.__getitem__, model.piece
    )
    return parts.run(feeds)


def assert_close(ours: dict[str, Array], theirs: dict[str, Array]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].shape == value.shape
        assert ours[name].dtype == value.dtype
        largest = max(float(np.abs(value).max()), 1e-6)
        assert float(np.abs(ours[name].astype(np.float64) - value).max()) <= 1e-5 * largest, name


def one_stage(axes: Axes, cut: Cut, parts: int, crossing: Crossing = Crossing.GATHER) -> CutPlan:
    layers = range(len(narrow_places(axes)) + 1)
    return CutPlan((Stage(layers, tuple(range(parts)), cut, crossing, SHARES[parts]),))


WAYS = [(Cut.TOKENS, crossing) for crossing in Crossing] + [(Cut.HEADS, Crossing.GATHER)]


@pytest.mark.parametrize("parts", [2, 3, 5])
@pytest.mark.parametrize(("how", "crossing"), WAYS)
def test_a_cut_model_is_the_whole(tmp_path: Path, how: Cut, crossing: Crossing, parts: int) -> None:
    model = opened(transformer(PLAIN), tmp_path)
    axes = analyse(model, sizes_of(PLAIN))
    feeds = feeds_of(PLAIN, 1)
    emitted = cut(axes, one_stage(axes, how, parts, crossing))
    found = ran(model, emitted, feeds)
    assert_close(dict(found.results), whole(model, feeds))
    again = ran(model, cut(axes, one_stage(axes, how, parts, crossing)), feeds)
    assert all((found.results[name] == again.results[name]).all() for name in found.results)
    assert emitted.schedule.coverage == 1


@pytest.mark.parametrize("seed", range(20))
def test_random_transformers_by_every_cut(tmp_path: Path, seed: int) -> None:
    recipe: TransformerRecipe = recipe_of(seed, quantised=False)
    model = opened(transformer(recipe), tmp_path)
    axes = analyse(model, sizes_of(recipe))
    feeds = feeds_of(recipe, seed)
    reference = whole(model, feeds)
    for how, crossing in WAYS:
        word = "tokens" if how is Cut.TOKENS else "heads"
        if word in axes.refused:
            continue
        emitted = cut(axes, one_stage(axes, how, 3, crossing))
        assert_close(dict(ran(model, emitted, feeds).results), reference)


def test_layers_and_products(tmp_path: Path) -> None:
    model = opened(transformer(PLAIN), tmp_path)
    axes = analyse(model, sizes_of(PLAIN))
    feeds = feeds_of(PLAIN, 2)
    count = len(narrow_places(axes)) + 1
    assert count >= 2
    first, rest = range(count // 2), range(count // 2, count)
    tokens = Stage(first, (0, 1), Cut.TOKENS, Crossing.MERGE, (2.0, 1.0))
    for plan in (
        CutPlan((Stage(first, (0,)), Stage(rest, (1,)))),
        CutPlan((tokens, Stage(rest, (2, 3, 4), Cut.HEADS))),
        CutPlan((tokens, Stage(rest, (1, 0), Cut.TOKENS, Crossing.SWITCH))),
    ):
        emitted = cut(axes, plan)
        assert_close(dict(ran(model, emitted, feeds).results), whole(model, feeds))
    layers = cut(axes, CutPlan((Stage(first, (0,)), Stage(rest, (1,))))).schedule
    assert len(layers.steps) == 2
    assert not {w.name for w in layers.weights_of(0)} >= {w.name for w in layers.weights_of(1)}


def test_a_part_is_sent_no_more_than_it_lacks(tmp_path: Path) -> None:
    """DESIGN section 12: what each part has itself is in no boundary's delivery."""
    model = opened(transformer(PLAIN), tmp_path)
    axes = analyse(model, sizes_of(PLAIN))
    schedule = cut(axes, one_stage(axes, Cut.TOKENS, 3)).schedule
    assert len(schedule.steps) == PLAIN.layers + 1
    lengths = [stop - start for start, stop in shared_ranges(PLAIN.tokens, SHARES[3])]
    for part, length in enumerate(lengths):
        for name in {d.boundary for d in _deliveries(schedule, part)}:
            whole_of = schedule.boundaries[name].spec.shape
            sizes = [
                int(np.prod(extent_shape(whole_of, d.extent)))
                for d in _deliveries(schedule, part)
                if d.boundary == name
            ]
            assert sum(sizes) * PLAIN.tokens == int(np.prod(whole_of)) * (PLAIN.tokens - length)


def _deliveries(schedule: Schedule, part: int) -> list[Delivery]:
    return [
        source
        for _, segment in schedule.of_part(part)
        for source in segment.inputs.values()
        if isinstance(source, Delivery)
    ]


def test_heads_that_nobody_has_are_said(tmp_path: Path) -> None:
    model = opened(transformer(PLAIN), tmp_path)
    axes = analyse(model, sizes_of(PLAIN))
    layers = range(len(narrow_places(axes)) + 1)
    other = {"heads.0": ((0, 1), (1, 2)), "heads.1": ((2, 3), (0, 2))}
    schedule = cut(axes, CutPlan((Stage(layers, (0, 1), Cut.HEADS, ranges=other),))).schedule
    assert schedule.coverage == pytest.approx(5 / 6)
    assert "1 of 3 of heads.0" in schedule.lacking
    whole_ranges = {"heads.0": ((0, 3), (3, 3)), "heads.1": ((2, 3), (0, 2))}
    emitted = cut(axes, CutPlan((Stage(layers, (0, 1), Cut.HEADS, ranges=whole_ranges),)))
    feeds = feeds_of(PLAIN, 4)
    assert emitted.schedule.coverage == 1
    assert_close(dict(ran(model, emitted, feeds).results), whole(model, feeds))


def test_one_part_is_one_segment(tmp_path: Path) -> None:
    model = opened(transformer(PLAIN), tmp_path)
    axes = analyse(model, sizes_of(PLAIN))
    layers = range(len(narrow_places(axes)) + 1)
    schedule = cut(axes, CutPlan((Stage(layers, (0,)),))).schedule
    assert [len(step.segments) for step in schedule.steps] == [1]
    assert all(b.collective is Collective.GATHER for b in schedule.boundaries.values())


def test_additions_for_norms_are_not_fused_with_them_and_others_stay_as_they_are(tmp_path: Path) -> None:
    """SkipLayerNormalization is slow and rounds otherwise; a GELU by tanh is found by its addition."""
    recipe = TransformerRecipe(layers=2, activation="tanh", placement="post")
    model = opened(transformer(recipe), tmp_path)
    axes = analyse(model, sizes_of(recipe))
    layers = range(len(narrow_places(axes)) + 1)
    emitted = cut(axes, CutPlan((Stage(layers, (0,)),)))
    (graph,) = (onnx.load_from_string(data).graph for data in emitted.graphs.values())
    norms = [node.input[0] for node in graph.node if node.op_type == "LayerNormalization"]
    makers = {name: node.op_type for node in graph.node for name in node.output}
    assert [makers[name] for name in norms] == ["Gather", *["Sum"] * 4]
    tanh = [node.input[0] for node in graph.node if node.op_type == "Tanh"]
    before = {name: list(node.input) for node in graph.node for name in node.output}
    assert [makers[before[name][0]] for name in tanh] == ["Add"] * 2
    assert sum(node.op_type == "Sum" for node in graph.node) == 4


def test_plans_of_other_models_are_refused(tmp_path: Path) -> None:
    model = opened(transformer(PLAIN), tmp_path)
    axes = analyse(model, sizes_of(PLAIN))
    layers = range(len(narrow_places(axes)) + 1)
    with pytest.raises(InvalidArgument, match="layers"):
        cut(axes, CutPlan((Stage(range(1), (0,)), Stage(range(1, 99), (1,)))))
    with pytest.raises(InvalidArgument, match="no axis 'heads"):
        cut(axes, CutPlan((Stage(layers, (0, 1), Cut.HEADS, ranges={"heads.77": ((0, 1), (1, 2))}),)))
    with pytest.raises(InvalidArgument, match="overlap"):
        cut(axes, CutPlan((Stage(layers, (0, 1), Cut.HEADS, ranges={"heads.0": ((0, 2), (1, 3))}),)))
    with pytest.raises(InvalidArgument, match="nobody's"):
        cut(axes, CutPlan((Stage(layers, (0, 1), Cut.TOKENS, ranges={"tokens": ((0, 2), (3, 7))}),)))


def test_shares() -> None:
    assert shared_ranges(7, (1, 1)) == ((0, 4), (4, 7))
    assert shared_ranges(7, (0, 2, 1)) == ((0, 0), (0, 5), (5, 7))
    assert shared_ranges(2, (1, 1, 1)) == ((0, 1), (1, 2), (2, 2))


def test_rows_that_a_finite_mask_hides_from_all_parts_are_the_mean(tmp_path: Path) -> None:
    """The whole gives the plain mean of all values there; parts of unlike length must not count alike."""
    recipe = recipe_of(
        1, layers=1, batch=1, tokens=7, memory=0, mask="given", softmax="node", source="ids", quantised=False
    )
    model = opened(transformer(recipe), tmp_path)
    axes = analyse(model, sizes_of(recipe))
    feeds = feeds_of(recipe, 1)
    feeds["scores_mask"] = feeds["scores_mask"].copy()
    feeds["scores_mask"][..., 3, :] = np.finfo(np.float32).min
    emitted = cut(axes, one_stage(axes, Cut.TOKENS, 3, Crossing.MERGE))
    assert any(b.collective is Collective.MERGE for b in emitted.schedule.boundaries.values())
    assert_close(dict(ran(model, emitted, feeds).results), whole(model, feeds))


def test_sizes_that_depend_on_data(tmp_path: Path) -> None:
    """Within a segment they are nobody's business; an output of such a size is refused."""
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("NonZero", ["m"], ["where"]),
        helper.make_node("Transpose", ["where"], ["places"]),
        helper.make_node("GatherND", ["h", "places"], ["some"]),
        helper.make_node("ReduceSum", ["some"], ["sum"], keepdims=1),
        helper.make_node("Add", ["h", "sum"], ["y"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4]),
        helper.make_tensor_value_info("m", TensorProto.INT64, ["n", 4]),
    ]
    feeds = {"x": np.ones((5, 4), np.float32), "m": np.eye(5, 4).astype(np.int64)}
    for output, sizes in (("y", ["n", 4]), ("some", ["k"])):
        outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, sizes)]
        graph = helper.make_graph(nodes, "g", inputs, outputs, [weight])
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        model = opened(made, tmp_path)
        axes = analyse(model, {"n": 5})
        for plan in (
            CutPlan((Stage(range(1), (0,)),)),
            CutPlan((Stage(range(1), (0, 1), Cut.BATCH),)),
        ):
            if output == "y":
                assert_close(dict(ran(model, cut(axes, plan), feeds).results), whole(model, feeds))
            else:
                with pytest.raises(InvalidArgument, match=r"'some' depends on data .*NonZero"):
                    cut(axes, plan)


def test_what_each_part_would_draw_for_itself_is_refused(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("RandomUniformLike", ["h"], ["noise"], name="drawn"),
        helper.make_node("Add", ["h", "noise"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    axes = analyse(opened(made, tmp_path), {"n": 5})
    with pytest.raises(InvalidArgument, match="'drawn' is random"):
        cut(axes, CutPlan((Stage(range(1), (0, 1), Cut.BATCH),)))
    assert len(cut(axes, CutPlan((Stage(range(1), (0,)),))).schedule.steps) == 1


def test_forms_that_are_not_the_models_are_refused(tmp_path: Path) -> None:
    model = opened(transformer(PLAIN), tmp_path)
    forms = {n: TensorForm(v.dtype.name, v.shape) for n, v in feeds_of(PLAIN, 0).items()}
    assert forms_sizes(model, forms) == sizes_of(PLAIN)
    name = next(iter(forms))
    with pytest.raises(InvalidArgument, match="no input 'other'"):
        forms_sizes(model, {**forms, "other": forms[name]})
    with pytest.raises(InvalidArgument, match="missing"):
        forms_sizes(model, {})
    with pytest.raises(InvalidArgument, match="dimensions, not 1"):
        forms_sizes(model, {**forms, name: TensorForm("int64", (3,))})
    longer = TensorForm("int64", (forms[name].shape[0], forms[name].shape[1] + 1))
    with pytest.raises(InvalidArgument, match="must agree"):
        forms_sizes(model, {**forms, name: longer})


@pytest.mark.parametrize("size", [3, 2000])
def test_an_output_that_follows_from_constants_alone(tmp_path: Path, size: int) -> None:
    held = numpy_helper.from_array(np.random.default_rng(0).standard_normal(size).astype(np.float32), "c")
    nodes = [helper.make_node("Relu", ["c"], ["y"]), helper.make_node("Relu", ["x"], ["z"])]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "z")]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    feeds = {"x": np.ones((5, 4), np.float32)}
    for count in (1, 2):
        graph = helper.make_graph(nodes[:count], "g", [x], outputs[:count], [held])
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        model = opened(made, tmp_path)
        emitted = cut(analyse(model, {"n": 5}), CutPlan((Stage(range(1), (0,)),)))
        assert_close(dict(ran(model, emitted, feeds).results), whole(model, feeds))


@pytest.mark.parametrize("kind", [Cut.HEADS, Cut.TOKENS])
def test_an_int8_table_of_embeddings_and_logits_is_no_other_product_in_a_part(
    tmp_path: Path, kind: Cut
) -> None:
    """With ONNX Runtime's fusions: of a table that one place reads it would make a product that rounds its
    other operand to int8, and the part that gives logits has this one use of it."""
    recipe = recipe_of(22, quantised=True, layers=1)
    assert (recipe.result, recipe.source) == ("logits", "ids")
    model, feeds = opened(transformer(recipe), tmp_path), feeds_of(recipe, 7)
    axes = analyse(model, sizes_of(recipe))
    ours = ran(model, cut(axes, one_stage(axes, kind, 2)), feeds).results
    for name, value in whole(model, feeds).items():
        assert ours[name].tobytes() == value.tobytes()


def test_layers_that_are_others_with_fused_operators_are_cut_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model that is no transformer, as Mamba with a small vocabulary."""
    model = opened(transformer(PLAIN), tmp_path)
    sizes, asked = sizes_of(PLAIN), []

    def recording(*given, fused: bool = False) -> Axes:
        asked.append(fused)
        return analyse(*given, fused=fused)

    monkeypatch.setattr("edge_attention.graphs.axes.cut.analyse", recording)
    layers = len(narrow_places(analyse(model, sizes))) + 1
    apart = CutPlan(tuple(Stage(range(n, n + 1), (n,)) for n in range(layers)))
    cut(analyse_for(model, sizes, apart), apart)
    assert asked == [True]
    monkeypatch.setattr("edge_attention.graphs.axes.cut.narrow_places", lambda axes: ())
    analyse_for(model, sizes, apart)
    assert asked == [True, True, False]
    shared = CutPlan((Stage(range(layers), (0, 1), Cut.HEADS),))
    analyse_for(model, sizes, shared)
    assert asked[3:] == [False]
