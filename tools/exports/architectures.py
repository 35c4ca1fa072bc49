"""Architectures of `transformers` with random weights, and what of them is exported with which exporter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers as T
from torch import Tensor
from transformers.cache_utils import DynamicCache

__all__ = ["FIXTURE", "TABLE", "Export", "Sizes", "exports", "minilm"]

AUTO = torch.export.Dim.AUTO
BATCH = torch.export.Dim("batch")
SEQUENCE = torch.export.Dim("sequence", min=2, max=512)

Dynamic = Sequence[Any]


@dataclass(frozen=True)
class Sizes:
    """How large the random models are: what counts is how they are built."""

    head: int
    layers: int
    feedforward: int
    vocabulary: int
    image: int = 64
    patch: int = 16


TABLE = Sizes(head=32, layers=3, feedforward=512, vocabulary=600)
FIXTURE = Sizes(head=4, layers=2, feedforward=20, vocabulary=40, image=16, patch=4)


@dataclass(frozen=True)
class Export:
    """One file.

    Attributes:
        module: makes the model; nothing is made of files that nobody asked for.
        arguments: what it is traced with.
        dynamic: by argument, which of its axes may have other sizes.
        dynamo: by `torch.export`; else by TorchScript.
        quantised: to int8, by ONNX Runtime's `quantize_dynamic`.
        random: whether weights are made up; a model's own stay as they are.
    """

    name: str
    module: Callable[[], torch.nn.Module]
    arguments: tuple[Any, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic: Dynamic
    dynamo: bool = True
    opset: int | None = None
    quantised: bool = False
    random: bool = True


class _Encoder(torch.nn.Module):
    """One output of a model over token ids and their mask."""

    def __init__(self, model: torch.nn.Module, output: str = "last_hidden_state") -> None:
        super().__init__()
        self.model, self.output = model, output

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        found: Tensor = getattr(self.model(input_ids=input_ids, attention_mask=attention_mask), self.output)
        return found


class _Images(torch.nn.Module):
    """One output of a model over one tensor: pixels, or a spectrogram."""

    def __init__(self, model: torch.nn.Module, output: str = "last_hidden_state") -> None:
        super().__init__()
        self.model, self.output = model, output

    def forward(self, pixel_values: Tensor) -> Tensor:
        found: Tensor = getattr(self.model(pixel_values), self.output)
        return found


class _Decoder(torch.nn.Module):
    """A decoder over a whole prompt."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        found: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        return found


class _CachedDecoder(torch.nn.Module):
    """A decoder over the tokens that are new; the keys and values of the others are inputs."""

    def __init__(self, model: torch.nn.Module, layers: int) -> None:
        super().__init__()
        self.model, self.layers = model, layers

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        cache = DynamicCache()
        for layer in range(self.layers):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        found = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        outputs = [found.logits]
        for layer in cache.layers[: self.layers]:
            outputs += [layer.keys, layer.values]
        return tuple(outputs)


class _CrossDecoder(torch.nn.Module):
    """A decoder over a whole prompt and what an encoder has made of something else."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        found: Tensor = self.model(
            input_ids=input_ids, encoder_hidden_states=encoder_hidden_states, use_cache=False
        ).last_hidden_state
        return found


def _ids(sizes: Sizes, tokens: int = 19) -> tuple[Tensor, Tensor]:
    """Token ids and a mask, int64 [2, tokens]."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, sizes.vocabulary, (2, tokens), generator=generator)
    return ids, torch.ones(2, tokens, dtype=torch.long)


TOKENS: Dynamic = ({0: BATCH, 1: SEQUENCE}, {0: BATCH, 1: SEQUENCE})


def _text(
    name: str,
    sizes: Sizes,
    module: Callable[[], torch.nn.Module],
    output: str = "last_hidden_state",
    **options: Any,
) -> Export:
    return Export(name, module, _ids(sizes), ("input_ids", "attention_mask"), (output,), TOKENS, **options)


def minilm(folder: str) -> Iterator[Export]:
    """all-MiniLM-L6-v2 from its weights in `folder`, four ways."""

    def load(attention: str) -> Callable[[], torch.nn.Module]:
        return lambda: _Encoder(T.AutoModel.from_pretrained(folder, attn_implementation=attention))

    def one(name: str, attention: str, **options: Any) -> Export:
        return _text(f"minilm_{name}", Sizes(32, 6, 1536, 500), load(attention), random=False, **options)

    yield one("dynamo_sdpa", "sdpa")
    yield one("dynamo_eager", "eager")
    yield one("torchscript17", "sdpa", dynamo=False, opset=17)
    yield one("opset23", "sdpa", opset=23)
    yield one("int8", "eager", dynamo=False, opset=17, quantised=True)


