"""A decoder's file on one machine, without a fleet: what every fleet is held against."""

from __future__ import annotations

import numpy as np
import onnxruntime

from edge_attention.core.generation.course import GenerationCourse
from edge_attention.core.generation.sampling import GREEDY, Sampling
from edge_attention.core.tensors import Array, Float32

__all__ = ["LocalDecoder"]


class LocalDecoder:
    """`model`: an ONNX file whose inputs and outputs are called as `attention_decoder`'s."""

    def __init__(self, model: bytes, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._empty = {
            one.name: np.zeros(
                [dim if isinstance(dim, int) else int(i == 0) for i, dim in enumerate(one.shape)], np.float32
            )
            for one in self._session.get_inputs()
            if one.name.startswith("past_key_values.")
        }
        self.vocabulary = int(self._session.get_outputs()[0].shape[-1])
        self.restart()

    def restart(self) -> None:
        """Forget all tokens."""
        self._past: dict[str, Array] = dict(self._empty)

    @property
    def length(self) -> int:
        """Tokens that it has."""
        return int(next(iter(self._past.values())).shape[2])

    def extend(self, ids: Array) -> Float32:
        """The logits after each of `ids` int64 [n], float32 [n, vocabulary]."""
        feeds = {
            "input_ids": np.asarray(ids, np.int64)[None],
            "position_ids": np.arange(self.length, self.length + len(ids))[None],
            **self._past,
        }
        logits, *present = self._session.run(None, feeds)
        self._past = dict(zip(self._empty, present, strict=True))
        found: Float32 = logits[0]
        return found

    def truncate(self, length: int) -> None:
        """Forget all tokens but the first `length`."""
        self._past = {name: past[:, :, :length] for name, past in self._past.items()}

    def generate(self, prompt: str, count: int, sampling: Sampling = GREEDY) -> tuple[int, ...]:
        """The `count` tokens that come after `prompt`, one a step."""
        self.restart()
        course = GenerationCourse(list(prompt.encode()), sampling, count)
        while not course.finish:
            course.take(self.extend(np.array(course.ask())))
        return tuple(course.tokens[-count:])
