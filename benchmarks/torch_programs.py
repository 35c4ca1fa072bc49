"""Small PyTorch programs of h [B, 12], a linear layer's output: one for each of what models usually do."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional

__all__ = ["DETACHED", "PROGRAMS", "Case"]

BATCH, CLASSES = 6, 3

DETACHED = {"straight-through"}
"""Programs whose gradient is not that of what they compute: an ONNX file knows no `detach`."""

Program = Callable[[Any], Any]
PROGRAMS: dict[str, Program] = {
    "roll": lambda h: torch.roll(h, 3, 1),
    "flip": lambda h: h.flip(1),
    "cumsum": lambda h: h.cumsum(1),
    "topk": lambda h: h.topk(5, 1)[0],
    "sort": lambda h: h.sort(1)[0],
    "gather": lambda h: h.gather(1, torch.tensor([[0, 3, 3, 1]]).expand(h.shape[0], 4)),
    "index": lambda h: h[:, [0, 2, 2, 5]],
    "where": lambda h: torch.where(h > 0, h * 2, h * 0.1),
    "logsumexp": lambda h: h.view(-1, 3, 4).logsumexp(2),
    "norm": lambda h: h.view(-1, 3, 4).norm(dim=2),
    "norm1": lambda h: h.view(-1, 3, 4).norm(p=1, dim=2),
    "clamp": lambda h: h.clamp(-0.5, 0.7),
    "max": lambda h: h.view(-1, 3, 4).max(2)[0],
    "amin": lambda h: h.view(-1, 3, 4).amin(2),
    "prod": lambda h: h.view(-1, 3, 4).prod(2),
    "std": lambda h: h.view(-1, 3, 4).std(2),
    "var": lambda h: h.view(-1, 3, 4).var(2, unbiased=False),
    "swiglu": lambda h: functional.silu(h[:, :6]) * h[:, 6:],
    "glu": lambda h: functional.glu(h),
    "softsign": functional.softsign,
    "hardtanh": functional.hardtanh,
    "hardswish": functional.hardswish,
    "hardsigmoid": functional.hardsigmoid,
    "logsoftmax": lambda h: h.log_softmax(1),
    "softmax": lambda h: h.view(-1, 3, 4).softmax(1).flatten(1),
    "selu": functional.selu,
    "celu": functional.celu,
    "elu": lambda h: functional.elu(h, 0.7),
    "mish": functional.mish,
    "softplus": lambda h: functional.softplus(h, 2.0),
    "gelu": functional.gelu,
    "gelutanh": lambda h: functional.gelu(h, approximate="tanh"),
    "leaky": functional.leaky_relu,
    "relu6": functional.relu6,
    "silu": functional.silu,
    "tanhshrink": functional.tanhshrink,
    "softshrink": functional.softshrink,
    "hardshrink": functional.hardshrink,
    "threshold": lambda h: functional.threshold(h, 0.1, -1.0),
    "logsigmoid": functional.logsigmoid,
    "tril": lambda h: h.view(-1, 3, 4).tril().flatten(1),
    "einsum": lambda h: torch.einsum("nij,nkj->nik", h.view(-1, 3, 4), h.view(-1, 3, 4)).flatten(1),
    "bmm": lambda h: torch.bmm(h.view(-1, 3, 4), h.view(-1, 4, 3)).flatten(1),
    "outer": lambda h: (h[:, :3, None] * h[:, None, 3:6]).flatten(1),
    "cos": lambda h: functional.cosine_similarity(h.view(-1, 3, 4), h.view(-1, 4, 3).transpose(1, 2), dim=2),
    "maxpool1d": lambda h: functional.max_pool1d(h[:, None], 3, 2).flatten(1),
    "avg1d": lambda h: functional.avg_pool1d(h[:, None], 3, 2, 1).flatten(1),
    "adaptavg": lambda h: functional.adaptive_avg_pool1d(h[:, None], 4).flatten(1),
    "adaptmax": lambda h: functional.adaptive_max_pool1d(h[:, None], 4).flatten(1),
    "adaptavg2": lambda h: functional.adaptive_avg_pool2d(h.view(-1, 1, 3, 4), (3, 2)).flatten(1),
    "lppool": lambda h: functional.lp_pool1d(h[:, None].exp(), 2, 3, stride=2).flatten(1),
    "interp-linear": lambda h: functional.interpolate(
        h[:, None], size=17, mode="linear", align_corners=True
    ).flatten(1),
    "interp-cubic": lambda h: functional.interpolate(
        h.view(-1, 1, 3, 4), scale_factor=2, mode="bicubic"
    ).flatten(1),
    "interp-down": lambda h: functional.interpolate(h[:, None], size=5, mode="nearest").flatten(1),
    "interp-bil-size": lambda h: functional.interpolate(
        h.view(-1, 1, 3, 4), size=(5, 7), mode="bilinear", align_corners=False
    ).flatten(1),
    "reflect": lambda h: functional.pad(h[:, None], (2, 3), mode="reflect").flatten(1),
    "replicate": lambda h: functional.pad(h[:, None], (2, 3), mode="replicate").flatten(1),
    "circular": lambda h: functional.pad(h[:, None], (2, 3), mode="circular").flatten(1),
    "constpad": lambda h: functional.pad(h, (2, -1), value=0.3),
    "rms": lambda h: h * torch.rsqrt((h * h).mean(1, keepdim=True) + 1e-5),
    "layernorm": lambda h: functional.layer_norm(h, (12,)),
    "groupnorm": lambda h: functional.group_norm(h.view(-1, 4, 3), 2).flatten(1),
    "instnorm": lambda h: functional.instance_norm(h.view(-1, 3, 4)).flatten(1),
    "lrn": lambda h: functional.local_response_norm(h.view(-1, 4, 3), 3).flatten(1),
    "l2norm": lambda h: functional.normalize(h),
    "sdpa": lambda h: functional.scaled_dot_product_attention(
        h.view(-1, 1, 3, 4), h.view(-1, 1, 3, 4), h.view(-1, 1, 3, 4), is_causal=True
    ).flatten(1),
    "sdpa-mask": lambda h: functional.scaled_dot_product_attention(
        h.view(-1, 1, 3, 4),
        h.view(-1, 1, 3, 4),
        h.view(-1, 1, 3, 4),
        attn_mask=torch.tensor([[1, 0, 1], [1, 1, 0], [0, 1, 1]]).bool(),
    ).flatten(1),
    "rope": lambda h: torch.cat([h[:, :6] * 0.8 - h[:, 6:] * 0.6, h[:, :6] * 0.6 + h[:, 6:] * 0.8], 1),
    "chunk": lambda h: sum(h.chunk(3, 1)),
    "stack": lambda h: torch.stack([h, h * 2], 2).flatten(1),
    "unfold": lambda h: h.unfold(1, 4, 2).flatten(1),
    "im2col": lambda h: functional.unfold(h.view(-1, 1, 3, 4), 2).flatten(1),
    "fold": lambda h: functional.fold(h.view(-1, 4, 3), (2, 4), 2).flatten(1),
    "pow": lambda h: (h.abs() + 0.1) ** 1.7,
    "pow2": lambda h: h**3,
    "rpow": lambda h: 2.0**h,
    "sqrt": lambda h: (h * h + 1).sqrt(),
    "rsqrt": lambda h: (h * h + 1).rsqrt(),
    "recip": lambda h: 1 / (h * h + 1),
    "log": lambda h: (h * h + 1).log(),
    "log1p": lambda h: (h * h).log1p(),
    "expm1": lambda h: h.expm1(),
    "exp": lambda h: h.exp(),
    "erf": lambda h: h.erf(),
    "sin": lambda h: h.sin() * h.cos(),
    "atan": lambda h: h.atan(),
    "asinh": lambda h: h.asinh(),
    "tan": lambda h: (h * 0.1).tan(),
    "atan2": lambda h: torch.atan2(h[:, :6], h[:, 6:]),
    "abs": lambda h: h.abs(),
    "sign": lambda h: h * h.sign(),
    "fmod": lambda h: torch.fmod(h, 0.7),
    "remainder": lambda h: torch.remainder(h, 0.7),
    "round": lambda h: h + h.round().detach(),
    "floor": lambda h: h - h.floor(),
    "max2": lambda h: torch.maximum(h[:, :6], h[:, 6:]),
    "min2": lambda h: torch.minimum(h[:, :6], h[:, 6:]),
    "maxself": lambda h: torch.maximum(h, torch.zeros(())),
    "div": lambda h: h[:, :6] / (h[:, 6:] ** 2 + 1),
    "lerp": lambda h: torch.lerp(h[:, :6], h[:, 6:], 0.3),
    "addcmul": lambda h: torch.addcmul(h[:, :6], h[:, 6:], h[:, :6]),
    "meanall": lambda h: h - h.mean(),
    "expand": lambda h: h[:, :3, None].expand(-1, 3, 4).flatten(1),
    "repeat": lambda h: h.repeat(1, 2),
    "repeat_interleave": lambda h: h.repeat_interleave(2, 1),
    "tile": lambda h: torch.tile(h, (1, 3)),
    "scatter": lambda h: torch.zeros(h.shape[0], 12).scatter(
        1, torch.arange(11, -1, -1)[None].expand(h.shape[0], 12), h
    ),
    "scatteradd": lambda h: torch.zeros(h.shape[0], 5).scatter_add(
        1, (torch.arange(12) % 5)[None].expand(h.shape[0], 12), h
    ),
    "setslice": lambda h: torch.cat([h[:, :2] * 3, h[:, 2:]], 1),
    "maskfill": lambda h: h.masked_fill(h > 0.5, -1.0),
    "slicestep": lambda h: h[:, 1::3],
    "negslice": lambda h: h[:, -5:-1],
    "select": lambda h: h[:, 2:3] * h,
    "permute": lambda h: h.view(-1, 3, 4).permute(0, 2, 1).reshape(-1, 12),
    "movedim": lambda h: h.view(-1, 2, 2, 3).movedim(1, 3).reshape(-1, 12),
    "pixel_shuffle": lambda h: functional.pixel_shuffle(h.view(-1, 12, 1, 1), 2).flatten(1),
    "pixel_unshuffle": lambda h: functional.pixel_unshuffle(h.view(-1, 3, 2, 2), 2).flatten(1),
    "channel_shuffle": lambda h: functional.channel_shuffle(h.view(-1, 4, 3, 1), 2).flatten(1),
    "gridsample": lambda h: functional.grid_sample(
        h.view(-1, 1, 3, 4),
        torch.tensor([[[[-0.3, 0.2], [0.5, 0.5]]]]).expand(h.shape[0], 1, 2, 2),
        align_corners=False,
    ).flatten(1),
    "cdist": lambda h: ((h.view(-1, 3, 1, 4) - h.view(-1, 1, 3, 4)) ** 2).sum(-1).flatten(1),
    "addbroadcast": lambda h: h.view(-1, 3, 4) + h[:, :4].unsqueeze(1),
    "mulbroadcast": lambda h: (h.view(-1, 3, 4) * h[:, :3].unsqueeze(2)).flatten(1),
    "argmaxmask": lambda h: h * functional.one_hot(h.argmax(1), 12),
    "crossprod": lambda h: torch.linalg.cross(h.view(-1, 4, 3), h.view(-1, 4, 3).roll(1, 1)).flatten(1),
    "matmulvec": lambda h: h.view(-1, 3, 4) @ torch.arange(4.0),
    "cumprod": lambda h: (h * 0.3 + 1).cumprod(1),
    "det": lambda h: torch.det(h[:, :4].view(-1, 2, 2))[:, None].expand(-1, 6),
    "straight-through": lambda h: (
        h.softmax(1) + (functional.one_hot(h.argmax(1), 12) - h.softmax(1)).detach()
    ),
    "median": lambda h: h.median(1, keepdim=True)[0] * h,
}


class Between(torch.nn.Module):
    """A linear layer, the program, another linear layer."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self.first = torch.nn.Parameter(torch.randn(4, 12))
        self.bias = torch.nn.Parameter(torch.randn(12))
        with torch.no_grad():
            width = self.between(torch.randn(3, 4)).shape[1]
        self.last = torch.nn.Parameter(torch.randn(width, CLASSES) * 0.5)

    def between(self, x: Any) -> Any:
        return self.program(x @ self.first + self.bias).flatten(1)

    def forward(self, x: Any) -> Any:
        return self.between(x) @ self.last


class Case:
    """A program between its layers, and a batch: the same in every process."""

    def __init__(self, program: Program) -> None:
        torch.manual_seed(3)
        self.module, self.x = Between(program), torch.randn(BATCH, 4)
        self.labels = torch.arange(BATCH) % CLASSES

    def exported(self) -> bytes:
        """As ONNX, `x` to `logits`. Raises whatever PyTorch raises."""
        quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
        with quiet[0], quiet[1], warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                self.module,
                (self.x,),
                dynamo=True,
                input_names=["x"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("rows", min=2)},),
                verbose=False,
            )
        return bytes(made.model_proto.SerializeToString())

    def gradients(self) -> dict[str, np.ndarray]:
        """Of the mean cross-entropy, by autograd in float64."""
        exact = copy.deepcopy(self.module).double()
        torch.set_default_dtype(torch.float64)  # for tensors that the program makes
        try:
            functional.cross_entropy(exact(self.x.double()), self.labels).backward()
        finally:
            torch.set_default_dtype(torch.float32)
        return {name: value.grad.numpy() for name, value in exact.named_parameters()}