def exports(sizes: Sizes) -> Iterator[Export]:
    """Every architecture with random weights of these sizes."""
    yield from _encoders(sizes)
    yield from _pictures(sizes)
    yield from _decoders(sizes)
    yield from _both(sizes)


def _bert(sizes: Sizes, attention: str = "sdpa", heads: int = 6) -> torch.nn.Module:
    return _Encoder(
        T.BertModel(
            T.BertConfig(
                hidden_size=heads * sizes.head,
                num_hidden_layers=sizes.layers,
                num_attention_heads=heads,
                intermediate_size=sizes.feedforward,
                vocab_size=sizes.vocabulary,
                max_position_embeddings=512 if sizes.head > 8 else 64,
                attn_implementation=attention,
            )
        )
    )


def _encoders(sizes: Sizes) -> Iterator[Export]:
    width, places = 6 * sizes.head, 512 if sizes.head > 8 else 64
    common: Mapping[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": 6,
        "intermediate_size": sizes.feedforward,
        "vocab_size": sizes.vocabulary,
        "max_position_embeddings": places,
    }
    yield _text("bert", sizes, lambda: _bert(sizes))
    yield _text("bert_torchscript17", sizes, lambda: _bert(sizes), dynamo=False, opset=17)
    yield _text("bert_opset23", sizes, lambda: _bert(sizes), opset=23)
    yield _text("bert_int8", sizes, lambda: _bert(sizes, "eager"), dynamo=False, opset=17, quantised=True)
    yield _text(
        "roberta",
        sizes,
        lambda: _Encoder(
            T.RobertaModel(T.RobertaConfig(**{**common, "max_position_embeddings": places + 2}))
        ),
    )
    yield _text(
        "distilbert",
        sizes,
        lambda: _Encoder(
            T.DistilBertForSequenceClassification(
                T.DistilBertConfig(
                    dim=width,
                    n_layers=sizes.layers,
                    n_heads=6,
                    hidden_dim=sizes.feedforward,
                    vocab_size=sizes.vocabulary,
                    max_position_embeddings=places,
                    num_labels=2,
                )
            ),
            "logits",
        ),
        "logits",
    )
    yield _text(
        "deberta_v2",
        sizes,
        lambda: _Encoder(
            T.DebertaV2Model(
                T.DebertaV2Config(
                    **common,
                    relative_attention=True,
                    pos_att_type=["p2c", "c2p"],
                    position_buckets=32 if sizes.head > 8 else 8,
                    max_relative_positions=-1,
                    norm_rel_ebd="layer_norm",
                    share_att_key=True,
                    position_biased_input=False,
                )
            )
        ),
    )
    yield _text(
        "modernbert",
        sizes,
        lambda: _Encoder(
            T.ModernBertModel(
                T.ModernBertConfig(
                    **{**common, "num_hidden_layers": sizes.layers + 1},
                    pad_token_id=0,
                    bos_token_id=1,
                    eos_token_id=2,
                    cls_token_id=1,
                    sep_token_id=2,
                    local_attention=8,
                    attn_implementation="sdpa",
                )
            )
        ),
    )


def _picture(name: str, sizes: Sizes, module: Callable[[], torch.nn.Module], output: str, **o: Any) -> Export:
    pixels = torch.randn(2, 3, sizes.image, sizes.image, generator=torch.Generator().manual_seed(2))
    return Export(name, module, (pixels,), ("pixel_values",), (output,), ({0: BATCH},), **o)


def _pictures(sizes: Sizes) -> Iterator[Export]:
    width = 6 * sizes.head
    common: Mapping[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": 6,
        "intermediate_size": sizes.feedforward,
        "image_size": sizes.image,
        "patch_size": sizes.patch,
        "attn_implementation": "sdpa",
    }

    def vit() -> torch.nn.Module:
        return _Images(T.ViTModel(T.ViTConfig(**common), add_pooling_layer=False))

    yield _picture("vit", sizes, vit, "last_hidden_state")
    yield _picture("vit_torchscript17", sizes, vit, "last_hidden_state", dynamo=False, opset=17)
    yield _picture(
        "clip_vision",
        sizes,
        lambda: _Images(T.CLIPVisionModel(T.CLIPVisionConfig(**common)), "pooler_output"),
        "pooled",
    )
    yield _picture(
        "swin",
        sizes,
        lambda: _Images(
            T.SwinModel(
                T.SwinConfig(
                    image_size=sizes.image,
                    patch_size=sizes.patch // 4 if sizes.patch > 4 else 2,
                    embed_dim=24 if sizes.head > 8 else 8,
                    depths=[2, 2],
                    num_heads=[2, 4],
                    window_size=4 if sizes.head > 8 else 2,
                )
            )
        ),
        "last_hidden_state",
    )


def _grouped(sizes: Sizes, heads: int, keys: int) -> Mapping[str, Any]:
    return {
        "hidden_size": heads * sizes.head,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "head_dim": sizes.head,
        "intermediate_size": sizes.feedforward,
        "vocab_size": sizes.vocabulary,
        "max_position_embeddings": 512 if sizes.head > 8 else 64,
        "attn_implementation": "sdpa",
    }


