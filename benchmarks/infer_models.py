"""The models of the benchmark of cut models: encoders of known sizes, as files, with random weights.

How long a product takes does not depend on the values in it, so MiniLM's sizes are enough; answers are
compared with the whole file's all the same. `EDGE_ATTENTION_MINILM` names a file to take instead.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from edge_attention.core.tensors import Array
from edge_attention.graphs.builders.encoder import attention_encoder

__all__ = ["BASE", "BASE_OF_SIX", "MINILM", "EncoderSizes", "feeds_of", "model_file", "whole_session"]


@dataclass(frozen=True)
class EncoderSizes:
    """A BERT encoder's."""

    name: str
    width: int
    layers: int
    heads: int
    vocabulary: int = 2_000
    positions: int = 512


MINILM = EncoderSizes("minilm", 384, 6, 12)
BASE = EncoderSizes("bert-base of 4 layers", 768, 4, 12)
BASE_OF_SIX = EncoderSizes("bert-base of 6 layers", 768, 6, 12)


def model_file(sizes: EncoderSizes, folder: Path) -> Path:
    """The encoder as a file in `folder`."""
    if sizes is MINILM and (given := os.environ.get("EDGE_ATTENTION_MINILM")):
        return Path(given)
    path = folder / f"{sizes.name.replace(' ', '-')}.onnx"
    path.write_bytes(attention_encoder(_weights(sizes), sizes.heads))
    return path


def _weights(sizes: EncoderSizes) -> Mapping[str, Array]:
    """As `transformers` names them: matrices [outputs, inputs]."""
    random = np.random.default_rng(0)
    wide = 4 * sizes.width

    def matrix(rows: int, columns: int) -> Array:
        return random.standard_normal((rows, columns), np.float32) * np.float32(columns**-0.5)

    def linear(name: str, inputs: int, outputs: int) -> None:
        found[f"{name}.weight"] = matrix(outputs, inputs)
        found[f"{name}.bias"] = np.zeros(outputs, np.float32) + np.float32(0.01)

    def norm(name: str) -> None:
        found[f"{name}.weight"] = np.ones(sizes.width, np.float32)
        found[f"{name}.bias"] = random.standard_normal(sizes.width, np.float32) * np.float32(0.01)

    found: dict[str, Array] = {
        "embeddings.word_embeddings.weight": matrix(sizes.vocabulary, sizes.width),
        "embeddings.position_embeddings.weight": matrix(sizes.positions, sizes.width),
        "embeddings.token_type_embeddings.weight": matrix(2, sizes.width),
    }
    norm("embeddings.LayerNorm")
    for layer in range(sizes.layers):
        at = f"encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            linear(f"{at}.attention.self.{part}", sizes.width, sizes.width)
        linear(f"{at}.attention.output.dense", sizes.width, sizes.width)
        norm(f"{at}.attention.output.LayerNorm")
        linear(f"{at}.intermediate.dense", sizes.width, wide)
        linear(f"{at}.output.dense", wide, sizes.width)
        norm(f"{at}.output.LayerNorm")
    return found


def feeds_of(path: Path, batch: int, length: int) -> dict[str, Array]:
    """Token ids that every vocabulary has, all of them real."""
    names = [value.name for value in whole_session(path).get_inputs()]
    ids = np.random.default_rng(1).integers(1, 500, (batch, length))
    return {name: ids if "ids" in name and "type" not in name else np.ones_like(ids) for name in names}


def whole_session(path: Path) -> onnxruntime.InferenceSession:
    """The whole model on one thread, as a node runs it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
