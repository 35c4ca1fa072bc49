"""A node's share of a round, in NumPy: next to nothing, or one epoch of the digits' network."""

from __future__ import annotations

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """The parameters after local steps over the rows of this node's file (.npz)."""
    arrays = message.content["arrays"].to_numpy_ndarrays()
    config = message.content["config"]
    number = int(config["server-round"])
    with np.load(str(context.node_config["data"])) as data:
        if "image" in data:
            rng = np.random.default_rng((int(context.node_config["partition"]), number))
            rows = data["image"].reshape(len(data["image"]), -1), data["label"]
            trained = epoch(arrays, *rows, int(config["batch"]), float(config["lr"]), rng)
            samples = len(rows[1])
        else:
            trained = idle(arrays, data["x"][number % len(data["x"])], float(config["lr"]))
            samples = len(data["x"])
    content = RecordDict({"arrays": ArrayRecord(trained), "metrics": MetricRecord({"num-examples": samples})})
    return Message(content=content, reply_to=message)


def idle(arrays: list[np.ndarray], row: np.ndarray, lr: float) -> list[np.ndarray]:
    """One step on `row` [k]: loss = sum over parameters [k, m] of mean(row @ p), so d p = row / m."""
    return [p - (np.float32(lr) / p.shape[1] * row)[:, None] for p in arrays]


def epoch(
    arrays: list[np.ndarray],
    image: np.ndarray,
    label: np.ndarray,
    batch: int,
    lr: float,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """SGD over every whole batch of the rows, on softmax(relu(x w0 + b0) w1 + b1) and cross entropy."""
    w0, b0, w1, b1 = (array.copy() for array in arrays)
    order = rng.permutation(len(label))
    step = np.float32(lr)
    for start in range(0, len(order) - batch + 1, batch):
        rows = order[start : start + batch]
        x, y = image[rows], label[rows]
        hidden = np.maximum(x @ w0 + b0, 0)
        scores = hidden @ w1 + b1
        share = np.exp(scores - scores.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        share[np.arange(batch), y] -= 1
        share /= np.float32(batch)
        back = (share @ w1.T) * (hidden > 0)
        w1 -= step * (hidden.T @ share)
        b1 -= step * share.sum(0)
        w0 -= step * (x.T @ back)
        b0 -= step * back.sum(0)
    return [w0, b0, w1, b1]
