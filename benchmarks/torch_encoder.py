"""A transformer encoder in PyTorch as its users write it, its export to ONNX, and its own gradients.

    python -m benchmarks.torch_encoder FOLDER     # writes what tests/graphs/data holds

Token and position embeddings, blocks of layer norm, one product for queries, keys and values,
scaled_dot_product_attention, GELU, mean over tokens. Default initial values: all layer norms are equal, and
exporters merge them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch  # type: ignore[import-not-found, unused-ignore]
import torch.nn.functional as functional  # type: ignore[import-not-found, unused-ignore]
from torch import nn

VOCABULARY, CLASSES = 64, 5
EXPORTS = ("18", "23", "default", "torchscript")


@dataclass(frozen=True)
class Size:
    """How large an encoder, and the batch it trains on."""

    batch: int
    tokens: int
    width: int
    heads: int
    layers: int


class Block(nn.Module):  # type: ignore[misc, unused-ignore]
    """Attention and feed-forward, each after a layer norm and beside a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Any) -> Any:
        batch, tokens, width = x.shape
        joined = self.qkv(self.norm_1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = joined.permute(2, 0, 3, 1, 4).unbind(0)
        attended = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(functional.gelu(self.up(self.norm_2(x))))


class Encoder(nn.Module):  # type: ignore[misc, unused-ignore]
    """Tokens [B, T] int64 to logits [B, 5]."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, size.width)
        self.position = nn.Parameter(torch.randn(size.tokens, size.width) * 0.1)
        self.blocks = nn.ModuleList(Block(size.width, size.heads) for _ in range(size.layers))
        self.norm, self.head = nn.LayerNorm(size.width), nn.Linear(size.width, CLASSES)

    def forward(self, tokens: Any) -> Any:
        x = self.embedding(tokens) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def build(size: Size) -> tuple[Any, Any, Any]:
    """The encoder, tokens and labels: the same in every process."""
    torch.manual_seed(0)
    model = Encoder(size).eval()
    tokens = torch.randint(0, VOCABULARY, (size.batch, size.tokens))
    return model, tokens, torch.randint(0, CLASSES, (size.batch,))


def step(model: Any, tokens: Any, labels: Any) -> float:
    """One forward and backward pass, eager; the gradients stay in the model. Returns the loss."""
    model.zero_grad()
    loss = functional.cross_entropy(model(tokens), labels)
    loss.backward()
    return float(loss.detach())


def export(size: Size, how: str, path: Path) -> None:
    """Write the encoder as ONNX with a dynamic batch; `how` is one of EXPORTS."""
    model, tokens, _ = build(size)
    names: dict[str, Any] = {"input_names": ["tokens"], "output_names": ["logits"]}
    if how == "torchscript":
        names |= {"dynamo": False, "opset_version": 18}
        names |= {"dynamic_axes": {"tokens": {0: "n"}, "logits": {0: "n"}}}
    else:
        names |= {"dynamic_shapes": ({0: "n"},), "external_data": False}
        names |= {} if how == "default" else {"dynamo": True, "opset_version": int(how)}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (tokens[:3],), str(path), **names)


def reference(size: Size, steps: int, rate: float) -> dict[str, Any]:
    """Data, the first loss and gradients, and the parameters before and after `steps` of gradient descent."""
    model, tokens, labels = build(size)
    named = dict(model.named_parameters())
    arrays: dict[str, Any] = {"tokens": tokens.numpy(), "labels": labels.numpy()}
    arrays |= {f"start/{name}": value.detach().numpy().copy() for name, value in named.items()}
    arrays["loss"] = np.array(step(model, tokens, labels), np.float32)
    arrays |= {f"grad/{name}": value.grad.numpy().copy() for name, value in named.items()}
    for _ in range(steps):
        step(model, tokens, labels)
        with torch.no_grad():
            for value in named.values():
                value -= rate * value.grad
    return arrays | {f"end/{name}": value.detach().numpy().copy() for name, value in named.items()}


def _without_traces(path: Path) -> None:
    """Take the stack traces out of an exported file: they hold the paths of the machine it was made on."""
    model = onnx.load(path)
    for node in model.graph.node:
        kept = [note for note in node.metadata_props if "stack_trace" not in note.key]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(model, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the files of tests/graphs/data.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    size = Size(batch=4, tokens=6, width=16, heads=2, layers=2)
    for how in EXPORTS:
        path = folder / f"encoder_{how}.onnx"
        export(size, how, path)
        _without_traces(path)
    arrays = {name: a for name, a in reference(size, 0, 0.0).items() if not name.startswith("end/")}
    np.savez_compressed(folder / "encoder.npz", **arrays)


if __name__ == "__main__":
    main()
