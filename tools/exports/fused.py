"""BERT as ONNX Runtime's optimizer fuses it: EmbedLayerNormalization, Attention, SkipLayerNormalization.

`python -m tools.exports.fused FOLDER [--fixtures] [--minilm FOLDER]`, with a `transformers` that the
optimizer knows the exports of: 4.36.2, in a folder of its own on PYTHONPATH. In what today's export it finds
no attention.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import transformers as T
from onnxruntime.transformers import optimizer
from torch import Tensor

from tools.exports.bare import bare
from tools.exports.weights import liven

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class _Typed(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        found: Tensor = self.model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fixtures", action="store_true")
    parser.add_argument("--minilm", default="")
    said = parser.parse_args()
    torch.manual_seed(0)
    heads, head = 6, 4 if said.fixtures else 32
    config = T.BertConfig(
        hidden_size=heads * head,
        num_hidden_layers=2 if said.fixtures else 3,
        num_attention_heads=heads,
        intermediate_size=20 if said.fixtures else 512,
        vocab_size=40 if said.fixtures else 600,
        max_position_embeddings=64 if said.fixtures else 512,
    )
    model = T.BertModel(config)
    liven(model)
    write(said.folder / "bert_fused.onnx", model, heads, heads * head)
    if said.minilm:
        model = T.BertModel.from_pretrained(said.minilm)
        write(said.folder / "minilm_fused.onnx", model, 12, 384)
    if said.fixtures:
        bare(said.folder / "bert_fused.onnx")
    return 0


def write(path: Path, model: torch.nn.Module, heads: int, width: int) -> None:
    """Export by TorchScript at opset 17, and fuse.

    Raises:
        ValueError: it found no attention to fuse.
    """
    ids = torch.randint(3, 40, (2, 19))
    arguments = (ids, torch.ones_like(ids), torch.zeros_like(ids))
    plain = path.with_suffix(".plain.onnx")
    torch.onnx.export(
        _Typed(model.eval()),
        arguments,
        str(plain),
        input_names=INPUTS,
        output_names=("last_hidden_state",),
        dynamic_axes={name: {0: "batch", 1: "sequence"} for name in (*INPUTS, "last_hidden_state")},
        opset_version=17,
        dynamo=False,
    )
    found = optimizer.optimize_model(str(plain), "bert", num_heads=heads, hidden_size=width, opt_level=0)
    plain.unlink()
    counts = found.get_fused_operator_statistics()
    if not counts["Attention"]:
        raise ValueError(f"{path.name}: {counts}")
    found.save_model_to_file(str(path))
    print(f"{path.name}: { ({name: count for name, count in counts.items() if count}) }")


if __name__ == "__main__":
    sys.exit(main())
