"""Encoders and decoders of one model as files that go together, as exporters for serving write them.

    NAME_encoder.onnx              ids, mask or features -> states
    NAME_decoder.onnx              ids, states -> logits, keys and values of ids and of states
    NAME_decoder_with_past.onnx    ids, keys and values of both -> logits, new keys and values
    NAME_decoder_merged.onnx       the two decoders in one file, which an If chooses between

python -m tools.exports.encoder_decoders FOLDER        the small ones that the tests have
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
import transformers as T
from onnx import TensorProto, helper
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from tools.exports.__main__ import write
from tools.exports.architectures import AUTO, BATCH, FIXTURE, SEQUENCE, Export, Sizes
from tools.exports.bare import bare

__all__ = ["files", "merged"]

_KINDS = ("decoder.key", "decoder.value", "encoder.key", "encoder.value")


class _States(torch.nn.Module):
    """What the encoder makes of its input."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, given: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        encoder = self.model.get_encoder()
        mask = {} if attention_mask is None else {"attention_mask": attention_mask}
        found: Tensor = encoder(given, **mask).last_hidden_state
        return found


class _First(torch.nn.Module):
    """The decoder's first step."""

    def __init__(self, model: Any, layers: int) -> None:
        super().__init__()
        self.model, self.layers = model, layers

    def forward(
        self, input_ids: Tensor, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        found = self.model(
            decoder_input_ids=input_ids,
            attention_mask=encoder_attention_mask,
            encoder_outputs=(encoder_hidden_states,),
            past_key_values=cache,
            use_cache=True,
        )
        return (found.logits, *_kept(found.past_key_values, self.layers, _KINDS))


class _Step(torch.nn.Module):
    """All others: keys and values of what came before are inputs."""

    def __init__(self, model: Any, layers: int, width: int) -> None:
        super().__init__()
        self.model, self.layers, self.width = model, layers, width

    def forward(
        self, input_ids: Tensor, past: list[Tensor], encoder_attention_mask: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        own, cross = DynamicCache(), DynamicCache()
        for layer in range(self.layers):
            key, value, cross_key, cross_value = past[4 * layer : 4 * layer + 4]
            own.update(key, value, layer)
            cross.update(cross_key, cross_value, layer)
        cache = EncoderDecoderCache(own, cross)
        for layer in range(self.layers):
            cache.is_updated[layer] = True
        # Only its size is looked at.
        states = input_ids.new_zeros((input_ids.shape[0], past[2].shape[2], self.width), dtype=torch.float32)
        found = self.model(
            decoder_input_ids=input_ids,
            attention_mask=encoder_attention_mask,
            encoder_outputs=(states,),
            past_key_values=cache,
            use_cache=True,
        )
        return (found.logits, *_kept(found.past_key_values, self.layers, _KINDS[:2]))


def _kept(cache: Any, layers: int, kinds: tuple[str, ...]) -> list[Tensor]:
    found = []
    for layer in range(layers):
        for kind in kinds:
            of = cache.self_attention_cache if kind.startswith("decoder") else cache.cross_attention_cache
            one = of.layers[layer]
            found.append(one.keys if kind.endswith("key") else one.values)
    return found


def _t5(sizes: Sizes) -> Any:
    return T.T5ForConditionalGeneration(
        T.T5Config(
            d_model=6 * sizes.head,
            d_kv=sizes.head,
            d_ff=sizes.feedforward,
            num_layers=sizes.layers,
            num_heads=6,
            vocab_size=sizes.vocabulary,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=20,
            decoder_start_token_id=0,
        )
    )


def _whisper(sizes: Sizes) -> Any:
    return T.WhisperForConditionalGeneration(
        T.WhisperConfig(
            d_model=6 * sizes.head,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=6,
            decoder_attention_heads=6,
            encoder_ffn_dim=sizes.feedforward,
            decoder_ffn_dim=sizes.feedforward,
            vocab_size=sizes.vocabulary,
            max_source_positions=12,
            max_target_positions=64,
            num_mel_bins=8,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
            begin_suppress_tokens=None,
            attn_implementation="sdpa",
        )
    )


def files(sizes: Sizes, dynamo: bool = True) -> Iterator[Export]:
    """Of T5 and Whisper; `dynamo`: by `torch.export`, else by TorchScript."""
    yield from _files("t5", _t5, sizes, True, dynamo)
    yield from _files("whisper", _whisper, sizes, False, dynamo)


def _files(
    name: str, make: Callable[[Sizes], Any], sizes: Sizes, text: bool, dynamo: bool
) -> Iterator[Export]:
    generator = torch.Generator().manual_seed(4)
    batch, tokens, past, width = 2, 11 if text else 12, 7, 6 * sizes.head
    layers = sizes.layers if text else 2
    ids = torch.randint(3, sizes.vocabulary, (batch, tokens), generator=generator)
    mask = torch.ones(batch, tokens, dtype=torch.long)
    mel = torch.randn(batch, 8, 24, generator=generator)
    states = torch.randn(batch, tokens, width, generator=generator)
    kept = [
        torch.randn(batch, 6, past if number % 4 < 2 else tokens, sizes.head, generator=generator)
        for number in range(4 * layers)
    ]
    source = torch.export.Dim("source", min=2, max=512)
    pairs = [f"{layer}.{kind}" for layer in range(layers) for kind in _KINDS]
    opset = None if dynamo else 17
    if text:
        encoder = Export(
            f"{name}_encoder", lambda: _States(make(sizes)), (ids, mask), ("input_ids", "attention_mask"),
            ("last_hidden_state",), ({0: BATCH, 1: source}, {0: BATCH, 1: source}), dynamo, opset,
        )  # fmt: skip
    else:
        encoder = Export(
            f"{name}_encoder", lambda: _States(make(sizes)), (mel,), ("input_features",),
            ("last_hidden_state",), ({0: BATCH},), dynamo, opset,
        )  # fmt: skip
    yield encoder
    masks = ((mask,), ("encoder_attention_mask",)) if text else ((), ())
    yield Export(
        f"{name}_decoder", lambda: _First(make(sizes), layers), (ids[:, :5], states, *masks[0]),
        ("input_ids", "encoder_hidden_states", *masks[1]),
        ("logits", *(f"present.{pair}" for pair in pairs)),
        ({0: BATCH, 1: SEQUENCE}, {0: BATCH, 1: source}, *({0: BATCH, 1: source} for _ in masks[0])),
        dynamo, opset,
    )  # fmt: skip
    yield Export(
        f"{name}_decoder_with_past", lambda: _Step(make(sizes), layers, width), (ids[:, :1], kept, *masks[0]),
        ("input_ids", *(f"past_key_values.{pair}" for pair in pairs), *masks[1]),
        ("logits", *(f"present.{pair}" for pair in pairs if ".decoder." in pair)),
        ({0: AUTO}, [{0: AUTO, 2: AUTO} for _ in kept], *({0: AUTO, 1: AUTO} for _ in masks[0])),
        dynamo, opset,
    )  # fmt: skip


def merged(first: Path, step: Path, path: Path) -> None:
    """Both decoders as one file: an If on `use_cache_branch`; weights alike once, outside of it."""
    models = [onnx.load(first), onnx.load(step)]
    inputs, held = {}, {}
    branches = []
    outputs = [value.name for value in models[0].graph.output]
    for number, model in enumerate(models):
        graph = model.graph
        inputs |= {value.name: value for value in graph.input if value.name not in inputs}
        names = {value.name for value in graph.input}
        called: dict[str, str] = {}
        for tensor in graph.initializer:
            key = tensor.data_type, tuple(tensor.dims), tensor.raw_data
            called[tensor.name] = held.setdefault(key, (f"w{len(held)}", tensor))[0]
        for node in graph.node:
            called |= {name: f"{number}/{name}" for name in node.output if name}
        nodes = []
        for node in graph.node:
            for field in (node.input, node.output):
                for at, name in enumerate(field):
                    field[at] = name if name in names else called.get(name, name)
            nodes.append(node)
        made = {value.name: called[value.name] for value in graph.output}
        for name in outputs:  # what a step does not give again it gives as it was
            if name not in made:
                made[name] = f"{number}/{name}"
                past = name.replace("present", "past_key_values")
                nodes.append(helper.make_node("Identity", [past], [made[name]]))
        ends = [helper.make_tensor_value_info(made[name], TensorProto.FLOAT, None) for name in outputs]
        branches.append(helper.make_graph(nodes, f"branch{number}", [], ends))
    chooses = helper.make_node(
        "If", ["use_cache_branch"], outputs, then_branch=branches[1], else_branch=branches[0]
    )
    tensors = []
    for name, tensor in held.values():
        tensor.name = name
        tensors.append(tensor)
    flag = helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1])
    graph = helper.make_graph(
        [chooses], "merged", [*inputs.values(), flag], list(models[0].graph.output), tensors
    )
    model = helper.make_model(
        graph, opset_imports=list(models[0].opset_import), ir_version=models[0].ir_version
    )
    onnx.save(model, path)


def main() -> int:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for one in files(FIXTURE):
        write(one, folder / f"{one.name}.onnx", small=True)
        print(one.name, flush=True)
    first, step = (folder / f"t5_decoder{kind}.onnx" for kind in ("", "_with_past"))
    merged(first, step, folder / "t5_decoder_merged.onnx")
    bare(folder / "t5_decoder_merged.onnx")
    return 0


if __name__ == "__main__":
    sys.exit(main())
