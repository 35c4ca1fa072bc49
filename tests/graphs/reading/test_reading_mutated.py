"""Whatever the bytes: refused in words, or written out again as a file that every parser reads the same."""

from __future__ import annotations

from random import Random

import onnx
import pytest
from google.protobuf.unknown_fields import UnknownFieldSet
from hostile import hostile_graphs, mutation, operators, wire
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, SparseTensorProto, TensorProto

from edge_attention.core.errors import InvalidGraph
from edge_attention.graphs.reading import read_graph
from edge_attention.graphs.reading.bounds import MAX_NODES
from edge_attention.graphs.reading.operators import OPERATORS


def messages(message):
    """A message and all within it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in value if field.is_repeated else [value]:
                yield from messages(item)


def require_clean(data):
    """What nobody could write into a file in which something is left that ONNX Runtime might follow."""
    model = ModelProto.FromString(data)
    local = {(function.domain, function.name) for function in model.functions}
    nodes = 0
    for message in messages(model):
        assert not len(UnknownFieldSet(message)), message
        assert not isinstance(message, SparseTensorProto)
        if isinstance(message, TensorProto):
            assert not message.external_data
            assert not message.HasField("data_location")
            assert not message.string_data
            assert message.data_type != TensorProto.STRING
        if isinstance(message, NodeProto):
            nodes += 1
            assert (message.domain, message.op_type) in local or message.op_type in OPERATORS[message.domain]
    assert nodes <= MAX_NODES
    assert not model.metadata_props
    assert not model.training_info


def read(data):
    """Read it, and check what was written; False if it was refused."""
    try:
        checked = read_graph(data, "this file")
    except InvalidGraph as error:
        said = error.message
    else:
        said = ""
    if said:
        assert "this file" in said
        assert said.isprintable()
        assert len(said) < 4000
        return False
    require_clean(checked.data)
    again = read_graph(checked.data, "again")
    assert again.data == checked.data
    assert (again.nodes, again.inputs, again.outputs) == (checked.nodes, checked.inputs, checked.outputs)
    return True


@settings(max_examples=300)
@given(name=st.sampled_from(sorted(mutation.real())), seed=st.integers(0, 1 << 32), times=st.integers(0, 5))
@example("encoder_23", 0, 0)
@example("attention_batch_backward", 139, 5)  # a node without an operator, but with a name
def test_real_graphs_changed_on_the_wire(name, seed, times):
    read(mutation.changed(mutation.real()[name], Random(seed), times))


@settings(max_examples=200)
@given(name=st.sampled_from(sorted(mutation.real())), data=st.data())
def test_real_graphs_with_bytes_changed(name, data):
    changed = bytearray(mutation.real()[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=8))
    read(bytes(changed))


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes(data):
    read(data)


@pytest.mark.parametrize("name", sorted(mutation.real()))
def test_real_graphs_written_longer_are_the_same_graphs(name):
    data = mutation.real()[name]
    longer = wire.encode(wire.parse(data), Random(0), overlong=0.5)
    assert len(longer) > len(data)
    assert read_graph(longer, "longer").data == read_graph(data, "as it is").data


def test_onnx_s_own_tests_of_every_operator_are_read():
    """A reader that refuses too much would be found here: every graph that ONNX tests an operator with."""
    refused = {
        (key, str(error))
        for key, made in operators.cases().items()
        for model, _ in made
        if (error := refusal(model.SerializeToString()))
    }
    # Text, which is left out.
    assert not {(key, why) for key, why in refused if "text" not in why}
    assert {key for key, _ in refused} <= {
        ("", name)
        for name in ("Cast", "CastLike", "Constant", "Identity", "Equal", "Optional", "Loop", "Unique")
    } | {("ai.onnx.ml", "LabelEncoder")}
    assert len(operators.cases()) > 150


def refusal(data):
    try:
        require_clean(read_graph(data, "it").data)
    except InvalidGraph as error:
        return error
    return None


def test_hostile_graphs_are_refused_or_clean():
    taken = sum(read(made.data) for made in hostile_graphs(500, seed=1))
    assert 100 < taken < 450  # some pass, to be tried on a cell; some do not


def test_what_is_written_is_what_onnx_s_checker_takes():
    for name, data in mutation.real().items():
        onnx.checker.check_model(read_graph(data, name).data, full_check=True)
