"""Decoders as the exporter of `transformers` itself writes them. `python -m tools.exports.by_transformers`
makes the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from decoder_runs import PaperDecoder, PaperSession, session_of, stepped_file

from edge_attention.core.schedule.plan import Cut, CutPlan, Stage
from edge_attention.graphs.decoding.cutting import cut_decoder

EXPORTS = Path(__file__).parent / "exports"
LAYERS, WORDS = 1 << 20, 40
PLANS = {
    "replicate": CutPlan((Stage(range(LAYERS), (0,)),)),
    "layers": CutPlan((Stage(range(2), (0,)), Stage(range(2, 5), (1,)))),
    "heads": CutPlan((Stage(range(LAYERS), (0, 1), Cut.HEADS),)),
    "tokens": CutPlan((Stage(range(LAYERS), (0, 1, 2), Cut.TOKENS, shares=(3, 1, 2)),)),
}
FILES = ["llama", "llama_cuda", "llama_static", "llama_static_cpu"]
PLACES = 20
"""Of pasts that new keys and values are written in."""


class Whole:
    """The file with its own past, which its inputs and outputs are called alike for."""

    def __init__(self, path: Path) -> None:
        self._session = session_of(str(path))
        self._inputs = {one.name: one for one in self._session.get_inputs()}
        self._outputs = [one.name for one in self._session.get_outputs()]
        self._state = {n: self._empty(n) for n in self._inputs if n.startswith("input.")}
        self.length = 0

    def _empty(self, name: str) -> np.ndarray:
        if len(self._inputs[name].shape) == 4:
            return np.zeros((1, 2, PLACES if "attention_mask" in self._inputs else 0, 4), np.float32)
        return np.zeros((), np.int64)  # how many there were

    def step(self, token: int) -> np.ndarray:
        """Logits [vocabulary] after one more token."""
        feeds = self._state | {"input_ids": np.array([[token]]), "position_ids": np.array([[self.length]])}
        if "attention_mask" in self._inputs:
            feeds["attention_mask"] = (np.arange(PLACES) <= self.length)[None, None, None]
        made = dict(zip(self._outputs, self._session.run(None, feeds), strict=True))
        self._state = {name: made[name.replace("input.", "output.")] for name in self._state}
        self.length += 1
        return np.asarray(made["logits"][0, -1])


@pytest.mark.parametrize("word", PLANS)
@pytest.mark.parametrize("name", FILES)
def test_logits_are_the_files(name: str, word: str) -> None:
    """Sizes are names that are numbers, batches are read off pasts, what sees nothing is zeros."""
    path = EXPORTS / f"transformers_{name}.onnx"
    decoder = PaperDecoder(stepped_file(path), PLANS[word])
    sessions = [(PaperSession(), Whole(path)) for _ in range(2)]
    rng = np.random.default_rng(0)
    for turn in range(8):
        rows, wanted = [], []
        for session, whole in sessions:
            for _ in range(2 if turn % 3 == 0 else 1):
                token = int(rng.integers(WORDS))
                rows.append((session, token))
                wanted.append(whole.step(token))
        found, expected = decoder.step(rows), np.array(wanted)
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", FILES)
def test_positions_are_an_input(name: str) -> None:
    stepped = stepped_file(EXPORTS / f"transformers_{name}.onnx")
    assert (stepped.positions, stepped.length) == ("position_ids", 8192)


@pytest.mark.parametrize("word", PLANS)
def test_what_a_mask_would_say_of_a_window_is_not_known(word: str) -> None:
    """A static cache's file is given a mask that says which tokens each sees: a window would be in that."""
    for name, known in (("llama_static", False), ("llama", True)):
        stepped = stepped_file(EXPORTS / f"transformers_{name}.onnx")
        lacking = cut_decoder(stepped, PLANS[word], 1)[0].emitted.schedule.lacking
        assert ("'attention_mask' say which tokens each sees" in lacking) is not known
