"""The same training on one machine: the whole model's gradients by onnx-ad, the same optimizer, no parts."""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np
import onnxruntime as ort

from edge_attention.core.learning_rates import from_config as schedule_from
from edge_attention.core.messages.federated import LossSpec, NewHead
from edge_attention.core.optimizers import from_config as optimizer_from
from edge_attention.core.rounds.sampling import training_rows
from edge_attention.graphs.models.model import gradient_graph, load_model

MODELS = Path(__file__).parent / "aggregator/training/split/models"
"""Exports of transformers' BertModel and LlamaForCausalLM: 4 layers, narrow, random weights, 64 tokens."""
LETTERS = {
    letter: number for number, letter in enumerate(string.ascii_lowercase + " .,;:'()-\n0123456789", 1)
}
TEXT = Path(__file__).parents[1] / "LICENSE"


def text_rows(count, length):
    """Real text, as rows of `length` numbers of characters."""
    text = TEXT.read_text().lower()
    numbers = np.array([LETTERS.get(letter, 0) for letter in text], np.int64)
    numbers = np.tile(numbers, count * length // len(numbers) + 1)
    return numbers[: count * length].reshape(count, length)


def samples(kind, count=96, length=12):
    """What a model of that kind trains on: next characters, or how many vowels a row has."""
    rows = text_rows(count, length + 1)
    ones = np.ones((count, length), np.int64)
    if kind == "llama":
        return {"input_ids": rows[:, :-1], "attention_mask": ones, "labels": rows[:, 1:]}
    vowels = np.isin(rows[:, :-1], [LETTERS[letter] for letter in "aeiou"]).sum(1)
    ones[::5, length - 3 :] = 0
    return {
        "input_ids": rows[:, :-1],
        "attention_mask": ones,
        "labels": np.digitize(vowels, [3, 4, 5]).astype(np.int64),
    }


def model_of(kind):
    """File, loss, parameters, new head."""
    data = (MODELS / f"{kind}.onnx").read_bytes()
    if kind == "llama":
        return data, LossSpec("cross_entropy", "logits"), (), None
    return data, LossSpec("cross_entropy"), ("*",), NewHead(of="last_hidden_state", outputs=4, pool="mean")


def trained(
    kind, arrays, optimizer, schedule, steps, batch, *, seed=0, train=None, values=None, first=1, total=None
):
    """Losses and parameters after `steps` steps, each on a whole batch.

    From `values` on and step `first` of `total`, with an optimizer that begins anew, where they are given.
    """
    data, loss, parameters, head = model_of(kind)
    rows = {"data": {name: array.shape[1:] for name, array in arrays.items()}}
    model = load_model(
        data, loss=loss, parameters=train or parameters, head=head, rows=rows, seed=seed, place=kind
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    graph = gradient_graph(model, batch).SerializeToString()
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    taken = [value.name for value in session.get_inputs()]
    made = [value.name for value in session.get_outputs()]
    values = dict(values or model.parameters)
    rates = schedule_from(schedule[0], **schedule[1])
    state = optimizer_from(optimizer[0], **optimizer[1]).init(values)
    count = len(arrays["labels"])
    losses = []
    for step in range(first, first + steps):
        rows_of = training_rows(count, 0.0, batch, 1, seed, "", step)[0]
        feeds = {name: array[rows_of] for name, array in arrays.items()}
        feeds |= {f"x/{i}": value for i, value in enumerate(values.values())}
        found = dict(zip(made, session.run(made, {n: feeds[n] for n in taken}), strict=True))
        losses.append(float(found["loss"]))
        gradients = {name: found[f"grad/{i}"] for i, name in enumerate(values)}
        lr = optimizer[1]["lr"] * rates.factor(step, total or steps)
        stepped = optimizer_from(optimizer[0], **{**optimizer[1], "lr": lr})
        values, state = stepped.step(values, gradients, state)
    return losses, values
