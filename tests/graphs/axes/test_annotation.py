"""Plans as ONNX's own annotation: ours come back, others' are read, or refused with node and reason."""

import os

import onnx
import onnxruntime
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from edge_attention.core.errors import InvalidArgument
from edge_attention.core.schedule.plan import Crossing, Cut, CutPlan, Stage
from edge_attention.graphs.axes.annotation import (
    CONFIGURATION,
    NOTE,
    annotate,
    is_annotated,
    loads_annotation,
    read_annotation,
)
from edge_attention.graphs.axes.axes import axes_of
from edge_attention.graphs.axes.bind import bind
from edge_attention.graphs.axes.narrow import narrow_places
from tests.graphs.axes.random_plans import plans
from tests.graphs.axes.random_transformers import feeds_of, recipe_of, recipes, sizes_of, transformer

PHASES = [phase for phase in Phase if phase not in (Phase.explain,)]
PLAIN = {"memory": 0, "quantised": False, "source": "ids", "softmax": "node", "alike": False}


def axes_for(recipe):
    model = transformer(recipe)
    return model, axes_of(bind(model, sizes_of(recipe)))


def layers_in(axes):
    return len(narrow_places(axes)) + 1


def without_note(model):
    found = onnx.ModelProto()
    found.CopyFrom(model)
    del found.metadata_props[:]
    return found


def said(model):
    return [[one.SerializeToString() for one in node.device_configurations] for node in model.graph.node]


def bert(layers=2, **more):
    chosen = {"key_heads": 4, "group": 1, "dim": 4, "value_dim": 4, "hidden": 0, "wide": 12, "mask": "row"}
    chosen |= {"qkv": "separate", "linear": "matmul", "positions": "learned", "dynamic": True, "tokens": 6}
    chosen |= {"result": "hidden", "merged": False, "shared": False, "head_norm": False, "batch": 2}
    return axes_for(recipe_of(1, layers=layers, **(PLAIN | chosen | more)))


@settings(max_examples=int(os.environ.get("EXAMPLES", "15")), phases=PHASES)
@given(recipes(**PLAIN), st.data())
def test_our_plans_come_back(recipe, data):
    model, axes = axes_for(recipe)
    sizes = {name: axes.size(name) for name in axes.named if name not in axes.refused}
    families = {name.partition(".")[0] for name in sizes}
    cuts = [Cut.NONE, *(cut for cut in (Cut.BATCH, Cut.TOKENS, Cut.HEADS) if cut.value in families)]
    plan = data.draw(plans(layers_in(axes), sizes, cuts))
    written = annotate(model, plan, axes)
    read = onnx.ModelProto.FromString(written.SerializeToString())
    assert read_annotation(read, axes) == plan
    del read.graph.initializer[:]  # a plan's file needs no weights
    assert loads_annotation(read.SerializeToString(), axes) == plan
    # The annotation alone says the same, but for shares that are ranges here, and parts that have nothing.
    alone = read_annotation(without_note(read), axes)
    again = annotate(model, alone, axes)
    assert read_annotation(without_note(again), axes) == alone
    if [len(stage.parts) for stage in plan.stages] == [len(stage.parts) for stage in alone.stages]:
        numbers = dict(enumerate(dict.fromkeys(part for stage in alone.stages for part in stage.parts)))
        if sorted(numbers) == sorted(numbers.values()) and not any(map(_idle, plan.stages)):
            assert said(again) == said(written)


def _idle(stage):
    """Whether a part has no share of something."""
    return 0.0 in stage.shares or any(a == b for ranges in stage.ranges.values() for a, b in ranges)


def test_an_annotated_model_still_runs_where_it_ran():
    recipe = recipe_of(1, **PLAIN)
    model, axes = axes_for(recipe)
    plan = CutPlan((Stage(range(layers_in(axes)), (0, 1), Cut.TOKENS),))
    written = annotate(model, plan, axes)
    onnx.checker.check_model(written)
    assert is_annotated(written)
    assert not is_annotated(model)
    feeds = feeds_of(recipe, 0)
    for one, other in zip(*(_run(m, feeds) for m in (model, written)), strict=True):
        assert one.tobytes() == other.tobytes()


