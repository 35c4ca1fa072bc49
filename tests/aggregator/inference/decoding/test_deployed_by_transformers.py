"""What the exporter of `transformers` writes is cut, as a model and for sessions, by all plans."""

from __future__ import annotations

from pathlib import Path

import pytest

from aggregator.inference.cut_request import CutRequest, NodeTold
from aggregator.inference.cutting import cut_as_asked

EXPORTS = Path(__file__).parents[3] / "graphs/decoding/exports"
NODES = tuple(NodeTold(name, 1 << 30, 0, 1) for name in "abc")


@pytest.mark.parametrize("word", ["replicate", "layers", "heads", "tokens", "auto"])
@pytest.mark.parametrize("name", ["llama", "llama_cuda", "llama_static", "llama_static_cpu"])
def test_it_is_deployed_with_sessions(name: str, word: str, tmp_path: Path) -> None:
    """Heads and widths have names that are numbers: as open sizes they would be any."""
    asked = CutRequest(str(EXPORTS / f"transformers_{name}.onnx"), str(tmp_path), word, nodes=NODES)
    made = cut_as_asked(asked)
    assert made.decoder, made.sessions
    pasts = [one for one in made.inputs if one.name.endswith((".keys", ".values"))]
    assert [tuple(one.shape)[1::2] for one in pasts] == [("2", "4")] * 4
