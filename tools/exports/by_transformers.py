"""Decoders as the exporter of `transformers` itself writes them (`transformers.exporters`, from 5.24).

python -m tools.exports.by_transformers FOLDER

With what tools.exports needs and `transformers>=5.24`. FOLDER/transformers_NAME.onnx: the small ones that the
tests have, the step with a past (`decode.onnx`) of what `export_for_generation` makes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import transformers as T
from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

from tools.exports.bare import bare
from tools.exports.weights import liven

WORDS = 40
_SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 20,
    "vocab_size": WORDS,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
KINDS: dict[str, tuple[str, str | None]] = {
    "llama": ("", None),
    "llama_cuda": ("", "cuda"),
    "llama_static": ("static", None),
    "llama_static_cpu": ("static", "cpu"),
}
"""By file: the kind of cache, and for which provider of ONNX Runtime it is fused."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    said = parser.parse_intermixed_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for name in said.names or KINDS:
        cache, fused = KINDS[name]
        torch.manual_seed(0)
        model = T.LlamaForCausalLM(T.LlamaConfig(**_SIZES)).eval()
        liven(model)
        ids = torch.randint(3, WORDS, (2, 7))
        kind = {"cache_implementation": cache} if cache else {}
        made = OnnxExporter().export_for_generation(
            model,
            {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
            OnnxConfig(dynamic=True, ort_fusions=fused),
            generation_config=T.GenerationConfig(max_new_tokens=4, eos_token_id=None, **kind),
        )
        path = said.folder / f"transformers_{name}.onnx"
        with tempfile.TemporaryDirectory() as scratch:
            made.save_pretrained(scratch)
            decode = Path(scratch, "decode.onnx")
            bare(decode)  # with its weights inside
            path.write_bytes(decode.read_bytes())
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