def _run(model, feeds):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    ).run(None, feeds)


@pytest.mark.parametrize("crossing", list(Crossing))
def test_how_tokens_cross_is_in_the_specs_around_the_scores(crossing):
    model, axes = bert()
    plan = CutPlan((Stage(range(layers_in(axes)), (0, 1), Cut.TOKENS, crossing, (2.0, 1.0)),))
    assert read_annotation(without_note(annotate(model, plan, axes)), axes) == plan


def test_uneven_heads_are_shards_of_one_device_each_and_heads_of_nobody_of_none():
    model, axes = bert()
    ranges = {"heads.0": ((0, 3), (3, 4)), "heads.1": ((0, 1), (1, 3))}
    plan = CutPlan((Stage(range(layers_in(axes)), (0, 1), Cut.HEADS, ranges=ranges),))
    written = annotate(model, plan, axes)
    assert read_annotation(without_note(written), axes) == plan
    weight = next(
        spec
        for node in written.graph.node
        for one in node.device_configurations
        for spec in one.sharding_spec
        if spec.tensor_name == "decoder.0.q.weight"
    )
    assert list(weight.device) == [0, 0, 0, 1]
    assert [(s.dim_value, s.num_shards) for s in weight.sharded_dim[0].simple_sharding] == [(4, 4), (4, 1)]


def test_a_note_counts_only_as_long_as_the_annotation_says_the_same():
    model, axes = bert()
    whole = range(layers_in(axes))
    plan = CutPlan((Stage(whole, (0, 1), Cut.HEADS, shares=(0.51, 0.49)),), halves=True)
    written = annotate(model, plan, axes)
    assert read_annotation(written, axes) == plan
    other = annotate(model, CutPlan((Stage(whole, (0, 1), Cut.HEADS, shares=(3.0, 1.0)),)), axes)
    other.metadata_props[0].value = written.metadata_props[0].value
    changed = read_annotation(other, axes)
    assert changed.stages[0].ranges["heads.0"] == ((0, 3), (3, 4))
    assert not changed.halves
    other.metadata_props[0].value = "[" * 10_000
    assert read_annotation(other, axes) == changed


# What others write


def other(model, name="theirs", devices=4):
    found = onnx.ModelProto()
    found.CopyFrom(model)
    found.ir_version = 11
    found.configuration.add(name=name, num_devices=devices)
    return found


def node_of(model, output):
    return next(node for node in model.graph.node if output in (*node.output, *node.input))


def say(node, tensor, axis, devices, shards=0, stage=None, name="theirs"):
    if node.device_configurations and node.device_configurations[0].configuration_id == name:
        one = node.device_configurations[0]
    else:
        one = node.device_configurations.add(configuration_id=name)
    if stage is not None:
        one.pipeline_stage = stage
    if tensor:
        spec = one.sharding_spec.add(tensor_name=tensor, device=devices)
        if shards:
            spec.sharded_dim.add(axis=axis).simple_sharding.add(num_shards=shards)


def test_megatrons_columns_and_rows_are_heads_and_feed_forward():
    """Sharded weights alone: columns of q, k, v and up, rows of out and down, over two devices."""
    model, axes = bert(layers=1)
    theirs = other(model)
    for name, axis in [("q", 1), ("k", 1), ("v", 1), ("out", 0), ("up", 1), ("down", 0)]:
        weight = f"decoder.0.{name}.weight"
        say(node_of(theirs, weight), weight, axis, [0, 1], 2)
    plan = read_annotation(theirs, axes)
    assert plan == CutPlan((Stage(range(layers_in(axes)), (0, 1), Cut.HEADS),))


