"""The row of an embedding that is padding: lookups do not train it, whatever else does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_models import FLOAT, INT64, close, model, node, normal

from edge_attention.core.errors import InvalidGraph
from edge_attention.core.messages.federated import LossSpec
from edge_attention.core.schedule.plan import Cut
from edge_attention.graphs.gradients.runner import Runner
from edge_attention.graphs.models.model import Model, gradient_graph, load_model
from edge_attention.graphs.models.model_checks import check_model
from edge_attention.graphs.models.module_note import ModuleNote, module_note, write_note
from edge_attention.graphs.models.parts import load_part
from edge_attention.graphs.onnx_file import serialize
from tests.graphs.axes.random_transformers import feeds_of, transformer
from tests.graphs.backward.test_training_faults import RECIPE, by_layers, one_stage
from tests.graphs.backward.training_cases import TrainingCase, case_of, run_cut

TABLE, IDS = normal(1, 5, 4), np.array([[0, 2, 2], [4, 0, 1]])
LOSS = LossSpec("mse", "logits")


def words(tied: bool, row: int | None = 2) -> bytes:
    """ids [n, 3] to logits [n, 3, 5]: the table's rows, times the table again or another."""
    nodes = [
        node("Gather", ["table", "ids"], ["found"], name="lookup"),
        node("Transpose", ["table" if tied else "other"], ["turned"], perm=[1, 0]),
        node("MatMul", ["found", "turned"], ["logits"]),
    ]
    values = {"table": TABLE} | ({} if tied else {"other": normal(2, 5, 4)})
    sides = {"ids": (INT64, ["n", 3])}, {"logits": (FLOAT, ["n", 3, 5])}
    made = onnx.load_model_from_string(model(nodes, *sides, values))
    note = ModuleNote(trained=tuple(values), padding={} if row is None else {"table": row})
    write_note(made.graph, note)
    assert module_note(made.graph) == note
    return made.SerializeToString()


def gradients(loaded: Model) -> dict[str, np.ndarray]:
    feeds = {"ids": IDS, "labels": normal(3, 2, 3, 5)}
    feeds |= {f"x/{n}": value for n, value in enumerate(loaded.parameters.values())}
    names = [f"grad/{n}" for n in range(len(loaded.names))]
    found = Runner(serialize(gradient_graph(loaded, 2)), "it")(names, feeds)
    return dict(zip(loaded.names, found, strict=True))


@pytest.mark.parametrize("tied", [False, True])
def test_lookups_leave_it_and_what_shares_the_table_does_not(tied: bool) -> None:
    table = TABLE.astype(np.float64)
    other = table if tied else normal(2, 5, 4).astype(np.float64)
    looked = table[IDS]
    dy = 2 * (looked @ other.T - normal(3, 2, 3, 5)) / 30
    lookups = np.zeros((5, 4))
    np.add.at(lookups, IDS, dy @ other)
    lookups[2] = 0
    product = np.einsum("bto,btd->od", dy, looked)
    found = gradients(load_model(words(tied), loss=LOSS))
    close(found["table"], lookups + product if tied else lookups)
    if not tied:
        close(found["other"], product)


@pytest.mark.parametrize("noted", ["in the note", "in a node's name"])
def test_a_row_that_the_table_does_not_have_is_refused(noted: str) -> None:
    given = words(False, 5 if noted == "in the note" else None)
    if noted == "in a node's name":
        made = onnx.load_model_from_string(words(False, None))
        made.graph.node[0].name += "@padding_idx=5"
        given = made.SerializeToString()
    with pytest.raises(InvalidGraph, match="row 5 of 'table' is noted as padding, and it has 5 rows"):
        load_model(given, loss=LOSS)


@pytest.mark.parametrize("tied", [False, True])
def test_finite_differences_are_not_of_that_row(tied: bool) -> None:
    for row in (0, 1):  # the ids that a check looks up
        for seed in range(5):
            check_model(load_model(words(tied, row), loss=LOSS), seed=seed)


def test_an_encoder_has_it_too() -> None:
    made = onnx.load_model_from_string(words(tied=False))
    shape = np.array([-1, 3, 1, 5])
    made.graph.initializer.append(onnx.numpy_helper.from_array(shape, "shape"))
    made.graph.node.extend([node("Reshape", ["logits", "shape"], [side]) for side in ("keys", "values")])
    del made.graph.output[:]
    for side in ("keys", "values"):
        made.graph.output.append(onnx.helper.make_tensor_value_info(side, FLOAT, ["n", 3, 1, 5]))
    part = load_part(made.SerializeToString(), "encoder")
    assert b"lookup@padding_idx=2" in part.forward


def padded_case(row: int | None) -> TrainingCase:
    made = transformer(RECIPE)
    table = next(one.input[0] for one in made.graph.node if one.op_type == "Gather")
    weights = [one.name for one in made.graph.initializer if one.data_type == FLOAT]
    trained = tuple(name for name in weights if not name.startswith("const_"))
    write_note(made.graph, ModuleNote(trained=trained, padding={} if row is None else {table: row}))
    feeds = dict(feeds_of(RECIPE, 0))
    ids = next(name for name, value in feeds.items() if value.dtype == np.int64)
    feeds[ids] = feeds[ids].copy()
    feeds[ids][:, -2:] = 1
    return case_of(made.SerializeToString(), feeds, LossSpec("mse"))


@pytest.mark.parametrize("kind", ["layers", "heads", "tokens"])
def test_split_over_nodes_it_is_the_same(kind: str) -> None:
    case, plain = padded_case(1), padded_case(None)
    (table,) = (n for n, one in case.gradients.items() if not np.array_equal(one, plain.gradients[n]))
    assert not case.gradients[table][1].any()
    assert plain.gradients[table][1].any()
    plan = by_layers(case, 3) if kind == "layers" else one_stage(case, Cut[kind.upper()])
    assert case.worst(run_cut(case, case.cut(plan)))[0] < 2e-6