def _cached(name: str, sizes: Sizes, module: Callable[[], torch.nn.Module], keys: int) -> Export:
    batch, past, new = 2, 11, 1
    generator = torch.Generator().manual_seed(3)
    kept = [torch.randn(batch, keys, past, sizes.head, generator=generator) for _ in range(2 * sizes.layers)]
    arguments = (
        torch.randint(3, sizes.vocabulary, (batch, new), generator=generator),
        torch.ones(batch, past + new, dtype=torch.long),
        torch.full((batch, new), past),
        kept,
    )
    pairs = [f"{layer}_{kind}" for layer in range(sizes.layers) for kind in ("key", "value")]
    return Export(
        name,
        lambda: _CachedDecoder(module(), sizes.layers),
        arguments,
        ("input_ids", "attention_mask", "position_ids", *(f"past_{pair}" for pair in pairs)),
        ("logits", *(f"present_{pair}" for pair in pairs)),
        ({0: AUTO}, {0: AUTO, 1: AUTO}, {0: AUTO}, [{0: AUTO, 2: AUTO} for _ in kept]),
    )


def _decoders(sizes: Sizes) -> Iterator[Export]:
    def llama() -> torch.nn.Module:
        return T.LlamaForCausalLM(T.LlamaConfig(**_grouped(sizes, 8, 2)))

    def qwen() -> torch.nn.Module:
        return T.Qwen3ForCausalLM(T.Qwen3Config(**_grouped(sizes, 8, 4)))

    def gpt2() -> torch.nn.Module:
        return T.GPT2LMHeadModel(
            T.GPT2Config(
                n_embd=6 * sizes.head,
                n_layer=sizes.layers,
                n_head=6,
                n_inner=sizes.feedforward,
                vocab_size=sizes.vocabulary,
                n_positions=512 if sizes.head > 8 else 64,
                attn_implementation="sdpa",
            )
        )

    yield _text("llama", sizes, lambda: _Decoder(llama()), "logits")
    yield _text("qwen3", sizes, lambda: _Decoder(qwen()), "logits")
    yield _text("gpt2", sizes, lambda: _Decoder(gpt2()), "logits")
    yield _cached("llama_cached", sizes, llama, 2)
    yield _cached("qwen3_cached", sizes, qwen, 4)
    yield _cached("gpt2_cached", sizes, gpt2, 6)


def _both(sizes: Sizes) -> Iterator[Export]:
    """Encoders and decoders of models that have both."""
    width, frames = 6 * sizes.head, 50 if sizes.head > 8 else 12

    def whisper() -> Any:
        return T.WhisperModel(
            T.WhisperConfig(
                d_model=width,
                encoder_layers=2,
                decoder_layers=2,
                encoder_attention_heads=6,
                decoder_attention_heads=6,
                encoder_ffn_dim=sizes.feedforward,
                decoder_ffn_dim=sizes.feedforward,
                vocab_size=sizes.vocabulary,
                max_source_positions=frames,
                max_target_positions=64,
                num_mel_bins=80 if sizes.head > 8 else 8,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                decoder_start_token_id=1,
                begin_suppress_tokens=None,
                attn_implementation="sdpa",
            )
        )

    def t5() -> Any:
        return T.T5Model(
            T.T5Config(
                d_model=width,
                d_kv=sizes.head,
                d_ff=sizes.feedforward,
                num_layers=sizes.layers,
                num_heads=6,
                vocab_size=sizes.vocabulary,
                decoder_start_token_id=0,
            )
        )

    generator = torch.Generator().manual_seed(4)
    mel = torch.randn(2, 80 if sizes.head > 8 else 8, 2 * frames, generator=generator)
    ids, _ = _ids(sizes)
    yield Export(
        "whisper_encoder",
        lambda: _Images(whisper().encoder),
        (mel,),
        ("input_features",),
        ("last_hidden_state",),
        ({0: BATCH},),
    )
    hidden = torch.randn(2, frames, width, generator=generator)
    cross = ("input_ids", "encoder_hidden_states"), ("last_hidden_state",)
    yield Export(
        "whisper_decoder",
        lambda: _CrossDecoder(whisper().decoder),
        (ids, hidden),
        *cross,
        ({0: BATCH, 1: SEQUENCE}, {0: BATCH}),
    )
    yield _text("t5_encoder", sizes, lambda: _Encoder(t5().encoder))
    yield Export(
        "t5_decoder",
        lambda: _CrossDecoder(t5().decoder),
        (ids, hidden),
        *cross,
        ({0: BATCH, 1: SEQUENCE}, {0: BATCH, 1: torch.export.Dim("source", min=2, max=512)}),
    )