def test_pipeline_stages_are_stages_where_one_activation_is_alive():
    model, axes = bert()
    theirs = other(model)
    borders = [place.before for place in narrow_places(axes)]
    middle = borders[len(borders) // 2]
    order = {name: number for number, node in enumerate(axes.bound.nodes) for name in node.output}
    for node in theirs.graph.node:
        if node.output[0] in order:
            say(node, "", 0, [], stage=3 + (order[node.output[0]] >= middle))
    plan = read_annotation(theirs, axes)
    first = len(borders) // 2 + 1
    assert plan == CutPlan((Stage(range(first), (0,)), Stage(range(first, len(borders) + 1), (1,))))
    # In the middle of a layer there is more than that.
    weight = "decoder.0.k.weight"
    node = node_of(theirs, weight)
    node.device_configurations[0].pipeline_stage = 4
    with pytest.raises(InvalidArgument, match="within layer") as caught:
        read_annotation(theirs, axes)
    assert "MatMul" in str(caught.value)


def wrong_axis(theirs):
    say(node_of(theirs, "decoder.0.q.weight"), "decoder.0.q.weight", 0, [0, 1], 2)


def two_ways(theirs):
    say(node_of(theirs, "decoder.0.q.weight"), "decoder.0.q.weight", 1, [0, 1], 2)
    say(node_of(theirs, "decoder.0.k.weight"), "decoder.0.k.weight", 1, [1, 0], 2)


def two_kinds(theirs):
    say(node_of(theirs, "decoder.0.q.weight"), "decoder.0.q.weight", 1, [0, 1], 2)
    node = node_of(theirs, "decoder.0.up.weight")
    say(node, node.output[0], 1, [0, 1], 2)


def in_pieces(theirs):
    say(node_of(theirs, "decoder.0.q.weight"), "decoder.0.q.weight", 1, [0, 1, 0, 1], 4)


def replicated(theirs):
    node = node_of(theirs, "decoder.0.q.weight")
    say(node, node.output[0], 0, [0, 1])


def stranger(theirs):
    say(node_of(theirs, "decoder.0.q.weight"), "decoder.0.k.weight", 1, [0, 1], 2)


def half_a_head(theirs):
    say(node_of(theirs, "decoder.0.q.weight"), "decoder.0.q.weight", 1, list(range(8)), 8)


def backwards(theirs):
    say(node_of(theirs, "decoder.0.q.weight"), "", 0, [], stage=2)
    say(node_of(theirs, "decoder.1.q.weight"), "", 0, [], stage=1)


def nothing(theirs):
    pass


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (wrong_axis, "neither batch, tokens, heads nor feed-forward"),
        (two_ways, "a stage shares an axis in one way"),
        (two_kinds, "a stage shares one kind"),
        (in_pieces, "several ranges of heads.0"),
        (replicated, "replication, which is said at deployment"),
        (stranger, "is no tensor of the node"),
        (half_a_head, "none of which may divide one of heads.0"),
        (backwards, "stages go up"),
        (nothing, "no node has an annotation"),
    ],
)
def test_what_means_no_cut_is_refused_with_the_reason(write, says):
    model, axes = bert()
    theirs = other(model)
    write(theirs)
    with pytest.raises(InvalidArgument) as caught:
        read_annotation(theirs, axes)
    assert says in str(caught.value)
    if write not in (nothing, replicated):
        assert "MatMul '/MatMul_" in str(caught.value)


def test_of_several_configurations_one_is_named():
    model, axes = bert()
    theirs = other(other(model, "a"), "b")
    with pytest.raises(InvalidArgument, match="a, b as device configurations"):
        read_annotation(theirs, axes)
    with pytest.raises(InvalidArgument, match="name one"):
        read_annotation(theirs, axes, "c")
    with pytest.raises(InvalidArgument, match="none as device configurations"):
        read_annotation(model, axes)
    plan = CutPlan((Stage(range(layers_in(axes)), (0, 1), Cut.HEADS),))
    both = annotate(theirs, plan, axes)
    assert [one.name for one in both.configuration] == ["a", "b", CONFIGURATION]
    assert read_annotation(both, axes) == plan
    assert [one.key for one in annotate(both, plan, axes).metadata_props] == [NOTE]


def test_what_is_no_onnx_file_is_no_plan():
    _, axes = bert()
    for data in (b"\x08", b"\x08\x0b\x3a\xff\xff", bytes(100), b"\x08\x0b"):
        with pytest.raises(InvalidArgument):
            loads_annotation(data, axes)
