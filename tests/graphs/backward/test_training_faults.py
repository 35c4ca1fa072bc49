"""What training through the split must get right beside gradients: what is frozen, tied, hidden, refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_attention.core.errors import InvalidArgument, InvalidGraph
from edge_attention.core.messages.federated import LossSpec
from edge_attention.core.schedule.plan import Crossing, Cut, CutPlan, Stage
from edge_attention.core.schedule.schedule import Delivery, ModelInput, Schedule, Weight
from edge_attention.graphs.axes.narrow import narrow_places
from edge_attention.graphs.backward.transpose import GRADIENT
from edge_attention.graphs.models.training_file import tied_weights
from tests.graphs.axes.random_transformers import TransformerRecipe, feeds_of, transformer
from tests.graphs.axes.transformer_layers import MASKED
from tests.graphs.backward.bare_models import bare_case
from tests.graphs.backward.training_cases import TrainingCase, case_of, run_cut

RECIPE = TransformerRecipe(
    layers=3, batch=2, tokens=6, key_heads=4, dim=4, mask="row", bias=True, dynamic=True
)

PROJECTIONS = (".q.weight", ".v.weight")


def layers_of(case: TrainingCase) -> int:
    return len(narrow_places(case.axes())) + 1


def by_layers(case: TrainingCase, parts: int) -> CutPlan:
    ends = [layers_of(case) * n // parts for n in range(parts + 1)]
    return CutPlan(tuple(Stage(range(*ends[n : n + 2]), (n,)) for n in range(parts)))


def one_stage(case: TrainingCase, cut: Cut, crossing: Crossing = Crossing.GATHER, **more: object) -> CutPlan:
    return CutPlan((Stage(range(layers_of(case)), (0, 1, 2), cut, crossing, **more),))  # type: ignore[arg-type]


def gradients_sent(schedule: Schedule) -> dict[str, list[int]]:
    """By weight, the parts that send some of its gradient."""
    names = {b: r.removeprefix(GRADIENT) for r, b in schedule.results.items() if r.startswith(GRADIENT)}
    found: dict[str, list[int]] = {}
    for step in schedule.steps:
        for segment in step.segments:
            for one in segment.contributions:
                if one.boundary in names:
                    found.setdefault(names[one.boundary], []).append(segment.part)
    return found


def with_adapters(rank: int = 2) -> onnx.ModelProto:
    """The model with LoRA beside each projection of queries and values: x W + (x A) B."""
    model = transformer(RECIPE)
    graph = model.graph
    tensors = {t.name: t for t in graph.initializer}
    nodes = []
    rng = np.random.default_rng(0)
    for node in graph.node:
        nodes.append(node)
        name = node.input[1] if node.op_type == "MatMul" and len(node.input) > 1 else ""
        if name not in tensors or not name.endswith(PROJECTIONS):
            continue
        rows, columns = tensors[name].dims
        stem = name.removesuffix(".weight")
        for part, shape in (("lora_A", (rows, rank)), ("lora_B", (rank, columns))):
            value = (0.3 * rng.standard_normal(shape)).astype(np.float32)
            graph.initializer.append(numpy_helper.from_array(value, f"{stem}.{part}.weight"))
        out = node.output[0]
        node.output[0] = f"{out}/frozen"
        nodes += [
            helper.make_node("MatMul", [node.input[0], f"{stem}.lora_A.weight"], [f"{out}/down"]),
            helper.make_node("MatMul", [f"{out}/down", f"{stem}.lora_B.weight"], [f"{out}/up"]),
            helper.make_node("Add", [f"{out}/frozen", f"{out}/up"], [out]),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def adapters() -> TrainingCase:
    model = with_adapters()
    feeds = feeds_of(RECIPE, 0)
    return case_of(
        model.SerializeToString(), feeds, LossSpec("mse", output="hidden"), parameters=["*.lora_*"]
    )


@pytest.mark.parametrize("crossing", [None, *Crossing])
def test_adapters_train_and_what_is_frozen_has_no_gradient(crossing: Crossing | None) -> None:
    case = adapters()
    assert len(case.trained) == 12
    assert all(".lora_" in name for name in case.trained)
    plan = one_stage(case, Cut.HEADS) if crossing is None else one_stage(case, Cut.TOKENS, crossing)
    emitted = case.cut(plan)
    worst, where = case.worst(run_cut(case, emitted))
    assert worst < 2e-6, where
    assert gradients_sent(emitted.schedule).keys() == set(case.trained)


def test_what_comes_before_all_that_trains_has_no_backward_pass() -> None:
    """By layers, with adapters in the last stage alone: the first two stages do the forward pass only."""
    case = adapters()
    model = with_adapters()
    last = [name for name in case.trained if ".2." in name]
    feeds = feeds_of(RECIPE, 0)
    case = case_of(model.SerializeToString(), feeds, LossSpec("mse", output="hidden"), parameters=last)
    emitted = case.cut(by_layers(case, 3))
    assert len(emitted.schedule.steps) == 3
    assert case.worst(run_cut(case, emitted))[0] < 2e-6
    assert run_cut(case, emitted).kept == {0: 0, 1: 0, 2: 0}


def test_a_table_that_is_the_last_weight_too_has_the_sum_of_both_uses() -> None:
    """Tied embeddings: the first stage has one share of the gradient, the last another."""
    recipe = TransformerRecipe(layers=3, batch=2, tokens=6, result="logits", positions="learned")
    model = transformer(recipe)
    case = bare_case(model, feeds_of(recipe, 0), "logits")
    emitted = case.cut(by_layers(case, 3))
    assert case.worst(run_cut(case, emitted))[0] < 2e-6
    assert gradients_sent(emitted.schedule)["embeddings"] == [2, 0]
    (note,) = tied_weights(case.model.model, case.trained)
    assert note.startswith("'embeddings' is one weight that Gather '")
    assert "and Transpose '" in note


def test_a_part_sends_one_gradient_of_what_its_layers_share() -> None:
    recipe = TransformerRecipe(layers=3, batch=2, tokens=6, shared=True)
    case = bare_case(transformer(recipe), feeds_of(recipe, 0), "hidden")
    for plan in (one_stage(case, Cut.HEADS), one_stage(case, Cut.TOKENS), by_layers(case, 3)):
        emitted = case.cut(plan)
        assert case.worst(run_cut(case, emitted))[0] < 2e-6
        for name, parts in gradients_sent(emitted.schedule).items():
            assert len(parts) == len(set(parts)), name


def test_one_number_that_trains_is_no_constant() -> None:
    """A head of one output has a bias of one number, and a scale may be one: neither is folded away."""
    recipe = TransformerRecipe(layers=2, batch=2, tokens=6)
    model = transformer(recipe)
    graph = model.graph
    rng = np.random.default_rng(1)
    for name, shape in (("head", (recipe.width, 1)), ("head.bias", (1,)), ("scale", ())):
        graph.initializer.append(
            numpy_helper.from_array(np.asarray(rng.standard_normal(shape), np.float32), name)
        )
    graph.node.extend(
        [
            helper.make_node("MatMul", ["hidden", "head"], ["answer/product"]),
            helper.make_node("Add", ["answer/product", "head.bias"], ["answer/sum"]),
            helper.make_node("Mul", ["answer/sum", "scale"], ["answer"]),
        ]
    )
    graph.output.append(helper.make_tensor_value_info("answer", TensorProto.FLOAT, [2, 6, 1]))
    case = bare_case(model, feeds_of(recipe, 0), "answer")
    assert {"head.bias", "scale"} <= set(case.trained)
    for plan in (one_stage(case, Cut.TOKENS), one_stage(case, Cut.HEADS), by_layers(case, 2)):
        assert case.worst(run_cut(case, case.cut(plan)))[0] < 2e-6


@pytest.mark.parametrize("crossing", Crossing)
def test_a_part_without_tokens_or_heads(crossing: Crossing) -> None:
    case = bare_case(transformer(RECIPE), feeds_of(RECIPE, 0), "hidden")
    for plan in (
        one_stage(case, Cut.TOKENS, crossing, shares=(1.0, 0.0, 2.0)),
        one_stage(case, Cut.HEADS, shares=(0.0, 3.0, 1.0)),
    ):
        assert case.worst(run_cut(case, case.cut(plan)))[0] < 2e-6


def test_labels_are_sent_to_the_last_stage_alone() -> None:
    case = bare_case(transformer(RECIPE), feeds_of(RECIPE, 0), "hidden")
    schedule = case.cut(by_layers(case, 3)).schedule
    asked = {
        name: {
            segment.part
            for step in schedule.steps
            for segment in step.segments
            for source in segment.inputs.values()
            if source == ModelInput(name)
        }
        for name in case.feeds
    }
    assert asked["labels"] == {2}
    assert asked["ids"] == {0}


@pytest.mark.parametrize("recompute", [False, True])
def test_a_part_is_asked_once_for_both_passes_of_the_last_stage(recompute: bool) -> None:
    case = bare_case(transformer(RECIPE), feeds_of(RECIPE, 0), "hidden")
    schedule = case.cut(by_layers(case, 3), recompute=recompute).schedule
    assert [[s.part for s in step.segments] for step in schedule.steps] == [[0], [1], [2], [1], [0]]


def test_computed_again_less_is_kept_and_nothing_is_sent_twice() -> None:
    case = bare_case(transformer(RECIPE), feeds_of(RECIPE, 0), "hidden")
    for plan in (by_layers(case, 3), one_stage(case, Cut.HEADS), one_stage(case, Cut.TOKENS)):
        cuts = [case.cut(plan, recompute=word) for word in (False, True)]
        stored, again = (run_cut(case, one) for one in cuts)
        assert [one.kept for one in cuts] == [stored.kept, again.kept], "it is known before it runs"
        assert case.worst(again)[0] < 2e-6
        assert sum(again.kept.values()) < 0.7 * sum(stored.kept.values())
        assert again.received == stored.received
        assert again.sent == stored.sent


def test_a_row_that_sees_no_key_has_no_gradient() -> None:
    """A text that is all padding, behind masks of -inf and a guard, as exporters write it."""
    recipe = TransformerRecipe(layers=2, batch=2, tokens=6, mask="where", softmax="guarded", dynamic=True)
    model = transformer(recipe)
    hides = [
        t for t in model.graph.initializer if t.data_type == 1 and numpy_helper.to_array(t).min() == MASKED
    ]
    for tensor in hides:
        tensor.CopyFrom(numpy_helper.from_array(np.array(-np.inf, np.float32), tensor.name))
    assert hides
    feeds = feeds_of(recipe, 0)
    feeds["mask"][1] = 0
    case = bare_case(model, feeds, "hidden")
    assert all(np.isfinite(gradient).all() for gradient in case.gradients.values())
    for plan in (
        *(one_stage(case, Cut.TOKENS, crossing) for crossing in Crossing),
        one_stage(case, Cut.HEADS),
        by_layers(case, 2),
    ):
        ran = run_cut(case, case.cut(plan))
        assert all(np.isfinite(value).all() for value in ran.results.values())
        assert case.worst(ran)[0] < 2e-6


def test_the_same_bits_each_time_and_weights_are_no_constants() -> None:
    case = bare_case(transformer(RECIPE), feeds_of(RECIPE, 0), "hidden")
    plan = one_stage(case, Cut.TOKENS, Crossing.MERGE)
    one, other = case.cut(plan), case.cut(plan)
    assert one.graphs == other.graphs
    assert one.schedule == other.schedule
    first, second = run_cut(case, one), run_cut(case, other)
    assert all(value.tobytes() == second.results[name].tobytes() for name, value in first.results.items())
    names = {
        source.name
        for step in one.schedule.steps
        for segment in step.segments
        for source in segment.inputs.values()
        if isinstance(source, Weight)
    }
    assert names >= set(case.trained)


def test_what_is_refused_says_why() -> None:
    case = bare_case(transformer(RECIPE), feeds_of(RECIPE, 0), "hidden")
    whole = Stage(range(layers_of(case)), (0,))
    with pytest.raises(InvalidArgument, match="halves"):
        case.cut(CutPlan((whole,), halves=True))
    with pytest.raises(InvalidArgument, match="mean"):
        case.cut(CutPlan((whole,), mean=True))
    name = next(n for n in case.axes().named if n.startswith("heads"))
    lacking = Stage(whole.layers, (0, 1), Cut.HEADS, ranges={name: ((0, 1), (1, 2))})
    with pytest.raises(InvalidArgument, match="2 of 4 of heads"):
        case.cut(CutPlan((lacking,)))
    with pytest.raises(InvalidArgument, match="no weight 'nothing'"):
        TrainingCase(case.model, ("nothing",), case.feeds, 0.0, {}).cut(CutPlan((whole,)))
    ids = TrainingCase(case.model, (*case.trained, "unread"), case.feeds, 0.0, {})
    ids.model.model.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "unread"))
    with pytest.raises(InvalidGraph, match="no gradient by 'unread'"):
        ids.cut(CutPlan((whole,)))


def test_an_operator_without_a_gradient_is_named() -> None:
    recipe = TransformerRecipe(layers=2, batch=2, tokens=6)
    case = bare_case(transformer(recipe), feeds_of(recipe, 0), "hidden")
    graph = case.model.model.graph
    node = next(n for n in graph.node if n.output[0] == "loss")
    node.input[0] = "loss/quick"
    case.model.model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    quick = helper.make_node(
        "QuickGelu", ["loss/square"], ["loss/quick"], name="quick", domain="com.microsoft"
    )
    graph.node.insert(len(graph.node) - 1, quick)
    with pytest.raises(InvalidGraph, match="QuickGelu"):
        case.cut(by_layers(case, 2))


def test_gradients_pass_only_where_something_trains_before() -> None:
    """Adapters in the last layer of three, cut by tokens: no gradient of an earlier boundary is asked for."""
    model = with_adapters()
    case = case_of(
        model.SerializeToString(),
        feeds_of(RECIPE, 0),
        LossSpec("mse", output="hidden"),
        parameters=[name for name in adapters().trained if ".2." in name],
    )
    schedule = case.cut(one_stage(case, Cut.TOKENS)).schedule
    sent = {
        source.boundary
        for step in schedule.steps
        for segment in step.segments
        for source in segment.inputs.values()
        if isinstance(source, Delivery)
    }
    assert len(schedule.steps) <= 6
    assert sent
