"""Which initializers train, and those that exporters have merged, split or left out."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import NodeProto
from small_models import FLOAT, INT64, close, model, node, normal, run

from edge_attention.core.errors import InvalidGraph
from edge_attention.core.messages.federated import LossSpec
from edge_attention.graphs.models.model import Model, gradient_graph, load_model

LOSS = LossSpec("mse")


def two_norms(scales: tuple[str, str], values: dict[str, np.ndarray], names: bool = True) -> bytes:
    """Two layer norms with the scales named, over x [n, 4]."""
    nodes = [
        node("LayerNormalization", ["x", scales[0]], ["a"], name="first/norm" if names else ""),
        node("Tanh", ["a"], ["t"]),
        node("LayerNormalization", ["t", scales[1]], ["y"], name="second/norm" if names else ""),
    ]
    return model(nodes, {"x": (FLOAT, ["n", 4])}, {"y": (FLOAT, ["n", 4])}, values)


def gradients(loaded: Model, batch: int = 3) -> dict[str, np.ndarray]:
    feeds = {f"x/{i}": value for i, value in enumerate(loaded.parameters.values())}
    feeds |= {"x": normal(0, batch, 4), "labels": normal(1, batch, 4)}
    found = run(gradient_graph(loaded, batch), feeds)
    return {name: found[f"grad/{i}"] for i, name in enumerate(loaded.names)}


def note(target: NodeProto | onnx.ValueInfoProto | onnx.GraphProto, key: str, value: str) -> None:
    target.metadata_props.append(onnx.StringStringEntryProto(key=key, value=value))


def test_an_initializer_of_ones_with_two_uses_is_two_parameters_that_train_apart() -> None:
    merged = load_model(two_norms(("scale", "scale"), {"scale": np.ones(4, np.float32)}), loss=LOSS)
    apart = two_norms(("one", "two"), {"one": np.ones(4, np.float32), "two": np.ones(4, np.float32)})
    assert merged.names == ("scale", "scale@second/norm")
    assert merged.untied == {"scale@second/norm": "scale"}
    found, expected = gradients(merged), gradients(load_model(apart, loss=LOSS))
    close(found["scale"], expected["one"])
    close(found["scale@second/norm"], expected["two"])
    assert np.abs(expected["one"] - expected["two"]).max() > 0.01


def test_without_node_names_the_outputs_name_the_uses() -> None:
    file = two_norms(("scale", "scale"), {"scale": np.zeros(4, np.float32)}, names=False)
    assert load_model(file, loss=LOSS).names == ("scale", "scale@y")


def test_naming_the_initializer_keeps_it_tied() -> None:
    file = two_norms(("scale", "scale"), {"scale": np.ones(4, np.float32)})
    tied = load_model(file, loss=LOSS, parameters=["scale"])
    assert tied.names == ("scale",)
    both = gradients(load_model(file, loss=LOSS))
    close(gradients(tied)["scale"], both["scale"] + both["scale@second/norm"])
    one = load_model(file, loss=LOSS, parameters=["scale@second/norm"])
    assert one.names == ("scale@second/norm",)
    close(gradients(one)["scale@second/norm"], both["scale@second/norm"])


def test_different_values_with_two_uses_of_one_kind_are_refused_with_the_nodes_names() -> None:
    file = two_norms(("scale", "scale"), {"scale": normal(3, 4)})
    message = "'scale' is read by LayerNormalization 'first/norm', LayerNormalization 'second/norm'.*list the"
    with pytest.raises(InvalidGraph, match=message):
        load_model(file, loss=LOSS)
    assert load_model(file, loss=LOSS, parameters=["scale"]).names == ("scale",)


def test_one_weight_in_two_roles_is_one_parameter() -> None:
    nodes = [
        node("Gather", ["table", "tokens"], ["e"]),
        node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        node("MatMul", ["e", "turned"], ["logits"]),
    ]
    file = model(nodes, {"tokens": (INT64, ["n"])}, {"logits": (FLOAT, ["n", 7])}, {"table": normal(1, 7, 4)})
    assert load_model(file, loss=LossSpec("cross_entropy")).names == ("table",)


def test_a_table_and_its_transposed_copy_are_made_one_again() -> None:
    table = normal(1, 7, 4)
    nodes = [node("Gather", ["table", "tokens"], ["e"]), node("MatMul", ["e", "copy"], ["logits"])]
    values = {"table": table, "copy": np.ascontiguousarray(table.T)}
    file = model(nodes, {"tokens": (INT64, ["n"])}, {"logits": (FLOAT, ["n", 7])}, values)
    loaded = load_model(file, loss=LossSpec("cross_entropy"))
    assert loaded.names == ("table",)
    named = load_model(file, loss=LossSpec("cross_entropy"), parameters=["table", "copy"])
    feeds = {"tokens": np.array([1, 5, 5]), "labels": np.array([0, 6, 2])}
    one = run(gradient_graph(loaded, 3), {**feeds, "x/0": table})["grad/0"]
    two = run(gradient_graph(named, 3), {**feeds, "x/0": table, "x/1": values["copy"]})
    close(one, two["grad/0"] + two["grad/1"].T)


def test_uses_that_the_exporter_knows_by_other_names_get_these_names() -> None:
    nodes = [
        node("Identity", ["first.scale"], ["second.scale"]),
        node("LayerNormalization", ["x", "first.scale"], ["a"]),
        node("LayerNormalization", ["a", "second.scale"], ["b"]),
        node("LayerNormalization", ["b", "second.scale"], ["y"]),  # one layer used twice
    ]
    values = {"first.scale": normal(1, 4)}
    file = model(nodes, {"x": (FLOAT, ["n", 4])}, {"y": (FLOAT, ["n", 4])}, values)
    assert load_model(file, loss=LOSS).names == ("first.scale", "second.scale")


@pytest.mark.parametrize("constant", [True, False])
def test_the_modules_of_the_nodes_tell_a_merger_from_a_layer_used_twice(constant: bool) -> None:
    values = {"block.0.scale": np.ones(4, np.float32) if constant else normal(1, 4)}
    nodes = [
        node("LayerNormalization", ["x", "block.0.scale"], ["a"], name="n1"),
        node("LayerNormalization", ["a", "block.0.scale"], ["b"], name="n2"),
        node("LayerNormalization", ["b", "block.0.scale"], ["y"], name="n3"),
    ]
    for made, module in zip(nodes, ("block.0", "block.0", "block.1"), strict=True):
        note(made, "pkg.torch.onnx.name_scopes", f"['', '{module}', 'layer_norm']")
    file = onnx.load_model_from_string(
        model(nodes, {"x": (FLOAT, ["n", 4])}, {"y": (FLOAT, ["n", 4])}, values)
    )
    signature = "# inputs\np_a: PARAMETER target='block.0.scale'\np_b: PARAMETER target='block.1.scale'\n"
    note(file.graph, "pkg.torch.export.ExportedProgram.graph_signature", signature)
    loaded = load_model(file.SerializeToString(), loss=LOSS)
    assert loaded.names == ("block.0.scale", "block.1.scale")
    assert loaded.dropped == ()


def test_two_equal_parameters_of_one_module_are_told_by_the_one_that_is_gone() -> None:
    nodes = [
        node("Add", ["x", "block.first"], ["a"], name="add_1"),
        node("Tanh", ["a"], ["b"]),
        node("Add", ["b", "block.first"], ["y"], name="add_2"),
    ]
    for made in nodes:
        note(made, "pkg.torch.onnx.name_scopes", "['', 'block', 'add']")
    file = onnx.load_model_from_string(
        model(
            nodes,
            {"x": (FLOAT, ["n", 4])},
            {"y": (FLOAT, ["n", 4])},
            {"block.first": np.zeros(4, np.float32)},
        )
    )
    assert load_model(file.SerializeToString(), loss=LOSS).names == ("block.first",)
    signature = "p_a: PARAMETER target='block.first'\np_b: PARAMETER target='block.second'\n"
    note(file.graph, "pkg.torch.export.ExportedProgram.graph_signature", signature)
    assert load_model(file.SerializeToString(), loss=LOSS).names == ("block.first", "block.first@add_2")


def test_a_weight_that_the_exporter_has_copied_for_each_use_is_one_again() -> None:
    weight = normal(1, 4, 4)
    nodes = [node("MatMul", ["x", "val_1"], ["a"]), node("MatMul", ["a", "val_2"], ["y"])]
    file = onnx.load_model_from_string(
        model(nodes, {"x": (FLOAT, ["n", 4])}, {"y": (FLOAT, ["n", 4])}, {"val_1": weight, "val_2": weight})
    )
    assert load_model(file.SerializeToString(), loss=LOSS).names == ("val_1", "val_2")
    note(file.graph, "pkg.torch.export.ExportedProgram.graph_signature", "w: PARAMETER target='layer.w'")
    for name in ("val_1", "val_2"):
        info = onnx.helper.make_tensor_value_info(name, FLOAT, [4, 4])
        note(info, "pkg.onnxscript.optimizer.folded_from", "['layer.w']")
        file.graph.value_info.append(info)
    tied = load_model(file.SerializeToString(), loss=LOSS)
    assert tied.names == ("val_1",)
    both = gradients(load_model(file.SerializeToString(), loss=LOSS, parameters=["val_1", "val_2"]))
    close(gradients(tied)["val_1"], both["val_1"] + both["val_2"])


def test_what_the_exporter_says_of_parameters_and_buffers_is_believed() -> None:
    values = {"weight": normal(1, 4), "buffer": normal(2, 4), "temperature": np.ones((), np.float32)}
    values["val_1"], values["val_2"] = normal(3, 4), normal(4, 4)
    names = ["x", *values]
    nodes = [
        node("Add" if i % 2 else "Mul", [f"h{i}" if i else "x", name], [f"h{i + 1}"])
        for i, name in enumerate(values)
    ]
    nodes.append(node("Identity", [f"h{len(values)}"], ["y"]))
    file = onnx.load_model_from_string(
        model(nodes, {"x": (FLOAT, ["n", 4])}, {"y": (FLOAT, ["n", 4])}, values)
    )
    lines = [
        "p_w: PARAMETER target='weight'",
        "b: BUFFER target='buffer' persistent=True",
        "p_t: PARAMETER target='temperature'",
        "p_f: PARAMETER target='folded'",
        "p_z: PARAMETER target='zero.bias'",
    ]
    note(file.graph, "pkg.torch.export.ExportedProgram.graph_signature", "\n".join(lines))
    for name, sources in (("val_1", "['folded']"), ("val_2", "['val_0']")):
        info = onnx.helper.make_tensor_value_info(name, FLOAT, [4])
        note(info, "pkg.onnxscript.optimizer.folded_from", sources)
        file.graph.value_info.append(info)
    loaded = load_model(file.SerializeToString(), loss=LOSS)
    assert loaded.names == ("weight", "temperature", "val_1")
    assert loaded.dropped == ("zero.bias",)
    assert names[0] == "x"


def test_without_a_word_from_the_exporter_constants_are_told_by_their_use() -> None:
    mask = np.where(np.tri(4, dtype=bool), 0, -np.inf).astype(np.float32)
    values = {
        "w": normal(1, 4, 4),
        "mask": mask,
        "large": np.full((4,), -1e9, np.float32),
        "scalar": np.array(0.5, np.float32),
        "single": np.array([2.0], np.float32),
        "low": np.array(-3.0, np.float32),
        "v": normal(2, 4, 1),
        "bias": normal(3, 1),
    }
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("Mul", ["a", "scalar"], ["b"]),
        node("Div", ["b", "single"], ["c"]),
        node("Clip", ["c", "low"], ["d"]),
        node("Unsqueeze", ["d", "one"], ["row"]),
        node("Add", ["row", "mask"], ["e"]),
        node("Max", ["e", "large"], ["f"]),
        node("MatMul", ["f", "v"], ["g"]),
        node("Add", ["g", "bias"], ["y"]),
    ]
    values["one"] = np.array([1], np.int64)
    file = model(nodes, {"x": (FLOAT, ["n", 4])}, {"y": (FLOAT, ["n", 4, 1])}, values)
    assert load_model(file, loss=LOSS).names == ("w", "v", "bias")
    assert load_model(file, loss=LOSS, parameters=["scalar", "single"]).names == ("scalar", "single")


def test_running_statistics_of_a_batch_norm_do_not_train() -> None:
    values = {"s": normal(1, 3), "b": normal(2, 3), "mean": normal(3, 3), "var": np.abs(normal(4, 3))}
    nodes = [node("BatchNormalization", ["x", "s", "b", "mean", "var"], ["y"])]
    file = model(nodes, {"x": (FLOAT, ["n", 3])}, {"y": (FLOAT, ["n", 3])}, values)
    assert load_model(file, loss=LOSS).names == ("s", "b")
