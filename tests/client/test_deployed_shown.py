"""What a person is told of a deployed model, and how to ask it."""

from __future__ import annotations

import pytest

from edge_attention.cli.deployed_shown import TOLD, asked_by, print_model
from edge_attention.core.messages.inference import DeployedModel, DeploymentState, ModelTensor
from edge_attention.core.tensors import DataType


def tensors(count):
    return tuple(ModelTensor(f"past.{i}", DataType.FLOAT32, ("batch", "16")) for i in range(count))


def model(inputs=1, sessions=False):
    return DeployedModel(
        "m", 1, DeploymentState.SERVING, inputs=tensors(inputs), outputs=tensors(inputs), sessions=sessions
    )


@pytest.mark.parametrize(
    ("inputs", "sessions", "tokenizer", "command"),
    [
        (2, False, False, "infer m --input past.0=past.0.npy --input past.1=past.1.npy"),
        (TOLD + 1, False, False, "infer m --input inputs.npz"),
        (2, True, True, 'generate m "PROMPT"'),
        (2, True, False, "generate m --ids 1,2,3"),
    ],
)
def test_how_it_is_asked(inputs, sessions, tokenizer, command):
    assert asked_by(model(inputs, sessions), tokenizer) == f"edge-attention {command}"


def test_of_many_inputs_some_are_told(capsys):
    print_model(model(TOLD))
    assert "more" not in capsys.readouterr().out
    print_model(model(TOLD + 6))
    takes, gives = [line for line in capsys.readouterr().out.splitlines() if "past.0" in line]
    for line in (takes, gives):
        assert line.endswith(f"past.{TOLD - 1} float32 [batch, 16], and 6 more (--json)")
