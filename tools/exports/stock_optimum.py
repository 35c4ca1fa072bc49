"""Encoders and decoders as `optimum-cli export onnx` writes them.

python -m tools.exports.stock_optimum FOLDER

With `optimum-onnx==0.1.0 'transformers==4.57.*'` in a folder of their own on PYTHONPATH, beside what
tools.exports needs. FOLDER/optimum_NAME_decoder.onnx, ..._with_past.onnx and, of T5, ..._merged.onnx: the
small ones that the tests have; and optimum_llama_merged.onnx, a decoder's two steps as older versions merged
them. `--whole`: FOLDER/NAME/ has all that optimum writes, to be deployed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers as T
from optimum.exporters.onnx import export, main_export
from optimum.exporters.tasks import TasksManager
from optimum.onnx.graph_transformations import merge_decoders
from tokenizers import Tokenizer, models

from tools.exports.bare import bare
from tools.exports.weights import liven

HEADS, WIDTH, INNER, WORDS, LAYERS = 6, 24, 20, 40, 2
TEXT, SPEECH = "text2text-generation-with-past", "automatic-speech-recognition-with-past"
FILES = {"decoder_model": "decoder", "decoder_with_past_model": "decoder_with_past"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--whole", action="store_true")
    said = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for name, model, task in (("t5", _t5(), TEXT), ("bart", _bart(), TEXT), ("whisper", _whisper(), SPEECH)):
        with tempfile.TemporaryDirectory() as scratch:
            made = said.folder / name if said.whole else Path(scratch, "made")
            _write(model, Path(scratch, "source"), made, task)
            if said.whole:
                continue
            merged = {"decoder_model_merged": "decoder_merged"} if name == "t5" else {}
            for theirs, ours in (FILES | merged).items():
                path = said.folder / f"optimum_{name}_{ours}.onnx"
                path.write_bytes((made / f"{theirs}.onnx").read_bytes())
                bare(path)
                print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB", flush=True)
    if not said.whole:
        _write_merged(_llama(), said.folder / "optimum_llama_merged.onnx")
    return 0


def _write_merged(model: Any, path: Path) -> None:
    """A decoder's two steps, exported one by one and merged."""
    liven(model)
    config = TasksManager.get_exporter_config_constructor(
        "onnx", model, task="text-generation", library_name="transformers"
    )
    with tempfile.TemporaryDirectory() as scratch:
        steps = [Path(scratch, f"{past}.onnx") for past in (False, True)]
        for past, step in enumerate(steps):
            export(model, config(model.config, use_past=True, use_past_in_inputs=bool(past)), step, opset=17)
        merge_decoders(*steps, save_path=path, strict=False)
    bare(path)
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB", flush=True)


def _write(model: Any, source: Path, made: Path, task: str) -> None:
    liven(model)
    model.save_pretrained(source)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w3"))
    T.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1", pad_token="w0").save_pretrained(source)
    if task == SPEECH:
        T.WhisperFeatureExtractor(feature_size=80).save_pretrained(source)
    main_export(str(source), output=made, task=task, do_validation=False)


def _llama() -> Any:
    return T.LlamaForCausalLM(
        T.LlamaConfig(
            hidden_size=WIDTH,
            intermediate_size=INNER,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS // 2,
            vocab_size=WORDS,
            max_position_embeddings=64,
        )
    )


def _t5() -> Any:
    return T.T5ForConditionalGeneration(
        T.T5Config(
            d_model=WIDTH,
            d_kv=WIDTH // HEADS,
            d_ff=INNER,
            num_layers=LAYERS,
            num_heads=HEADS,
            vocab_size=WORDS,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=20,
            decoder_start_token_id=0,
        )
    )


_SIZES = {
    "d_model": WIDTH,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": INNER,
    "decoder_ffn_dim": INNER,
    "vocab_size": WORDS,
    "pad_token_id": 0,
    "decoder_start_token_id": 1,
}


def _bart() -> Any:
    return T.BartForConditionalGeneration(
        T.BartConfig(**_SIZES, max_position_embeddings=64, bos_token_id=2, eos_token_id=1)
    )


def _whisper() -> Any:
    return T.WhisperForConditionalGeneration(
        T.WhisperConfig(
            **_SIZES,
            max_target_positions=64,
            num_mel_bins=80,
            bos_token_id=1,
            eos_token_id=2,
            begin_suppress_tokens=None,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
