"""Decoders as onnxruntime-genai's builder writes them: GroupQueryAttention, packed queries, keys and values.

`python -m tools.exports.genai FOLDER [--fixtures]`, with `onnxruntime-genai` beside what tools.exports needs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
import transformers as T
from tokenizers import Tokenizer, models

from tools.exports.bare import bare
from tools.exports.weights import liven


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fixtures", action="store_true")
    said = parser.parse_args()
    torch.manual_seed(0)
    for name, model in _models(said.fixtures):
        for precision in ("fp32", "int4"):
            path = said.folder / f"{name}_genai{'' if precision == 'fp32' else '_int4'}.onnx"
            write(path, model, precision)
            if said.fixtures:
                bare(path)
            print(path.name)
    return 0


def _models(small: bool) -> Iterator[tuple[str, Any]]:
    common = {
        "hidden_size": 32 if small else 256,
        "num_hidden_layers": 2 if small else 3,
        "num_attention_heads": 4 if small else 8,
        "head_dim": 16 if small else 32,
        "intermediate_size": 32 if small else 512,
        "vocab_size": 40 if small else 600,
        "max_position_embeddings": 32 if small else 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    yield "llama", T.LlamaForCausalLM(T.LlamaConfig(**common, num_key_value_heads=2))
    if not small:
        yield "qwen3", T.Qwen3ForCausalLM(T.Qwen3Config(**common, num_key_value_heads=4))


def write(path: Path, model: Any, precision: str) -> None:
    """Build the file of a model, weights within."""
    liven(model)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(8)}, unk_token="w0"))
    with tempfile.TemporaryDirectory() as scratch:
        source, made = Path(scratch, "source"), Path(scratch, "made")
        model.save_pretrained(source)
        T.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(source)
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-e", "cpu", "-p", precision]
        where = ["-i", source, "-o", made, "-c", Path(scratch, "cache")]
        subprocess.run([*builder, *where], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        onnx.save(onnx.load(made / "model.onnx"), path)


if __name__ == "__main__":
    sys.exit(main())
